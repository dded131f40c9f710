"""What kernels written for GPUs elsewhere lean on, and what this project's own corpus had not needed."""

import os

import numpy as np
import pytest

import coppermesh as cm
from coppermesh.exec.cuda_build import build_kernel
from coppermesh.exec.cuda_cpu import CudaCpu
from coppermesh.exec.cuda_toolchain import find_toolchain
from coppermesh.exec.evaluate import evaluate
from coppermesh.exec.numpy_runtime import NumpyRuntime

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
