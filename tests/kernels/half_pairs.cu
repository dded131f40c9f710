// Half precision in pairs: arithmetic, comparisons, shuffles and atomic addition of `__half2`, and operators of `__half`.
#include <cuda_fp16.h>

extern "C" __global__ void clipped(const __half2* __restrict__ x, __half2* y, __half2 scale, __half limit, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const __half2 most = __half2half2(limit);
  __half2 v = __hfma2(x[i], scale, __floats2half2_rn(0.5f, -0.5f));
  v = __hmin2(__hmax2(v, __hneg2(most)), most);
  y[i] = __hgt2(v, __float2half2_rn(0.0f)) * v - __lowhigh2highlow(v);
}

extern "C" __global__ void counted(const __half* __restrict__ x, __half2* sums, int* order, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const __half v = i < n ? x[i] : __ushort_as_half(0);
  const bool large = __hge(v, __float2half(1.0f)) && !__hisnan(v);
  __half2 both = __halves2half2(__half(large ? 1 : 0), __int2half_rn(v < __half(0)));
  for (int step = 16; step > 0; step /= 2) both += __shfl_xor_sync(0xffffffffu, both, step);
  if ((threadIdx.x & 31) == 0) atomicAdd(sums, both);
  if (i < n) order[i] = __half2int_rd(hrsqrt(__habs(v)) * __half(8));
}
