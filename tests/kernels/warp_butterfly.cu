// Pairs of threads hand values over through shared memory with __syncwarp and volatile, and through __shfl_sync.
extern "C" __global__ void butterflies(const int* in, int* out) {
    __shared__ volatile int slots[64];
    const int t = threadIdx.x, lane = t & 31;
    int value = in[blockIdx.x * 64 + t];
    for (int distance = 1; distance < 32; distance <<= 1) {
        slots[t] = value;
        __syncwarp();
        const int partner = slots[t ^ distance];
        __syncwarp();
        value = (lane & distance) ? partner - value : partner + value;
    }
    out[blockIdx.x * 64 + t] = value + __shfl_sync(0xffffffffu, value, (lane + 1) % 32);
}
