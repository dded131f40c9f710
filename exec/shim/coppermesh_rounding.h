// Floating-point intrinsics: fast forms, arithmetic and conversions with a given rounding, reinterpreting casts.
//
// The fast forms (`__expf`, `__fdividef`, ...) give the accurate result, which is within CUDA's stated error but not
// its bits; `__powf` is exp2(y log2 x) as CUDA's is, so it has CUDA's special values.
//
// Directed rounding (`_rz` towards zero, `_ru` up, `_rd` down) sets the processor's rounding mode for one operation.
// Operand and result pass through volatile variables: the compiler can neither fold the operation nor move it past
// the calls that switch the mode. It costs some 20 ns, and results are exact in every case.
#pragma once

namespace coppermesh {
extern "C" int fesetround(int) noexcept;
#if defined(__aarch64__)
enum rounding { nearest = 0, up = 0x400000, down = 0x800000, zero = 0xc00000 };
#else
enum rounding { nearest = 0, down = 0x400, up = 0x800, zero = 0xc00 };
#endif
}  // namespace coppermesh

// One function of one to three operands in one of the directed modes.
#define COPPERMESH_DIRECTED(R, name, mode, expression, A, parameters, ...)                                 \
    COPPERMESH_INLINE R name parameters {                                                                  \
        volatile A x_ = x;                                                                                 \
        __VA_ARGS__                                                                                        \
        volatile R result_;                                                                                \
        coppermesh::fesetround(coppermesh::mode);                                                          \
        result_ = expression;                                                                              \
        coppermesh::fesetround(coppermesh::nearest);                                                       \
        return result_;                                                                                    \
    }
#define COPPERMESH_MODES1(R, name, A, nearest_, expression)                                                \
    COPPERMESH_INLINE R name##_rn(A x) { return nearest_; }                                                \
    COPPERMESH_DIRECTED(R, name##_rz, zero, expression, A, (A x), )                                        \
    COPPERMESH_DIRECTED(R, name##_ru, up, expression, A, (A x), )                                          \
    COPPERMESH_DIRECTED(R, name##_rd, down, expression, A, (A x), )
#define COPPERMESH_MODES2(T, name, nearest_, expression)                                                   \
    COPPERMESH_INLINE T name##_rn(T x, T y) { return nearest_; }                                           \
    COPPERMESH_DIRECTED(T, name##_rz, zero, expression, T, (T x, T y), volatile T y_ = y;)                 \
    COPPERMESH_DIRECTED(T, name##_ru, up, expression, T, (T x, T y), volatile T y_ = y;)                   \
    COPPERMESH_DIRECTED(T, name##_rd, down, expression, T, (T x, T y), volatile T y_ = y;)
#define COPPERMESH_MODES3(T, name, fma_)                                                                   \
    COPPERMESH_INLINE T name##_rn(T x, T y, T z) { return fma_(x, y, z); }                                 \
    COPPERMESH_DIRECTED(T, name##_rz, zero, fma_(x_, y_, z_), T, (T x, T y, T z),                          \
                        volatile T y_ = y; volatile T z_ = z;)                                             \
    COPPERMESH_DIRECTED(T, name##_ru, up, fma_(x_, y_, z_), T, (T x, T y, T z),                            \
                        volatile T y_ = y; volatile T z_ = z;)                                             \
    COPPERMESH_DIRECTED(T, name##_rd, down, fma_(x_, y_, z_), T, (T x, T y, T z),                          \
                        volatile T y_ = y; volatile T z_ = z;)

COPPERMESH_MODES2(float, __fadd, x + y, x_ + y_)
COPPERMESH_MODES2(float, __fsub, x - y, x_ - y_)
COPPERMESH_MODES2(float, __fmul, x * y, x_ * y_)
COPPERMESH_MODES2(float, __fdiv, x / y, x_ / y_)
COPPERMESH_MODES1(float, __frcp, float, 1.0f / x, 1.0f / x_)
COPPERMESH_MODES1(float, __fsqrt, float, sqrtf(x), sqrtf(x_))
COPPERMESH_MODES3(float, __fmaf, fmaf)
COPPERMESH_MODES3(float, __fmaf_ieee, fmaf)
COPPERMESH_MODES2(double, __dadd, x + y, x_ + y_)
COPPERMESH_MODES2(double, __dsub, x - y, x_ - y_)
COPPERMESH_MODES2(double, __dmul, x * y, x_ * y_)
COPPERMESH_MODES2(double, __ddiv, x / y, x_ / y_)
COPPERMESH_MODES1(double, __drcp, double, 1.0 / x, 1.0 / x_)
COPPERMESH_MODES1(double, __dsqrt, double, sqrt(x), sqrt(x_))
COPPERMESH_MODES3(double, __fma, fma)
COPPERMESH_INLINE float __frsqrt_rn(float x) { return (float)(1.0 / sqrt((double)x)); }

// --- to a narrower floating type

COPPERMESH_MODES1(float, __double2float, double, (float)x, (float)x_)
COPPERMESH_MODES1(float, __int2float, int, (float)x, (float)x_)
COPPERMESH_MODES1(float, __uint2float, unsigned int, (float)x, (float)x_)
COPPERMESH_MODES1(float, __ll2float, long long, (float)x, (float)x_)
COPPERMESH_MODES1(double, __ll2double, long long, (double)x, (double)x_)
// x86 converts unsigned 64-bit numbers in two steps, which round once only in halves that keep a sticky bit.
namespace coppermesh {
template <class F> COPPERMESH_INLINE F from_unsigned(unsigned long long x) {
    if (x < 1ull << 63) return (F)(long long)x;
    return (F)(long long)(x >> 1 | (x & 1)) * (F)2;
}
}  // namespace coppermesh
COPPERMESH_MODES1(float, __ull2float, unsigned long long, (float)x, coppermesh::from_unsigned<float>(x_))
COPPERMESH_MODES1(double, __ull2double, unsigned long long, (double)x, coppermesh::from_unsigned<double>(x_))
COPPERMESH_INLINE double __int2double_rn(int x) { return x; }
COPPERMESH_INLINE double __uint2double_rn(unsigned int x) { return x; }
#undef COPPERMESH_DIRECTED
#undef COPPERMESH_MODES1
#undef COPPERMESH_MODES2
#undef COPPERMESH_MODES3

// --- to integers. Out of range saturates. NaN gives 0, or the top bit alone where source or result has 64 bits
// (PTX ISA, cvt). C++'s own casts leave both undefined; a GPU treats them as these.

namespace coppermesh {
template <class T, class F> COPPERMESH_INLINE T saturate(F x) {
    constexpr T top = (T)(1ull << (sizeof(T) * 8 - 1));
    constexpr T least = top < (T)0 ? top : (T)0;
    constexpr T most = (T)~(unsigned long long)least;
    constexpr T nothing = sizeof(T) == 8 || sizeof(F) == 8 ? top : (T)0;
    // `most` may round up to a power of two as a floating number, hence `>=` there.
    return x != x ? nothing : x <= (F)least ? least : x >= (F)most ? most : (T)x;
}
}  // namespace coppermesh
#define COPPERMESH_TO_INTEGER(T, name, F, rint_, floor_, ceil_)                                            \
    COPPERMESH_INLINE T __##name##_rn(F x) { return coppermesh::saturate<T>(rint_(x)); }                   \
    COPPERMESH_INLINE T __##name##_rz(F x) { return coppermesh::saturate<T>(x); }                          \
    COPPERMESH_INLINE T __##name##_rd(F x) { return coppermesh::saturate<T>(floor_(x)); }                  \
    COPPERMESH_INLINE T __##name##_ru(F x) { return coppermesh::saturate<T>(ceil_(x)); }
COPPERMESH_TO_INTEGER(int, float2int, float, rintf, floorf, ceilf)
COPPERMESH_TO_INTEGER(unsigned int, float2uint, float, rintf, floorf, ceilf)
COPPERMESH_TO_INTEGER(long long, float2ll, float, rintf, floorf, ceilf)
COPPERMESH_TO_INTEGER(unsigned long long, float2ull, float, rintf, floorf, ceilf)
COPPERMESH_TO_INTEGER(int, double2int, double, rint, floor, ceil)
COPPERMESH_TO_INTEGER(unsigned int, double2uint, double, rint, floor, ceil)
COPPERMESH_TO_INTEGER(long long, double2ll, double, rint, floor, ceil)
COPPERMESH_TO_INTEGER(unsigned long long, double2ull, double, rint, floor, ceil)
#undef COPPERMESH_TO_INTEGER

// --- the same bits as another type

COPPERMESH_INLINE int __float_as_int(float x) { return __builtin_bit_cast(int, x); }
COPPERMESH_INLINE unsigned int __float_as_uint(float x) { return __builtin_bit_cast(unsigned int, x); }
COPPERMESH_INLINE float __int_as_float(int x) { return __builtin_bit_cast(float, x); }
COPPERMESH_INLINE float __uint_as_float(unsigned int x) { return __builtin_bit_cast(float, x); }
COPPERMESH_INLINE long long __double_as_longlong(double x) { return __builtin_bit_cast(long long, x); }
COPPERMESH_INLINE double __longlong_as_double(long long x) { return __builtin_bit_cast(double, x); }
COPPERMESH_INLINE int __double2hiint(double x) { return (int)(__double_as_longlong(x) >> 32); }
COPPERMESH_INLINE int __double2loint(double x) { return (int)__double_as_longlong(x); }
COPPERMESH_INLINE double __hiloint2double(int high, int low) {
    return __longlong_as_double((long long)((unsigned long long)(unsigned int)high << 32 | (unsigned int)low));
}

// --- fast single precision

COPPERMESH_INLINE float __expf(float x) { return expf(x); }
COPPERMESH_INLINE float __exp10f(float x) { return exp10f(x); }
COPPERMESH_INLINE float __logf(float x) { return logf(x); }
COPPERMESH_INLINE float __log2f(float x) { return log2f(x); }
COPPERMESH_INLINE float __log10f(float x) { return log10f(x); }
COPPERMESH_INLINE float __sinf(float x) { return sinf(x); }
COPPERMESH_INLINE float __cosf(float x) { return cosf(x); }
COPPERMESH_INLINE float __tanf(float x) { return tanf(x); }
COPPERMESH_INLINE float __tanhf(float x) { return tanhf(x); }
COPPERMESH_INLINE float __powf(float x, float y) { return exp2f(y * log2f(x)); }
COPPERMESH_INLINE void __sincosf(float x, float* s, float* c) { sincosf(x, s, c); }
COPPERMESH_INLINE float __fdividef(float x, float y) { return x / y; }
COPPERMESH_INLINE float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
