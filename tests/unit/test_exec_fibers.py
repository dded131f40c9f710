"""Kernels whose threads wait for each other, on the CPU: every primitive against NumPy or Python, and every trap."""
# ruff: noqa: E501  # kernels are easier to read on one line

import contextlib
import os
import platform
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from coppermesh.exec.cuda_build import Kernel, build_kernel
from coppermesh.exec.cuda_cpu import CudaCpu
from coppermesh.exec.cuda_gate import SourceRefused
from coppermesh.exec.cuda_rewrite import rewrite, uses_fibers
from coppermesh.exec.cuda_toolchain import find_toolchain
from coppermesh.exec.errors import KernelCompileError, RunFailed

toolchain = find_toolchain(os.environ.get("COPPERMESH_TEST_COMPILER"))
pytestmark = pytest.mark.skipif(toolchain is None, reason="needs a C++ compiler")

f4, f8, i4, i8, u4, u8 = np.float32, np.float64, np.int32, np.int64, np.uint32, np.uint64
FULL = 0xFFFFFFFF


class Runner:
    """A backend of its own for each test."""

    def __init__(self, directory: Path, cache: Path) -> None:
        self.directory, self.cache, self.builds = directory, cache, 0
        self.cuda = CudaCpu(self._build, threads=2)

    def _build(self, kernel: Kernel) -> int:
        assert toolchain is not None
        self.builds += 1
        directory = self.directory / str(self.builds)
        directory.mkdir()
        return build_kernel(kernel, toolchain, directory, self.cache)

    def __call__(self, source, grid, block, *arguments, shared=0):
        launch = self.cuda.load(source, "k", ())
        pad = (1, 1, 1)
        launch((*grid, *pad)[:3], (*block, *pad)[:3], shared, list(arguments))

    def trap(self, source, grid, block, *arguments, shared=0) -> str:
        """The sentence of the trap that the launch ends in; the next launch works."""
        with pytest.raises(RunFailed) as caught:
            self(source, grid, block, *arguments, shared=shared)
        assert caught.value.code == "kernel-trap"
        out = np.zeros(64, i4)
        self(REVERSE, (1,), (64,), out)
        assert out.tolist() == list(range(63, -1, -1))
        return caught.value.sentence


@pytest.fixture
def run(tmp_path, tmp_path_factory):
    return Runner(tmp_path, tmp_path_factory.getbasetemp())


def kernel(body: str, before: str = "") -> str:
    """A kernel with one array of ints and the usual names."""
    return f"""{before}
extern "C" __global__ void k(int* out) {{
    const int t = threadIdx.x, lane = t % 32, g = blockIdx.x * blockDim.x + t;
    {body}
}}"""


REVERSE = kernel(
    "__shared__ int s[64]; s[t] = t; __syncthreads(); out[g] = s[63 - t];",
)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="sets a register of x86-64")
@pytest.mark.parametrize("end", ["", "__syncthreads();", "__syncthreads(); __trap();", "assert(false);"])
def test_a_kernels_floating_point_modes_end_with_it(run, end):
    everything_at_once = (
        "__builtin_ia32_ldmxcsr(0x1f80 | 0x8000 | 0x40 | 0x6000);"  # to zero, subnormal numbers too
    )
    with contextlib.suppress(RunFailed):
        run(kernel(everything_at_once + end), (1,), (64,), np.zeros(64, i4))
    assert np.array([1.0])[0] / np.array([3.0])[0] == 1 / 3
    assert (np.array([2.0]) / np.array([3.0]))[0] == 0.6666666666666666
    assert (np.array([f4(1e-38)]) * f4(0.5))[0] > 0


# --- shared memory and barriers


@pytest.mark.parametrize("size", [1, 7, 32, 33, 100, 256, 1000, 1024])
def test_blocks_of_any_size_meet_at_barriers_in_a_loop(run, size):
    source = kernel("""
        extern __shared__ int s[];
        s[t] = t + blockIdx.x;
        for (int d = 1; d < blockDim.x; d *= 2) {     // Hillis and Steele's prefix sum
            __syncthreads();
            int v = t >= d ? s[t - d] : 0;
            __syncthreads();
            s[t] += v;
        }
        out[g] = s[t];""")
    out = np.zeros(5 * size, i4)
    run(source, (5,), (size,), out, shared=4 * size)
    expected = np.concatenate([np.cumsum(np.arange(size) + block) for block in range(5)])
    np.testing.assert_array_equal(out, expected)


def test_a_tiled_transpose_in_three_dimensions_of_blocks_and_threads(run):
    source = """
    template <typename T, int N> struct Tile { T cell[N][N + 1]; int guard; };
    template <typename T, int N> __device__ Tile<T, N>& tile() { __shared__ Tile<T, N> t; return t; }
    extern "C" __global__ void k(const double* in, double* out, int n) {
        int x = threadIdx.x, y = threadIdx.y, z = threadIdx.z, plane = blockIdx.z * blockDim.z + z;
        __shared__ Tile<double, 8> both[2];
        tile<float, 4>().guard = 1;
        both[z].cell[y][x] = in[(plane * n + blockIdx.y * 8 + y) * n + blockIdx.x * 8 + x];
        __syncthreads();
        out[(plane * n + blockIdx.x * 8 + y) * n + blockIdx.y * 8 + x] = both[z].cell[x][y];
    }"""
    values = np.random.default_rng(1).random((4, 40, 40))
    out = np.zeros_like(values)
    run(source, (5, 5, 2), (8, 8, 2), values, out, i4(40))
    np.testing.assert_array_equal(out, values.transpose(0, 2, 1))


SPELLINGS = [
    ("", "extern __shared__ int s[];"),
    ("", "__shared__ extern int s[];"),
    ("", "extern int __shared__ s[];"),
    ("", "extern __shared__ __align__(16) int s[];"),
    ("", "__align__(16) extern __shared__ int s[];"),
    ("", "extern __shared__ __attribute__((aligned(16))) int s[];"),
    ("", "extern __shared__ alignas(16) int s[];"),
    ("", "extern __shared__ volatile int s[]; "),
    ("", "extern __shared__ unsigned char raw[]; int* s = reinterpret_cast<int*>(raw);"),
    ("", "extern __shared__ int4 raw[]; int* s = (int*)&raw[0];"),
    ("", "extern __shared__ char raw[]; int* s = (int*)&raw;"),
    ("", "extern __shared__ int first[], s[];"),
    ("extern __shared__ int s[];", ""),
    ("extern __shared__ __align__(8) int s[]; namespace other { __device__ int f(int* s) { return s[0]; } }", ""),
    ("extern\n__shared__ \\\n int s[];", ""),
    ("template <class T> struct Memory { __device__ operator T*() { extern __shared__ int m[]; return (T*)m; } };",
     "int* s = Memory<int>();"),
    ("", "__shared__ int s[8];"),
    ("", "static __shared__ int s[8];"),
    ("", "__shared__ alignas(16) int s[8];"),
    ("", "static __shared__ alignas(16) int s[8];"),
    ("", "int __shared__ s[8];"),
    ("", "volatile __shared__ int s[8];"),
    ("__shared__ int s[8];", ""),
    ("__device__ int* memory() { __shared__ int m[2][4]; return &m[0][0]; }", "int* s = memory();"),
    ("struct P { int v; __device__ P() {} }; ", "__shared__ P p[8]; int* s = &p[0].v;"),
]  # fmt: skip


@pytest.mark.parametrize(("before", "declaration"), SPELLINGS, ids=lambda text: " ".join(text.split())[:40])
def test_spellings_of_shared_memory(run, before, declaration):
    out = np.zeros(16, i4)
    source = kernel(declaration + " s[t] = 10 * t; __syncthreads(); out[g] = s[7 - t] + __LINE__;", before)
    run(source, (2,), (8,), out, shared=32)
    line = source[: source.index("__LINE__")].count("\n") + 1
    assert out.tolist() == 2 * [70 - 10 * t + line for t in range(8)]


def test_shared_memory_begins_as_zero_in_every_block_and_is_no_other_blocks(run):
    source = kernel("""
        __shared__ int s[300]; extern __shared__ int d[];
        int seen = 0;
        for (int i = t; i < 300; i += 64) seen |= s[i];
        for (int i = t; i < 100; i += 64) seen |= d[i];
        __syncthreads();
        for (int i = t; i < 300; i += 64) s[i] = g + 1;
        for (int i = t; i < 100; i += 64) d[i] = g + 1;
        for (int n = 0; n < 3; n++) { __syncthreads(); if (s[t] != g + 1 || d[t] != g + 1) seen = -1; }
        out[g] = seen;""")
    out = np.full(64 * 500, 7, i4)
    for _ in range(2):
        run(source, (500,), (64,), out, shared=400)
        assert not out.any()


def test_ten_thousand_small_blocks_on_two_cores(run):
    source = kernel(
        """__shared__ int s[8]; __shared__ int sum;
        s[t] = g; if (t == 0) sum = 0; __syncthreads();
        atomicAdd(&sum, s[7 - t]); atomicAdd(&total, 1); __syncthreads();
        out[g] = sum;""",
        "__device__ int total;",
    )
    out = np.zeros(80_000, i4)
    run(
        source, (100, 10, 10), (8,), out[:800]
    )  # blocks of one column of the grid write the same: only sizes count
    run(source, (10_000,), (8,), out)
    np.testing.assert_array_equal(out, np.repeat(np.arange(80_000).reshape(-1, 8).sum(1), 8))


def test_barriers_that_count(run):
    source = kernel("""
        int c = __syncthreads_count(t % 3 == 0), a = __syncthreads_and(t < 49), b = __syncthreads_and(t < 50);
        int o = __syncthreads_or(t == 49), n = __syncthreads_or(0);
        out[g] = c + 100 * a + 1000 * b + 10000 * o + 100000 * n;""")
    out = np.zeros(150, i4)
    run(source, (3,), (50,), out)
    assert set(out.tolist()) == {17 + 1000 + 10000}


EARLY = [
    "__device__ void body(int* out, int t) { if (t > 40) return; __syncthreads(); out[t] = 1; }",
    """__device__ void waits() { __syncthreads(); }
    __device__ void body(int* out, int t) { if (t > 40) { return; } waits(); out[t] = 1; }""",
    """#define WAIT __syncthreads()
    template <int N> struct Body {
        __device__ void run(int* out, int t) const { if (t > N) return; WAIT; out[t] = 1; }
    };
    __device__ void body(int* out, int t) { Body<40>().run(out, t); }""",
    "#define body(out, t) auto f = [&](int) mutable {if (t > 40) return; __syncthreads(); out[t] = 1; }; f(1);",
]


@pytest.mark.parametrize("before", EARLY)
def test_threads_that_returned_early_from_a_function_that_waits_are_not_waited_for(run, before):
    out = np.zeros(64, i4)
    run(kernel("body(out, t);", before), (1,), (64,), out)
    assert out.tolist() == [1] * 41 + [0] * 23


def test_an_early_return_before_a_barrier_that_was_come_to_excuses_nobody(run):
    before = "__device__ void body(int t) { if (t > 40) return; if (t < 0) __syncthreads(); }"
    body = "body(t); __syncthreads();\nif (t < 40)\n__syncthreads();"
    assert "line 6" in run.trap(kernel(body, before), (1,), (64,), np.zeros(64, i4))


def test_threads_that_returned_early_are_not_waited_for(run):
    source = kernel(
        """if (t >= 40) return;
        SKIP(t == 39)
        __shared__ int s;
        if (t == 0) s = __LINE__;
        auto twice = [](int v) { if (v < 0) return; };
        twice(t);
        int n = __syncthreads_count(1);
        if (t < 3) { out[g] = -1; return; }
        __syncthreads();
        out[g] = n;
        return;""",
        "#define SKIP(c) if (c) return;",
    )
    out = np.zeros(64, i4)
    run(source, (1,), (64,), out)
    assert out.tolist() == [-1] * 3 + [39] * 36 + [0] * 25


# --- shuffles


def shuffle_source(kind: str, lane: int, operand: int, width: int) -> int:
    """The lane that a shuffle reads: CUDA C++ Programming Guide, warp shuffle functions."""
    first = lane - lane % width
    if kind == "up":
        return lane - operand if lane - operand >= first else lane
    if kind == "down":
        return lane + operand if lane + operand < first + width else lane
    if kind == "xor":
        return lane ^ operand if (lane ^ operand) < first + width else lane
    return first + operand % width


@pytest.mark.parametrize("width", [1, 2, 4, 8, 16, 32])
def test_shuffles_of_every_kind_and_width(run, width):
    source = kernel(f"""
        for (int d = 0; d < 32; d++) {{
            int* o = out + 128 * d;
            o[t] = __shfl_up_sync(~0u, t, d, {width});
            o[32 + t] = __shfl_down_sync(~0u, t, d, {width});
            o[64 + t] = __shfl_xor_sync(~0u, t, d, {width});
            o[96 + t] = __shfl_sync(~0u, t, d, {width});
        }}""")
    out = np.zeros((32, 4, 32), i4)
    run(source, (1,), (32,), out)
    for operand in range(32):
        for row, kind in enumerate(("up", "down", "xor", "index")):
            expected = [shuffle_source(kind, lane, operand, width) for lane in range(32)]
            assert out[operand, row].tolist() == expected, (kind, operand)


TYPES = [("int", i4), ("unsigned int", u4), ("long", i8), ("unsigned long", u8), ("long long", i8),
         ("unsigned long long", u8), ("float", f4), ("double", f8)]  # fmt: skip


@pytest.mark.parametrize(("name", "dtype"), TYPES)
def test_shuffles_keep_every_bit_of_every_type(run, name, dtype):
    source = f"""
    extern "C" __global__ void k(const {name}* in, {name}* out) {{
        {name} v = in[threadIdx.x];
        v = __shfl_xor_sync(0xffffffff, v, 5);
        v = __shfl_down_sync(0xffffffffu, v, 1u);
        out[threadIdx.x] = __shfl_sync(0xffffffff, __shfl_up_sync(0xffffffff, v, 2), (threadIdx.x + 9) % 32);
    }}"""
    values = np.random.default_rng(2).integers(0, 256, 64 * np.dtype(dtype).itemsize, np.uint8).view(dtype)
    values[~np.isfinite(values.astype(f8))] = 1
    out = np.zeros(64, dtype)
    run(source, (1,), (64,), values, out)
    v = values.reshape(2, 32)[:, np.arange(32) ^ 5]
    v = v[:, [*range(1, 32), 31]]
    v = v[:, [0, 1, *range(30)]][:, (np.arange(32) + 9) % 32]
    assert out.tobytes() == v.tobytes()


def test_a_warp_in_parts_shuffles_each_for_itself(run):
    source = kernel("""
        int v = g;
        if (lane < 12) { for (int d = 2; d; d /= 2) v += __shfl_xor_sync(0x00000fff, v, d, 4); }
        else if (lane % 2) v = __shfl_sync(0xaaaaa000, v, 13) + __shfl_sync(0xaaaaa000, v, lane);
        else { __syncwarp(0x55555000); v = -1; }
        out[g] = v;""")
    out = np.zeros(256, i4)
    run(source, (2,), (128,), out)
    g = np.arange(256)
    sums = g.reshape(-1, 4).sum(1).repeat(4)
    odd = (g - g % 32 + 13) + g
    np.testing.assert_array_equal(out, np.where(g % 32 < 12, sums, np.where(g % 2, odd, -1)))


# --- votes, matches, reductions, active lanes


def test_votes_matches_and_reductions(run):
    source = """
    extern "C" __global__ void k(const int* in, unsigned int* o) {
        int v = in[threadIdx.x], all;
        unsigned int mask = threadIdx.x % 32 < 20 ? 0x000fffffu : 0xfff00000u, *out = o + 16 * threadIdx.x;
        out[0] = __ballot_sync(mask, v > 0); out[1] = __any_sync(mask, v == 3); out[2] = __all_sync(mask, v < 4);
        out[3] = __match_any_sync(mask, v); out[4] = __match_all_sync(mask, v < 9, &all); out[5] = all;
        out[6] = __match_all_sync(mask, (double)v, &all); out[7] = all;
        out[8] = __reduce_add_sync(mask, v); out[9] = __reduce_min_sync(mask, v); out[10] = __reduce_max_sync(mask, v);
        out[11] = __reduce_min_sync(mask, (unsigned)v); out[12] = __reduce_max_sync(mask, (unsigned)v);
        out[13] = __reduce_and_sync(mask, (unsigned)v); out[14] = __reduce_or_sync(mask, (unsigned)v);
        out[15] = __reduce_xor_sync(mask, (unsigned)v);
    }"""
    size = 45  # the second warp has 13 lanes
    values = np.random.default_rng(3).integers(-3, 5, size).astype(i4)
    out = np.zeros((size, 16), u4)
    run(source.replace("v < 9", "(int)(v < 9)"), (1,), (size,), values, out)
    for thread in range(size):
        first = thread - thread % 32
        lanes = range(20) if thread % 32 < 20 else range(20, 32)
        group = [(lane, int(values[first + lane])) for lane in lanes if first + lane < size]
        whole = sum(1 << lane for lane, _ in group)
        mine = int(values[thread])
        unsigned = [v & FULL for _, v in group]
        same = len({v for _, v in group}) == 1
        expected = [
            sum(1 << lane for lane, v in group if v > 0),
            any(v == 3 for _, v in group),
            all(v < 4 for _, v in group),
            sum(1 << lane for lane, v in group if v == mine),
            whole, 1, whole if same else 0, same,
            sum(v for _, v in group) & FULL, min(v for _, v in group) & FULL, max(v for _, v in group) & FULL,
            min(unsigned), max(unsigned),
            int(np.bitwise_and.reduce(np.array(unsigned, u4))), int(np.bitwise_or.reduce(np.array(unsigned, u4))),
            int(np.bitwise_xor.reduce(np.array(unsigned, u4))),
        ]  # fmt: skip
        assert out[thread].tolist() == [int(v) for v in expected], thread


def test_activemask_is_whoever_came_to_the_same_place(run):
    source = kernel("""
        if (t == 30) return;
        unsigned a = __activemask(), b;
        if (lane % 3 == 0) b = __activemask(); else if (lane % 3 == 1) b = __activemask(); else b = 0;
        unsigned c = __ballot_sync(__activemask(), lane & 1);
        out[3 * g] = a; out[3 * g + 1] = b; out[3 * g + 2] = c;""")
    out = np.zeros((40, 3), u4)
    run(source, (1,), (40,), out)
    for thread in set(range(40)) - {30}:
        lanes = [x for x in range(32) if x != 30] if thread < 32 else list(range(8))
        lane = thread % 32
        b = 0 if lane % 3 == 2 else sum(1 << x for x in lanes if x % 3 == lane % 3)
        assert out[thread, 0] == sum(1 << x for x in lanes)
        assert out[thread, 1] == b
        assert out[thread, 2] & (1 << lane) == (1 << lane if lane & 1 else 0)


def test_an_aggregated_atomic_by_coalesced_threads(run):
    source = kernel(
        """if (t % 3) return;
        cg::coalesced_group active = cg::coalesced_threads();
        int first;
        if (active.thread_rank() == 0) first = atomicAdd(&out[0], (int)active.size());
        first = active.shfl(first, 0);
        out[1 + first + active.thread_rank()] = t + 1000 * active.num_threads();""",
        "#include <cooperative_groups.h>\nnamespace cg = cooperative_groups;",
    )
    out = np.zeros(40, i4)
    run(source, (1,), (96,), out)
    assert out[0] == 32
    expected = {
        t + 1000 * len([x for x in range(96) if x % 3 == 0 and x // 32 == t // 32]) for t in range(0, 96, 3)
    }
    assert set(out[1:33].tolist()) == expected


# --- cooperative groups

GROUPS = "#include <cooperative_groups.h>\n#include <cooperative_groups/reduce.h>\nnamespace cg = cooperative_groups;\n"


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16, 32])
def test_tiles(run, size):
    source = kernel(
        f"""cg::thread_block block = cg::this_thread_block();
        auto tile = cg::tiled_partition<{size}>(block);
        int* o = out + 16 * block.thread_rank();
        int v = block.thread_rank(), p;
        o[0] = tile.thread_rank(); o[1] = tile.size(); o[2] = tile.meta_group_rank(); o[3] = tile.meta_group_size();
        o[4] = tile.shfl(v, 1); o[5] = tile.shfl_up(v, 1); o[6] = tile.shfl_down(v, 1);
        o[7] = tile.shfl_xor(v, {size // 2});
        o[8] = tile.any(v == 5); o[9] = tile.all(v < 40); o[10] = tile.ballot(v % 2); o[11] = tile.match_any(v / 4);
        o[12] = sum(tile, v); o[13] = cg::reduce(tile, v, cg::greater<int>()); o[14] = tile.match_all(v / 64, p) + p;
        o[15] = block.thread_index().y + 10 * block.group_index().x + 100 * (int)block.num_threads();
        tile.sync(); cg::sync(block); block.sync();""",
        GROUPS + "template <class Tile> __device__ int sum(const Tile& t, int v)"
        " { for (int d = t.size() / 2; d; d /= 2) v += t.shfl_down(v, d); return t.shfl(v, 0); }",
    )
    out = np.zeros((64, 16), i4)
    run(source, (1,), (16, 4), out)
    for v in range(64):
        first, rank = v - v % size, v % size
        members = list(range(first, first + size))
        assert [x & FULL for x in out[v].tolist()] == [
            rank, size, v // size, 64 // size,
            first + 1 % size, v - 1 if rank else v, v + 1 if rank + 1 < size else v, v ^ size // 2,
            5 in members, all(m < 40 for m in members), sum(1 << i for i, m in enumerate(members) if m % 2),
            sum(1 << i for i, m in enumerate(members) if m // 4 == v // 4),
            sum(members), max(members), (1 << size) % (1 << 32),
            v // 16 + 6400,
        ]  # fmt: skip


def test_groups_within_groups(run):
    source = kernel(
        """auto block = cg::this_thread_block();
        cg::thread_block_tile<32> warp = cg::tiled_partition<32>(block);
        auto quarter = cg::tiled_partition<8>(warp);
        cg::thread_group half = cg::tiled_partition(block, 16);
        auto odd = cg::binary_partition(quarter, t % 2);
        auto part = cg::tiled_partition(odd, 2);
        half.sync(); part.sync();
        int* o = out + 8 * t;
        o[0] = quarter.meta_group_rank(); o[1] = half.thread_rank(); o[2] = half.size(); o[3] = odd.thread_rank();
        o[4] = cg::reduce(odd, t, cg::plus<int>()); o[5] = part.shfl(t, 1); o[6] = part.meta_group_rank();
        o[7] = cg::labeled_partition(warp, t / 5).size();""",
        GROUPS,
    )
    out = np.zeros((64, 8), i4)
    run(source, (1,), (64,), out)
    for t in range(64):
        eight = range(t - t % 8, t - t % 8 + 8)
        parity = [x for x in eight if x % 2 == t % 2]
        rank = parity.index(t)
        label = [x for x in range(64) if x // 32 == t // 32 and x // 5 == t // 5]
        assert out[t].tolist() == [
            t % 32 // 8, t % 16, 16, rank, sum(parity), parity[rank - rank % 2 + 1], rank // 2, len(label),
        ]  # fmt: skip


@pytest.mark.parametrize("threads", [32, 20, 1])
def test_reductions_of_groups(run, threads):
    source = """
    struct Pair { double a; long long b; };
    extern "C" __global__ void k(const double* in, double* o) {
        auto warp = cg::tiled_partition<32>(cg::this_thread_block());
        double v = in[threadIdx.x], *out = o + 8 * threadIdx.x;
        out[0] = cg::reduce(warp, v, cg::plus<double>()); out[1] = cg::reduce(warp, (float)v, cg::less<float>());
        out[2] = cg::reduce(warp, v, [](double x, double y) { return x > y ? x : y; });
        int b = (int)v;
        out[3] = cg::reduce(warp, b, cg::bit_and<int>()); out[4] = cg::reduce(warp, b, cg::bit_or<int>());
        out[5] = cg::reduce(warp, b, cg::bit_xor<int>());
        Pair p = warp.shfl(Pair{v, b}, 0);
        out[6] = p.a; out[7] = p.b;
    }"""
    values = np.random.default_rng(4).integers(1, 1000, threads).astype(f8)
    out = np.zeros((threads, 8))
    run(GROUPS + source, (1,), (threads,), values, out)
    b = values.astype(i4)
    expected = [
        values.sum(), values.min(), values.max(), np.bitwise_and.reduce(b), np.bitwise_or.reduce(b),
        np.bitwise_xor.reduce(b), values[0], values[0],
    ]  # fmt: skip
    np.testing.assert_array_equal(out, np.tile(expected, (threads, 1)))


# --- waiting for memory


def test_a_thread_that_sleeps_lets_the_one_it_waits_for_run(run):
    source = kernel("""
        __shared__ volatile int flag; if (t == 63) flag = 0; __syncthreads();
        if (t == 63) flag = 1; else while (!flag) __nanosleep(10);
        __threadfence(); out[g] = flag + (clock64() > 0) + warpSize;""")
    out = np.zeros(64, i4)
    run(source, (1,), (64,), out)
    assert set(out.tolist()) == {34}


def test_two_launches_give_the_same_bits(run):
    source = """
    extern "C" __global__ void k(const float* in, float* out) {
        __shared__ float s[256]; float v = in[blockIdx.x * 256 + threadIdx.x];
        for (int d = 16; d; d /= 2) v += __shfl_down_sync(0xffffffff, v, d);
        s[threadIdx.x] = v; __syncthreads();
        float sum = 0; for (int i = 0; i < 256; i += 32) sum += s[i] + s[(i + threadIdx.x) % 256];
        out[blockIdx.x * 256 + threadIdx.x] = sum;
    }"""
    values = np.random.default_rng(5).random(256 * 64, f4)
    first, second = np.zeros_like(values), np.zeros_like(values)
    run(source, (64,), (256,), values, first)
    run(source, (64,), (256,), values, second)
    assert first.tobytes() == second.tobytes()


# --- traps: the kernel, the line, the thread and the block, and what it did


def test_indices_out_of_an_arrays_bounds_are_told_with_line_and_type(run):
    declared = "__shared__ int s[4][8];\n"
    place = "line 5: thread ({0},0,0) of block (0,0,0) used index {1} of an array of type 'int"
    for body, thread, index in [
        ("s[t][0] = 1; out[0] = s[1][1];", 4, 4),
        ("s[0][t] = 1; out[0] = s[1][1];", 8, 8),
        ("out[0] = s[0][t - 1];", 0, -1),
    ]:
        sentence = run.trap(kernel(declared + body), (1,), (16,), np.zeros(64, i4))
        assert sentence.startswith("kernel k: " + place.format(thread, index)), sentence


DYNAMIC = "extern __shared__ int s[]; "


def test_dynamic_shared_memory_through_a_pointer_has_an_end_and_a_beginning(run):
    out = np.zeros(64, i4)
    moved = kernel(
        DYNAMIC + "int* p = s; p[t + out[0]] = t; int got = p[t + out[0]]; __syncthreads(); out[g] = got;"
    )
    run(moved, (1,), (16,), np.zeros(64, i4), shared=64)
    sentence = run.trap(moved, (1,), (16,), out, shared=60)
    assert "wrote 4 bytes beyond its dynamic shared memory of 60 bytes" in sentence
    sentence = run.trap(moved, (1,), (64,), out, shared=64)
    assert "thread (16,0,0) of block (0,0,0) went beyond its dynamic shared memory: byte 64 of 64" in sentence
    assert "byte 0 of 0" in run.trap(moved, (1,), (64,), out)
    out[0] = -1
    assert "wrote 4 bytes before its dynamic shared memory" in run.trap(moved, (1,), (64,), out, shared=256)
    out[0] = -10_000
    sentence = run.trap(moved, (1,), (64,), out, shared=256)
    assert (
        "thread (0,0,0) of block (0,0,0) went before its dynamic shared memory: byte -40000 of 256"
        in sentence
    )


@pytest.mark.parametrize(
    ("body", "thread", "index", "elements"),
    [
        (DYNAMIC + "out[g] = s[t + 1];", 15, 16, "16 elements of 4"),
        (DYNAMIC + "out[g] = s[t - 1];", 0, -1, "16 elements of 4"),
        (DYNAMIC + "s[t * 100000] = 1;", 1, 100000, "16 elements of 4"),
        (DYNAMIC + "s[s[t] + 17u] = 1;", 0, 17, "16 elements of 4"),
        (DYNAMIC + "auto f = [](int i) { return s[i]; }; out[g] = f(t + 10);", 6, 16, "16 elements of 4"),
        (DYNAMIC + "int* end = &s[16]; end = &s[t + 2];", 15, 17, "16 elements of 4"),
        ("extern __shared__ short s[][2]; s[t][1] = 1; s[t + 16][0] = 2;", 0, 16, "16 elements of 4"),
        ("extern __shared__ double s[]; out[g] = s[t];", 8, 8, "8 elements of 8"),
    ],
)
def test_indices_out_of_dynamic_shared_memory_are_told_with_their_line(run, body, thread, index, elements):
    sentence = run.trap(kernel("\n" + body), (1,), (16,), np.zeros(64, i4), shared=64)
    expected = (
        f"line 5: thread ({thread},0,0) of block (0,0,0) used index {index} of dynamic shared memory with"
    )
    assert f"{expected} {elements} bytes" in sentence


def test_what_only_has_the_name_of_dynamic_shared_memory_is_left_alone(run):
    out = np.zeros(64, i4)
    source = kernel(
        """Own own; own.s[3] = 5; Own* p = &own;
        s[t] = p->s[3] + Own::t[1] + of(out, 0);
        { int s[100]; s[99] = 1; out[g] = s[99] - 1; }
        auto f = [=](int* s) { return s[40]; };
        auto g2 = [=] { return s[t] + (int)sizeof(s[0]); };
        out[g] += g2() + f(out) - f(out);""",
        """extern __shared__ int s[];
        struct Own { int s[50]; static constexpr int t[2] = {1, 2}; };
        __device__ int of(int* s, int i) { return s[i + 60]; }""",
    )
    run(source, (1,), (16,), out, shared=64)
    assert out[:16].tolist() == [11] * 16


TRAPS = [
    ("if (t < 4) __syncthreads(); else __syncthreads();", ["waits at this barrier while thread (0,0,0) waits at"]),
    ("if (t < 40)\n__syncthreads();", ["line 5", "thread (40,0,0) has come to the kernel's end without it"]),
    ("if (t > 40)\n__syncthreads();", ["line 5: thread (41,0,0)", "thread (40,0,0) has come to the kernel's end"]),
    ("for (int i = 0; i < t; i++) __syncthreads();", ["thread (0,0,0) has come to the kernel's end"]),
    ("out[0] = __shfl_sync(0xf, 1, 1);", ["thread (4,0,0)", "mask 0x0000000f, which lacks its own lane 4"]),
    ("if (lane < 4) __shfl_sync(0xf, 1, 5);", ["reads lane 5 in a shuffle, which mask 0x0000000f lacks"]),
    ("if (lane > 7) return; __shfl_down_sync(~0u, 1, 1);", ["thread (7,0,0)", "lane 8", "has left the kernel"]),
    ("if (t > 31) __shfl_sync(~0u, 1, 16);", ["thread (32,0,0)", "lane 16", "its block does not have"]),
    ("__shfl_sync(~0u, 1, 0, 12);", ["the width 12"]),
    ("if (lane < 4) __syncwarp();\nelse __syncthreads();", ["line 4: thread (0,0,0)", "lane 4", "waits at line 5"]),
    ("if (lane % 2) __ballot_sync(~0u, 1); else __any_sync(0x55555555, 1), __syncwarp();", ["none of them can go on"]),
    ("if (g == 40) __trap(); __syncthreads();", ["thread (40,0,0)", "__trap()"]),
    ("assert(t != 33 && out);", ["line 4: thread (33,0,0)", "failed the assertion t != 33 && out"]),
]  # fmt: skip


@pytest.mark.parametrize(("body", "words"), TRAPS, ids=lambda value: str(value)[:50])
def test_traps(run, body, words):
    sentence = run.trap(kernel(body), (1,), (48,), np.zeros(64, i4))
    for word in ["kernel k: ", "block (0,0,0)", *words]:
        assert word in sentence, sentence


def test_a_rank_that_a_group_does_not_have_is_told(run):
    body = "if (lane < 4) { auto g = cooperative_groups::coalesced_threads(); out[t] = g.shfl(t, t + 1); }"
    sentence = run.trap(kernel(body, "#include <cooperative_groups.h>\n"), (1,), (32,), np.zeros(64, i4))
    assert (
        "line 5: thread (3,0,0) of block (0,0,0) reads rank 4 in a shuffle of a group of 4 threads"
        in sentence
    )


def test_a_groups_barrier_is_not_the_blocks_on_the_same_line(run):
    body = "if (t < 4) cooperative_groups::this_thread_block().sync(); else __syncthreads();"
    sentence = run.trap(kernel(body, "#include <cooperative_groups.h>\n"), (1,), (48,), np.zeros(64, i4))
    assert "waits at this barrier while thread (0,0,0) waits at" in sentence


def test_traps_without_fibers_leave_the_worker_too(run):
    source = 'extern "C" __global__ void k(int* o) {\n assert(o[threadIdx.x] == 0);\n o[threadIdx.x] = 1; }'
    assert not uses_fibers(source, ())
    sentence = run.trap(source, (1000,), (64,), np.zeros(64, i4))
    assert "line 2: thread (0,0,0) of block" in sentence
    assert "o[threadIdx.x] == 0" in sentence
    assert "__trap()" in run.trap(kernel("__trap();"), (1,), (64,), np.zeros(64, i4))


@pytest.mark.parametrize("threads", [32, 1024])
def test_stack_overflows_are_told(run, threads):
    out = np.zeros(threads, i4)
    deep = kernel(
        "__syncthreads(); out[t] = deep(1 << 20, out);",
        "__device__ int deep(int n, int* o) { volatile int x[64]; x[n & 63] = n;"
        " return n == o[0] - 1 ? 0 : deep(n - 1, o) + x[(n + o[0]) & 63]; }",
    )
    assert "overflowed its stack" in run.trap(deep, (4,), (threads,), out)
    large = kernel("volatile char x[300000]; x[t] = 1; __syncthreads(); out[t] = x[t];")
    assert "overflowed its stack" in run.trap(large, (4,), (threads,), out)
    fits = kernel(
        "volatile char x[50000]; for (int i = 0; i < 50000; i += 100) x[i] = t; __syncthreads(); out[t] = x[99];"
    )
    run(fits, (2,), (threads,), out)


def test_one_block_that_fails_ends_the_launch_on_every_core(run):
    source = kernel("""
        if (blockIdx.x == 3) __trap();
        for (int i = 0; i < 20; i++) __syncthreads();
        if (t == 0) atomicAdd(&out[0], 1);""")
    out = np.zeros(64, i4)
    assert "block (3,0,0) called __trap()" in run.trap(source, (1_000_000,), (64,), out)
    assert out[0] < 500_000


THROUGH = "__device__ int get(const int* s, int i) { return s[i]; }\n__device__ void put(int* s, int i, int v) { s[i] = v; }"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("__shared__ int s[64]; s[t] = t; __syncthreads(); out[t] = get(s, t + 1);",
         r"thread \(63,0,0\) of block \(0,0,0\) went beyond the shared array s: byte 256 of 256"),
        ("__shared__ int u[8], s[64]; s[t] = u[t & 7]; __syncthreads(); out[t] = get(s + 32, t + 5000);",
         r"thread \(63,0,0\) of block \(0,0,0\) went beyond the shared array s: byte 20380 of 256"),
        ("__shared__ int s[64]; put(s, t - 1, 5); __syncthreads(); out[t] = s[t];",
         r"block \(0,0,0\) wrote 4 bytes before the shared array s of 256 bytes"),
        ("__shared__ int s[61]; put(s, t < 63 ? t : 0, 5); __syncthreads(); out[t] = 1;",
         r"block \(0,0,0\) wrote 8 bytes beyond the shared array s of 244 bytes"),
        ("__shared__ volatile float q[1024]; auto f = [&](int i) { return q[i]; }; q[t] = 1; __syncthreads(); out[t] = f(t - 1);",
         r"used index -1 of an array|went before the shared array q: byte -4 of 4096"),
    ],
)  # fmt: skip
def test_indices_that_leave_a_shared_array_through_a_pointer_are_trapped(run, body, words):
    assert re.search(words, run.trap(kernel(body, THROUGH), (1,), (64,), np.zeros(64, i4)))


GET_NEXT = "s[t] = t; __syncthreads(); out[t] = get(&s[0], t + 1);"


@pytest.mark.parametrize(
    ("before", "body", "words"),
    {
        "file scope": ("__shared__ int s[64];", GET_NEXT, "beyond the shared array s: byte 256 of 256"),
        "file scope, static, by a macro": (
            "static __shared__ int s[64];\n#define AT(i) s[i]",
            "AT(t) = t; __syncthreads(); out[t] = get(&AT(0), t + 1);", "beyond the shared array s: byte 256 of 256",
        ),
        "file scope, in a function": (
            "__shared__ int s[64]; __device__ void fill(int t) { s[t] = t; }",
            "fill(t); __syncthreads(); out[t] = get(s, t + 1);", "beyond the shared array s: byte 256 of 256",
        ),
        "a macro": ("#define DECLARE __shared__ int s[64];", f"DECLARE {GET_NEXT}", "beyond the shared array s: byte 256"),
        "a macro's parameter": (
            "#define SHARED(T, name, n) __shared__ T name[n]", f"SHARED(int, s, 64); {GET_NEXT}",
            "beyond the shared array s: byte 256 of 256",
        ),
        "all of the body a macro": (
            f"#define BODY {{ __shared__ int s[64]; {GET_NEXT} }}", "BODY", "beyond the shared array s: byte 256 of 256",
        ),
        "a structure": (
            "struct Tile { int a[64]; int b[32]; };",
            "__shared__ Tile s; s.a[t] = t; __syncthreads(); out[t] = get(s.a, t + 33);",
            "beyond the shared array s: byte 384 of 384",
        ),
        "a union without a name": (
            "", "__shared__ union { int a[64]; float f; } s; s.a[t] = t; __syncthreads(); out[t] = get(s.a, t + 1);",
            "beyond the shared array s: byte 256 of 256",
        ),
        "read before it": ("", "__shared__ int s[64]; s[t] = t; __syncthreads(); out[t] = get(s, t - 1);",
                           "block (1,0,0) went before the shared array s: byte -4 of 256"),
        "read before it, file scope": ("__shared__ int s[1000];", "s[t] = t; __syncthreads(); out[t] = get(s, t - 1);",
                                       "block (1,0,0) went before the shared array s: byte -4 of 4000"),
        "read before dynamic memory": (
            "", "extern __shared__ int s[]; s[t] = t; __syncthreads(); if (blockIdx.x) out[t] = get(s, t - 1);",
            "block (1,0,0) went before its dynamic shared memory: byte -4 of 256",
        ),
        "written beyond dynamic memory": (
            "", "extern __shared__ int s[]; s[t] = t; __syncthreads(); if (blockIdx.x) put(s, t + 1, 5);",
            "block (1,0,0) wrote 4 bytes beyond its dynamic shared memory of 256 bytes",
        ),
    }.values(),
)  # fmt: skip
def test_shared_memory_however_it_is_declared_is_held_through_pointers(run, before, body, words):
    sentence = run.trap(kernel(body, f"{THROUGH}\n{before}"), (2,), (64,), np.zeros(128, i4), shared=256)
    assert words in sentence


@pytest.mark.parametrize(
    ("before", "body"),
    [
        ("__shared__ int s[64];", "s[t] = t; __syncthreads(); out[g] = s[63 - t];"),
        ("namespace ns { __shared__ int s[64]; }", "ns::s[t] = t; __syncthreads(); out[g] = ns::s[63 - t];"),
        ("__shared__ int s[64];", "int s[4] = {63, 62, 61, 60}; __syncthreads(); out[g] = s[0] - t;"),
        (
            "#define DECLARE __shared__ int s[64];\nDECLARE",
            "s[t] = t; __syncthreads(); out[g] = s[63 - t];",
        ),
        (
            "#define AT(i) s[i]\nextern __shared__ int s[];",
            "AT(t) = t; __syncthreads(); out[g] = AT(63 - t);",
        ),
        (
            "template <class T> __device__ T turned(T* x, int t) { __shared__ T s[64]; s[t] = t; __syncthreads(); return s[63 - t]; }",
            "out[g] = turned(out, t) + (int)turned((float*)out, t) - 63 + t;",
        ),
    ],
)
def test_shared_memory_at_file_scope_and_in_macros_is_right(run, before, body):
    out = np.zeros(192, i4)
    for _ in range(2):
        run(kernel(body, before), (3,), (64,), out, shared=256)
        assert out.tolist() == 3 * list(range(63, -1, -1))


def test_an_initial_value_of_shared_memory_is_refused_by_its_line():
    for declaration in (
        "__shared__ int s = 0;",
        "__shared__ float s[4] = {1};",
        "static __shared__ int s[2] = {};",
    ):
        with pytest.raises(
            SourceRefused, match=r"line 2: a __shared__ variable with an initial value is not possible"
        ):
            rewrite(f'extern "C" __global__ void k() {{\n{declaration} }}')


@pytest.mark.parametrize(
    "body",
    [
        "__shared__ int s[64], u[2]; auto f = [=](int i) { return s[i] + u[0]; }; s[t] = t; __syncthreads(); out[t] = f(63 - t);",
        ("static __shared__ alignas(32) int s[64]; volatile __shared__ float q[4][4], v; q[t & 3][1] = v; s[t] = t;"
        " __syncthreads(); out[t] = s[63 - t] + (int)q[0][1];"),
        "for (int k = 0; k < 2; k++) { __shared__ struct { int a[64]; } s[2]; s[k].a[t] = t; __syncthreads(); out[t] = s[k].a[63 - t]; }",
        "switch (t / 64) { case 0: __shared__ int s[64]; s[t] = t; break; default: out[0] = 1; } __syncthreads(); out[t] = 63 - t;",
        ("__shared__ int s[64]; struct Local { static __device__ int size() { return sizeof(s) / sizeof(s[0]); } }; s[t] = t;"
        " __syncthreads(); out[t] = s[Local::size() - 1 - t];"),
    ],
)  # fmt: skip
def test_spellings_of_shared_arrays(run, body):
    out = np.zeros(64, i4)
    for _ in range(2):  # the second launch finds the first one's pages
        run(kernel(body), (3,), (64,), out)
        np.testing.assert_array_equal(out, np.arange(63, -1, -1))


def test_too_much_shared_memory_is_refused_by_name(run):
    out = np.zeros(64, i4)
    for source, shared in [
        (kernel("__shared__ int s[60000]; s[t] = 1; __syncthreads(); out[t] = s[t];"), 0),
        (
            kernel(
                "__shared__ int s[50000]; extern __shared__ int d[]; s[t] = d[t];\n__syncthreads(); out[t] = s[63 - t];"
            ),
            40_000,
        ),
        (kernel("__shared__ char s[1u << 30]; s[t] = 1; __syncthreads(); out[t] = s[63 - t];"), 0),
    ]:
        with pytest.raises(
            RunFailed, match=r"kernel k: \d+ bytes of static.*; a block may have 232448"
        ) as caught:
            run(source, (1,), (64,), out, shared=shared)
        assert caught.value.code == "launch-limits"


def test_several_backends_in_several_threads_do_not_meet(tmp_path, tmp_path_factory):
    faults = []

    def work(number: int) -> None:
        directory = tmp_path / str(number)
        directory.mkdir()
        mine = Runner(directory, tmp_path_factory.getbasetemp())
        out = np.zeros(64, i4)
        for _ in range(20):
            mine(REVERSE, (1,), (64,), out)
            if out.tolist() != list(range(63, -1, -1)):
                faults.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []


def test_every_threads_stack_is_aligned(run):
    source = kernel("""
        float4 v = make_float4(t, t, t, t); void* volatile p = &v;
        __syncthreads();
        out[g] = (int)((size_t)p & 15) + (v.x != t);""")
    out = np.ones(1024, i4)
    run(source, (1,), (1024,), out)
    assert not out.any()


# --- what the source becomes


def test_plain_kernels_stay_loops():
    assert not uses_fibers('extern "C" __global__ void k(float* x) { x[threadIdx.x] = 1; }', ())
    assert uses_fibers("__shared__ int a;", ())
    assert uses_fibers("int a = B;", ("-DB=__activemask",))


def test_lines_stay_and_only_early_returns_change():
    source = (
        "// return;\n__device__ void f() { return; }\n__global__ void p();\n#define R if (x) \\\n return;\n"
        "__global__ void __launch_bounds__(64) k(int n = int{3}) {\r\n if (n) return /* c */ ;\n"
        " auto l = [=] { return; }; f(); { return; }\n return;\n}\nvoid g() { return; }\n"
    )
    changed = rewrite(source)
    assert changed.count("\n") == source.count("\n")
    lines = changed.split("\n")
    assert [number for number, line in enumerate(lines, 1) if "leave" in line] == [5, 7, 8]
    assert lines[6] == " if (n) return coppermesh::leave() /* c */ ;"
    assert lines[7] == " auto l = [=] { return; }; f(); { return coppermesh::leave(); }"


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("\nextern __shared__ int x;", 2),
        ("extern __shared__ int *f();", 1),
        ("\n\n#define D extern __shared__ int s[]\n", 3),
    ],
)
def test_dynamic_shared_memory_declared_in_an_unknown_way_is_refused_by_line(source, line):
    with pytest.raises(SourceRefused, match=f"^line {line}: extern __shared__"):
        rewrite(source)


HOSTILE = {
    "extern": "extern ",
    "shared": "__shared__ a ",
    "names": "extern __shared__ int " + "a[], " * 20_000,
    "lambdas": "void f() {" + "[] {" * 20_000,
    "braces": "{",
    "functions": "void f() { __syncthreads(); } ",
    "calls": "void f(int a) { f(f(f(1))); } ",
    "parentheses": "void f(",
}


@pytest.mark.parametrize("unit", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_sources_are_rewritten_or_refused_in_linear_time(unit):
    source = (unit * 100_000)[:200_000]
    start = time.process_time()
    with contextlib.suppress(SourceRefused):
        rewrite(source)
    assert time.process_time() - start < 5  # a square of the length would be minutes


def test_compile_errors_have_the_users_own_lines(run):
    with pytest.raises(KernelCompileError) as caught:
        run(kernel("extern __shared__ int s[];\n\nout[0] = two;"), (1,), (1,), np.zeros(1, i4))
    assert "kernel.cu:6:" in caught.value.log
