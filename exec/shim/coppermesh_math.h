// CUDA's mathematical functions and intrinsics, by libm and compiler built-ins.
//
// The fast intrinsics (`__expf`, `__fdividef`, ...) give the accurate result: within CUDA's stated error, not its
// bits. Rounding-mode variants exist for round-to-nearest only.
#pragma once

#define COPPERMESH_PI 3.14159265358979323846

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
}  // namespace coppermesh

// --- functions of libc that device code has too

extern "C" {
int printf(const char* format, ...);
int dprintf(int descriptor, const char* format, ...);
void* malloc(size_t bytes);
void free(void* pointer);
void* memcpy(void* to, const void* from, size_t bytes);
void* memmove(void* to, const void* from, size_t bytes);
void* memset(void* to, int value, size_t bytes);
int memcmp(const void* first, const void* second, size_t bytes);
size_t strlen(const char* text);
}
#define assert(condition)                                                                                  \
    ((condition) ? (void)0                                                                                 \
                 : (dprintf(2, "kernel.cu:%d: assertion failed: %s\n", __LINE__, #condition), __builtin_trap()))
COPPERMESH_INLINE void __trap() { __builtin_trap(); }
COPPERMESH_INLINE void __nanosleep(unsigned int) {}

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
COPPERMESH_INLINE float frexp(float x, int* e) { return frexpf(x, e); }
COPPERMESH_INLINE float modf(float x, float* whole) { return modff(x, whole); }
COPPERMESH_INLINE void sincos(float x, float* s, float* c) { sincosf(x, s, c); }

#define COPPERMESH_BOTH(T, suffix, sqrt_, hypot_, sin_, cos_, erfc_, cbrt_)                                \
    COPPERMESH_INLINE T rsqrt##suffix(T x) { return (T)1 / sqrt_(x); }                                     \
    COPPERMESH_INLINE T rcbrt##suffix(T x) { return (T)1 / cbrt_(x); }                                     \
    COPPERMESH_INLINE T rhypot##suffix(T x, T y) { return (T)1 / hypot_(x, y); }                           \
    COPPERMESH_INLINE T norm3d##suffix(T x, T y, T z) { return sqrt_(x * x + y * y + z * z); }             \
    COPPERMESH_INLINE T rnorm3d##suffix(T x, T y, T z) { return (T)1 / sqrt_(x * x + y * y + z * z); }     \
    COPPERMESH_INLINE T norm4d##suffix(T x, T y, T z, T w) { return sqrt_(x * x + y * y + z * z + w * w); } \
    COPPERMESH_INLINE T sinpi##suffix(T x) { return (T)sin(COPPERMESH_PI * fmod((double)x, 2.0)); }        \
    COPPERMESH_INLINE T cospi##suffix(T x) { return (T)cos(COPPERMESH_PI * fmod((double)x, 2.0)); }        \
    COPPERMESH_INLINE void sincospi##suffix(T x, T* s, T* c) { *s = sinpi##suffix(x), *c = cospi##suffix(x); } \
    COPPERMESH_INLINE T normcdf##suffix(T x) { return (T)0.5 * erfc_(-x * (T)0.70710678118654752440); }    \
    COPPERMESH_INLINE T fdivide##suffix(T x, T y) { return x / y; }
COPPERMESH_BOTH(float, f, sqrtf, hypotf, sinf, cosf, erfcf, cbrtf)
COPPERMESH_BOTH(double, , sqrt, hypot, sin, cos, erfc, cbrt)
#undef COPPERMESH_BOTH
COPPERMESH_INLINE float rsqrt(float x) { return rsqrtf(x); }

#define COPPERMESH_CLASSIFY(T)                                                                             \
    COPPERMESH_INLINE bool isnan(T x) { return x != x; }                                                   \
    COPPERMESH_INLINE bool isinf(T x) { return __builtin_isinf(x) != 0; }                                  \
    COPPERMESH_INLINE bool isfinite(T x) { return __builtin_isfinite(x) != 0; }                            \
    COPPERMESH_INLINE bool signbit(T x) { return __builtin_signbit(x) != 0; }
COPPERMESH_CLASSIFY(float)
COPPERMESH_CLASSIFY(double)
#undef COPPERMESH_CLASSIFY

// --- single-precision intrinsics

COPPERMESH_INLINE float __expf(float x) { return expf(x); }
COPPERMESH_INLINE float __exp10f(float x) { return exp10f(x); }
COPPERMESH_INLINE float __logf(float x) { return logf(x); }
COPPERMESH_INLINE float __log2f(float x) { return log2f(x); }
COPPERMESH_INLINE float __log10f(float x) { return log10f(x); }
COPPERMESH_INLINE float __sinf(float x) { return sinf(x); }
COPPERMESH_INLINE float __cosf(float x) { return cosf(x); }
COPPERMESH_INLINE float __tanf(float x) { return tanf(x); }
COPPERMESH_INLINE float __powf(float x, float y) { return powf(x, y); }
COPPERMESH_INLINE void __sincosf(float x, float* s, float* c) { sincosf(x, s, c); }
COPPERMESH_INLINE float __fdividef(float x, float y) { return x / y; }
COPPERMESH_INLINE float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
COPPERMESH_INLINE float __fadd_rn(float x, float y) { return x + y; }
COPPERMESH_INLINE float __fsub_rn(float x, float y) { return x - y; }
COPPERMESH_INLINE float __fmul_rn(float x, float y) { return x * y; }
COPPERMESH_INLINE float __fdiv_rn(float x, float y) { return x / y; }
COPPERMESH_INLINE float __frcp_rn(float x) { return 1.0f / x; }
COPPERMESH_INLINE float __fsqrt_rn(float x) { return sqrtf(x); }
COPPERMESH_INLINE float __frsqrt_rn(float x) { return 1.0f / sqrtf(x); }
COPPERMESH_INLINE float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
COPPERMESH_INLINE double __dadd_rn(double x, double y) { return x + y; }
COPPERMESH_INLINE double __dsub_rn(double x, double y) { return x - y; }
COPPERMESH_INLINE double __dmul_rn(double x, double y) { return x * y; }
COPPERMESH_INLINE double __ddiv_rn(double x, double y) { return x / y; }
COPPERMESH_INLINE double __drcp_rn(double x) { return 1.0 / x; }
COPPERMESH_INLINE double __dsqrt_rn(double x) { return sqrt(x); }
COPPERMESH_INLINE double __fma_rn(double x, double y, double z) { return fma(x, y, z); }

// --- conversions. Out of range saturates and not-a-number gives 0, as on a GPU (in C++ it is undefined).

namespace coppermesh {
template <class T, class F> COPPERMESH_INLINE T saturate(F x) {
    const T least = (T)(1ull << (sizeof(T) * 8 - 1)) < (T)0 ? (T)(1ull << (sizeof(T) * 8 - 1)) : (T)0;
    const T most = (T)~(unsigned long long)least;
    // `most` may round up to a power of two as a floating number, hence `>=` there.
    return x != x ? (T)0 : x <= (F)least ? least : x >= (F)most ? most : (T)x;
}
}  // namespace coppermesh
#define COPPERMESH_ROUNDED(T, name, F, rint_, floor_, ceil_)                                               \
    COPPERMESH_INLINE T __##name##_rn(F x) { return coppermesh::saturate<T>(rint_(x)); }                   \
    COPPERMESH_INLINE T __##name##_rz(F x) { return coppermesh::saturate<T>(x); }                          \
    COPPERMESH_INLINE T __##name##_rd(F x) { return coppermesh::saturate<T>(floor_(x)); }                  \
    COPPERMESH_INLINE T __##name##_ru(F x) { return coppermesh::saturate<T>(ceil_(x)); }
COPPERMESH_ROUNDED(int, float2int, float, rintf, floorf, ceilf)
COPPERMESH_ROUNDED(unsigned int, float2uint, float, rintf, floorf, ceilf)
COPPERMESH_ROUNDED(long long, float2ll, float, rintf, floorf, ceilf)
COPPERMESH_ROUNDED(unsigned long long, float2ull, float, rintf, floorf, ceilf)
COPPERMESH_ROUNDED(int, double2int, double, rint, floor, ceil)
COPPERMESH_ROUNDED(unsigned int, double2uint, double, rint, floor, ceil)
COPPERMESH_ROUNDED(long long, double2ll, double, rint, floor, ceil)
COPPERMESH_ROUNDED(unsigned long long, double2ull, double, rint, floor, ceil)
#undef COPPERMESH_ROUNDED
COPPERMESH_INLINE float __int2float_rn(int x) { return (float)x; }
COPPERMESH_INLINE float __uint2float_rn(unsigned int x) { return (float)x; }
COPPERMESH_INLINE float __ll2float_rn(long long x) { return (float)x; }
COPPERMESH_INLINE float __ull2float_rn(unsigned long long x) { return (float)x; }
COPPERMESH_INLINE double __int2double_rn(int x) { return x; }
COPPERMESH_INLINE double __uint2double_rn(unsigned int x) { return x; }
COPPERMESH_INLINE double __ll2double_rn(long long x) { return (double)x; }
COPPERMESH_INLINE float __double2float_rn(double x) { return (float)x; }

COPPERMESH_INLINE int __float_as_int(float x) { return __builtin_bit_cast(int, x); }
COPPERMESH_INLINE unsigned int __float_as_uint(float x) { return __builtin_bit_cast(unsigned int, x); }
COPPERMESH_INLINE float __int_as_float(int x) { return __builtin_bit_cast(float, x); }
COPPERMESH_INLINE float __uint_as_float(unsigned int x) { return __builtin_bit_cast(float, x); }
COPPERMESH_INLINE long long __double_as_longlong(double x) { return __builtin_bit_cast(long long, x); }
COPPERMESH_INLINE double __longlong_as_double(long long x) { return __builtin_bit_cast(double, x); }

// --- integers and bits

COPPERMESH_INLINE int __popc(unsigned int x) { return __builtin_popcount(x); }
COPPERMESH_INLINE int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
COPPERMESH_INLINE int __clz(int x) { return x ? __builtin_clz((unsigned int)x) : 32; }
COPPERMESH_INLINE int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
COPPERMESH_INLINE int __ffs(int x) { return __builtin_ffs(x); }
COPPERMESH_INLINE int __ffsll(long long x) { return __builtin_ffsll(x); }
COPPERMESH_INLINE unsigned int __brev(unsigned int x) {
    x = (x >> 1 & 0x55555555u) | (x & 0x55555555u) << 1;
    x = (x >> 2 & 0x33333333u) | (x & 0x33333333u) << 2;
    x = (x >> 4 & 0x0f0f0f0fu) | (x & 0x0f0f0f0fu) << 4;
    return __builtin_bswap32(x);
}
COPPERMESH_INLINE unsigned long long __brevll(unsigned long long x) {
    return (unsigned long long)__brev((unsigned int)x) << 32 | __brev((unsigned int)(x >> 32));
}
COPPERMESH_INLINE unsigned int __byte_perm(unsigned int low, unsigned int high, unsigned int selector) {
    const unsigned long long bytes = (unsigned long long)high << 32 | low;
    unsigned int result = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned int from = selector >> (4 * i) & 7;
        result |= (unsigned int)(bytes >> (8 * from) & 0xff) << (8 * i);
    }
    return result;
}
COPPERMESH_INLINE unsigned int __funnelshift_l(unsigned int low, unsigned int high, unsigned int shift) {
    return (unsigned int)((((unsigned long long)high << 32 | low) << (shift & 31)) >> 32);
}
COPPERMESH_INLINE unsigned int __funnelshift_r(unsigned int low, unsigned int high, unsigned int shift) {
    return (unsigned int)(((unsigned long long)high << 32 | low) >> (shift & 31));
}
COPPERMESH_INLINE int __mul24(int x, int y) { return (x << 8 >> 8) * (y << 8 >> 8); }
COPPERMESH_INLINE unsigned int __umul24(unsigned int x, unsigned int y) { return (x & 0xffffffu) * (y & 0xffffffu); }
COPPERMESH_INLINE int __mulhi(int x, int y) { return (int)((long long)x * y >> 32); }
COPPERMESH_INLINE unsigned int __umulhi(unsigned int x, unsigned int y) {
    return (unsigned int)((unsigned long long)x * y >> 32);
}
COPPERMESH_INLINE long long __mul64hi(long long x, long long y) { return (long long)((__int128)x * y >> 64); }
COPPERMESH_INLINE unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
    return (unsigned long long)((unsigned __int128)x * y >> 64);
}
COPPERMESH_INLINE unsigned int __sad(int x, int y, unsigned int z) {
    return z + (x > y ? (unsigned int)x - (unsigned int)y : (unsigned int)y - (unsigned int)x);
}
COPPERMESH_INLINE unsigned int __usad(unsigned int x, unsigned int y, unsigned int z) {
    return z + (x > y ? x - y : y - x);
}

// --- loads and stores with cache hints: plain ones here

template <class T> COPPERMESH_INLINE T __ldg(const T* p) { return *p; }
template <class T> COPPERMESH_INLINE T __ldca(const T* p) { return *p; }
template <class T> COPPERMESH_INLINE T __ldcg(const T* p) { return *p; }
template <class T> COPPERMESH_INLINE T __ldcs(const T* p) { return *p; }
template <class T> COPPERMESH_INLINE void __stcg(T* p, T v) { *p = v; }
template <class T> COPPERMESH_INLINE void __stcs(T* p, T v) { *p = v; }
