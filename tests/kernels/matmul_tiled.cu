// Matrix product by shared tiles, sizes that are no multiple of the tile, template over the tile's side.
template <int side> __device__ void product(const float* a, const float* b, float* c, int m, int k, int n) {
    __shared__ float left[side][side], right[side][side];
    const int column = blockIdx.x * side + threadIdx.x, row = blockIdx.y * side + threadIdx.y;
    float sum = 0.0f;
    for (int first = 0; first < k; first += side) {
        const int along = first + threadIdx.x, down = first + threadIdx.y;
        left[threadIdx.y][threadIdx.x] = row < m && along < k ? a[row * k + along] : 0.0f;
        right[threadIdx.y][threadIdx.x] = down < k && column < n ? b[down * n + column] : 0.0f;
        __syncthreads();
#pragma unroll
        for (int i = 0; i < side; ++i) sum += left[threadIdx.y][i] * right[i][threadIdx.x];
        __syncthreads();
    }
    if (row < m && column < n) c[row * n + column] = sum;
}
extern "C" __global__ void matmul(const float* a, const float* b, float* c, int m, int k, int n) {
    product<16>(a, b, c, m, k, n);
}
