"""What a user sees of `coppermesh` in an interpreter: names, help, what objects and errors say. No agent runs."""

import pydoc
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

import coppermesh as cm
from coppermesh.agent.client import Mesh
from coppermesh.agent.home import Home
from coppermesh.agent.job_handle import JobFailed
from coppermesh.agent.job_options import JobOptions
from coppermesh.agent.local_messages import JobEvent
from coppermesh.agent.parcels import PreparedTask
from coppermesh.exec.recorder import trace

xp = cm.xp


@pytest.fixture
def mesh(tmp_path: Path) -> Mesh:
    return Mesh(Home(tmp_path))


def test_the_names_listed_are_the_promised_ones():
    assert sorted(dir(cm)) == sorted([*cm.__all__, "__version__"])
    assert {"xp", "RawKernel", "connect"} <= set(dir(cm))
    assert all(hasattr(cm, name) for name in dir(cm))


@pytest.mark.parametrize("method", [Mesh.submit, Mesh.compute, Mesh.map, Mesh.submit_many])
def test_help_lists_the_options(method):
    text = pydoc.render_doc(method)
    assert all(field.name in text for field in fields(JobOptions))


def test_the_defaults_in_the_help_are_the_defaults():
    text = pydoc.render_doc(Mesh.submit, renderer=pydoc.plaintext).replace("_000", "000").replace("'", '"')
    for field in fields(JobOptions):
        assert f"{field.name}={field.default!r} ".replace("'", '"') in text


def test_a_wrong_option_is_named(mesh):
    with pytest.raises(TypeError, match="no option 'deadline'; did you mean 'deadline_s'"):
        mesh.submit(xp.ones(2), deadline=3)
    with pytest.raises(TypeError, match="no option 'gpu'; the options are device,"):
        mesh.compute(xp.ones(2), gpu=True)


@pytest.mark.parametrize("group", [[xp.ones(2), xp.ones(3)], (xp.ones(2), xp.ones(3)), []])
def test_a_list_of_arrays_is_told_what_to_do(mesh, group):
    with pytest.raises(TypeError, match=r"one by one.*submit_many"):
        mesh.submit(group)
    with pytest.raises(TypeError, match=r"one by one.*submit_many"):
        mesh.compute(group)


def test_a_numpy_array_is_told_what_to_do(mesh):
    with pytest.raises(TypeError, match=r"xp\.asarray"):
        mesh.submit(np.ones(3))


def test_what_objects_say_of_themselves(mesh, tmp_path):
    assert repr(mesh) == f"<Mesh of the agent at {tmp_path}>"
    tasks = [PreparedTask.of(trace(xp.ones(2) * number)) for number in range(6)]
    job = cm.Job(mesh, bytes.fromhex("1a2b3c4d") + bytes(12), tasks, many=True, keep=True)
    assert repr(job) == "<Job 1a2b3c4d: 0 of 6 tasks done>"
    for number in range(3):
        job._absorb(JobEvent(number + 1, "task", number, '{"receipt": {}}', [], []))
    assert repr(job) == "<Job 1a2b3c4d: 3 of 6 tasks done>"
    job._absorb(JobEvent(4, "failed", None, '{"code": "deadline", "sentence": "not in time"}', [], []))
    assert repr(job) == "<Job 1a2b3c4d: failed (deadline), 3 of 6 tasks done>"
    alone = cm.Job(mesh, bytes(16), tasks[:1], many=False)
    assert repr(alone) == "<Job 00000000: 0 of 1 task done>"


def fail(job, sentence, task):
    """The error of a job that failed with this sentence."""
    job._absorb(JobEvent(1, "failed", task, f'{{"code": "x", "sentence": "{sentence}"}}', [], []))
    with pytest.raises(JobFailed) as failure:
        job.result()
    return failure.value


def test_a_failure_finds_its_line_also_where_the_task_is_not_told(mesh):
    short = PreparedTask.of(trace(xp.ones(2) + 1))
    x = xp.ones(2) + 1
    long = PreparedTask.of(trace(xp.sin(x)))  # the third node
    also_long = PreparedTask.of(trace(xp.cos(x)))  # another third node

    def job(*tasks):
        return cm.Job(mesh, bytes(16), tasks, many=True)

    assert "# the third node" in fail(job(short, long, long), "node 2 needs 16 TiB", None).line
    assert "# another third node" in fail(job(long, also_long), "node 2 needs 16 TiB", 1).line
    unclear = fail(job(long, also_long), "node 2 needs 16 TiB", None)
    assert (unclear.node, unclear.line) == (None, "")
    assert fail(job(long), "node 7 needs 16 TiB", None).line == ""
    assert fail(job(long), "nobody is there", None).node is None
