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

// Kernels whose check `i < n` cuda_guards.py has rewritten: is the check true for all threads of
// the block, and so of those before it, along x?
template <auto kernel> struct row_guard {
    static constexpr bool exists = false;
    template <class... A> static bool inside(const A&...) { return false; }
};
static thread_local bool whole;  // it is, and the running thread knows
template <class T> COPPERMESH_INLINE bool row_within(T limit) {
    return is_integral<T>::value && (long long)blockIdx.x * blockDim.x + blockDim.x <= (long long)limit;
}

static constexpr unsigned int SMALL_GRID = 1u << 20;  // blocks in x
static constexpr unsigned int ROW = 64;               // most blocks between two looks at `stop`

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
    static constexpr unsigned int count = sizeof...(A);
    static constexpr Parameter parameters[sizeof...(A) + 1] = {describe<typename plain<A>::type>::value..., {}};

    // One thread; the fibers' launcher sets its indices.
    template <int... I> static void invoke(void* const* arguments, indices<I...>) {
        kernel(*(typename plain<A>::type*)arguments[I]...);
    }
    static void invoke(void* const* arguments) { invoke(arguments, Indices()); }

    // All threads of `count` blocks from `bx` on, x fastest. Not inlined: a function of its own keeps the loops' registers
    // free. The masks change nothing (`loop` sees to that); they tell the compiler that the usual
    // `blockIdx.x * blockDim.x + threadIdx.x` cannot wrap round, without which it would not vectorise. All indices are
    // set in the innermost loop, so that it sees there what they are; it moves the stores out.
    template <bool inside> static __attribute__((noinline)) void run_row(
        const Launch& launch, unsigned int bx, unsigned int count, unsigned int by, unsigned int bz,
        typename plain<A>::type... a) {
        const unsigned int nx = ((launch.block[0] - 1) & 1023) + 1, ny = ((launch.block[1] - 1) & 1023) + 1;
        const unsigned int nz = ((launch.block[2] - 1) & 63) + 1;
        const unsigned int iy = by & 0xffff, iz = bz & 0xffff;
        for (unsigned int b = 0; b < count; b++) {
            const unsigned int ix = (bx + b) & (SMALL_GRID - 1);
            for (unsigned int z = 0; z < nz; z++)
                for (unsigned int y = 0; y < ny; y++)
                    for (unsigned int x = 0; x < nx; x++) {
                        whole = inside;
                        blockIdx.x = ix, blockIdx.y = iy, blockIdx.z = iz;
                        blockDim.x = nx, blockDim.y = ny, blockDim.z = nz;
                        threadIdx.x = x, threadIdx.y = y, threadIdx.z = z;
                        kernel(a...);
                    }
        }
    }
    // The same for a grid that is too long for that: the kernel is called, not inlined.
    static __attribute__((noinline)) void run_row_of_many(
        const Launch& launch, unsigned int bx, unsigned int count, unsigned int by, unsigned int bz,
        typename plain<A>::type... a) {
        void (*volatile called)(A...) = kernel;
        whole = false;
        for (unsigned int b = bx; b < bx + count; b++) {
            blockIdx = uint3{b, by, bz};
            for (unsigned int z = 0; z < launch.block[2]; z++)
                for (unsigned int y = 0; y < launch.block[1]; y++)
                    for (unsigned int x = 0; x < launch.block[0]; x++) {
                        threadIdx.x = x, threadIdx.y = y, threadIdx.z = z;
                        called(a...);
                    }
        }
    }
    template <int... I> static void loop(Launch& launch, void* const* arguments, indices<I...>) {
        const unsigned int gx = launch.grid[0], gy = launch.grid[1];
        blockDim = uint3{launch.block[0], launch.block[1], launch.block[2]};
        gridDim = uint3{gx, gy, launch.grid[2]};
        for (;;) {
            const unsigned long long first = __atomic_fetch_add(&launch.next, launch.chunk, __ATOMIC_RELAXED);
            if (first >= launch.blocks) return;
            const unsigned long long left = launch.blocks - first;
            const unsigned long long end = first + (launch.chunk < left ? launch.chunk : left);
            for (unsigned long long b = first; b < end;) {
                if (__atomic_load_n(&launch.stop, __ATOMIC_RELAXED)) return;
                const unsigned int bx = b % gx, by = b / gx % gy, bz = b / gx / gy;
                unsigned int count = gx - bx < ROW ? gx - bx : ROW;
                if (count > end - b) count = (unsigned int)(end - b);
                blockIdx = uint3{bx + count - 1, by, bz};
                if (row_guard<kernel>::exists && gx <= SMALL_GRID &&
                    row_guard<kernel>::inside(*(typename plain<A>::type*)arguments[I]...))
                    run_row<row_guard<kernel>::exists>(
                        launch, bx, count, by, bz, *(typename plain<A>::type*)arguments[I]...);
                else if (gx <= SMALL_GRID)
                    run_row<false>(launch, bx, count, by, bz, *(typename plain<A>::type*)arguments[I]...);
                else
                    run_row_of_many(launch, bx, count, by, bz, *(typename plain<A>::type*)arguments[I]...);
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

// For a kernel that stands behind a `struct coppermesh_guard_...` of cuda_guards.py.
#define COPPERMESH_GUARD(kernel)                                                                           \
    template <> struct coppermesh::row_guard<&kernel> : coppermesh_guard_##kernel {                        \
        static constexpr bool exists = true;                                                               \
    };

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
