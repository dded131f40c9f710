// Double-precision functions that libm lacks or that answer through pointers: one row of results per function.
extern "C" __global__ void functions(const double* x, double* out, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const double v = x[i];
    double s, c, whole;
    int exponent;
    sincospi(v, &s, &c);
    const double fraction = modf(v, &whole), mantissa = frexp(v, &exponent);
    const double results[12] = {s,          c,           rsqrt(v),           rcbrt(v),     normcdf(v - 1.0), erfinv(v / 4.0),
                                norm3d(v, 1.0, 2.0), rhypot(v, 3.0), exp10(v), mantissa + exponent,
                                fraction + whole * 8.0, cyl_bessel_i0(v)};
    for (int k = 0; k < 12; ++k) out[k * n + i] = results[k];
}
