// Radix-2 FFT of one row per block, in shared float2: bit reversal by __brev, sincospif, a barrier per stage.
#define N 256

extern "C" __global__ void fft(const float2* in, float2* out) {
    __shared__ float2 z[N];
    const int t = threadIdx.x;
    const float2* row = in + blockIdx.x * N;
    for (int i = t; i < N; i += blockDim.x) z[__brev(i) >> 24] = row[i];
    __syncthreads();
    for (int half = 1; half < N; half *= 2) {
        for (int pair = t; pair < N / 2; pair += blockDim.x) {
            const int k = pair % half, low = 2 * (pair - k) + k;
            float s, c;
            sincospif(-(float)k / half, &s, &c);
            const float2 a = z[low], b = z[low + half];
            const float2 turned = {b.x * c - b.y * s, b.x * s + b.y * c};
            z[low] = make_float2(a.x + turned.x, a.y + turned.y);
            z[low + half] = make_float2(a.x - turned.x, a.y - turned.y);
        }
        __syncthreads();
    }
    for (int i = t; i < N; i += blockDim.x) out[blockIdx.x * N + i] = z[i];
}
