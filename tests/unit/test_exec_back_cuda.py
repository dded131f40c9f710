"""CUDA source on the CPU against NumPy and Python: each kernel is compiled once by the machine's own compiler."""

import gc
import math
import os
from pathlib import Path

import numpy as np
import pytest

from coppermesh.exec import cuda_build, linux
from coppermesh.exec.cuda_build import BuildFailed, Kernel, build_kernel
from coppermesh.exec.cuda_cpu import CudaCpu
from coppermesh.exec.cuda_gate import SourceRefused
from coppermesh.exec.cuda_toolchain import find_toolchain
from coppermesh.exec.errors import KernelCompileError, RunFailed
from coppermesh.exec.threads import ThreadTeam

toolchain = find_toolchain(os.environ.get("COPPERMESH_TEST_COMPILER"))
"""Another compiler is tried by naming it: `COPPERMESH_TEST_COMPILER=/path/to/zig pytest ...`."""
pytestmark = pytest.mark.skipif(toolchain is None, reason="needs a C++ compiler")

f4, f8, i4, i8, u4, u8 = np.float32, np.float64, np.int32, np.int64, np.uint32, np.uint64


class Backend:
    """A backend that compiles in this process, and counts."""

    def __init__(self, directory: Path, cache: Path) -> None:
        self.directory = directory
        self.cache = cache
        self.builds = 0
        self.notes: list[str] = []
        self.cuda = CudaCpu(self._build, threads=2, note=self.notes.append, compiler="cc 1")

    def _build(self, kernel: Kernel) -> int:
        assert toolchain is not None
        self.builds += 1
        directory = self.directory / str(self.builds)
        directory.mkdir()
        return build_kernel(kernel, toolchain, directory, self.cache)

    def run(self, source, grid, block, *arguments, name="k", options=(), shared=0):
        pad = (1, 1, 1)
        launch = self.cuda.load(source, name, options)
        launch((*grid, *pad)[:3], (*block, *pad)[:3], shared, list(arguments))


@pytest.fixture
def backend(tmp_path, tmp_path_factory):
    return Backend(tmp_path, tmp_path_factory.getbasetemp())


def test_saxpy_over_many_blocks_and_two_cores(backend):
    source = """
    extern "C" __global__ void k(const float* __restrict__ x, float* y, float a, int n) {
        int i = blockDim.x * blockIdx.x + threadIdx.x;
        if (i < n) y[i] = a * x[i] + y[i];
    }"""
    rng = np.random.default_rng(1)
    x, y = rng.random(100_001, f4), rng.random(100_001, f4)
    expected = f4(2.5) * x + y
    backend.run(source, (391,), (256,), x, y, f4(2.5), i4(x.size))
    np.testing.assert_array_equal(y, expected)  # no contraction: the very bits of NumPy
    assert backend.notes == ["compiling kernel k", "", "kernel k", ""]


def test_indices_in_three_dimensions(backend):
    source = """
    extern "C" __global__ void k(unsigned int* out) {
        unsigned int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
        unsigned int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
        dim3 b = blockDim; uint3 g = gridDim;
        out[block * (b.x * b.y * b.z) + thread] = block * 1000 + thread + 1000000 * g.z;
    }"""
    grid, block = (3, 4, 5), (7, 2, 3)
    out = np.zeros(60 * 42, u4)
    backend.run(source, grid, block, out)
    expected = np.add.outer(np.arange(60) * 1000, np.arange(42)).ravel() + 1000000 * 5
    np.testing.assert_array_equal(out, expected)


def test_a_stencil_with_helpers_constants_and_vector_types(backend):
    source = """
    #include <math_constants.h>
    struct Weights { float near, far; };
    __constant__ float gamma_table[3] = {0.5f, 1.0f, 2.0f};
    __device__ const Weights weights = {1.0f, 0.25f};
    template <typename T> __device__ __forceinline__ T clamp_to(T v, T low, T high) { return min(max(v, low), high); }
    __device__ float luma(float4 p) { return 0.2126f * p.x + 0.7152f * p.y + 0.0722f * p.z; }
    extern "C" __global__ void __launch_bounds__(256) k(const float4* in, float4* out, int w, int h) {
        const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
        if (x >= w || y >= h) return;
        float sum = 0.0f, norm = 0.0f;
        #pragma unroll
        for (int d = -1; d <= 1; d++) {
            const int u = clamp_to(x + d, 0, w - 1);
            const float k = d == 0 ? weights.near : weights.far;
            sum += k * luma(__ldg(&in[y * w + u]));
            norm += k;
        }
        out[y * w + x] = make_float4(sum / norm, gamma_table[x % 3], (float)(CUDART_PI_F > 3.0f), in[y * w + x].w);
    }"""
    h, w = 30, 45
    image = np.random.default_rng(2).random((h, w, 4)).astype(f4)
    out = np.empty_like(image)
    backend.run(source, (3, 4), (16, 8), image, out, i4(w), i4(h))
    weights = np.array([0.2126, 0.7152, 0.0722], f4)
    luma = image[..., :3] @ weights
    padded = np.pad(luma, ((0, 0), (1, 1)), mode="edge")
    expected = (0.25 * padded[:, :-2] + padded[:, 1:-1] + 0.25 * padded[:, 2:]) / 1.5
    np.testing.assert_allclose(out[..., 0], expected, rtol=1e-5)
    np.testing.assert_array_equal(out[0, :6, 1], [0.5, 1, 2, 0.5, 1, 2])
    np.testing.assert_array_equal(out[..., 2], 1)
    np.testing.assert_array_equal(out[..., 3], image[..., 3])


def test_atomics_agree_between_cores(backend):
    source = """
    __device__ unsigned int arrivals;   // shared by every thread of the launch, on every core
    extern "C" __global__ void k(const int* v, int* i, unsigned* u, unsigned long long* q, float* f, double* d, int n) {
        int t = blockIdx.x * blockDim.x + threadIdx.x;
        if (t >= n) return;
        atomicAdd(&i[0], v[t]); atomicSub(&i[1], v[t]); atomicMin(&i[2], v[t]); atomicMax(&i[3], v[t]);
        atomicAnd(&u[0], ~(1u << (t & 31))); atomicOr(&u[1], 1u << (t & 15)); atomicXor(&u[2], (unsigned)t);
        atomicInc(&u[3], 9u); atomicDec(&u[4], 9u); atomicExch(&u[5], 7u);
        atomicAdd(&q[0], (unsigned long long)t); atomicMax(&q[1], (unsigned long long)t);
        atomicAdd(&f[0], 1.0f); atomicAdd_block(&d[0], 0.5); atomicAdd_system(&d[0], 0.5);
        int old = i[4], seen;
        do { seen = old; old = atomicCAS(&i[4], seen, seen + 2); } while (old != seen);
        u[6 + (atomicAdd(&arrivals, 1u) == n - 1u)] = 1u;
        __threadfence();
    }"""
    n = 50_000
    v = np.random.default_rng(3).integers(-1000, 1000, n).astype(i4)
    i = np.array([0, 0, 9999, -9999, 0], i4)
    u = np.array([0xFFFFFFFF, 0, 0, 0, 0, 0, 0, 0], u4)
    q, f, d = np.zeros(2, u8), np.zeros(1, f4), np.zeros(1, f8)
    backend.run(source, (196,), (256,), v, i, u, q, f, d, i4(n))
    assert i.tolist() == [v.sum(), -v.sum(), v.min(), v.max(), 2 * n]
    xored = int(np.bitwise_xor.reduce(np.arange(n, dtype=u4)))
    assert u.tolist() == [0, 0xFFFF, xored, n % 10, 0, 7, 1, 1]
    assert (q.tolist(), f[0], d[0]) == ([n * (n - 1) // 2, n - 1], n, n)


UNARY = {
    "sqrtf": math.sqrt, "rsqrtf": lambda v: 1 / math.sqrt(v), "cbrtf": np.cbrt, "expf": math.exp,
    "exp2f": lambda v: 2**v, "expm1f": math.expm1, "logf": math.log, "log2f": math.log2,
    "log10f": math.log10, "log1pf": math.log1p, "sinf": math.sin, "cosf": math.cos, "tanf": math.tan,
    "asinf": math.asin, "acosf": math.acos, "atanf": math.atan, "sinhf": math.sinh, "coshf": math.cosh,
    "tanhf": math.tanh, "erff": math.erf, "erfcf": math.erfc, "tgammaf": math.gamma, "lgammaf": math.lgamma,
    "floorf": math.floor, "ceilf": math.ceil, "truncf": math.trunc, "rintf": np.rint, "fabsf": abs,
    "sinpif": lambda v: math.sin(math.pi * v), "cospif": lambda v: math.cos(math.pi * v),
    "normcdff": lambda v: 0.5 * math.erfc(-v / math.sqrt(2)), "__expf": math.exp, "__logf": math.log,
    "__sinf": math.sin, "__cosf": math.cos, "__frcp_rn": lambda v: 1 / v, "__saturatef": lambda v: min(max(v, 0), 1),
}  # fmt: skip
BINARY = {
    "powf(x, y)": math.pow, "atan2f(x, y)": math.atan2, "fmodf(x, y)": math.fmod, "hypotf(x, y)": math.hypot,
    "fminf(x, y)": min, "fmaxf(x, y)": max, "copysignf(x, -y)": lambda x, y: -x, "__fdividef(x, y)": lambda x, y: x / y,
    "fdimf(x, y)": lambda x, y: max(x - y, 0), "min(x, y)": min, "max(x, y)": max,
    "fmaf(x, y, 1.0f)": lambda x, y: x * y + 1,
    "norm3df(x, y, 1.0f)": lambda x, y: math.sqrt(x * x + y * y + 1), "pow(x, 2)": lambda x, y: x * x,
    "(float)pow((double)x, y)": math.pow, "(float)max(x, 0.25)": lambda x, y: max(x, 0.25),
}  # fmt: skip


def test_mathematical_functions_in_single_precision(backend):
    lines = [
        f"o[{row} * n + t] = {call};"
        for row, call in enumerate([f"{name}(x)" for name in UNARY] + list(BINARY))
    ]
    source = (
        'extern "C" __global__ void k(const float* a, const float* b, float* o, int n) {\n'
        "int t = threadIdx.x; if (t >= n) return; float x = a[t], y = b[t];\n" + "\n".join(lines) + "}"
    )
    x, y = np.linspace(0.05, 0.95, 50, dtype=f4), np.linspace(0.9, 0.1, 50, dtype=f4)
    out = np.empty((len(lines), 50), f4)
    backend.run(source, (1,), (64,), x, y, out, i4(50))
    expected = [[function(float(v)) for v in x] for function in UNARY.values()]
    expected += [
        [function(float(v), float(w)) for v, w in zip(x, y, strict=True)] for function in BINARY.values()
    ]
    for row, name in enumerate([*UNARY, *BINARY]):
        np.testing.assert_allclose(out[row], expected[row], rtol=2e-6, atol=2e-7, err_msg=name)


def test_double_precision_overloads_and_special_values(backend):
    source = """
    extern "C" __global__ void k(const double* a, double* o) {
        double x = a[0]; float nan = __int_as_float(0x7fc00000), inf = 1.0f / 0.0f; double s, c; int e;
        o[0] = sqrt(x); o[1] = exp(x); o[2] = pow(x, 2); o[3] = rsqrt(x); o[4] = fma(x, x, 1.0); o[5] = sqrt(4);
        sincos(x, &s, &c); o[6] = s; o[7] = c; o[8] = frexp(x, &e); o[9] = e; o[10] = ldexp(x, 3);
        o[11] = fminf(nan, 1.0f); o[12] = fmaxf(2.0f, nan); o[13] = isnan(nan) + 2 * isinf(inf) + 4 * isfinite(1.0f);
        o[14] = abs(-3) + abs(-2.5f) + abs(-1.25); o[15] = __double2int_rn(2.5) + 10 * __double2int_rd(-0.5);
        o[16] = signbit(-0.0f); o[17] = round(2.5) + rint(2.5) + trunc(-2.5); o[18] = min(-1, 2) + max(3u, 4u);
        o[19] = min(1u, -1);   // to the unsigned type, as in CUDA
    }"""
    out = np.zeros(20)
    x = 1.75
    backend.run(source, (1,), (1,), np.array([x]), out)
    mantissa, exponent = math.frexp(x)
    expected = [
        math.sqrt(x),
        math.exp(x),
        x * x,
        1 / math.sqrt(x),
        x * x + 1,
        2,
        math.sin(x),
        math.cos(x),
        mantissa,
    ]
    expected += [exponent, x * 8, 1, 2, 7, 6.75, 2 - 10, 1, 3 + 2 - 2, -1 + 4, 1]
    np.testing.assert_allclose(out, expected, rtol=1e-14)


def test_bits_and_conversions_saturate_as_on_a_gpu(backend):
    source = """
    extern "C" __global__ void k(long long* o) {
        o[0] = __popc(0xF0F0u); o[1] = __popcll(~0ull); o[2] = __clz(1); o[3] = __clz(0); o[4] = __clzll(1);
        o[5] = __ffs(8);
        o[6] = __brev(1u); o[7] = __byte_perm(0x33221100u, 0x77665544u, 0x7410u); o[8] = __mulhi(1 << 30, 8);
        o[9] = __umulhi(~0u, ~0u); o[10] = __mul24(-3, 5); o[11] = __funnelshift_l(0x80000000u, 1u, 1u);
        o[12] = __float2int_rn(2.5f); o[13] = __float2int_rz(-2.9f); o[14] = __float2int_ru(2.1f);
        o[15] = __float2int_rn(1e20f); o[16] = __float2int_rn(-1e20f); o[17] = __float2int_rn(0.0f / 0.0f);
        o[18] = __float2uint_rn(-5.0f); o[19] = __float2uint_rn(1e20f); o[20] = __double2ll_rn(1e30);
        o[21] = __float_as_int(1.0f); o[22] = __usad(3u, 10u, 1u); o[23] = (long long)__umul64hi(~0ull, 4ull);
        o[24] = 2147483647 + (int)blockDim.x;  // integers wrap
        o[25] = sizeof(float3) * 100 + alignof(float4); o[26] = sizeof(uchar4) * 100 + sizeof(double2);
        o[27] = __brevll(1ull) == 1ull << 63; o[28] = warpSize;
    }"""
    out = np.zeros(29, i8)
    backend.run(source, (1,), (1,), out)
    top = 2**31 - 1
    expected = [8, 64, 31, 32, 63, 4, 1 << 31, 0x77441100, 2, 0xFFFFFFFE, -15, 3]
    expected += [2, -2, 3, top, -top - 1, 0, 0, 2**32 - 1, 2**63 - 1, 0x3F800000, 8, 3, -top - 1]
    assert out.tolist() == [*expected, 1216, 416, 1, 32]


def test_options_set_macros_and_the_rest_is_ignored_or_refused(backend):
    source = 'extern "C" __global__ void k(float* o) { o[0] = SCALE; o[1] = FLAG; }'
    out = np.zeros(2, f4)
    backend.run(source, (1,), (1,), out, options=("-DSCALE=2.5f", "-DFLAG", "--std=c++14", "--use_fast_math"))
    assert out.tolist() == [2.5, 1.0]
    for option in ("-I/etc", "-include", "@file", "-DX=a b", "-Dasm=1 "):
        with pytest.raises(SourceRefused, match="option"):
            backend.run(source, (1,), (1,), out, options=(option,))


def test_a_kernel_is_compiled_once_per_source_and_options(backend):
    out = np.zeros(1, f4)
    for value in ("1", "1", "2", "1"):
        backend.run(
            'extern "C" __global__ void k(float* o) { o[0] += N; }',
            (1,),
            (1,),
            out,
            options=(f"-DN={value}",),
        )
    assert (out[0], backend.builds) == (5.0, 2)


def test_each_library_is_its_own_even_under_reused_descriptors(backend, monkeypatch):
    monkeypatch.setattr("coppermesh.exec.cuda_cpu.MAX_LOADED", 2)
    gc.collect()  # what the errors of other tests hold
    before = len(os.listdir("/proc/self/fd"))
    for value in [1, 2, 3, 4, 1, 2]:
        out = np.zeros(1, f4)
        backend.run(f'extern "C" __global__ void k(float* o) {{ o[0] = {value}; }}', (1,), (1,), out)
        assert out[0] == value
    assert len(os.listdir("/proc/self/fd")) == before + 2


WRONG_ARGUMENTS = [
    ([np.zeros(4, f4), f4(1)], "takes 3 arguments, 2 were given"),
    ([np.zeros(4, f8), f4(1), i4(1)], "32-bit floats, the array is float64"),
    ([f4(0), f4(1), i4(1)], "scalar was given for a pointer"),
    ([np.zeros(4, f4), np.zeros(4, f4), i4(1)], "array was given"),
    ([np.zeros(4, f4), f8(1), i4(1)], "floating-point number of 4 bytes, float64"),
    ([np.zeros(4, f4), i4(1), i4(1)], "floating-point number of 4 bytes, int32"),
    ([np.zeros(4, f4), f4(1), i8(1 << 32)], "does not fit"),
    ([np.zeros(4, f4), f4(1), np.int16(1)], "integer of 4 bytes, int16"),
    ([np.zeros(4, f4), f4(1), np.complex64(1)], "no complex number"),
    ([np.zeros((4, 4), f4)[:, 1], f4(1), i4(1)], "not contiguous"),
]


@pytest.mark.parametrize(("arguments", "reason"), WRONG_ARGUMENTS, ids=lambda value: str(value)[:40])
def test_wrong_arguments_are_an_error_and_not_a_wild_read(backend, arguments, reason):
    source = 'extern "C" __global__ void k(float* o, float f, int i) { o[0] = f + i; }'
    with pytest.raises(RunFailed, match=reason) as caught:
        backend.run(source, (1,), (1,), *arguments)
    assert caught.value.code == "kernel-arguments"


def test_zero_is_a_null_pointer_and_no_other_number_is_one(backend):
    source = 'extern "C" __global__ void k(float* o, const float2* p) { o[0] = p ? p->x : -1; }'
    out = np.zeros(1, f4)
    for null in (i8(0), np.uint64(0)):
        out[0] = 0
        backend.run(source, (1,), (1,), out, null)
        assert out[0] == -1
    for number in (i8(8), i4(0), f8(0)):
        with pytest.raises(RunFailed, match="scalar was given for a pointer"):
            backend.run(source, (1,), (1,), out, number)


def test_a_wider_integer_that_fits_is_passed_on(backend):
    out = np.zeros(2, f4)
    backend.run('extern "C" __global__ void k(float* o, int i, unsigned char c) { o[0] = i; o[1] = c; }', (1,), (1,),
                out, i8(-7), i8(200))  # fmt: skip
    assert out.tolist() == [-7, 200]


def test_void_pointers_structures_and_complex_numbers(backend):
    source = """
    extern "C" __global__ void k(void* o, float2 z, const void* in) {
        ((float*)o)[0] = z.x; ((float*)o)[1] = z.y; ((float*)o)[2] = ((const float*)in)[1];
    }"""
    out = np.zeros(3, f4)
    backend.run(source, (1,), (1,), out, np.complex64(3 + 4j), np.array([5, 6], f4))
    assert out.tolist() == [3, 4, 6]


def test_dynamic_shared_memory_that_nobody_uses_is_harmless(backend):
    out = np.zeros(1, f4)
    backend.run('extern "C" __global__ void k(float* o) { o[0] = 1; }', (1,), (1,), out, shared=16)
    assert out[0] == 1


# --- what the compiler says


def compile_log(backend, source: str) -> str:
    with pytest.raises(KernelCompileError) as caught:
        backend.cuda.load(source, "k", ())
    assert str(backend.directory) not in caught.value.log
    assert "/" not in caught.value.log.replace("//", "")
    return caught.value.log


def test_compile_errors_have_the_users_own_lines(backend):
    log = compile_log(backend, '// one\n\nextern "C" __global__ void k(float* o) {\n    o[0] = two;\n}\n')
    assert "kernel.cu:4:12: error:" in log
    assert "o[0] = two;" in log
    assert "module.cpp" not in log


def test_lines_stay_right_with_macros_from_options(backend):
    with pytest.raises(KernelCompileError, match=r"kernel\.cu:2:"):
        backend.cuda.load(
            'extern "C" __global__ void k(float* o) {\n    o[0] = A + B + C;\n}', "k", ("-DA=1", "-DB=2")
        )


def test_generated_kernels_have_lines_of_their_own_parts(backend):
    source = '#line 1 "operation"\nz = x +;\n'
    log = compile_log(backend, f'extern "C" __global__ void k(float x, float* o) {{ float z;\n{source}}}')
    assert "operation:1:8: error" in log


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("__global__ void k(float* o) {}", 'must be declared extern "C"'),
        ('extern "C" __global__ void other(float* o) {}', "no function 'k'"),
        ('extern "C" __global__ void k(float* o) { undefined_function(); }', "undefined_function"),
        ('void missing(); extern "C" __global__ void k(float* o) { missing(); }', "missing"),
        ('extern "C" {\n__global__ void k(float* o) {}', "expected"),
        ('extern "C" __global__ int k(float* o) { return 1; }', "error"),
        (
            '#define P(a, b) a##b\nextern "C" __global__ void k(float* o) { P(as, m)("nop"); }',
            "no_inline_assembly",
        ),
        ('#if 1\nextern "C" __global__ void k(float* o) {}', "#if"),
    ],
)
def test_what_does_not_compile_says_why(backend, source, reason):
    assert reason in compile_log(backend, source).replace("\u2018", "'")


def test_bombs_end_at_a_limit_and_not_in_the_machine(backend, monkeypatch):
    monkeypatch.setattr(cuda_build, "BUILD_SECONDS", 1.0)
    bomb = """
    template <int N, int M> struct F { enum { v = F<N - 1, M * 2>::v + F<N - 1, M * 2 + 1>::v }; };
    template <int M> struct F<0, M> { enum { v = 1 }; };
    extern "C" __global__ void k(int* o) { o[0] = F<30, 0>::v; }"""
    with pytest.raises(BuildFailed, match="more than 1 s") as caught:
        backend.cuda.load(bomb, "k", ())
    assert caught.value.code == "kernel-build-limit"


def test_a_compiler_that_is_not_there(tmp_path):
    from coppermesh.exec.cuda_toolchain import Toolchain

    gone = Toolchain((str(tmp_path / "gone"),), "gcc")
    with pytest.raises(BuildFailed, match="does not start"):
        build_kernel(Kernel('extern "C" __global__ void k() {}', "k", ()), gone, tmp_path, tmp_path)


def test_the_library_cannot_be_changed_after_it_was_built(tmp_path):
    assert toolchain is not None
    kernel = Kernel('extern "C" __global__ void k() {}', "k", ())
    descriptor = build_kernel(kernel, toolchain, tmp_path, tmp_path)
    assert linux.seals_of(descriptor) & linux.SEAL_CONTENT == linux.SEAL_CONTENT
    os.close(descriptor)


# --- threads


def test_a_team_runs_on_as_many_threads_as_asked_and_passes_errors_on():
    import threading

    team = ThreadTeam(3)
    barrier = threading.Barrier(3, timeout=10)
    team.run(3, lambda: barrier.wait() and None)
    team.run(9, lambda: barrier.wait() and None)  # never more than its size
    seen: list[int] = []
    team.run(1, lambda: seen.append(threading.get_ident()))
    assert seen == [threading.get_ident()]

    def fail_elsewhere() -> None:
        if threading.get_ident() != seen[0]:
            raise ValueError("there")

    with pytest.raises(ValueError, match="there"):
        team.run(2, fail_elsewhere)
