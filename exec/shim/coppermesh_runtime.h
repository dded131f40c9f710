// What device code has of the C and C++ runtime without any #include: memcpy, malloc, new, assert, printf, clocks.
//
// `malloc` and `new` take the worker's own memory, which is limited; what a kernel does not free lasts as long as the
// worker. `printf` is accepted and dropped: it gives the number of its arguments, as CUDA's does, and prints nothing.
// Names that NVRTC does not have (strlen, memcmp, int64_t, INT_MAX, ...) are not defined either, since kernels that
// need them define them themselves.
#pragma once

#define __CUDACC_VER_MAJOR__ 13
#define __CUDACC_VER_MINOR__ 0
#define __CUDACC_VER_BUILD__ 0

namespace coppermesh {
template <bool, class T> struct enable_if {};
template <class T> struct enable_if<true, T> { typedef T type; };
template <class T> struct is_integral { static constexpr bool value = false; };
#define COPPERMESH_INTEGRAL(T) template <> struct is_integral<T> { static constexpr bool value = true; };
COPPERMESH_INTEGRAL(bool)
COPPERMESH_INTEGRAL(char)
COPPERMESH_INTEGRAL(signed char)
COPPERMESH_INTEGRAL(unsigned char)
COPPERMESH_INTEGRAL(short)
COPPERMESH_INTEGRAL(unsigned short)
COPPERMESH_INTEGRAL(int)
COPPERMESH_INTEGRAL(unsigned int)
COPPERMESH_INTEGRAL(long)
COPPERMESH_INTEGRAL(unsigned long)
COPPERMESH_INTEGRAL(long long)
COPPERMESH_INTEGRAL(unsigned long long)
#undef COPPERMESH_INTEGRAL

// A failed assertion ends the launch and says where.
[[noreturn]] static __attribute__((noinline, cold, unused)) void assertion_failed(
    unsigned int line, const char* file, const char* condition) {
    fail_with(ASSERTION, line, file, condition);
}
[[noreturn]] static __attribute__((noinline, cold, unused)) void trap(unsigned int line) {
    fail_with(TRAP, line, "", "");
}
}  // namespace coppermesh

extern "C" {
void* malloc(size_t bytes);
void free(void* pointer);
void* memcpy(void* to, const void* from, size_t bytes);
void* memset(void* to, int value, size_t bytes);
// What a virtual function without a body calls; C++ runtimes have it, and kernels are linked to none.
__attribute__((weak)) void __cxa_pure_virtual() { __builtin_trap(); }
}

template <class... Arguments> COPPERMESH_INLINE int printf(const char*, Arguments...) {
    return (int)sizeof...(Arguments);
}
#define assert(...) ((__VA_ARGS__) ? (void)0 : coppermesh::assertion_failed(__LINE__, __FILE__, #__VA_ARGS__))

// --- new and delete. NVRTC has the placement forms without <new>.

#define COPPERMESH_NEW(name)                                                                               \
    __attribute__((weak)) void* operator name(size_t bytes) { return malloc(bytes ? bytes : 1); }
COPPERMESH_NEW(new)
COPPERMESH_NEW(new[])
#undef COPPERMESH_NEW
#define COPPERMESH_DELETE(name)                                                                            \
    __attribute__((weak)) void operator name(void* pointer) noexcept { free(pointer); }                    \
    __attribute__((weak)) void operator name(void* pointer, size_t) noexcept { free(pointer); }
COPPERMESH_DELETE(delete)
COPPERMESH_DELETE(delete[])
#undef COPPERMESH_DELETE
inline void* operator new(size_t, void* place) noexcept { return place; }
inline void* operator new[](size_t, void* place) noexcept { return place; }

// --- std::move, std::forward and std::initializer_list, which NVRTC has built in

namespace std {
template <class T> struct remove_reference { typedef T type; };
template <class T> struct remove_reference<T&> { typedef T type; };
template <class T> struct remove_reference<T&&> { typedef T type; };
template <class T> COPPERMESH_INLINE constexpr typename remove_reference<T>::type&& move(T&& value) noexcept {
    return static_cast<typename remove_reference<T>::type&&>(value);
}
template <class T> COPPERMESH_INLINE constexpr T&& forward(typename remove_reference<T>::type& value) noexcept {
    return static_cast<T&&>(value);
}
template <class T> COPPERMESH_INLINE constexpr T&& forward(typename remove_reference<T>::type&& value) noexcept {
    return static_cast<T&&>(value);
}
// The compiler fills this in: its layout (address, length) is part of the platform's ABI.
template <class T> class initializer_list {
    const T* first;
    size_t length;
    constexpr initializer_list(const T* f, size_t n) : first(f), length(n) {}

public:
    typedef T value_type;
    typedef const T* iterator;
    constexpr initializer_list() noexcept : first(nullptr), length(0) {}
    constexpr size_t size() const noexcept { return length; }
    constexpr const T* begin() const noexcept { return first; }
    constexpr const T* end() const noexcept { return first + length; }
};
}  // namespace std

// --- time and the end of a kernel

typedef long clock_t;
COPPERMESH_INLINE long long clock64() {
#if defined(__x86_64__)
    return (long long)__builtin_ia32_rdtsc();
#else
    return 0;
#endif
}
COPPERMESH_INLINE clock_t clock() { return (clock_t)clock64(); }
COPPERMESH_INLINE void __trap(unsigned int line = __builtin_LINE()) { coppermesh::trap(line); }
COPPERMESH_INLINE void __brkpt() {}
COPPERMESH_INLINE void __prof_trigger(int) {}
COPPERMESH_INLINE void __nanosleep(unsigned int) {
#if defined(COPPERMESH_FIBERS)
    coppermesh::yield();  // whoever it waits for may be a thread of its own block
#endif
}

// --- what clang and CUDA's compiler have built in and GCC does not

#if !defined(__clang__)
#define __builtin_assume(condition)                                                                        \
    do {                                                                                                   \
        if (!(condition)) __builtin_unreachable();                                                         \
    } while (0)
#endif
#define __assume(condition) __builtin_assume(condition)
#define __nv_bswap16(x) __builtin_bswap16(x)
#define __nv_bswap32(x) __builtin_bswap32(x)
#define __nv_bswap64(x) __builtin_bswap64(x)
