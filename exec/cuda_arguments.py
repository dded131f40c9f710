"""What a launch passes to a library built from CUDA source: arguments held to the kernel's parameters, then laid out.

A launch costs a few microseconds where this has nothing to find out: which types fit which parameter is remembered,
and the memory for values and for the state of a launch is used again by the next launch of the kernel.
"""

import ctypes
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from coppermesh.exec.cuda_launch import LaunchState
from coppermesh.exec.errors import RunFailed
from coppermesh.exec.runtime import Dim3, KernelArgument

_ALIGNMENT = 64
"""Of the memory in which an argument's value stands, in bytes: no type needs more unless a source says so."""
_LAUNCH = struct.Struct("6IQQQ5I")
"""The beginning of a `LaunchState`, up to `threads`."""


class Parameter(ctypes.Structure):
    """`coppermesh::Parameter` of coppermesh_launch.h."""

    _fields_ = [
        ("bytes", ctypes.c_uint),
        ("element_bytes", ctypes.c_uint),
        ("kind", ctypes.c_char),
        ("element", ctypes.c_char),
    ]


class Frame:
    """The memory of one launch: its state, and its arguments' values with pointers to them."""

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self._is_pointer = [parameter.kind == b"p" for parameter in parameters]
        sizes = [-(-max(16, parameter.bytes) // _ALIGNMENT) * _ALIGNMENT for parameter in parameters]
        fields = [
            f"Q{size - 8}x" if parameter.kind == b"p" else f"{parameter.bytes}s{size - parameter.bytes}x"
            for parameter, size in zip(parameters, sizes, strict=True)
        ]
        self._pack = struct.Struct("=" + "".join(fields)).pack_into
        self._memory = (ctypes.c_char * (sum(sizes) + _ALIGNMENT))()
        self._offset = -ctypes.addressof(self._memory) % _ALIGNMENT
        start = ctypes.addressof(self._memory) + self._offset
        places = [start + sum(sizes[:position]) for position in range(len(sizes))]
        self.state = LaunchState()
        self.pointers = (ctypes.c_void_p * max(1, len(places)))(*places)
        self.reference = ctypes.byref(self.state)

    def fill(self, launch: Sequence[int], arguments: Sequence[KernelArgument]) -> None:
        """Make it ready: `launch` are the first fields of `LaunchState`, one number each."""
        _LAUNCH.pack_into(self.state, 0, *launch)
        self._pack(
            self._memory,
            self._offset,
            *[
                argument.__array_interface__["data"][0]
                if isinstance(argument, np.ndarray)
                else (0 if is_pointer else argument.tobytes())  # the only number for a pointer is 0
                for argument, is_pointer in zip(arguments, self._is_pointer, strict=True)
            ],
        )


class ArgumentTable:
    """What one kernel takes."""

    def __init__(self, name: str, parameters: Sequence[Parameter]) -> None:
        self._name, self._parameters = name, list(parameters)
        self._arrays: list[set[np.dtype[Any]]] = [set() for _ in self._parameters]
        self._scalars: list[set[np.dtype[Any]]] = [set() for _ in self._parameters]
        self._spare: list[Frame] = []

    def check(self, arguments: Sequence[KernelArgument]) -> None:
        """Raise RunFailed (`kernel-arguments`) where these are not what the kernel takes."""
        if len(arguments) != len(self._parameters):
            wanted = len(self._parameters)
            raise self._wrong(f"takes {wanted} arguments, {len(arguments)} were given")
        for position, argument in enumerate(arguments):
            if isinstance(argument, np.ndarray):
                if argument.dtype in self._arrays[position] and argument.flags.c_contiguous:
                    continue
            elif argument.dtype in self._scalars[position]:
                continue
            self._check_one(position, argument)

    def _check_one(self, position: int, argument: KernelArgument) -> None:
        parameter = self._parameters[position]
        if fault := _argument_fault(argument, parameter):
            raise self._wrong(f"argument {position}: {fault}")
        if isinstance(argument, np.ndarray):
            self._arrays[position].add(argument.dtype)
        elif (
            parameter.kind != b"p" and argument.itemsize == parameter.bytes and argument.dtype.kind in "iufb"
        ):
            self._scalars[position].add(argument.dtype)  # of this size any value will do

    def _wrong(self, text: str) -> RunFailed:
        return RunFailed(f"kernel {self._name}: {text}", code="kernel-arguments")

    def take(self) -> Frame:
        """Memory for a launch, until it is given back."""
        try:
            return self._spare.pop()
        except IndexError:
            return Frame(self._parameters)

    def give_back(self, frame: Frame) -> None:
        """The launch is over and nothing went wrong."""
        if len(self._spare) < 2:
            self._spare.append(frame)


def launch_fields(grid: Dim3, block: Dim3, chunk: int, shared_bytes: int, threads: int) -> tuple[int, ...]:
    """What `Frame.fill` wants to know of a launch; `chunk` blocks are dealt out at a time."""
    blocks = grid[0] * grid[1] * grid[2]
    return (*grid, *block, blocks, chunk, 0, shared_bytes, 0, 0, 0, threads)


def _argument_fault(argument: KernelArgument, parameter: Parameter) -> str | None:
    kind, element = parameter.kind, parameter.element
    if isinstance(argument, np.ndarray):
        if kind != b"p":
            return "an array was given for a parameter that is no pointer"
        if not argument.flags.c_contiguous:
            return "the array is not contiguous"
        if element == b"f" and argument.dtype.kind == "f" and argument.itemsize != parameter.element_bytes:
            return f"the kernel reads {8 * parameter.element_bytes}-bit floats, the array is {argument.dtype}"
        return None
    if kind == b"p":
        is_null = argument.dtype.kind in "iu" and argument.itemsize == parameter.bytes and int(argument) == 0
        return None if is_null else "a scalar was given for a pointer"
    if kind in b"if" and argument.dtype.kind == "c":
        return f"the kernel takes no complex number there, {argument.dtype} was given"
    if kind == b"i" and argument.dtype.kind in "iub" and parameter.bytes < argument.itemsize:
        # CUDA would take the low bytes of a wider integer; so does this, where no value is lost.
        return _narrowing_fault(int(argument), parameter.bytes)
    if (kind == b"f") != (argument.dtype.kind == "f") or parameter.bytes != argument.itemsize:
        wanted = {b"i": "an integer", b"f": "a floating-point number"}.get(kind, "a structure")
        return f"the kernel takes {wanted} of {parameter.bytes} bytes, {argument.dtype} was given"
    return None


def _narrowing_fault(value: int, width: int) -> str | None:
    if -(1 << (8 * width - 1)) <= value < 1 << (8 * width):
        return None
    return f"{value} does not fit the kernel's integer of {width} bytes"
