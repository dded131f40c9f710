"""One build, seen from the agent: a builder process asked for a library, within time, memory and disk.

The kernel's limits bound each process of a compiler; a hijacked one may start many, so the whole tree of a builder's
processes is counted, ten times a second. The tree is known by its session, which a builder's filter lets nobody leave.
What is left of it when the builder has ended, the zygote kills: it inherits what loses its parent.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from coppermesh.exec import linux, pipe
from coppermesh.exec.budget import format_bytes
from coppermesh.exec.builder import BUILD_MEMORY_BYTES, what_it_may_use
from coppermesh.exec.channel import Channel
from coppermesh.exec.cuda_build import BUILD_SECONDS
from coppermesh.exec.keeper import Child
from coppermesh.exec.runs import WorkerLimits
from coppermesh.exec.sandbox.private_scratch import MAX_FILES
from coppermesh.exec.scratch import size_of
from coppermesh.exec.sockets import close_all

BUILD_GRACE_SECONDS = 5.0
"""Over the builder's own deadline, before it is killed from outside."""
LOOK_SECONDS = 0.1
"""How often a builder is measured: its processes' memory, and its directory where that lies on the disk."""
TREE_BYTES = BUILD_MEMORY_BYTES + (256 << 20)
"""Most that all processes of a build may hold: one at its own limit, and the builder, the driver and a linker."""


@dataclass(frozen=True)
class Builder:
    """A builder process that waits for its one request."""

    child: Child
    channel: Channel
    directory: Path
    held: Callable[[], int]
    """Bytes of memory that all its processes hold. Blocks for a millisecond or so."""


async def ask_in_bounds(
    builder: Builder, limits: WorkerLimits, request: pipe.Build, source: list[int]
) -> tuple[pipe.Built, list[int]]:
    """Its answer and, where that is good, the library's descriptor; a refusal where it broke a bound."""
    reasons: list[str] = []
    answers: list[tuple[pipe.Built, list[int]]] = []

    async def watch() -> None:
        while not reasons:
            await trio.sleep(LOOK_SECONDS)
            if reason := await trio.to_thread.run_sync(_excess, builder, limits):
                reasons.append(reason)
                builder.child.kill()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            with trio.move_on_after(BUILD_SECONDS + BUILD_GRACE_SECONDS):
                answers.append(await _ask(builder.channel, request, source))
            nursery.cancel_scope.cancel()
    except BaseException:
        _drop(answers)
        raise
    if answers and not reasons:
        return answers[0]
    _drop(answers)
    reason = reasons[0] if reasons else f"the compiler needed more than {BUILD_SECONDS:.0f} s"
    sentence = f"kernel {request.name}: {reason}{what_it_may_use(limits.scratch_bytes)}"
    return pipe.Built("kernel-build-limit", sentence[:400], ""), []


def _excess(builder: Builder, limits: WorkerLimits) -> str:
    """What it has too much of; an empty text while it keeps within its bounds."""
    held = builder.held()
    if held > TREE_BYTES:
        return f"the compiler's processes held {format_bytes(held)} of memory"
    if size_of(builder.directory, limits.scratch_bytes, MAX_FILES) > limits.scratch_bytes:
        most = format_bytes(limits.scratch_bytes)
        return f"the compiler wrote more than the {most} or {MAX_FILES} files that its directory may hold"
    return ""


def _drop(answers: list[tuple[pipe.Built, list[int]]]) -> None:
    for _, library in answers:
        close_all(library)


async def _ask(channel: Channel, request: pipe.Build, source: list[int]) -> tuple[pipe.Built, list[int]]:
    """The library comes in a file that the builder is lent, and only where nobody can change it any more."""
    file = linux.memory_file("coppermesh-kernel")
    library = [file]
    try:
        await channel.send(pipe.encode(request), [*source, file])
        data, unasked = await channel.receive()
        close_all(unasked)
        if data and not unasked:
            built = pipe.decode_built(data)
            if built.code != "ok":
                return built, []
            if linux.seals_of(file) & linux.SEAL_CONTENT == linux.SEAL_CONTENT:
                library = []
                return built, [file]
    except (OSError, pipe.PipeError):
        pass  # the same to whoever asked: no library
    finally:
        close_all(library)
    return pipe.Built("kernel-build-limit", f"kernel {request.name}: the compiler's process has died", ""), []
