"""RawKernel and ElementwiseKernel: CuPy's call forms, what counts as written, and real compiled kernels on the CPU."""

import contextlib
import shutil
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coppermesh.exec import xp
from coppermesh.exec.cuda_build import build_kernel
from coppermesh.exec.cuda_cpu import CudaCpu
from coppermesh.exec.cuda_source import check_source, read_signature
from coppermesh.exec.cuda_toolchain import find_toolchain
from coppermesh.exec.elementwise import parse_parameters
from coppermesh.exec.errors import KernelCompileError, ProgramInvalid
from coppermesh.exec.evaluate import evaluate
from coppermesh.exec.kernels import ElementwiseKernel, RawKernel, RawModule
from coppermesh.exec.numpy_runtime import NumpyRuntime
from coppermesh.exec.program import MAX_SOURCE_CHARACTERS
from coppermesh.exec.recorder import trace


def written(parameters, prefix='extern "C" __global__ void', name="k"):
    source = f"{prefix} {name}({parameters}) {{}}"
    signature = read_signature(source, name)
    assert signature.found, source
    return [not parameter.read_only for parameter in signature.parameters if parameter.pointer]


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ("const float* x, float* y, int n", [False, True]),
        ("float const * x", [False]),
        ("const float *__restrict__ x, float *__restrict__ y", [False, True]),
        ("float* const x", [True]),
        ("const float* const x", [False]),
        ("const float** x", [True]),
        ("const float* const* x", [False]),
        ("const float x[], float y[]", [False, True]),
        ("foo<const float>* x", [True]),
        ("const foo<int, float>* x, int n", [False]),
        ("const std::pair<int, float>* x, bar<baz<int>>* y", [False, True]),
        ("/* const */ float* x", [True]),
        ("float* x // const, float* y\n", [True]),
        ("const float* x, /* float* hidden, */ int n", [False]),
        ("const unsigned long long* x = nullptr", [False]),
        ("void", []),
        ("", []),
        ("volatile int* x, const volatile int* y", [True, False]),
    ],
)
def test_what_a_kernel_writes(parameters, expected):
    assert written(parameters) == expected


@pytest.mark.parametrize(
    "prefix",
    [
        "__global__ void",
        '#include <cuda_runtime.h>\nextern "C" {\n__global__ void __launch_bounds__(256, 2)',
        "template <typename T>\nstatic __global__ void",
        '#define N 3 /* k(int* a) */\nconst char* s = "__global__ void k(int* a)";\nextern "C" __global__ void',
        "__global__ void other(float* x) { k(x); }\n__global__ void",
        "__global__ void k(const float* x);\n__global__ void",
    ],
)
def test_where_a_kernel_is_found(prefix):
    assert written("const float* x", prefix) == [False]


def test_declarations_that_disagree_count_as_written():
    source = "#if A\n__global__ void k(const float* x) {}\n#else\n__global__ void k(float* x) {}\n#endif"
    assert read_signature(source, "k").written(0)


def test_kernels_made_by_macros_count_as_writing_everything():
    signature = read_signature("#define K(n) __global__ void n(const float* x)\nK(k) {}", "k")
    assert not signature.found
    assert signature.written(0)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="kconstfloat*,()<>[]{}&\"'/\\\n#_ ", max_size=60))
def test_any_text_can_be_read(text):
    read_signature("__global__ void k(" + text, "k")
    read_signature(text, "k")
    try:
        check_source(text)
    except ProgramInvalid as error:
        assert error.code == "kernel-include"


@pytest.mark.parametrize(
    "piece",
    [
        'R"(',
        '"\\"',
        "'\\'",
        "/*",
        "__global__ k(",
        "(",
        "<",
        "k(",
        "__global__ void k(int x); ",
        "#\\\n",
        "\\ ",
    ],
)
def test_reading_takes_time_in_proportion(piece):
    """Text made to defeat a naive reader: the square of 256 Ki would be minutes."""
    text = "__global__ void k(" + piece * (MAX_SOURCE_CHARACTERS // len(piece))
    start = time.process_time()
    read_signature.__wrapped__(text, "k")
    with contextlib.suppress(ProgramInvalid):
        check_source(text)
    assert time.process_time() - start < 3


def test_harmless_sources_pass():
    check_source(
        '#include <cuda_runtime.h>\n#include "math_constants.h"\n// #include "/etc"\n#pragma unroll\n'
    )
    check_source('const char* text = "__has_include";\nasm("mov.u32 %0, %laneid;" : "=r"(lane));')


def record_scalars(*scalars):
    x = xp.zeros(1)
    names = ", ".join(f"T s{number}" for number in range(len(scalars)))
    RawKernel(f"__global__ void k(double* x, {names}) {{}}", "k")((1,), (1,), (x, *scalars))
    return [argument.dtype for argument in trace(x).checked.program.nodes[1].args[1:]]


def test_scalars_are_typed_as_cupy_types_them():
    assert record_scalars(1, 2**63, 1.0, True, 1j) == ["int64", "uint64", "float64", "bool", "complex128"]
    given_types = [np.int32(1), np.uint8(2), np.float32(3), np.bool(True), np.array([4], dtype=np.int16)]
    assert record_scalars(*given_types) == ["int32", "uint8", "float32", "bool", "int16"]


MIXED = ElementwiseKernel("T x, T y", "T z", "z = x")
K = RawKernel("__global__ void k(const float* x, float* y) {}", "k")


@pytest.mark.parametrize(
    ("mistake", "error", "words"),
    [
        (lambda x: K((1,), (1,), (x,)), ProgramInvalid, "takes 2 arguments, 1 were given"),
        (lambda x: K((1,), (1,), (x, np.zeros(3))), TypeError, r"argument 1 is a ndarray; make it lazy"),
        (lambda x: K((1,), (1,), (x, "s")), TypeError, "argument 1 is a str"),
        (lambda x: K((1,), (1,), (x, None)), TypeError, "NoneType; a null pointer is 0"),
        (
            lambda x: K((1,), (1,), (x, 3)),
            ProgramInvalid,
            "int64 was given for a pointer; pass an array, or 0",
        ),
        (lambda x: K((1,), (1,), (x, 0.0)), ProgramInvalid, "float64 was given for a pointer"),
        (lambda x: K((1,), (1,), (x, np.int32(0))), ProgramInvalid, "int32 was given for a pointer"),
        (
            lambda x: RawKernel("__global__ void k(const float* x) {}", "k")((1,), (1,), (x,)),
            ProgramInvalid,
            "none",
        ),
        (lambda x: K((1,), (2048,), (x, x)), ProgramInvalid, "CUDA's limits"),
        (lambda x: K((), (1,), (x, x)), ProgramInvalid, "one to three lengths"),
        (
            lambda x: RawKernel("__global__ void k(T* x, T* y) {}", "k")((1,), (1,), (x, x)),
            ProgramInvalid,
            "twice",
        ),
        (lambda x: RawKernel("int x;", "k; int y"), ProgramInvalid, "cannot name a kernel"),
        (lambda x: RawKernel("int x;", "k", ("-I/tmp",)), ProgramInvalid, "option"),
        (lambda x: ElementwiseKernel("T x", "", "x", "k"), ProgramInvalid, "output parameter"),
        (lambda x: ElementwiseKernel("T x", "T y", "y = x")(x, x, x), TypeError, "takes 1 inputs"),
        (lambda x: ElementwiseKernel("T x", "T y", "y = x")(3.0), ProgramInvalid, "size is undecided"),
        (lambda x: ElementwiseKernel("T x", "T y", "y = x")(x, size=3), ProgramInvalid, "every array is raw"),
        (lambda x: ElementwiseKernel("raw T x", "T y", "y = x[i]")(x), ProgramInvalid, "undecided"),
        (
            lambda x: ElementwiseKernel("T x, T y", "T z", "z = x")(x, x.astype("int8")),
            ProgramInvalid,
            "must be float32",
        ),
        (lambda x: ElementwiseKernel("float64 x", "T y", "y = x")(x), ProgramInvalid, "must be float64"),
        (lambda x: ElementwiseKernel("T x", "S y", "y = x")(x), ProgramInvalid, "no array argument decides"),
        (lambda x: ElementwiseKernel("T x", "T y", "y = x")(x, np.zeros(3)), TypeError, "lazy"),
        (
            lambda x: ElementwiseKernel("T x", "T y", "y = x")(x, xp.zeros(5, dtype="float32")),
            ProgramInvalid,
            "shape",
        ),
        (lambda x: ElementwiseKernel("half x", "T y", "y = x"), ProgramInvalid, "its name is float16"),
    ],
)
def test_mistakes(mistake, error, words):
    with pytest.raises(error, match=words):
        mistake(xp.ones(3, dtype="float32"))


def test_parameter_lists():
    x, y = parse_parameters(" float32 x ,raw T y")
    assert (x.name, x.type, x.raw, x.is_placeholder) == ("x", "float32", False, False)
    assert (y.name, y.type, y.raw, y.is_placeholder) == ("y", "T", True, True)
    assert parse_parameters("") == ()


@pytest.fixture(scope="module")
def cpu(tmp_path_factory):
    toolchain = find_toolchain()
    if toolchain is None or shutil.which("g++") is None:
        pytest.skip("no C++ compiler on this machine")
    cache = tmp_path_factory.mktemp("cache")

    def build(kernel):
        return build_kernel(kernel, toolchain, tmp_path_factory.mktemp("build"), cache)

    return NumpyRuntime(CudaCpu(build, threads=1))


STENCIL = r"""
extern "C" __global__ void smooth(const float* in, float* out, int height, int width, float keep) {
    int x = blockIdx.x * blockDim.x + threadIdx.x;
    int y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= width || y >= height) return;
    int stride = width + 2;
    const float* centre = in + (y + 1) * stride + x + 1;
    float around = centre[-1] + centre[1] + centre[-stride] + centre[stride];
    out[y * width + x] = keep * centre[0] + (1.0f - keep) * 0.25f * around;
}
"""


def test_a_photograph_is_tone_mapped_and_smoothed(cpu):
    """What the demo does to a tile, against the same in NumPy."""
    photo = np.random.default_rng(5).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    weights = np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)

    def tone_map(library, pixels, weights):
        linear = (pixels.astype(np.float32) / np.float32(255)) ** 2
        luminance = linear @ weights
        mapped = luminance * (1 + luminance / np.float32(1.44)) / (1 + luminance)
        padded = library.pad(library.clip(mapped, 0, 1), 1, mode="edge")
        return library.sqrt(padded)

    lazy = tone_map(xp, xp.asarray(photo), xp.asarray(weights))
    result = xp.empty((40, 60), dtype=xp.float32)
    scalars = (np.int32(40), np.int32(60), np.float32(0.5))
    RawKernel(STENCIL, "smooth")((4, 3), (16, 16), (lazy, result, *scalars))
    result = xp.flip(result, axis=1) * 255

    toned = tone_map(np, photo, weights)
    around = toned[1:-1, :-2] + toned[1:-1, 2:] + toned[:-2, 1:-1] + toned[2:, 1:-1]
    expected = (0.5 * toned[1:-1, 1:-1] + 0.125 * around)[:, ::-1] * 255
    [picture] = evaluate(result, runtime=cpu)
    assert picture.dtype == np.float32
    np.testing.assert_allclose(picture, expected, rtol=1e-5, atol=1e-4)


def test_elementwise_kernels(cpu):
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    y = np.float32([10, 20, 30])
    lazy_x, lazy_y = xp.asarray(x), xp.asarray(y)
    squared = ElementwiseKernel("float32 x, float32 y", "float32 z", "z = (x - y) * (x - y)", "squared_diff")
    generic = ElementwiseKernel("T x, T y", "T z", "z = x - 2 * y", "generic")
    both = ElementwiseKernel("T x, T y", "T low, T high", "low = min(x, y); high = max(x, y);", "both")
    shifted = ElementwiseKernel("raw T x", "T y", "y = x[(i + 1) % x.size()] + _ind.size()", "shifted")
    reverse = ElementwiseKernel("T x, raw T y", "T z", "z = x + y[n - 1 - i]", "reverse_add")
    prefixed = ElementwiseKernel(
        "T x", "T z", "z = half(x)", "prefixed", preamble="__device__ float half(float v) { return v / 2; }"
    )
    index = ElementwiseKernel("", "int64 z", "z = i * i", "index_only")
    low, high = both(lazy_x, lazy_y)
    out = xp.zeros((2, 3), dtype="float32")
    returned = generic(lazy_x, lazy_y, out)
    assert returned is out
    cases = [
        (squared(lazy_x, lazy_y), (x - y) ** 2),
        (squared(lazy_x, 5), (x - 5) ** 2),
        (generic(lazy_x, 2), x - 4),
        (generic(lazy_x.astype("int32"), 2), (x - 4).astype(np.int32)),
        (out, x - 2 * y),
        (low, np.minimum(x, y)),
        (high, np.maximum(x, y)),
        (shifted(lazy_y, size=3), np.roll(y, -1) + 3),
        (reverse(lazy_x.T, lazy_x), x.T + x.ravel()[::-1].reshape(3, 2)),
        (prefixed(lazy_x), x / 2),
        (index(size=5), np.arange(5) ** 2),
    ]
    results = evaluate(*(lazy for lazy, _ in cases), runtime=cpu)
    for result, (lazy, expected) in zip(results, cases, strict=True):
        assert result.dtype == expected.dtype == lazy.dtype
        np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_a_kernel_that_does_not_compile_shows_the_users_line(cpu):
    x = xp.zeros(4, dtype="float32")
    broken = 'extern "C" __global__ void broken(float* x) {\n    x[0] = missing;\n}'
    RawKernel(broken, "broken")((1,), (1,), (x,))
    with pytest.raises(KernelCompileError, match="missing") as caught:
        evaluate(x, runtime=cpu)
    assert ":2:" in caught.value.log
    assert caught.value.node == 1
    bad = ElementwiseKernel("T x", "T y", "y = x +\nabsent", "bad")
    with pytest.raises(KernelCompileError, match="operation:2"):
        evaluate(bad(xp.zeros(4)), runtime=cpu)


def test_a_launch_beyond_the_limits_names_the_kernel_of_its_module():
    module = RawModule(code='__device__ int n; extern "C" __global__ void count(int* x) { *x = n++; }')
    with pytest.raises(ProgramInvalid, match=r"^kernel count: block .2000, 1, 1. is outside CUDA's limits"):
        module.get_function("count")((1,), (2000,), (xp.zeros(1, dtype=np.int32),))
