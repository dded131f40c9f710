"""Digests of nodes: what every node of a run gave, so that a dispute can find the first node where two runs part.

Nothing is recorded unless asked for: an honest provider that is challenged runs the task again, in the determinism
class of its receipt, and records then. A node's digest is BLAKE3 over its results (dtype, shape, bytes in C order, each
with its length before it). The digests form a chain that begins with the program and its inputs:

    link[0] = BLAKE3(domain | program | number of inputs | each input's digest)
    link[n + 1] = BLAKE3(link[n] | digest of node n)

The last link is the root that a receipt's `trace` holds; zero there says that nothing was recorded. Equal links mean
equal digests all the way up to them, so two sides that hold one chain each find where they part by halving: about log2
of the number of nodes questions, and then one node can be computed by a third.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from blake3 import blake3

from coppermesh.exec.program import ArraySpec, encode_program
from coppermesh.exec.runtime import RunLimits, RunResult
from coppermesh.exec.schema import CheckedProgram

NOT_RECORDED: Final = bytes(32)
"""`Receipt.trace` of a run that recorded nothing."""
_DOMAIN: Final = b"coppermesh node digests 1\0"

NumpyArray = np.ndarray[Any, Any]


class WatchedRuntime(Protocol):
    """A runtime that shows what each node gave; the NumPy runtime is one."""

    def run(
        self,
        checked: CheckedProgram,
        inputs: Sequence[NumpyArray],
        limits: RunLimits,
        watch: Callable[[int, Sequence[Any]], None] | None = None,
    ) -> RunResult:
        """Run, calling `watch` after each node."""
        ...


@dataclass(frozen=True, slots=True)
class TraceDigests:
    """What one run gave, node by node."""

    start: bytes
    """`link[0]`: the program and its inputs."""
    nodes: tuple[bytes, ...]
    """A digest for each node."""

    @property
    def links(self) -> list[bytes]:
        """The chain, one longer than `nodes`: the first is `start`, the last the root."""
        chain = [self.start]
        for digest in self.nodes:
            chain.append(blake3(chain[-1] + digest).digest())
        return chain

    @property
    def root(self) -> bytes:
        """What `Receipt.trace` holds."""
        return self.links[-1]


def run_with_digests(
    runtime: WatchedRuntime, checked: CheckedProgram, inputs: Sequence[NumpyArray], limits: RunLimits
) -> tuple[RunResult, TraceDigests]:
    """Run and record. Raises what `runtime.run` raises."""
    digests: list[bytes] = []

    def watch(number: int, results: Sequence[Any]) -> None:
        specs = checked.nodes[number].results
        digests.append(node_digest(specs, results))

    result = runtime.run(checked, inputs, limits, watch)
    return result, TraceDigests(chain_start(checked, inputs), tuple(digests))


def chain_start(checked: CheckedProgram, inputs: Sequence[NumpyArray]) -> bytes:
    """The first link: which program ran on what."""
    hasher = blake3(_DOMAIN)
    hasher.update(blake3(encode_program(checked.program)).digest())
    hasher.update(len(inputs).to_bytes(4, "big"))
    for spec, array in zip(checked.input_specs, inputs, strict=True):
        hasher.update(node_digest([spec], [array]))
    return hasher.digest()


def node_digest(specs: Sequence[ArraySpec], results: Sequence[NumpyArray]) -> bytes:
    """The digest of what one node gave."""
    hasher = blake3()
    for spec, array in zip(specs, results, strict=True):
        header = str(spec).encode()
        hasher.update(len(header).to_bytes(4, "big") + header)
        hasher.update(array.nbytes.to_bytes(8, "big"))
        if array.nbytes:
            hasher.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return hasher.digest()


def first_difference(mine: TraceDigests, theirs: TraceDigests) -> int | None:
    """The first node whose digests differ; None where all agree.

    Raises ValueError where the two are not runs of one program on the same inputs.
    """
    if mine.start != theirs.start or len(mine.nodes) != len(theirs.nodes):
        raise ValueError("these are runs of different programs, or on different inputs")
    pairs = enumerate(zip(mine.nodes, theirs.nodes, strict=True))
    return next((number for number, (one, other) in pairs if one != other), None)


def find_first_difference(mine: Sequence[bytes], ask: Callable[[int], bytes]) -> int | None:
    """The same against somebody who answers with one link at a time, by halving.

    `mine` are this side's `links`; `ask(n)` gives the other's `link[n]` and is called about log2(nodes) times. What it
    answers should be checked against the root that it signed. Raises ValueError where the first links differ.
    """
    last = len(mine) - 1
    if ask(last) == mine[last]:
        return None
    if ask(0) != mine[0]:
        raise ValueError("these are runs of different programs, or on different inputs")
    same, apart = 0, last
    while apart - same > 1:
        middle = (same + apart) // 2
        if ask(middle) == mine[middle]:
            same = middle
        else:
            apart = middle
    return same
