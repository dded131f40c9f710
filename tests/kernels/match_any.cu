// Warp-aggregated histogram: __match_any_sync groups lanes with one key, the first lane of each adds for all.
extern "C" __global__ void count_keys(const int* keys, int* counts, unsigned int* peers, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    const unsigned int present = __ballot_sync(0xffffffffu, i < n);
    if (i >= n) return;
    const int key = keys[i];
    const unsigned int same = __match_any_sync(present, key);
    peers[i] = same;
    if ((int)(threadIdx.x & 31) == __ffs(same) - 1) atomicAdd(&counts[key], __popc(same));
}
