// Half precision: a layer with bias and GELU; products of halves summed in float, rounded at the end.
#include <cuda_fp16.h>

template <int TILE>
__device__ float row_by_column(const __half* __restrict__ a, const __half* __restrict__ b, int n, int inner, int row,
                               int column, __half (&rows)[TILE][TILE + 2], __half (&columns)[TILE][TILE + 2]) {
  float sum = 0.0f;
  for (int start = 0; start < inner; start += TILE) {
    rows[threadIdx.y][threadIdx.x] = a[row * inner + start + threadIdx.x];
    columns[threadIdx.y][threadIdx.x] = b[(start + threadIdx.y) * n + column];
    __syncthreads();
#pragma unroll
    for (int k = 0; k < TILE; ++k) sum += __half2float(rows[threadIdx.y][k]) * __half2float(columns[k][threadIdx.x]);
    __syncthreads();
  }
  return sum;
}

extern "C" __global__ void half_layer(const __half* a, const __half* b, const __half* bias, __half* out, int n, int inner) {
  __shared__ __half rows[8][10], columns[8][10];
  const int row = blockIdx.y * 8 + threadIdx.y, column = blockIdx.x * 8 + threadIdx.x;
  const float x = row_by_column<8>(a, b, n, inner, row, column, rows, columns) + __half2float(__ldg(&bias[column]));
  out[row * n + column] = __float2half(0.5f * x * (1.0f + erff(x * 0.70710678f)));
}
