"""Copies of a task from several providers: what agrees, what is taken, and what a forger cannot pass off."""

import numpy as np
import pytest

import coppermesh as cm
from coppermesh.agent.copies import MAX_RERUN_BYTES, MAX_RERUN_FLOPS, Copy, can_rerun, judge, within_tolerance
from coppermesh.exec.evaluate import evaluate
from coppermesh.exec.tracing import trace
from coppermesh.p2p.blobs import digest_of
from coppermesh.p2p.ids import PeerId
from coppermesh.p2p.messages import BlobInfo

xp = cm.xp


def copy(name: bytes, result: bytes = b"", determinism: str = "one", failed: str = "") -> Copy:
    outputs = () if failed else (BlobInfo(digest_of(result), len(result)),)
    return Copy(PeerId(name * 32), determinism, outputs, {}, failed)


async def never(a: Copy, b: Copy) -> bool:
    raise AssertionError("copies of one class are compared by their bits")


def test_a_forged_small_element_passes_beside_large_ones_only_without_the_inputs():
    matrix = np.array([[3e6, -1e6], [0.1, 0.7], [0.3, -0.2]], np.float32)
    program = xp.asarray(matrix) @ xp.asarray(np.array([1.1, 0.9], np.float32))
    recording = trace(program)
    [honest] = evaluate(program)
    forged = honest.copy()
    forged[2] += np.float32(0.02)
    specs = recording.checked.output_specs
    a, b = honest.tobytes(), forged.tobytes()
    assert within_tolerance(recording.program, specs, [a], [b]), (
        "the weak criterion: the array's largest element"
    )
    inputs = (recording.checked.input_specs, [item.tobytes() for item in recording.inputs])
    assert not within_tolerance(recording.program, specs, [a], [b], inputs)
    rounded = honest.copy()
    rounded[0] = np.nextafter(rounded[0], np.float32(0))
    assert within_tolerance(recording.program, specs, [a], [rounded.tobytes()], inputs)


@pytest.mark.parametrize(
    ("flops", "peak", "answer"),
    [(1e6, 1 << 20, True), (MAX_RERUN_FLOPS * 2, 1, False), (1, MAX_RERUN_BYTES + 1, False)],
)
def test_only_what_takes_seconds_is_run_here(flops: float, peak: int, answer: bool):
    assert can_rerun(flops, peak) is answer


async def test_a_lone_failure_among_copies_is_outvoted_and_named():
    found = await judge([copy(b"a", failed="crashed"), copy(b"b", b"x"), copy(b"c", b"x")], never)
    assert found.taken is not None
    assert found.taken.provider == PeerId(b"b" * 32)
    assert "gave a failure (crashed)" in found.disagreement


async def test_a_failure_and_a_result_are_no_majority():
    found = await judge([copy(b"a", failed="crashed"), copy(b"b", b"x")], never)
    assert found.taken is None


async def test_failures_are_never_taken():
    found = await judge([copy(b"a", failed="crashed"), copy(b"b", failed="wall-limit")], never)
    assert found.taken is None
