// Source that nvcc compiles elsewhere: host headers that no NVRTC reads, an atomic addition of its own, old spellings.
#ifndef __CUDACC_RTC__
#include <cstdio>
#include <cuda_runtime.h>
#endif
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 600
#error "too old"
#endif
typedef unsigned long long int bits64;

static __inline__ __device__ double add_double(double* address, double value) {
    bits64* place = (bits64*)address;
    bits64 old = *place, assumed;
    do {
        assumed = old;
        old = atomicCAS(place, assumed, __double_as_longlong(value + __longlong_as_double(assumed)));
    } while (assumed != old);
    return __longlong_as_double(old);
}

extern "C" __global__ void bin_weights(const double* __restrict__ weights, const int* __restrict__ bins, double* sums, int n) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        add_double(&sums[bins[i]], weights[i]);
}
