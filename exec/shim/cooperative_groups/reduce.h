// cg::reduce over a tile or a coalesced group, and the operators for it.
//
// Members are combined pairwise by rank, nearest first, so every member gets the same bits.
#pragma once
#include "../cooperative_groups.h"

namespace cooperative_groups {

#define COPPERMESH_OPERATOR(name, expression)                                                              \
    template <class T = void> struct name {                                                                \
        COPPERMESH_METHOD T operator()(T x, T y) const { return expression; }                              \
    };                                                                                                     \
    template <> struct name<void> {                                                                        \
        template <class T> COPPERMESH_METHOD T operator()(T x, T y) const { return expression; }           \
    };
COPPERMESH_OPERATOR(plus, x + y)
COPPERMESH_OPERATOR(less, y < x ? y : x)
COPPERMESH_OPERATOR(greater, x < y ? y : x)
COPPERMESH_OPERATOR(bit_and, x & y)
COPPERMESH_OPERATOR(bit_or, x | y)
COPPERMESH_OPERATOR(bit_xor, x ^ y)
#undef COPPERMESH_OPERATOR

template <class Group, class T, class Operation>
inline __attribute__((always_inline)) T reduce(const Group& group, T value, Operation operation, COPPERMESH_LINE) {
    const unsigned int mask = group.coppermesh_lanes() & coppermesh::running.block->warp[coppermesh::running.block->current >> 5].alive;
    const unsigned int rank = coppermesh_groups::lanes_below(mask), count = coppermesh_groups::ranks(mask);
    for (unsigned int step = 1; step < count; step *= 2) {
        // Ranks that are multiples of 2 * step hold their neighbours' share after this; the others' values are not used.
        const unsigned int other = (rank & (2 * step - 1)) == 0 && rank + step < count ? rank + step : rank;
        const T theirs = coppermesh::shuffle(
            coppermesh::SHUFFLE_INDEX, group.coppermesh_lanes(), value, coppermesh_groups::lane_of(mask, other), line);
        if (other != rank) value = operation(value, theirs);
    }
    return coppermesh::shuffle(
        coppermesh::SHUFFLE_INDEX, group.coppermesh_lanes(), value, coppermesh_groups::lane_of(mask, 0), line);
}

}  // namespace cooperative_groups
