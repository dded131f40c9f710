"""Kernels in the style of others' documentation against NumPy (`tutorial_kernels.py`), with this machine's compiler."""

import importlib.util
import os
import sys
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from coppermesh.exec.cuda_build import build_kernel
from coppermesh.exec.cuda_cpu import CudaCpu
from coppermesh.exec.cuda_toolchain import find_toolchain
from coppermesh.exec.evaluate import evaluate
from coppermesh.exec.numpy_runtime import NumpyRuntime

toolchain = find_toolchain(os.environ.get("COPPERMESH_TEST_COMPILER"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(toolchain is None, reason="needs a C++ compiler"),
]


def _table():
    path = Path(__file__).with_name("tutorial_kernels.py")
    spec = importlib.util.spec_from_file_location("tutorial_kernels", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.TUTORIALS


TUTORIALS = _table()


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    root = tmp_path_factory.mktemp("tutorials")
    builds = count()

    def build(kernel):
        directory = root / str(next(builds))
        directory.mkdir()
        return build_kernel(kernel, toolchain, directory, root)

    return NumpyRuntime(CudaCpu(build, threads=2))


@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorials_kernel_gives_numpys_answer(name, runtime):
    pairs = TUTORIALS[name]()
    results = evaluate(*(array for array, _ in pairs), runtime=runtime)
    for result, (_, expected) in zip(results, pairs, strict=True):
        exact = np.asarray(expected).dtype.kind in "biu"
        tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 3e-5, "atol": 1e-6}
        np.testing.assert_allclose(result, expected, **tolerance)


def test_there_are_enough_of_them():
    assert len(TUTORIALS) >= 40
