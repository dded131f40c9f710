"""The market's state machines under random events, many times over.

    python tests/soak/market_machines.py [RUNS] [SEED] [MACHINE]

Each is the Hypothesis machine of the same name in tests/unit, generated and not shrunk, so that a failure shows at
once; it prints the machine, its seed and the failing steps. Results are recorded in RESULTS.md beside this file.
"""

# ruff: noqa: T201 - a program for the terminal

import importlib.util
import sys
import time
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

UNIT = Path(__file__).parents[1] / "unit"
MACHINES = (
    ("test_market_lease_stateful", "Market"),
    ("test_market_auction", "World"),
    ("test_market_dispatch_stateful", "World"),
)


def machine(module: str, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(module, UNIT / f"{module}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[module] = loaded
    spec.loader.exec_module(loaded)
    return getattr(loaded, name)


def run(module: str, name: str, runs: int, first: int) -> None:
    started = time.monotonic()
    chosen = settings(
        max_examples=runs,
        stateful_step_count=50,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    try:
        run_state_machine_as_test(seed(first)(machine(module, name)), settings=chosen)
    except BaseException:
        print(f"{module}.{name} FAILED with seed {first}", flush=True)
        raise
    print(
        f"{module}.{name}: {runs} runs, seed {first}: held ({time.monotonic() - started:.0f} s)", flush=True
    )


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    first = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    only = sys.argv[3] if len(sys.argv) > 3 else ""
    for module, name in MACHINES:
        if only in module:
            run(module, name, runs, first)


if __name__ == "__main__":
    main()
