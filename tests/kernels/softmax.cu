// Softmax of rows of any length, one block per row: block reductions of max and sum through shared memory.
template <typename Combine> __device__ float block_reduce(float value, float* scratch, Combine combine) {
    const int t = threadIdx.x;
    scratch[t] = value;
    __syncthreads();
    for (int width = blockDim.x / 2; width > 0; width /= 2) {
        if (t < width) scratch[t] = combine(scratch[t], scratch[t + width]);
        __syncthreads();
    }
    const float result = scratch[0];
    __syncthreads();
    return result;
}

extern "C" __global__ void softmax(const float* in, float* out, int columns) {
    extern __shared__ float scratch[];
    const float* row = in + (size_t)blockIdx.x * columns;
    float largest = -1e30f;
    for (int i = threadIdx.x; i < columns; i += blockDim.x) largest = fmaxf(largest, row[i]);
    largest = block_reduce(largest, scratch, [](float a, float b) { return fmaxf(a, b); });
    float sum = 0.0f;
    for (int i = threadIdx.x; i < columns; i += blockDim.x) sum += __expf(row[i] - largest);
    sum = block_reduce(sum, scratch, [](float a, float b) { return a + b; });
    for (int i = threadIdx.x; i < columns; i += blockDim.x)
        out[(size_t)blockIdx.x * columns + i] = __fdividef(__expf(row[i] - largest), sum);
}
