// Sum and maximum of integers by shuffles in sub-warps of 8 lanes (the width argument), then atomics.
extern "C" __global__ void reduce_eights(const int* in, int* sums, int* most, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    int sum = i < n ? in[i] : 0, high = i < n ? in[i] : -2147483647 - 1;
    for (int d = 4; d > 0; d >>= 1) {
        sum += __shfl_down_sync(0xffffffffu, sum, d, 8);
        high = max(high, __shfl_xor_sync(0xffffffffu, high, d, 8));
    }
    if (threadIdx.x % 8 == 0 && i < n) sums[i / 8] = sum;
    const int broadcast = __shfl_sync(0xffffffffu, high, 0, 8);
    if (threadIdx.x % 8 == 7) atomicMax(most, broadcast);
}
