// What a module exports: its launcher (plain loops over blocks and threads, or fibers), and a table of the kernel's
// parameters for the caller to check.
#pragma once

namespace coppermesh {

// One kernel parameter. `kind`: p pointer, i integer, f floating point, o anything else.
// `element`, of a pointer: kind of what it points to (v: void); `element_bytes` its size.
struct Parameter {
    unsigned int bytes;
    unsigned int element_bytes;
    char kind;
    char element;
};

template <class T> struct kind_of { static constexpr char value = is_integral<T>::value ? 'i' : 'o'; };
template <> struct kind_of<float> { static constexpr char value = 'f'; };
template <> struct kind_of<double> { static constexpr char value = 'f'; };

template <class T> struct plain { typedef T type; };
template <class T> struct plain<const T> { typedef T type; };
template <class T> struct plain<volatile T> { typedef T type; };
template <class T> struct plain<const volatile T> { typedef T type; };

template <class T> struct describe {
    static constexpr Parameter value = {sizeof(T), 0, kind_of<T>::value, 0};
};
template <class T> struct describe<T*> {
    typedef typename plain<T>::type Element;
    static constexpr Parameter value = {sizeof(T*), sizeof(Element), 'p', kind_of<Element>::value};
};
template <> struct describe<void*> { static constexpr Parameter value = {sizeof(void*), 1, 'p', 'v'}; };
template <> struct describe<const void*> { static constexpr Parameter value = {sizeof(void*), 1, 'p', 'v'}; };

template <int...> struct indices {};
template <int N, int... I> struct count_up : count_up<N - 1, N - 1, I...> {};
template <int... I> struct count_up<0, I...> { typedef indices<I...> type; };

// --- Loops over a row of blocks
//
// The threads of a row of blocks (neighbours in x) with the same y and z run in turn. CUDA says nothing about the order
// of threads that do not wait for each other, so any is right. What matters is what the compiler makes of the loop:
//   - `flat`: where cuda_loops.py has seen that a kernel uses its x indices only as `blockIdx.x * blockDim.x +
//     threadIdx.x`, that is one number (`index`) which counts through the whole row: one long loop, which vectorises
//     however short a block is.
//   - `whole`: where a kernel begins with checks such as `i < n && j < m`, `range` says for which indices of a row they
//     surely hold. There they are constants; the few threads beside them are called one by one, as they were written.
//   - `strided`: a kernel that is nothing but `for (i = index; i < n; i += blockDim.x * gridDim.x)` with no variables
//     that outlive a turn. All threads of a row do their first turn, then all their second: memory is passed in order,
//     and each thread's turns stay in its order, so whatever one turn leaves for the next of the same thread is there.
//   - `kept`: the same with variables that outlive a turn, such as sums. Up to LANES threads go together: first all come
//     to the loop, then all do each turn, then all do what comes after it. Their variables lie in arrays meanwhile.
//   - `independent`: a strided kernel whose turns touch nothing that another turn writes: the grid is of no matter, and
//     all turns are dealt out in order.
// What is a row? There are three kinds of kernels, by what their one number is:
//   - `flat`: the index along x, a row being all blocks in x;
//   - `blockwise`: `threadIdx.x` in a loop with the stride `blockDim.x`: a row is one block's threads along x;
//   - `linear`: the number of a thread in the whole launch, put together from x, y and z in whatever way: cuda_loops.py
//     has seen that it is a sum of products with one index each, so it is known by its value at nought and at one of
//     each index, and `is_linear` asks for those. Where it is another number, the kernel runs as it was written.

// The indices along x for which all checks hold.
struct Range {
    static constexpr long long MOST = 1LL << 40;
    long long first = 0, end = MOST;
    long long least = 0, most = MOST;  // threads beside these do nothing at all
    bool decided = true;               // the checks so far decide whether a thread does anything
    bool operator==(const Range& o) const {
        return !((first ^ o.first) | (end ^ o.end) | (least ^ o.least) | (most ^ o.most));
    }
    void never() { end = first = MOST; }
    void only(bool condition) {
        if (condition) return;
        never();
        if (decided) most = 0;
    }
    // index + offset < limit. For limits below zero the answer is "nowhere", since the kernel may compare as unsigned.
    template <class T> void below(T limit, long long offset) {
        const long long value = (long long)limit;
        if (!is_integral<T>::value || value < 0) return never();
        const long long last = (value < MOST ? value : MOST) - offset;
        if (last < end) end = last;
        if (decided && last < most) most = last;
    }
    // index + offset >= limit
    template <class T> void at_least(T limit, long long offset) {
        const long long value = (long long)limit;
        if (!is_integral<T>::value || value < 0) return never();
        const long long from = (value < MOST ? value : MOST) - offset;
        if (from > first) first = from;
        if (decided && from > least) least = from;
    }
    // index + other < limit, where kernels may compare sums of any type: only what none of them could read otherwise.
    template <class T, class O> void sum_below(T limit, O other) {
        const long long value = (long long)limit, plus = (long long)other;
        if (!is_integral<O>::value || plus < 0 || plus > value || value > 0x7fffffff) return never();
        below(value - plus, 0);
    }
    template <class T> void up_to(T limit, long long offset) { below(limit, offset - 1); }
    template <class T> void beyond(T limit, long long offset) { at_least(limit, offset - 1); }
};

// What is known of a kernel that cuda_loops.py has not rewritten.
struct UnknownLoop {
    static constexpr bool flat = false;         // x indices occur as index_or(...) only
    static constexpr bool blockwise = false;    // the same, of x indices in the block
    static constexpr int linear = 0;            // how many numbers `number` has, which must all be the thread's own
    static constexpr bool strided = false;      // it is one turn of a loop over the grid, whose loop is in `each`
    static constexpr bool kept = false;         // it is three pieces, see `phase`
    static constexpr bool apart = false;        // of it, the first and last piece use other indices
    static constexpr bool independent = false;
    static constexpr bool nested = false;       // its loop is in another one, which is the same for all threads of a row
    static constexpr bool atomic = false;       // there are atomic functions in the source
    static constexpr bool guarded = false;
    static constexpr bool convex = false;       // rows between two for which all checks hold pass them too
    static bool fits() { return true; }         // the launch is one for which `index` is right
    template <class... A> static long long number(int, const A&...) { return 0; }
    template <class... A> static long long stride(const A&...) { return 0; }
    template <class... A> static Range range(const A&...) { return Range(); }
    template <class... A> static void each(void (*)(void*, long long), void*, const A&...) {}
    template <class... A> static long long outer_first(const A&...) { return 0; }
    template <class... A> static long long outer_end(const A&...) { return 0; }
    template <class... A> static long long outer_step(const A&...) { return 0; }
};
template <auto kernel> struct loop_of : UnknownLoop {};

static constexpr unsigned int SMALL_GRID = 1u << 20;    // blocks in x of a row whose loop is inlined
static constexpr unsigned int LARGE_INDEX = 1u << 30;   // least index along x that is not
static constexpr unsigned int ROW_THREADS = 1u << 16;   // most threads between two looks at `stop`
static constexpr unsigned int STRIDED_ROW = 1u << 20;    // the same of a strided kernel

template <class A, class B> COPPERMESH_INLINE bool same_place(const A&, const B&) { return false; }
template <class A, class B> COPPERMESH_INLINE bool same_place(A* const& a, B* const& b) {
    return (const void*)a == (const void*)b;
}
template <class A, class... B> COPPERMESH_INLINE bool same_as_any(const A& a, const B&... b) {
    return (false || ... || same_place(a, b));
}
// Whether two of these are one pointer.
COPPERMESH_INLINE bool any_same() { return false; }
template <class A, class... B> COPPERMESH_INLINE bool any_same(const A& a, const B&... b) {
    return same_as_any(a, b...) || any_same(b...);
}

// Rounding and the treatment of subnormal numbers: what a kernel makes of them ends with its launch, or the same
// program would give other results in the worker's next task.
struct FloatingPointModes {
#if defined(__x86_64__)
    unsigned int vector;
    unsigned short scalar;
    FloatingPointModes() : vector(__builtin_ia32_stmxcsr()) { __asm__ volatile("fnstcw %0" : "=m"(scalar)); }
    ~FloatingPointModes() {
        __builtin_ia32_ldmxcsr(vector);
        __asm__ volatile("fldcw %0" : : "m"(scalar));
    }
#endif
};

template <auto kernel, class Signature> struct entry;
template <auto kernel, class... A> struct entry<kernel, void (*)(A...)> {
    typedef typename count_up<(int)sizeof...(A)>::type Indices;
    typedef loop_of<kernel> Loop;
    static constexpr unsigned int count = sizeof...(A);
    static constexpr Parameter parameters[sizeof...(A) + 1] = {describe<typename plain<A>::type>::value..., {}};

    // One thread; the fibers' launcher sets its indices.
    template <int... I> static void invoke(void* const* arguments, indices<I...>) {
        kernel(*(typename plain<A>::type*)arguments[I]...);
    }
    static void invoke(void* const* arguments) { invoke(arguments, Indices()); }

    // The threads of `rows` rows from `row` on with indices from `first` on. Rows count on from one block to the next in
    // y, beginning with the block that is set: memory is passed in its order. With `BLOCKS` they are blocks in x. Not
    // inlined: a function of its own keeps the loop's registers free. The masks change nothing (`run_rows` sees to that);
    // they tell the compiler that the index cannot wrap round, without which it would not vectorise. What the kernel
    // reads is set in the loop, so that the compiler sees there what it is; it moves the stores out, but not past atomic
    // functions: there they are made once, but for a phase of a kernel with kept variables, whose atomic functions are
    // in another phase: the compiler has to see which one it is. `PHASE` is that phase, or WHOLE. With a step `outer`, the
    // rows' outer indices are so far apart, the first being the one that is set.
    template <int PHASE, bool BLOCKS = false, bool NESTED = false>
    static __attribute__((noinline)) void run_flat(
        unsigned int first, unsigned int count, unsigned int row, unsigned int rows, long long outer,
        typename plain<A>::type... a) {
        first &= LARGE_INDEX - 1, count &= 2 * STRIDED_ROW - 1;
        constexpr bool set_once = Loop::atomic && PHASE == WHOLE;
        const uint3 block = blockIdx, thread = threadIdx, length = blockDim;
        unsigned int block_y = BLOCKS ? block.y : block.y + row / length.y;
        unsigned int thread_y = BLOCKS ? thread.y : row % length.y, block_x = block.x;
        long long outer_at = outer_index;
        for (; rows; rows--) {
            if constexpr (set_once)
                phase = PHASE, blockIdx.x = block_x, blockIdx.y = block_y, threadIdx.y = thread_y;
            if constexpr (set_once && NESTED) outer_index = outer_at;
            for (unsigned int x = 0; x < count; x++) {
                flat = whole = true;
                if constexpr (!set_once) {
                    phase = PHASE;
                    if constexpr (BLOCKS) blockIdx.x = block_x;
                    else blockIdx.y = block_y, threadIdx.y = thread_y;
                    if constexpr (NESTED) outer_index = outer_at;
                }
                if constexpr (PHASE != WHOLE) lane = x;
                index = first + x;
                kernel(a...);
            }
            outer_at += outer;
            if constexpr (BLOCKS) block_x++;
            else if (++thread_y == length.y) thread_y = 0, block_y++;
        }
        blockIdx.x = block.x, blockIdx.y = block.y;
    }
    // All threads of `count` blocks from `bx` on, block by block, with all indices of their own.
    template <bool WITHIN>
    static __attribute__((noinline)) void run_blocks(unsigned int bx, unsigned int count, typename plain<A>::type... a) {
        const unsigned int nx = ((blockDim.x - 1) & 1023) + 1, ny = ((blockDim.y - 1) & 1023) + 1;
        const unsigned int nz = ((blockDim.z - 1) & 63) + 1, iy = blockIdx.y & 0xffff, iz = blockIdx.z & 0xffff;
        for (unsigned int b = 0; b < count; b++) {
            const unsigned int ix = (bx + b) & (SMALL_GRID - 1);
            for (unsigned int z = 0; z < nz; z++)
                for (unsigned int y = 0; y < ny; y++)
                    for (unsigned int x = 0; x < nx; x++) {
                        flat = false, whole = WITHIN, phase = WHOLE;
                        blockIdx.x = ix, blockIdx.y = iy, blockIdx.z = iz;
                        blockDim.x = nx, blockDim.y = ny, blockDim.z = nz;
                        threadIdx.x = x, threadIdx.y = y, threadIdx.z = z;
                        kernel(a...);
                    }
        }
    }
    // The same, one by one.
    static void run_each_block(unsigned int bx, unsigned int end, typename plain<A>::type... a) {
        for (unsigned int b = bx; b < end; b++) {
            blockIdx.x = b;
            for (threadIdx.z = 0; threadIdx.z < blockDim.z; threadIdx.z++)
                for (threadIdx.y = 0; threadIdx.y < blockDim.y; threadIdx.y++)
                    run_each<IN_BLOCK>(0, blockDim.x, a...);
        }
    }
    // The same, where all checks hold for all threads of some of the blocks, which lie together.
    static void run_row_of_blocks(unsigned int bx, unsigned int count, typename plain<A>::type... a) {
        const unsigned int nx = blockDim.x;
        unsigned int from = bx, end = bx + count;
        if (gridDim.x > SMALL_GRID || Loop::strided) return run_each_block(bx, end, a...);
        if constexpr (Loop::linear) {  // its checks are for another number
            run_blocks<false>(bx, count, a...);
        } else {
            if (!Loop::fits()) return run_each_block(bx, end, a...);
            long long first = 0, last = Range::MOST;
            if constexpr (Loop::guarded)
                for (threadIdx.z = 0; threadIdx.z < blockDim.z; threadIdx.z++)
                    for (threadIdx.y = 0; threadIdx.y < blockDim.y; threadIdx.y++) {
                        const Range range = Loop::range(a...);
                        if (range.first > first) first = range.first;
                        if (range.end < last) last = range.end;
                    }
            while (from < end && from * (long long)nx < first) from++;
            unsigned int to = end;
            while (to > from && to * (long long)nx > last) to--;
            if (bx < from) run_each_block(bx, from, a...);
            if (from < to) run_blocks<true>(from, to - from, a...);
            if (to < end) run_each_block(to, end, a...);
        }
    }
    // Threads from number `first` to `end`, one by one: the kernel is called, not inlined, and finds all as it is.
    template <int KIND>
    static __attribute__((noinline)) void run_each(long long first, long long end, typename plain<A>::type... a) {
        void (*volatile called)(A...) = kernel;
        flat = whole = false, phase = WHOLE, lane = 0;
        for (; first < end; first++) {
            set_indices<KIND>(first);
            if constexpr (Loop::strided && !Loop::kept) {
                Turn turn = {called, {(void*)&a...}};
                Loop::each(&one_turn, &turn, a...);
            } else {
                called(a...);
            }
        }
    }
    // One turn of a strided kernel's loop.
    struct Turn {
        void (*called)(A...);
        void* arguments[sizeof...(A) + 1];
    };
    template <int... I> static void one_turn(Turn& turn, indices<I...>) {
        turn.called(*(typename plain<A>::type*)turn.arguments[I]...);
    }
    static void one_turn(void* data, long long at) {
        turn_index = at;
        one_turn(*(Turn*)data, Indices());
    }
    // What threads from number `first` on do before their loop, or after it.
    template <int KIND, int PHASE>
    static void run_ends(long long first, unsigned int count, typename plain<A>::type... a) {
        if constexpr (Loop::apart) {
            void (*volatile called)(A...) = kernel;
            flat = whole = false, phase = PHASE;
            for (lane = 0; lane < count; lane++) {
                set_indices<KIND>(first + lane);
                called(a...);
            }
            lane = 0;
        } else {
            run_flat<PHASE>((unsigned int)first, count, threadIdx.y, 1, 0, a...);
        }
    }
    // A strided kernel's threads from `begin` to `end` of a row of `all`.
    template <int KIND>
    static void run_turns(long long begin, long long end, long long all, long long limit, typename plain<A>::type... a) {
        const unsigned int row = threadIdx.y;
        if constexpr (Loop::kept) {
            for (long long from = begin; from < end; from += LANES) {
                const long long count = end - from < LANES ? end - from : LANES;
                run_ends<KIND, BEFORE>(from, (unsigned int)count, a...);
                for (long long at = from; at < limit; at += all) {
                    if (__atomic_load_n(&running.launch->stop, __ATOMIC_RELAXED)) return;
                    const long long left = limit - at < count ? limit - at : count;
                    run_flat<TURN>((unsigned int)at, (unsigned int)left, row, 1, 0, a...);
                }
                run_ends<KIND, AFTER>(from, (unsigned int)count, a...);
            }
        } else {
            // A whole row: passed from its beginning to its end, every thread's turns are in their order too.
            const bool whole_row = begin == 0 && end == all;
            if (whole_row) end = all = STRIDED_ROW;
            for (long long at = begin; at < limit; at += all) {
                if (__atomic_load_n(&running.launch->stop, __ATOMIC_RELAXED)) return;
                const long long to = at - begin + end;
                run_flat<WHOLE>((unsigned int)at, (unsigned int)((to < limit ? to : limit) - at), row, 1, 0, a...);
            }
        }
    }
    // Rows of a kernel whose loop is in another one: all rows' first turns of that, then all second ones, so that memory
    // is passed in its order. Every thread's own turns stay in theirs. Gives false where a row is of another kind.
    template <int KIND>
    static bool run_nested(long long begin, long long end, long long all, unsigned int rows, typename plain<A>::type... a) {
        const unsigned int by = blockIdx.y, ny = blockDim.y;
        bool fit = Loop::fits(), more = true;
        const long long first = Loop::outer_first(a...), limit = Loop::outer_end(a...), stride = Loop::outer_step(a...);
        const long long inner = Loop::range(a...).end;
        long long apart = 0;   // how far the rows' first indices are apart
        bool alike = !Loop::kept && begin == 0 && end == all;
        for (unsigned int row = 0; row < rows && fit; row++) {
            set_row(by, ny, row);
            const Range range = Loop::range(a...);
            const long long here = Loop::outer_first(a...), last = Loop::outer_end(a...), step = Loop::outer_step(a...);
            fit = range.end + all <= (long long)LARGE_INDEX && range.first <= 0 && Loop::stride(a...) == all &&
                  here >= 0 && last >= 0 && step > 0 && last + step <= (long long)LARGE_INDEX;
            if (row == 1) apart = here - first;
            alike = alike && here == first + row * apart && last == limit && step == stride && range.end == inner;
        }
        alike = alike && apart >= 0 && inner <= (long long)STRIDED_ROW;
        for (long long at = first; fit && alike && at < limit; at += stride) {  // rows alike: in one piece
            if (__atomic_load_n(&running.launch->stop, __ATOMIC_RELAXED)) break;
            const unsigned long long there = apart ? (limit - at - 1) / apart + 1 : rows;
            set_row(by, ny, 0);
            outer_index = at;
            if (inner > 0)
                run_flat<WHOLE, false, true>(
                    0, (unsigned int)inner, 0, there < rows ? (unsigned int)there : rows, apart, a...);
        }
        for (long long turn = 0; fit && more && !alike; turn++) {
            more = false;
            for (unsigned int row = 0; row < rows; row++) {
                set_row(by, ny, row);
                const long long at = Loop::outer_first(a...) + turn * Loop::outer_step(a...);
                if (at >= Loop::outer_end(a...)) continue;
                more = true, outer_index = at;
                run_turns<KIND>(begin, end, all, Loop::range(a...).end, a...);
            }
        }
        blockIdx.y = by;
        return fit;
    }
    // The row that is so many behind the first one of the blocks `by`.
    static COPPERMESH_METHOD void set_row(unsigned int by, unsigned int ny, unsigned int row) {
        blockIdx.y = by + row / ny, threadIdx.y = row % ny;
    }
    // The part of a row that a check leaves.
    struct Part {
        long long least, most, first, last;  // who does anything, and for whom all checks hold
        Part(const Range& range, long long begin, long long end) {
            least = range.least < begin ? begin : range.least > end ? end : range.least;
            most = range.most < least ? least : range.most > end ? end : range.most;
            first = range.first < begin ? begin : range.first > end ? end : range.first;
            last = range.end < first ? first : range.end > end ? end : range.end;
        }
        bool operator==(const Part& o) const {
            return least == o.least && most == o.most && first == o.first && last == o.last;
        }
    };
    // How many of the `most` rows behind the one that is set leave the same part of it. A function of its own, which keeps
    // its few numbers in registers: short rows would show it.
    static __attribute__((noinline)) unsigned int rows_alike(
        const Range& first, long long begin, long long end, unsigned int most, typename plain<A>::type... a) {
        const Range range = first;
        const unsigned int ny = blockDim.y;
        unsigned int block_y = blockIdx.y, thread_y = threadIdx.y;
        if constexpr (Loop::convex && Loop::flat) {
            blockIdx.y = block_y + (thread_y + most) / ny, threadIdx.y = (thread_y + most) % ny;
            if (Loop::range(a...) == range) return most;
        }
        for (unsigned int row = 0; row < most; row++) {
            if (++thread_y == ny) thread_y = 0, block_y++;
            blockIdx.y = block_y, threadIdx.y = thread_y;
            const Range other = Loop::range(a...);
            if (!(other == range || Part(other, begin, end) == Part(range, begin, end))) return row;
        }
        return most;
    }
    // The threads from `begin` to `end` of each of `rows` rows of `all` threads, the first in the block that is set.
    template <int KIND>
    static void run_rows(long long begin, long long end, long long all, unsigned int rows, typename plain<A>::type... a) {
        const unsigned int by = blockIdx.y, ny = blockDim.y;
        if constexpr (Loop::nested)
            if (run_nested<KIND>(begin, end, all, rows, a...)) return;
        for (unsigned int row = 0; row < rows;) {
            blockIdx.y = by + row / ny, threadIdx.y = row % ny;
            const Range range = Loop::range(a...);
            if constexpr (Loop::strided) {
                const bool fits = range.end + all <= (long long)LARGE_INDEX && range.first <= 0 && Loop::fits();
                row++;
                if (Loop::nested || !fits || Loop::stride(a...) != all) run_each<KIND>(begin, end, a...);
                else run_turns<KIND>(begin, end, all, range.end, a...);
                continue;
            }
            const Part part(range, begin, end);
            const bool fits = end <= (long long)LARGE_INDEX && Loop::fits();
            const unsigned int from = row++;
            if (!fits) {
                run_each<KIND>(begin, end, a...);
                continue;
            }
            if (part.first >= part.last) {
                run_each<KIND>(part.least, part.most, a...);
                continue;
            }
            const bool all_pass = part.first == part.least && part.last == part.most;  // nobody else does anything
            if (part.least < part.first) run_each<KIND>(part.least, part.first, a...);
            if (part.last < part.most) run_each<KIND>(part.last, part.most, a...);
            // The same of the rows that follow, in one piece.
            if (all_pass) row += rows_alike(range, begin, end, rows - row, a...);
            blockIdx.y = by;
            run_flat<WHOLE>((unsigned int)part.first, (unsigned int)(part.last - part.first), from, row - from, 0, a...);
        }
        blockIdx.y = by;
    }
    // A blockwise kernel's blocks from `at` on, as many as do the same, up to `end`; gives how many.
    static unsigned int run_alike(unsigned int at, unsigned int end, typename plain<A>::type... a) {
        const unsigned int nx = blockDim.x;
        if constexpr (!Loop::kept && !Loop::nested) {
            if (blockDim.y * blockDim.z == 1 && Loop::fits()) {
                threadIdx.y = threadIdx.z = 0;
                unsigned int to = at;
                long long turns = 0;
                for (; to < end; to++) {
                    blockIdx.x = to;
                    const Range range = Loop::range(a...);
                    if (range.first > 0 || range.end > (long long)STRIDED_ROW || Loop::stride(a...) != nx) break;
                    if (to > at && (range.end != turns || (to - at) * turns > (long long)STRIDED_ROW)) break;
                    turns = range.end;
                }
                blockIdx.x = at;
                if (to > at && turns > 0) run_flat<WHOLE, true>(0, (unsigned int)turns, 0, to - at, 0, a...);
                if (to > at) return to - at;
            }
        }
        for (unsigned int z = 0; z < blockDim.z; z++) {
            blockIdx.x = at, threadIdx.z = z;
            run_rows<IN_BLOCK>(0, nx, nx, blockDim.y, a...);
        }
        return 1;
    }
    // Whether a linear kernel's numbers are the threads' own in this launch.
    static bool is_linear(const Launch& launch, typename plain<A>::type... a) {
        const long long all = launch.blocks * ((long long)blockDim.x * blockDim.y * blockDim.z);
        if (all > (long long)LARGE_INDEX) return false;
        const unsigned int lengths[6] = {blockDim.x, blockDim.y, blockDim.z, gridDim.x, gridDim.y, gridDim.z};
        flat = whole = false;
        threadIdx = blockIdx = uint3{0, 0, 0};
        for (int which = 0; which < Loop::linear; which++) {
            if (Loop::number(which, a...) != 0) return false;
            long long step = 1;
            for (int place = 0; place < 6; place++) {
                if (lengths[place] > 1) {
                    // Not by address: see coppermesh_vectors.h.
                    threadIdx = uint3{place == 0, place == 1, place == 2};
                    blockIdx = uint3{place == 3, place == 4, place == 5};
                    const long long there = Loop::number(which, a...);
                    threadIdx = blockIdx = uint3{0, 0, 0};
                    if (there != step) return false;
                }
                step *= lengths[place];
            }
        }
        return true;
    }
    // An independent kernel's turns, dealt out without regard to the grid.
    static bool run_independent(Launch& launch, long long all, typename plain<A>::type... a) {
        const Range range = Loop::range(a...);
        if (range.end > (long long)LARGE_INDEX || range.first > 0 || !Loop::fits()) return false;
        if (Loop::stride(a...) != all || any_same(a...)) return false;
        const unsigned long long share = range.end / (16ull * launch.threads);
        const unsigned long long piece = share < 1024 ? 1024 : share > ROW_THREADS ? ROW_THREADS : share;
        for (;;) {
            const long long first = (long long)__atomic_fetch_add(&launch.next, piece, __ATOMIC_RELAXED);
            if (first >= range.end || __atomic_load_n(&launch.stop, __ATOMIC_RELAXED)) return true;
            const long long left = range.end - first;
            run_flat<WHOLE>((unsigned int)first, (unsigned int)(left < (long long)piece ? left : piece), 0, 1, 0, a...);
        }
    }
    // `count` blocks from `b` on, of a launch of any kind: all in one row of blocks, or whole rows.
    static void run_some(bool linear, unsigned long long b, unsigned int count, typename plain<A>::type... a) {
        const unsigned int nx = blockDim.x, ny = blockDim.y, nz = blockDim.z, gx = gridDim.x, bx = b % gx;
        if constexpr (Loop::linear) {
            const long long threads = (long long)nx * ny * nz, all = threads * gx * gridDim.y * gridDim.z;
            threadIdx.y = 0;
            if (linear) return run_rows<LINEAR>(b * threads, (b + count) * threads, all, 1, a...);
        }
        const unsigned int block_rows = count > gx ? count / gx : 1, columns = count > gx ? gx : count;
        if constexpr (Loop::flat) {
            const long long begin = bx * (long long)nx, end = (bx + columns) * (long long)nx;
            for (unsigned int z = 0; z < nz; z++) {
                threadIdx.z = z;
                run_rows<ALONG_X>(begin, end, gx * (long long)nx, block_rows * ny, a...);
            }
        } else if constexpr (Loop::blockwise) {
            for (unsigned int at = bx; at < bx + columns;) at += run_alike(at, bx + columns, a...);
        } else {
            run_row_of_blocks(bx, columns, a...);
        }
    }
    template <int... I> static void loop(Launch& launch, void* const* arguments, indices<I...>) {
        const unsigned int gx = launch.grid[0], gy = launch.grid[1];
        const unsigned int nx = launch.block[0], ny = launch.block[1], nz = launch.block[2];
        blockDim = uint3{nx, ny, nz};
        gridDim = uint3{gx, gy, launch.grid[2]};
        const unsigned long long threads = (unsigned long long)nx * ny * nz;
        bool linear = false;
        if constexpr (Loop::linear)
            linear = Loop::fits() && is_linear(launch, *(typename plain<A>::type*)arguments[I]...);
        running.linear = linear, running.blockwise = Loop::blockwise;
        if constexpr (Loop::independent)
            if ((linear || (Loop::flat && launch.blocks * threads == (unsigned long long)gx * nx)) &&
                run_independent(launch, launch.blocks * threads, *(typename plain<A>::type*)arguments[I]...))
                return;
        constexpr bool long_rows = Loop::strided && !Loop::blockwise;
        constexpr bool whole_rows = Loop::flat && (!Loop::strided || Loop::nested);
        const unsigned long long row = linear ? launch.blocks : gx;
        const unsigned long long most = ((long_rows ? STRIDED_ROW : ROW_THREADS) - 1) / threads + 1;
        // A strided kernel's turns are as long as they can be: one part for each processor core.
        unsigned long long chunk = long_rows ? (launch.blocks - 1) / launch.threads + 1 : launch.chunk;
        if (whole_rows && chunk > gx) chunk -= chunk % gx;
        for (;;) {
            const unsigned long long first = __atomic_fetch_add(&launch.next, chunk, __ATOMIC_RELAXED);
            if (first >= launch.blocks) return;
            const unsigned long long left = launch.blocks - first;
            const unsigned long long end = first + (chunk < left ? chunk : left);
            for (unsigned long long b = first; b < end;) {
                unsigned long long count = row - b % row;
                if (whole_rows && b % gx == 0) {  // as many rows as there are in this z
                    const unsigned long long rest = (end - b) / gx, in_z = gy - b / gx % gy;
                    const unsigned long long fit = most / gx, rows = rest < in_z ? rest : in_z;
                    if (rows > 1 && fit > 1) count = gx * (rows < fit ? rows : fit);
                }
                if (count > most && count <= gx) count = most;
                if (linear && count > most) count = most;
                if (count > end - b) count = end - b;
                blockIdx.y = b / gx % gy, blockIdx.z = b / gx / gy;
                if (__atomic_load_n(&launch.stop, __ATOMIC_RELAXED)) return;
                run_some(linear, b, (unsigned int)count, *(typename plain<A>::type*)arguments[I]...);
                b += count;
            }
        }
    }
    struct Call {
        Launch* launch;
        void* const* arguments;
    };
    static void loop(void* data) {
        const Call* call = (const Call*)data;
        loop(*call->launch, call->arguments, Indices());
    }
    static void run(Launch& launch, void* const* arguments) {
        const FloatingPointModes modes;
#if defined(COPPERMESH_FIBERS)
        run_with_fibers(launch, arguments, &invoke);
#else
        Call call = {&launch, arguments};
        running.launch = &launch;
#if defined(__x86_64__)
        coppermesh_call(&running.launcher, &loop, &call);
#else
        loop(&call);
#endif
        running.launch = nullptr;
#endif
    }
};

// A variable of a module, as its host sees it.
struct Symbol {
    void* address;
    unsigned long long bytes;
    unsigned int writable;
};
template <class T> struct is_writable { static constexpr unsigned int value = 1; };
template <class T> struct is_writable<const T> { static constexpr unsigned int value = 0; };

}  // namespace coppermesh

// What a module exports for its kernel `number`. `...` names it, and may be a template with its arguments. Comes after
// the kernel's source, so it uses no name that a kernel may have made a macro.
#define COPPERMESH_EXPORT(number, ...)                                                                     \
    extern "C" {                                                                                           \
    __attribute__((visibility("default"))) extern const unsigned int coppermesh_parameter_count_##number = \
        coppermesh::entry<& __VA_ARGS__, decltype(& __VA_ARGS__)>::count;                                  \
    __attribute__((visibility("default"))) const coppermesh::Parameter* coppermesh_parameters_##number() { \
        return coppermesh::entry<& __VA_ARGS__, decltype(& __VA_ARGS__)>::parameters;                      \
    }                                                                                                      \
    __attribute__((visibility("default"))) void coppermesh_run_##number(                                   \
        coppermesh::Launch* coppermesh_launch, void* const* coppermesh_arguments) {                        \
        coppermesh::entry<& __VA_ARGS__, decltype(& __VA_ARGS__)>::run(                                    \
            *coppermesh_launch, coppermesh_arguments);                                                     \
    }                                                                                                      \
    }

// For a kernel behind which stands a structure of cuda_loops.py: the kernel (with its template's arguments, if it has
// some, which is why it comes last), and the structure's name likewise.
#define COPPERMESH_LOOP(...) template <> struct coppermesh::loop_of<& __VA_ARGS__>

// What it exports for a variable that is set or read from outside.
#define COPPERMESH_SYMBOL(number, name)                                                                    \
    extern "C" __attribute__((visibility("default"))) const coppermesh::Symbol* coppermesh_symbol_##number() { \
        static const coppermesh::Symbol symbol = {                                                         \
            (void*)& ::name, sizeof(::name), coppermesh::is_writable<decltype(::name)>::value};            \
        return &symbol;                                                                                    \
    }

// What it exports once where threads may wait for each other.
#if defined(COPPERMESH_FIBERS)
extern "C" {
__attribute__((visibility("default"))) unsigned long long coppermesh_static_shared() {
    return coppermesh::static_shared_bytes();
}
__attribute__((visibility("default"))) void coppermesh_catch_signals() { coppermesh::catch_signals(); }
__attribute__((visibility("default"))) void coppermesh_release_signals() { coppermesh::release_signals(); }
}
#endif
