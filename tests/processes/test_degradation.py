"""Machines with less of a sandbox: what they announce, what they take from strangers, and what they say about it.

Agents are real; `lesser_machine` takes a layer away from them as a kernel without Landlock, one with its oldest
edition, or another processor would.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coppermesh.agent.client import Mesh
from coppermesh.agent.job_handle import JobFailed
from coppermesh.exec import xp
from coppermesh.exec.cuda_toolchain import find_toolchain
from coppermesh.exec.kernels import RawKernel
from coppermesh.exec.sandbox import landlock, seccomp

pytestmark = [
    pytest.mark.processes,
    pytest.mark.slow,
    pytest.mark.skipif(find_toolchain() is None, reason="needs a C++ compiler"),
    pytest.mark.skipif(
        not (landlock.abi() and seccomp.supported()), reason="no Landlock or seccomp filters here"
    ),
]

PROGRAM = str(Path(__file__).with_name("lesser_machine.py"))
DOUBLE = RawKernel('extern "C" __global__ void k(float* x) { x[threadIdx.x] *= 2; }', "k")


def doubled() -> Any:
    x = xp.asarray(np.arange(4, dtype=np.float32))
    DOUBLE((1,), (4,), (x,))
    return x


def start(lab: Any, less: str, *options: str) -> Mesh:
    """A provider with less, which allows nobody but whom `options` name, and a client of another agent."""
    lab.mesh.start(["provider-1"], *options, program=(PROGRAM, less))
    lab.mesh.start(["requester"], "--requester-only")
    client: Mesh = lab.client()
    lab.await_providers(client, 1)
    return client


def announced(lab: Any, client: Mesh) -> set[str]:
    """The layers of the one peer that offers something."""
    (peer,) = [peer for peer in lab.ask(client, "peers")["peers"] if peer["devices"]]
    return set(peer["isolation"])


def takes(lab: Any, client: Mesh) -> list[str]:
    """The features of the one device there is."""
    (device,) = lab.ask(client, "devices")["devices"]
    return list(device["features"])


def doctor(lab: Any, less: str) -> tuple[int, dict[str, Any], str]:
    home = str(lab.mesh.home("provider-1").path)
    command = [sys.executable, PROGRAM, less, "doctor", "sandbox", "--home", home]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    data = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=60, check=False)
    assert told.returncode == data.returncode
    return told.returncode, json.loads(data.stdout), told.stdout


def refused(client: Mesh, value: Any, **terms: Any) -> str:
    with pytest.raises(JobFailed) as failure:
        client.compute(value, deadline_s=1.5, **terms)
    return str(failure.value)


def test_without_landlock_strangers_run_array_programs_only(lab):
    client = start(lab, "no-landlock")
    layers = announced(lab, client)
    assert "seccomp" in layers
    assert "landlock" not in layers
    assert client.compute(xp.asarray([1.0]) + 1) == 2.0
    assert "isolation by landlock was not witnessed there" in refused(client, doubled())
    wanted = refused(client, xp.asarray([1.0]) + 1, isolation=["landlock"])
    assert "not witnessed isolation by landlock" in wanted
    code, data, told = doctor(lab, "no-landlock")
    assert (code, data["strangers_kernels"]) == (1, False)
    assert "this kernel has no Landlock" in told
    assert "start Linux 5.13 or later" in told
    assert "Without landlock strangers' kernels are not taken here, only array programs." in told


def test_another_processor_takes_array_programs_only_whoever_asks(lab):
    client = start(lab, "not-x86-64", *lab.allowing("requester"))
    layers = announced(lab, client)
    assert "seccomp" not in layers
    assert layers >= {"landlock", "limits", "privileges"}
    assert "cuda-source" not in takes(lab, client)
    assert client.compute(xp.asarray([1.0]) + 1) == 2.0
    assert "does not take" in (said := refused(client, doubled()))
    assert "not x86-64" in said
    assert "isolation by seccomp" in refused(client, xp.asarray([1.0]) + 1, isolation=["seccomp"])
    code, data, told = doctor(lab, "not-x86-64")
    assert (code, data["strangers_kernels"]) == (1, False)
    assert "this machine is aarch64: it takes array programs only" in told


def test_the_oldest_landlock_is_enough_and_what_it_lacks_is_told(lab):
    client = start(lab, "landlock-1")
    assert announced(lab, client) >= {"landlock", "seccomp"}
    assert list(client.compute(doubled(), isolation=["landlock", "seccomp"])) == [0, 2, 4, 6]
    code, data, told = doctor(lab, "landlock-1")
    assert (code, data["strangers_kernels"]) == (0, True)
    (entry,) = [each for each in data["layers"] if each["layer"] == "landlock"]
    assert entry["witnessed"]
    assert "TCP (since Linux 6.7)" in entry["lacks"]
    assert "does not deny: truncating files (since Linux 6.2), TCP (since Linux 6.7)" in told
