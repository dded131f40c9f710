"""Every kernel of the corpus on this machine's processor, against its NumPy oracle; each source is compiled once.

`COPPERMESH_TEST_COMPILER=/path/to/zig pytest tests/kernels` tries another compiler.
"""

import importlib.util
import os
import re
from pathlib import Path

import numpy as np
import pytest

import coppermesh as cm
from coppermesh.exec.cuda_build import build_kernel
from coppermesh.exec.cuda_cpu import CudaCpu
from coppermesh.exec.cuda_toolchain import find_toolchain
from coppermesh.exec.evaluate import evaluate
from coppermesh.exec.numpy_runtime import NumpyRuntime

toolchain = find_toolchain(os.environ.get("COPPERMESH_TEST_COMPILER"))

spec = importlib.util.spec_from_file_location("coppermesh_corpus", Path(__file__).with_name("corpus.py"))
assert spec is not None
assert spec.loader is not None
corpus = importlib.util.module_from_spec(spec)
spec.loader.exec_module(corpus)


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    """One for all cases: it keeps what it has compiled."""
    root = tmp_path_factory.mktemp("corpus")
    builds = iter(range(10_000))

    def build(kernel):
        assert toolchain is not None
        directory = root / str(next(builds))
        directory.mkdir()
        return build_kernel(kernel, toolchain, directory, root)

    return NumpyRuntime(CudaCpu(build, threads=2))


@pytest.mark.skipif(toolchain is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("case", corpus.CASES, ids=lambda case: case.name)
def test_a_kernel_gives_its_oracles_answer(case, runtime):
    inputs, outputs = case.record(cm, cm.xp, np.random.default_rng(7))
    case.check(inputs, evaluate(*outputs, runtime=runtime))


def test_every_source_has_a_case_and_says_what_it_covers():
    names = [case.name for case in corpus.CASES]
    assert sorted(names) == sorted(path.stem for path in corpus.HERE.glob("*.cu"))
    assert len(names) >= 45
    for case in corpus.CASES:
        assert case.features, case.name
        assert case.file.read_text().startswith("// "), case.name
        assert "extern" in case.file.read_text() or case.name == "name_expressions"


def test_an_oracle_refuses_a_wrong_answer(runtime):
    case = next(case for case in corpus.CASES if case.name == "matmul_tiled")
    inputs, _ = case.record(cm, cm.xp, np.random.default_rng(7))
    right = case.oracle(inputs)[0].astype(np.float32)
    case.check(inputs, [right])
    wrong = right.copy()
    wrong[3, 4] *= np.float32(1.001)
    with pytest.raises(AssertionError, match=re.escape("at (3, 4)")):
        case.check(inputs, [wrong])
