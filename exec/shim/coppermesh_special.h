// Functions of CUDA's mathematical library that libm lacks: roots and norms, trigonometry of multiples of pi, the
// normal distribution, inverse and scaled error functions, modified Bessel functions.
//
// Each double function is written below from its definition or a classical expansion (Abramowitz and Stegun, chapters
// 7 and 9) and is good to a few units in the last place; the float one is the double one rounded, so it is right to
// about half a unit.
#pragma once

// Too long to be worth copying into every caller.
#define COPPERMESH_FUNCTION static inline __attribute__((unused))

namespace coppermesh {
constexpr double pi = 3.14159265358979323846;
constexpr double sqrt_pi = 1.77245385090551602730;
constexpr double sqrt_half = 0.70710678118654752440;

// --- norms. Scaled by a power of two, which is exact, so that squares neither overflow nor vanish.

COPPERMESH_FUNCTION double norm_of(int count, const double* values) {
    double largest = 0.0;
    for (int i = 0; i < count; i++) {
        if (isinf(values[i])) return __builtin_inf();
        largest = fmax(largest, fabs(values[i]));
    }
    if (largest == 0.0 || count <= 0) return count > 0 ? fabs(values[0]) : 0.0;
    const int exponent = largest < 1e-290 ? -970 : largest > 1e150 ? 800 : largest < 1e-120 ? -600 : 0;
    double sum = 0.0;
    for (int i = 0; i < count; i++) {
        const double scaled = exponent ? scalbn(values[i], -exponent) : values[i];
        sum = fma(scaled, scaled, sum);
    }
    return exponent ? scalbn(sqrt(sum), exponent) : sqrt(sum);
}

// --- trigonometry of pi x: reduced exactly to a quarter turn, where pi x is small

COPPERMESH_FUNCTION void turn(double x, double* s, double* c) {
    const double half_turns = fabs(x) < 9007199254740992.0 ? x : 0.0;  // beyond, every number is an even integer
    const double quarter = rint(2.0 * half_turns);
    const double angle = pi * fma(quarter, -0.5, half_turns);
    const double sine = sin(angle), cosine = cos(angle);
    const int quadrant = (int)((long long)quarter & 3);
    *s = quadrant == 0 ? sine : quadrant == 1 ? cosine : quadrant == 2 ? -sine : -cosine;
    *c = quadrant == 0 ? cosine : quadrant == 1 ? -sine : quadrant == 2 ? -cosine : sine;
    // Zeros: sin has the sign of x, cos is positive. Infinity and NaN give NaN.
    if (*s == 0.0) *s = copysign(0.0, x);
    if (*c == 0.0) *c = 0.0;
    if (!isfinite(x)) *s = *c = x - x;
}

// --- scaled complementary error function, exp(x^2) erfc(x)

COPPERMESH_FUNCTION double scaled_erfc(double x) {
    if (x >= 9.0) {
        if (x > 1e8) return 1.0 / (x * sqrt_pi);
        // Asymptotic series 7.1.23, summed while its terms shrink below rounding.
        const double inverse = 0.5 / (x * x);
        double term = 1.0, sum = 1.0;
        for (int k = 1; k < 40 && fabs(term) > 1e-18; k++) {
            term *= -(2 * k - 1) * inverse;
            sum += term;
        }
        return sum / (x * sqrt_pi);
    }
    if (x < -27.0) return __builtin_inf();
    const double square = x * x;
    const double rest = fma(x, x, -square);  // exp of the rounded square alone would lose x^2 units
    return exp(square) * (1.0 + rest) * erfc(x);
}

// --- inverse error functions: a rough guess, then Halley's or Newton's steps

// Beyond 3/4 by way of erfc, whose argument 1 - |x| is exact there.
COPPERMESH_FUNCTION double inverse_erf(double x) {
    const double size = fabs(x);
    if (!(size < 1.0)) return size == 1.0 ? copysign(__builtin_inf(), x) : __builtin_nan("");
    if (size < 1e-8) return x * (0.5 * sqrt_pi);
    // Winitzki's approximation, good to 0.2 %.
    const double logarithm = log1p(-size * size), a = 2.0 / (pi * 0.147) + 0.5 * logarithm;
    double y = sqrt(sqrt(a * a - logarithm / 0.147) - a);
    for (int step = 0; step < 3; step++) {
        const double error = size < 0.75 ? erf(y) - size : (1.0 - size) - erfc(y);
        const double newton = error * (0.5 * sqrt_pi) * exp(y * y);
        y -= newton / (1.0 + y * newton);
    }
    return copysign(y, x);
}

COPPERMESH_FUNCTION double inverse_erfc(double x) {
    if (!(x > 0.0 && x < 2.0)) {
        return x == 0.0 ? __builtin_inf() : x == 2.0 ? -__builtin_inf() : __builtin_nan("");
    }
    if (x >= 0.25 && x <= 1.75) return inverse_erf(1.0 - x);
    // In logarithms, since erfc itself vanishes: y^2 - log(erfcx(y)) = -log(x), for the tail that x is in.
    const double wanted = -log(x < 1.0 ? x : 2.0 - x);
    double y = sqrt(fmax(wanted - 0.5 * log(pi * fmax(wanted, 0.5)), 0.5));
    for (int step = 0; step < 5; step++) {
        const double scaled = scaled_erfc(y);
        y -= (fma(y, y, -wanted) - log(scaled)) * (0.5 * sqrt_pi) * scaled;
    }
    return x < 1.0 ? y : -y;
}

// --- normal distribution function, erfc(-x / sqrt(2)) / 2

COPPERMESH_FUNCTION double normal(double x) {
    const double low = -4.83364665672645672553e-17;  // of sqrt(1/2) beyond `sqrt_half`
    const double t = -x * sqrt_half;
    if (!(t > 1.0)) return 0.5 * erfc(t);
    if (t > 28.0) return 0.0;
    // erfc magnifies the argument's rounding by about 2 t^2: taken back to first order (7.1.13 bounds the slope).
    const double rest = fma(-x, sqrt_half, -t) - x * low;
    return 0.5 * erfc(t) * (1.0 - rest * (t + sqrt(t * t + 4.0 / pi)));
}

// --- modified Bessel functions of the first kind: power series (9.6.10) or asymptotic series (9.7.1)

COPPERMESH_FUNCTION double bessel_i(int order, double x) {
    const double size = fabs(x);
    double result;
    if (size < 30.0) {
        const double quarter = 0.25 * size * size;
        double term = order ? 0.5 * size : 1.0, sum = term;
        for (int k = 1; k < 200 && term > sum * 1e-18; k++) {
            term *= quarter / ((double)k * (k + order));
            sum += term;
        }
        result = sum;
    } else {
        double term = 1.0, sum = 1.0;
        for (int k = 1; k < 30 && fabs(term) > 1e-18; k++) {
            const double odd = 2 * k - 1;
            term *= (odd * odd - 4.0 * order * order) / (8.0 * k * size);
            sum += term;
        }
        const double half = exp(0.5 * size);  // exp(x) overflows before the result does
        result = half * (sum / sqrt(2.0 * pi * size)) * half;
    }
    return order && x < 0.0 ? -result : x != x ? x : result;
}
}  // namespace coppermesh

// --- the names: double, float with its suffix, and float by overload

#define COPPERMESH_SPECIAL1(name, value)                                                                   \
    COPPERMESH_INLINE double name(double x) { return value; }                                              \
    COPPERMESH_INLINE float name##f(float single) {                                                        \
        const double x = single;                                                                           \
        return (float)(value);                                                                             \
    }                                                                                                      \
    COPPERMESH_INLINE float name(float x) { return name##f(x); }
COPPERMESH_SPECIAL1(erfcx, coppermesh::scaled_erfc(x))
COPPERMESH_SPECIAL1(erfinv, coppermesh::inverse_erf(x))
COPPERMESH_SPECIAL1(erfcinv, coppermesh::inverse_erfc(x))
COPPERMESH_SPECIAL1(normcdf, coppermesh::normal(x))
COPPERMESH_SPECIAL1(normcdfinv, -coppermesh::inverse_erfc(2.0 * x) / coppermesh::sqrt_half)
COPPERMESH_SPECIAL1(cyl_bessel_i0, coppermesh::bessel_i(0, x))
COPPERMESH_SPECIAL1(cyl_bessel_i1, coppermesh::bessel_i(1, x))
COPPERMESH_SPECIAL1(rcbrt, 1.0 / cbrt(x))
#undef COPPERMESH_SPECIAL1

// The float one by float arithmetic: loops over it are vectorised.
COPPERMESH_INLINE double rsqrt(double x) { return 1.0 / sqrt(x); }
COPPERMESH_INLINE float rsqrtf(float x) { return 1.0f / sqrtf(x); }
COPPERMESH_INLINE float rsqrt(float x) { return rsqrtf(x); }

COPPERMESH_INLINE void sincospi(double x, double* s, double* c) { coppermesh::turn(x, s, c); }
COPPERMESH_INLINE void sincospif(float x, float* s, float* c) {
    double sine, cosine;
    coppermesh::turn(x, &sine, &cosine);
    *s = (float)sine, *c = (float)cosine;
}
COPPERMESH_INLINE void sincospi(float x, float* s, float* c) { sincospif(x, s, c); }
#define COPPERMESH_TURN(T, name, result)                                                                   \
    COPPERMESH_INLINE T name(T x) {                                                                        \
        double sine, cosine;                                                                               \
        coppermesh::turn(x, &sine, &cosine);                                                               \
        return (T)result;                                                                                  \
    }
COPPERMESH_TURN(double, sinpi, sine)
COPPERMESH_TURN(float, sinpif, sine)
COPPERMESH_TURN(float, sinpi, sine)
COPPERMESH_TURN(double, cospi, cosine)
COPPERMESH_TURN(float, cospif, cosine)
COPPERMESH_TURN(float, cospi, cosine)
#undef COPPERMESH_TURN

COPPERMESH_INLINE double norm(int count, const double* values) { return coppermesh::norm_of(count, values); }
COPPERMESH_INLINE double rnorm(int count, const double* values) { return 1.0 / norm(count, values); }
COPPERMESH_INLINE double norm3d(double x, double y, double z) {
    const double values[3] = {x, y, z};
    return norm(3, values);
}
COPPERMESH_INLINE double norm4d(double x, double y, double z, double w) {
    const double values[4] = {x, y, z, w};
    return norm(4, values);
}
COPPERMESH_INLINE double rhypot(double x, double y) { return 1.0 / hypot(x, y); }
COPPERMESH_INLINE double rnorm3d(double x, double y, double z) { return 1.0 / norm3d(x, y, z); }
COPPERMESH_INLINE double rnorm4d(double x, double y, double z, double w) { return 1.0 / norm4d(x, y, z, w); }

// Squares of floats fit a double, so the float norms need no scaling. An infinite part makes the norm infinite, even
// beside a NaN.
namespace coppermesh {
COPPERMESH_INLINE double norm_of(int count, const float* values) {
    double sum = 0.0;
    for (int i = 0; i < count; i++) {
        if (isinf(values[i])) return __builtin_inf();
        sum += (double)values[i] * (double)values[i];
    }
    return sqrt(sum);
}
}  // namespace coppermesh
COPPERMESH_INLINE float normf(int count, const float* values) { return (float)coppermesh::norm_of(count, values); }
COPPERMESH_INLINE float rnormf(int count, const float* values) {
    return (float)(1.0 / coppermesh::norm_of(count, values));
}
COPPERMESH_INLINE float norm(int count, const float* values) { return normf(count, values); }
COPPERMESH_INLINE float rnorm(int count, const float* values) { return rnormf(count, values); }
COPPERMESH_INLINE float norm3df(float x, float y, float z) {
    const float values[3] = {x, y, z};
    return normf(3, values);
}
COPPERMESH_INLINE float rnorm3df(float x, float y, float z) {
    const float values[3] = {x, y, z};
    return rnormf(3, values);
}
COPPERMESH_INLINE float norm4df(float x, float y, float z, float w) {
    const float values[4] = {x, y, z, w};
    return normf(4, values);
}
COPPERMESH_INLINE float rnorm4df(float x, float y, float z, float w) {
    const float values[4] = {x, y, z, w};
    return rnormf(4, values);
}
COPPERMESH_INLINE float rhypotf(float x, float y) {
    const float values[2] = {x, y};
    return rnormf(2, values);
}
COPPERMESH_INLINE float rhypot(float x, float y) { return rhypotf(x, y); }
