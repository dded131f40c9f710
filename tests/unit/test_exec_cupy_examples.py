"""What CuPy's documentation of kernels shows, as tests of our own: each kernel kind on the CPU against NumPy."""

import numpy as np
import pytest

from coppermesh.exec import xp
from coppermesh.exec.cuda_build import build_kernel
from coppermesh.exec.cuda_cpu import CudaCpu
from coppermesh.exec.cuda_toolchain import find_toolchain
from coppermesh.exec.errors import ProgramInvalid
from coppermesh.exec.evaluate import evaluate
from coppermesh.exec.kernels import ElementwiseKernel, RawKernel, RawModule, ReductionKernel
from coppermesh.exec.numpy_runtime import NumpyRuntime

RNG = np.random.default_rng(20)


@pytest.fixture(scope="module")
def cpu(tmp_path_factory):
    toolchain = find_toolchain()
    if toolchain is None:
        pytest.skip("no C++ compiler on this machine")
    cache = tmp_path_factory.mktemp("cache")

    def build(kernel):
        return build_kernel(kernel, toolchain, tmp_path_factory.mktemp("build"), cache)

    return NumpyRuntime(CudaCpu(build, threads=2))


def check(cpu, cases, rtol=1e-6):
    """Each lazy result against what NumPy gives: dtype, shape and values."""
    results = evaluate(*(lazy for lazy, _ in cases), runtime=cpu)
    for number, (result, (_, wanted)) in enumerate(zip(results, cases, strict=True)):
        expected = np.asarray(wanted)
        assert (result.dtype, result.shape) == (expected.dtype, expected.shape), number
        np.testing.assert_allclose(result, expected, rtol=rtol, atol=1e-30, err_msg=str(number))


def floats(*shape):
    return RNG.normal(size=shape).astype(np.float32)


# --- ElementwiseKernel


def test_a_loop_over_arrays_and_scalars_with_broadcasting(cpu):
    gap = ElementwiseKernel("float32 p, float32 q", "float32 r", "r = (p - q) * (p - q)", "gap")
    p, q = floats(3, 4), floats(4)
    column = floats(3, 1)
    given = xp.empty((3, 4), dtype=np.float32)
    assert gap(xp.asarray(p), xp.asarray(q), given) is given
    check(
        cpu,
        [
            (gap(xp.asarray(p), xp.asarray(q)), (p - q) ** 2),
            (gap(xp.asarray(column), xp.asarray(q)), (column - q) ** 2),
            (gap(xp.asarray(p), 2), (p - np.float32(2)) ** 2),
            (gap(0.5, xp.asarray(p)), (np.float32(0.5) - p) ** 2),
            (gap(xp.asarray(p), np.float64(3)), (p - np.float32(3)) ** 2),
            (gap(xp.asarray(p).T[::-1], xp.asarray(p).T), (p.T[::-1] - p.T) ** 2),
            (given, (p - q) ** 2),
        ],
    )


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int32", "int64", "uint64", "float32", "float64"])
def test_a_placeholder_takes_the_type_of_its_arguments(cpu, dtype):
    blend = ElementwiseKernel("T p, T q", "T r", "T twice = p + p; r = twice - q;", "blend")
    p, q = RNG.integers(5, 9, (2, 5)).astype(dtype), RNG.integers(0, 5, 5).astype(dtype)
    check(
        cpu,
        [
            (blend(xp.asarray(p), xp.asarray(q)), p + p - q),
            (blend(xp.asarray(p), 1), p + p - p.dtype.type(1)),
        ],
    )


def test_several_placeholders_need_an_output_that_decides(cpu):
    mixed = ElementwiseKernel("X p, Y q", "Z r", "r = (p - q) * (p - q)", "mixed")
    p, q = np.arange(6), floats(6)
    out = xp.zeros(6, dtype="float64")
    mixed(xp.asarray(p), xp.asarray(q), out)
    check(cpu, [(out, ((p.astype(np.float32) - q) ** 2).astype(np.float64))], rtol=1e-5)
    with pytest.raises(ProgramInvalid, match="no array argument decides the type Z"):
        mixed(xp.asarray(p), xp.asarray(q))


def test_raw_arguments_are_indexed_by_hand(cpu):
    mirrored = ElementwiseKernel("T p, raw T q", "T r", "r = p + q[_ind.size() - i - 1]", "mirrored")
    p, q = floats(7), floats(7)
    taps = floats(3)
    blur = ElementwiseKernel(
        "raw T p, raw T w",
        "T r",
        "r = 0; for (int k = 0; k < w.size(); k++) { long long at = i + k - 1; if (at >= 0 && at < p.size())"
        " r += w[k] * p[at]; }",
        "blur",
    )
    corner = ElementwiseKernel(
        "raw T p",
        "T r",
        "ptrdiff_t at[] = {(ptrdiff_t)i, p.shape()[1] - 1 - (ptrdiff_t)i}; r = p[at];",
        "corner",
    )
    scattered = ElementwiseKernel("int32 place, T p", "raw T r", "r[place] = p", "scattered")
    square = floats(4, 4)
    places = np.array([2, 0, 6, 1], dtype=np.int32)
    target = xp.zeros(8, dtype=np.float32)
    scattered(xp.asarray(places), xp.asarray(p[:4]), target)
    expected = np.zeros(8, dtype=np.float32)
    expected[places] = p[:4]
    check(
        cpu,
        [
            (mirrored(xp.asarray(p), xp.asarray(q)), p + q[::-1]),
            (mirrored(xp.asarray(p), xp.asarray(q)[::-1]), p + q),
            (blur(xp.asarray(p), xp.asarray(taps), size=7), np.convolve(p, taps[::-1], "same")),
            (corner(xp.asarray(square), size=4), np.diag(square[:, ::-1])),
            (corner(xp.asarray(square).T, size=4), np.diag(square.T[:, ::-1])),
            (target, expected),
        ],
        rtol=1e-5,
    )


def test_several_outputs_and_what_a_call_returns(cpu):
    text = ("T p", "T whole, T rest", "whole = floor(p); rest = p - whole;", "split")
    p = floats(9)
    whole, rest = ElementwiseKernel(*text)(xp.asarray(p))
    assert ElementwiseKernel(*text, no_return=True)(xp.asarray(p)) is None
    [alone] = ElementwiseKernel("T p", "T q", "q = -p", "minus", return_tuple=True)(xp.asarray(p))
    check(cpu, [(whole, np.floor(p)), (rest, p - np.floor(p)), (alone, -p)])


def test_code_around_the_loop(cpu):
    scaled = ElementwiseKernel(
        "T p, raw T factors",
        "T r",
        "r = halved(p) * factor",
        "scaled",
        preamble="template <typename V> __device__ V halved(V v) { return v / 2; }\n#define FACTORS 2",
        loop_prep="T factor = 1; for (int k = 0; k < FACTORS; k++) factor *= factors[k];",
        after_loop="(void)factor;",
    )
    p = floats(5, 3)
    check(cpu, [(scaled(xp.asarray(p), xp.asarray(np.float32([3, 4]))), p / 2 * 12)])


@pytest.mark.parametrize(
    ("operation", "around"),
    [
        ("if (p < 0) return; r = p + 1", {}),
        ("if (p < 0) break; r = p + 1", {}),
        ("if (p < 0) continue; r = p + 1", {}),
        ("SKIP; r = p + 1", {"preamble": "#define SKIP if (p < 0) return"}),
        ("most = max(most, p); r = most < 0 ? 0 : most + 1", {"loop_prep": "T most = -2"}),
    ],
)
def test_a_thread_has_one_element_as_far_as_the_users_code_can_tell(cpu, operation, around):
    p = np.where(np.arange(100_000) % 7 == 3, -1.0, np.arange(100_000) % 11)
    kernel = ElementwiseKernel("T p", "T r", operation, "one_each", **around)
    check(cpu, [(kernel(xp.asarray(p)), np.where(p < 0, 0, p + 1))])


def test_the_index_by_dimension(cpu):
    steps = ElementwiseKernel(
        "T p",
        "T r",
        "const ptrdiff_t* at = (const ptrdiff_t*)_ind.get(); r = p + 10 * at[0] + at[1];",
        "steps",
    )
    p = np.arange(12.0).reshape(3, 4)
    check(cpu, [(steps(xp.asarray(p)), p + 10 * np.arange(3)[:, None] + np.arange(4))])


def test_loops_over_nothing_and_over_one(cpu):
    double = ElementwiseKernel("T p", "T r", "r = 2 * p", "twice")
    check(
        cpu,
        [
            (double(xp.zeros((0, 3), dtype=np.float32)), np.zeros((0, 3), np.float32)),
            (double(xp.asarray(np.float32(4))), np.float32(8)),
        ],
    )


def test_complex_elements(cpu):
    rotated = ElementwiseKernel(
        "complex64 z, float32 angle",
        "complex64 r",
        "r = z * complex<float>(cos(angle), sin(angle))",
        "rotated",
    )
    generic = ElementwiseKernel("T z", "T r", "r = conj(z) / (z + T(2)) - exp(z)", "generic")
    z = (RNG.normal(size=6) + 1j * RNG.normal(size=6)).astype(np.complex64)
    angle = floats(6)
    wide = z.astype(np.complex128)
    check(
        cpu,
        [
            (rotated(xp.asarray(z), xp.asarray(angle)), z * np.exp(1j * angle).astype(np.complex64)),
            (generic(xp.asarray(wide)), wide.conj() / (wide + 2) - np.exp(wide)),
        ],
        rtol=2e-6,
    )


COMPLEX_FUNCTIONS = {
    "exp": np.exp,
    "log": np.log,
    "log10": np.log10,
    "log2": np.log2,
    "log1p": np.log1p,
    "expm1": np.expm1,
    "sqrt": np.sqrt,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "tanh": np.tanh,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "conj": np.conj,
}


def test_complex_functions(cpu):
    z = np.array([0.3 + 0.4j, -1.2 + 0.7j, 0.9 - 2.1j, -0.5 - 0.25j])
    both = np.concatenate([z, z[::-1]])
    cases = []
    for dtype in (np.complex64, np.complex128):
        lines = "".join(f"r[{len(z)} * {k} + i] = {name}(z);" for k, name in enumerate(COMPLEX_FUNCTIONS))
        kernel = ElementwiseKernel("T z", "raw T r", lines, "functions")
        out = xp.zeros(len(z) * len(COMPLEX_FUNCTIONS), dtype=dtype)
        kernel(xp.asarray(z.astype(dtype)), out)
        expected = np.concatenate([function(z) for function in COMPLEX_FUNCTIONS.values()])
        cases.append((out, expected.astype(dtype)))
    check(cpu, cases[:1], rtol=2e-6)
    check(cpu, cases[1:], rtol=1e-13)
    parts = ElementwiseKernel(
        "T z",
        "float64 s, float64 t, float64 u, float64 v",
        "s = abs(z); t = arg(z); u = norm(z); v = real(z) + imag(z)",
        "parts",
    )
    powers = ElementwiseKernel(
        "T z", "T p, T q, T s", "p = pow(z, T(0.5, 1)); q = pow(z, 3.0); s = 2.0 * z - z / 2.0 + 1", "powers"
    )
    measured = zip(
        (*parts(xp.asarray(both)), *powers(xp.asarray(both))),
        (
            np.abs(both),
            np.angle(both),
            np.abs(both) ** 2,
            both.real + both.imag,
            both ** (0.5 + 1j),
            both**3,
            1.5 * both + 1,
        ),
        strict=True,
    )
    check(cpu, list(measured), rtol=1e-12)


# --- ReductionKernel

NORM = ReductionKernel("T p", "T r", "p * p", "a + b", "r = sqrt(a)", "0", "norm")


@pytest.mark.parametrize("axis", [None, 0, 1, 2, -1, (0, 1), (2, 0), (0, 1, 2), ()])
@pytest.mark.parametrize("keepdims", [False, True])
def test_a_norm_along_axes(cpu, axis, keepdims):
    p = RNG.normal(size=(3, 5, 7))
    views = [(p, xp.asarray(p)), (p.T, xp.asarray(p).T), (p[::2, ::-1], xp.asarray(p)[::2, ::-1])]
    check(
        cpu,
        [
            (
                NORM(lazy, axis=axis, keepdims=keepdims),
                np.sqrt((plain * plain).sum(axis=axis, keepdims=keepdims)),
            )
            for plain, lazy in views
        ],
        rtol=1e-13,
    )


def test_reductions_of_several_inputs(cpu):
    distance = ReductionKernel(
        "T p, T q, T scale", "T r", "(p - q) * (p - q)", "a + b", "r = scale * sqrt(a)", 0, "distance"
    )
    weighted = ReductionKernel(
        "T p, raw T w", "T r", "p * w[_j / _out_ind.size()]", "a + b", "r = a", "0", "weighted"
    )
    p, q, w = RNG.normal(size=(4, 6)), RNG.normal(size=6), RNG.normal(size=4)
    check(
        cpu,
        [
            (distance(xp.asarray(p), xp.asarray(q), 3, axis=1), 3 * np.sqrt(((p - q) ** 2).sum(axis=1))),
            (distance(xp.asarray(p), 0.5, 1), np.sqrt(((p - 0.5) ** 2).sum())),
            (weighted(xp.asarray(p), xp.asarray(w), axis=0), w @ p),
        ],
        rtol=1e-12,
    )
    with pytest.raises(ProgramInvalid, match="axes must be the first ones"):
        weighted(xp.asarray(p), xp.asarray(w), axis=1)


def test_reductions_to_several_outputs_and_into_given_ones(cpu):
    moments = ReductionKernel(
        "float64 p",
        "float64 mean, float64 spread",
        "Pair{p, p * p, 1}",
        "Pair{a.one + b.one, a.two + b.two, a.n + b.n}",
        "mean = a.one / a.n; spread = a.two / a.n - mean * mean;",
        "Pair{0, 0, 0}",
        "moments",
        reduce_type="Pair",
        preamble="struct Pair { double one, two; long long n; Pair() {}"
        " Pair(double o, double t, long long m) : one(o), two(t), n(m) {} };",
    )
    p = RNG.normal(size=(40, 30))
    mean, spread = moments(xp.asarray(p), axis=1)
    out = xp.zeros(30, dtype=np.float64)
    assert NORM(xp.asarray(p), axis=0, out=out) is out
    second = xp.zeros((40, 1))
    NORM(xp.asarray(p), second, axis=1, keepdims=True)
    check(
        cpu,
        [
            (mean, p.mean(axis=1)),
            (spread, p.var(axis=1)),
            (out, np.linalg.norm(p, axis=0)),
            (second, np.linalg.norm(p, axis=1, keepdims=True)),
        ],
        rtol=1e-12,
    )


def test_other_types_of_a_reduction(cpu):
    count = ReductionKernel(
        "T p", "int64 r", "p > 0", "a + b", "r = a", "0", "count", reduce_type="long long"
    )
    every = ReductionKernel("bool p", "bool r", "p", "a && b", "r = a", "true", "every")
    largest = ReductionKernel("T p", "T r", "p", "max(a, b)", "r = a", "-1e30", "largest")
    total = ReductionKernel("complex128 z", "complex128 r", "z", "a + b", "r = a", "0", "total")
    p = RNG.normal(size=(6, 50)).astype(np.float32)
    flags = RNG.random((6, 3)) < 0.8
    z = RNG.normal(size=9) + 1j * RNG.normal(size=9)
    check(
        cpu,
        [
            (count(xp.asarray(p), axis=1), (p > 0).sum(axis=1)),
            (every(xp.asarray(flags), axis=1), flags.all(axis=1)),
            (largest(xp.asarray(p), axis=(0, 1)), p.max()),
            (total(xp.asarray(z)), z.sum()),
        ],
    )


def test_reductions_of_nothing(cpu):
    total = ReductionKernel("T p", "T r", "p", "a + b", "r = a", "7", "total")
    without = ReductionKernel("T p", "T r", "p", "a + b", "r = a", None, "without")
    check(
        cpu,
        [
            (total(xp.zeros((3, 0)), axis=1), np.full(3, 7.0)),
            (total(xp.zeros((3, 0)), axis=0), np.zeros(0)),
            (without(xp.zeros((3, 0)), axis=0), np.zeros(0)),
            (without(xp.asarray(np.arange(5.0))), np.float64(10)),
        ],
    )
    with pytest.raises(ProgramInvalid, match="no identity") as caught:
        without(xp.zeros((3, 0)), axis=1)
    assert caught.value.code == "empty-reduction"


@pytest.mark.parametrize("count", [1, 15, 16, 17, 511, 512, 513, 5000, 100_003])
def test_long_sums_are_as_exact_as_numpys(cpu, count):
    p = RNG.random(count).astype(np.float32)
    exact = p.astype(np.float64).sum()
    [ours] = evaluate(
        ReductionKernel("T p", "T r", "p", "a + b", "r = a", "0", "sums")(xp.asarray(p)), runtime=cpu
    )
    assert abs(ours - exact) <= 4 * np.spacing(np.float32(exact))


def test_the_order_of_a_reduction_does_not_depend_on_the_layout(cpu):
    p = RNG.normal(size=(1300, 37)).astype(np.float32)
    rows = xp.asarray(np.ascontiguousarray(p.T))
    along, down = evaluate(NORM(rows, axis=1), NORM(xp.asarray(p), axis=0), runtime=cpu)
    np.testing.assert_array_equal(along, down)


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (lambda p: NORM(p, axis=2), "axis 2 of 2 dimensions"),
        (lambda p: NORM(p, axis=(0, -2)), "given twice"),
        (lambda p: NORM(p, axis=0, out=xp.zeros(4)), "shape"),
        (lambda p: NORM(3.0), "undecided"),
        (lambda p: ReductionKernel("T p", "S r", "p", "a + b", "r = a", "0")(p), "decides the type S"),
        (lambda p: ReductionKernel("T a", "T r", "a", "a + b", "r = a", "0"), "none is called a or b"),
        (lambda p: ReductionKernel("T p", "raw T r", "p", "a + b", "r = a", "0"), "raw outputs"),
        (lambda p: ReductionKernel("T p", "T r", "p", " ", "r = a", "0"), "reduce expression is empty"),
        (lambda p: ReductionKernel("half p", "T r", "p", "a", "r = a", "0"), "its name is float16"),
        (
            lambda p: ReductionKernel("T p", "T r", "p", "a", "r = a", 0, preamble="__device__ int n;"),
            "RawModule",
        ),
    ],
)
def test_mistakes_in_reductions(mistake, words):
    with pytest.raises(ProgramInvalid, match=words):
        mistake(xp.ones((2, 3)))


# --- RawKernel


def test_a_plain_kernel(cpu):
    join = RawKernel(
        r"""
        extern "C" __global__ void join(const float* p, const float* q, float* r) {
            const int at = blockIdx.x * blockDim.x + threadIdx.x;
            r[at] = p[at] - 2 * q[at];
        }""",
        "join",
    )
    p, q = floats(6, 6), floats(6, 6)
    r, turned = xp.zeros((6, 6), dtype=np.float32), xp.zeros((6, 6), dtype=np.float32)
    join((6,), (6,), (xp.asarray(p), xp.asarray(q), r))
    join((4,), (9,), (xp.asarray(p).T, xp.asarray(q)[::-1], turned))
    check(cpu, [(r, p - 2 * q), (turned, p.T - 2 * q[::-1])])


def test_a_kernel_of_complex_numbers(cpu):
    by_header = RawKernel(
        r"""
        #include <cupy/complex.cuh>
        extern "C" __global__ void axpy(const complex<float>* p, const complex<float>* q, complex<float>* r, float a) {
            const int at = blockDim.x * blockIdx.x + threadIdx.x;
            r[at] = p[at] + a * q[at];
        }""",
        "axpy",
    )
    in_c = RawKernel(
        r"""
        #include <cuComplex.h>
        extern "C" __global__ void mix(const cuFloatComplex* p, cuFloatComplex* r, cuDoubleComplex* s) {
            const int at = threadIdx.x;
            r[at] = cuCdivf(cuCmulf(p[at], p[at]), make_cuFloatComplex(0.0f, 2.0f));
            s[at] = cuCadd(cuConj(cuComplexFloatToDouble(p[at])), make_cuDoubleComplex(cuCabsf(p[at]), 1.0));
        }""",
        "mix",
        translate_cucomplex=True,
    )
    p = (RNG.normal(size=8) + 1j * RNG.normal(size=8)).astype(np.complex64)
    r, s, t = (
        xp.zeros(8, dtype=np.complex64),
        xp.zeros(8, dtype=np.complex128),
        xp.zeros(8, dtype=np.complex64),
    )
    by_header((2,), (4,), (xp.asarray(p), xp.asarray(p * 1j), t, np.float32(2)))
    in_c((1,), (8,), (xp.asarray(p), r, s))
    wide = p.astype(np.complex128)
    check(cpu, [(t, p + 2 * (p * 1j)), (r, p * p / 2j), (s, wide.conj() + np.abs(wide) + 1j)], rtol=1e-5)


def test_structures_by_value(cpu):
    source = r"""
    struct Box { float low, high; int steps; };
    struct Row { float value[5]; };
    extern "C" __global__ void fill(float3 shift, Box box, Row row, double* r) {
        const int at = threadIdx.x;
        r[at] = shift.x + 10 * shift.y + 100 * shift.z + (box.high - box.low) * at / box.steps + row.value[at];
    }"""
    float3 = np.dtype({"names": ["x", "y", "z"], "formats": [np.float32] * 3})
    box = np.array([(1.0, 5.0, 4)], dtype=[("low", "f4"), ("high", "f4"), ("steps", "i4")])
    row = np.arange(5, dtype=np.float32).view(np.dtype({"names": ["value"], "formats": [(np.float32, (5,))]}))
    r = xp.zeros(5)
    RawKernel(source, "fill")((1,), (5,), (np.float32([1, 2, 3]).view(float3), box[0], row, r))
    check(cpu, [(r, 321 + np.arange(5.0) * 2)])


def test_scalars_by_value(cpu):
    source = r"""
    extern "C" __global__ void put(long long a, double b, bool c, short d, unsigned char e, float f, double* r) {
        r[0] = a; r[1] = b; r[2] = c; r[3] = d; r[4] = e; r[5] = f;
    }"""
    r = xp.zeros(6)
    args = (2**40, 0.25, True, np.int16(-3), np.uint8(200), np.array([1.5], dtype=np.float32), r)
    RawKernel(source, "put")((1,), (1,), args)
    check(cpu, [(r, np.array([2.0**40, 0.25, 1, -3, 200, 1.5]))])


# --- RawModule

TWO = r"""
extern "C" {
__global__ void add(const float* p, const float* q, float* r, \
                    unsigned int n) {
    const unsigned int at = blockDim.x * blockIdx.x + threadIdx.x;
    if (at < n) r[at] = p[at] + q[at];
}
__global__ void multiply(const float* p, const float* q, float* r, unsigned int n) {
    const unsigned int at = blockDim.x * blockIdx.x + threadIdx.x;
    if (at < n) r[at] = p[at] * q[at];
}
}"""


def test_two_kernels_of_one_source(cpu):
    module = RawModule(code=TWO)
    add, multiply = module.get_function("add"), module.get_function("multiply")
    p, q = floats(5, 5), floats(5, 5)
    total, product = xp.zeros((5, 5), dtype=np.float32), xp.zeros((5, 5), dtype=np.float32)
    add((5,), (6,), (xp.asarray(p), xp.asarray(q), total, 25))
    multiply((5,), (6,), (total, xp.asarray(q), product, 25))
    check(cpu, [(total, p + q), (product, (p + q) * q)])


def test_templates_by_name_expression(cpu):
    code = r"""
    namespace tools {
    template <typename T, int N> struct Scaled { static __device__ T of(T v) { return v * N; } };
    template <typename T> __device__ T minus(T v) { return -v; }
    template <typename T, int N, T (*F)(T)> __global__ void scale(const T* p, T* r, int n) {
        const int at = blockIdx.x * blockDim.x + threadIdx.x;
        if (at < n) r[at] = F(Scaled<T, N>::of(p[at]));
    }
    }
    template <typename T> __global__ void three(T* r, int n) {
        const int at = threadIdx.x;
        if (at < n) r[at] *= 3;
    }
    __global__ void plain(int* r) { r[threadIdx.x] = threadIdx.x; }"""
    names = [
        "three<float>",
        "three< double >",
        "tools::scale<float, 4, tools::minus<float>>",
        "tools::scale<long long, -2, &tools::minus>",
        "plain",
    ]
    module = RawModule(code=code, options=("-std=c++17",), name_expressions=names)
    p = floats(10)
    whole = np.arange(10)
    single, double = xp.asarray(p), xp.asarray(p.astype(np.float64))
    module.get_function(names[0])((1,), (10,), (single, 10))
    module.get_function(names[1])((1,), (10,), (double, 10))
    scaled, halved = xp.zeros(10, dtype=np.float32), xp.zeros(10, dtype=np.int64)
    module.get_function(names[2])((2,), (5,), (xp.asarray(p), scaled, np.int32(10)))
    module.get_function(names[3])((2,), (5,), (xp.asarray(whole), halved, np.int32(10)))
    counted = xp.zeros(4, dtype=np.int32)
    module.get_function("plain")((1,), (4,), (counted,))
    check(
        cpu,
        [
            (single, p * 3),
            (double, p.astype(np.float64) * 3),
            (scaled, p * -4),
            (halved, whole * 2),
            (counted, np.arange(4, dtype=np.int32)),
        ],
    )


def test_constant_memory_is_set_between_launches(cpu):
    module = RawModule(
        code=r"""
        __constant__ float weights[4];
        extern "C" __global__ void weigh(const float* p, float* r) {
            r[threadIdx.x] = p[threadIdx.x] * weights[threadIdx.x];
        }"""
    )
    weigh = module.get_function("weigh")
    weights = xp.ndarray((4,), np.float32, module.get_global("weights"))
    assert isinstance(weights, xp.ndarray)
    p, first, second = floats(4), floats(4), floats(4)
    results = [xp.zeros(4, dtype=np.float32) for _ in range(4)]
    weigh((1,), (4,), (xp.asarray(p), results[0]))
    weights[...] = xp.asarray(first)
    weigh((1,), (4,), (xp.asarray(p), results[1]))
    weights[...] = second
    weigh((1,), (4,), (xp.asarray(p), results[2]))
    weights[1:3] = 9
    weigh((1,), (4,), (xp.asarray(p), results[3]))
    partly = second.copy()
    partly[1:3] = 9
    check(
        cpu,
        [
            (results[0], p * 0),
            (results[1], p * first),
            (results[2], p * second),
            (results[3], p * partly),
            (weights, partly),
            (weights * 2, partly * 2),
        ],
    )
    check(cpu, [(results[1], p * first)])  # alone: what comes later does not show


def test_raw_arguments_tell_their_dimensions_shape_strides_and_size(cpu):
    x = np.arange(60, dtype=np.int32).reshape(3, 4, 5)
    members = ElementwiseKernel(
        "raw T x",
        "int64 y",
        "y = i == 0 ? x.ndim : i <= x.ndim ? x.shape()[i - 1]"
        " : i <= 2 * x.ndim ? x.strides()[i - 1 - x.ndim] : x.size()",
        "members",
    )
    by_strides = ElementwiseKernel(
        "raw T x",
        "T y",
        "ptrdiff_t at = 0, left = i;"
        " for (int d = x.ndim; d-- > 0; left /= x.shape()[d]) at += left % x.shape()[d] * x.strides()[d];"
        " y = *(const T*)((const char*)&x[0] + at)",
        "by_strides",
    )
    turned = xp.permute_dims(xp.asarray(x), (2, 0, 1))  # is given in C order
    told, one, taken = evaluate(
        members(xp.asarray(x), size=8),
        members(xp.asarray(np.int32(7)), size=2),
        by_strides(turned, size=60),
        runtime=cpu,
    )
    np.testing.assert_array_equal(told, [3, 3, 4, 5, 80, 20, 4, 60])
    np.testing.assert_array_equal(one, [0, 1])
    np.testing.assert_array_equal(taken, x.transpose(2, 0, 1).ravel())
    one_row = xp.asarray(np.arange(24, dtype=np.int32).reshape(4, 6))[::2][:1]
    (steps,) = evaluate(
        ElementwiseKernel("raw int32 q", "int64 r", "r = q.strides()[i]", "steps")(one_row, size=2),
        runtime=cpu,
    )
    np.testing.assert_array_equal(steps, [24, 4])
