"""Digests of nodes out of real worker processes, and a challenge between real agents."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import coppermesh as cm
from coppermesh.exec.cuda_toolchain import find_toolchain
from coppermesh.exec.errors import RunFailed
from coppermesh.exec.local_run import rerun_traced
from coppermesh.exec.numpy_runtime import NumpyRuntime
from coppermesh.exec.runtime import RunLimits
from coppermesh.exec.trace_digests import run_with_digests
from coppermesh.exec.tracing import trace

xp = cm.xp

pytestmark = pytest.mark.processes
needs_compiler = pytest.mark.skipif(find_toolchain() is None, reason="needs a C++ compiler")


def test_a_worker_hands_over_a_digest_for_each_node():
    x = xp.asarray(np.linspace(0, 1, 50_000))
    recording = trace(xp.sum(xp.sin(x) * 2), x + 1)
    inputs = [array.tobytes() for array in recording.inputs]
    traced = rerun_traced(recording.program, inputs, 30.0)
    result, here = run_with_digests(NumpyRuntime(), recording.checked, recording.inputs, RunLimits())
    assert traced.digests == here
    assert traced.outputs == [output.tobytes() for output in result.outputs]
    assert traced.determinism.startswith(f"numpy/{np.__version__}")


@needs_compiler
def test_loops_and_kernels_have_a_digest_each():
    kernel = cm.ElementwiseKernel("float32 x", "float32 y", "y = x * x", "square")
    x = xp.asarray(np.arange(6, dtype=np.float32))
    total, steps = xp.scan(lambda carry, element: (carry + element, carry * 2), x[0], x)
    recording = trace(kernel(x), total, steps)
    inputs = [array.tobytes() for array in recording.inputs]
    traced = rerun_traced(recording.program, inputs, 30.0)
    assert len(traced.digests.nodes) == len(recording.checked.nodes)
    assert rerun_traced(recording.program, inputs, 30.0).digests == traced.digests


def test_a_rerun_that_fails_says_why():
    x = xp.asarray([1.0, 2.0])
    recording = trace(xp.take(x, xp.asarray([7])))
    with pytest.raises(RunFailed, match="take"):
        rerun_traced(recording.program, [array.tobytes() for array in recording.inputs], 30.0)


def run_cli(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "coppermesh.agent.cli", *arguments, "--home", str(home)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_finished_job_is_challenged_between_real_agents(lab):
    """From Python with a run on this machine, from the command line, and in the story."""
    client = lab.start(1)
    x = xp.asarray(np.random.default_rng(5).random(200_000, dtype=np.float32))
    job = client.submit(xp.sum(xp.sin(x) * 2), trace=True)
    job.result()
    report = job.challenge(local=True)
    assert not report.fault, str(report)
    (trace,) = report.traces
    assert trace["first_run"]
    assert trace["receipt_root"] == trace["root"]
    assert trace["nodes"] == 3
    here = report.findings[-1]
    assert "and this machine: every node agrees" in here.sentence
    assert here.classes[0] == here.classes[1], "one machine, one program: one class, or no lie could be shown"

    later = client.submit(xp.cos(x) + 1)
    later.result()
    home = lab.mesh.home("requester").path
    answer = run_cli("challenge", later.id[:8], "--json", home=home)
    assert answer.returncode == 0, answer.stderr
    facts = json.loads(answer.stdout)
    assert not facts["fault"]
    assert not facts["traces"][0]["first_run"]
    assert facts["traces"][0]["determinism"] == facts["traces"][0]["receipt_determinism"]

    def told() -> bool:
        story = run_cli("explain", later.id[:8], home=home).stdout
        return "node digests" in story and "recorded by running it again" in story

    lab.wait_until(told, "the challenge in the story")
    assert run_cli("challenge", "ffffffff", home=home).returncode == 6
