// Attention with an online softmax: keys and values pass by in tiles of dynamic shared memory, one query per thread.
template <int width> __device__ void attend(const float* q, const float* k, const float* v, float* out, int n) {
    extern __shared__ float memory[];
    float* keys = memory;
    float* values = memory + blockDim.x * width;
    const int me = blockIdx.x * blockDim.x + threadIdx.x;
    float query[width], sum[width], largest = -__int_as_float(0x7f800000), total = 0.0f;
    for (int d = 0; d < width; ++d) {
        query[d] = me < n ? q[me * width + d] * rsqrtf((float)width) : 0.0f;
        sum[d] = 0.0f;
    }
    for (int first = 0; first < n; first += blockDim.x) {
        const int in_tile = min((int)blockDim.x, n - first);
        for (int i = threadIdx.x; i < in_tile * width; i += blockDim.x) {
            keys[i] = k[first * width + i];
            values[i] = v[first * width + i];
        }
        __syncthreads();
        for (int j = 0; j < in_tile; ++j) {
            float score = 0.0f;
            for (int d = 0; d < width; ++d) score += query[d] * keys[j * width + d];
            const float top = fmaxf(largest, score);
            const float old = expf(largest - top), weight = expf(score - top);
            total = total * old + weight;
            for (int d = 0; d < width; ++d) sum[d] = sum[d] * old + weight * values[j * width + d];
            largest = top;
        }
        __syncthreads();
    }
    if (me < n)
        for (int d = 0; d < width; ++d) out[me * width + d] = sum[d] / total;
}

extern "C" __global__ void attention(const float* q, const float* k, const float* v, float* out, int n) {
    attend<16>(q, k, v, out, n);
}
