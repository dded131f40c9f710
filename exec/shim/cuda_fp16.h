// Half precision: IEEE 754 binary16 by CUDA's names, as numbers of 16 bits that are computed with as floats.
//
// How it works. + - * / and sqrt of two halves are computed in float and rounded once more: float has more than twice
// the digits and two to spare, so rounding twice gives what rounding once would (Figueroa, "When is double rounding
// innocuous?", 1995). That does not hold for a * b + c: there the product is exact in float, and the sum is rounded to odd
// before it is rounded to nearest. So arithmetic is NumPy's float16 to the bit, and a GPU's where it does not contract
// `a * b + c` into one operation by itself. Functions (`hexp`) are float's, rounded. Conversions are integer operations
// without branches, which vectorise; no processor needs to know halves.
#pragma once
#include "coppermesh_cuda.h"

struct __half_raw { unsigned short x; };
struct __half2_raw { unsigned short x, y; };

namespace coppermesh {

COPPERMESH_INLINE float half_to_float(unsigned short bits) {
    const unsigned int magnitude = bits & 0x7fffu, sign = (bits & 0x8000u) << 16;
    const unsigned int biased = (magnitude << 13) + (112u << 23);  // the exponent's bias: 15 to 127
    const unsigned int normal = magnitude >= 0x7c00u ? biased + (112u << 23) : biased;
    const unsigned int tiny = __builtin_bit_cast(unsigned int, (float)(int)magnitude * 0x1p-24f);
    return __builtin_bit_cast(float, sign | (magnitude < 0x400u ? tiny : normal));
}
// To nearest, ties to even. Not a number becomes CUDA's one.
COPPERMESH_INLINE unsigned short float_to_half(float value) {
    const unsigned int bits = __builtin_bit_cast(unsigned int, value), magnitude = bits & 0x7fffffffu;
    const unsigned int normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
    // Below 2^-14 the last digit is 2^-24 for all, which is that of floats from 0.5 to 1: the addition rounds.
    const float shifted = __builtin_bit_cast(float, magnitude) + 0.5f;
    const unsigned int tiny = __builtin_bit_cast(unsigned int, shifted) - 0x3f000000u;
    unsigned int result = magnitude < 0x38800000u ? tiny : normal;
    result = magnitude >= 0x477ff000u ? 0x7c00u : result;
    result = magnitude > 0x7f800000u ? 0x7fffu : result | ((bits >> 16) & 0x8000u);
    return (unsigned short)result;
}
// A float that was rounded, with the sign of what it is too small by: rounded to odd instead.
COPPERMESH_INLINE float to_odd(float rounded, float rest) {
    const unsigned int bits = __builtin_bit_cast(unsigned int, rounded);
    const bool inexact = rest < 0.0f || rest > 0.0f, outward = (rest > 0.0f) == !(bits >> 31);
    return __builtin_bit_cast(float, inexact && !(bits & 1u) ? (outward ? bits + 1u : bits - 1u) : bits);
}
COPPERMESH_INLINE float fma_to_odd(float a, float b, float c) {
    const float product = a * b, sum = product + c, part = sum - product;
    return to_odd(sum, (product - (sum - part)) + (c - part));
}
COPPERMESH_INLINE unsigned short double_to_half(double value) {
    const float rounded = (float)value;
    const double rest = value - (double)rounded;
    return float_to_half(to_odd(rounded, rest > 0.0 ? 1.0f : rest < 0.0 ? -1.0f : 0.0f));
}
enum HalfMode { TOWARDS_ZERO, DOWN, UP };
COPPERMESH_INLINE unsigned short float_to_half(float value, HalfMode mode) {
    const unsigned short bits = float_to_half(value);
    const float there = half_to_float(bits);
    const bool negative = bits >> 15;
    const bool down = there > value && (mode == DOWN || (mode == TOWARDS_ZERO && !negative));
    const bool up = there < value && (mode == UP || (mode == TOWARDS_ZERO && negative));
    if (down) return negative ? bits + 1 : bits - 1;
    if (up) return negative ? bits - 1 : bits + 1;
    return bits;
}
template <class T> COPPERMESH_INLINE T half_to_short(float whole, float least, float most) {
    return whole != whole ? T(0) : whole < least ? (T)least : whole > most ? (T)most : (T)whole;
}
}  // namespace coppermesh

struct __attribute__((aligned(2))) __half {
protected:
    unsigned short __x;

public:
    __half() = default;
    COPPERMESH_METHOD constexpr __half(const __half_raw& raw) : __x(raw.x) {}
    COPPERMESH_METHOD __half(float value) : __x(coppermesh::float_to_half(value)) {}
    COPPERMESH_METHOD __half(double value) : __x(coppermesh::double_to_half(value)) {}
#define COPPERMESH_FROM(T) \
    COPPERMESH_METHOD __half(T value) : __x(coppermesh::float_to_half((float)value)) {}
    COPPERMESH_FROM(short)
    COPPERMESH_FROM(unsigned short)
    COPPERMESH_FROM(int)
    COPPERMESH_FROM(unsigned int)
    COPPERMESH_FROM(long)
    COPPERMESH_FROM(unsigned long)
    COPPERMESH_FROM(long long)
    COPPERMESH_FROM(unsigned long long)
#undef COPPERMESH_FROM
    COPPERMESH_METHOD operator float() const { return coppermesh::half_to_float(__x); }
    COPPERMESH_METHOD constexpr operator __half_raw() const { return __half_raw{__x}; }
};
typedef __half half;
typedef __half __nv_half;
typedef __half nv_half;

struct __attribute__((aligned(4))) __half2 {
    __half x, y;
    __half2() = default;
    COPPERMESH_METHOD constexpr __half2(const __half& a, const __half& b) : x(a), y(b) {}
    COPPERMESH_METHOD constexpr __half2(const __half2_raw& raw) : x(__half_raw{raw.x}), y(__half_raw{raw.y}) {}
    COPPERMESH_METHOD constexpr operator __half2_raw() const {
        return __half2_raw{((__half_raw)x).x, ((__half_raw)y).x};
    }
};
typedef __half2 half2;
typedef __half2 __nv_half2;
typedef __half2 nv_half2;

namespace coppermesh {
template <> struct kind_of<__half> { static constexpr char value = 'f'; };
COPPERMESH_INLINE constexpr unsigned short bits_of(__half value) { return ((__half_raw)value).x; }
COPPERMESH_INLINE constexpr __half half_of(unsigned int bits) { return __half(__half_raw{(unsigned short)bits}); }
}  // namespace coppermesh

// --- bits, floats and integers

COPPERMESH_INLINE short __half_as_short(__half h) { return (short)coppermesh::bits_of(h); }
COPPERMESH_INLINE unsigned short __half_as_ushort(__half h) { return coppermesh::bits_of(h); }
COPPERMESH_INLINE __half __short_as_half(short bits) { return coppermesh::half_of((unsigned short)bits); }
COPPERMESH_INLINE __half __ushort_as_half(unsigned short bits) { return coppermesh::half_of(bits); }
COPPERMESH_INLINE float __half2float(__half h) { return h; }
COPPERMESH_INLINE __half __float2half(float x) { return __half(x); }
COPPERMESH_INLINE __half __float2half_rn(float x) { return __half(x); }
COPPERMESH_INLINE __half __double2half(double x) { return __half(x); }

#define COPPERMESH_HALF_MODES(suffix, mode)                                                                \
    COPPERMESH_INLINE __half __float2half_##suffix(float x) {                                              \
        return coppermesh::half_of(coppermesh::float_to_half(x, coppermesh::mode));                        \
    }                                                                                                      \
    COPPERMESH_HALF_FROM_INTEGERS(suffix)
// Integers beyond a float's 24 bits are beyond the largest half too, so rounding them to float first changes nothing.
#define COPPERMESH_HALF_FROM_INTEGERS(suffix)                                                              \
    COPPERMESH_HALF_FROM(short, short, suffix) COPPERMESH_HALF_FROM(unsigned short, ushort, suffix)        \
    COPPERMESH_HALF_FROM(int, int, suffix) COPPERMESH_HALF_FROM(unsigned int, uint, suffix)                \
    COPPERMESH_HALF_FROM(long long, ll, suffix) COPPERMESH_HALF_FROM(unsigned long long, ull, suffix)
#define COPPERMESH_HALF_FROM(T, name, suffix) \
    COPPERMESH_INLINE __half __##name##2half_##suffix(T i) { return __float2half_##suffix((float)i); }
COPPERMESH_HALF_FROM_INTEGERS(rn)
COPPERMESH_HALF_MODES(rz, TOWARDS_ZERO)
COPPERMESH_HALF_MODES(rd, DOWN)
COPPERMESH_HALF_MODES(ru, UP)
#undef COPPERMESH_HALF_FROM
#undef COPPERMESH_HALF_FROM_INTEGERS
#undef COPPERMESH_HALF_MODES

#define COPPERMESH_HALF_TO(suffix, function)                                                               \
    COPPERMESH_INLINE int __half2int_##suffix(__half h) { return __float2int_##suffix(h); }                \
    COPPERMESH_INLINE unsigned int __half2uint_##suffix(__half h) { return __float2uint_##suffix(h); }     \
    COPPERMESH_INLINE long long __half2ll_##suffix(__half h) { return __float2ll_##suffix(h); }            \
    COPPERMESH_INLINE unsigned long long __half2ull_##suffix(__half h) { return __float2ull_##suffix(h); } \
    COPPERMESH_INLINE short __half2short_##suffix(__half h) {                                              \
        return coppermesh::half_to_short<short>(function((float)h), -32768.0f, 32767.0f);                  \
    }                                                                                                      \
    COPPERMESH_INLINE unsigned short __half2ushort_##suffix(__half h) {                                    \
        return coppermesh::half_to_short<unsigned short>(function((float)h), 0.0f, 65535.0f);              \
    }
COPPERMESH_HALF_TO(rn, rintf)
COPPERMESH_HALF_TO(rz, truncf)
COPPERMESH_HALF_TO(rd, floorf)
COPPERMESH_HALF_TO(ru, ceilf)
#undef COPPERMESH_HALF_TO
COPPERMESH_INLINE signed char __half2char_rz(__half h) {
    return coppermesh::half_to_short<signed char>(truncf((float)h), -128.0f, 127.0f);
}
COPPERMESH_INLINE unsigned char __half2uchar_rz(__half h) {
    return coppermesh::half_to_short<unsigned char>(truncf((float)h), 0.0f, 255.0f);
}

// --- pairs

COPPERMESH_INLINE __half2 make_half2(__half x, __half y) { return __half2(x, y); }
COPPERMESH_INLINE __half2 __halves2half2(__half x, __half y) { return __half2(x, y); }
COPPERMESH_INLINE __half2 __half2half2(__half h) { return __half2(h, h); }
COPPERMESH_INLINE __half2 __float2half2_rn(float x) { return __half2(__half(x), __half(x)); }
COPPERMESH_INLINE __half2 __floats2half2_rn(float x, float y) { return __half2(__half(x), __half(y)); }
COPPERMESH_INLINE __half2 __float22half2_rn(float2 v) { return __floats2half2_rn(v.x, v.y); }
COPPERMESH_INLINE float2 __half22float2(__half2 v) { return float2{(float)v.x, (float)v.y}; }
COPPERMESH_INLINE float __low2float(__half2 v) { return v.x; }
COPPERMESH_INLINE float __high2float(__half2 v) { return v.y; }
COPPERMESH_INLINE __half __low2half(__half2 v) { return v.x; }
COPPERMESH_INLINE __half __high2half(__half2 v) { return v.y; }
COPPERMESH_INLINE __half2 __low2half2(__half2 v) { return __half2(v.x, v.x); }
COPPERMESH_INLINE __half2 __high2half2(__half2 v) { return __half2(v.y, v.y); }
COPPERMESH_INLINE __half2 __lows2half2(__half2 a, __half2 b) { return __half2(a.x, b.x); }
COPPERMESH_INLINE __half2 __highs2half2(__half2 a, __half2 b) { return __half2(a.y, b.y); }
COPPERMESH_INLINE __half2 __lowhigh2highlow(__half2 v) { return __half2(v.y, v.x); }

// --- arithmetic: of one (`__hadd`), of pairs (`__hadd2`)

namespace coppermesh {
COPPERMESH_INLINE __half saturated(float x) { return __half(x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f); }
}
#define COPPERMESH_HALF_BINARY(name, pair, expression)                                                     \
    COPPERMESH_INLINE __half name(__half a, __half b) { const float x = a, y = b; return expression; }     \
    COPPERMESH_INLINE __half2 pair(__half2 a, __half2 b) { return __half2(name(a.x, b.x), name(a.y, b.y)); }
#define COPPERMESH_HALF_ARITHMETIC(name, operation)                                                        \
    COPPERMESH_HALF_BINARY(__h##name, __h##name##2, __half(x operation y))                                 \
    COPPERMESH_HALF_BINARY(__h##name##_rn, __h##name##2_rn, __half(x operation y))                         \
    COPPERMESH_HALF_BINARY(__h##name##_sat, __h##name##2_sat, coppermesh::saturated(__half(x operation y)))
COPPERMESH_HALF_ARITHMETIC(add, +)
COPPERMESH_HALF_ARITHMETIC(sub, -)
COPPERMESH_HALF_ARITHMETIC(mul, *)
COPPERMESH_HALF_BINARY(__hdiv, __h2div, __half(x / y))
#undef COPPERMESH_HALF_ARITHMETIC

// The larger and the smaller; +0 is above -0. Where one is not a number the other is given, by `_nan` that one.
namespace coppermesh {
COPPERMESH_INLINE __half half_max(float x, float y) { return __half(fmaxf(x, y)); }
COPPERMESH_INLINE __half half_min(float x, float y) { return __half(fminf(x, y)); }
COPPERMESH_INLINE __half half_extreme(__half a, __half b, bool most) {
    const float x = a, y = b;
    if (x == y) return half_of(most ? bits_of(a) & bits_of(b) : bits_of(a) | bits_of(b));
    return most ? half_max(x, y) : half_min(x, y);
}
}  // namespace coppermesh
#define COPPERMESH_HALF_EXTREME(name, most)                                                                \
    COPPERMESH_HALF_BINARY(name, name##2, ((void)x, (void)y, coppermesh::half_extreme(a, b, most)))        \
    COPPERMESH_HALF_BINARY(name##_nan, name##2_nan,                                                        \
                           x != x || y != y ? coppermesh::half_of(0x7fff) : coppermesh::half_extreme(a, b, most))
COPPERMESH_HALF_EXTREME(__hmax, true)
COPPERMESH_HALF_EXTREME(__hmin, false)
#undef COPPERMESH_HALF_EXTREME
#undef COPPERMESH_HALF_BINARY

#define COPPERMESH_HALF_FMA(name, pair, expression)                                                        \
    COPPERMESH_INLINE __half name(__half a, __half b, __half c) {                                          \
        const __half r = __half(coppermesh::fma_to_odd(a, b, c));                                          \
        return expression;                                                                                 \
    }                                                                                                      \
    COPPERMESH_INLINE __half2 pair(__half2 a, __half2 b, __half2 c) {                                      \
        return __half2(name(a.x, b.x, c.x), name(a.y, b.y, c.y));                                          \
    }
COPPERMESH_HALF_FMA(__hfma, __hfma2, r)
COPPERMESH_HALF_FMA(__hfma_sat, __hfma2_sat, coppermesh::saturated(r))
COPPERMESH_HALF_FMA(__hfma_relu, __hfma2_relu, (float)r < 0.0f ? coppermesh::half_of(0) : r)
#undef COPPERMESH_HALF_FMA
// Of complex numbers in pairs.
COPPERMESH_INLINE __half2 __hcmadd(__half2 a, __half2 b, __half2 c) {
    const __half real = __hfma(a.x, b.x, c.x), imaginary = __hfma(a.x, b.y, c.y);
    return __half2(__hfma(coppermesh::half_of(coppermesh::bits_of(a.y) ^ 0x8000u), b.y, real), __hfma(a.y, b.x, imaginary));
}

#define COPPERMESH_HALF_UNARY(name, pair, expression)                                                      \
    COPPERMESH_INLINE __half name(__half h) { return expression; }                                         \
    COPPERMESH_INLINE __half2 pair(__half2 v) { return __half2(name(v.x), name(v.y)); }
COPPERMESH_HALF_UNARY(__hneg, __hneg2, coppermesh::half_of(coppermesh::bits_of(h) ^ 0x8000u))
COPPERMESH_HALF_UNARY(__habs, __habs2, coppermesh::half_of(coppermesh::bits_of(h) & 0x7fffu))
#define COPPERMESH_HALF_FUNCTION(name, expression) COPPERMESH_HALF_UNARY(h##name, h2##name, __half(expression))
COPPERMESH_HALF_FUNCTION(sqrt, sqrtf((float)h))
COPPERMESH_HALF_FUNCTION(rsqrt, rsqrtf((float)h))
COPPERMESH_HALF_FUNCTION(rcp, 1.0f / (float)h)
COPPERMESH_HALF_FUNCTION(exp, expf((float)h))
COPPERMESH_HALF_FUNCTION(exp2, exp2f((float)h))
COPPERMESH_HALF_FUNCTION(exp10, exp10f((float)h))
COPPERMESH_HALF_FUNCTION(log, logf((float)h))
COPPERMESH_HALF_FUNCTION(log2, log2f((float)h))
COPPERMESH_HALF_FUNCTION(log10, log10f((float)h))
COPPERMESH_HALF_FUNCTION(sin, sinf((float)h))
COPPERMESH_HALF_FUNCTION(cos, cosf((float)h))
COPPERMESH_HALF_FUNCTION(tanh, tanhf((float)h))
COPPERMESH_HALF_FUNCTION(tanh_approx, tanhf((float)h))
COPPERMESH_HALF_FUNCTION(floor, floorf((float)h))
COPPERMESH_HALF_FUNCTION(ceil, ceilf((float)h))
COPPERMESH_HALF_FUNCTION(trunc, truncf((float)h))
COPPERMESH_HALF_FUNCTION(rint, rintf((float)h))
#undef COPPERMESH_HALF_FUNCTION
#undef COPPERMESH_HALF_UNARY

// --- comparisons: false with what is not a number, and the forms with `u`, then true

#define COPPERMESH_HALF_COMPARE(name, expression)                                                          \
    COPPERMESH_INLINE bool __h##name(__half a, __half b) { const float x = a, y = b; return expression; }  \
    COPPERMESH_INLINE bool __hb##name##2(__half2 a, __half2 b) {                                           \
        return __h##name(a.x, b.x) && __h##name(a.y, b.y);                                                 \
    }                                                                                                      \
    COPPERMESH_INLINE __half2 __h##name##2(__half2 a, __half2 b) {                                         \
        return __half2(__half(__h##name(a.x, b.x) ? 1.0f : 0.0f), __half(__h##name(a.y, b.y) ? 1.0f : 0.0f)); \
    }                                                                                                      \
    COPPERMESH_INLINE unsigned int __h##name##2_mask(__half2 a, __half2 b) {                               \
        return (__h##name(a.x, b.x) ? 0xffffu : 0u) | (__h##name(a.y, b.y) ? 0xffff0000u : 0u);            \
    }
COPPERMESH_HALF_COMPARE(eq, x == y)
COPPERMESH_HALF_COMPARE(ne, x < y || x > y)
COPPERMESH_HALF_COMPARE(lt, x < y)
COPPERMESH_HALF_COMPARE(le, x <= y)
COPPERMESH_HALF_COMPARE(gt, x > y)
COPPERMESH_HALF_COMPARE(ge, x >= y)
COPPERMESH_HALF_COMPARE(equ, !(x < y || x > y))
COPPERMESH_HALF_COMPARE(neu, !(x == y))
COPPERMESH_HALF_COMPARE(ltu, !(x >= y))
COPPERMESH_HALF_COMPARE(leu, !(x > y))
COPPERMESH_HALF_COMPARE(gtu, !(x <= y))
COPPERMESH_HALF_COMPARE(geu, !(x < y))
#undef COPPERMESH_HALF_COMPARE
COPPERMESH_INLINE bool __hisnan(__half h) { return (coppermesh::bits_of(h) & 0x7fffu) > 0x7c00u; }
COPPERMESH_INLINE __half2 __hisnan2(__half2 v) {
    return __half2(__half(__hisnan(v.x) ? 1.0f : 0.0f), __half(__hisnan(v.y) ? 1.0f : 0.0f));
}
COPPERMESH_INLINE int __hisinf(__half h) {
    return coppermesh::bits_of(h) == 0x7c00u ? 1 : coppermesh::bits_of(h) == 0xfc00u ? -1 : 0;
}

// --- operators

#define COPPERMESH_HALF_OPERATORS(T, add, subtract, multiply, divide, one)                                 \
    COPPERMESH_INLINE T operator+(const T& a, const T& b) { return add(a, b); }                            \
    COPPERMESH_INLINE T operator-(const T& a, const T& b) { return subtract(a, b); }                       \
    COPPERMESH_INLINE T operator*(const T& a, const T& b) { return multiply(a, b); }                       \
    COPPERMESH_INLINE T operator/(const T& a, const T& b) { return divide(a, b); }                         \
    COPPERMESH_INLINE T& operator+=(T& a, const T& b) { return a = add(a, b); }                            \
    COPPERMESH_INLINE T& operator-=(T& a, const T& b) { return a = subtract(a, b); }                       \
    COPPERMESH_INLINE T& operator*=(T& a, const T& b) { return a = multiply(a, b); }                       \
    COPPERMESH_INLINE T& operator/=(T& a, const T& b) { return a = divide(a, b); }                         \
    COPPERMESH_INLINE T& operator++(T& a) { return a = add(a, one); }                                      \
    COPPERMESH_INLINE T& operator--(T& a) { return a = subtract(a, one); }                                 \
    COPPERMESH_INLINE T operator++(T& a, int) { const T before = a; ++a; return before; }                  \
    COPPERMESH_INLINE T operator--(T& a, int) { const T before = a; --a; return before; }                  \
    COPPERMESH_INLINE T operator+(const T& a) { return a; }
COPPERMESH_HALF_OPERATORS(__half, __hadd, __hsub, __hmul, __hdiv, coppermesh::half_of(0x3c00))
COPPERMESH_HALF_OPERATORS(__half2, __hadd2, __hsub2, __hmul2, __h2div, __half2half2(coppermesh::half_of(0x3c00)))
#undef COPPERMESH_HALF_OPERATORS
COPPERMESH_INLINE __half operator-(const __half& h) { return __hneg(h); }
COPPERMESH_INLINE __half2 operator-(const __half2& v) { return __hneg2(v); }
#define COPPERMESH_HALF_RELATION(operation, one, pair)                                                     \
    COPPERMESH_INLINE bool operator operation(const __half& a, const __half& b) { return one(a, b); }      \
    COPPERMESH_INLINE bool operator operation(const __half2& a, const __half2& b) { return pair(a, b); }
COPPERMESH_HALF_RELATION(==, __heq, __hbeq2)
COPPERMESH_HALF_RELATION(!=, __hneu, __hbneu2)
COPPERMESH_HALF_RELATION(<, __hlt, __hblt2)
COPPERMESH_HALF_RELATION(<=, __hle, __hble2)
COPPERMESH_HALF_RELATION(>, __hgt, __hbgt2)
COPPERMESH_HALF_RELATION(>=, __hge, __hbge2)
#undef COPPERMESH_HALF_RELATION

// --- shuffles; atomic addition, of a pair each half by itself, as in CUDA. (Cached loads are templates already.)

#if defined(COPPERMESH_FIBERS)
namespace coppermesh {
template <> struct shuffled<__half> { typedef __half type; };
template <> struct shuffled<__half2> { typedef __half2 type; };
}  // namespace coppermesh
#define COPPERMESH_HALF_SHUFFLE(T, name, meeting, Operand)                                                 \
    COPPERMESH_INLINE T name(unsigned int mask, T value, Operand operand, int width = 32,                  \
                             unsigned int line = __builtin_LINE()) {                                       \
        return coppermesh::shuffle(coppermesh::meeting, mask, value,                                       \
            coppermesh::shuffle_source(coppermesh::meeting, (unsigned int)operand, width, line), line);    \
    }
#define COPPERMESH_HALF_SHUFFLES(T)                                                                        \
    COPPERMESH_HALF_SHUFFLE(T, __shfl_sync, SHUFFLE_INDEX, int)                                            \
    COPPERMESH_HALF_SHUFFLE(T, __shfl_up_sync, SHUFFLE_UP, unsigned int)                                   \
    COPPERMESH_HALF_SHUFFLE(T, __shfl_down_sync, SHUFFLE_DOWN, unsigned int)                               \
    COPPERMESH_HALF_SHUFFLE(T, __shfl_xor_sync, SHUFFLE_XOR, int)
COPPERMESH_HALF_SHUFFLES(__half)
COPPERMESH_HALF_SHUFFLES(__half2)
#undef COPPERMESH_HALF_SHUFFLES
#undef COPPERMESH_HALF_SHUFFLE
#endif

COPPERMESH_INLINE __half atomicAdd(__half* address, __half value) {
    return coppermesh::update(address, [=](__half old) -> __half { return __hadd(old, value); });
}
COPPERMESH_INLINE __half2 atomicAdd(__half2* address, __half2 value) {
    return __half2(atomicAdd(&address->x, value.x), atomicAdd(&address->y, value.y));
}
