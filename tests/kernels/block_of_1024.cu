// The largest block there is: 1024 threads as 32x32, reduced to minimum, maximum and sum through all warps.
extern "C" __global__ void __launch_bounds__(1024) extremes(const long long* values, long long* result, int n) {
    __shared__ long long least[32], most[32], sums[32];
    const int t = threadIdx.y * blockDim.x + threadIdx.x;
    long long low = 0x7fffffffffffffffll, high = -low - 1, sum = 0;
    for (int i = t; i < n; i += 1024) {
        low = min(low, values[i]);
        high = max(high, values[i]);
        sum += values[i];
    }
    for (int d = 16; d; d >>= 1) {
        low = min(low, __shfl_xor_sync(~0u, low, d));
        high = max(high, __shfl_xor_sync(~0u, high, d));
        sum += __shfl_xor_sync(~0u, sum, d);
    }
    if (threadIdx.x == 0) least[threadIdx.y] = low, most[threadIdx.y] = high, sums[threadIdx.y] = sum;
    __syncthreads();
    if (t == 0) {
        for (int w = 1; w < 32; ++w) {
            low = min(low, least[w]);
            high = max(high, most[w]);
            sum += sums[w];
        }
        result[0] = low, result[1] = high, result[2] = sum;
    }
}
