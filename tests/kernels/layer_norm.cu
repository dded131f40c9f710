// Layer normalisation: Welford's mean and variance merged across lanes by shuffles, then across warps.
struct Moments {
    float count, mean, spread;
};
__device__ Moments merged(Moments a, Moments b) {
    const float count = a.count + b.count;
    if (count == 0.0f) return a;
    const float delta = b.mean - a.mean;
    return {count, a.mean + delta * b.count / count, a.spread + b.spread + delta * delta * a.count * b.count / count};
}
__device__ Moments across_warp(Moments m) {
    for (int d = 16; d > 0; d /= 2) {
        Moments other;
        other.count = __shfl_down_sync(0xffffffff, m.count, d);
        other.mean = __shfl_down_sync(0xffffffff, m.mean, d);
        other.spread = __shfl_down_sync(0xffffffff, m.spread, d);
        m = merged(m, other);
    }
    return m;
}

extern "C" __global__ void layer_norm(const float* in, const float* gain, const float* bias, float* out, int columns) {
    __shared__ Moments warps[32];
    __shared__ float mean, scale;
    const float* row = in + blockIdx.x * columns;
    Moments m = {0.0f, 0.0f, 0.0f};
    for (int i = threadIdx.x; i < columns; i += blockDim.x) m = merged(m, {1.0f, row[i], 0.0f});
    m = across_warp(m);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = m;
    __syncthreads();
    if (threadIdx.x < 32) {
        m = threadIdx.x < blockDim.x / 32 ? warps[threadIdx.x] : Moments{0.0f, 0.0f, 0.0f};
        m = across_warp(m);
        if (threadIdx.x == 0) {
            mean = m.mean;
            scale = rsqrtf(m.spread / m.count + 1e-5f);
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < columns; i += blockDim.x)
        out[blockIdx.x * columns + i] = (row[i] - mean) * scale * gain[i] + bias[i];
}
