// Cross-correlation of a long signal with a short one: a shared window with an apron, `volatile`-free reuse.
#define THREADS 128
#define TAPS 17

extern "C" __global__ void correlate(const float* signal, const float* taps, float* out, int n) {
    __shared__ float window[THREADS + TAPS - 1];
    __shared__ float kernel_[TAPS];
    const int first = blockIdx.x * THREADS;
    for (int i = threadIdx.x; i < THREADS + TAPS - 1; i += THREADS)
        window[i] = first + i < n ? signal[first + i] : 0.0f;
    if (threadIdx.x < TAPS) kernel_[threadIdx.x] = taps[threadIdx.x];
    __syncthreads();
    const int i = first + threadIdx.x;
    if (i > n - TAPS) return;
    float sum = 0.0f;
    for (int t = 0; t < TAPS; ++t) sum = fmaf(window[threadIdx.x + t], kernel_[t], sum);
    out[i] = sum;
}
