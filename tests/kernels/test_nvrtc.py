"""The corpus compiles by NVRTC, for the oldest architecture it is written for and the newest that NVRTC knows.

Slow lane: needs the extra `check` (bootstrap/setup --check), no GPU. What NVRTC takes here is all that is claimed of
CUDA without a GPU: that the same source compiles, not that it gives the same answers.
"""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import coppermesh as cm
from coppermesh.exec.compile_child import ask_nvrtc, compile_for_cuda
from coppermesh.exec.cuda_features import CUDA, FEATURES, runtime_features
from coppermesh.exec.cuda_modules import module_parts
from coppermesh.exec.cuda_needs import check_kernel_source, kernel_needs
from coppermesh.exec.nvrtc import missing_parts
from coppermesh.exec.program import KernelSource
from coppermesh.exec.tracing import trace

REQUIRED = "COPPERMESH_REQUIRE_NVRTC" in os.environ
"""Set by .ci/run: there NVRTC must be."""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(missing_parts()) and not REQUIRED, reason="needs NVRTC (bootstrap/setup --check installs it)"
    ),
]

OLDEST = "sm_75"
HERE = Path(__file__).parent

_spec = importlib.util.spec_from_file_location("coppermesh_corpus_nvrtc", HERE / "corpus.py")
assert _spec is not None
assert _spec.loader is not None
corpus: Any = importlib.util.module_from_spec(_spec)
# Its dataclasses look their module up by name.
__import__("sys").modules[_spec.name] = corpus
_spec.loader.exec_module(corpus)


@pytest.fixture(scope="module")
def newest() -> str:
    facts = ask_nvrtc()
    known: list[str] = facts["architectures"]
    assert OLDEST in known
    return known[-1]


def kernels_of(case: Any) -> Iterator[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """Source, options and name expressions of everything that the case launches."""
    _, outputs = case.record(cm, cm.xp, np.random.default_rng(1))
    for kernel in trace(*outputs).checked.program.kernels:
        if kernel.kind == "raw":
            yield kernel.texts[0], kernel.options, ()
        elif kernel.kind == "module":
            parts = module_parts(kernel)
            yield parts.source, kernel.options, parts.expressions


def must_compile(source: str, architecture: str, options: tuple[str, ...], names: tuple[str, ...]) -> None:
    answer = compile_for_cuda(source, architecture, options, names)
    assert answer["ok"], f"{architecture}: {answer}"
    assert answer["cubin_bytes"] > 0


@pytest.mark.parametrize("case", corpus.CASES, ids=lambda case: case.name)
def test_every_kernel_of_the_corpus_compiles(case: Any, newest: str) -> None:
    compiled = 0
    for source, options, names in kernels_of(case):
        for architecture in (OLDEST, newest):
            must_compile(source, architecture, options, names)
            compiled += 1
    assert compiled


def test_no_file_of_the_corpus_is_forgotten() -> None:
    assert {case.file.name for case in corpus.CASES} == {path.name for path in HERE.glob("*.cu")}


EVIDENCE = {
    "cuda-shared-memory": "__global__ void k(int* x) { __shared__ int s[32]; s[threadIdx.x] = 1; x[0] = s[31]; }",
    "cuda-barriers": "__global__ void k(int* x) { x[0] = __syncthreads_count(x[1]); }",
    "cuda-named-barriers": "__global__ void k(int* x) { __barrier_sync(1); }",
    "cuda-warps": "__global__ void k(int* x) { x[0] = __shfl_down_sync(~0u, x[1], 1) + __any_sync(~0u, x[2]); }",
    "cuda-groups": "#include <cooperative_groups.h>\n"
    "__global__ void k(int* x) { x[0] = cooperative_groups::this_thread_block().thread_rank(); }",
    "cuda-large-tiles": "#include <cooperative_groups.h>\n"
    "namespace cg = cooperative_groups;\n"
    "__global__ void k(unsigned* x) { __shared__ cg::block_tile_memory<128> memory;\n"
    "auto block = cg::this_thread_block(memory); auto tile = cg::tiled_partition<64>(block);\n"
    "tile.sync(); x[cg::this_grid().thread_rank()] = tile.thread_rank(); }",
    "cuda-half": "#include <cuda_fp16.h>\n"
    "__global__ void k(float* x) { x[0] = __half2float(__hadd(__float2half(x[1]), __float2half(1.0f))); }",
    "cuda-bfloat16": "#include <cuda_bf16.h>\n"
    "__global__ void k(float* x) { __nv_bfloat16 b = __float2bfloat16(x[0]); x[0] = __bfloat162float(b); }",
    "cuda-device-heap": "__global__ void k(int* x) { int* p = new int[4]; x[0] = *p; delete[] p; free(malloc(8)); }",
    "cuda-inline-ptx": '__global__ void k(unsigned* x) { asm("mov.u32 %0, %%laneid;" : "=r"(x[0])); }',
    "cuda-complex": "#include <cuComplex.h>\n"
    "__global__ void k(float* x) { x[0] = cuCabsf(make_cuFloatComplex(x[0], x[1])); }",
}
"""A kernel with each feature that CUDA devices announce beyond plain source."""


def test_every_feature_that_cuda_devices_announce_has_its_evidence() -> None:
    assert EVIDENCE.keys() == runtime_features(CUDA)


@pytest.mark.parametrize("code", sorted(EVIDENCE))
def test_a_feature_that_cuda_devices_announce_compiles(code: str, newest: str) -> None:
    kernel = KernelSource("raw", "k", (), (EVIDENCE[code],))
    check_kernel_source(kernel)
    assert code in {need.code for need in kernel_needs([kernel])}
    for architecture in (OLDEST, newest):
        must_compile(EVIDENCE[code], architecture, (), ())


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (
            'extern "C" __global__ void k(float* x) { x[0] = y; }',
            'kernel.cu(1): error: identifier "y" is undefined',
        ),
        (
            "int f() { return 1; }\n__global__ void k(int* x) { x[0] = f(); }",
            "host functions are not allowed",
        ),
        (
            "__global__ void k(int* x) {\n__shared__ int s[100000]; s[x[1]] = 1; x[0] = s[x[2]]; }",
            "too much shared",
        ),
        ("__global__ int k(int* x) { return 1; }", "must have a void return type"),
        ("template <class T> __global__ void k(T* x) { x[0] = T::none; }", "none"),
    ],
)
def test_what_must_not_compile_fails_for_the_right_reason(source: str, why: str) -> None:
    answer = compile_for_cuda(source, OLDEST, (), ("k<float>",) if "template" in source else ())
    assert not answer["ok"]
    assert why in answer["log"], answer["log"]


def test_control_without_the_gate_nvrtc_does_show_files_of_the_machine(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("hunter2\n")
    assert "hunter2" in compile_for_cuda(f'#include "{secret}"\n', OLDEST, (), ())["log"]


def test_bombs_end_at_the_limits() -> None:
    doubling = (
        "template <int A, int B> struct G { static const long v = G<A-1, 2*B>::v + G<A-1, 2*B+1>::v; };\n"
    )
    source = f"{doubling}template <int B> struct G<0, B> {{ static const long v = 1; }};\n"
    answer = compile_for_cuda(source + "__global__ void k(long* x) { x[0] = G<22, 1>::v; }", OLDEST, (), ())
    assert not answer["ok"]


def test_the_table_claims_nothing_of_cuda_that_is_not_shown_here() -> None:
    claimed = {feature.code for feature in FEATURES if CUDA in feature.runtimes}
    assert claimed == EVIDENCE.keys()
