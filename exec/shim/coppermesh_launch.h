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

// The indices along x for which all checks hold.
struct Range {
    static constexpr long long MOST = 1LL << 40;
    long long first = 0, end = MOST;
    long long least = 0, most = MOST;  // threads beside these do nothing at all
    bool decided = true;               // the checks so far decide whether a thread does anything
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
    template <class T> void up_to(T limit, long long offset) { below(limit, offset - 1); }
    template <class T> void beyond(T limit, long long offset) { at_least(limit, offset - 1); }
};

// What is known of a kernel that cuda_loops.py has not rewritten.
struct UnknownLoop {
    static constexpr bool flat = false;     // x indices occur as index_or(...) only
    static constexpr bool strided = false;  // it is one turn of a loop over the grid, whose loop is in `each`
    static constexpr bool guarded = false;
    static bool fits() { return true; }     // the launch is one for which `index` is right
    template <class... A> static Range range(const A&...) { return Range(); }
    template <class... A> static void each(void (*)(void*, long long), void*, const A&...) {}
};
template <auto kernel> struct loop_of : UnknownLoop {};

static constexpr unsigned int SMALL_GRID = 1u << 20;    // blocks in x of a row whose loop is inlined
static constexpr unsigned int LARGE_INDEX = 1u << 30;   // least index along x that is not
static constexpr unsigned int ROW_THREADS = 1u << 16;   // most threads between two looks at `stop`
static constexpr unsigned int STRIDED_ROW = 1u << 20;    // the same of a strided kernel

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

    // The threads of a row with indices from `first` on. Not inlined: a function of its own keeps the loop's registers
    // free. The masks change nothing (`run_row` sees to that); they tell the compiler that the index cannot wrap round,
    // without which it would not vectorise. What the kernel reads is set in the loop, so that the compiler sees there
    // what it is; it moves the stores out.
    static __attribute__((noinline)) void run_flat(unsigned int first, unsigned int count, typename plain<A>::type... a) {
        first &= LARGE_INDEX - 1, count &= 2 * STRIDED_ROW - 1;
        const uint3 block = blockIdx, thread = threadIdx, length = blockDim, blocks = gridDim;
        for (unsigned int x = 0; x < count; x++) {
            flat = whole = true;
            index = first + x;
            blockIdx.y = block.y, blockIdx.z = block.z, threadIdx.y = thread.y, threadIdx.z = thread.z;
            blockDim.x = length.x, blockDim.y = length.y, blockDim.z = length.z;
            gridDim.x = blocks.x, gridDim.y = blocks.y, gridDim.z = blocks.z;
            kernel(a...);
        }
    }
    // All threads of `count` blocks from `bx` on, block by block, with all indices of their own.
    static __attribute__((noinline)) void run_blocks(unsigned int bx, unsigned int count, typename plain<A>::type... a) {
        const unsigned int nx = ((blockDim.x - 1) & 1023) + 1, ny = ((blockDim.y - 1) & 1023) + 1;
        const unsigned int nz = ((blockDim.z - 1) & 63) + 1, iy = blockIdx.y & 0xffff, iz = blockIdx.z & 0xffff;
        for (unsigned int b = 0; b < count; b++) {
            const unsigned int ix = (bx + b) & (SMALL_GRID - 1);
            for (unsigned int z = 0; z < nz; z++)
                for (unsigned int y = 0; y < ny; y++)
                    for (unsigned int x = 0; x < nx; x++) {
                        flat = false, whole = true;
                        blockIdx.x = ix, blockIdx.y = iy, blockIdx.z = iz;
                        blockDim.x = nx, blockDim.y = ny, blockDim.z = nz;
                        threadIdx.x = x, threadIdx.y = y, threadIdx.z = z;
                        kernel(a...);
                    }
        }
    }
    // The same, one by one.
    static void run_each_block(unsigned int bx, unsigned int end, typename plain<A>::type... a) {
        const long long nx = blockDim.x;
        for (unsigned int b = bx; b < end; b++)
            for (threadIdx.z = 0; threadIdx.z < blockDim.z; threadIdx.z++)
                for (threadIdx.y = 0; threadIdx.y < blockDim.y; threadIdx.y++)
                    run_each(b * nx, b * nx + nx, a...);
    }
    // The same, where all checks hold for all threads of some of the blocks, which lie together.
    static void run_row_of_blocks(unsigned int bx, unsigned int count, typename plain<A>::type... a) {
        const unsigned int nx = blockDim.x;
        unsigned int from = bx, end = bx + count;
        if (gridDim.x > SMALL_GRID || !Loop::fits()) return run_each_block(bx, end, a...);
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
        if (from < to) run_blocks(from, to - from, a...);
        if (to < end) run_each_block(to, end, a...);
    }
    // Threads from index `first` to `end`, one by one: the kernel is called, not inlined, and finds all as it is.
    static __attribute__((noinline)) void run_each(long long first, long long end, typename plain<A>::type... a) {
        void (*volatile called)(A...) = kernel;
        flat = whole = false;
        const unsigned int nx = blockDim.x;
        unsigned int b = (unsigned int)(first / nx), x = (unsigned int)(first % nx);
        for (; first < end; first++) {
            blockIdx.x = b, threadIdx.x = x;
            if constexpr (Loop::strided) {
                Turn turn = {called, {(void*)&a...}};
                Loop::each(&one_turn, &turn, a...);
            } else {
                called(a...);
            }
            if (++x == nx) x = 0, b++;
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
    // The threads of `count` blocks from `bx` on with the y and z that are set, of a flat kernel.
    static void run_row(unsigned int bx, unsigned int count, typename plain<A>::type... a) {
        const long long nx = blockDim.x, begin = bx * nx, end = begin + count * nx, all = gridDim.x * nx;
        const Range range = Loop::range(a...);
        const long long least = range.least < begin ? begin : range.least > end ? end : range.least;
        const long long most = range.most < least ? least : range.most > end ? end : range.most;
        long long first = range.first < begin ? begin : range.first > end ? end : range.first;
        long long last = range.end < first ? first : range.end > end ? end : range.end;
        if constexpr (Loop::strided) {
            if (range.end + all > (long long)LARGE_INDEX || range.first > 0 || !Loop::fits())
                return run_each(begin, end, a...);
            for (long long turn = 0; turn + begin < range.end; turn += all) {
                if (__atomic_load_n(&running.launch->stop, __ATOMIC_RELAXED)) return;
                run_flat((unsigned int)(turn + begin),
                         (unsigned int)((turn + end < range.end ? turn + end : range.end) - turn - begin), a...);
            }
            return;
        }
        if (end > (long long)LARGE_INDEX || !Loop::fits()) return run_each(begin, end, a...);
        if (first < last) run_flat((unsigned int)first, (unsigned int)(last - first), a...);
        if (first >= last) return run_each(least, most, a...);
        if (least < first) run_each(least, first, a...);
        if (last < most) run_each(last, most, a...);
    }
    template <int... I> static void loop(Launch& launch, void* const* arguments, indices<I...>) {
        const unsigned int gx = launch.grid[0], gy = launch.grid[1];
        const unsigned int nx = launch.block[0], ny = launch.block[1], nz = launch.block[2];
        blockDim = uint3{nx, ny, nz};
        gridDim = uint3{gx, gy, launch.grid[2]};
        const unsigned int most = ((Loop::strided ? STRIDED_ROW : ROW_THREADS) - 1) / (nx * ny * nz) + 1;
        // A strided kernel's turns are as long as they can be: one part for each processor core.
        const unsigned long long chunk = Loop::strided ? (launch.blocks - 1) / launch.threads + 1 : launch.chunk;
        for (;;) {
            const unsigned long long first = __atomic_fetch_add(&launch.next, chunk, __ATOMIC_RELAXED);
            if (first >= launch.blocks) return;
            const unsigned long long left = launch.blocks - first;
            const unsigned long long end = first + (chunk < left ? chunk : left);
            for (unsigned long long b = first; b < end;) {
                const unsigned int bx = b % gx;
                unsigned int count = gx - bx < most ? gx - bx : most;
                if (count > end - b) count = (unsigned int)(end - b);
                blockIdx.y = b / gx % gy, blockIdx.z = b / gx / gy;
                if (__atomic_load_n(&launch.stop, __ATOMIC_RELAXED)) return;
                if constexpr (Loop::flat) {
                    for (unsigned int z = 0; z < nz; z++)
                        for (unsigned int y = 0; y < ny; y++) {
                            threadIdx.y = y, threadIdx.z = z;
                            run_row(bx, count, *(typename plain<A>::type*)arguments[I]...);
                        }
                } else {
                    run_row_of_blocks(bx, count, *(typename plain<A>::type*)arguments[I]...);
                }
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
