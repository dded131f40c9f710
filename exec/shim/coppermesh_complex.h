// complex<T>, by the names of CuPy's cupy/complex.cuh: arithmetic here, functions by libm's complex ones.
//
// Layout and alignment are those of float2 and double2. Products are the plain four multiplications; quotients scale by
// the divisor's larger part (Smith, Algorithm 116, CACM 5(8), 1962), so that neither overflows where the result does not.
#pragma once
#include "coppermesh_cuda.h"

namespace thrust {

template <class T> struct __attribute__((aligned(2 * sizeof(T)))) complex {
    typedef T value_type;

    complex() = default;
    constexpr complex(const T& re) : parts{re, T(0)} {}
    constexpr complex(const T& re, const T& im) : parts{re, im} {}
    template <class U> constexpr complex(const complex<U>& z) : parts{T(z.real()), T(z.imag())} {}

    constexpr T real() const { return parts[0]; }
    constexpr T imag() const { return parts[1]; }
    T real() const volatile { return parts[0]; }
    T imag() const volatile { return parts[1]; }
    void real(T re) { parts[0] = re; }
    void imag(T im) { parts[1] = im; }

    complex& operator+=(const complex& z) { return *this = complex(parts[0] + z.parts[0], parts[1] + z.parts[1]); }
    complex& operator-=(const complex& z) { return *this = complex(parts[0] - z.parts[0], parts[1] - z.parts[1]); }
    complex& operator*=(const complex& z) {
        return *this = complex(parts[0] * z.parts[0] - parts[1] * z.parts[1],
                               parts[0] * z.parts[1] + parts[1] * z.parts[0]);
    }
    complex& operator/=(const complex& z) {
        const T c = z.parts[0], d = z.parts[1];
        if ((c < 0 ? -c : c) >= (d < 0 ? -d : d)) {
            const T ratio = d / c, whole = c + d * ratio;
            return *this = complex((parts[0] + parts[1] * ratio) / whole, (parts[1] - parts[0] * ratio) / whole);
        }
        const T ratio = c / d, whole = c * ratio + d;
        return *this = complex((parts[0] * ratio + parts[1]) / whole, (parts[1] * ratio - parts[0]) / whole);
    }

  private:
    T parts[2] = {T(0), T(0)};
};

// The type of a result: of two complex numbers the wider, of a complex and a real number the complex one's unless the
// real one is a double.
template <class T, class U> struct complex_result {};
template <class T> struct complex_result<T, T> { typedef T type; };
template <> struct complex_result<float, double> { typedef double type; };
template <> struct complex_result<double, float> { typedef double type; };
#define COPPERMESH_WITH(U)                                                                                 \
    template <> struct complex_result<float, U> { typedef float type; };                                   \
    template <> struct complex_result<double, U> { typedef double type; };
COPPERMESH_WITH(bool)
COPPERMESH_WITH(char)
COPPERMESH_WITH(signed char)
COPPERMESH_WITH(unsigned char)
COPPERMESH_WITH(short)
COPPERMESH_WITH(unsigned short)
COPPERMESH_WITH(int)
COPPERMESH_WITH(unsigned int)
COPPERMESH_WITH(long)
COPPERMESH_WITH(unsigned long)
COPPERMESH_WITH(long long)
COPPERMESH_WITH(unsigned long long)
#undef COPPERMESH_WITH

#define COPPERMESH_OPERATOR(op, assign)                                                                    \
    template <class T, class U>                                                                            \
    COPPERMESH_INLINE complex<typename complex_result<T, U>::type> operator op(const complex<T>& x,        \
                                                                               const complex<U>& y) {      \
        complex<typename complex_result<T, U>::type> z(x);                                                 \
        return z assign complex<typename complex_result<T, U>::type>(y);                                   \
    }                                                                                                      \
    template <class T, class U>                                                                            \
    COPPERMESH_INLINE complex<typename complex_result<T, U>::type> operator op(const complex<T>& x,        \
                                                                               const U& y) {               \
        complex<typename complex_result<T, U>::type> z(x);                                                 \
        return z assign complex<typename complex_result<T, U>::type>(y);                                   \
    }                                                                                                      \
    template <class T, class U>                                                                            \
    COPPERMESH_INLINE complex<typename complex_result<T, U>::type> operator op(const U& x,                 \
                                                                               const complex<T>& y) {      \
        complex<typename complex_result<T, U>::type> z(x);                                                 \
        return z assign complex<typename complex_result<T, U>::type>(y);                                   \
    }
COPPERMESH_OPERATOR(+, +=)
COPPERMESH_OPERATOR(-, -=)
COPPERMESH_OPERATOR(*, *=)
COPPERMESH_OPERATOR(/, /=)
#undef COPPERMESH_OPERATOR

template <class T> COPPERMESH_INLINE complex<T> operator+(const complex<T>& z) { return z; }
template <class T> COPPERMESH_INLINE complex<T> operator-(const complex<T>& z) {
    return complex<T>(-z.real(), -z.imag());
}
template <class T, class U> COPPERMESH_INLINE bool operator==(const complex<T>& x, const complex<U>& y) {
    return x.real() == y.real() && x.imag() == y.imag();
}
template <class T> COPPERMESH_INLINE bool operator==(const complex<T>& x, const T& y) {
    return x.real() == y && x.imag() == T(0);
}
template <class T> COPPERMESH_INLINE bool operator==(const T& x, const complex<T>& y) { return y == x; }
template <class T, class U> COPPERMESH_INLINE bool operator!=(const complex<T>& x, const complex<U>& y) {
    return !(x == y);
}
template <class T> COPPERMESH_INLINE bool operator!=(const complex<T>& x, const T& y) { return !(x == y); }
template <class T> COPPERMESH_INLINE bool operator!=(const T& x, const complex<T>& y) { return !(y == x); }

template <class T> COPPERMESH_INLINE T real(const complex<T>& z) { return z.real(); }
template <class T> COPPERMESH_INLINE T imag(const complex<T>& z) { return z.imag(); }
template <class T> COPPERMESH_INLINE T abs(const complex<T>& z) { return hypot(z.real(), z.imag()); }
template <class T> COPPERMESH_INLINE T arg(const complex<T>& z) { return atan2(z.imag(), z.real()); }
template <class T> COPPERMESH_INLINE T norm(const complex<T>& z) {
    return z.real() * z.real() + z.imag() * z.imag();
}
template <class T> COPPERMESH_INLINE complex<T> conj(const complex<T>& z) {
    return complex<T>(z.real(), -z.imag());
}
template <class T> COPPERMESH_INLINE complex<T> polar(const T& length, const T& angle = T(0)) {
    return complex<T>(length * cos(angle), length * sin(angle));
}

// The compiler's own complex numbers, which libm's functions take.
#define COPPERMESH_TOGETHER(T)                                                                             \
    COPPERMESH_INLINE __complex__ T together(T re, T im) {                                                 \
        __complex__ T z;                                                                                   \
        __real__ z = re;                                                                                   \
        __imag__ z = im;                                                                                   \
        return z;                                                                                          \
    }
COPPERMESH_TOGETHER(float)
COPPERMESH_TOGETHER(double)
#undef COPPERMESH_TOGETHER

#define COPPERMESH_LIBM(name, with)                                                                        \
    COPPERMESH_INLINE complex<double> name(const complex<double>& z) {                                     \
        const __complex__ double r = __builtin_##with(together(z.real(), z.imag()));              \
        return complex<double>(__real__ r, __imag__ r);                                                    \
    }                                                                                                      \
    COPPERMESH_INLINE complex<float> name(const complex<float>& z) {                                       \
        const __complex__ float r = __builtin_##with##f(together(z.real(), z.imag()));            \
        return complex<float>(__real__ r, __imag__ r);                                                     \
    }
COPPERMESH_LIBM(exp, cexp) COPPERMESH_LIBM(log, clog) COPPERMESH_LIBM(sqrt, csqrt) COPPERMESH_LIBM(proj, cproj)
COPPERMESH_LIBM(sin, csin) COPPERMESH_LIBM(cos, ccos) COPPERMESH_LIBM(tan, ctan)
COPPERMESH_LIBM(sinh, csinh) COPPERMESH_LIBM(cosh, ccosh) COPPERMESH_LIBM(tanh, ctanh)
COPPERMESH_LIBM(asin, casin) COPPERMESH_LIBM(acos, cacos) COPPERMESH_LIBM(atan, catan)
COPPERMESH_LIBM(asinh, casinh) COPPERMESH_LIBM(acosh, cacosh) COPPERMESH_LIBM(atanh, catanh)
#undef COPPERMESH_LIBM

template <class T> COPPERMESH_INLINE complex<T> log10(const complex<T>& z) {
    return log(z) / T(2.30258509299404568402);
}
COPPERMESH_INLINE complex<double> pow(const complex<double>& x, const complex<double>& y) {
    const __complex__ double r =
        __builtin_cpow(together(x.real(), x.imag()), together(y.real(), y.imag()));
    return complex<double>(__real__ r, __imag__ r);
}
COPPERMESH_INLINE complex<float> pow(const complex<float>& x, const complex<float>& y) {
    const __complex__ float r =
        __builtin_cpowf(together(x.real(), x.imag()), together(y.real(), y.imag()));
    return complex<float>(__real__ r, __imag__ r);
}
template <class T, class U>
COPPERMESH_INLINE complex<typename complex_result<T, U>::type> pow(const complex<T>& x, const U& y) {
    typedef complex<typename complex_result<T, U>::type> Result;
    return pow(Result(x), Result(y));
}
template <class T, class U>
COPPERMESH_INLINE complex<typename complex_result<T, U>::type> pow(const U& x, const complex<T>& y) {
    typedef complex<typename complex_result<T, U>::type> Result;
    return pow(Result(x), Result(y));
}

}  // namespace thrust

using thrust::acos;
using thrust::acosh;
using thrust::arg;
using thrust::asin;
using thrust::asinh;
using thrust::atan;
using thrust::atanh;
using thrust::complex;
using thrust::conj;
using thrust::cos;
using thrust::cosh;
using thrust::exp;
using thrust::imag;
using thrust::log;
using thrust::log10;
using thrust::real;
using thrust::sin;
using thrust::sinh;
using thrust::tan;
using thrust::tanh;

template <class T> COPPERMESH_INLINE bool isnan(const complex<T>& z) { return isnan(z.real()) || isnan(z.imag()); }
template <class T> COPPERMESH_INLINE bool isinf(const complex<T>& z) { return isinf(z.real()) || isinf(z.imag()); }
template <class T> COPPERMESH_INLINE bool isfinite(const complex<T>& z) {
    return isfinite(z.real()) && isfinite(z.imag());
}
template <class T> COPPERMESH_INLINE complex<T> log1p(const complex<T>& z) { return log(z + T(1)); }
template <class T> COPPERMESH_INLINE complex<T> expm1(const complex<T>& z) { return exp(z) - T(1); }
template <class T> COPPERMESH_INLINE complex<T> log2(const complex<T>& z) { return log(z) / T(0.69314718055994530942); }
