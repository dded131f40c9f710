// Shuffles under a partial mask: only the lanes of one half take part, each half on a path of its own.
extern "C" __global__ void halves(const int* in, int* out) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, lane = threadIdx.x & 31;
    int value = in[i];
    if (lane < 16) {
        for (int d = 8; d; d >>= 1) value += __shfl_xor_sync(0x0000ffffu, value, d);
    } else {
        for (int d = 8; d; d >>= 1) value = max(value, __shfl_xor_sync(0xffff0000u, value, d));
    }
    out[i] = value;
}
