"""Another system's side of `coppermesh bench --peers`, in a process of its own: `python -m ... dask` or `ray`.

Prints one line of JSON: `{"latency": [ms, ...], "rate": [tasks/s, ...]}`. Exit code 3 where it is not installed.
"""

import importlib
import json
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

FLOATS = 256
LATENCY_ROUNDS = 200
IN_FLIGHT = 32
BATCH = 400
BATCHES = 3
NOT_INSTALLED = 3

Values = np.ndarray[Any, Any]
Submit = Callable[[Values], Any]
Wait = Callable[[Any], Any]


def work(values: Values) -> Values:
    """The task."""
    return values * 2 + 1


def measure(submit: Submit, wait: Wait) -> dict[str, list[float]]:
    """Latency one at a time, and the rate with so many in flight."""
    rng = np.random.default_rng(1)

    def one() -> None:
        wait(submit(rng.random(FLOATS, dtype=np.float32)))

    def batch() -> None:
        window: deque[Any] = deque()
        for _ in range(BATCH):
            if len(window) >= IN_FLIGHT:
                wait(window.popleft())
            window.append(submit(rng.random(FLOATS, dtype=np.float32)))
        for future in window:
            wait(future)

    for _ in range(20):
        one()
    latency = [1000 * _timed(one) for _ in range(LATENCY_ROUNDS)]
    batch()
    return {"latency": latency, "rate": [BATCH / _timed(batch) for _ in range(BATCHES)]}


def run_dask() -> dict[str, list[float]]:
    """dask.distributed: two worker processes of one thread each."""
    found: Any = importlib.import_module("dask.distributed")
    with (
        found.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        found.Client(cluster) as client,
    ):
        return measure(lambda values: client.submit(work, values, pure=False), lambda future: future.result())


def run_ray() -> dict[str, list[float]]:
    """Ray with two processors."""
    ray: Any = importlib.import_module("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        remote = ray.remote(work)
        return measure(remote.remote, ray.get)
    finally:
        ray.shutdown()


def _timed(step: Callable[[], object]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def main() -> int:
    """Run the system that the first argument names."""
    try:
        found = {"dask": run_dask, "ray": run_ray}[sys.argv[1]]()
    except ImportError as error:
        sys.stderr.write(f"{error}\n")
        return NOT_INSTALLED
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
