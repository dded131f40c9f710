"""Program format v1: what a job is, as data.

A program is a list of nodes in an order in which each uses only what came before. Values are numbered: first the
inputs, then the results of each node in turn (most nodes have one; a kernel has one per array it writes). An argument
is the number of a value, or a small typed constant written in place. Everything else a node needs is in its
attributes: integers, booleans, strings from fixed sets, and lists of integers. A loop's first argument is its body:
the canonical bytes of a program. There is no host-language code, no
object, no float (a constant is the bytes of its element), no path.

The canonical bytes are the program's identity: the same code on the same shapes records the same bytes, so a provider
that has seen it may skip what it knows. Constants that differ from run to run belong in inputs.

Structures are kept out of the garbage collector (`gc=False`): they hold nothing that could lead back to them, and a
program of 100,000 nodes decodes in half the time.

Growth. A new operation is a new name in `operations`; a new kernel kind is a new `KernelSource.kind`; anything that
changes the meaning of existing bytes is a new version, and an unknown version is refused.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec
import numpy as np
from msgspec import Meta

from coppermesh.exec import codec
from coppermesh.exec.dtypes import ITEMSIZES, NUMPY_DTYPES
from coppermesh.exec.errors import ProgramInvalid

VERSION: Final = 1
MAX_PROGRAM_BYTES: Final = 8 * 1024 * 1024
MAX_NODES: Final = 100_000
MAX_INPUTS: Final = 128
MAX_OUTPUTS: Final = 64
MAX_KERNELS: Final = 256
MAX_ARGUMENTS: Final = 128
MAX_DIMENSIONS: Final = 32
MAX_SOURCE_CHARACTERS: Final = 256 * 1024

MAX_BODY_BYTES: Final = 1024 * 1024
MAX_BODY_DEPTH: Final = 4

Size = Annotated[int, Meta(ge=0, lt=1 << 62)]
Name = Annotated[str, Meta(min_length=1, max_length=256)]
AttributeValue = (
    None
    | bool
    | int
    | Annotated[str, Meta(max_length=64)]
    | Annotated[tuple[int | Annotated[tuple[int, ...], Meta(max_length=4)], ...], Meta(max_length=64)]
)

Attributes = Mapping[str, AttributeValue]


class ArraySpec(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Element type and shape of one array. Bytes of an array are C-order and little-endian."""

    dtype: Annotated[str, Meta(max_length=16)]
    shape: Annotated[tuple[Size, ...], Meta(max_length=MAX_DIMENSIONS)]

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements, exact at any magnitude."""
        count = 1
        for length in self.shape:
            count *= length
        return count

    @property
    def nbytes(self) -> int:
        """Bytes of the array, exact at any magnitude."""
        return self.size * ITEMSIZES[self.dtype]

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The dtype as NumPy's."""
        return NUMPY_DTYPES[self.dtype]

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


class Scalar(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """A constant written in place: its element's little-endian bytes, so that every float has one encoding."""

    dtype: Annotated[str, Meta(max_length=16)]
    data: Annotated[bytes, Meta(min_length=1, max_length=16)]

    def value(self) -> np.generic:
        """The constant as a NumPy scalar."""
        scalar: np.generic = np.frombuffer(self.data, NUMPY_DTYPES[self.dtype])[0]
        return scalar


class KernelSource(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """CUDA C++ source. `texts` depends on `kind`.

    `raw`: the source. `module`: the source, and lists of what of it is used (`cuda_modules`).
    `elementwise`: input parameters, output parameters, operation, preamble, and where one of them is not empty, what
    comes before the loop and what after. `reduction`: input parameters, output parameters, map, reduce and post-map
    expressions, identity and type of the reduction (each may be empty), preamble.
    """

    kind: Annotated[str, Meta(max_length=16)]
    name: Name
    options: Annotated[tuple[Annotated[str, Meta(max_length=256)], ...], Meta(max_length=16)]
    texts: Annotated[tuple[Annotated[str, Meta(max_length=MAX_SOURCE_CHARACTERS)], ...], Meta(max_length=8)]


Argument = Annotated[int, Meta(ge=0, lt=1 << 32)] | Annotated[bytes, Meta(max_length=MAX_BODY_BYTES)] | Scalar


class Node(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """One operation on earlier values."""

    op: Annotated[str, Meta(max_length=32)]
    args: Annotated[tuple[Argument, ...], Meta(max_length=MAX_ARGUMENTS)]
    attrs: Annotated[dict[Annotated[str, Meta(max_length=16)], AttributeValue], Meta(max_length=8)]


class Program(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A whole program. `outputs` are value numbers; an input may be an output too."""

    version: int
    inputs: Annotated[tuple[ArraySpec, ...], Meta(max_length=MAX_INPUTS)]
    kernels: Annotated[tuple[KernelSource, ...], Meta(max_length=MAX_KERNELS)]
    nodes: Annotated[tuple[Node, ...], Meta(max_length=MAX_NODES)]
    outputs: Annotated[
        tuple[Annotated[int, Meta(ge=0, lt=1 << 32)], ...], Meta(min_length=1, max_length=MAX_OUTPUTS)
    ]


def make_scalar(dtype: str, value: Any) -> Scalar:
    """The constant `value` as an element of `dtype`. Raises OverflowError where it does not fit."""
    return Scalar(dtype, np.array(value, NUMPY_DTYPES[dtype]).tobytes())


def encode_program(program: Program) -> bytes:
    """The program's canonical bytes. Raises ProgramInvalid where they would exceed a limit of the format."""
    data = codec.encode(program)
    if len(data) > MAX_PROGRAM_BYTES:
        raise ProgramInvalid(
            "program-too-large", f"the program has {len(data)} bytes, at most {MAX_PROGRAM_BYTES} are taken"
        )
    return data


def decode_program(data: bytes) -> Program:
    """The program that `data` encodes. Shapes of structures only: `schema.check_program` checks the meaning.

    Raises ProgramInvalid and nothing else, whatever the bytes.
    """
    program = codec.decode(Program, data, max_bytes=MAX_PROGRAM_BYTES, max_items=MAX_NODES)
    if program.version != VERSION:
        raise ProgramInvalid(
            "program-version", f"program version {program.version}; this software knows {VERSION}"
        )
    return program
