"""What kernels written for GPUs elsewhere lean on, and what this project's own corpus had not needed."""

import os

import numpy as np
import pytest

import coppermesh as cm
from coppermesh.exec.cuda_build import build_kernel
from coppermesh.exec.cuda_cpu import CudaCpu
from coppermesh.exec.cuda_features import runtime_features
from coppermesh.exec.cuda_gate import SourceRefused, check_cpu_source
from coppermesh.exec.cuda_needs import kernel_needs
from coppermesh.exec.cuda_toolchain import find_toolchain
from coppermesh.exec.errors import RunFailed
from coppermesh.exec.evaluate import evaluate
from coppermesh.exec.numpy_runtime import NumpyRuntime
from coppermesh.exec.program import KernelSource

toolchain = find_toolchain(os.environ.get("COPPERMESH_TEST_COMPILER"))
pytestmark = pytest.mark.skipif(toolchain is None, reason="needs a C++ compiler")
xp = cm.xp


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    root = tmp_path_factory.mktemp("ported")
    builds = iter(range(1000))

    def build(kernel):
        directory = root / str(next(builds))
        directory.mkdir()
        return build_kernel(kernel, toolchain, directory, root)

    return NumpyRuntime(CudaCpu(build, threads=1))


def test_numbers_of_fixed_width_have_their_macros(runtime):
    kernel = cm.RawKernel(
        """#include <cuda/std/cstdint>
        #define POLYNOMIAL UINT64_C(0xad93d23594c935a9)
        extern "C" __global__ void numbers(uint64_t* out) {
            out[0] = POLYNOMIAL;
            out[1] = UINT32_C(4000000000) + UINT8_C(7) + UINT16_C(1);
            out[2] = (uint64_t)(INT64_C(-5) + INT8_C(1) + INT16_C(1) + INT32_C(1));
            out[3] = UINTPTR_MAX - (uint64_t)INTPTR_MAX - (uint64_t)PTRDIFF_MAX - INTMAX_C(1);
            out[4] = UINTMAX_MAX - (uint64_t)INTMAX_MAX + (uint64_t)INTMAX_MIN - UINTMAX_C(9);
        }""",
        "numbers",
    )
    out = xp.zeros(5, dtype=np.uint64)
    kernel((1,), (1,), (out,))
    assert evaluate(out, runtime=runtime)[0].tolist() == [
        0xAD93D23594C935A9, 4_000_000_008, 2**64 - 2, 0, 2**64 - 9
    ]  # fmt: skip


def test_zero_is_a_null_pointer_as_with_cupy(runtime):
    kernel = cm.RawKernel(
        """extern "C" __global__ void centred(const float* x, float* y, float* mean, int n) {
            float sum = 0;
            for (int i = 0; i < n; i++) sum += x[i];
            for (int i = 0; i < n; i++) y[i] = x[i] - sum / n;
            if (mean != nullptr) *mean = sum / n;
        }""",
        "centred",
    )
    x = np.arange(8, dtype=np.float32)
    with_mean, without, mean = (xp.zeros(size, dtype=np.float32) for size in (8, 8, 1))
    kernel((1,), (1,), (xp.asarray(x), with_mean, mean, 8))
    kernel((1,), (1,), (xp.asarray(x), without, 0, 8))
    results = evaluate(with_mean, without, mean, runtime=runtime)
    assert results[0].tolist() == results[1].tolist() == (x - 3.5).tolist()
    assert results[2][0] == 3.5


def test_a_loop_has_what_cupy_puts_before_its_loops(runtime):
    kernel = cm.ElementwiseKernel(
        "T x, raw int32 n, float64 scale",
        "T y",
        """using wide = typename cupy::type_traits::conditional<
               cupy::type_traits::is_same<T, float>::value, double, T>::type;
           int last = _ind.shape()[_ind.ndim - 1];
           y = (T)(wide(x) * M_PI * k + n + i % last);""",
        "before",
        loop_prep="const double k = scale / 2",
    )
    x = np.linspace(-2, 2, 12, dtype=np.float32).reshape(3, 4)
    y = kernel(xp.asarray(x), 100, 0.5)
    expected = x.astype(np.float64) * np.pi * 0.25 + 100 + np.arange(4)
    np.testing.assert_allclose(evaluate(y, runtime=runtime)[0], expected, rtol=1e-6)


def test_a_raw_parameter_may_be_a_number(runtime):
    pack = cm.ElementwiseKernel(
        "raw bool bits, raw int32 size",
        "uint8 packed",
        """unsigned char byte = 0;
           for (int k = 0; k < 8 && 8 * i + k < size; k++) byte |= bits[8 * i + k] << (7 - k);
           packed = byte;""",
        "pack",
    )
    bits = np.random.default_rng(3).random(21) > 0.5
    packed = pack(xp.asarray(bits), bits.size, size=3)
    assert evaluate(packed, runtime=runtime)[0].tolist() == np.packbits(bits).tolist()
    first = cm.ReductionKernel(
        "T x, raw int64 size",
        "int64 where",
        "x != T(0) ? _j : size",
        "min(a, b)",
        "where = a",
        "size",
        "first",
    )
    x = np.zeros(40)
    where = [first(xp.asarray(x), x.size)]
    x[17] = x[30] = 2
    where.append(first(xp.asarray(x), x.size))
    assert [int(value) for value in evaluate(*where, runtime=runtime)] == [40, 17]


def test_complex_numbers_under_the_name_of_their_namespace(runtime):
    module = cm.RawModule(
        code="""
        #include <cupy/carray.cuh>
        #include <cupy/math_constants.h>
        #include <cupy/complex.cuh>
        template <typename T> __global__ void turn(const T* z, T* out, int n) {
            int i = blockIdx.x * blockDim.x + threadIdx.x;
            if (i < n) out[i] = z[i] * thrust::exp(T(0, M_PI / 2)) + thrust::norm(z[i]);
            else if (i == n) out[i] = T(CUDART_INF, 0);
        }""",
        name_expressions=["turn<thrust::complex<double>>", "turn<complex<float>>"],
    )
    z = np.random.default_rng(4).standard_normal(10) + 1j * np.random.default_rng(5).standard_normal(10)
    wide, narrow = xp.zeros(11, dtype=np.complex128), xp.zeros(11, dtype=np.complex64)
    module.get_function("turn<thrust::complex<double>>")((1,), (32,), (xp.asarray(z), wide, 10))
    module.get_function("turn<complex<float>>")((1,), (32,), (xp.asarray(z.astype(np.complex64)), narrow, 10))
    loop = cm.ElementwiseKernel(
        "complex128 z", "complex128 w", "w = thrust::conj(z) + thrust::sqrt(z)", "loop"
    )
    results = evaluate(wide, narrow, loop(xp.asarray(z)), runtime=runtime)
    np.testing.assert_allclose(results[0][:10], z * 1j + np.abs(z) ** 2, rtol=1e-12)
    np.testing.assert_allclose(results[1][:10], z * 1j + np.abs(z) ** 2, rtol=1e-4)
    np.testing.assert_allclose(results[2], z.conj() + np.sqrt(z), rtol=1e-12)
    assert results[0][10] == np.inf


@pytest.mark.parametrize(
    "text", ["thrust::sort(x, x + 3)", "thrust::device_ptr<int> p", "thrust ::", "thrust::"]
)
def test_the_rest_of_that_namespace_stays_refused(text):
    with pytest.raises(ValueError, match="thrust"):
        cm.RawKernel(f'extern "C" __global__ void k(int* x) {{ {text}; }}', "k")


GRID = """#include <cooperative_groups.h>
namespace cg = cooperative_groups;
extern "C" __global__ void ranks(unsigned long long* rank, unsigned* blocks, unsigned n) {
    cg::grid_group grid = cg::this_grid();
    cg::thread_block block = cg::this_thread_block();
    for (unsigned long long i = grid.thread_rank(); i < n; i += grid.size()) {
        rank[i] = i + 1000 * grid.num_threads();
        blocks[i] = (unsigned)(grid.block_rank() + 100 * grid.num_blocks()) + 10000 * grid.dim_blocks().y;
    }
    block.sync();
    cg::sync(block);
}"""


def test_a_grids_group_tells_ranks(runtime):
    ranks, blocks = xp.zeros(100, dtype=np.uint64), xp.zeros(100, dtype=np.uint32)
    cm.RawKernel(GRID, "ranks")((3, 2), (4, 2), (ranks, blocks, np.uint32(100)))
    results = evaluate(ranks, blocks, runtime=runtime)
    i = np.arange(100)
    assert results[0].tolist() == (i + 48_000).tolist()
    assert results[1].tolist() == (i % 48 // 8 + 600 + 20_000).tolist()


@pytest.mark.parametrize(
    "wait",
    [
        "grid.sync();",
        "grid . sync ( ) ;",
        "cg::sync(grid);",
        "cg::this_grid().sync();",
        "cooperative_groups::this_grid().sync();",
        "cg::sync(cg::this_grid());",
        "auto all = cg::this_grid(); all.sync();",
        "const auto& all = cooperative_groups::this_grid(); cg::sync(all);",
        "auto arrival = grid.barrier_arrive();",
    ],
)
def test_waiting_for_the_grid_is_refused_by_its_line(wait):
    with pytest.raises(ValueError, match=r"line 11: \w+ \(grid synchronisation\)"):
        cm.RawKernel(GRID.replace("    cg::sync(block);", f"    {wait}"), "ranks")


def test_waiting_for_the_grid_unseen_ends_the_launch(runtime):
    source = GRID.replace(
        "extern", "template <class Group> __device__ void meet(Group g) { g.sync(); }\nextern"
    )
    ranks, blocks = xp.zeros(8, dtype=np.uint64), xp.zeros(8, dtype=np.uint32)
    kernel = cm.RawKernel(source.replace("cg::sync(block)", "meet(block); meet(grid)"), "ranks")
    kernel((2,), (4,), (ranks, blocks, np.uint32(8)))
    with pytest.raises(RunFailed, match="no thread waits for the whole grid"):
        evaluate(ranks, runtime=runtime)


def test_groups_of_several_warps_are_named():
    with pytest.raises(
        SourceRefused, match=r"line 1: block_tile_memory \(groups of several warps\) .* CPU device"
    ):
        check_cpu_source("__shared__ cooperative_groups::block_tile_memory<128> scratch;")


@pytest.mark.parametrize(
    "text",
    [
        "auto tile = cg::tiled_partition<64>(block);",
        "#define TILE 128\ncg::thread_block_tile<TILE> tile = f();",
        "constexpr unsigned int TILE = 64u; auto tile = cooperative_groups::tiled_partition<TILE>(block);",
        "auto tile = cg::tiled_partition<OPTION>(block);",
    ],
)
def test_tiles_of_several_warps_are_refused_on_both_sides(text):
    source = f'{text}\nextern "C" __global__ void k(float* x) {{ }}'
    with pytest.raises(SourceRefused, match=r"\(groups of several warps\) is not possible on a CPU device"):
        check_cpu_source(source, ("-DOPTION=256",))
    needs = list(kernel_needs([KernelSource("raw", "k", ("-DOPTION=256",), (source,))]))
    assert "cuda-large-tiles" in [need.code for need in needs]
    assert "cuda-large-tiles" not in runtime_features("cpu")


def test_tiles_of_a_warp_are_no_feature_of_their_own():
    check_cpu_source(
        "constexpr int N = 16; auto a = cg::tiled_partition<N>(b), c = cg::tiled_partition<32>(b);"
    )


def test_bfloat16_is_refused_and_never_announced_for_a_cpu():
    for line in ("#include <cuda_bf16.h>", "__nv_bfloat16 h;", "__nv_bfloat16 f = __float2bfloat16(x[0]);"):
        source = f'{line}\nextern "C" __global__ void k(float* x) {{ }}'
        with pytest.raises(SourceRefused, match="bfloat16"):
            check_cpu_source(source)
        assert [need.code for need in kernel_needs([KernelSource("raw", "k", (), (source,))])] == [
            "cuda-bfloat16"
        ]
    assert "cuda-bfloat16" not in runtime_features("cpu")
