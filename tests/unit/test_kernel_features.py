"""What a kernel needs of a device: read off its source, refused or announced, and matched on both sides."""

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import coppermesh as cm
from coppermesh.agent import requester as requester_module
from coppermesh.agent.dispatch import Dispatcher
from coppermesh.agent.dispatch_state import DispatchLimits
from coppermesh.exec import cuda_features, device
from coppermesh.exec.cuda_features import (
    CPU,
    CUDA,
    FEATURES,
    feature_of_header,
    feature_of_word,
    runtime_features,
)
from coppermesh.exec.cuda_gate import HEADERS, SourceRefused, check_cpu_source
from coppermesh.exec.cuda_needs import kernel_needs, program_needs, refuse_missing
from coppermesh.exec.errors import ProgramInvalid, RunFailed
from coppermesh.exec.program import KernelSource, decode_program
from coppermesh.exec.recorder import Array, trace
from coppermesh.exec.schema import check_program

xp = cm.xp

_path = Path(__file__).with_name("test_agent_world.py")
_spec = importlib.util.spec_from_file_location("coppermesh_agent_world", _path)
assert _spec is not None
assert _spec.loader is not None
world: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(world)

LANES = """
extern "C" __global__ void lanes(float* x) {
    unsigned lane;
    asm("mov.u32 %0, %%laneid;" : "=r"(lane));
    x[threadIdx.x] = lane;
}"""
PLAIN = 'extern "C" __global__ void plain(float* x) { x[threadIdx.x] = 1; }'
INLINE_PTX = "cuda-inline-ptx"


def launched(source: str, name: str) -> Array:
    x = xp.asarray(np.zeros(32, np.float32)) + 0
    cm.RawKernel(source, name)((1,), (32,), (x,))
    return x


# --- the table


def test_codes_fit_an_announcement() -> None:
    codes = {feature.code for feature in FEATURES}
    assert len(codes) <= cuda_features.MAX_CODES
    assert all(re.fullmatch(r"cuda-[a-z0-9-]{1,35}", code) for code in codes)
    assert all(feature.instead for feature in FEATURES)


def test_rows_of_one_code_have_the_same_runtimes() -> None:
    runtimes: dict[str, frozenset[str]] = {}
    for feature in FEATURES:
        assert runtimes.setdefault(feature.code, feature.runtimes) == feature.runtimes, feature.code


def test_every_row_can_be_found_by_what_shows_it() -> None:
    for feature in FEATURES:
        for word in feature.words:
            assert feature_of_word(word) is feature
        for word in feature.namespaces:
            assert feature_of_word(word, ":") is feature
            assert feature_of_word(word, ";") is None
        assert feature.words or feature.namespaces or feature.pattern or feature.headers


def test_a_header_in_the_shim_is_of_plain_source_or_of_a_feature_that_cpus_have() -> None:
    for header in HEADERS:
        feature = feature_of_header(header)
        assert feature is None or CPU in feature.runtimes or header.startswith("cuda/std/"), header


def test_devices_announce_what_their_runtime_has(monkeypatch: pytest.MonkeyPatch) -> None:
    assert INLINE_PTX in runtime_features(CUDA)
    assert INLINE_PTX not in runtime_features(CPU)
    assert "cuda-textures" not in runtime_features(CUDA) | runtime_features(CPU)
    cpu = device.probe_cpu()
    assert set(cpu.features) >= {"array-programs", "float16-arrays", "cuda-source"} | runtime_features(CPU)
    monkeypatch.setattr(device, "find_spec", lambda name: object())
    arrays = {"array-programs", "float16-arrays"}
    assert set(device._gpu_features()) == arrays | {"cuda-source"} | runtime_features(CUDA)


# --- reading programs


def test_a_plain_kernel_needs_nothing_more() -> None:
    checked = trace(launched(PLAIN, "plain")).checked
    assert checked.features == {"array-programs", "cuda-source"}
    assert list(program_needs(checked)) == []


def test_a_program_needs_what_its_kernels_use_and_says_where() -> None:
    recording = trace(launched(LANES, "lanes"))
    assert INLINE_PTX in recording.checked.features
    need = next(program_needs(recording.checked))
    assert str(need) == "kernel lanes, line 4: asm (inline assembly)"
    # The provider, which has the bytes only, comes to the same.
    there = check_program(decode_program(recording.program))
    assert there.features == recording.checked.features
    assert list(program_needs(there)) == list(program_needs(recording.checked))


def test_an_elementwise_kernel_says_in_which_text() -> None:
    kernel = KernelSource("elementwise", "k", (), ("float32 x", "float32 y", 'y = x;\nasm("");', ""))
    assert [str(need) for need in kernel_needs([kernel])] == [
        "kernel k, line 2 of its operation: asm (inline assembly)"
    ]


def test_a_macro_in_the_options_counts() -> None:
    kernel = KernelSource("raw", "k", ("-DX=asm",), (PLAIN,))
    assert [str(need) for need in kernel_needs([kernel])] == ["kernel k, its options: asm (inline assembly)"]


def test_a_word_pasted_together_across_texts_is_refused() -> None:
    with pytest.raises(ProgramInvalid, match="__has_include could be spelled"):
        cm.ElementwiseKernel(
            "float32 x",
            "float32 y",
            "\n#if P(__has_, include)(<x.h>)\n#endif\ny = x",
            "k",
            preamble="#define P(a, b) a##b",
        )


@pytest.mark.parametrize(
    ("line", "word", "instead"),
    [
        ("float v = tex2D<float>(t, 1, 2);", "textures", "plain array"),
        ("surf2Dwrite(v, s, 1, 2);", "surfaces", "plain array"),
        ("plain<<<1, 32>>>(x);", "dynamic parallelism", "one launch after the other"),
        ("curandState state;", "curand", "xp.random"),
        ("cub::BlockReduce<float, 32> reduce;", "cub", "xp's"),
        ("thrust::sort(x, x + 32);", "thrust", "xp's"),
        ("nvcuda::wmma::fragment<int> f;", "wmma", "xp.matmul"),
        ("cooperative_groups::this_grid().sync();", "grid synchronisation", "split the kernel"),
        ("__cluster_dims__(2, 1, 1)", "clusters", "blocks"),
        ("float* p; cudaMalloc(&p, 4);", "runtime's functions", "outside the kernel"),
        ("std::vector<float> v;", "standard library", "write it out"),
    ],
)
def test_what_no_device_has_is_refused_when_the_kernel_is_made(line: str, word: str, instead: str) -> None:
    source = f'extern "C" __global__ void k(float* x) {{\n{line}\n}}'
    with pytest.raises(ProgramInvalid) as caught:
        cm.RawKernel(source, "k")
    assert caught.value.code == "unsupported-feature"
    for part in ("kernel k, line 2", word, instead):
        assert part in caught.value.sentence


@pytest.mark.parametrize(
    "header", ["stdio.h", "cub/cub.cuh", "curand_kernel.h", "cstdint", "mma.h", "cuda/atomic"]
)
def test_headers_that_no_device_has_are_refused_when_the_kernel_is_made(header: str) -> None:
    with pytest.raises(ProgramInvalid, match=rf"line 1: #include <{re.escape(header)}>"):
        cm.RawKernel(f"#include <{header}>\n{PLAIN}", "plain")


def test_a_cpu_refuses_before_it_runs_what_it_was_sent_all_the_same() -> None:
    checked = trace(launched(LANES, "lanes")).checked
    with pytest.raises(
        RunFailed, match=r"kernel lanes, line 4: asm .* not possible on a cpu device: run the job on"
    ):
        refuse_missing(checked, CPU)
    refuse_missing(checked, CUDA)
    with pytest.raises(SourceRefused):
        check_cpu_source(LANES)


# --- whole agents


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = DispatchLimits(hopeless_us=0)
    monkeypatch.setattr(
        requester_module, "Dispatcher", lambda now_us, _limits, near: Dispatcher(now_us, at_once, near)
    )


def zeros(inputs: Any) -> bytes:
    return bytes(128)


async def test_where_nobody_has_the_feature_the_user_reads_its_name_and_line(tmp_path, hurried):
    compiling = replace(world.CPU, features=("array-programs", "cuda-source"))
    async with world.open_world(tmp_path) as mesh:
        provider = await mesh.add("provider", provide=True, script=zeros, device=compiling)
        requester = await mesh.add("requester", provide=False, bootstrap=provider)
        provider.provider.lending.trusted = frozenset({requester.key.peer})
        await world.until_found(requester, 1)
        job = await world.submit(requester, launched(LANES, "lanes"), deadline_s=60.0)
        failure = json.loads((await world.events_of(requester, job))[-1].text)
        assert failure["code"] == "no-provider"
        assert "cpu does not take cuda-inline-ptx" in failure["sentence"]
        assert "(needed: kernel lanes, line 4: asm (inline assembly))" in failure["sentence"]


async def test_the_provider_that_announces_the_feature_gets_the_job(tmp_path):
    without = replace(world.CPU, features=("array-programs", "cuda-source"))
    having = replace(without, features=(*without.features, INLINE_PTX))
    async with world.open_world(tmp_path) as mesh:
        poor = await mesh.add("poor", provide=True, script=zeros, device=without)
        rich = await mesh.add("rich", provide=True, script=zeros, bootstrap=poor, device=having)
        requester = await mesh.add("requester", provide=False, bootstrap=rich)
        for node in (poor, rich):
            node.provider.lending.trusted = frozenset({requester.key.peer})
        await world.until_found(requester, 1)
        job = await world.submit(requester, launched(LANES, "lanes"), deadline_s=20.0)
        assert (await world.events_of(requester, job))[-1].kind == "finished"
        assert await rich.ledger.receipts(limit=9)
        assert not await poor.ledger.receipts(limit=9)
