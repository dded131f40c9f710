// Cooperative groups: thread_block, tiled_partition of three sizes, shuffles, votes and sync of a tile.
#include <cooperative_groups.h>
namespace cg = cooperative_groups;

template <typename Tile> __device__ int tile_sum(Tile tile, int value) {
    for (int d = tile.size() / 2; d > 0; d /= 2) value += tile.shfl_down(value, d);
    return tile.shfl(value, 0);
}

extern "C" __global__ void tile_sums(const int* values, int* fours, int* sixteens, int* warps, int* leaders, int n) {
    cg::thread_block block = cg::this_thread_block();
    auto tile4 = cg::tiled_partition<4>(block);
    cg::thread_block_tile<16> tile16 = cg::tiled_partition<16>(block);
    auto tile32 = cg::tiled_partition<32>(block);
    const int i = block.group_index().x * block.size() + block.thread_rank();
    const int value = i < n ? values[i] : 0;
    const int four = tile_sum(tile4, value), sixteen = tile_sum(tile16, value), warp = tile_sum(tile32, value);
    __shared__ int first[8];
    if (tile32.thread_rank() == 0) first[block.thread_rank() / 32] = tile32.meta_group_rank();
    block.sync();
    const unsigned int odd = tile16.ballot(value & 1);
    if (i >= n) return;
    fours[i] = four;
    sixteens[i] = sixteen + tile16.any(value < 0) + 2 * tile16.all(value >= 0);
    warps[i] = warp;
    leaders[i] = first[threadIdx.x / 32] * 100 + __popc(odd);
}
