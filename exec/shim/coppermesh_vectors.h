// CUDA's vector types (size and alignment as in CUDA's vector_types.h), make_* functions, dim3 and the indices.
// CUDA defines no operators on them, and kernels bring their own: none may be defined here.
#pragma once

#define COPPERMESH_VECTOR(T, name, align2, align4)                                                         \
    struct name##1 { T x; };                                                                               \
    struct __attribute__((aligned(align2))) name##2 { T x, y; };                                           \
    struct name##3 { T x, y, z; };                                                                         \
    struct __attribute__((aligned(align4))) name##4 { T x, y, z, w; };                                     \
    COPPERMESH_INLINE constexpr name##1 make_##name##1(T x) { return name##1{x}; }                         \
    COPPERMESH_INLINE constexpr name##2 make_##name##2(T x, T y) { return name##2{x, y}; }                 \
    COPPERMESH_INLINE constexpr name##3 make_##name##3(T x, T y, T z) { return name##3{x, y, z}; }         \
    COPPERMESH_INLINE constexpr name##4 make_##name##4(T x, T y, T z, T w) { return name##4{x, y, z, w}; }

COPPERMESH_VECTOR(signed char, char, 2, 4)
COPPERMESH_VECTOR(unsigned char, uchar, 2, 4)
COPPERMESH_VECTOR(short, short, 4, 8)
COPPERMESH_VECTOR(unsigned short, ushort, 4, 8)
COPPERMESH_VECTOR(int, int, 8, 16)
COPPERMESH_VECTOR(unsigned int, uint, 8, 16)
COPPERMESH_VECTOR(long, long, 16, 16)
COPPERMESH_VECTOR(unsigned long, ulong, 16, 16)
COPPERMESH_VECTOR(long long, longlong, 16, 16)
COPPERMESH_VECTOR(unsigned long long, ulonglong, 16, 16)
COPPERMESH_VECTOR(float, float, 8, 16)
COPPERMESH_VECTOR(double, double, 16, 16)
#undef COPPERMESH_VECTOR

// Four elements of 8 bytes with their alignment in the name, as CUDA 13 has them.
#define COPPERMESH_ALIGNED4(T, name, bytes)                                                                \
    struct __attribute__((aligned(bytes))) name##4_##bytes##a { T x, y, z, w; };                           \
    COPPERMESH_INLINE constexpr name##4_##bytes##a make_##name##4_##bytes##a(T x, T y, T z, T w) {         \
        return name##4_##bytes##a{x, y, z, w};                                                             \
    }
COPPERMESH_ALIGNED4(long, long, 16)
COPPERMESH_ALIGNED4(long, long, 32)
COPPERMESH_ALIGNED4(unsigned long, ulong, 16)
COPPERMESH_ALIGNED4(unsigned long, ulong, 32)
COPPERMESH_ALIGNED4(long long, longlong, 16)
COPPERMESH_ALIGNED4(long long, longlong, 32)
COPPERMESH_ALIGNED4(unsigned long long, ulonglong, 16)
COPPERMESH_ALIGNED4(unsigned long long, ulonglong, 32)
COPPERMESH_ALIGNED4(double, double, 16)
COPPERMESH_ALIGNED4(double, double, 32)
#undef COPPERMESH_ALIGNED4

struct dim3 {
    unsigned int x, y, z;
    constexpr dim3(unsigned int vx = 1, unsigned int vy = 1, unsigned int vz = 1) : x(vx), y(vy), z(vz) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
    constexpr operator uint3() const { return uint3{x, y, z}; }
};

// One set per operating-system thread. The launcher is the only writer; nothing takes their address, so the
// compiler may keep them in registers across stores through the kernel's pointers.
static thread_local uint3 threadIdx, blockIdx, blockDim, gridDim;
static constexpr int warpSize = 32;

namespace coppermesh {
// How the running thread was reached: see coppermesh_launch.h. `index` is its index along x where `flat`.
static thread_local bool flat, whole;
static thread_local unsigned int index;
// Which piece of a kernel with kept variables runs, and whose variables these are (`lane`).
enum Phase { WHOLE, BEFORE, TURN, AFTER };
static thread_local int phase;
static thread_local unsigned int lane;
static constexpr unsigned int LANES = 2048;
// What a thread's number counts: threads along x in the grid, those along x in the block, all of the launch.
enum Kind { ALONG_X, IN_BLOCK, LINEAR };
template <int KIND> COPPERMESH_INLINE void set_indices(unsigned long long number) {
    if constexpr (KIND == ALONG_X)
        blockIdx.x = (unsigned int)(number / blockDim.x % gridDim.x), threadIdx.x = number % blockDim.x;
    if constexpr (KIND == IN_BLOCK) threadIdx.x = number % blockDim.x;
    if constexpr (KIND == LINEAR) {
        const unsigned int block = blockDim.x * blockDim.y * blockDim.z;
        const unsigned int thread = number % block;
        const unsigned long long b = number / block;
        threadIdx = uint3{thread % blockDim.x, thread / blockDim.x % blockDim.y, thread / blockDim.x / blockDim.y};
        blockIdx.x = b % gridDim.x, blockIdx.y = b / gridDim.x % gridDim.y;
        blockIdx.z = b / gridDim.x / gridDim.y % gridDim.z;
    }
}
static thread_local long long turn_index, outer_index;
// What cuda_loops.py puts round an index along x, and instead of a loop's first index.
template <class T> COPPERMESH_INLINE T index_or(T written) { return flat ? (T)index : written; }
// For subscripts: see cuda_subscripts.py.
template <class T> struct is_int { static constexpr bool value = false; };
template <> struct is_int<int> { static constexpr bool value = true; };
template <> struct is_int<const int> { static constexpr bool value = true; };
template <> struct is_int<int&> { static constexpr bool value = true; };
template <> struct is_int<const int&> { static constexpr bool value = true; };
COPPERMESH_INLINE constexpr long long wide(int value) { return value; }
template <class T> COPPERMESH_INLINE constexpr T wide(T value) { return value; }
COPPERMESH_INLINE long long outer_turn() { return outer_index; }
COPPERMESH_INLINE long long turn() { return flat ? (long long)index : turn_index; }
}  // namespace coppermesh
