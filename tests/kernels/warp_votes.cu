// Warp votes: __ballot_sync, __any_sync, __all_sync, __popc of a ballot, __activemask-free; a partial last warp.
extern "C" __global__ void votes(const int* values, unsigned int* ballots, int* any_above, int* all_even, int* rank,
                                 int n, int limit) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, lane = threadIdx.x & 31;
    const int value = i < n ? values[i] : 0;
    const unsigned int above = __ballot_sync(0xffffffffu, i < n && value > limit);
    const int any = __any_sync(0xffffffffu, i < n && value > limit);
    const int all = __all_sync(0xffffffffu, i >= n || value % 2 == 0);
    if (lane == 0) {
        ballots[i / 32] = above;
        any_above[i / 32] = any != 0;
        all_even[i / 32] = all != 0;
    }
    if (i < n) rank[i] = __popc(above & ((1u << lane) - 1));
}
