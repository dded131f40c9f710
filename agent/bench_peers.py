"""`coppermesh bench --peers`: the same small work on coppermesh, dask.distributed and Ray, in one run.

The work: 256 float32 numbers that were never sent before, times two plus one, on two workers. What differs is what each
system does with it: coppermesh signs, runs it in a sandbox, verifies on arrival and keeps a countersigned receipt in
two ledgers; the others do none of that. Each of the others runs in a process of its own, and only where it is
installed.
"""

import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import coppermesh.exec.xp as xp  # noqa: PLR0402 - a namespace module, as users import it
from coppermesh.agent.client import Mesh, connect
from coppermesh.agent.demo import await_providers
from coppermesh.agent.job_handle import Job
from coppermesh.agent.local_agents import LocalAgent, LocalMesh

FLOATS = 256
LATENCY_ROUNDS = 200
IN_FLIGHT = 32
BATCH = 400
BATCHES = 3
BIDDERS = 5
NEGOTIATIONS = 12
PEER_SECONDS = 300.0
INSTALL = "pip install 'coppermesh[bench]'"

Values = dict[str, list[float]]
"""Measured values of each figure."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What a figure counts."""

    unit: str
    better: str


UNITS = {
    "latency": Unit("ms", "less"),
    "rate": Unit("tasks/s", "more"),
    "job_rate": Unit("tasks/s", "more"),
    "negotiation": Unit("ms", "less"),
    "requester_cpu": Unit("ms of processor per task", "less"),
    "provider_cpu": Unit("ms of processor per task", "less"),
}


def measure_coppermesh(mesh: LocalMesh) -> Values:
    """Two providers and a requester on loopback, warm leases."""
    agents = mesh.start(["peer-1", "peer-2"])
    (requester,) = mesh.start(["peer-requester"], "--requester-only")
    rng = np.random.default_rng(1)
    values: Values = {}
    with connect(requester.home.path) as client:
        await_providers(client, 2)
        for _ in range(20):
            _small(client, rng).result()
        values["latency"] = [
            1000 * _timed(lambda: _small(client, rng).result()) for _ in range(LATENCY_ROUNDS)
        ]
        send_windowed(client, rng, BATCH)
        values["rate"] = [BATCH / _timed(lambda: send_windowed(client, rng, BATCH)) for _ in range(BATCHES)]
        before = [_cpu_seconds(agent) for agent in (requester, *agents)]
        values["job_rate"] = [
            BATCH / _timed(lambda: send_one_job(client, rng, BATCH)) for _ in range(BATCHES)
        ]
        spent = [
            after - start
            for after, start in zip((_cpu_seconds(a) for a in (requester, *agents)), before, strict=True)
        ]
        tasks = BATCH * BATCHES
        values["requester_cpu"] = [1000 * spent[0] / tasks]
        values["provider_cpu"] = [1000 * sum(spent[1:]) / tasks]
    return values


def measure_negotiation(mesh: LocalMesh) -> list[float]:
    """Milliseconds from a job's submission to a lease that both signed, with five bidders, each time another order."""
    for number in range(BIDDERS):
        mesh.start([f"bidder-{number}"])
    (requester,) = mesh.start(["negotiator"], "--requester-only")
    found = []
    with connect(requester.home.path) as client:
        await_providers(client, BIDDERS)
        for number in range(NEGOTIATIONS + 2):
            # Another wall limit is another requirement: no lease that is held will do.
            job = client.submit(xp.asarray(np.zeros(4, np.float32)) + number, wall_limit_s=20.0 + number / 10)
            job.result()
            found.append(_negotiated_ms(client, job))
    return found[2:]


def _negotiated_ms(client: Mesh, job: Job) -> float:
    """From the story, which is written a moment after."""
    while True:
        with client.link() as link:
            lines = json.loads(link.call_json("explain", json.dumps({"job": job.id})))["lines"]
        at = {line["kind"]: line["at_us"] for line in reversed(lines)}
        if "lease" in at and "submitted" in at:
            return float(at["lease"] - at["submitted"]) / 1000
        time.sleep(0.05)


def measure_peer(name: str) -> Values | None:
    """Another system's figures; None where it is not installed."""
    line = [sys.executable, "-m", "coppermesh.agent.bench_peer_run", name]
    done = subprocess.run(  # noqa: S603 - our own interpreter and module
        line, capture_output=True, text=True, timeout=PEER_SECONDS, check=False, env={**os.environ}
    )
    if done.returncode == NOT_INSTALLED:
        return None
    if done.returncode:
        raise RuntimeError(f"{name} failed: {done.stderr[-2000:]}")
    values: Values = json.loads(done.stdout.splitlines()[-1])
    return values


NOT_INSTALLED = 3
"""Exit code of `bench_peer_run` where its system cannot be imported."""


def _small(client: Mesh, rng: np.random.Generator) -> Job:
    values = rng.random(FLOATS, dtype=np.float32)
    return client.submit(xp.asarray(values) * 2 + 1, providers=2)


def send_windowed(client: Mesh, rng: np.random.Generator, count: int) -> None:
    """Jobs of one task, so many at once."""
    window: deque[Job] = deque()
    for _ in range(count):
        if len(window) >= IN_FLIGHT:
            window.popleft().result()
        window.append(_small(client, rng))
    for job in window:
        job.result()


def send_one_job(client: Mesh, rng: np.random.Generator, count: int) -> None:
    """One job of many tasks, results as they complete."""
    arrays = [xp.asarray(rng.random(FLOATS, dtype=np.float32)) * 2 + 1 for _ in range(count)]
    job = client.submit_many(arrays, providers=2)
    for _ in job.as_completed():
        pass


def _cpu_seconds(agent: LocalAgent) -> float:
    """Processor time of an agent's own process, its workers' not included (proc(5), fields 14 and 15)."""
    fields = Path(f"/proc/{agent.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def rows(found: dict[str, Values | None]) -> Iterator[tuple[str, str, list[float], str]]:
    """System, figure, values and unit of each line."""
    for system, values in found.items():
        for name, measured in (values or {}).items():
            yield system, name, measured, UNITS[name].unit


def missing(found: dict[str, Values | None]) -> list[str]:
    """Systems that are not installed."""
    return [system for system, values in found.items() if values is None]


def peers() -> dict[str, Callable[[], Any]]:
    """The other systems."""
    return {name: partial(measure_peer, name) for name in ("dask", "ray")}
