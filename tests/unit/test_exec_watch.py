"""Who is ended for holding too much: counting memory, cgroups, device memory, and the watchdog that acts on it."""

import mmap
import os
import time
from types import SimpleNamespace

import pytest
import trio

from coppermesh.exec import linux, watchdog
from coppermesh.exec.cgroups import Cgroups, NoCgroups
from coppermesh.exec.device import CONTEXT_BYTES
from coppermesh.exec.device_watch import device_excess
from coppermesh.exec.endings import explain_memory_kill
from coppermesh.exec.lent_files import LentFiles
from coppermesh.exec.memory_watch import Allowance, HeldMemory, file_ids, read_memory, read_tree
from coppermesh.exec.runs import WorkerLimits
from coppermesh.exec.watchdog import Watchdog

MEBIBYTE = 1 << 20
LIMITS = WorkerLimits(memory_bytes=100 * MEBIBYTE, output_bytes=10 * MEBIBYTE, threads=8)


# --- counting


def test_private_memory_counts_when_it_is_used():
    before = read_memory(os.getpid())
    room = mmap.mmap(-1, 32 * MEBIBYTE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    untouched = read_memory(os.getpid())
    room.write(b"x" * len(room))
    after = read_memory(os.getpid())
    room.close()
    assert untouched.private - before.private < 4 * MEBIBYTE
    assert 30 * MEBIBYTE < after.private - before.private < 40 * MEBIBYTE


def test_shared_memory_counts():
    before = read_memory(os.getpid())
    room = mmap.mmap(-1, 32 * MEBIBYTE)
    room.write(b"x" * len(room))
    after = read_memory(os.getpid())
    room.close()
    assert 30 * MEBIBYTE < after.shared - before.shared < 40 * MEBIBYTE


def test_page_tables_count_though_nothing_lies_in_them():
    """Reading untouched private memory maps the one page of zeros again and again: each 2 MiB take a table of 4 KiB."""
    before = read_memory(os.getpid())
    room = mmap.mmap(-1, 16 << 30, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ)
    room.madvise(mmap.MADV_NOHUGEPAGE)
    for place in range(0, len(room), 2 * MEBIBYTE):
        assert room[place] == 0
    after = read_memory(os.getpid())
    tree = read_tree(os.getpid(), None)
    room.close()
    assert 30 * MEBIBYTE < after.private - before.private < 36 * MEBIBYTE
    assert tree >= after.private


def test_memory_files_count_though_nobody_maps_them_but_for_those_that_were_sent():
    before = read_memory(os.getpid())
    ours = linux.sealed_file("sent", bytes(8 * MEBIBYTE))
    theirs = linux.sealed_file("made", bytes(16 * MEBIBYTE))
    again = os.dup(theirs)
    sparse = linux.memory_file("sparse", 1 << 40)
    held = read_memory(os.getpid(), file_ids([ours]))
    for descriptor in (ours, theirs, again, sparse):
        os.close(descriptor)
    assert held.files - before.files == 16 * MEBIBYTE
    assert held.total == held.private + held.shared + held.files


def test_one_that_ended_and_one_whose_files_may_not_be_seen(tmp_path):
    child = os.fork()
    if child == 0:
        os._exit(0)
    deadline = time.monotonic() + 5
    while read_memory(child) is not None:
        assert time.monotonic() < deadline
    os.waitpid(child, 0)
    assert read_memory(child) is None
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "status").write_text(
        "Name:\tx\nRssAnon:\t 10 kB\nRssShmem:\t 4 kB\nVmSwap:\t 2 kB\nThreads:\t3\n"
    )
    held = read_memory(7, proc=tmp_path)
    assert held == HeldMemory(private=12 * 1024, shared=4 * 1024, files=None, threads=3)
    assert held.total == 16 * 1024


# --- what is allowed


def test_the_job_may_hold_its_limit_and_what_the_runtime_needs_and_not_a_byte_more():
    allowed = Allowance.of(50 * MEBIBYTE, LIMITS, gpu=False)
    assert allowed.excess(HeldMemory(allowed.total, 0, None, 1)) == ""
    sentence = allowed.excess(HeldMemory(allowed.total - MEBIBYTE, 0, 2 * MEBIBYTE, 1))
    assert f"limit is 100 MiB (and {allowed.extra // MEBIBYTE} MiB for outputs" in sentence
    assert f"{(allowed.total - allowed.idle) // MEBIBYTE + 1} MiB of memory" in sentence


def test_threads():
    allowed = Allowance.of(0, LIMITS, gpu=False)
    assert allowed.excess_threads(HeldMemory(0, 0, 0, 8)) == ""
    assert allowed.excess_threads(HeldMemory(0, 0, 0, 9)) == "the program runs 9 threads, the limit is 8"


def test_device_memory():
    most = 1024 * MEBIBYTE + CONTEXT_BYTES + 640 * MEBIBYTE
    assert device_excess(most, 1024 * MEBIBYTE) == ""
    sentence = device_excess(most + 1, 1024 * MEBIBYTE)
    assert "device memory, the limit is 1 GiB" in sentence


# --- the watchdog


class Box:
    def stage(self):
        return "kernel k"

    def output(self):
        return "last words"


def worker(pid=1):
    child = SimpleNamespace(pid=pid, ended=trio.Event(), is_over=False, killed=False)
    child.kill = lambda: setattr(child, "killed", True)
    return SimpleNamespace(
        child=child, channel=SimpleNamespace(unasked=False), box=Box(),
        allowance=Allowance.of(0, LIMITS, gpu=True), sent=frozenset(), lent=LentFiles(), verdict=None,
        spoiled=False,
    )  # fmt: skip


def test_the_one_that_holds_too_much_is_killed_and_the_other_is_not():
    held = {1: HeldMemory(1, 0, None, 1), 2: HeldMemory(1 << 50, 0, None, 1), 3: HeldMemory(1, 0, None, 99)}
    dog = Watchdog(read=lambda pid, sent: held[pid])
    workers = [worker(pid) for pid in held]
    for each in workers:
        dog.add(each)
    dog.look()
    assert [each.child.killed for each in workers] == [False, True, True]
    assert [each.verdict and each.verdict.code for each in workers] == [None, "memory-limit", "process-limit"]
    assert workers[1].spoiled
    assert "in kernel k" in workers[1].verdict.sentence
    assert workers[1].verdict.detail == "last words"


def test_memory_in_lent_files_counts():
    dog = Watchdog(read=lambda pid, sent: HeldMemory(0, 0, None, 1))
    greedy = worker(1)
    most = greedy.allowance.total
    dog.add(greedy)
    descriptor = greedy.lent.lend()
    os.posix_fallocate(descriptor, 0, most)
    dog.look()
    assert not greedy.child.killed
    os.posix_fallocate(descriptor, most, mmap.PAGESIZE)
    os.close(descriptor)
    dog.look()
    greedy.lent.close()
    assert greedy.child.killed
    assert greedy.verdict.code == "memory-limit"


def test_one_that_speaks_unasked_is_ended_at_the_second_look():
    dog = Watchdog(read=lambda pid, sent: None)
    loud, quiet, dying = worker(1), worker(2), worker(3)
    for each in (loud, quiet, dying):
        dog.add(each)
    loud.channel.unasked = dying.channel.unasked = True
    dog.look()
    assert not loud.child.killed
    dying.child.is_over = True  # and nobody has reported it yet
    dog.look()
    assert [each.child.killed for each in (loud, quiet, dying)] == [True, False, False]
    assert loud.verdict.code == "worker-misbehaved"
    assert loud.spoiled
    assert (quiet.verdict, dying.verdict) == (None, None)


def test_one_that_is_being_ended_already_is_left_alone():
    dog = Watchdog(read=lambda pid, sent: HeldMemory(1 << 50, 0, None, 1))
    gone, removed = worker(1), worker(2)
    gone.child.ended.set()
    for each in (gone, removed):
        dog.add(each)
    dog.remove(removed)
    dog.look()
    assert (gone.verdict, removed.verdict) == (None, None)


async def test_device_memory_is_watched_and_a_driver_that_hangs_is_asked_once(monkeypatch):
    used = {1: 1 << 50, 2: 5, 99: 1 << 60}
    dog = Watchdog(SimpleNamespace(used=lambda: used), read=lambda pid, sent: None)
    greedy, modest, unseen = worker(1), worker(2), worker(3)
    for each in (greedy, modest, unseen):
        dog.add(each)
    await dog.look_at_device()
    assert [each.child.killed for each in (greedy, modest, unseen)] == [True, False, False]
    assert "device memory" in greedy.verdict.sentence
    monkeypatch.setattr(watchdog, "READING_SECONDS", 0.05)
    asked = []
    free = __import__("threading").Event()

    def hang():
        asked.append(1)
        free.wait(5)

    slow = Watchdog(SimpleNamespace(used=hang), read=lambda pid, sent: None)
    slow.add(worker(1))
    await slow.look_at_device()
    await slow.look_at_device()
    free.set()
    assert len(asked) == 1
    assert not slow.watches_device


# --- cgroups, in a directory that looks like one


@pytest.fixture
def mount(tmp_path):
    group = tmp_path / "mount" / "system.slice" / "coppermesh.service"
    group.mkdir(parents=True)
    (tmp_path / "mount" / "cgroup.controllers").write_text("cpu memory pids")
    (group / "cgroup.controllers").write_text("memory pids")
    (group / "cgroup.procs").write_text(f"{os.getpid()}\n")
    (group / "cgroup.subtree_control").write_text("")
    (tmp_path / "membership").write_text("9:memory:/old\n0::/system.slice/coppermesh.service\n")
    return SimpleNamespace(root=tmp_path / "mount", group=group, membership=tmp_path / "membership")


def find(mount):
    return Cgroups.find(mount.root, mount.membership)


def test_a_delegated_group_is_divided_and_each_worker_gets_its_limits(mount):
    found = find(mount)
    assert (mount.group / "agent" / "cgroup.procs").read_text() == f"{os.getpid()}\n"
    assert (mount.group / "cgroup.subtree_control").read_text() == "+memory +pids"
    first, second = found.make(12345, 67), found.make(1, 1)
    assert first.path != second.path
    assert (first.path / "memory.max").read_text() == "12345\n"
    assert (first.path / "pids.max").read_text() == "67\n"
    first.add(4242)
    assert (first.path / "cgroup.procs").read_text() == "4242\n"
    assert not first.remove(), "not while something is in it"
    assert first.memory_kills() == 0
    (first.path / "memory.events").write_text("low 0\nmax 9\noom 2\noom_kill 1\noom_group_kill 0\n")
    (first.path / "memory.peak").write_text("999\n")
    assert (first.memory_kills(), first.peak_bytes()) == (1, 999)
    assert second.peak_bytes() is None


def test_a_removed_group_is_gone(tmp_path):
    from coppermesh.exec.cgroups import WorkerGroup

    (tmp_path / "empty").mkdir()
    group = WorkerGroup(tmp_path / "empty")
    assert group.remove()
    assert group.remove()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda mount: (mount.root / "cgroup.controllers").unlink(), "no cgroup v2"),
        (lambda mount: mount.membership.write_text("9:memory:/old\n"), "no cgroup of version 2"),
        (lambda mount: mount.membership.unlink(), "cannot be read"),
        (lambda mount: (mount.group / "cgroup.controllers").write_text("cpu pids"), "controller memory here"),
        (lambda mount: (mount.group / "cgroup.controllers").unlink(), "cannot be read"),
        (lambda mount: (mount.group / "cgroup.subtree_control").unlink(), "Delegate=yes"),
        (lambda mount: (mount.group / "cgroup.procs").write_text(f"{os.getpid()}\n1\n"), "process 1 shares"),
        (lambda mount: (mount.group / "agent").write_text(""), "cannot be divided"),
    ],
)
def test_where_there_is_none_to_manage_it_says_why_and_changes_nothing(mount, spoil, reason):
    spoil(mount)
    with pytest.raises(NoCgroups, match=reason):
        find(mount)
    assert not (mount.group / "agent" / "cgroup.procs").exists()


def test_a_kill_by_the_kernel_names_both_amounts():
    answer = explain_memory_kill(300 * MEBIBYTE, 100 * MEBIBYTE, "kernel k", "")
    assert answer.code == "memory-limit"
    assert "held 300 MiB" in answer.sentence
    assert "limit is 100 MiB" in answer.sentence
