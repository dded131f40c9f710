// Inclusive scan of a block by warp shuffles: __shfl_up_sync, warp totals scanned by one warp, of doubles.
__device__ double warp_scan(double value, int lane) {
    for (int d = 1; d < 32; d *= 2) {
        const double below = __shfl_up_sync(0xffffffffu, value, d);
        if (lane >= d) value += below;
    }
    return value;
}

extern "C" __global__ void block_scan(const double* in, double* out, int n) {
    __shared__ double totals[32];
    const int i = blockIdx.x * blockDim.x + threadIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    double value = warp_scan(i < n ? in[i] : 0.0, lane);
    if (lane == 31) totals[warp] = value;
    __syncthreads();
    if (warp == 0) {
        const double total = lane < blockDim.x / 32 ? totals[lane] : 0.0;
        totals[lane] = warp_scan(total, lane);
    }
    __syncthreads();
    if (warp > 0) value += totals[warp - 1];
    if (i < n) out[i] = value;
}
