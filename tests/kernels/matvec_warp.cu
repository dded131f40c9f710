// Matrix by vector, one warp per row and several warps per block (blockDim.y): shuffles across threadIdx.x only.
extern "C" __global__ void matvec(const float* matrix, const float* x, float* y, int rows, int columns) {
    const int row = blockIdx.x * blockDim.y + threadIdx.y;
    float sum = 0.0f;
    if (row < rows)
        for (int k = threadIdx.x; k < columns; k += 32) sum += matrix[row * columns + k] * x[k];
    for (int mask = 16; mask; mask >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
    if (row < rows && threadIdx.x == 0) y[row] = sum;
}
