// Barriers and warp functions by CUDA's names, over the meetings of coppermesh_fibers.h.
#pragma once

namespace coppermesh {

// The index variables are thread-local, so a thread that went on after waiting puts its own back. The compiler then
// knows them to be unchanged.
COPPERMESH_INLINE unsigned int barrier(unsigned long long place, unsigned int line, bool predicate = false) {
    const uint3 mine = threadIdx;
    const unsigned int votes = wait_at_barrier(running.block, place, line, predicate);
    threadIdx = mine;
    return votes;
}

COPPERMESH_INLINE unsigned long long meet_here(
    unsigned int meeting, unsigned int mask, unsigned long long value, unsigned int source, unsigned int line) {
    const uint3 mine = threadIdx;
    const unsigned long long result = meet(running.block, meeting, mask, value, source, line);
    threadIdx = mine;
    return result;
}

static __attribute__((noinline, unused)) void let_others_run(Block* block) {
    const unsigned int me = block->current;
    block->streak = STREAK;  // the others of the whole block, not of this warp alone
    block->warp[me >> 5].ready &= ~(1u << (me & 31));
    if (!block->warp[me >> 5].ready) block->ready_warps &= ~(1u << (me >> 5));
    const unsigned int next = pick(block);
    block->warp[me >> 5].ready |= 1u << (me & 31);
    block->ready_warps |= 1u << (me >> 5);
    if (__builtin_expect(__atomic_load_n(&block->launch->stop, __ATOMIC_RELAXED), 0)) abandon();
    if (next != NOBODY) switch_to(block, me, next);
}

COPPERMESH_INLINE void yield() {
    const uint3 mine = threadIdx;
    let_others_run(running.block);
    threadIdx = mine;
}

COPPERMESH_INLINE unsigned int lane_id() { return running.block->current & 31; }

// A group's member that it does not have is asked for.
[[noreturn]] static __attribute__((noinline, cold, unused)) void outside_group(
    unsigned int mask, int rank, unsigned int line) {
    Block* block = running.block;
    const unsigned int w = block->current >> 5, lane = block->current & 31;
    block->warp[w].line[lane] = line;
    fail_lane(block, w, lane, OUTSIDE_GROUP, mask, rank);
    __builtin_unreachable();
}

// --- values as 8 bytes, and larger ones in pieces

template <class T> struct as_bits {
    static_assert(sizeof(T) <= 32, "a value of at most 32 bytes");
    static constexpr unsigned int pieces = (sizeof(T) + 7) / 8;
    unsigned long long piece[pieces];
    COPPERMESH_METHOD explicit as_bits(const T& value) {
        piece[pieces - 1] = 0;
        __builtin_memcpy(piece, &value, sizeof(T));
    }
    COPPERMESH_METHOD T value() const {
        T result;
        __builtin_memcpy((void*)&result, piece, sizeof(T));
        return result;
    }
};

template <class T>
COPPERMESH_INLINE T shuffle(unsigned int meeting, unsigned int mask, T value, unsigned int source, unsigned int line) {
    as_bits<T> bits(value);
    for (unsigned int i = 0; i < as_bits<T>::pieces; i++)
        bits.piece[i] = meet_here(meeting, mask, bits.piece[i], source, line);
    return bits.value();
}

// Which lane a shuffle reads: PTX ISA, shfl.sync. Lanes beyond their part of the warp read themselves.
COPPERMESH_INLINE unsigned int shuffle_source(unsigned int meeting, unsigned int operand, int width, unsigned int line) {
    if (__builtin_expect(width < 1 || width > 32 || (width & (width - 1)), 0)) fail_with(BAD_WIDTH, line, "", "", width);
    const unsigned int lane = lane_id(), segment = 32u - (unsigned int)width, first = lane & segment;
    const unsigned int last = first | (~segment & 31u), b = operand & 31u;
    unsigned int source;
    bool inside;
    switch (meeting) {
        case SHUFFLE_UP: source = lane - b, inside = (int)source >= (int)first; break;
        case SHUFFLE_DOWN: source = lane + b, inside = source <= last; break;
        case SHUFFLE_XOR: source = lane ^ b, inside = source <= last; break;
        default: source = first | (b & ~segment), inside = true; break;
    }
    return inside ? source : lane;
}

template <class T> struct shuffled {};  // what __shfl_sync takes; nothing else is converted silently
#define COPPERMESH_SHUFFLED(T) template <> struct shuffled<T> { typedef T type; };
COPPERMESH_SHUFFLED(int) COPPERMESH_SHUFFLED(unsigned int) COPPERMESH_SHUFFLED(long)
COPPERMESH_SHUFFLED(unsigned long) COPPERMESH_SHUFFLED(long long) COPPERMESH_SHUFFLED(unsigned long long)
COPPERMESH_SHUFFLED(float) COPPERMESH_SHUFFLED(double)
#undef COPPERMESH_SHUFFLED

}  // namespace coppermesh

// --- barriers. A place is told apart by a counter: several may stand on one line.

#define COPPERMESH_PLACE ((__COUNTER__ + 1ull) << 32 | __LINE__), __LINE__
#define __syncthreads() ((void)coppermesh::barrier(COPPERMESH_PLACE))
#define __syncthreads_count(...) ((int)coppermesh::barrier(COPPERMESH_PLACE, (bool)(__VA_ARGS__)))
#define __syncthreads_or(...) ((int)(coppermesh::barrier(COPPERMESH_PLACE, (bool)(__VA_ARGS__)) != 0))
#define __syncthreads_and(...) (coppermesh::all_of(coppermesh::barrier(COPPERMESH_PLACE, (bool)(__VA_ARGS__))))
#define __activemask() (coppermesh::active_lanes((unsigned int)__COUNTER__, __LINE__))
namespace coppermesh {
COPPERMESH_INLINE int all_of(unsigned int votes) { return votes == running.block->voters; }
COPPERMESH_INLINE unsigned int active_lanes(unsigned int place, unsigned int line) {
    return (unsigned int)meet_here(ACTIVE, place, 0, 0, line);
}
}  // namespace coppermesh

#define COPPERMESH_LINE unsigned int line = __builtin_LINE()

COPPERMESH_INLINE void __syncwarp(unsigned int mask = 0xffffffffu, COPPERMESH_LINE) {
    coppermesh::meet_here(coppermesh::SYNC, mask, 0, 0, line);
}

// --- shuffles

#define COPPERMESH_SHUFFLE(T, name, meeting, Operand)                                                      \
    COPPERMESH_INLINE T name(unsigned int mask, T value, Operand operand, int width = 32, COPPERMESH_LINE) { \
        return coppermesh::shuffle(coppermesh::meeting, mask, value,                                       \
            coppermesh::shuffle_source(coppermesh::meeting, (unsigned int)operand, width, line), line);    \
    }
#define COPPERMESH_SHUFFLES(T)                                                                             \
    COPPERMESH_SHUFFLE(T, __shfl_sync, SHUFFLE_INDEX, int)                                                 \
    COPPERMESH_SHUFFLE(T, __shfl_up_sync, SHUFFLE_UP, unsigned int)                                        \
    COPPERMESH_SHUFFLE(T, __shfl_down_sync, SHUFFLE_DOWN, unsigned int)                                    \
    COPPERMESH_SHUFFLE(T, __shfl_xor_sync, SHUFFLE_XOR, int)
COPPERMESH_SHUFFLES(int)
COPPERMESH_SHUFFLES(unsigned int)
COPPERMESH_SHUFFLES(long)
COPPERMESH_SHUFFLES(unsigned long)
COPPERMESH_SHUFFLES(long long)
COPPERMESH_SHUFFLES(unsigned long long)
COPPERMESH_SHUFFLES(float)
COPPERMESH_SHUFFLES(double)
#undef COPPERMESH_SHUFFLES
#undef COPPERMESH_SHUFFLE

// --- votes, matches, reductions

namespace coppermesh {
struct Votes { unsigned int yes, lanes; };
COPPERMESH_INLINE Votes vote(unsigned int mask, bool predicate, unsigned int line) {
    const unsigned long long result = meet_here(VOTE, mask, predicate, 0, line);
    return Votes{(unsigned int)result, (unsigned int)(result >> 32)};
}
}  // namespace coppermesh
COPPERMESH_INLINE unsigned int __ballot_sync(unsigned int mask, int predicate, COPPERMESH_LINE) {
    return coppermesh::vote(mask, predicate, line).yes;
}
COPPERMESH_INLINE int __any_sync(unsigned int mask, int predicate, COPPERMESH_LINE) {
    return coppermesh::vote(mask, predicate, line).yes != 0;
}
COPPERMESH_INLINE int __all_sync(unsigned int mask, int predicate, COPPERMESH_LINE) {
    const coppermesh::Votes votes = coppermesh::vote(mask, predicate, line);
    return votes.yes == votes.lanes;
}
template <class T>
COPPERMESH_INLINE unsigned int __match_any_sync(unsigned int mask, T value, COPPERMESH_LINE) {
    static_assert(sizeof(typename coppermesh::shuffled<T>::type) <= 8, "");
    return (unsigned int)coppermesh::meet_here(
        coppermesh::MATCH_ANY, mask, coppermesh::as_bits<T>(value).piece[0], 0, line);
}
template <class T>
COPPERMESH_INLINE unsigned int __match_all_sync(unsigned int mask, T value, int* predicate, COPPERMESH_LINE) {
    static_assert(sizeof(typename coppermesh::shuffled<T>::type) <= 8, "");
    const unsigned int equal = (unsigned int)coppermesh::meet_here(
        coppermesh::MATCH_ALL, mask, coppermesh::as_bits<T>(value).piece[0], 0, line);
    *predicate = equal != 0;
    return equal;
}
#define COPPERMESH_REDUCE(T, name, meeting)                                                                \
    COPPERMESH_INLINE T name(unsigned int mask, T value, COPPERMESH_LINE) {                                \
        return (T)coppermesh::meet_here(coppermesh::meeting, mask, (unsigned int)value, 0, line);          \
    }
COPPERMESH_REDUCE(unsigned int, __reduce_add_sync, ADD)
COPPERMESH_REDUCE(int, __reduce_add_sync, ADD)
COPPERMESH_REDUCE(unsigned int, __reduce_min_sync, MIN_UNSIGNED)
COPPERMESH_REDUCE(int, __reduce_min_sync, MIN_SIGNED)
COPPERMESH_REDUCE(unsigned int, __reduce_max_sync, MAX_UNSIGNED)
COPPERMESH_REDUCE(int, __reduce_max_sync, MAX_SIGNED)
COPPERMESH_REDUCE(unsigned int, __reduce_and_sync, AND)
COPPERMESH_REDUCE(unsigned int, __reduce_or_sync, OR)
COPPERMESH_REDUCE(unsigned int, __reduce_xor_sync, XOR)
#undef COPPERMESH_REDUCE
