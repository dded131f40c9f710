// Grid-stride loop over an odd size with fewer threads than elements; __restrict__, const, __launch_bounds__.
extern "C" __global__ void __launch_bounds__(128)
saxpy(const float* __restrict__ x, float* __restrict__ y, const float a, const int n) {
    const int stride = blockDim.x * gridDim.x;
#pragma unroll 4
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) y[i] = a * x[i] + y[i];
}
