// Shared memory at file scope that only macros name, static and dynamic, with padding against bank conflicts.
#define BANKS_LOG 4
#define PADDED(i) ((i) + ((i) >> BANKS_LOG))
#define PART(i) part[PADDED(i)]
#define CARRY(i) carry[(i)]
extern __shared__ float part[];
__shared__ volatile float carry[2];

__device__ void up_and_down(int t, int n) {
    int step = 1;
    for (int d = n / 2; d > 0; d >>= 1, step *= 2) {
        __syncthreads();
        if (t < d) PART(step * (2 * t + 2) - 1) += PART(step * (2 * t + 1) - 1);
    }
    if (t == 0) {
        CARRY(0) = PART(n - 1);
        PART(n - 1) = 0.0f;
    }
    for (int d = 1; d < n; d *= 2) {
        step /= 2;
        __syncthreads();
        if (t < d) {
            const int left = step * (2 * t + 1) - 1, right = step * (2 * t + 2) - 1;
            const float before = PART(left);
            PART(left) = PART(right);
            PART(right) += before;
        }
    }
    __syncthreads();
}

extern "C" __global__ void exclusive_scan(const float* in, float* out, float* totals, int n) {
    const int t = threadIdx.x, base = blockIdx.x * n;
    PART(2 * t) = in[base + 2 * t];
    PART(2 * t + 1) = in[base + 2 * t + 1];
    up_and_down(t, n);
    out[base + 2 * t] = PART(2 * t);
    out[base + 2 * t + 1] = PART(2 * t + 1);
    if (t == 0) totals[blockIdx.x] = CARRY(0);
}
