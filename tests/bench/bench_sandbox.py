# ruff: noqa: T201  # a program that prints its figures
"""What the sandbox costs a fresh worker: a fork that confines itself, beside one of the same process that does not.

    python tests/bench/bench_sandbox.py [ROUNDS]

Prints medians in milliseconds of ROUNDS (default 200) turns of each, taken in turn: the fork alone, and the fork with
every layer of a CPU worker, from before the fork until its parent has seen it end. The parent has loaded all that a
zygote loads, and is in namespaces of its own where it can be.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable

from coppermesh.exec import linux, pipe, worker, zygote
from coppermesh.exec.sandbox import apply, namespaces

ORDER = pipe.Fork(1, "worker", "/", 256 << 20, 64 << 20, 256 << 20, 4096, 3600, True)


def in_a_child(work: Callable[[], object]) -> float:
    """Milliseconds from the fork until the child, having done `work`, has ended."""
    parent = os.getpid()
    began = time.perf_counter()
    child = os.fork()
    if child == 0:
        linux.die_with_parent(parent)
        try:
            work()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    return (time.perf_counter() - began) * 1e3


def main() -> None:
    """Measure and print."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    zygote.preload("cpu")
    apply.prepare((), "")
    entered = namespaces.enter(namespaces.view_of_python([]))
    apply.leave_root()
    bare, confined = [], []
    for _ in range(rounds):
        bare.append(in_a_child(lambda: None))
        confined.append(in_a_child(lambda: worker.confine(ORDER, "cpu")))
    layers = (*entered.layers, *apply.available())
    print(f"layers: {', '.join(layers)}")
    print(f"fork alone:       median {statistics.median(bare):.2f} ms, least {min(bare):.2f} ms")
    print(f"fork, all layers: median {statistics.median(confined):.2f} ms, least {min(confined):.2f} ms")
    print(f"the layers cost   median {statistics.median(confined) - statistics.median(bare):.2f} ms")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
