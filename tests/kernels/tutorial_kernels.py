# ruff: noqa: E501  # kernels are easier to read on one line
"""Kernels in the styles of CuPy's documentation, CUDA's samples, and PyCUDA's and Numba's tutorials, against NumPy.

Written for this project; each function gives pairs of a lazy array and what NumPy says it is.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

import coppermesh as cm

xp = cm.xp
Pairs = list[tuple[Any, Any]]
TUTORIALS: dict[str, Callable[[], Pairs]] = {}
f4, f8, i4, i8, u1, u4, c8, c16 = (
    np.dtype(name) for name in ("f4", "f8", "i4", "i8", "u1", "u4", "c8", "c16")
)


def tutorial(function: Callable[[], Pairs]) -> Callable[[], Pairs]:
    """Add it to the table."""
    TUTORIALS[function.__name__] = function
    return function


def numbers(*shape: int, dtype: Any = f4, seed: int = 1) -> np.ndarray[Any, Any]:
    """Random numbers from 0 to 1."""
    return np.random.default_rng(seed).random(shape).astype(dtype)


# --- ElementwiseKernel


@tutorial
def squared_diff() -> Pairs:
    kernel = cm.ElementwiseKernel(
        "float32 x, float32 y", "float32 z", "z = (x - y) * (x - y)", "squared_diff"
    )
    x, y = np.arange(10, dtype=f4).reshape(2, 5), np.arange(5, dtype=f4)
    return [(kernel(xp.asarray(x), xp.asarray(y)), (x - y) ** 2), (kernel(xp.asarray(x), 5), (x - 5) ** 2)]


@tutorial
def generic_types_and_temporaries() -> Pairs:
    kernel = cm.ElementwiseKernel(
        "T x, T y", "T z", "T diff = x - y; z = diff * diff;", "squared_diff_generic"
    )
    x, y = numbers(7, dtype=f8), numbers(7, dtype=f8, seed=2)
    i = np.arange(7)
    return [
        (kernel(xp.asarray(x), xp.asarray(y)), (x - y) ** 2),
        (kernel(xp.asarray(i), xp.asarray(i * 2)), i * i),
    ]


@tutorial
def super_generic() -> Pairs:
    kernel = cm.ElementwiseKernel("X x, Y y", "Z z", "z = (x - y) * (x - y)", "squared_diff_super_generic")
    x, y = np.arange(5, dtype=f4), np.arange(5, dtype=f8) / 3
    out = xp.zeros(5, dtype=f8)
    return [(kernel(xp.asarray(x), xp.asarray(y), out), (x - y) ** 2)]


@tutorial
def raw_reversed_sum() -> Pairs:
    kernel = cm.ElementwiseKernel("T x, raw T y", "T z", "z = x + y[_ind.size() - i - 1]", "add_reverse")
    x, y = numbers(9), numbers(9, seed=2)
    return [(kernel(xp.asarray(x), xp.asarray(y)), x + y[::-1])]


@tutorial
def raw_gather_with_size() -> Pairs:
    kernel = cm.ElementwiseKernel("raw T x, int64 n", "T y", "y = x[(i * 7) % n] + x[n - 1]", "gather")
    x = numbers(11)
    return [(kernel(xp.asarray(x), 11, size=20), x[(np.arange(20) * 7) % 11] + x[10])]


@tutorial
def raw_output_scatter() -> Pairs:
    kernel = cm.ElementwiseKernel("T x, int32 at", "raw T y", "y[at] = x", "scatter")
    x, at = numbers(8), np.random.default_rng(3).permutation(8).astype(i4)
    out = xp.zeros(8, dtype=f4)
    expected = np.zeros(8, f4)
    expected[at] = x
    return [(kernel(xp.asarray(x), xp.asarray(at), out), expected)]


@tutorial
def two_outputs() -> Pairs:
    kernel = cm.ElementwiseKernel("T x", "T s, T c", "s = sin(x); c = cos(x);", "sincos_both")
    x = numbers(6, dtype=f8)
    both: Any = kernel(xp.asarray(x))
    s, c = both
    return [(s, np.sin(x)), (c, np.cos(x))]


@tutorial
def preamble_function() -> Pairs:
    kernel = cm.ElementwiseKernel(
        "T x", "T y", "y = my_clamp(x, T(0.25), T(0.75))", "clamp_all",
        preamble="template <typename T> __device__ T my_clamp(T v, T lo, T hi) { return v < lo ? lo : v > hi ? hi : v; }",
    )  # fmt: skip
    x = numbers(4, 5)
    return [(kernel(xp.asarray(x)), np.clip(x, 0.25, 0.75))]


@tutorial
def place_by_get() -> Pairs:
    kernel = cm.ElementwiseKernel(
        "T x", "T y", "const ptrdiff_t* p = _ind.get(); y = x + 10 * p[0] + p[_ind.ndim - 1]", "place", doc="x + 10 row + column",
        reduce_dims=False,
    )  # fmt: skip
    x = numbers(3, 4)
    rows, columns = np.mgrid[0:3, 0:4]
    assert kernel.__doc__ == "x + 10 row + column"
    return [(kernel(xp.asarray(x)), (x + 10 * rows + columns).astype(f4))]


@tutorial
def index_of_two_dimensions() -> Pairs:
    kernel = cm.ElementwiseKernel(
        "raw T a",
        "T b",
        "ptrdiff_t row = i / a.shape()[1], col = i % a.shape()[1]; b = a[i] + 10 * row + col;",
        "rowcol",
    )
    a = numbers(3, 4, dtype=f8)
    expected = a + 10 * np.arange(3)[:, None] + np.arange(4)
    flat: Any = kernel(xp.asarray(a), size=12)
    return [(flat.reshape(3, 4), expected)]


@tutorial
def conditional_return() -> Pairs:
    kernel = cm.ElementwiseKernel("T x", "T y", "if (x < 0.5f) { y = 0; return; } y = 1 / x;", "thresholded")
    x = numbers(30)
    return [(kernel(xp.asarray(x)), np.where(x < np.float32(0.5), np.float32(0), 1 / x))]


@tutorial
def complex_elementwise() -> Pairs:
    kernel = cm.ElementwiseKernel("T z, T w", "T o", "o = z * conj(w) + T(1, 2)", "conj_product")
    z = (numbers(6) + 1j * numbers(6, seed=2)).astype(c8)
    w = (numbers(6, seed=3) - 1j * numbers(6, seed=4)).astype(c8)
    return [(kernel(xp.asarray(z), xp.asarray(w)), z * w.conj() + (1 + 2j))]


@tutorial
def booleans_and_bytes() -> Pairs:
    kernel = cm.ElementwiseKernel("bool m, uint8 a, uint8 b", "uint8 o", "o = m ? a : b", "choose")
    m = numbers(50) > 0.5
    a, b = np.arange(50, dtype=u1), np.arange(50, 100, dtype=u1)
    return [(kernel(xp.asarray(m), xp.asarray(a), xp.asarray(b)), np.where(m, a, b))]


@tutorial
def strided_inputs() -> Pairs:
    kernel = cm.ElementwiseKernel("T x, T y", "T z", "z = x - 2 * y", "strided")
    a = numbers(8, 6, dtype=f8)
    return [(kernel(xp.asarray(a)[::2, 1::2], xp.asarray(a)[1::2, ::2]), a[::2, 1::2] - 2 * a[1::2, ::2])]


@tutorial
def transposed_and_broadcast() -> Pairs:
    kernel = cm.ElementwiseKernel("T x, T y, T s", "T z", "z = s * x + y", "axpy")
    a, b = numbers(4, 3, dtype=f8), numbers(4, dtype=f8, seed=2)
    return [(kernel(xp.asarray(a).T, xp.asarray(b), 3.0), 3 * a.T + b)]


@tutorial
def with_options_and_define() -> Pairs:
    kernel = cm.ElementwiseKernel("T x", "T y", "y = x * SCALE", "scaled", options=("-DSCALE=3",))
    x = numbers(5)
    return [(kernel(xp.asarray(x)), x * 3)]


# --- ReductionKernel


@tutorial
def l2norm() -> Pairs:
    kernel = cm.ReductionKernel("T x", "T y", "x * x", "a + b", "y = sqrt(a)", "0", "l2norm")
    x = np.arange(10, dtype=f4).reshape(2, 5)
    return [
        (kernel(xp.asarray(x), axis=1), np.linalg.norm(x, axis=1)),
        (kernel(xp.asarray(x)), np.linalg.norm(x)),
        (kernel(xp.asarray(x), axis=0, keepdims=True), np.linalg.norm(x, axis=0, keepdims=True)),
    ]


@tutorial
def weighted_mean_of_rows() -> Pairs:
    kernel = cm.ReductionKernel(
        "T x, T w",
        "T y",
        "x * w",
        "a + b",
        "y = a / (_in_ind.size() / _out_ind.size())",
        "0",
        "weighted_mean",
    )
    x, w = numbers(4, 6, dtype=f8), numbers(6, dtype=f8, seed=2)
    return [(kernel(xp.asarray(x), xp.asarray(w), axis=1), (x * w).mean(1))]


@tutorial
def largest_absolute() -> Pairs:
    kernel = cm.ReductionKernel("T x", "T y", "abs(x)", "max(a, b)", "y = a", "0", "max_abs")
    x = numbers(7, 5, dtype=f8) - 0.5
    return [
        (kernel(xp.asarray(x), axis=(0, 1)), np.abs(x).max()),
        (kernel(xp.asarray(x), axis=0), np.abs(x).max(0)),
    ]


@tutorial
def all_true() -> Pairs:
    kernel = cm.ReductionKernel("T x", "bool y", "x > 0", "a && b", "y = a", "true", "all_positive")
    x = numbers(5, 4) - 0.1
    return [(kernel(xp.asarray(x), axis=1), (x > 0).all(1))]


@tutorial
def log_sum_exp_with_types() -> Pairs:
    kernel = cm.ReductionKernel(
        "float32 x",
        "float32 y",
        "exp((double)x)",
        "a + b",
        "y = log(a)",
        "0",
        "log_sum_exp",
        reduce_type="double",
    )
    x = numbers(3, 40)
    return [(kernel(xp.asarray(x), axis=1), np.log(np.exp(x.astype(f8)).sum(1)).astype(f4))]


@tutorial
def arg_of_the_largest() -> Pairs:
    kernel = cm.ReductionKernel(
        "T x", "int64 y", "best<T>{x, (long long)_j}", "pick(a, b)", "y = a.at", "best<T>{(T)-1e30, -1}", "arg_largest",
        reduce_type="best<T>",
        preamble="""template <typename T> struct best { T v; long long at; };
        template <typename T> __device__ best<T> pick(const best<T>& a, const best<T>& b) { return a.v >= b.v ? a : b; }""",
    )  # fmt: skip
    x = numbers(50, dtype=f8)
    return [(kernel(xp.asarray(x)), np.argmax(x))]


# --- RawKernel and RawModule


@tutorial
def my_add() -> Pairs:
    kernel = cm.RawKernel(
        r"""extern "C" __global__
        void my_add(const float* x1, const float* x2, float* y) {
            int tid = blockDim.x * blockIdx.x + threadIdx.x;
            y[tid] = x1[tid] + x2[tid];
        }""",
        "my_add",
    )
    x = numbers(5, 5)
    y = xp.zeros((5, 5), dtype=f4)
    kernel((5,), (5,), (xp.asarray(x), xp.asarray(x * 2), y))
    return [(y, x + x * 2)]


@tutorial
def complex_raw() -> Pairs:
    kernel = cm.RawKernel(
        r"""#include <cupy/complex.cuh>
        extern "C" __global__ void my_func(const complex<float>* x1, const complex<float>* x2, complex<float>* y, float a) {
            int tid = blockDim.x * blockIdx.x + threadIdx.x;
            y[tid] = x1[tid] + a * x2[tid];
        }""",
        "my_func",
    )
    x = (numbers(25) + 1j * numbers(25, seed=5)).astype(c8)
    y = xp.zeros(25, dtype=c8)
    kernel((5,), (5,), (xp.asarray(x), xp.asarray(x), y, np.float32(2.0)))
    return [(y, x + 2 * x)]


@tutorial
def module_of_several() -> Pairs:
    module = cm.RawModule(
        code=r"""extern "C" {
        __global__ void test_sum(const float* x1, const float* x2, float* y, unsigned int N) {
            unsigned int tid = blockDim.x * blockIdx.x + threadIdx.x;
            if (tid < N) y[tid] = x1[tid] + x2[tid];
        }
        __global__ void test_multiply(const float* x1, const float* x2, float* y, unsigned int N) {
            unsigned int tid = blockDim.x * blockIdx.x + threadIdx.x;
            if (tid < N) y[tid] = x1[tid] * x2[tid];
        }}"""
    )
    x = np.arange(100, dtype=f4)
    y, z = xp.zeros(100, dtype=f4), xp.zeros(100, dtype=f4)
    module.get_function("test_sum")((4,), (32,), (xp.asarray(x), xp.asarray(x), y, 100))
    module.get_function("test_multiply")((4,), (32,), (xp.asarray(x), xp.asarray(x), z, 100))
    return [(y, 2 * x), (z, x * x)]


@tutorial
def templates_by_name() -> Pairs:
    names = ["fx3<int>", "fx3<double>", "ops::scale<float, 4>"]
    module = cm.RawModule(
        code=r"""template <typename T> __global__ void fx3(T* arr, int N) {
            int xid = blockDim.x * blockIdx.x + threadIdx.x;
            if (xid < N) arr[xid] = arr[xid] * 3;
        }
        namespace ops { template <typename T, int K> __global__ void scale(T* a, int n) {
            for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) a[i] *= K;
        } }""",
        options=("-std=c++11",), name_expressions=names,
    )  # fmt: skip
    pairs: Pairs = []
    for name, dtype, factor in zip(names, (i4, f8, f4), (3, 3, 4), strict=True):
        a = xp.asarray(np.arange(40, dtype=dtype))
        module.get_function(name)((2,), (32,), (a, 40))
        pairs.append((a, np.arange(40, dtype=dtype) * factor))
    return pairs


@tutorial
def global_memory_of_a_module() -> Pairs:
    module = cm.RawModule(
        code=r"""extern "C" {
        __constant__ float coefficients[4];
        __device__ int calls;
        __global__ void poly(const float* x, float* y, int n) {
            int i = blockIdx.x * blockDim.x + threadIdx.x;
            if (i == 0) atomicAdd(&calls, 1);
            if (i < n) y[i] = ((coefficients[3] * x[i] + coefficients[2]) * x[i] + coefficients[1]) * x[i] + coefficients[0];
        } }"""
    )
    x = numbers(70)
    pointer = module.get_global("coefficients")
    table = xp.ndarray(4, dtype=f4, memptr=pointer)
    table[...] = xp.asarray(np.array([1, 2, 3, 4], f4))
    y = xp.zeros(70, dtype=f4)
    module.get_function("poly")((2,), (64,), (xp.asarray(x), y, 70))
    return [(y, ((4 * x + 3) * x + 2) * x + 1)]


@tutorial
def structure_by_value() -> Pairs:
    kernel = cm.RawKernel(
        r"""struct Params { float a; int n; double b; };
        extern "C" __global__ void k(const float* x, double* y, Params p) {
            int i = blockDim.x * blockIdx.x + threadIdx.x; if (i < p.n) y[i] = p.a * x[i] + p.b; }""",
        "k",
    )
    x = numbers(20)
    params = np.zeros(1, np.dtype([("a", "f4"), ("n", "i4"), ("b", "f8")], align=True))
    params[0] = (2.0, 20, 0.5)
    y = xp.zeros(20, dtype=f8)
    kernel((1,), (32,), (xp.asarray(x), y, params[0]))
    return [(y, (np.float32(2) * x).astype(f8) + 0.5)]


@tutorial
def vector_add_sample() -> Pairs:
    kernel = cm.RawKernel(
        r"""extern "C" __global__ void vectorAdd(const float *A, const float *B, float *C, int numElements) {
            int i = blockDim.x * blockIdx.x + threadIdx.x;
            if (i < numElements) { C[i] = A[i] + B[i] + 0.0f; }
        }""",
        "vectorAdd",
    )
    a, b = numbers(50_000), numbers(50_000, seed=2)
    c = xp.zeros(50_000, dtype=f4)
    kernel(((50_000 + 255) // 256,), (256,), (xp.asarray(a), xp.asarray(b), c, 50_000))
    return [(c, a + b)]


@tutorial
def matrix_multiply_sample() -> Pairs:
    module = cm.RawModule(
        code=r"""template <int BLOCK_SIZE> __global__ void MatrixMulCUDA(float *C, const float *A, const float *B, int wA, int wB) {
            int bx = blockIdx.x, by = blockIdx.y, tx = threadIdx.x, ty = threadIdx.y;
            int aBegin = wA * BLOCK_SIZE * by, aEnd = aBegin + wA - 1, aStep = BLOCK_SIZE;
            int bBegin = BLOCK_SIZE * bx, bStep = BLOCK_SIZE * wB;
            float Csub = 0;
            for (int a = aBegin, b = bBegin; a <= aEnd; a += aStep, b += bStep) {
                __shared__ float As[BLOCK_SIZE][BLOCK_SIZE];
                __shared__ float Bs[BLOCK_SIZE][BLOCK_SIZE];
                As[ty][tx] = A[a + wA * ty + tx];
                Bs[ty][tx] = B[b + wB * ty + tx];
                __syncthreads();
        #pragma unroll
                for (int k = 0; k < BLOCK_SIZE; ++k) Csub += As[ty][k] * Bs[k][tx];
                __syncthreads();
            }
            int c = wB * BLOCK_SIZE * by + BLOCK_SIZE * bx;
            C[c + wB * ty + tx] = Csub;
        }""",
        name_expressions=["MatrixMulCUDA<16>"],
    )
    a, b = numbers(48, 64), numbers(64, 32, seed=2)
    c = xp.zeros((48, 32), dtype=f4)
    module.get_function("MatrixMulCUDA<16>")((2, 3), (16, 16), (c, xp.asarray(a), xp.asarray(b), 64, 32))
    return [(c, a @ b)]


@tutorial
def reduction_in_a_device_function() -> Pairs:
    kernel = cm.RawKernel(
        r"""__device__ void warpReduce(volatile float* sdata, int tid) {
            for (int s = 32; s > 0; s >>= 1) { if (tid < s) sdata[tid] += sdata[tid + s]; __syncthreads(); }
        }
        extern "C" __global__ void reduce(const float* g_idata, float* g_odata, unsigned int n) {
            __shared__ float sdata[256];
            unsigned int tid = threadIdx.x, i = blockIdx.x * blockDim.x * 2 + threadIdx.x;
            sdata[tid] = (i < n ? g_idata[i] : 0) + (i + blockDim.x < n ? g_idata[i + blockDim.x] : 0);
            __syncthreads();
            for (unsigned int s = blockDim.x / 2; s > 32; s >>= 1) { if (tid < s) sdata[tid] += sdata[tid + s]; __syncthreads(); }
            warpReduce(sdata, tid);
            if (tid == 0) g_odata[blockIdx.x] = sdata[0];
        }""",
        "reduce",
    )
    x = np.arange(2000, dtype=f4) % 17
    y = xp.zeros(4, dtype=f4)
    kernel((4,), (256,), (xp.asarray(x), y, 2000))
    return [(y, np.add.reduceat(x, [0, 512, 1024, 1536]))]


@tutorial
def transpose_sample() -> Pairs:
    kernel = cm.RawKernel(
        r"""#define TILE_DIM 32
        #define BLOCK_ROWS 8
        extern "C" __global__ void transposeNoBankConflicts(float *odata, float *idata, int width, int height) {
            __shared__ float tile[TILE_DIM][TILE_DIM + 1];
            int xIndex = blockIdx.x * TILE_DIM + threadIdx.x, yIndex = blockIdx.y * TILE_DIM + threadIdx.y;
            int index_in = xIndex + yIndex * width;
            xIndex = blockIdx.y * TILE_DIM + threadIdx.x; yIndex = blockIdx.x * TILE_DIM + threadIdx.y;
            int index_out = xIndex + yIndex * height;
            for (int i = 0; i < TILE_DIM; i += BLOCK_ROWS) tile[threadIdx.y + i][threadIdx.x] = idata[index_in + i * width];
            __syncthreads();
            for (int i = 0; i < TILE_DIM; i += BLOCK_ROWS) odata[index_out + i * height] = tile[threadIdx.x][threadIdx.y + i];
        }""",
        "transposeNoBankConflicts",
    )
    a = numbers(64, 96)
    out = xp.zeros((96, 64), dtype=f4)
    kernel((3, 2), (32, 8), (out, xp.asarray(a), 96, 64))
    return [(out, a.T)]


@tutorial
def dot_product_by_example() -> Pairs:
    kernel = cm.RawKernel(
        r"""const int threadsPerBlock = 128;
        extern "C" __global__ void dot(float *a, float *b, float *c, int N) {
            __shared__ float cache[threadsPerBlock];
            int tid = threadIdx.x + blockIdx.x * blockDim.x, cacheIndex = threadIdx.x;
            float temp = 0;
            while (tid < N) { temp += a[tid] * b[tid]; tid += blockDim.x * gridDim.x; }
            cache[cacheIndex] = temp;
            __syncthreads();
            int i = blockDim.x / 2;
            while (i != 0) { if (cacheIndex < i) cache[cacheIndex] += cache[cacheIndex + i]; __syncthreads(); i /= 2; }
            if (cacheIndex == 0) c[blockIdx.x] = cache[0];
        }""",
        "dot",
    )
    a = np.arange(3000, dtype=f4) % 5
    c = xp.zeros(8, dtype=f4)
    kernel((8,), (128,), (xp.asarray(a), xp.asarray(a), c, 3000))
    return [(c.sum(), (a * a).sum())]


@tutorial
def julia_set_by_example() -> Pairs:
    kernel = cm.RawKernel(
        r"""struct cuComplexF { float r; float i;
            __device__ cuComplexF(float a, float b) : r(a), i(b) {}
            __device__ float magnitude2(void) { return r * r + i * i; }
            __device__ cuComplexF operator*(const cuComplexF& a) { return cuComplexF(r * a.r - i * a.i, i * a.r + r * a.i); }
            __device__ cuComplexF operator+(const cuComplexF& a) { return cuComplexF(r + a.r, i + a.i); } };
        __device__ int julia(int x, int y, int dim) {
            float jx = 1.5f * (float)(dim / 2 - x) / (dim / 2), jy = 1.5f * (float)(dim / 2 - y) / (dim / 2);
            cuComplexF c(-0.8f, 0.156f), a(jx, jy);
            for (int i = 0; i < 50; i++) { a = a * a + c; if (a.magnitude2() > 1000) return 0; }
            return 1;
        }
        extern "C" __global__ void kernel(unsigned char *ptr, int dim) {
            int x = blockIdx.x, y = blockIdx.y, offset = x + y * gridDim.x;
            int juliaValue = julia(x, y, dim);
            ptr[offset * 4 + 0] = 255 * juliaValue; ptr[offset * 4 + 1] = 0; ptr[offset * 4 + 2] = 0; ptr[offset * 4 + 3] = 255;
        }""",
        "kernel",
    )
    dim = 48
    out = xp.zeros((dim, dim, 4), dtype=u1)
    kernel((dim, dim), (1,), (out, dim))
    y, x = np.mgrid[0:dim, 0:dim]
    half = np.float32(dim // 2)
    r = (np.float32(1.5) * (dim // 2 - x).astype(f4) / half).astype(f4)
    i = (np.float32(1.5) * (dim // 2 - y).astype(f4) / half).astype(f4)
    inside = np.ones((dim, dim), bool)
    with np.errstate(all="ignore"):
        for _ in range(50):
            r, i = (r * r - i * i) + np.float32(-0.8), (i * r + r * i) + np.float32(0.156)
            inside &= ~(r * r + i * i > 1000)
    expected = np.zeros((dim, dim, 4), u1)
    expected[..., 0], expected[..., 3] = 255 * inside, 255
    return [(out, expected)]


@tutorial
def ripple_by_example() -> Pairs:
    kernel = cm.RawKernel(
        r"""extern "C" __global__ void ripple(float *ptr, int DIM, int ticks) {
            int x = threadIdx.x + blockIdx.x * blockDim.x;
            int y = threadIdx.y + blockIdx.y * blockDim.y;
            int offset = x + y * blockDim.x * gridDim.x;
            float fx = x - DIM / 2, fy = y - DIM / 2;
            float d = sqrtf(fx * fx + fy * fy);
            ptr[offset] = 128.0f + 127.0f * cosf(d / 10.0f - ticks / 7.0f) / (d / 10.0f + 1.0f);
        }""",
        "ripple",
    )
    out = xp.zeros((64, 64), dtype=f4)
    kernel((4, 4), (16, 16), (out, 64, 3))
    y, x = np.mgrid[0:64, 0:64]
    d = np.hypot(x - 32, y - 32)
    return [(out, (128 + 127 * np.cos(d / 10 - 3 / 7) / (d / 10 + 1)).astype(f4))]


@tutorial
def histogram_by_example() -> Pairs:
    kernel = cm.RawKernel(
        r"""extern "C" __global__ void histo_kernel(unsigned char *buffer, long size, unsigned int *histo) {
            __shared__ unsigned int temp[256];
            temp[threadIdx.x] = 0;
            __syncthreads();
            int i = threadIdx.x + blockIdx.x * blockDim.x, stride = blockDim.x * gridDim.x;
            while (i < size) { atomicAdd(&temp[buffer[i]], 1); i += stride; }
            __syncthreads();
            atomicAdd(&(histo[threadIdx.x]), temp[threadIdx.x]);
        }""",
        "histo_kernel",
    )
    data = np.random.default_rng(4).integers(0, 256, 10_000).astype(u1)
    out = xp.zeros(256, dtype=u4)
    kernel((4,), (256,), (xp.asarray(data), 10_000, out))
    return [(out, np.bincount(data, minlength=256).astype(u4))]


@tutorial
def heat_with_constant_sources() -> Pairs:
    kernel = cm.RawKernel(
        r"""#define SPEED 0.25f
        extern "C" __global__ void blend_kernel(float *dst, const float *src, int DIM) {
            int x = threadIdx.x + blockIdx.x * blockDim.x, y = threadIdx.y + blockIdx.y * blockDim.y;
            int offset = x + y * blockDim.x * gridDim.x;
            int left = offset - 1, right = offset + 1;
            if (x == 0) left++;
            if (x == DIM - 1) right--;
            int top = offset - DIM, bottom = offset + DIM;
            if (y == 0) top += DIM;
            if (y == DIM - 1) bottom -= DIM;
            dst[offset] = src[offset] + SPEED * (src[top] + src[bottom] + src[left] + src[right] - src[offset] * 4);
        }""",
        "blend_kernel",
    )
    a = numbers(32, 32)
    out = xp.zeros((32, 32), dtype=f4)
    kernel((2, 2), (16, 16), (out, xp.asarray(a), 32))
    p = np.pad(a, 1, mode="edge")
    expected = a + np.float32(0.25) * (p[:-2, 1:-1] + p[2:, 1:-1] + p[1:-1, :-2] + p[1:-1, 2:] - a * 4)
    return [(out, expected)]


@tutorial
def double_it_of_pycuda() -> Pairs:
    kernel = cm.RawKernel(
        """__global__ void doublify_(float *a) { int idx = threadIdx.x + threadIdx.y*4; a[idx] *= 2; }
        extern "C" __global__ void doublify(float *a) { int idx = threadIdx.x + threadIdx.y*4; a[idx] *= 2; }""",
        "doublify",
    )
    a = numbers(4, 4)
    b = xp.asarray(a)
    kernel((1,), (4, 4, 1), (b,))
    return [(b, a * 2)]


@tutorial
def mandelbrot_of_numba() -> Pairs:
    kernel = cm.RawKernel(
        r"""__device__ int mandel(double x, double y, int max_iters) {
            double cr = x, ci = y, zr = 0, zi = 0;
            for (int i = 0; i < max_iters; i++) {
                double t = zr * zr - zi * zi + cr; zi = 2 * zr * zi + ci; zr = t;
                if ((zr * zr + zi * zi) >= 4) return i;
            }
            return max_iters;
        }
        extern "C" __global__ void mandel_kernel(double min_x, double max_x, double min_y, double max_y, unsigned char* image, int height, int width, int iters) {
            double pixel_size_x = (max_x - min_x) / width, pixel_size_y = (max_y - min_y) / height;
            int startX = blockDim.x * blockIdx.x + threadIdx.x, startY = blockDim.y * blockIdx.y + threadIdx.y;
            int gridX = gridDim.x * blockDim.x, gridY = gridDim.y * blockDim.y;
            for (int x = startX; x < width; x += gridX) {
                double real = min_x + x * pixel_size_x;
                for (int y = startY; y < height; y += gridY) {
                    double imag = min_y + y * pixel_size_y;
                    image[y * width + x] = mandel(real, imag, iters);
                }
            }
        }""",
        "mandel_kernel",
    )
    out = xp.zeros((40, 60), dtype=u1)
    kernel((2, 1), (8, 8), (-2.0, 1.0, -1.0, 1.0, out, 40, 60, 20))
    x, y = -2.0 + np.arange(60) * (3.0 / 60), -1.0 + np.arange(40) * (2.0 / 40)
    c = x[None, :] + 1j * y[:, None]
    z, count = np.zeros_like(c), np.full(c.shape, 20)
    with np.errstate(all="ignore"):
        for n in range(20):
            z = (z.real * z.real - z.imag * z.imag + c.real) + 1j * (2 * z.real * z.imag + c.imag)
            count[(count == 20) & (z.real**2 + z.imag**2 >= 4)] = n
    return [(out, count.astype(u1))]


@tutorial
def monte_carlo_with_own_generator() -> Pairs:
    kernel = cm.RawKernel(
        r"""__device__ unsigned int xorshift(unsigned int &s) { s ^= s << 13; s ^= s >> 17; s ^= s << 5; return s; }
        extern "C" __global__ void throws(unsigned int* out, int n, int each) {
            int i = blockIdx.x * blockDim.x + threadIdx.x;
            if (i >= n) return;
            unsigned int state = 2463534242u + i * 747796405u, last = 0;
            for (int k = 0; k < each; ++k) last = xorshift(state);
            out[i] = last;
        }""",
        "throws",
    )
    out = xp.zeros(100, dtype=u4)
    kernel((2,), (64,), (out, 100, 5))
    state = (2463534242 + np.arange(100, dtype=np.uint64) * 747796405).astype(u4)
    for _ in range(5):
        state ^= state << u4.type(13)
        state ^= state >> u4.type(17)
        state ^= state << u4.type(5)
    return [(out, state)]


@tutorial
def row_sums_by_a_block_each() -> Pairs:
    kernel = cm.RawKernel(
        r"""extern "C" __global__ void rowsum(const double* __restrict__ a, double* __restrict__ out, int cols) {
            extern __shared__ double buf[];
            const int row = blockIdx.x;
            double s = 0;
            for (int c = threadIdx.x; c < cols; c += blockDim.x) s += a[row * cols + c];
            buf[threadIdx.x] = s;
            __syncthreads();
            for (int k = blockDim.x / 2; k; k /= 2) { if (threadIdx.x < k) buf[threadIdx.x] += buf[threadIdx.x + k]; __syncthreads(); }
            if (!threadIdx.x) out[row] = buf[0];
        }""",
        "rowsum",
    )
    a = numbers(9, 100, dtype=f8)
    out = xp.zeros(9, dtype=f8)
    kernel((9,), (32,), (xp.asarray(a), out, 100), shared_mem=32 * 8)
    return [(out, a.sum(1))]


@tutorial
def warp_sum_by_shuffles() -> Pairs:
    kernel = cm.RawKernel(
        r"""__inline__ __device__ int warpReduceSum(int val) {
            for (int offset = warpSize / 2; offset > 0; offset /= 2) val += __shfl_down_sync(0xffffffff, val, offset);
            return val;
        }
        extern "C" __global__ void deviceReduceWarpAtomicKernel(int *in, int* out, int N) {
            int sum = 0;
            for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < N; i += blockDim.x * gridDim.x) sum += in[i];
            sum = warpReduceSum(sum);
            if ((threadIdx.x & (warpSize - 1)) == 0) atomicAdd(out, sum);
        }""",
        "deviceReduceWarpAtomicKernel",
    )
    x = np.arange(5000, dtype=i4)
    out = xp.zeros(1, dtype=i4)
    kernel((3,), (128,), (xp.asarray(x), out, 5000))
    return [(out, np.array([x.sum()], i4))]


@tutorial
def cooperative_tiles() -> Pairs:
    kernel = cm.RawKernel(
        r"""#include <cooperative_groups.h>
        namespace cg = cooperative_groups;
        template <int tile_sz> __device__ int reduce_sum_tile_shfl(cg::thread_block_tile<tile_sz> g, int val) {
            for (int i = g.size() / 2; i > 0; i /= 2) val += g.shfl_down(val, i);
            return val;
        }
        extern "C" __global__ void sums(int* sum, const int* input, int n) {
            int idx = blockIdx.x * blockDim.x + threadIdx.x;
            auto tile = cg::tiled_partition<16>(cg::this_thread_block());
            int tile_sum = reduce_sum_tile_shfl<16>(tile, idx < n ? input[idx] : 0);
            if (tile.thread_rank() == 0) atomicAdd(sum, tile_sum);
        }""",
        "sums",
    )
    x = np.arange(500, dtype=i4)
    out = xp.zeros(1, dtype=i4)
    kernel((4,), (128,), (out, xp.asarray(x), 500))
    return [(out, np.array([x.sum()], i4))]


@tutorial
def binary_search_a_thread() -> Pairs:
    kernel = cm.RawKernel(
        r"""extern "C" __global__ void lower_bound(const int* __restrict__ keys, int n, const int* __restrict__ q, int* out, int m) {
            for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < m; i += gridDim.x * blockDim.x) {
                int lo = 0, hi = n;
                while (lo < hi) { int mid = (lo + hi) >> 1; if (keys[mid] < q[i]) lo = mid + 1; else hi = mid; }
                out[i] = lo;
            }
        }""",
        "lower_bound",
    )
    keys = np.sort(np.random.default_rng(1).integers(0, 1000, 300)).astype(i4)
    q = np.random.default_rng(2).integers(-5, 1005, 200).astype(i4)
    out = xp.zeros(200, dtype=i4)
    kernel((1,), (64,), (xp.asarray(keys), 300, xp.asarray(q), out, 200))
    return [(out, np.searchsorted(keys, q).astype(i4))]


@tutorial
def polynomials_by_a_functor() -> Pairs:
    kernel = cm.RawKernel(
        r"""template <typename F> __device__ void transform(const float* x, float* y, int n, F f) {
            int i = threadIdx.x + blockIdx.x * blockDim.x; if (i < n) y[i] = f(x[i]); }
        extern "C" __global__ void poly(const float* x, float* y, int n) {
            const float c[3] = {1.f, -2.f, 0.5f};
            transform(x, y, n, [&](float v) { float s = 0; for (int k = 2; k >= 0; --k) s = s * v + c[k]; return s; });
        }""",
        "poly",
    )
    x = numbers(90)
    y = xp.zeros(90, dtype=f4)
    kernel((3,), (32,), (xp.asarray(x), y, 90))
    return [(y, (0.5 * x - 2) * x + 1)]


@tutorial
def float4_copies() -> Pairs:
    kernel = cm.RawKernel(
        r"""extern "C" __global__ void device_copy_vector4_kernel(int* d_in, int* d_out, int N) {
            int idx = blockIdx.x * blockDim.x + threadIdx.x;
            for (int i = idx; i < N / 4; i += blockDim.x * gridDim.x)
                reinterpret_cast<int4*>(d_out)[i] = reinterpret_cast<int4*>(d_in)[i];
            int remainder = N % 4;
            if (idx == 0 && remainder != 0) { while (remainder) { int idx = N - remainder--; d_out[idx] = d_in[idx]; } }
        }""",
        "device_copy_vector4_kernel",
    )
    x = np.arange(1003, dtype=i4)
    y = xp.zeros(1003, dtype=i4)
    kernel((2,), (64,), (xp.asarray(x), y, 1003))
    return [(y, x)]


@tutorial
def wrapped_integers() -> Pairs:
    kernel = cm.RawKernel(
        r"""extern "C" __global__ void fnv(const unsigned char* s, const int* begin, unsigned int* out, int n) {
            int i = blockIdx.x * blockDim.x + threadIdx.x; if (!(i < n)) return;
            unsigned int h = 2166136261u;
            for (int k = begin[i]; k < begin[i + 1]; k++) h = (h ^ s[k]) * 16777619u;
            out[i] = h;
        }""",
        "fnv",
    )
    texts = [b"copper", b"", b"mesh", b"kernels of others"]
    begin = np.cumsum([0] + [len(text) for text in texts]).astype(i4)
    out = xp.zeros(4, dtype=u4)
    data = np.frombuffer(b"".join(texts), u1)
    kernel((1,), (32,), (xp.asarray(data), xp.asarray(begin), out, 4))
    expected = []
    for text in texts:
        h = 2166136261
        for byte in text:
            h = (h ^ byte) * 16777619 % 2**32
        expected.append(h)
    return [(out, np.array(expected, u4))]


@tutorial
def cucomplex_translated() -> Pairs:
    kernel = cm.RawKernel(
        r"""#include <cuComplex.h>
        extern "C" __global__ void k(const cuFloatComplex* a, cuFloatComplex* b, int n) {
            int i = blockIdx.x * blockDim.x + threadIdx.x;
            if (i < n) b[i] = cuCaddf(cuCmulf(a[i], cuConjf(a[i])), make_cuFloatComplex(1.0f, cuCimagf(a[i])));
        }""",
        "k", translate_cucomplex=True,
    )  # fmt: skip
    a = (numbers(20) + 1j * numbers(20, seed=2)).astype(c8)
    b = xp.zeros(20, dtype=c8)
    kernel((1,), (32,), (xp.asarray(a), b, 20))
    return [(b, a * a.conj() + 1 + 1j * a.imag)]
