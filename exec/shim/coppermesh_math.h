// CUDA's mathematical functions, single and double precision, by libm. What libm lacks is in coppermesh_special.h,
// intrinsics are in coppermesh_rounding.h (floating point), coppermesh_bits.h and coppermesh_simd.h (integers).
#pragma once

#include "coppermesh_runtime.h"

// --- f(x) for float, double and integers

#define COPPERMESH_UNARY(name)                                                                             \
    extern "C" double name(double) noexcept;                                                               \
    extern "C" float name##f(float) noexcept;                                                              \
    COPPERMESH_INLINE float name(float x) { return name##f(x); }                                           \
    template <class T>                                                                                     \
    COPPERMESH_INLINE typename coppermesh::enable_if<coppermesh::is_integral<T>::value, double>::type name(T x) { \
        return name((double)x);                                                                            \
    }
COPPERMESH_UNARY(acos) COPPERMESH_UNARY(acosh) COPPERMESH_UNARY(asin) COPPERMESH_UNARY(asinh)
COPPERMESH_UNARY(atan) COPPERMESH_UNARY(atanh) COPPERMESH_UNARY(cbrt) COPPERMESH_UNARY(ceil)
COPPERMESH_UNARY(cos) COPPERMESH_UNARY(cosh) COPPERMESH_UNARY(erf) COPPERMESH_UNARY(erfc)
COPPERMESH_UNARY(exp) COPPERMESH_UNARY(exp10) COPPERMESH_UNARY(exp2) COPPERMESH_UNARY(expm1)
COPPERMESH_UNARY(fabs) COPPERMESH_UNARY(floor) COPPERMESH_UNARY(j0) COPPERMESH_UNARY(j1)
COPPERMESH_UNARY(lgamma) COPPERMESH_UNARY(log) COPPERMESH_UNARY(log10) COPPERMESH_UNARY(log1p)
COPPERMESH_UNARY(log2) COPPERMESH_UNARY(logb) COPPERMESH_UNARY(nearbyint) COPPERMESH_UNARY(rint)
COPPERMESH_UNARY(round) COPPERMESH_UNARY(sin) COPPERMESH_UNARY(sinh) COPPERMESH_UNARY(sqrt)
COPPERMESH_UNARY(tan) COPPERMESH_UNARY(tanh) COPPERMESH_UNARY(tgamma) COPPERMESH_UNARY(trunc)
COPPERMESH_UNARY(y0) COPPERMESH_UNARY(y1)
#undef COPPERMESH_UNARY

#define COPPERMESH_TO_INTEGER(T, name)                                                                     \
    extern "C" T name(double) noexcept;                                                                    \
    extern "C" T name##f(float) noexcept;                                                                  \
    COPPERMESH_INLINE T name(float x) { return name##f(x); }
COPPERMESH_TO_INTEGER(int, ilogb)
COPPERMESH_TO_INTEGER(long, lrint)
COPPERMESH_TO_INTEGER(long, lround)
COPPERMESH_TO_INTEGER(long long, llrint)
COPPERMESH_TO_INTEGER(long long, llround)
#undef COPPERMESH_TO_INTEGER

// --- f(x, y); mixed arguments go to double, as in CUDA

#define COPPERMESH_MIXED(name)                                                                             \
    COPPERMESH_INLINE double name(float x, double y) { return name((double)x, y); }                        \
    COPPERMESH_INLINE double name(double x, float y) { return name(x, (double)y); }                        \
    COPPERMESH_INLINE double name(double x, int y) { return name(x, (double)y); }                          \
    COPPERMESH_INLINE double name(int x, double y) { return name((double)x, y); }
#define COPPERMESH_BINARY(name)                                                                            \
    extern "C" double name(double, double) noexcept;                                                       \
    extern "C" float name##f(float, float) noexcept;                                                       \
    COPPERMESH_INLINE float name(float x, float y) { return name##f(x, y); }                               \
    COPPERMESH_MIXED(name)
COPPERMESH_BINARY(atan2) COPPERMESH_BINARY(copysign) COPPERMESH_BINARY(fdim) COPPERMESH_BINARY(fmod)
COPPERMESH_BINARY(hypot) COPPERMESH_BINARY(nextafter) COPPERMESH_BINARY(pow) COPPERMESH_BINARY(remainder)
#undef COPPERMESH_BINARY
COPPERMESH_INLINE float pow(float x, int y) { return powf(x, (float)y); }
COPPERMESH_INLINE double fdivide(double x, double y) { return x / y; }
COPPERMESH_INLINE float fdividef(float x, float y) { return x / y; }

// fmin and fmax by hand: the library calls would keep loops from being vectorised.
#define COPPERMESH_SELECT(T, least, most)                                                                  \
    COPPERMESH_INLINE T least(T x, T y) { return y < x || x != x ? y : x; }                                \
    COPPERMESH_INLINE T most(T x, T y) { return y > x || x != x ? y : x; }
COPPERMESH_SELECT(float, fminf, fmaxf)
COPPERMESH_SELECT(float, fmin, fmax)
COPPERMESH_SELECT(double, fmin, fmax)
COPPERMESH_SELECT(float, min, max)
COPPERMESH_SELECT(double, min, max)
#undef COPPERMESH_SELECT
COPPERMESH_MIXED(fmin)
COPPERMESH_MIXED(fmax)
COPPERMESH_INLINE double min(float x, double y) { return fmin((double)x, y); }
COPPERMESH_INLINE double min(double x, float y) { return fmin(x, (double)y); }
COPPERMESH_INLINE double max(float x, double y) { return fmax((double)x, y); }
COPPERMESH_INLINE double max(double x, float y) { return fmax(x, (double)y); }
#undef COPPERMESH_MIXED

#define COPPERMESH_ORDER(T)                                                                                \
    COPPERMESH_INLINE T min(T x, T y) { return y < x ? y : x; }                                            \
    COPPERMESH_INLINE T max(T x, T y) { return x < y ? y : x; }
COPPERMESH_ORDER(int) COPPERMESH_ORDER(unsigned int) COPPERMESH_ORDER(long) COPPERMESH_ORDER(unsigned long)
COPPERMESH_ORDER(long long) COPPERMESH_ORDER(unsigned long long)
#undef COPPERMESH_ORDER
// Of unequal integer types: to the unsigned one of equal width, else to the wider one, as in CUDA.
#define COPPERMESH_ORDER_MIXED(A, B, T)                                                                    \
    COPPERMESH_INLINE T min(A x, B y) { return min((T)x, (T)y); }                                          \
    COPPERMESH_INLINE T min(B x, A y) { return min((T)x, (T)y); }                                          \
    COPPERMESH_INLINE T max(A x, B y) { return max((T)x, (T)y); }                                          \
    COPPERMESH_INLINE T max(B x, A y) { return max((T)x, (T)y); }
COPPERMESH_ORDER_MIXED(int, unsigned int, unsigned int)
COPPERMESH_ORDER_MIXED(long, unsigned long, unsigned long)
COPPERMESH_ORDER_MIXED(long long, unsigned long long, unsigned long long)
#undef COPPERMESH_ORDER_MIXED
COPPERMESH_INLINE unsigned int umin(unsigned int x, unsigned int y) { return min(x, y); }
COPPERMESH_INLINE unsigned int umax(unsigned int x, unsigned int y) { return max(x, y); }
COPPERMESH_INLINE long long llmin(long long x, long long y) { return min(x, y); }
COPPERMESH_INLINE long long llmax(long long x, long long y) { return max(x, y); }
COPPERMESH_INLINE unsigned long long ullmin(unsigned long long x, unsigned long long y) { return min(x, y); }
COPPERMESH_INLINE unsigned long long ullmax(unsigned long long x, unsigned long long y) { return max(x, y); }

COPPERMESH_INLINE int abs(int x) { return x < 0 ? -x : x; }
COPPERMESH_INLINE long abs(long x) { return x < 0 ? -x : x; }
COPPERMESH_INLINE long long abs(long long x) { return x < 0 ? -x : x; }
COPPERMESH_INLINE float abs(float x) { return fabsf(x); }
COPPERMESH_INLINE double abs(double x) { return fabs(x); }
COPPERMESH_INLINE long labs(long x) { return abs(x); }
COPPERMESH_INLINE long long llabs(long long x) { return abs(x); }

// --- several arguments, several results

extern "C" {
double fma(double, double, double) noexcept;
float fmaf(float, float, float) noexcept;
double ldexp(double, int) noexcept;
float ldexpf(float, int) noexcept;
double scalbn(double, int) noexcept;
float scalbnf(float, int) noexcept;
double scalbln(double, long) noexcept;
float scalblnf(float, long) noexcept;
double jn(int, double) noexcept;
float jnf(int, float) noexcept;
double yn(int, double) noexcept;
float ynf(int, float) noexcept;
double nan(const char*) noexcept;
float nanf(const char*) noexcept;
double frexp(double, int*) noexcept;
float frexpf(float, int*) noexcept;
double modf(double, double*) noexcept;
float modff(float, float*) noexcept;
double remquo(double, double, int*) noexcept;
float remquof(float, float, int*) noexcept;
void sincos(double, double*, double*) noexcept;
void sincosf(float, float*, float*) noexcept;
}
COPPERMESH_INLINE float fma(float x, float y, float z) { return fmaf(x, y, z); }
COPPERMESH_INLINE float ldexp(float x, int e) { return ldexpf(x, e); }
COPPERMESH_INLINE float scalbn(float x, int e) { return scalbnf(x, e); }
COPPERMESH_INLINE float scalbln(float x, long e) { return scalblnf(x, e); }
COPPERMESH_INLINE float jn(int order, float x) { return jnf(order, x); }
COPPERMESH_INLINE float yn(int order, float x) { return ynf(order, x); }
COPPERMESH_INLINE float remquo(float x, float y, int* quotient) { return remquof(x, y, quotient); }
COPPERMESH_INLINE float frexp(float x, int* e) { return frexpf(x, e); }
COPPERMESH_INLINE float modf(float x, float* whole) { return modff(x, whole); }
COPPERMESH_INLINE void sincos(float x, float* s, float* c) { sincosf(x, s, c); }

// --- classes of numbers

#define COPPERMESH_CLASSIFY(T)                                                                             \
    COPPERMESH_INLINE bool isnan(T x) { return x != x; }                                                   \
    COPPERMESH_INLINE bool isinf(T x) { return __builtin_isinf(x) != 0; }                                  \
    COPPERMESH_INLINE bool isfinite(T x) { return __builtin_isfinite(x) != 0; }                            \
    COPPERMESH_INLINE bool signbit(T x) { return __builtin_signbit(x) != 0; }
COPPERMESH_CLASSIFY(float)
COPPERMESH_CLASSIFY(double)
#undef COPPERMESH_CLASSIFY

#include "coppermesh_special.h"
#include "coppermesh_rounding.h"
#include "coppermesh_bits.h"
#include "coppermesh_simd.h"
#include "coppermesh_memory.h"
