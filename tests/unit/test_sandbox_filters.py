"""The seccomp filters as programs, run by an interpreter here: what each call gets, without a kernel."""

import errno
import struct
from functools import cache

import pytest

from coppermesh.exec.sandbox import filters
from coppermesh.exec.sandbox.seccomp import (
    ALLOW,
    KILL_PROCESS,
    Bits,
    Filter,
    In,
    NotIn,
    When,
    assemble,
    refuse,
)
from coppermesh.exec.sandbox.syscall_numbers import NEWEST, NUMBERS

PID = 4711
X86_64 = 0xC000003E
EPERM = refuse(errno.EPERM)


@cache
def program(filter_: Filter) -> list[tuple[int, int, int, int]]:
    return list(struct.iter_unpack("HBBI", assemble(filter_, PID)))


def run(filter_: Filter, number: int, *arguments: int, architecture: int = X86_64) -> int:
    """What the kernel would answer: the classic BPF machine, of which the filters use six instructions."""
    words = [argument & (1 << 64) - 1 for argument in (*arguments, 0, 0, 0, 0, 0, 0)[:6]]
    data = struct.pack("=IIQ6Q", number, architecture, 0, *words)
    code = program(filter_)
    accumulator = place = 0
    while True:
        operation, yes, no, operand = code[place]
        place += 1
        match operation:
            case 0x20:
                (accumulator,) = struct.unpack_from("=I", data, operand)
            case 0x15:
                place += yes if accumulator == operand else no
            case 0x35:
                place += yes if accumulator >= operand else no
            case 0x05:
                place += operand
            case 0x54:
                accumulator &= operand
            case 0x06:
                return operand
            case _:
                pytest.fail(f"instruction {operation:#x}")


def call(filter_: Filter, name: str, *arguments: int) -> int:
    return run(filter_, NUMBERS[name], *arguments)


ALL = [filters.CPU_WORKER, filters.GPU_WORKER, filters.COMPILER]


@pytest.mark.parametrize("filter_", ALL, ids=lambda filter_: filter_.name)
def test_every_number_gets_the_action_of_the_data(filter_):
    for name, number in NUMBERS.items():
        action = filter_.actions.get(name, filter_.default)
        if isinstance(action, int):
            assert run(filter_, number) == action, name
    for number in (NEWEST + 1, NEWEST + 100, 0x3FFFFFFF):
        assert run(filter_, number) == refuse(errno.ENOSYS)
    assert run(filter_, 0x40000000 | NUMBERS["getpid"]) == KILL_PROCESS
    assert run(filter_, NUMBERS["read"], architecture=0x40000003) == KILL_PROCESS


@pytest.mark.parametrize("filter_", ALL, ids=lambda filter_: filter_.name)
def test_no_filter_lets_a_namespace_or_a_kernel_interface_through(filter_):
    for name in (
        "ptrace",
        "bpf",
        "io_uring_setup",
        "userfaultfd",
        "keyctl",
        "unshare",
        "setns",
        "mount",
        "seccomp",
    ):
        assert call(filter_, name) not in (ALLOW, KILL_PROCESS), name
    assert call(filter_, "clone3") == refuse(errno.ENOSYS)
    assert call(filter_, "clone", 0x10000000) != ALLOW
    assert call(filter_, "clone", 0x3D0F00 | 0x40000000) != ALLOW
    assert call(filter_, "clone", 0x3D0F00) == ALLOW, "a thread"
    for family, kind in ((1, 2), (1, 3), (1, 4), (2, 1), (16, 3), (40, 1)):
        assert call(filter_, "socket", family, kind) != ALLOW
        assert call(filter_, "socketpair", family, kind) != ALLOW
    assert call(filter_, "memfd_create", 0, 0x4) != ALLOW, "huge pages"


def test_a_cpu_worker_signals_only_itself():
    for name in ("kill", "tgkill"):
        assert call(filters.CPU_WORKER, name, PID) == ALLOW
        for other in (PID + 1, 1, 0, -1, -PID):
            assert call(filters.CPU_WORKER, name, other) == EPERM
    assert call(filters.CPU_WORKER, "kill", PID, 9) == EPERM, "who died of SIGKILL is the machine's failure"
    assert call(filters.CPU_WORKER, "tgkill", PID, PID, 9) == EPERM
    assert call(filters.CPU_WORKER, "tgkill", PID, PID, 6) == ALLOW
    assert call(filters.CPU_WORKER, "prlimit64", 0) == ALLOW
    for pointer in (0x1000, 1 << 32, 1 << 63, (1 << 64) - 1):
        assert call(filters.CPU_WORKER, "prlimit64", 0, 0, pointer) == EPERM, hex(pointer)
    assert call(filters.CPU_WORKER, "prlimit64", PID + 1) == EPERM


def test_a_compiler_signals_only_its_builders_group_and_never_leaves_it():
    """The other leases' workers are of its user, and no filter knows its own programs' numbers."""
    assert call(filters.COMPILER, "kill", -PID, 9) == ALLOW
    for name in ("kill", "tkill", "tgkill", "pidfd_send_signal", "rt_sigqueueinfo", "rt_tgsigqueueinfo"):
        for whom in (PID, PID + 1, 1, 0, -1, -PID - 1, 1 - PID):
            assert call(filters.COMPILER, name, whom) == EPERM
    for name in ("setsid", "setpgid"):
        assert call(filters.COMPILER, name) == EPERM


def test_what_a_cpu_worker_holds_can_be_counted():
    for filter_ in (filters.CPU_WORKER, filters.COMPILER):
        assert call(filter_, "memfd_create", 0, 1) == EPERM
        assert call(filter_, "sendmsg") == EPERM, "it could carry descriptors"
        assert call(filter_, "setsid") == EPERM
    for flags in (0, 0x80000, 0x88000):
        assert call(filters.CPU_WORKER, "openat", -100, 1, flags) == ALLOW
    for flags in (0x200000, 0x280000, 1, 2, 0x40, 0x410000):
        assert call(filters.CPU_WORKER, "openat", -100, 1, flags) == refuse(errno.EACCES)


def test_a_cpu_worker_has_no_names_of_files():
    assert call(filters.CPU_WORKER, "newfstatat", 5, 1, 2, 0x1000) == ALLOW
    for flags in (0, 0x100, 0x1100):
        assert call(filters.CPU_WORKER, "newfstatat", -100, 1, 2, flags) == EPERM
    for name in ("stat", "readlink", "access", "getdents64", "unlink", "rename", "chmod", "execve", "fork"):
        assert call(filters.CPU_WORKER, name) == EPERM


def test_a_gpu_worker_has_local_streams_and_connects_to_nobody():
    for kind in (1, 5, 1 | 0x80000, 5 | 0x800):
        assert call(filters.GPU_WORKER, "socket", 1, kind) == ALLOW
    assert call(filters.GPU_WORKER, "connect") == EPERM
    assert call(filters.GPU_WORKER, "accept4") == EPERM


def test_a_compiler_changes_limits_and_processors_of_the_caller_only():
    for name in ("prlimit64", "sched_setaffinity"):
        assert call(filters.COMPILER, name, 0) == ALLOW
        for other in (1, PID, -1):
            assert call(filters.COMPILER, name, other) == EPERM, (name, other)


def test_a_gpu_worker_has_its_drivers_requests_and_none_that_reach_others():
    for request in (0xC020462A, 0x30000001, 0x25, 0x5451):  # of NVIDIA's driver, of its memory's, FIOCLEX
        assert call(filters.GPU_WORKER, "ioctl", 9, request) == ALLOW
    for request in (0x5412, 0x8901, 0x8902):  # TIOCSTI, FIOSETOWN, SIOCSPGRP
        assert call(filters.GPU_WORKER, "ioctl", 9, request) == EPERM
        assert call(filters.GPU_WORKER, "ioctl", 9, request | 1 << 40) == EPERM
    assert call(filters.GPU_WORKER, "sched_setaffinity", 1) == EPERM
    assert call(filters.GPU_WORKER, "sched_setaffinity", PID) == ALLOW
    for name in ("inotify_init1", "inotify_add_watch", "sync", "syncfs"):
        assert call(filters.GPU_WORKER, name) == EPERM


def test_what_an_argument_must_not_be():
    found = Filter("x", 0, {"read": When((NotIn(0, (1, 2)), In(1, (7,))), errno.EPERM)})
    assert [call(found, "read", first, 7) == ALLOW for first in (0, 1, 2, 3)] == [True, False, False, True]
    assert call(found, "read", 0, 8) == EPERM


def test_conditions_must_all_hold_and_bodies_may_be_long():
    both = When((In(0, tuple(range(100))), Bits(1, 0xF0, 0x30)), errno.EACCES)
    filter_ = Filter("test", EPERM, {"read": both, "write": both, "close": ALLOW})
    assert call(filter_, "read", 99, 0x3F) == ALLOW
    assert call(filter_, "read", 100, 0x3F) == refuse(errno.EACCES)
    assert call(filter_, "write", 0, 0x4F) == refuse(errno.EACCES)
    assert call(filter_, "close") == ALLOW
    assert call(filter_, "open") == EPERM
