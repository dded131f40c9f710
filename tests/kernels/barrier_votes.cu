// Barriers that count: __syncthreads_count, __syncthreads_and, __syncthreads_or over a block with a partial warp.
extern "C" __global__ void barrier_votes(const int* values, int* results, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    const int value = i < n ? values[i] : 1;
    const int positive = __syncthreads_count(value > 0);
    const int all = __syncthreads_and(value > 0);
    const int some = __syncthreads_or(value > 90);
    if (threadIdx.x == 0) {
        results[3 * blockIdx.x] = positive;
        results[3 * blockIdx.x + 1] = all != 0;
        results[3 * blockIdx.x + 2] = some != 0;
    }
}
