"""What agent, zygote, workers and compilers say to each other on this machine.

Every conversation runs over a SOCK_SEQPACKET pair, so a datagram is a message; descriptors ride along with it. The
messages are the canonical MessagePack of `codec`, bounded here and checked by type. A worker runs native code of a
stranger, so whatever it says is hostile: sizes, counts and texts are bounded before anything acts on them, and no
descriptor is ever taken from it: it fills memory files that it was lent (`lent_files`) and names them by number, and
they are checked by `adopt_outputs` before they are mapped.

A `Part` is how bytes travel: in place while small, else as the size of a file, whose descriptor rides along, in order.

    agent -> zygote   Start, Fork + [socket, box]      zygote -> agent   Ready + [pidfd], Forked + [pidfd],
                                                                         ForkFailed, Exited
    agent -> worker   Run + [files, lent files],       worker -> agent   Build, Need, Done, Failed
                      Built + [file], Lent + [files]
    agent -> builder  Build + [file, lent file]        builder -> agent  Built
"""

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from coppermesh.exec import codec
from coppermesh.exec.errors import ProgramInvalid
from coppermesh.exec.program import MAX_INPUTS, MAX_NODES, MAX_OUTPUTS

MAX_MESSAGE_BYTES = 192 * 1024
"""Below the smallest default of a socket's send buffer (208 KiB), which bounds a SEQPACKET datagram."""
MAX_INLINE_BYTES = 128 * 1024
"""Most bytes that the parts of one message carry in place, together."""
MAX_DESCRIPTORS = 1 + MAX_INPUTS + MAX_OUTPUTS + 1
"""Below the kernel's 253."""
MAX_LENT_AT_ONCE = 64
MAX_LENT_PER_RUN = 640
"""An output each, a source each, and copies of libraries."""
MAX_DETAIL = 16 * 1024

Code = Annotated[str, Meta(min_length=1, max_length=40, pattern=r"^[a-z0-9-]+\Z")]
Sentence = Annotated[str, Meta(max_length=400, pattern=r"^[\x20-\x7e]*\Z")]
Detail = Annotated[str, Meta(max_length=MAX_DETAIL, pattern=r"^[\x20-\x7e\n\t]*\Z")]
Label = Annotated[str, Meta(max_length=128, pattern=r"^[\x20-\x7e]*\Z")]
Size = Annotated[int, Meta(ge=0, lt=1 << 62)]
Part = Annotated[bytes, Meta(max_length=MAX_INLINE_BYTES)] | Size
Names = Annotated[tuple[Annotated[str, Meta(max_length=256)], ...], Meta(max_length=128)]
Options = Annotated[tuple[Annotated[str, Meta(max_length=256)], ...], Meta(max_length=16)]


class PipeError(Exception):
    """The other end said something that the protocol does not allow."""


class PipeMessage(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of every message; each is tagged by its class name in lower case."""


class Start(PipeMessage, frozen=True, tag="start"):
    """First of all: what the zygote's children will run."""

    kind: Annotated[str, Meta(pattern=r"^(cpu|cuda)\Z")]
    """Which runtime."""
    threads: Annotated[int, Meta(ge=1, le=1024)]
    """Processor cores a worker may use."""
    compiler: tuple[str, ...]
    """Command of the C++ compiler; empty where there is none."""
    family: str
    version: Label
    """The compiler's, for receipts."""
    cache: str
    """Where the compiler may keep parts of itself."""
    scratch: str = ""
    """The directory that holds every child's own one."""
    namespaces: Annotated[str, Meta(pattern=r"^(none|own|bubblewrap)\Z")] = "none"
    """`own`: the zygote is to make them; `bubblewrap`: it was started in them."""


class Fork(PipeMessage, frozen=True, tag="fork"):
    """Fork a child that serves the socket that rides along, with the black box after it."""

    serial: int
    role: Annotated[str, Meta(pattern=r"^(worker|builder)\Z")]
    directory: str
    """Private scratch directory, the child's working directory."""
    memory_bytes: Size
    output_bytes: Size
    scratch_bytes: Size
    processes: Size
    cpu_seconds: Size
    kernels: bool
    blob_bytes: Size = 1 << 60
    operations: Size = 10**17
    prepares: bool = False
    """For a builder: it compiles nobody's source, and may write what all builders' compilers read."""


class Ready(PipeMessage, frozen=True, tag="ready"):
    """The zygote has loaded everything; its pidfd rides along. `layers` are those it is in and its children put on."""

    threads: int
    """Must be 1."""
    layers: tuple[Label, ...] = ()


class Forked(PipeMessage, frozen=True, tag="forked"):
    """A child runs; its pidfd rides along. Sent before the child could be reaped, so the pidfd is the child's."""

    serial: int
    pid: int


class ForkFailed(PipeMessage, frozen=True, tag="fork-failed"):
    """No child: what the system said."""

    serial: int
    reason: Sentence


class Exited(PipeMessage, frozen=True, tag="exited"):
    """A child ended: exit code, or the negative number of the signal that ended it."""

    serial: int
    code: int
    cpu_us: Size = 0
    """Processor time that it used, in microseconds."""


class Run(PipeMessage, frozen=True, tag="run"):
    """Run a program. The first part is the program, the others its inputs."""

    number: Size
    parts: Annotated[tuple[Part, ...], Meta(min_length=1, max_length=1 + MAX_INPUTS)]
    digests: bool = False
    """Record a digest for each node (`trace_digests`)."""
    lent: Annotated[int, Meta(ge=0, le=MAX_OUTPUTS + 1)] = 0
    """How many empty memory files ride along, behind those of the parts. They are numbered from 0 in each run."""


class Lent(PipeMessage, frozen=True, tag="lent"):
    """So many more empty memory files ride along."""

    count: Annotated[int, Meta(ge=0, le=MAX_LENT_AT_ONCE)]


class Need(PipeMessage, frozen=True, tag="need"):
    """More empty memory files."""

    count: Annotated[int, Meta(ge=1, le=MAX_LENT_AT_ONCE)]


class Done(PipeMessage, frozen=True, tag="done"):
    """Outputs of these sizes lie in `files`, sealed, and in the last of them the nodes' digests where recorded."""

    number: Size
    outputs: Annotated[tuple[Size, ...], Meta(max_length=MAX_OUTPUTS)]
    device_us: Size | None
    peak_bytes: Size
    determinism: Label
    array_bytes: Size = 0
    """Most bytes of arrays that this run held at once."""
    nodes: Annotated[int, Meta(ge=0, le=MAX_NODES)] | None = None
    """How many digests of 32 bytes the last file holds; nil where none were asked for."""
    files: Annotated[tuple[Size, ...], Meta(max_length=MAX_OUTPUTS + 1)] = ()
    """Numbers of lent files, each once."""


class Failed(PipeMessage, frozen=True, tag="failed"):
    """The program was refused or failed. `fault` says whose doing it was."""

    number: Size
    fault: Annotated[str, Meta(pattern=r"^(job|provider)\Z")]
    code: Code
    sentence: Sentence
    detail: Detail
    peak_bytes: Size
    determinism: Label


class Build(PipeMessage, frozen=True, tag="build"):
    """Compile CUDA source for this machine's processor."""

    source: Part
    name: Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}\Z")]
    options: Options
    functions: Names = ()
    """A module's kernels, name expressions and variables: checked by the builder."""
    expressions: Names = ()
    symbols: Names = ()
    file: Size | None = None
    """From a worker: the number of the lent file that the source lies in, where it is not in place."""


class Built(PipeMessage, frozen=True, tag="built"):
    """`code` is `ok`, and the library lies in the file that was lent, sealed; or why there is none."""

    code: Code
    sentence: Sentence
    detail: Detail


FromZygote = Ready | Forked | ForkFailed | Exited
FromWorker = Build | Need | Done | Failed
ToWorker = Run | Built | Lent


def encode(message: PipeMessage) -> bytes:
    """The message as one datagram. Raises PipeError where it would be too large to send."""
    data = codec.encode(message)
    if len(data) > MAX_MESSAGE_BYTES:
        raise PipeError(f"a message of {len(data)} bytes; at most {MAX_MESSAGE_BYTES} can be sent")
    return data


def decode_from_zygote(data: bytes) -> FromZygote:
    """What a zygote said. Raises PipeError."""
    return _decode(data, Ready | Forked | ForkFailed | Exited)  # type: ignore[return-value]


def decode_from_worker(data: bytes) -> FromWorker:
    """What a worker said; hostile. Raises PipeError."""
    return _decode(data, Build | Need | Done | Failed)  # type: ignore[return-value]


def decode_to_worker(data: bytes) -> ToWorker:
    """What the agent told a worker. Raises PipeError."""
    return _decode(data, Run | Built | Lent)  # type: ignore[return-value]


def decode_start(data: bytes) -> Start:
    """The agent's first word to the zygote. Raises PipeError."""
    return _decode(data, Start)  # type: ignore[return-value]


def decode_fork(data: bytes) -> Fork:
    """What the agent told the zygote. Raises PipeError."""
    return _decode(data, Fork)  # type: ignore[return-value]


def decode_build(data: bytes) -> Build:
    """What the agent told a builder. Raises PipeError."""
    return _decode(data, Build)  # type: ignore[return-value]


def decode_built(data: bytes) -> Built:
    """What a builder answered. Raises PipeError."""
    return _decode(data, Built)  # type: ignore[return-value]


def _decode(data: bytes, kind: object) -> object:
    try:
        return codec.decode(kind, data, max_bytes=MAX_MESSAGE_BYTES, max_items=256)  # type: ignore[arg-type]
    except ProgramInvalid as error:
        raise PipeError(f"not a message of this pipe: {error.sentence}") from error


def plan_parts(sizes: Sequence[int]) -> list[bool]:
    """Which of the buffers go in place: the smallest first, while all of them together fit."""
    inline = [False] * len(sizes)
    left = MAX_INLINE_BYTES
    for position in sorted(range(len(sizes)), key=lambda position: sizes[position]):
        if sizes[position] > left:
            break
        left -= sizes[position]
        inline[position] = True
    return inline


def files_in(parts: Sequence[Part]) -> int:
    """How many descriptors the parts need."""
    return sum(isinstance(part, int) for part in parts)


def plain_detail(text: str) -> str:
    """`text` as printable ASCII with line ends and tabs, cut in the middle to `MAX_DETAIL` characters."""
    kept = "".join(c if " " <= c <= "~" or c in "\n\t" else "?" for c in text)
    if len(kept) <= MAX_DETAIL:
        return kept
    mark = "\n[...]\n"
    head = MAX_DETAIL * 3 // 4
    return kept[:head] + mark + kept[len(kept) - (MAX_DETAIL - head - len(mark)) :]
