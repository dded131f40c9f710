"""Digests of nodes: what every node of a run gave, so that a dispute can find the first node where two runs part.

Nothing is recorded unless asked for: with the task, or afterwards, when an honest provider that is challenged runs the
task again. A node's digest is BLAKE3 over its results (dtype, shape, bytes in C order, each with its length before it).
The digests form a chain that begins with the program and its inputs:

    link[0] = BLAKE3(domain | program | number of inputs | each input's digest)
    link[n + 1] = BLAKE3(link[n] | digest of node n)

The last link is the root that a receipt's `trace` holds; zero there says that nothing was recorded. Who has the first
link and all digests can compute the root, so a signed root stands for each of them: the first digest that differs
between two chains is the first node where the runs part, and that one node can be computed by a third. A loop or a
kernel is one node; what goes on inside of it has no digest.

The worker records, and a kernel in it may be native code of the requester: whoever sends kernels that forge digests
spoils only the evidence that they asked for themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from blake3 import blake3

from coppermesh.exec.program import ArraySpec, encode_program
from coppermesh.exec.runtime import RunLimits, RunResult, Runtime
from coppermesh.exec.schema import CheckedProgram

NOT_RECORDED: Final = bytes(32)
"""`Receipt.trace` of a run that recorded nothing."""
DIGEST_BYTES: Final = 32
_DOMAIN: Final = b"coppermesh node digests 1\0"

NumpyArray = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class TraceDigests:
    """What one run gave, node by node."""

    start: bytes
    """`link[0]`: the program and its inputs."""
    nodes: tuple[bytes, ...]
    """A digest for each node."""

    @classmethod
    def from_bytes(cls, start: bytes, data: bytes) -> "TraceDigests":
        """From the digests one after the other. Raises ValueError where they are no multiple of 32 bytes."""
        if len(start) != DIGEST_BYTES or len(data) % DIGEST_BYTES:
            raise ValueError(f"{len(start)} and {len(data)} bytes are no chain of digests")
        return cls(start, tuple(data[at : at + DIGEST_BYTES] for at in range(0, len(data), DIGEST_BYTES)))

    def to_bytes(self) -> bytes:
        """The nodes' digests one after the other."""
        return b"".join(self.nodes)

    def root(self) -> bytes:
        """The last link: what `Receipt.trace` holds. Takes about a microsecond a node."""
        link = self.start
        for digest in self.nodes:
            link = blake3(link + digest).digest()
        return link


def run_with_digests(
    runtime: Runtime, checked: CheckedProgram, inputs: Sequence[NumpyArray], limits: RunLimits
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
