// CUDA's complex numbers in C form: cuFloatComplex is float2, cuDoubleComplex is double2.
#pragma once
#include "coppermesh_complex.h"

typedef float2 cuFloatComplex;
typedef double2 cuDoubleComplex;
typedef cuFloatComplex cuComplex;

#define COPPERMESH_C_COMPLEX(C, T, f, make)                                                                \
    COPPERMESH_INLINE C make(T re, T im) { return C{re, im}; }                                             \
    COPPERMESH_INLINE T cuCreal##f(C z) { return z.x; }                                                    \
    COPPERMESH_INLINE T cuCimag##f(C z) { return z.y; }                                                    \
    COPPERMESH_INLINE C cuConj##f(C z) { return C{z.x, -z.y}; }                                            \
    COPPERMESH_INLINE C cuCadd##f(C a, C b) { return C{a.x + b.x, a.y + b.y}; }                            \
    COPPERMESH_INLINE C cuCsub##f(C a, C b) { return C{a.x - b.x, a.y - b.y}; }                            \
    COPPERMESH_INLINE C cuCmul##f(C a, C b) { return C{a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x}; }    \
    COPPERMESH_INLINE C cuCfma##f(C a, C b, C c) { return cuCadd##f(cuCmul##f(a, b), c); }                 \
    COPPERMESH_INLINE T cuCabs##f(C z) { return hypot(z.x, z.y); }                                         \
    COPPERMESH_INLINE C cuCdiv##f(C a, C b) {                                                              \
        const thrust::complex<T> q = thrust::complex<T>(a.x, a.y) / thrust::complex<T>(b.x, b.y);          \
        return C{q.real(), q.imag()};                                                                      \
    }
COPPERMESH_C_COMPLEX(cuFloatComplex, float, f, make_cuFloatComplex)
COPPERMESH_C_COMPLEX(cuDoubleComplex, double, , make_cuDoubleComplex)
#undef COPPERMESH_C_COMPLEX

COPPERMESH_INLINE cuComplex make_cuComplex(float re, float im) { return cuComplex{re, im}; }
COPPERMESH_INLINE cuDoubleComplex cuComplexFloatToDouble(cuFloatComplex z) { return cuDoubleComplex{z.x, z.y}; }
COPPERMESH_INLINE cuFloatComplex cuComplexDoubleToFloat(cuDoubleComplex z) {
    return cuFloatComplex{(float)z.x, (float)z.y};
}
