"""One launch as the libraries built from CUDA source see it: its memory, and what a kernel did wrong, in words.

The structures have the layout of `shim/coppermesh_fault.h`. A kernel that fails an assertion, leaves an array's bounds
or makes its threads wait for ever fills in the `Fault`; `explain_fault` turns that into an error that names the kernel,
the line, the thread and the block. The worker lives on.
"""

import ctypes
import mmap
import re

from coppermesh.exec.errors import RunFailed

MAX_SHARED_BYTES = 227 * 1024
"""Static and dynamic shared memory of one block: most that any device has."""

_STACKS_AT = 3456 * 1024
_MANY_THREADS = 256
"""Blocks of up to this many threads get large stacks."""
_LARGE_STACK, _SMALL_STACK = 260 * 1024, 68 * 1024
"""Distance of two stacks: an odd multiple of the page size, or they would compete for the same sets of the cache."""
_MAX_THREADS = 1024


_OWN_NAME = re.compile(r"'coppermesh_t_\w+' \(aka ('[^']*')\)")
"""How clang calls the type of a shared array (see cuda_rewrite)."""


class Fault(ctypes.Structure):
    """`coppermesh::Fault`."""

    _fields_ = [
        ("claimed", ctypes.c_uint),
        ("kind", ctypes.c_uint),
        ("line", ctypes.c_uint),
        ("other_line", ctypes.c_uint),
        ("thread", ctypes.c_uint * 3),
        ("other", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("mask", ctypes.c_uint),
        ("number", ctypes.c_longlong),
        ("limit", ctypes.c_longlong),
        ("file", ctypes.c_char * 24),
        ("text", ctypes.c_char * 104),
    ]


class LaunchState(ctypes.Structure):
    """`coppermesh::Launch`."""

    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("blocks", ctypes.c_ulonglong),
        ("chunk", ctypes.c_ulonglong),
        ("next", ctypes.c_ulonglong),
        ("shared_bytes", ctypes.c_uint),
        ("stop", ctypes.c_uint),
        ("arenas_taken", ctypes.c_uint),
        ("stack_bytes", ctypes.c_uint),
        ("threads", ctypes.c_uint),
        ("arenas", ctypes.c_void_p),
        ("fault", Fault),
    ]


class Arenas:
    """Memory for the fibers of each operating-system thread: stacks, dynamic shared memory and state.

    Reserved at the first launch that needs it and kept; of its 69 MiB a piece (of either kind) a page is used when it
    is first touched. Shared anonymous memory, which the limit on a job's private memory does not count.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._kept: dict[int, tuple[list[mmap.mmap], ctypes.Array[ctypes.c_void_p]]] = {}

    def give(self, state: LaunchState, block_threads: int) -> None:
        """Let `state` have the memory that a launch of blocks of `block_threads` threads needs."""
        stack_bytes = _LARGE_STACK if block_threads <= _MANY_THREADS else _SMALL_STACK
        if stack_bytes not in self._kept:
            self._kept[stack_bytes] = self._reserve(stack_bytes)
        state.stack_bytes = stack_bytes
        state.arenas = ctypes.addressof(self._kept[stack_bytes][1])

    def _reserve(self, stack_bytes: int) -> tuple[list[mmap.mmap], "ctypes.Array[ctypes.c_void_p]"]:
        stacks = _MANY_THREADS if stack_bytes == _LARGE_STACK else _MAX_THREADS
        try:
            memory = [mmap.mmap(-1, _STACKS_AT + stacks * stack_bytes) for _ in range(self._threads)]
        except (OSError, MemoryError) as error:
            raise RunFailed("no memory for the threads of a block", code="memory-limit") from error
        addresses = [ctypes.addressof(ctypes.c_char.from_buffer(piece)) for piece in memory]
        return memory, (ctypes.c_void_p * len(addresses))(*addresses)


def too_much_shared(kernel: str, static: int, dynamic: int) -> RunFailed:
    """The error (`launch-limits`) that so many bytes of shared memory are."""
    return RunFailed(
        f"kernel {kernel}: {static} bytes of static and {dynamic} of dynamic shared memory;"
        f" a block may have {MAX_SHARED_BYTES}",
        code="launch-limits",
    )


def explain_fault(kernel: str, fault: Fault) -> RunFailed:
    """The error (`kernel-trap`) that `fault` is. What it holds was written by a stranger's code."""
    if fault.kind == _SHARED_LIMIT:
        return too_much_shared(kernel, fault.number, fault.limit)
    what = _WORDS.get(fault.kind, _unknown)(fault)
    file = _decode(fault.file).removeprefix("./")
    line = f"line {fault.line}: " if fault.line else ""
    if line and file not in ("", "kernel.cu"):
        line = f"{file}:{fault.line}: "
    who = f"a thread of block {_index(fault.block)}"
    if fault.kind not in (_SHARED_CANARY, _ARRAY_CANARY):
        who = f"thread {_index(fault.thread)} of block {_index(fault.block)}"
    return RunFailed(f"kernel {kernel}: {line}{who} {what}", code="kernel-trap")


def _index(numbers: "ctypes.Array[ctypes.c_uint]") -> str:
    return f"({numbers[0]},{numbers[1]},{numbers[2]})"


def _decode(text: bytes) -> str:
    return text.decode("ascii", "replace")


def _unknown(fault: Fault) -> str:
    return f"ended in an unknown way ({fault.kind})"


def _assertion(fault: Fault) -> str:
    return f"failed the assertion {_decode(fault.text)}"


def _trap(_fault: Fault) -> str:
    return "called __trap()"


def _out_of_bounds(fault: Fault) -> str:
    kind = _OWN_NAME.sub(r"\1", _decode(fault.text))
    return f"used index {fault.number} of an array of type {kind}, which is out of its bounds"


def _shared_overflow(fault: Fault) -> str:
    side = "before" if fault.number < 0 else "beyond"
    return f"went {side} its dynamic shared memory: byte {fault.number} of {fault.limit} (the launch's shared_mem)"


def _shared_index(fault: Fault) -> str:
    element = max(1, fault.mask)
    return (
        f"used index {fault.number} of dynamic shared memory with {fault.limit // element} elements of {element}"
        f" bytes (the launch's shared_mem is {fault.limit} bytes)"
    )


def _shared_canary(fault: Fault) -> str:
    where = (
        f"{-fault.number} bytes before"
        if fault.number < 0
        else f"{fault.number - fault.limit + 1} bytes beyond"
    )
    return f"wrote {where} its dynamic shared memory of {fault.limit} bytes (the launch's shared_mem)"


def _array_overflow(fault: Fault) -> str:
    side = "before" if fault.number < 0 else "beyond"
    return f"went {side} the shared array {_decode(fault.text)}: byte {fault.number} of {fault.limit}"


def _array_canary(fault: Fault) -> str:
    where = (
        f"{-fault.number} bytes before"
        if fault.number < 0
        else f"{fault.number - fault.limit + 1} bytes beyond"
    )
    return f"wrote {where} the shared array {_decode(fault.text)} of {fault.limit} bytes"


def _stack_overflow(fault: Fault) -> str:
    return (
        f"overflowed its stack of about {fault.limit // 1024} KiB: its recursion is too deep, or its local arrays"
        " are too large"
    )


def _divergent_barrier(fault: Fault) -> str:
    return (
        f"waits at this barrier while thread {_index(fault.other)} waits at the one of line {fault.other_line}:"
        " all threads of a block must come to the same barrier"
    )


def _skipped_barrier(fault: Fault) -> str:
    return (
        f"waits at this barrier, and thread {_index(fault.other)} has come to the kernel's end without it:"
        " all threads of a block must come to the same barrier"
    )


def _not_in_mask(fault: Fault) -> str:
    return f"calls a warp function with mask {fault.mask:#010x}, which lacks its own lane {fault.number}"


def _outside_mask(fault: Fault) -> str:
    return (
        f"reads lane {fault.number} in a shuffle, which mask {fault.mask:#010x} lacks; name it in the mask, or give"
        " the shuffle a smaller width"
    )


def _exited_lane(fault: Fault) -> str:
    why = "its block does not have" if fault.number >= fault.limit else "has left the kernel"
    return f"reads lane {fault.number} in a shuffle, which {why}"


def _outside_group(fault: Fault) -> str:
    return f"reads rank {fault.number} in a shuffle of a group of {fault.mask.bit_count()} threads"


def _bad_width(fault: Fault) -> str:
    return f"gives a shuffle the width {fault.number}, which is no power of two from 1 to 32"


def _deadlock(fault: Fault) -> str:
    if not fault.line:
        return "and others wait for each other, and none can go on"
    return (
        f"waits for lane {fault.number} of mask {fault.mask:#010x}, thread {_index(fault.other)}, which waits at line"
        f" {fault.other_line}: none of them can go on"
    )


def _no_stack(_fault: Fault) -> str:
    return "could not be given a stack: this machine has no memory for it"


_SHARED_CANARY, _SHARED_LIMIT, _ARRAY_OVERFLOW, _ARRAY_CANARY = 5, 16, 17, 18
_WORDS = {
    1: _assertion,
    2: _trap,
    3: _out_of_bounds,
    4: _shared_overflow,
    _SHARED_CANARY: _shared_canary,
    6: _stack_overflow,
    7: _divergent_barrier,
    8: _skipped_barrier,
    9: _not_in_mask,
    10: _outside_mask,
    11: _exited_lane,
    12: _bad_width,
    13: _deadlock,
    14: _no_stack,
    15: _shared_index,
    _ARRAY_OVERFLOW: _array_overflow,
    _ARRAY_CANARY: _array_canary,
    19: _outside_group,
}
