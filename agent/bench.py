"""`coppermesh bench`: what a job costs on this machine, measured over real agents on loopback.

Every figure is a median with minimum and maximum over rounds of one run, beside a yardstick of the same run where
there is one. Machines differ and are shared: compare ratios.
"""

import json
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import coppermesh.exec.xp as xp  # noqa: PLR0402 - a namespace module, as users import it
from coppermesh.agent import bench_peers, screens
from coppermesh.agent.bench_tcp import SIZE, measure_raw_tcp
from coppermesh.agent.client import Mesh, connect
from coppermesh.agent.demo import await_providers
from coppermesh.agent.job_handle import Job
from coppermesh.agent.local_agents import LocalMesh, local_mesh
from coppermesh.agent.receipts import verify_receipt_file

PROVIDERS = ("provider-1", "provider-2")
STARTS = 3
LATENCY_ROUNDS = 100
WINDOW = 32
BATCH_JOBS = 100
BATCHES = 3
TRANSFERS = 5
VERIFY_BATCHES = 5
VERIFY_COUNT = 500
_KIB_OF_FLOATS = 256


@dataclass(frozen=True)
class Figure:
    """Median, minimum and maximum of one measure."""

    name: str
    unit: str
    median: float
    minimum: float
    maximum: float

    @classmethod
    def of(cls, name: str, unit: str, values: Iterable[float]) -> "Figure":
        """The figure of these values."""
        found = list(values)
        return cls(name, unit, statistics.median(found), min(found), max(found))


def run_bench(*, as_json: bool) -> int:
    """Measure everything and print it; returns the exit code."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="coppermesh-bench-") as base, local_mesh(Path(base)) as mesh:
        figures = _measure_all(mesh)
    seconds = time.monotonic() - started
    if as_json:
        print(
            json.dumps({**{figure.name: asdict(figure) for figure in figures}, "seconds": round(seconds, 1)})
        )
        return 0
    rows = [
        (figure.name, _number(figure.median), _number(figure.minimum), _number(figure.maximum), figure.unit)
        for figure in figures
    ]
    print("\n".join(screens.table(("MEASURE", "MEDIAN", "MIN", "MAX", "UNIT"), rows, right=(1, 2, 3))))
    _say(f"took {seconds:.1f} s")
    return 0


def run_peers(*, as_json: bool) -> int:
    """Measure the same work on other systems too, and print it; returns the exit code."""
    found: dict[str, bench_peers.Values | None] = {}
    with tempfile.TemporaryDirectory(prefix="coppermesh-bench-") as base, local_mesh(Path(base)) as mesh:
        _say("coppermesh: two providers")
        values = bench_peers.measure_coppermesh(mesh)
    with tempfile.TemporaryDirectory(prefix="coppermesh-bench-") as base, local_mesh(Path(base)) as mesh:
        _say(f"coppermesh: a lease with {bench_peers.BIDDERS} bidders")
        values["negotiation"] = bench_peers.measure_negotiation(mesh)
    found["coppermesh"] = values
    for name, measure in bench_peers.peers().items():
        _say(name)
        found[name] = measure()
    for name in bench_peers.missing(found):
        _say(f"{name} is not installed here and was not measured: {bench_peers.INSTALL}")
    figures = [
        (system, Figure.of(name, unit, values)) for system, name, values, unit in bench_peers.rows(found)
    ]
    if as_json:
        print(json.dumps([{"system": system, **asdict(figure)} for system, figure in figures]))
        return 0
    rows = [
        (system, each.name, _number(each.median), _number(each.minimum), _number(each.maximum), each.unit)
        for system, each in figures
    ]
    heads = ("SYSTEM", "MEASURE", "MEDIAN", "MIN", "MAX", "UNIT")
    print("\n".join(screens.table(heads, rows, right=(2, 3, 4))))
    return 0


def _measure_all(mesh: LocalMesh) -> list[Figure]:
    _say("starting agents")
    mesh.start(PROVIDERS)
    starts = [_measure_start(mesh, f"requester-{number}") for number in range(STARTS)]
    figures = [Figure.of("start_to_first_announcement", "s", starts)]
    with connect(mesh.home("requester-0").path) as client:
        await_providers(client, len(PROVIDERS))
        rng = np.random.default_rng(0)
        _say("latency of one small job at a time")
        figures.append(Figure.of("warm_job_latency", "ms", _measure_latency(client, rng)))
        _say(f"small jobs with {WINDOW} in flight")
        figures.append(Figure.of("jobs_per_second", "1/s", _measure_throughput(client, rng)))
        _say("64 MiB there and back")
        figures += _measure_transfer(client, rng)
        figures.append(Figure.of("receipts_verified_per_second", "1/s", _measure_verify(client, rng)))
    return figures


def _measure_start(mesh: LocalMesh, name: str) -> float:
    """Seconds from launching an agent's process to the first announcement that it accepted."""
    mesh.home(name)
    launched_us = time.time_ns() // 1000
    (agent,) = mesh.start([name], "--requester-only")
    with connect(agent.home.path) as client:
        await_providers(client, 1)
        with client.link() as link:
            heard_us = json.loads(link.call_json("status"))["first_announcement_us"]
    return float(heard_us - launched_us) / 1e6


def _submit_small(client: Mesh, rng: np.random.Generator) -> Job:
    """A job on 1 KiB that was never sent before."""
    values = rng.random(_KIB_OF_FLOATS, dtype=np.float32)
    return client.submit(xp.asarray(values) * 2 + 1, providers=len(PROVIDERS))


def _measure_latency(client: Mesh, rng: np.random.Generator) -> list[float]:
    for _ in range(10):
        _submit_small(client, rng).result()
    return [1000 * _timed(lambda: _submit_small(client, rng).result()) for _ in range(LATENCY_ROUNDS)]


def _measure_throughput(client: Mesh, rng: np.random.Generator) -> list[float]:
    def batch() -> None:
        window: deque[Job] = deque()
        for _ in range(BATCH_JOBS):
            if len(window) >= WINDOW:
                window.popleft().result()
            window.append(_submit_small(client, rng))
        for job in window:
            job.result()

    batch()
    return [BATCH_JOBS / _timed(batch) for _ in range(BATCHES)]


def _measure_transfer(client: Mesh, rng: np.random.Generator) -> list[Figure]:
    megabytes = 2 * SIZE / 1e6
    rates, raw_rates = [], []
    for number in range(TRANSFERS + 1):
        values = rng.random(SIZE // 4, dtype=np.float32)
        seconds = _timed(lambda values=values: client.compute(xp.asarray(values) + 1))  # type: ignore[misc]
        raw = measure_raw_tcp(1)[0]
        if number:  # the first transfer touches memory for the first time
            rates.append(megabytes / seconds)
            raw_rates.append(megabytes / raw)
    ratios = [rate / raw for rate, raw in zip(rates, raw_rates, strict=True)]
    return [
        Figure.of("array_64mib_there_and_back", "MB/s", rates),
        Figure.of("raw_trio_tcp_there_and_back", "MB/s", raw_rates),
        Figure.of("array_to_raw_tcp", "ratio", ratios),
    ]


def _measure_verify(client: Mesh, rng: np.random.Generator) -> list[float]:
    receipt = _submit_small(client, rng).receipt["id"]
    with client.link() as link:
        data = bytes.fromhex(
            json.loads(link.call_json("receipt-file", json.dumps({"receipt": receipt})))["file"]
        )

    def batch() -> None:
        for _ in range(VERIFY_COUNT):
            verify_receipt_file(data)

    return [VERIFY_COUNT / _timed(batch) for _ in range(VERIFY_BATCHES)]


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _say(text: str) -> None:
    print(f"coppermesh: {text}", file=sys.stderr, flush=True)
