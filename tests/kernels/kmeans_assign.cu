// k-means: nearest centre of every point, and sums per centre gathered in shared memory before global atomics.
#define CENTRES 7

extern "C" __global__ void assign(const float2* points, const float2* centres, int* nearest, int* sizes,
                                  long long* sums, int n) {
    __shared__ int count[CENTRES];
    __shared__ unsigned long long total[2 * CENTRES];
    if (threadIdx.x < CENTRES) count[threadIdx.x] = 0;
    if (threadIdx.x < 2 * CENTRES) total[threadIdx.x] = 0;
    __syncthreads();
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        const float2 p = points[i];
        int best = 0;
        float least = 3e38f;
        for (int c = 0; c < CENTRES; ++c) {
            const float dx = p.x - centres[c].x, dy = p.y - centres[c].y, d = dx * dx + dy * dy;
            if (d < least) least = d, best = c;
        }
        nearest[i] = best;
        atomicAdd(&count[best], 1);
        // Fixed point: integer sums do not depend on their order.
        atomicAdd(&total[2 * best], (unsigned long long)__float2ll_rn(p.x * 1048576.0f));
        atomicAdd(&total[2 * best + 1], (unsigned long long)__float2ll_rn(p.y * 1048576.0f));
    }
    __syncthreads();
    if (threadIdx.x < CENTRES) atomicAdd(&sizes[threadIdx.x], count[threadIdx.x]);
    if (threadIdx.x < 2 * CENTRES) atomicAdd((unsigned long long*)&sums[threadIdx.x], total[threadIdx.x]);
}
