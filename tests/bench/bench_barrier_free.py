# ruff: noqa: T201  # a program that prints its figures
"""Kernels without barriers beside native loops: `python tests/bench/bench_barrier_free.py [COMPILER [WORD...]]`.

Every case of `barrier_free_kernels.py` (or those with a WORD in the name): processor time of the kernel over that of
the loop, both with the same compiler, flags and two threads, in turns; the median of `ROUNDS` such ratios, and their
quartiles. Both must give the same results. At the end: how many are above 1.2, and what compiling costs.
"""

import ctypes
import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from coppermesh.exec.cuda_build import Kernel, build_kernel
from coppermesh.exec.cuda_cpu import CudaCpu
from coppermesh.exec.cuda_modules import ModuleParts
from coppermesh.exec.cuda_toolchain import find_toolchain
from coppermesh.exec.threads import ThreadTeam

ROUNDS = 11
THREADS = 2
SECONDS = 0.02
"""Least length of one measurement."""
GOAL = 1.2

NATIVE = """
typedef __SIZE_TYPE__ size_t;
extern "C" {
float sqrtf(float), expf(float), fmaxf(float, float);
double sqrt(double), exp(double), log(double), fabs(double);
}
static long take(long* next, long step) { return __atomic_fetch_add(next, step, __ATOMIC_RELAXED); }
#define RANGE(n, step) for (long first; (first = take(next, step)) < (long)(n);) \\
    for (long i = first, end = first + step < (long)(n) ? first + step : (long)(n); i < end; i++)
"""


def _table() -> Any:
    path = Path(__file__).with_name("barrier_free_kernels.py")
    spec = importlib.util.spec_from_file_location("barrier_free_kernels", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Bench:
    """A compiler, the kernels built with it, and the native loops."""

    def __init__(self, compiler: str | None, directory: Path) -> None:
        found = find_toolchain(compiler)
        if found is None:
            raise SystemExit("no C++ compiler")
        self.toolchain, self.directory, self.builds = found, directory, 0
        self.cuda = CudaCpu(self._build, threads=THREADS)
        self.team = ThreadTeam(THREADS)
        self.build_ms: list[float] = []

    def _build(self, kernel: Kernel) -> int:
        self.builds += 1
        directory = self.directory / str(self.builds)
        directory.mkdir()
        start = time.perf_counter()
        library = build_kernel(kernel, self.toolchain, directory, self.directory)
        self.build_ms.append(1_000 * (time.perf_counter() - start))
        return library

    def kernel(self, case: Any, arguments: list[Any]) -> Callable[[], None]:
        """What launches the kernel of `case`."""
        if case.expression == "k":
            launch: Callable[..., None] = self.cuda.load(case.source, "k", ())
        else:
            parts = ModuleParts(case.source, (), (case.expression,), ())
            module = self.cuda.load_module(parts, (), fresh=False)
            launch = lambda *rest: module.launch(0, *rest)  # noqa: E731 - an adapter of one line
        grid, block = ((*lengths, 1, 1, 1)[:3] for lengths in (case.grid, case.block))
        return lambda: launch(grid, block, 0, arguments)

    def compiled_loop(self, case: Any, before: str) -> Callable[..., None]:
        """The native loop of `case`."""
        self.builds += 1
        directory = self.directory / str(self.builds)
        directory.mkdir()
        text = f'{NATIVE}{before}\nextern "C" void k(long* next, {case.parameters}) {{\n{case.native}\n}}\n'
        (directory / "native.cpp").write_text(text)
        command = self.toolchain.arguments("c++17", directory, "native.cpp", "native.so")
        command = [word for word in command if word not in ("-nostdinc", "-fvisibility=hidden")]
        subprocess.run(
            command, cwd=directory, env=self.toolchain.environment(str(self.directory)), check=True
        )
        function: Callable[..., None] = ctypes.CDLL(str(directory / "native.so"))["k"]
        return function

    def loop(self, function: Callable[..., None], arguments: list[Any]) -> Callable[[], None]:
        """What runs a native loop on these arguments."""
        passed = [_passed(argument) for argument in arguments]

        def run() -> None:
            following = ctypes.c_long(0)
            self.team.run(THREADS, lambda: function(ctypes.byref(following), *passed))

        return run


def _passed(argument: Any) -> Any:
    if isinstance(argument, np.ndarray):
        return ctypes.c_void_p(argument.ctypes.data)
    if isinstance(argument, np.floating):
        return np.ctypeslib.as_ctypes_type(argument.dtype)(float(argument))
    return np.ctypeslib.as_ctypes_type(argument.dtype)(int(argument))


def _cpu_ms(action: Callable[[], None], times: int) -> float:
    start = time.process_time()
    for _ in range(times):
        action()
    return 1_000 * (time.process_time() - start) / times


def compare(bench: Bench, case: Any, before: str) -> float:
    """Print one case and return the median ratio."""
    mine, other = (case.make(np.random.default_rng(1)) for _ in range(2))
    kernel, function = bench.kernel(case, mine), bench.compiled_loop(case, before)
    kernel()
    bench.loop(function, other)()
    loop = bench.loop(function, mine)  # the same arrays: where they lie in memory and caches decides much
    for one, two in zip(mine, other, strict=True):
        if case.exact:
            np.testing.assert_array_equal(one, two, case.name)
        elif case.exact is not None:
            np.testing.assert_allclose(one, two, rtol=1e-4)
    times = max(1, round(SECONDS / (1e-3 * max(_cpu_ms(loop, 1), 0.01))))
    pairs = [(_cpu_ms(kernel, times), _cpu_ms(loop, times)) for _ in range(ROUNDS)]
    ratios = [mine_ms / other_ms for mine_ms, other_ms in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4)
    kernel_ms, loop_ms = (statistics.median(column) for column in zip(*pairs, strict=True))
    mark = " <--" if middle > GOAL else ""
    print(
        f"{case.name:36} {kernel_ms:8.3f} ms, native {loop_ms:8.3f}: {middle:5.2f}  ({low:.2f} to {high:.2f}){mark}",
        flush=True,
    )
    return middle


def launch_us(bench: Bench, case: Any, threads: int) -> tuple[float, float]:
    """Processor time of a launch that does next to nothing, and of the native loop's call, on so many threads."""
    arguments = [*case.make(np.random.default_rng(1))[:-1], np.int32(64)]
    bench.team = ThreadTeam(threads)
    loop = bench.loop(bench.compiled_loop(case, ""), arguments)
    launch: Callable[..., None] = bench.cuda.load(case.source, "k", ())
    grid = (32 if threads > 1 else 1, 1, 1)
    least = []
    for action in (lambda: launch(grid, (256, 1, 1), 0, arguments), loop):
        action()
        least.append(min(_cpu_ms(action, 1000) for _ in range(ROUNDS)))
    return 1_000 * least[0], 1_000 * least[1]


def main(compiler: str | None, words: list[str]) -> None:
    """Everything with one of `words` in its name; everything at all where there are none."""
    table = _table()
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(compiler, Path(directory))
        print(bench.toolchain.version())
        ratios = [
            compare(bench, case, before)
            for case, before in zip(table.CASES, table.NATIVE_BEFORE, strict=True)
            if not words or any(word in case.name for word in words)
        ]
        for threads in (1, THREADS):
            mine, other = launch_us(bench, table.CASES[0], threads)
            print(f"launch on {threads} threads: {mine:.1f} us, native {other:.1f}")
        above = sum(ratio > GOAL for ratio in ratios)
        print(f"{len(ratios)} kernels, {above} above {GOAL}; median {statistics.median(ratios):.2f}")
        print(
            f"compile, cold: {statistics.median(bench.build_ms):.0f} ms"
            f" ({min(bench.build_ms):.0f} to {max(bench.build_ms):.0f})"
        )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None, sys.argv[2:])
