// Stream compaction that keeps the order: ballots within a warp, a scan over warps, a scan over blocks before it.
__device__ bool wanted(int v) { return v % 3 == 0; }

extern "C" __global__ void count_wanted(const int* in, int* counts, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    const int kept = __syncthreads_count(i < n && wanted(in[i]));
    if (threadIdx.x == 0) counts[blockIdx.x] = kept;
}

extern "C" __global__ void compact(const int* in, const int* starts, int* out, int n) {
    __shared__ int before[33];
    const int i = blockIdx.x * blockDim.x + threadIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const bool keep = i < n && wanted(in[i]);
    const unsigned int kept = __ballot_sync(0xffffffffu, keep);
    if (lane == 0) before[warp + 1] = __popc(kept);
    if (threadIdx.x == 0) before[0] = starts[blockIdx.x];
    __syncthreads();
    if (threadIdx.x == 0)
        for (int w = 1; w <= blockDim.x / 32; ++w) before[w] += before[w - 1];
    __syncthreads();
    if (keep) out[before[warp] + __popc(kept & ((1u << lane) - 1))] = in[i];
}
