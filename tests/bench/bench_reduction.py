"""A ReductionKernel on the CPU beside NumPy's sum of the same array, in the same run.

    python tests/bench/bench_reduction.py

Prints medians of 15 runs in milliseconds. Compiling is not counted.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from coppermesh.exec import xp
from coppermesh.exec.budget import RunLimits
from coppermesh.exec.cuda_build import Kernel, build_kernel
from coppermesh.exec.cuda_cpu import CudaCpu
from coppermesh.exec.cuda_toolchain import find_toolchain
from coppermesh.exec.kernels import ReductionKernel
from coppermesh.exec.numpy_runtime import NumpyRuntime
from coppermesh.exec.recorder import Array
from coppermesh.exec.tracing import trace

RUNS = 15


def median_ms(run: Callable[[], object]) -> float:
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def main() -> None:
    toolchain = find_toolchain()
    if toolchain is None:
        raise SystemExit("no C++ compiler on this machine")

    def build(kernel: Kernel) -> int:
        return build_kernel(kernel, toolchain, Path(tempfile.mkdtemp()), Path(tempfile.mkdtemp()))

    runtime = NumpyRuntime(CudaCpu(build, threads=2))
    data = np.random.default_rng(0).random((2048, 2048), dtype=np.float32)
    total = ReductionKernel("T p", "T r", "p", "a + b", "r = a", "0", "total")
    for name, axis in (("everything", None), ("along rows", 1), ("along columns", 0)):
        lazy = total(xp.asarray(data), axis=axis)
        assert isinstance(lazy, Array)
        recording = trace(lazy)
        run = partial(runtime.run, recording.checked, recording.inputs, RunLimits())
        run()
        ours, numpys = median_ms(run), median_ms(partial(data.sum, axis=axis))
        sys.stdout.write(f"{name}: ReductionKernel {ours:.2f} ms, NumPy {numpys:.2f} ms\n")


if __name__ == "__main__":
    main()
