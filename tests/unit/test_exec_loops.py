"""Kernels built as `cuda_loops` changes them, held against the same kernels built as they were written.

Every case is launched with grids, blocks and sizes that Hypothesis picks: sizes of zero, below zero, beyond the grid
and far beyond it; blocks that divide nothing. Results must be equal to the bit, the memory beside the arrays included.
"""
# ruff: noqa: E501  # kernels are easier to compare on one line

import os
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coppermesh.exec import cuda_build
from coppermesh.exec.cuda_build import Kernel, build_kernel
from coppermesh.exec.cuda_cpu import CudaCpu
from coppermesh.exec.cuda_loops import rewrite_loops
from coppermesh.exec.cuda_toolchain import Toolchain, find_toolchain

toolchain = find_toolchain(os.environ.get("COPPERMESH_TEST_COMPILER"))
pytestmark = pytest.mark.skipif(toolchain is None, reason="needs a C++ compiler")

X = "blockIdx.x * blockDim.x + threadIdx.x"
Y = "blockIdx.y * blockDim.y + threadIdx.y"
PAD = 1 << 12
LENGTH = 1 << 15
"""Elements in the middle of each array; `PAD` stand on either side."""

# Parameters: o (counters), a, b (floats; may be one array), n, m. `HIT(i)` counts a visit of an index within bounds.
BEFORE = """
#define HIT(i) do { long long at_ = (long long)(i); if (at_ >= -4096 && at_ < 32768 + 4096) atomicAdd(&o[at_], 1); } while (0)
__device__ int index_of() { return blockIdx.x * blockDim.x + threadIdx.x; }
#define GID (blockIdx.x * blockDim.x + threadIdx.x)
#define EACH(i, n) for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < (n); i += blockDim.x * gridDim.x)
"""
CASES = {
    "int": f"int i = {X}; if (i < n) HIT(i);",
    "early return": f"int i = {X}; if (i >= n) return; HIT(i);",
    "unsigned index": f"unsigned int i = {X}; if (i < n) HIT(i);",  # n below zero is beyond every index
    "unsigned both": f"unsigned int i = {X}, u = n; if (i < u) HIT(i);",
    "size_t": "size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; if (i < n) HIT(i);",
    "long long": f"long long i = {X}, last = n + (long long)m; if (i <= last) HIT(i);",
    "interval": f"int i = {X}; if (i > m && i < n - 1) HIT(i);",
    "unsigned interval": f"unsigned i = {X}; if (i >= m && i < n) HIT(i);",
    "offset": f"int i = {X} + 3; if (i < n) HIT(i);",
    "product that wraps": f"int i = {X}; if (i < n * m * 65536) HIT(i);",
    "two checks": f"int i = {X}; if (i >= n) return; if (m < 0) return; HIT(i + 1);",
    "unknown part": f"int i = {X}; if (i < n && o[i & 255] >= 0) HIT(i);",
    "unknown part first": f"int i = {X}; if (atomicAdd(&o[0], 1) >= 0 && i < n) HIT(i);",
    "flat of blocks": "int i = blockIdx.x; if (i < n) HIT(i);",
    "length of 64": "int i = blockIdx.x * 64 + threadIdx.x; if (i < n) HIT(i);",
    "thread too": f"int i = {X}; if (i < n) HIT(i + (threadIdx.x & 1));",
    "synonyms": "int g = blockIdx.x, t = threadIdx.x; int i = g * blockDim.x + t; if (i < n) HIT(i);",
    "macro": "int i = GID; if (i < n) HIT(i);",
    "function": "int i = index_of(); if (i >= n) return; HIT(i);",
    "image": f"int x = {X}, y = {Y}; if (x < n && y < m) HIT(y * 64 + x);",
    "image, early": f"int x = {X}; int y = {Y}; if (y >= m || x >= n) return; HIT(x * 16 + y);",
    "image, inside": f"int x = {X}, y = {Y}; if (x > 0 && y > 0 && x < n - 1 && y < m - 1) HIT(y * n + x);",
    "image, two sides": f"int x = {X}, y = {Y}; if (x < n && y > 1 && y < m - 1 && y <= 30) HIT(y * 64 + x);",
    "image, blocks of 8 rows": f"int x = {X}; int y = blockIdx.y * 8 + threadIdx.y; if (x < n && y < m) HIT(y * 64 + x);",
    "rows by blocks": f"int x = {X}; int y = blockIdx.y; if (x < n) HIT(y * 32 + x);",
    "flat of two": "int i = blockIdx.x * (blockDim.x * blockDim.y) + threadIdx.y * blockDim.x + threadIdx.x; if (i < n) HIT(i);",
    "negated": f"int i = {X}; if (!(i < n && i > m)) return; HIT(i);",
    "stride": f"for (int i = {X}; i < n; i += blockDim.x * gridDim.x) HIT(i);",
    "stride, size_t": f"for (size_t i = {X}; i < (size_t)(n < 0 ? 0 : n); i += blockDim.x * gridDim.x) HIT(i);",
    "stride, while": f"int i = {X}; int s = gridDim.x * blockDim.x; while (i < n) {{ HIT(i); i += s; }}",
    "stride, index": f"int f = {X}, s = blockDim.x * gridDim.x; for (int i = f; i < n; i += s) HIT(i);",
    "stride by a macro": "EACH(j, n) { HIT(j); }",
    "stride with an inner loop": f"for (int i = {X}; i < n; i += blockDim.x * gridDim.x) for (int k = 0; k < 3; k++) HIT(i + k);",
    "stride after its own turns": f"for (int i = {X}; i < n; i += blockDim.x * gridDim.x) {{"
    " int before = i - (int)(blockDim.x * gridDim.x); o[i] = before < 0 ? 1 : o[before] + 1; }",
    "subscripts": f"int x = {X}, y = {Y}; if (x < 64 && y < 32) {{ int at = y * 64 + x, up = at - 64;"
    " b[at] = a[y * 64 + x] + (y > 0 ? a[up + 0] : 0.0f) + a[at + 1]; HIT(at); }",
    "subscripts, unsigned": f"unsigned x = {X}, y = {Y}; if (x < 64u && y < 32u) {{ b[y * 64 + x] = a[x - 1 + 1]; HIT(x + y * 64 - 1); }}",
    "subscripts that change": f"int x = {X}; if (x < n && x < 512 && x >= 0) {{ int at = x * 2 + 1; for (int k = 0; k < 4; k++) {{ at = at + k; b[at] = a[at + 1] * 2; }} }}",
    "shadows": f"int x = {X}; if (x < n && x < 512 && x >= 0) {{ int at = x * 2 + 1; {{ int at = x + 4; b[2048 + at * 1] = a[at]; }} b[at] = 1; }}",
    "launch, blocks in rows": "int block = blockIdx.y * gridDim.x + blockIdx.x; int i = block * blockDim.x * blockDim.y + threadIdx.y * blockDim.x + threadIdx.x; if (i >= n) return; HIT(i);",
    "launch, blocks in columns": "int i = (blockIdx.x * gridDim.y + blockIdx.y) * blockDim.x + threadIdx.x; if (i < n) HIT(i);",
    "launch, tid": "const int tid = threadIdx.x + threadIdx.y * blockDim.x; const int i = blockIdx.x * (blockDim.x * blockDim.y) + tid; if (i < n) HIT(i);",
    "launch, tid too": "int tid = threadIdx.x + threadIdx.y * blockDim.x; int i = blockIdx.x * (blockDim.x * blockDim.y) + tid; if (i < n) HIT(i + (tid & 1));",
    "launch, cast": "long long i = (long long)(blockIdx.x + gridDim.x * blockIdx.y) * (blockDim.x * blockDim.y) + (threadIdx.y * blockDim.x + threadIdx.x); if (i < n) { HIT(i); b[i & 1023] = i; }",
    "launch, doubled": "int i = 2 * (blockIdx.x * blockDim.x + threadIdx.x) + blockIdx.y; if (i < n) HIT(i);",
    "launch, stride": "int i = (blockIdx.x + blockIdx.y * gridDim.x) * (blockDim.x * blockDim.y) + threadIdx.y * blockDim.x + threadIdx.x; int s = gridDim.x * gridDim.y * blockDim.x * blockDim.y; for (; i < n; i += s) HIT(i);",
    "sum": f"int s = m; for (int i = {X}; i < n; i += blockDim.x * gridDim.x) {{ s += i; HIT(i); }} HIT(s & 8191); if (s > 5) return; HIT(1);",
    "sum, while": f"int i = {X}; const int first = 3; float s = 0, t; t = 0;  while (i < n) {{ s += a[i]; HIT(i); i += gridDim.x * blockDim.x; }} atomicAdd(&o[0], first + (int)(s * 1e3f));",
    "sum of all": f"int i = {X}; float s = 0.0f, c = 1.0f; int count = 0; for (int j = i; j < n; j += blockDim.x * gridDim.x) {{ s += a[j]; if (a[j] > 0.5f) {{ count++; c *= a[j]; }} }} HIT(i + count); HIT((int)(s * c * 100.0f));",
    "sum by blocks": f"int s = 0; for (int i = {X}; i < n; i += blockDim.x * gridDim.x) s += i & 7; if (threadIdx.x == 0) HIT(blockIdx.x + s); o[4000 + blockIdx.x * blockDim.x + threadIdx.x] = s;",
    "sum of arguments": f"for (int i = {X}; i < n; i += blockDim.x * gridDim.x) {{ m += i; HIT(m & 4095); }}",
    "sum by a pointer": f"for (int i = {X}; i < n; i += blockDim.x * gridDim.x) {{ a += 1; HIT(i); b[i & 63] = a[0] * 0.0f; }}",
    "sum by a reference": f"float s = 0; float& r = s; for (int i = {X}; i < n; i += blockDim.x * gridDim.x) {{ r += 1; HIT(i); }} HIT((int)s);",
    "grid of two": f"for (int r = {Y}; r < m; r += blockDim.y * gridDim.y) for (int c = {X}; c < n; c += blockDim.x * gridDim.x) HIT(r * 64 + c);",
    "grid of two, braces": f"for (int r = {Y}; r < m; r += gridDim.y * blockDim.y) {{ for (int c = {X}; c < n; c += blockDim.x * gridDim.x) {{ int at = r * 64 + c; HIT(at); b[at & 4095] = a[5]; }} }}",
    "grid of two and more": f"for (int r = {Y}; r < m; r += gridDim.y * blockDim.y) {{ for (int c = {X}; c < n; c += blockDim.x * gridDim.x) HIT(r * 64 + c); HIT(r); }}",
    "grid of two, counted": f"for (int r = 0; r < m; r++) for (int c = {X}; c < n; c += blockDim.x * gridDim.x) HIT(r * 64 + c);",
    "grid of two, stepped": f"for (int r = 0; r < m; r += 3) for (int c = {X}; c < n; c += blockDim.x * gridDim.x) HIT(c + r * 2);",
    "grid of two, after its own turns": f"for (int r = {Y}; r < m; r += blockDim.y * gridDim.y) for (int c = {X}; c < n && c < 64; c += blockDim.x * gridDim.x) {{ int before = r - (int)(blockDim.y * gridDim.y); b[r * 64 + c] = before < 0 ? 1.0f : b[before * 64 + c] + 1.0f; }}",
    "grid of two, own turns by number": f"for (int r = {Y}; r < m; r += blockDim.y * gridDim.y) for (int c = {X}; c < n; c += blockDim.x * gridDim.x) {{ int before = r - (int)(blockDim.y * gridDim.y); if (c < 64) b[r * 64 + c] = before < 0 ? 1.0f : b[before * 64 + c] + 1.0f; }}",
    "grid of two, rows of blocks": f"for (int r = blockIdx.y; r < m; r += gridDim.y) for (int c = {X}; c < n; c += blockDim.x * gridDim.x) HIT(r * 64 + c);",
    "grid of two, unsigned": f"for (unsigned r = {Y} + 1; r < m; r += blockDim.y * gridDim.y) for (int c = {X}; c < n; c += blockDim.x * gridDim.x) HIT(r * 64 + c);",
    "grid of two, counted at once": f"for (int r = {Y}; r < m; r += blockDim.y * gridDim.y) for (int c = {X}; c < n; c += blockDim.x * gridDim.x) if (c < 4096) atomicAdd(&o[r * 64 + c], 1);",
    "image, counted at once": f"int x = {X}, y = {Y}; if (x >= n || y >= m || x >= 4096) return; atomicAdd(&o[y * 64 + x], gridDim.x + 3 * blockIdx.y + 5 * threadIdx.y + blockDim.x);",
    "counted at once": f"int i = {X}; if (i < n && i < 32768) {{ atomicAdd(&o[i], 1); b[i] = atomicMax(&o[i], gridDim.x); }}",
    "sum, added at once": f"int s = 1; for (int i = {X}; i < n; i += blockDim.x * gridDim.x) {{ s += i & 7; if (a[i] > 0.25f) atomicAdd(&o[i & 1023], s); }} atomicAdd(&o[2000], s);",
    "rows of blocks, each another": "int row = blockIdx.x; for (int c = threadIdx.x; c < n - row && c < 64; c += blockDim.x) HIT(row * 64 + c);",
    "rows of blocks, shorter": "int row = blockIdx.x; for (int c = threadIdx.x; c < m - row; c += blockDim.x) HIT(row * 64 + c);",
    "rows of blocks, own turns": "int row = blockIdx.x, w = blockDim.x; for (int c = threadIdx.x; c < m; c += blockDim.x) { b[row * 64 + c] = c < w ? 2.0f : b[row * 64 + c - w] + 1.0f; HIT(c + 64 * blockIdx.x); }",
    "rows of blocks, counted at once": "int row = blockIdx.x; for (int c = threadIdx.x; c < m; c += blockDim.x) atomicAdd(&o[row * 64 + c], 1 + blockIdx.x);",
    "offset by rows": f"int x = {X}, y = {Y}; int at = x + y * blockDim.x * gridDim.x; if (at < n) HIT(at);",
    "offset by rows, used": f"int x = {X}, y = {Y}; int at = x + y * blockDim.x * gridDim.x; if (at >= n || at >= 8192) return; b[at] = a[at + 1] + b[at]; HIT(at);",
    "offset by rows, unsigned": f"int x = {X}, y = {Y}; unsigned at = x + y * blockDim.x * gridDim.x; if (at < n) HIT(at);",
    "offset that may be below zero": f"int x = {X}; int at = m * 1024 + x; if (at < n) {{ HIT(at); HIT(x); }} ",
    "independent": f"for (int i = {X}; i < n; i += blockDim.x * gridDim.x) b[i] = a[i + 1] + b[i] * 0.5f;",
    "not independent": f"for (int i = {X}; i < n; i += blockDim.x * gridDim.x) {{ int w = blockDim.x * gridDim.x; b[i] = i < w ? 1.0f : b[i - w] + 1.0f; }}",
    "independent counts": f"for (int i = {X}; i < n; i += blockDim.x * gridDim.x) {{ if (a[i] > 0.5f) atomicAdd(&o[i & 15], 1); }}",
    "counts that matter": f"for (int i = {X}; i < n; i += blockDim.x * gridDim.x) {{ if (gridDim.x * blockDim.x == 1) b[i] = atomicAdd(&o[i & 15], 1); }}",
    "rows of blocks": "int row = blockIdx.x; for (int c = threadIdx.x; c < m; c += blockDim.x) HIT(row * 64 + c);",
    "rows of blocks, sum": "int row = blockIdx.x; int s = row; for (int c = threadIdx.x; c <= m; c += blockDim.x) s += c; HIT(s); HIT(row * 16 + threadIdx.x);",
    "rows of blocks, y": "for (int c = threadIdx.x; c < m; c += blockDim.x) HIT((blockIdx.x * blockDim.y + threadIdx.y) * 64 + c);",
    "stride not the grid's": f"for (int i = {X}; i < n; i += 64) HIT(i);",
    "half of the stride": f"int s = blockDim.x * gridDim.x; for (int i = {X}; i < n; i += s / 2 + 1) HIT(i);",
    "counter shadowed": f"int x = {X}; if (x < n && x < 64 && x >= 0) for (int k = 0; k < 4; k++) {{ int at = x * 8 + k; for (int k = 7; k > 5; k--) b[at + k * 512] = k; }}",
}  # fmt: skip
ON_ONE_THREAD = {
    "neighbours": f"int i = {X}; if (i < n && i < 32767) b[i] = a[i + 1] * 0.5f + b[i];",
    "neighbours before": f"int i = {X}; if (i >= n || i >= 32768 || i < 1) return; b[i] = a[i - 1] + 1.0f;",
    "stride to neighbours": f"for (int i = {X}; i < n && true; i += blockDim.x * gridDim.x) b[i] = a[i + 1];",
}
"""Threads read what others write: only the order of one processor tells what comes out (CUDA leaves it open)."""


def _compile(compiler: Toolchain, path: Path, kernel: Kernel) -> int:
    return build_kernel(kernel, compiler, path, path)


def build(tmp_path_factory, body: str, threads: int):
    """What launches the kernel as changed, and as written."""
    text = (
        f'{BEFORE}extern "C" __global__ void k(int* o, const float* a, float* b, int n, int m) {{ {body} }}'
    )
    launches = []
    assert toolchain is not None
    for change in (rewrite_loops, lambda source, names, options: (source, ())):
        path = tmp_path_factory.mktemp("build")
        with mock.patch.object(cuda_build, "rewrite_loops", change):
            cuda = CudaCpu(partial(_compile, toolchain, path), threads=threads)
            launches.append(cuda.load(text, "k", ()))
    return launches


def arrays(same: bool):
    """Counters and two arrays with pads, and the middle of each; `same`: both float arrays are one."""
    rng = np.random.default_rng(3)
    o = np.zeros(LENGTH + 2 * PAD, np.int32)
    a, b = (rng.random(LENGTH + 2 * PAD, np.float32) for _ in range(2))
    b = a if same else b
    return (o, a, b), [array[PAD : PAD + LENGTH] for array in (o, a, b)]


sizes = st.one_of(
    st.integers(-3, 130), st.integers(0, 5000), st.sampled_from([-(2**31), 2**31 - 1, 2**30, LENGTH])
)
launches_of = st.tuples(
    st.tuples(st.integers(1, 40), st.integers(1, 3)),
    st.sampled_from([(1, 1), (3, 1), (16, 1), (64, 1), (100, 1), (16, 4), (5, 3), (64, 2), (1, 8)]),
)


def hold(pair, grid, block, n, m, same) -> None:
    """Run both, and compare all their memory."""
    results = []
    for launch in pair:
        whole, middle = arrays(same)
        launch((*grid, 1), (*block, 1), 0, [*middle, np.int32(n), np.int32(m)])
        results.append(whole)
    for changed, written in zip(*results, strict=True):
        np.testing.assert_array_equal(changed, written)


def bounded(body: str, n: int) -> int:
    """Loops over the grid go as far as `n` says: not further than the arrays."""
    return min(n, LENGTH) if "gridDim" in body or "EACH" in body or "+= 64" in body else n


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_changed_and_written_give_the_same(name, tmp_path_factory):
    pair = build(tmp_path_factory, CASES[name], threads=2)

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(launches_of, sizes, st.integers(-2, 40), st.booleans())
    def check(launch, n, m, same):
        same = same and "a[" not in CASES[name]
        if "unsigned r" in CASES[name]:
            m = max(m, 0)  # a loop that counts to 2^32 - 2 is as good as endless, changed or not
        hold(pair, *launch, bounded(CASES[name], n), m, same)

    check()


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_ONE_THREAD)
def test_arrays_that_are_one_are_seen_by_the_loop(name, tmp_path_factory):
    pair = build(tmp_path_factory, ON_ONE_THREAD[name], threads=1)

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(1, 40), st.sampled_from([1, 16, 64, 100]), sizes, st.booleans())
    def check(blocks, length, n, same):
        hold(pair, (blocks, 1), (length, 1), bounded(ON_ONE_THREAD[name], n), 0, same)

    check()


def test_most_cases_are_changed_at_all():
    def changed(body: str) -> bool:
        text = f'{BEFORE}extern "C" __global__ void k(int* o, const float* a, float* b, int n, int m) {{ {body} }}'
        return bool(rewrite_loops(text, ["k"], {})[1])

    assert {name for name, body in CASES.items() if not changed(body)} == {
        "launch, tid too",
        "rows of blocks, sum",
    }


@pytest.mark.parametrize(
    ("name", "read"),
    {
        "flat of two": "linear = 1", "launch, tid": "linear = 1", "launch, stride": "linear = 1",
        "sum": "kept = true", "sum of all": "kept = true", "sum by blocks": "apart = true",
        "rows of blocks": "blockwise = true", "grid of two": "nested = true", "independent": "independent = true",
        "independent counts": "independent = true", "offset by rows": "sum_below(n", "image": "convex = true", "image, early": "convex = true",
        "image, two sides": "convex = true", "rows by blocks": "convex = true",
    }.items(),
)  # fmt: skip
def test_what_is_read_in_them(name, read):
    text = f'{BEFORE}extern "C" __global__ void k(int* o, const float* a, float* b, int n, int m) {{ {CASES[name]} }}'
    assert read in rewrite_loops(text, ["k"], {})[0]


@pytest.mark.parametrize(
    "name",
    ["not independent", "counts that matter", "sum of arguments", "sum by a pointer", "sum by a reference"],
)
def test_what_is_not_read_in_them(name):
    text = f'{BEFORE}extern "C" __global__ void k(int* o, const float* a, float* b, int n, int m) {{ {CASES[name]} }}'
    changed = rewrite_loops(text, ["k"], {})[0]
    assert "independent = true" not in changed
    assert "kept = true" not in changed


@pytest.mark.parametrize(
    "check",
    [
        "y % 2 < m", "y < o[0]", "(y ^ 1) < m", "(unsigned char)y < m", "threadIdx.y < m", "y * y < m",
        "blockIdx.y * 8 + threadIdx.y < m", "m - y < n", "y + blockIdx.y < m",
    ],
)  # fmt: skip
def test_rows_that_may_not_lie_together(check):
    """Between two rows that pass these there may be one that does not: every row must be asked."""
    body = f"int x = {X}; int y = {Y}; if (x < n && {check}) HIT(y * 64 + x);"
    text = (
        f'{BEFORE}extern "C" __global__ void k(int* o, const float* a, float* b, int n, int m) {{ {body} }}'
    )
    changed = rewrite_loops(text, ["k"], {})[0]
    assert (
        "convex = true" not in changed or ".only(" not in changed
    )  # or it is left where it was, for each thread


@pytest.mark.parametrize(
    ("check", "holds"),
    [
        ("if (i >= n || lo > hi) return;", lambda lo, hi, y: not lo > hi),
        ("if (i >= n || y >= hi) return;", lambda lo, hi, y: not y >= hi),
        ("if (hi < y || i >= n) return;", lambda lo, hi, y: not hi < y),
        ("if (!(i < n && lo <= hi)) return;", lambda lo, hi, y: lo <= hi),
        ("if (i >= n) return; if (lo <= hi)", lambda lo, hi, y: lo <= hi),
    ],
)
def test_a_comparison_with_nan_is_false_whichever_way_it_is_asked(check, holds, tmp_path):
    """`!(a > b)` is not `a <= b`: an early return for which that was taken ended every thread."""
    body = f"int i = {X}; int y = {Y}; {check} atomicAdd(&o[y * 64 + i], 1);"
    cuda = CudaCpu(lambda kernel: build_kernel(kernel, toolchain, tmp_path, tmp_path), threads=2)
    launch = cuda.load(
        f'extern "C" __global__ void k(int* o, int n, float lo, float hi) {{ {body} }}', "k", ()
    )
    for lo, hi in [(np.nan, 1.0), (1.0, np.nan), (0.0, 2.5), (3.0, 0.0)]:
        out = np.zeros(8 * 64, np.int32)
        launch((2, 4, 1), (32, 2, 1), 0, [out, np.int32(50), np.float32(lo), np.float32(hi)])
        want = [[int(i < 50 and holds(lo, hi, y)) for i in range(64)] for y in range(8)]
        np.testing.assert_array_equal(out.reshape(8, 64), want)


@pytest.mark.parametrize("blocks", [(1 << 20) + 3, (1 << 22) + 1])
def test_rows_beyond_a_million_blocks(blocks, tmp_path):
    body = f"int i = {X}; if (i < n) atomicAdd(&o[i & 1023], 1);"
    cuda = CudaCpu(lambda kernel: build_kernel(kernel, toolchain, tmp_path, tmp_path), threads=2)
    launch = cuda.load(f'extern "C" __global__ void k(int* o, int n) {{ {body} }}', "k", ())
    out = np.zeros(1024, np.int32)
    launch((blocks, 1, 1), (1, 1, 1), 0, [out, np.int32(blocks - 2)])
    np.testing.assert_array_equal(out, np.bincount(np.arange(blocks - 2) & 1023, minlength=1024))


def test_a_fault_in_a_changed_loop_names_thread_and_block(tmp_path):
    body = f"int i = {X}; if (i < n) {{ o[i] = 1; assert(i != 150); }}"
    cuda = CudaCpu(lambda kernel: build_kernel(kernel, toolchain, tmp_path, tmp_path), threads=1)
    launch = cuda.load(f'extern "C" __global__ void k(int* o, int n) {{ {body} }}', "k", ())
    with pytest.raises(
        Exception, match=r"thread \(22,0,0\) of block \(2,0,0\) failed the assertion i != 150"
    ):
        launch((10, 1, 1), (64, 1, 1), 0, [np.zeros(640, np.int32), np.int32(600)])
