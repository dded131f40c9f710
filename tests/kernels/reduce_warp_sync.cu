// Whole-warp reductions in one call (__reduce_*_sync), with a guard for devices older than compute capability 8.0.
#if __CUDA_ARCH__ >= 800
#define SUM(mask, v) __reduce_add_sync(mask, v)
#define MOST(mask, v) __reduce_max_sync(mask, v)
#define COMMON(mask, v) __reduce_and_sync(mask, v)
#else
template <typename F> __device__ unsigned int combined(unsigned int v, F f) {
    for (int d = 16; d; d >>= 1) v = f(v, __shfl_xor_sync(0xffffffffu, v, d));
    return v;
}
#define SUM(mask, v) combined(v, [](unsigned int a, unsigned int b) { return a + b; })
#define MOST(mask, v) combined(v, [](unsigned int a, unsigned int b) { return a > b ? a : b; })
#define COMMON(mask, v) combined(v, [](unsigned int a, unsigned int b) { return a & b; })
#endif

extern "C" __global__ void per_warp(const unsigned int* in, uint3* out) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned int value = in[i];
    const uint3 all = make_uint3(SUM(0xffffffffu, value), MOST(0xffffffffu, value), COMMON(0xffffffffu, value));
    if (threadIdx.x % 32 == 0) out[i / 32] = all;
}
