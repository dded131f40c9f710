// Radix sort, one bit per launch pair: a block-wide rank by ballots and shuffles, stable; one block per row.
__device__ int exclusive_rank(bool flag, int* warp_totals, int* all) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    const unsigned int votes = __ballot_sync(0xffffffffu, flag);
    if (lane == 0) warp_totals[warp] = __popc(votes);
    __syncthreads();
    if (warp == 0) {
        const int mine = lane < warps ? warp_totals[lane] : 0;
        int scanned = mine;
        for (int d = 1; d < 32; d <<= 1) {
            const int below = __shfl_up_sync(0xffffffffu, scanned, d);
            if (lane >= d) scanned += below;
        }
        warp_totals[lane] = scanned - mine;
        if (lane == 31) *all = scanned;
    }
    __syncthreads();
    return warp_totals[warp] + __popc(votes & ((1u << lane) - 1));
}

extern "C" __global__ void radix_sort(const unsigned int* in, unsigned int* out) {
    __shared__ unsigned int keys[512];
    __shared__ int totals[32], zeros;
    const int t = threadIdx.x;
    keys[t] = in[blockIdx.x * blockDim.x + t];
    for (int bit = 0; bit < 16; ++bit) {
        __syncthreads();
        const unsigned int key = keys[t];
        const bool zero = !(key >> bit & 1);
        const int rank = exclusive_rank(zero, totals, &zeros);
        const int place = zero ? rank : zeros + t - rank;
        __syncthreads();
        keys[place] = key;
    }
    __syncthreads();
    out[blockIdx.x * blockDim.x + t] = keys[t];
}
