"""Seccomp: which system calls a process may make, as a program in the kernel's classic BPF.

Theory. The kernel runs the filter at each system call, on the call's number, the architecture and the six arguments
as numbers; it cannot follow a pointer. So a call whose danger lies behind a pointer (`clone3`) is refused whole, with
ENOSYS, upon which the C library uses the older call whose flags are numbers. Filters add up and stay for good.

The program begins with the architecture (32-bit calls have other numbers) and the x32 bit, both of which end the
process, then finds the call by halving the range of numbers, about nine comparisons. Runs of neighbours with the same
answer are one range. A call that is newer than the table of numbers gets ENOSYS, as on a kernel that lacks it.

Arguments are compared by their low 32 bits: everything compared here is an `int` or `unsigned int` to the kernel, or a
set of flags that all lie there. A pointer is neither, so of a pointer only `Null` can be asked, which looks at both
halves: an address whose low half is zero can be mapped.
"""

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from coppermesh.exec import linux
from coppermesh.exec.sandbox.syscall_numbers import NEWEST, NUMBERS

ALLOW = 0x7FFF0000
KILL_PROCESS = 0x80000000
SELF = -1
"""Among a condition's values: this process's own id, filled in when the filter is installed."""
OWN_GROUP = -2
"""The same for the process group that it leads, as `kill` names one: minus its id."""

_X86_64 = 0xC000003E
_X32 = 0x40000000
_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_AT_LEAST, _JUMP, _AND, _RETURN = 0x20, 0x15, 0x35, 0x05, 0x54, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
_PR_SET_SECCOMP = 22
_MODE_FILTER = 2
MAX_INSTRUCTIONS = 4096


def refuse(code: int) -> int:
    """The action that makes a call fail with that errno."""
    return 0x00050000 | code


@dataclass(frozen=True)
class In:
    """An argument must be one of these values."""

    argument: int
    values: tuple[int, ...]


@dataclass(frozen=True)
class NotIn:
    """An argument must be none of these values."""

    argument: int
    values: tuple[int, ...]


@dataclass(frozen=True)
class Bits:
    """An argument's bits under `mask` must be `value`."""

    argument: int
    mask: int
    value: int = 0


@dataclass(frozen=True)
class Null:
    """An argument that is a pointer must be none: all 64 bits are zero."""

    argument: int


@dataclass(frozen=True)
class When:
    """Allowed where every condition holds, else refused with `otherwise`."""

    conditions: tuple[In | NotIn | Bits | Null, ...]
    otherwise: int = errno.EPERM


Action = int | When
_Instruction = tuple[int, int, int, int]
"""Code, jump where true, jump where false, operand."""


@dataclass(frozen=True, eq=False)
class Filter:
    """What is done at each call. Calls not named get `default`."""

    name: str
    default: int
    actions: Mapping[str, Action]


def supported() -> bool:
    """Whether this machine can run the filters: x86-64, and a kernel with seccomp filters."""
    if platform.machine() != "x86_64" or ctypes.sizeof(ctypes.c_void_p) != 8:
        return False
    # A null program is refused with EFAULT where filters exist, and with EINVAL where they do not.
    try:
        linux.prctl(_PR_SET_SECCOMP, _MODE_FILTER)
    except OSError as error:
        return error.errno in (errno.EFAULT, errno.EACCES)
    return True


def install(filter_: Filter) -> None:
    """Bind this thread, and all that it starts, to the filter. Sets no_new_privs. Raises OSError."""
    data = assemble(filter_, os.getpid())
    code = ctypes.create_string_buffer(data, len(data))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(data) // 8, ctypes.addressof(code)))
    linux.forbid_new_privileges()
    linux.prctl2(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(program))


def assemble(filter_: Filter, pid: int) -> bytes:
    """The filter's program for the process `pid`, in the kernel's form."""
    own = {SELF: pid, OWN_GROUP: -pid}
    return b"".join(
        struct.pack("HBBI", code, yes, no, own.get(operand, operand) & 0xFFFFFFFF)
        for code, yes, no, operand in _instructions(filter_)
    )


@lru_cache(maxsize=16)
def _instructions(filter_: Filter) -> tuple[_Instruction, ...]:
    code: list[_Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_JUMP_IF_EQUAL, 1, 0, _X86_64),
        (_RETURN, 0, 0, KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_JUMP_IF_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, KILL_PROCESS),
        *_search(_ranges(filter_)),
    ]
    if len(code) > MAX_INSTRUCTIONS:
        raise ValueError(
            f"filter {filter_.name}: {len(code)} instructions, the kernel takes {MAX_INSTRUCTIONS}"
        )
    return tuple(code)


def _ranges(filter_: Filter) -> list[tuple[int, Action]]:
    """Where each answer begins, from 0 upwards, neighbours with the same answer merged."""
    by_number = {NUMBERS[name]: action for name, action in filter_.actions.items()}
    found: list[tuple[int, Action]] = []
    for number in range(NEWEST + 2):
        action = refuse(errno.ENOSYS) if number > NEWEST else by_number.get(number, filter_.default)
        if not found or found[-1][1] != action:
            found.append((number, action))
    return found


def _search(ranges: Sequence[tuple[int, Action]]) -> list[_Instruction]:
    if len(ranges) == 1:
        return _act(ranges[0][1])
    middle = len(ranges) // 2
    below, above = _search(ranges[:middle]), _search(ranges[middle:])
    # A conditional jump reaches 255 instructions, an unconditional one any distance.
    return [(_JUMP_IF_AT_LEAST, 0, 1, ranges[middle][0]), (_JUMP, 0, 0, len(below)), *below, *above]


def _act(action: Action) -> list[_Instruction]:
    if isinstance(action, int):
        return [(_RETURN, 0, 0, action)]
    code: list[_Instruction] = []
    for condition in action.conditions:
        code.append((_LOAD, 0, 0, _ARGUMENTS_AT + 8 * condition.argument))
        if isinstance(condition, Null):
            # To the refusal from the low half, past it from the high one.
            code.append((_JUMP_IF_EQUAL, 0, 2, 0))
            code.append((_LOAD, 0, 0, _ARGUMENTS_AT + 8 * condition.argument + 4))
            code.append((_JUMP_IF_EQUAL, 1, 0, 0))
        elif isinstance(condition, Bits):
            code.append((_AND, 0, 0, condition.mask))
            code.append((_JUMP_IF_EQUAL, 1, 0, condition.value))
        elif isinstance(condition, NotIn):
            count = len(condition.values)
            code += [
                (_JUMP_IF_EQUAL, count - place, 0, value) for place, value in enumerate(condition.values)
            ]
            code.append((_JUMP, 0, 0, 1))
        else:
            count = len(condition.values)
            code += [
                (_JUMP_IF_EQUAL, count - place, 0, value) for place, value in enumerate(condition.values)
            ]
        code.append((_RETURN, 0, 0, refuse(action.otherwise)))
    return [*code, (_RETURN, 0, 0, ALLOW)]
