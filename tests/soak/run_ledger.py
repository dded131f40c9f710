"""Many runs of the ledger's state machines: `python tests/soak/run_ledger.py [--runs 10000] [--seed 1] [--minutes M]`.

Each run is two honest peers with real ledger files on a network that loses, repeats and reorders, crashes at every
step, statements, payments, and backups that are put back (tests/unit/test_ledger_stateful.py,
test_settling_stateful.py). The machines take turns, 50 runs at a time, each batch from a seed of its own. Prints one
line of JSON. A failure prints Hypothesis's steps and the batch's seed; `--seed SEED --runs 50 --machine NAME` leads
there again.
"""

import argparse
import importlib.util
import json
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import run_state_machine_as_test

BATCH = 50
STEPS = 25
MACHINES = ("TwoLedgers", "TwoLedgersThatSettle", "TwoLedgersThatRestore")
SOURCE = Path(__file__).parents[1] / "unit" / "test_settling_stateful.py"


def load() -> Any:
    """The machines' module."""
    spec = importlib.util.spec_from_file_location("settling_machine", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_batch(kind: Any, number: int, count: int) -> str:
    """The failure's text; empty where all runs hold."""
    limits = settings(
        max_examples=count,
        stateful_step_count=STEPS,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
        print_blob=True,
        database=None,
    )
    try:
        run_state_machine_as_test(seed(number)(kind), settings=limits)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return "".join(traceback.format_exception(error))
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=24 * 60.0, help="stop after so long")
    parser.add_argument("--machine", choices=MACHINES, action="append")
    options = parser.parse_args()
    if Path("/dev/shm").is_dir():
        tempfile.tempdir = "/dev/shm"
    module = load()
    kinds = {
        "TwoLedgers": module.machine.TwoLedgers,
        **{name: getattr(module, name) for name in MACHINES[1:]},
    }
    chosen = options.machine or list(MACHINES)
    begin = time.monotonic()
    runs = dict.fromkeys(chosen, 0)
    number = options.seed
    while sum(runs.values()) < options.runs and time.monotonic() - begin < 60 * options.minutes:
        name = chosen[(number - options.seed) % len(chosen)]
        count = min(BATCH, options.runs - sum(runs.values()))
        failure = run_batch(kinds[name], number, count)
        if failure:
            print(failure, file=sys.stderr)  # noqa: T201
            print(f"{name} failed with --seed {number}", file=sys.stderr)  # noqa: T201
            return 1
        runs[name] += count
        number += 1
    result = {"runs": sum(runs.values()), **runs, "first_seed": options.seed, "last_seed": number - 1}
    print(json.dumps({**result, "seconds": round(time.monotonic() - begin)}))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
