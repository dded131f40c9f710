"""Digests of nodes: what every node of a run gave, so that a dispute can find the first node where two runs part.

Nothing is recorded unless asked for: with the task, or afterwards, when an honest provider that is challenged runs the
task again. A node's digest is BLAKE3 over its results (dtype, shape, bytes in C order, each with its length before it).
The digests form a chain that begins with the names of the program and its inputs, as the receipt has them:

    link[0] = BLAKE3(domain | root of the program | list digest of the inputs' roots)
    link[n + 1] = BLAKE3(link[n] | digest of node n)

The last link is the root that a receipt's `trace` holds; zero there says that nothing was recorded. Who has the receipt
and all digests can compute the root, so a signed root stands for each of them: the first digest that differs between
two chains is the first node where the runs part, and that one node can be computed by a third. A loop or a kernel is
one node; what goes on inside of it has no digest.

The worker records the digests and knows no names; the agent, which has verified the blobs by them, computes the root. A
kernel in the worker may be native code of the requester, so what it says proves nothing (`first_unsteady`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from blake3 import blake3

from coppermesh.exec.program import ArraySpec
from coppermesh.exec.runtime import RunLimits, RunResult, Runtime
from coppermesh.exec.schema import CheckedNode, CheckedProgram

NOT_RECORDED: Final = bytes(32)
"""`Receipt.trace` of a run that recorded nothing."""
DIGEST_BYTES: Final = 32
_DOMAIN: Final = b"coppermesh node digests 1\0"

NumpyArray = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class TraceDigests:
    """What one run gave, node by node."""

    nodes: tuple[bytes, ...]
    """A digest for each node."""

    @classmethod
    def from_bytes(cls, data: bytes) -> "TraceDigests":
        """From the digests one after the other. Raises ValueError where they are no multiple of 32 bytes."""
        if len(data) % DIGEST_BYTES:
            raise ValueError(f"{len(data)} bytes are no chain of digests")
        return cls(tuple(data[at : at + DIGEST_BYTES] for at in range(0, len(data), DIGEST_BYTES)))

    def to_bytes(self) -> bytes:
        """The nodes' digests one after the other."""
        return b"".join(self.nodes)

    def root(self, program: bytes, inputs: bytes) -> bytes:
        """The last link: what `Receipt.trace` holds. Takes about a microsecond a node.

        `program` is the root of the program's blob, `inputs` the list digest of its inputs' roots: 32 bytes each.
        """
        if len(program) != DIGEST_BYTES or len(inputs) != DIGEST_BYTES:
            raise ValueError(
                f"{len(program)} and {len(inputs)} bytes are no names of a program and its inputs"
            )
        link = blake3(_DOMAIN + program + inputs).digest()
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
    return result, TraceDigests(tuple(digests))


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

    Raises ValueError where they are of different lengths: these are not two runs of one program.
    """
    if len(mine.nodes) != len(theirs.nodes):
        raise ValueError(f"chains of {len(mine.nodes)} and {len(theirs.nodes)} nodes are not of one program")
    pairs = enumerate(zip(mine.nodes, theirs.nodes, strict=True))
    return next((number for number, (one, other) in pairs if one != other), None)


def first_unsteady(checked: CheckedProgram, device_kind: str) -> int | None:
    """The first node whose bits may vary from run to run in one class; None where no node's do.

    A kernel may race, read what nobody wrote, look at a clock; a GPU adds floats in any order in `add_at`. From such a
    node on, runs that differ prove nothing. `device_kind` is `cpu` or `cuda`.
    """
    return next((n for n, node in enumerate(checked.nodes) if _is_unsteady(node, device_kind)), None)


def _is_unsteady(node: CheckedNode, device_kind: str) -> bool:
    if node.call.kernel is not None:
        return True
    if node.call.body is not None:
        return first_unsteady(node.call.body.checked, device_kind) is not None
    inexact = any(spec.numpy_dtype.kind in "fc" for spec in node.results)
    return node.node.op == "add_at" and device_kind == "cuda" and inexact
