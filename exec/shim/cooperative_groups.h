// Cooperative groups within a block: the block, tiles of it, and lanes that happen to be together.
//
// A tile or a coalesced group is a set of lanes of one warp, so its functions are the warp functions with that mask.
#pragma once
#include "coppermesh_cuda.h"

namespace cooperative_groups {

namespace coppermesh_groups {
// The lane of a group's member `rank`.
COPPERMESH_INLINE unsigned int lane_of(unsigned int mask, unsigned int rank) {
    for (; rank; rank--) mask &= mask - 1;
    return mask ? (unsigned int)__builtin_ctz(mask) : 32u;
}
COPPERMESH_INLINE unsigned int ranks(unsigned int mask) { return (unsigned int)__builtin_popcount(mask); }
// Bits of lanes as bits of ranks.
COPPERMESH_INLINE unsigned int pack(unsigned int lanes, unsigned int mask) {
    unsigned int packed = 0;
    for (unsigned int rank = 0; mask; mask &= mask - 1, rank++)
        packed |= (lanes >> __builtin_ctz(mask) & 1u) << rank;
    return packed;
}
COPPERMESH_INLINE unsigned int lanes_below(unsigned int mask) {
    return ranks(mask & ((1u << coppermesh::lane_id()) - 1u));
}
COPPERMESH_INLINE unsigned int first_lanes(unsigned int size) { return size >= 32u ? ~0u : (1u << size) - 1u; }
}  // namespace coppermesh_groups

// Any of the groups below.
class thread_group {
protected:
    unsigned int lanes;  // members, where they are lanes of one warp
    unsigned int count;  // members
    bool whole_block;

public:
    COPPERMESH_METHOD thread_group(unsigned int mask, unsigned int size, bool block)
        : lanes(mask), count(size), whole_block(block) {}
    COPPERMESH_METHOD unsigned long long size() const { return count; }
    COPPERMESH_METHOD unsigned long long num_threads() const { return count; }
    COPPERMESH_METHOD unsigned long long thread_rank() const {
        return whole_block ? coppermesh::running.block->current : coppermesh_groups::lanes_below(lanes);
    }
    COPPERMESH_METHOD void sync(COPPERMESH_LINE) const {
        if (whole_block)
            coppermesh::barrier(line, line);
        else
            __syncwarp(lanes, line);
    }
    COPPERMESH_METHOD bool is_valid() const { return true; }
    COPPERMESH_METHOD unsigned int coppermesh_lanes() const { return lanes; }
};

class thread_block : public thread_group {
    COPPERMESH_METHOD thread_block()
        : thread_group(0, coppermesh::running.block->threads, true) {}
    friend thread_block this_thread_block();

public:
    COPPERMESH_METHOD static void sync(COPPERMESH_LINE) { coppermesh::barrier(line, line); }
    COPPERMESH_METHOD static unsigned int thread_rank() { return coppermesh::running.block->current; }
    COPPERMESH_METHOD static unsigned int size() { return coppermesh::running.block->threads; }
    COPPERMESH_METHOD static unsigned int num_threads() { return size(); }
    COPPERMESH_METHOD static dim3 group_index() { return dim3(blockIdx); }
    COPPERMESH_METHOD static dim3 thread_index() { return dim3(threadIdx); }
    COPPERMESH_METHOD static dim3 group_dim() { return dim3(blockDim); }
    COPPERMESH_METHOD static dim3 dim_threads() { return dim3(blockDim); }
};
inline thread_block this_thread_block() { return thread_block(); }

// All threads of a launch: their number and order. They cannot wait for each other.
class grid_group {
    grid_group() = default;
    friend grid_group this_grid();
    COPPERMESH_METHOD static unsigned long long threads_of_block() {
        return (unsigned long long)blockDim.x * blockDim.y * blockDim.z;
    }

public:
    COPPERMESH_METHOD static bool is_valid() { return false; }
    [[noreturn]] static void sync(COPPERMESH_LINE) {
        coppermesh::assertion_failed(line, "kernel.cu", "no thread waits for the whole grid");
    }
    COPPERMESH_METHOD static unsigned long long num_blocks() {
        return (unsigned long long)gridDim.x * gridDim.y * gridDim.z;
    }
    COPPERMESH_METHOD static unsigned long long block_rank() {
        return blockIdx.x + (unsigned long long)gridDim.x * (blockIdx.y + (unsigned long long)gridDim.y * blockIdx.z);
    }
    COPPERMESH_METHOD static unsigned long long num_threads() { return num_blocks() * threads_of_block(); }
    COPPERMESH_METHOD static unsigned long long size() { return num_threads(); }
    COPPERMESH_METHOD static unsigned long long thread_rank() {
        return block_rank() * threads_of_block() + coppermesh::running.block->current;
    }
    COPPERMESH_METHOD static dim3 dim_blocks() { return dim3(gridDim); }
    COPPERMESH_METHOD static dim3 group_dim() { return dim3(gridDim); }
    COPPERMESH_METHOD static dim3 block_index() { return dim3(blockIdx); }
};
inline grid_group this_grid() { return grid_group(); }

// What all groups within a warp can do. `lanes` is the mask; ranks count its members.
class coppermesh_lanes_group : public thread_group {
protected:
    unsigned int meta_rank, meta_size;
    COPPERMESH_METHOD coppermesh_lanes_group(unsigned int mask, unsigned int size, unsigned int rank, unsigned int groups)
        : thread_group(mask, size, false), meta_rank(rank), meta_size(groups) {}
    COPPERMESH_METHOD unsigned int own_lane() const { return coppermesh::lane_id(); }
    template <class T> COPPERMESH_METHOD T read(T value, unsigned int lane, unsigned int line) const {
        return coppermesh::shuffle(coppermesh::SHUFFLE_INDEX, lanes, value, lane, line);
    }

public:
    COPPERMESH_METHOD void sync(COPPERMESH_LINE) const { __syncwarp(lanes, line); }
    COPPERMESH_METHOD unsigned int thread_rank() const { return coppermesh_groups::lanes_below(lanes); }
    COPPERMESH_METHOD unsigned int size() const { return count; }
    COPPERMESH_METHOD unsigned int num_threads() const { return count; }
    COPPERMESH_METHOD unsigned int meta_group_rank() const { return meta_rank; }
    COPPERMESH_METHOD unsigned int meta_group_size() const { return meta_size; }
    COPPERMESH_METHOD int any(int predicate, COPPERMESH_LINE) const { return __any_sync(lanes, predicate, line); }
    COPPERMESH_METHOD int all(int predicate, COPPERMESH_LINE) const { return __all_sync(lanes, predicate, line); }
    COPPERMESH_METHOD unsigned int ballot(int predicate, COPPERMESH_LINE) const {
        return coppermesh_groups::pack(__ballot_sync(lanes, predicate, line), lanes);
    }
    template <class T> COPPERMESH_METHOD unsigned int match_any(T value, COPPERMESH_LINE) const {
        return coppermesh_groups::pack(__match_any_sync(lanes, value, line), lanes);
    }
    template <class T> COPPERMESH_METHOD unsigned int match_all(T value, int& predicate, COPPERMESH_LINE) const {
        return coppermesh_groups::pack(__match_all_sync(lanes, value, &predicate, line), lanes);
    }
};

// Lanes that came to the same place together, or a part of such a group.
class coalesced_group : public coppermesh_lanes_group {
public:
    COPPERMESH_METHOD coalesced_group(unsigned int mask, unsigned int rank = 0, unsigned int groups = 1)
        : coppermesh_lanes_group(mask, coppermesh_groups::ranks(mask), rank, groups) {}
    template <class T> COPPERMESH_METHOD T shfl(T value, int rank, COPPERMESH_LINE) const {
        if (__builtin_expect((unsigned int)rank >= count, 0)) coppermesh::outside_group(lanes, rank, line);
        return this->read(value, coppermesh_groups::lane_of(lanes, (unsigned int)rank), line);
    }
    template <class T> COPPERMESH_METHOD T shfl_up(T value, int delta, COPPERMESH_LINE) const {
        const int rank = (int)thread_rank() - delta;
        return this->read(value, rank < 0 ? own_lane() : coppermesh_groups::lane_of(lanes, (unsigned int)rank), line);
    }
    template <class T> COPPERMESH_METHOD T shfl_down(T value, int delta, COPPERMESH_LINE) const {
        const unsigned int rank = thread_rank() + (unsigned int)delta;
        return this->read(value, rank >= count ? own_lane() : coppermesh_groups::lane_of(lanes, rank), line);
    }
};
inline __attribute__((always_inline)) coalesced_group coalesced_threads(COPPERMESH_LINE) {
    return coalesced_group(coppermesh::active_lanes(0x80000000u | line, line));
}

// `Size` threads of a block that follow each other, from a multiple of `Size`.
template <unsigned int Size, class Parent = void> class thread_block_tile : public coppermesh_lanes_group {
    static_assert(Size >= 1 && (Size & (Size - 1)) == 0, "a tile's size is a power of two");
    static_assert(Size <= 32, "tiles of more than 32 threads are not possible on a CPU device");

public:
    COPPERMESH_METHOD thread_block_tile(unsigned int mask, unsigned int rank, unsigned int groups)
        : coppermesh_lanes_group(mask, Size, rank, groups) {}
    template <class Other> COPPERMESH_METHOD thread_block_tile(const thread_block_tile<Size, Other>& other)
        : coppermesh_lanes_group(other.coppermesh_lanes(), Size, other.meta_group_rank(), other.meta_group_size()) {}
    COPPERMESH_METHOD static constexpr unsigned int size() { return Size; }
    COPPERMESH_METHOD static constexpr unsigned int num_threads() { return Size; }
    COPPERMESH_METHOD unsigned int thread_rank() const { return own_lane() & (Size - 1u); }
    template <class T> COPPERMESH_METHOD T shfl(T value, int rank, COPPERMESH_LINE) const {
        return this->read(value, source(coppermesh::SHUFFLE_INDEX, (unsigned int)rank, line), line);
    }
    template <class T> COPPERMESH_METHOD T shfl_up(T value, int delta, COPPERMESH_LINE) const {
        return this->read(value, source(coppermesh::SHUFFLE_UP, (unsigned int)delta, line), line);
    }
    template <class T> COPPERMESH_METHOD T shfl_down(T value, int delta, COPPERMESH_LINE) const {
        return this->read(value, source(coppermesh::SHUFFLE_DOWN, (unsigned int)delta, line), line);
    }
    template <class T> COPPERMESH_METHOD T shfl_xor(T value, int lane_mask, COPPERMESH_LINE) const {
        return this->read(value, source(coppermesh::SHUFFLE_XOR, (unsigned int)lane_mask, line), line);
    }

private:
    COPPERMESH_METHOD unsigned int source(unsigned int meeting, unsigned int operand, unsigned int line) const {
        return coppermesh::shuffle_source(meeting, operand, (int)Size, line);
    }
};

// --- partitions

template <unsigned int Size, class Parent>
inline __attribute__((always_inline)) thread_block_tile<Size, Parent> tiled_partition(const Parent& parent) {
    const unsigned int lane = coppermesh::lane_id(), rank = (unsigned int)parent.thread_rank();
    return thread_block_tile<Size, Parent>(
        coppermesh_groups::first_lanes(Size) << (lane & ~(Size - 1u)), rank / Size,
        ((unsigned int)parent.size() + Size - 1u) / Size);
}

namespace coppermesh_groups {
// Members `size * i ...` of a group of lanes.
COPPERMESH_INLINE unsigned int part_of(unsigned int mask, unsigned int rank, unsigned int size) {
    unsigned int part = 0;
    for (unsigned int i = rank / size * size, end = i + size; i < end; i++)
        if (lane_of(mask, i) < 32u) part |= 1u << lane_of(mask, i);
    return part;
}
}  // namespace coppermesh_groups
inline thread_group tiled_partition(const thread_group& parent, unsigned int size) {
    // A part of a block: the tiles are as with a size that the compiler knows.
    unsigned int mask = parent.coppermesh_lanes();
    if (mask) {
        mask = coppermesh_groups::part_of(mask, (unsigned int)parent.thread_rank(), size);
        return thread_group(mask, coppermesh_groups::ranks(mask), false);
    }
    return thread_group(
        coppermesh_groups::first_lanes(size) << (coppermesh::lane_id() & ~(size - 1u) & 31u), size, false);
}
inline coalesced_group tiled_partition(const coalesced_group& parent, unsigned int size) {
    return coalesced_group(
        coppermesh_groups::part_of(parent.coppermesh_lanes(), parent.thread_rank(), size),
        parent.thread_rank() / size, (parent.size() + size - 1u) / size);
}
inline __attribute__((always_inline)) coalesced_group binary_partition(
    const coppermesh_lanes_group& parent, bool predicate, COPPERMESH_LINE) {
    const unsigned int all = parent.coppermesh_lanes(), yes = __ballot_sync(all, predicate, line);
    return coalesced_group(predicate ? yes : all & ~yes, predicate ? 1 : 0, 2);
}
template <class Label>
inline __attribute__((always_inline)) coalesced_group labeled_partition(
    const coppermesh_lanes_group& parent, Label label, COPPERMESH_LINE) {
    return coalesced_group(__match_any_sync(parent.coppermesh_lanes(), label, line));
}

template <class Group> inline __attribute__((always_inline)) void sync(const Group& group, COPPERMESH_LINE) {
    group.sync(line);
}
template <class Group> inline unsigned int thread_rank(const Group& group) { return (unsigned int)group.thread_rank(); }
template <class Group> inline unsigned int group_size(const Group& group) { return (unsigned int)group.size(); }

}  // namespace cooperative_groups
