// Separable blur of float4 pixels: one template for both directions, weights computed at compile time.
template <int radius> struct Weights {
    float w[2 * radius + 1];
    __host__ __device__ constexpr Weights() : w() {
        float total = 0.0f, value = 1.0f;
        for (int i = 0; i <= 2 * radius; ++i) {  // a row of Pascal's triangle
            w[i] = value;
            total += value;
            value = value * (2 * radius - i) / (i + 1);
        }
        for (int i = 0; i <= 2 * radius; ++i) w[i] /= total;
    }
};
__constant__ constexpr Weights<3> weights;

template <bool horizontal> __device__ void blur(const float4* in, float4* out, int width, int height) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= width || y >= height) return;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
    for (int d = -3; d <= 3; ++d) {
        const int u = horizontal ? min(max(x + d, 0), width - 1) : x;
        const int v = horizontal ? y : min(max(y + d, 0), height - 1);
        const float4 p = __ldg(&in[v * width + u]);
        const float w = weights.w[d + 3];
        sum = make_float4(sum.x + w * p.x, sum.y + w * p.y, sum.z + w * p.z, sum.w + w * p.w);
    }
    out[y * width + x] = sum;
}
extern "C" __global__ void blur_rows(const float4* in, float4* out, int width, int height) {
    blur<true>(in, out, width, height);
}
extern "C" __global__ void blur_columns(const float4* in, float4* out, int width, int height) {
    blur<false>(in, out, width, height);
}
