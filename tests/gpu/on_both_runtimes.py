"""A pytest plugin: every program that a test evaluates runs on CuPy as well, and has to agree with NumPy's result.

    pytest -p on_both_runtimes tests/unit/test_exec_arrays.py      (with tests/gpu on PYTHONPATH)

So the generators of the unit tests make the corpus of array programs. The test itself goes on with NumPy's result.
Agreement is `tolerance.compare`; what NumPy refuses CuPy must refuse too. Programs that another test runs on a backend
of its own are left alone. At the end the counts go to the file named by COPPERMESH_GPU_LANE.
"""

import json
import os
from pathlib import Path
from typing import Any

import hypothesis

import coppermesh.exec.evaluate as module
from coppermesh.exec.budget import RunLimits
from coppermesh.exec.errors import ExecError, ProgramInvalid
from coppermesh.exec.tolerance import compare
from coppermesh.exec.tracing import trace

# A machine with a GPU may be slow to compile, and what a test filters out is its own business.
hypothesis.settings.register_profile(
    "gpu-lane", deadline=None, suppress_health_check=list(hypothesis.HealthCheck), derandomize=True
)
hypothesis.settings.load_profile("gpu-lane")

_numpy_alone = module.evaluate
_cupy: list[Any] = []
counts = {"programs": 0, "refused by both": 0, "not the same bits twice": 0}
unstable: set[str] = set()


def _runtime() -> Any:
    if not _cupy:
        from coppermesh.exec.cupy_runtime import CupyRuntime

        _cupy.append(CupyRuntime())
    return _cupy[0]


def evaluate(*arrays: Any, runtime: Any = None, limits: RunLimits | None = None) -> list[Any]:
    """`exec.evaluate.evaluate`, on NumPy and on CuPy."""
    if runtime is not None:
        return _numpy_alone(*arrays, runtime=runtime, limits=limits)
    refusal: ExecError | None = None
    expected: list[Any] = []
    try:
        expected = _numpy_alone(*arrays, limits=limits)
    except ProgramInvalid:
        raise
    except ExecError as error:
        refusal = error
    recording = trace(*arrays)
    counts["programs"] += 1
    try:
        results = [
            _runtime().run(recording.checked, recording.inputs, limits or RunLimits()).outputs
            for _ in range(2)
        ]
    except ExecError as error:
        if refusal is None:
            raise AssertionError(
                f"CuPy refuses what NumPy computes: {error.code}: {error.sentence}"
            ) from error
        counts["refused by both"] += 1
        raise refusal from None
    if refusal is not None:
        raise AssertionError(f"NumPy refuses what CuPy computes: {refusal.code}: {refusal.sentence}")
    if any(one.tobytes() != two.tobytes() for one, two in zip(*results, strict=True)):
        counts["not the same bits twice"] += 1
        unstable.update(node.node.op for node in recording.checked.nodes)
    verdict = compare(expected, results[0], recording)
    assert verdict, f"NumPy and CuPy differ: {verdict}; {[n.node.op for n in recording.checked.nodes]}"
    return expected


module.evaluate = evaluate


def pytest_sessionfinish() -> None:
    """Write the counts down."""
    path = os.environ.get("COPPERMESH_GPU_LANE")
    if path is None:
        return
    with Path(path).open("a") as file:
        figures: dict[str, Any] = {f"array programs: {what}": value for what, value in counts.items()}
        if unstable:
            figures["operations in those"] = ", ".join(sorted(unstable))
        lines = [json.dumps({"what": what, "value": value, "unit": ""}) for what, value in figures.items()]
        file.write("".join(f"{line}\n" for line in lines))
