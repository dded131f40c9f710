"""Many tasks over a quick provider, one whose worker runs a tenth of the time, and one that hangs in the middle."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

import coppermesh as cm

xp = cm.xp

pytestmark = [pytest.mark.processes, pytest.mark.slow]

PROVIDERS = ("provider-1", "provider-2", "provider-3")
TASKS = 60
HANGS_AFTER = 12
STOPPED_SECONDS, RUNNING_SECONDS = 0.09, 0.01


@contextmanager
def slowed(pids: Callable[[], set[int]]) -> Iterator[None]:
    """These processes run for a hundredth of a second, then are stopped for nine, again and again."""
    over = threading.Event()

    def send(number: int) -> None:
        for pid in pids():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def cycle() -> None:
        while not over.is_set():
            send(signal.SIGSTOP)
            over.wait(STOPPED_SECONDS)
            send(signal.SIGCONT)
            over.wait(RUNNING_SECONDS)

    thread = threading.Thread(target=cycle)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        send(signal.SIGCONT)


def task(number: int) -> object:
    """Some ten milliseconds of work on a CPU."""
    made = xp.asarray(np.full((160, 160), number, np.float32)) / 160
    for _ in range(6):
        made = made @ xp.asarray(np.full((160, 160), 1 / 160, np.float32))
    return made


def test_a_slow_and_a_hanging_provider_hold_up_no_job_and_are_paid_for_no_task_twice(lab):
    client = lab.start(len(PROVIDERS))
    pids = {agent.name: agent.process.pid for agent in lab.mesh.agents}
    slow, hanging = pids["provider-2"], pids["provider-3"]
    with slowed(lambda: lab.descendants(slow)):
        job = client.submit_many([task(number) for number in range(TASKS)], providers=3, deadline_s=240.0)
        seen = {}
        try:
            for index, (array,) in job.as_completed():
                assert index not in seen, "each result comes once"
                seen[index] = array
                if len(seen) == HANGS_AFTER:
                    os.kill(hanging, signal.SIGSTOP)
        finally:
            os.kill(hanging, signal.SIGCONT)
        assert sorted(seen) == list(range(TASKS))
        for number, array in seen.items():
            np.testing.assert_allclose(array, number / 160, rtol=1e-4)
        ordered = client.submit_many([task(number) for number in range(8)], deadline_s=240.0).result()
    for number, array in enumerate(ordered):
        np.testing.assert_allclose(array, number / 160, rtol=1e-4)
    lab.await_settled(*PROVIDERS)
    lab.stop()
    rows = lab.audit(*PROVIDERS)
    done = {(row.job, row.index) for row in rows if row.verdict == "accepted" and row.receipt.code == "ok"}
    assert len(done) == TASKS + 8
