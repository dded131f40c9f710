// Templates: type and non-type arguments, specialisation, variadic packs, functors, lambdas, constexpr if.
template <int width> struct Polynomial {
    template <typename T> static __device__ T value(const T* c, T x) {
        return Polynomial<width - 1>::value(c + 1, x) * x + c[0];
    }
};
template <> struct Polynomial<1> {
    template <typename T> static __device__ T value(const T* c, T) { return c[0]; }
};

template <typename T> __device__ T total() { return T(0); }
template <typename T, typename... Rest> __device__ T total(T first, Rest... rest) { return first + total<T>(rest...); }

struct Scale {
    double by;
    __device__ double operator()(double x) const { return by * x; }
};
template <typename F> __device__ auto twice(F f, double x) -> decltype(f(x)) { return f(f(x)); }

template <bool negative, typename T> __device__ T signed_by(T x) {
    if constexpr (negative)
        return -x;
    else
        return x;
}

extern "C" __global__ void evaluate(const double* coefficients, const double* x, double* out, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const double shift = total(1.0, 2.0, 3.0);
    auto shifted = [shift, i](double v) { return v + shift * i; };
    out[i] = Polynomial<5>::value(coefficients, x[i]) + signed_by<true>(twice(Scale{0.5}, shifted(x[i])));
}
