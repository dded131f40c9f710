"""`challenge(local=True)`: a provider's digests against a run in a worker process on this machine.

The provider is an agent in memory, so that it can be bent; the run that it is held against is a real one.
"""

import importlib.util
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import trio

import coppermesh.exec.xp as xp  # noqa: PLR0402 - a namespace module, as users import it
from coppermesh.agent.challenge_report import ChallengeReport, NoVerdict, challenge
from coppermesh.exec.local_run import rerun_traced
from coppermesh.exec.numpy_runtime import NumpyRuntime
from coppermesh.exec.recorder import Array, trace
from coppermesh.p2p.errors import Refused

_path = Path(__file__).parents[1] / "unit" / "test_agent_challenges.py"
_spec = importlib.util.spec_from_file_location("coppermesh_challenge_world", _path)
assert _spec is not None
assert _spec.loader is not None
world: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(world)
agents = world.agents

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def this_class() -> str:
    """What a worker on this machine names as its determinism class."""
    recording = trace(xp.asarray([1.0]) + 1)
    return rerun_traced(recording.program, [array.tobytes() for array in recording.inputs], 30.0).determinism


def bent(change: Any) -> NumpyRuntime:
    """A runtime whose sines are changed."""
    runtime = NumpyRuntime()
    table = dict(runtime._interpreter._table)
    sine = table["sin"]
    table["sin"] = lambda arrays, attrs: change(sine(arrays, attrs))
    runtime._interpreter._table = table
    return runtime


def far(sines: Any) -> Any:
    return sines + np.float32(0.01)


def near(sines: Any) -> Any:
    return np.nextafter(sines, np.float32(2))


def sines() -> Array:
    x = xp.asarray(np.linspace(0.1, 1.5, 1000, dtype=np.float32))
    return xp.sin(x) * 2


async def ask(pair: Any, y: Array, results: Any = None, node: Any = None) -> ChallengeReport:
    """As `Job.challenge(local=True)` does; `results` are what the job gave, `y` knows its lines."""
    link = partial(world._link, (node or pair.requester).home.socket_path)
    call = partial(
        challenge,
        link,
        pair.job.hex(),
        0,
        local=True,
        timeout=30.0,
        sources=trace(y).sources,
        results=results,
    )
    return await trio.to_thread.run_sync(call)


async def submit(pair: Any, y: Array) -> Any:
    """The job of `y`, done; gives what it returned."""
    pair.job = await agents.submit(pair.requester, y)
    events = await agents.events_of(pair.requester, pair.job)
    assert events[-1].kind == "finished"
    (blob,) = next(event for event in events if event.kind == "task").inline
    return (np.frombuffer(blob.data, np.float32),)


async def test_an_honest_provider_agrees_with_this_machine(tmp_path, this_class):
    async with world.open_pair(tmp_path, world.Machine(NumpyRuntime(), this_class)) as pair:
        y = sines()
        report = await ask(pair, y, await submit(pair, y))
        assert not report.fault
        assert [finding.kind for finding in report.findings] == ["agree", "agree"]
        assert "and this machine: every node agrees" in str(report)
        assert "and this machine: every node agrees" in await agents.story_of(pair.requester, pair.job)


async def test_a_bent_provider_is_found_with_its_node_and_the_users_line(tmp_path, this_class):
    """It lies the same way each time, so that only another machine can tell."""
    async with world.open_pair(tmp_path, world.Machine(bent(far), this_class)) as pair:
        y = sines()
        report = await ask(pair, y, await submit(pair, y))
        assert report.fault
        agrees, part, outputs = report.findings
        assert agrees.kind == "agree", "with itself"
        assert (part.kind, part.fault, part.operation, part.shapes) == (
            "part",
            True,
            "sin",
            ("float32[1000]",),
        )
        assert part.node == report.node == 0
        assert part.line.endswith("return xp.sin(x) * 2")
        assert Path(__file__).name in part.line
        assert (outputs.kind, outputs.fault) == ("outputs", True)
        assert "recorded at" in str(report)


@pytest.mark.parametrize(("change", "wrong"), [(near, False), (far, True)])
async def test_across_classes_results_are_held_to_what_rounding_allows(tmp_path, change, wrong):
    async with world.open_pair(tmp_path, world.Machine(bent(change), "another class")) as pair:
        y = sines()
        report = await ask(pair, y, await submit(pair, y))
        assert report.fault is wrong, str(report)
        _, part, tolerance = report.findings
        assert (part.kind, part.fault, part.node) == ("part", False, 0)
        assert "bits may differ" in part.sentence
        assert (tolerance.kind, tolerance.fault) == ("tolerance", wrong)
        assert ("DIFFERS" if wrong else "agrees") in tolerance.sentence


async def test_across_classes_without_the_results_it_says_that_they_were_not_compared(tmp_path):
    async with world.open_pair(tmp_path, world.Machine(bent(far), "another class")) as pair:
        y = sines()
        await submit(pair, y)
        report = await ask(pair, y)
        assert not report.fault
        assert "only the program that has the results" in str(report)


@pytest.mark.parametrize("which", ["program", "input"])
async def test_without_the_tasks_blobs_nothing_can_be_run_here(tmp_path, which):
    """The provider still has them: the rest of the challenge works."""
    async with world.open_pair(tmp_path) as pair:
        task = await pair.requester.ledger.task((await pair.receipt()).receipt.task_id)
        pair.requester.store._drop(task.record.program if which == "program" else task.record.inputs[0])
        assert not (await pair.challenge()).fault
        with pytest.raises(NoVerdict, match=which) as verdict:
            await ask(pair, world.wave())
        assert "without --local" in str(verdict.value)


async def test_a_job_is_known_after_the_agent_was_restarted_and_a_wrong_one_never(tmp_path, this_class):
    """Receipts, tasks and blobs outlive the agent's memory of its jobs."""
    machine = world.Machine(NumpyRuntime(), this_class)
    async with agents.open_world(tmp_path) as mesh:
        provider = await world.add(mesh, "provider", machine)
        async with AsyncExitStack() as first:
            inside = SimpleNamespace(network=mesh.network, base=mesh.base, stack=first)
            requester = await world.add(inside, "requester", None, provider)
            await agents.until_found(requester, 1)
            job = await agents.submit(requester, world.wave())
            await agents.events_of(requester, job)
        again = await world.add(mesh, "requester", None, provider)
        await agents.until_found(again, 1)
        pair = SimpleNamespace(requester=again, job=job)
        assert not (await ask(pair, world.wave())).fault
        pair.job = bytes(16)
        with pytest.raises(Refused, match="no job here"):
            await ask(pair, world.wave())
