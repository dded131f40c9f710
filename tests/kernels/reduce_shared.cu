// Sum by a shared-memory tree, unrolled by template over the block's size, two elements per thread on loading.
template <int threads> __device__ void reduce(const float* in, float* out, int n) {
    __shared__ float part[threads];
    const int t = threadIdx.x, i = blockIdx.x * threads * 2 + t;
    part[t] = (i < n ? in[i] : 0.0f) + (i + threads < n ? in[i + threads] : 0.0f);
    __syncthreads();
#pragma unroll
    for (int half = threads / 2; half >= 1; half /= 2) {
        if (t < half) part[t] += part[t + half];
        __syncthreads();
    }
    if (t == 0) out[blockIdx.x] = part[0];
}
extern "C" __global__ void reduce_64(const float* in, float* out, int n) { reduce<64>(in, out, n); }
extern "C" __global__ void reduce_256(const float* in, float* out, int n) { reduce<256>(in, out, n); }
