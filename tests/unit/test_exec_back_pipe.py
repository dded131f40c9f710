"""Messages between agent, zygote and workers; buffers, black boxes, scratch directories, endings: the parts without
a worker process.
"""

import errno
import mmap
import os
import signal
import socket

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from coppermesh.exec import linux, pipe, sockets
from coppermesh.exec.blackbox import OUTPUT_BYTES, STAGE_BYTES, BlackBox, make_black_box
from coppermesh.exec.buffers import adopt_outputs, prepare_parts
from coppermesh.exec.channel import Channel
from coppermesh.exec.cuda_build import scrub
from coppermesh.exec.endings import explain_exit, explain_wall_limit
from coppermesh.exec.receive_buffers import ReceiveBuffers
from coppermesh.exec.runs import InputBuffer
from coppermesh.exec.scratch import make_directory, remove_tree

ORDER = pipe.Fork(1, "worker", "/x", 1, 2, 3, 4, 5, True)
MESSAGES = [
    (pipe.Start("cpu", 2, ("g++",), "gcc", "g++ 12", "/c"), pipe.decode_start),
    (ORDER, pipe.decode_fork),
    (pipe.Ready(1), pipe.decode_from_zygote),
    (pipe.Forked(3, 77), pipe.decode_from_zygote),
    (pipe.ForkFailed(3, "fork: no"), pipe.decode_from_zygote),
    (pipe.Exited(3, -9), pipe.decode_from_zygote),
    (pipe.Run(1, (b"program", 1 << 40)), pipe.decode_to_worker),
    (pipe.Built("ok", "", ""), pipe.decode_to_worker),
    (pipe.Done(1, (16, 0), None, 1, "numpy"), pipe.decode_from_worker),
    (pipe.Failed(1, "job", "kernel-compile", "no", "line\n\tmore", 0, ""), pipe.decode_from_worker),
    (pipe.Build(b"source", "k", ("-DN=1",)), pipe.decode_from_worker),
    (pipe.Build(99, "k", ()), pipe.decode_build),
    (pipe.Built("kernel-compile", "no", "log"), pipe.decode_built),
]
DECODERS = [
    pipe.decode_start,
    pipe.decode_fork,
    pipe.decode_from_zygote,
    pipe.decode_to_worker,
    pipe.decode_from_worker,
    pipe.decode_build,
    pipe.decode_built,
]


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(("message", "decode"), MESSAGES, ids=lambda value: type(value).__name__)
def test_messages_survive_the_pipe(message, decode):
    assert decode(pipe.encode(message)) == message


@pytest.mark.parametrize(
    "message",
    [
        pipe.Failed(1, "job", "Bad Code", "", "", 0, ""),
        pipe.Failed(1, "job", "ok", "caf\u00e9", "", 0, ""),
        pipe.Failed(1, "job", "ok", "two\nlines", "", 0, ""),
        pipe.Failed(1, "job", "ok", "", "\x1b[2J", 0, ""),
        pipe.Failed(1, "job", "ok", "", "x" * (pipe.MAX_DETAIL + 1), 0, ""),
        pipe.Failed(1, "nobody", "ok", "", "", 0, ""),
        pipe.Done(-1, (), None, 0, ""),
        pipe.Done(1, (-1,), None, 0, ""),
        pipe.Done(1, (1,) * 65, None, 0, ""),
        pipe.Done(1, (1 << 63,), None, 0, ""),
        pipe.Build(b"", "k(); int main", ()),
        pipe.Build(b"", "k", ("x" * 300,)),
        pipe.Run(1, (b"a worker says no such thing",)),
    ],
    ids=str,
)
def test_what_a_worker_may_not_say_is_refused(message):
    with pytest.raises(pipe.PipeError):
        pipe.decode_from_worker(pipe.encode(message))


def test_a_message_too_large_for_a_datagram_is_never_sent():
    with pytest.raises(pipe.PipeError, match="at most"):
        pipe.encode(pipe.Run(1, (bytes(pipe.MAX_INLINE_BYTES), bytes(pipe.MAX_INLINE_BYTES))))


@given(st.binary(max_size=300), st.sampled_from(DECODERS))
def test_any_bytes_are_a_message_or_a_pipe_error(data, decode):
    try:
        message = decode(data)
    except pipe.PipeError:
        return
    assert pipe.encode(message) == data


@given(st.data(), st.sampled_from(MESSAGES), st.binary(min_size=1, max_size=3))
def test_damaged_messages_are_messages_or_pipe_errors(data, pair, noise):
    whole = pipe.encode(pair[0])
    at = data.draw(st.integers(0, len(whole) - 1))
    damaged = whole[:at] + noise + whole[at + data.draw(st.integers(0, 3)) :]
    try:
        message = pair[1](damaged)
    except pipe.PipeError:
        return
    assert pipe.encode(message) == damaged


def test_small_parts_go_in_place_smallest_first():
    assert pipe.plan_parts([]) == []
    assert pipe.plan_parts([10, pipe.MAX_INLINE_BYTES, 20]) == [True, False, True]
    assert pipe.plan_parts([pipe.MAX_INLINE_BYTES]) == [True]
    assert pipe.plan_parts([pipe.MAX_INLINE_BYTES, 1]) == [False, True]


def test_a_long_detail_keeps_its_beginning_and_its_end():
    text = pipe.plain_detail("first error" + "\u00e9" * 100_000 + "last line")
    assert len(text) == pipe.MAX_DETAIL
    assert text.startswith("first error?")
    assert text.endswith("?last line")


def test_paths_of_this_machine_do_not_leave_it(tmp_path):
    said = (
        f'{tmp_path}/kernel.cu:3: error\n  File "/opt/site-packages/x/worker.py", line 3\n1 / 2 and a/b stay'
    )
    assert scrub(said, tmp_path) == 'kernel.cu:3: error\n  File "worker.py", line 3\n1 / 2 and a/b stay'


# --- inputs


async def test_inputs_in_place_and_as_files():
    descriptor = linux.sealed_file("mine", b"abcdef")
    before = open_descriptors()
    big = bytes(range(256)) * 8192
    try:
        pool = ReceiveBuffers()
        prepared = await prepare_parts(
            b"program",
            [InputBuffer(3, data=b"xyz"), InputBuffer(len(big), data=big), InputBuffer(4, fd=descriptor)],
            pool,
        )
        files = prepared.files
        assert prepared.parts == [b"program", b"xyz", len(big), 4]
        assert os.pread(files[0], len(big), 0) == big
        assert linux.seals_of(files[0]) & linux.SEAL_OTHER_WRITERS == linux.SEAL_OTHER_WRITERS
        assert os.pread(files[1], 9, 0) == b"abcdef"
        for file in files:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.write(file, b"x")  # opened again, for reading only
        prepared.close()
        pool.close()
        assert open_descriptors() == before
    finally:
        os.close(descriptor)


async def test_a_file_shorter_than_its_input_is_the_callers_mistake():
    descriptor = linux.sealed_file("mine", b"abcdef")
    before = open_descriptors()
    pool = ReceiveBuffers()
    try:
        with pytest.raises(ValueError, match="6"):
            await prepare_parts(
                b"p", [InputBuffer(1 << 20, data=bytes(1 << 20)), InputBuffer(7, fd=descriptor)], pool
            )
        pool.close()
        assert open_descriptors() == before
    finally:
        os.close(descriptor)


def test_an_input_buffer_has_one_source_and_a_true_size():
    for wrong in ({"data": b"abc"}, {"data": b"ab", "fd": 0}, {}):
        with pytest.raises(ValueError):
            InputBuffer(2, **wrong)


# --- outputs, as a hostile worker would hand them over


def test_a_sealed_output_is_mapped_and_cannot_be_written():
    descriptor = linux.sealed_file("out", b"result")
    before = open_descriptors()
    (output,) = adopt_outputs([6], [descriptor])
    assert bytes(output.view) == b"result"
    assert output.view.readonly
    output.close()
    output.close()
    assert open_descriptors() == before
    os.close(descriptor)


def test_an_empty_output():
    descriptor = linux.sealed_file("out", b"")
    (output,) = adopt_outputs([0], [descriptor])
    assert bytes(output.view) == b""
    output.close()
    os.close(descriptor)


def _unsealed() -> int:
    return linux.memory_file("out", 6)


def _sealed_in_size_only() -> int:
    descriptor = linux.memory_file("out", 6)
    linux.seal(descriptor, linux.SEAL_SIZE)
    return descriptor


def _future_writes_only() -> int:
    """Sealed against new writers, while an old mapping still writes."""
    descriptor = linux.memory_file("out", 6)
    mapping = mmap.mmap(descriptor, 6)
    linux.seal(descriptor, linux.SEAL_SIZE | 0x10)  # F_SEAL_FUTURE_WRITE
    mapping.close()
    return descriptor


def _holes() -> int:
    """A file with a size and without pages: whoever reads it is charged for them."""
    descriptor = linux.memory_file("out", 1 << 20)
    linux.seal(descriptor, linux.SEAL_CONTENT)
    return descriptor


def _pipe_end() -> int:
    reading, writing = os.pipe()
    os.close(writing)
    return reading


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (_unsealed, 6),
        (_sealed_in_size_only, 6),
        (_future_writes_only, 6),
        (_pipe_end, 6),
        (lambda: os.open("/etc/passwd", os.O_RDONLY), 6),
        (lambda: os.open("/dev/zero", os.O_RDONLY), 6),
        (lambda: linux.sealed_file("out", b"result"), 7),
        (lambda: linux.sealed_file("out", b"result"), 5),
        (lambda: linux.sealed_file("out", b""), 1 << 40),
        (_holes, 1 << 20),
    ],
)
def test_an_output_that_could_change_or_lies_about_its_size_is_refused(make, size):
    good, bad = linux.sealed_file("out", b"good"), make()
    before = open_descriptors()
    try:
        with pytest.raises(pipe.PipeError):
            adopt_outputs([4, size], [good, bad])
        assert open_descriptors() == before
    finally:
        os.close(good)
        os.close(bad)


def test_as_many_files_as_outputs():
    with pytest.raises(pipe.PipeError):
        adopt_outputs([1], [])


def test_the_kernel_grants_the_content_seal_only_while_nobody_can_write():
    descriptor = linux.memory_file("out", 4096)
    mapping = mmap.mmap(descriptor, 4096)
    with pytest.raises(OSError, match="busy"):
        linux.seal(descriptor, linux.SEAL_CONTENT)
    mapping.close()
    linux.seal(descriptor, linux.SEAL_CONTENT)
    with pytest.raises(OSError, match="not permitted"):
        os.write(descriptor, b"x")
    os.close(descriptor)


# --- channels


async def test_a_channel_carries_messages_and_descriptors_both_ways():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel = Channel(ours)
    reading, writing = os.pipe()
    before = open_descriptors()
    await channel.send(b"hello", [writing])
    data, descriptors = sockets.receive(theirs)
    assert data == b"hello"
    assert [os.get_inheritable(descriptor) for descriptor in descriptors] == [False]
    sockets.close_all(descriptors)
    sockets.send(theirs, b"back", [reading, reading])
    data, descriptors = await channel.receive()
    assert (data, len(descriptors)) == (b"back", 2)
    sockets.close_all(descriptors)
    theirs.close()
    assert await channel.receive() == (b"", [])
    with pytest.raises(OSError):
        await channel.send(b"x")
    channel.close()
    sockets.close_all([reading, writing])
    assert len(open_descriptors()) == len(before) - 4


class Crowded:
    """A socket whose user has too many descriptors on their way, until it was asked a few times."""

    def __init__(self, refusals: int, code: int = errno.ETOOMANYREFS) -> None:
        self.refusals, self.code, self.sent = refusals, code, 0

    def sendmsg(self, *arguments: object) -> int:
        if self.refusals:
            self.refusals -= 1
            raise OSError(self.code, os.strerror(self.code))
        self.sent += 1
        return 1


async def test_where_too_many_descriptors_are_on_their_way_a_message_waits(monkeypatch, autojump_clock):
    monkeypatch.setattr(sockets, "CROWDED_PAUSE_SECONDS", 0.0)
    crowded = Crowded(3)
    sockets.send(crowded, b"x", [0])
    assert crowded.sent == 1
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        channel = Channel(ours)
        channel._sending = later = Crowded(3)
        await channel.send(b"x", [0])
    assert (later.refusals, later.sent) == (0, 1)


async def test_it_does_not_wait_for_ever_nor_for_anything_else(monkeypatch):
    monkeypatch.setattr(sockets, "CROWDED_PAUSE_SECONDS", 0.0)
    for refusals, code in ((10_000, errno.ETOOMANYREFS), (1, errno.EPIPE)):
        crowded = Crowded(refusals, code)
        with pytest.raises(OSError, match=os.strerror(code)):
            sockets.send(crowded, b"x", [0])
        assert crowded.sent == 0


async def test_oversized_messages_and_floods_of_descriptors_are_refused_without_a_leak():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel = Channel(ours)
    before = open_descriptors()
    theirs.send(bytes(pipe.MAX_MESSAGE_BYTES + 1))
    with pytest.raises(pipe.PipeError, match="too large"):
        await channel.receive()
    sockets.send(theirs, b"x", [0] * 250)
    with pytest.raises(pipe.PipeError, match="too many"):
        await channel.receive()
    assert open_descriptors() == before
    theirs.close()
    channel.close()


async def test_receiving_can_be_given_up():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel = Channel(ours)
    with trio.move_on_after(0.01) as scope:
        await channel.receive()
    assert scope.cancelled_caught
    sockets.send(theirs, b"later")
    assert await channel.receive() == (b"later", [])
    theirs.close()
    channel.close()


# --- black box


def test_a_black_box_tells_stage_and_output_to_the_other_side():
    descriptor = make_black_box()
    inside, outside = BlackBox(descriptor), BlackBox(descriptor)
    inside.clear()
    inside.note("kernel blur")
    os.write(descriptor, b"double free\n")
    assert (outside.stage(), outside.output()) == ("kernel blur", "double free\n")
    inside.note("x" * 10_000)
    assert len(outside.stage()) == STAGE_BYTES - 1
    inside.clear()
    assert (outside.stage(), outside.output()) == ("", "")
    inside.close()
    outside.close()
    os.close(descriptor)


def test_printing_without_end_fills_the_box_and_nothing_else():
    descriptor = make_black_box()
    box = BlackBox(descriptor)
    box.clear()
    for _ in range(OUTPUT_BYTES // 500):
        os.write(descriptor, b"spam " * 100)
    with pytest.raises(OSError, match="not permitted"):
        os.write(descriptor, b"spam " * 100)
    assert os.fstat(descriptor).st_size == STAGE_BYTES + OUTPUT_BYTES
    assert box.output().startswith("spam ")
    with pytest.raises(OSError):
        os.ftruncate(descriptor, 1 << 30)
    box.close()
    os.close(descriptor)


# --- scratch


def test_removal_copes_with_everything_a_job_can_leave(tmp_path):
    outside = tmp_path / "precious"
    outside.write_text("kept")
    directory = make_directory(tmp_path, "worker-1")
    assert directory.stat().st_mode & 0o777 == 0o700
    (directory / "link").symlink_to(outside)
    (directory / "hard").hardlink_to(outside)
    os.mkfifo(directory / "fifo")
    locked = directory / "locked"
    locked.mkdir()
    (locked / "file").write_text("x")
    locked.chmod(0)
    here = os.open(directory, os.O_RDONLY)
    for _ in range(3000):  # far deeper than a path or Python's stack may be
        os.mkdir("d" * 200, dir_fd=here)
        deeper = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)
    remove_tree(directory)
    assert not directory.exists()
    assert outside.read_text() == "kept"
    remove_tree(directory)  # gone already: nothing to do


# --- endings


def test_every_way_to_end_is_told_apart():
    assert explain_exit(None, "", "", 1).status == "provider-failed"
    assert explain_exit(-signal.SIGKILL, "", "", 1).code == "worker-killed"
    assert explain_exit(-signal.SIGXCPU, "", "", 9).code == "cpu-limit"
    crashed = explain_exit(-signal.SIGSEGV, "kernel blur", "oops", 1)
    assert (crashed.status, crashed.code, crashed.detail) == ("job-failed", "crashed", "oops")
    assert "SIGSEGV" in crashed.sentence
    assert "in kernel blur" in crashed.sentence
    damaged = explain_exit(-signal.SIGABRT, "", "double free or corruption (!prev)", 1)
    assert "a kernel wrote outside of its arrays" in damaged.sentence
    assert "outside of its arrays" not in explain_exit(-signal.SIGABRT, "", "Assertion failed", 1).sentence
    assert "status 3" in explain_exit(3, "", "", 1).sentence
    assert "signal 99" in explain_exit(-99, "", "", 1).sentence
    assert "0.5 s" in explain_wall_limit("kernel spin", "", 0.5).sentence


@pytest.mark.parametrize(
    "text", ["/" * 65536, "/a" * 32768, "/etc/passwd \x1b[2J" * 4000, "." * 65536, "a/" * 32768 + ":"]
)
def test_a_strangers_text_takes_no_more_time_than_its_length(text):
    """The first of them held the agent for ever, while the pattern for paths could match it in many ways."""
    assert len(scrub(text)) <= pipe.MAX_DETAIL


def test_only_the_last_part_of_a_path_is_kept():
    assert scrub("/a/b/c.py:3: '/d/e' (/f/g/) x=/h/i 1/2 ../j //k") == "c.py:3: 'e' (g/) x=i 1/2 ../j k"
