"""Memory that inputs are received into: nobody but its maker writes to it, and it is used again within one lease."""

import fcntl
import mmap
import os
from pathlib import Path

import pytest

from coppermesh.exec import linux, receive_buffers
from coppermesh.exec.receive_buffers import ReceiveBuffer, ReceiveBuffers

PAGE = mmap.PAGESIZE


@pytest.fixture
def buffer():
    made = ReceiveBuffer(4 * PAGE)
    yield made
    made.close()


def open_descriptors():
    return len(os.listdir("/proc/self/fd"))


def test_the_makers_mapping_writes_on_and_a_reader_sees_it(buffer):
    buffer.fill(b"first")
    reading = buffer.open_for_reading()
    with mmap.mmap(reading, PAGE, mmap.MAP_SHARED, mmap.PROT_READ) as seen:
        assert seen[:5] == b"first"
        buffer.fill(b"second")
        assert seen[:6] == b"second"
        with buffer.view as view:
            view[:3] = b"SEC"
        assert seen[:6] == b"SECond"
    os.close(reading)


def writable_mapping(descriptor):
    mmap.mmap(descriptor, PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE).close()


def punch_hole(descriptor):
    libc = linux._libc
    if libc.fallocate(descriptor, 3, linux.ctypes.c_long(0), linux.ctypes.c_long(PAGE)) != 0:
        raise OSError(linux.ctypes.get_errno(), "fallocate")


def write_at_the_start(descriptor):
    os.pwrite(descriptor, b"x", 0)


def shrink(descriptor):
    os.ftruncate(descriptor, PAGE)


def grow(descriptor):
    os.ftruncate(descriptor, 8 * PAGE)


def loosen(descriptor):
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


@pytest.mark.parametrize("act", [writable_mapping, write_at_the_start, punch_hole, shrink, grow, loosen])
def test_nobody_else_can_change_it_even_with_a_descriptor_for_writing(buffer, act):
    control = linux.memory_file("control", 4 * PAGE)
    act(control)  # each act works on a file without these seals
    os.close(control)
    buffer.fill(b"mine")
    with pytest.raises(OSError, match=r"not permitted|fallocate"):
        act(buffer.fd)
    assert os.pread(buffer.fd, 4, 0) == b"mine"


def test_a_mapping_for_reading_cannot_be_made_writable(buffer):
    room = mmap.mmap(buffer.fd, PAGE, mmap.MAP_SHARED, mmap.PROT_READ)
    ctypes = linux.ctypes
    lines = Path("/proc/self/maps").read_text().splitlines()
    found = next(line for line in lines if "coppermesh-input" in line and "r--s" in line)
    address = int(found.split("-")[0], 16)
    assert linux._libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(PAGE), 3) == -1
    room.close()


def test_every_page_is_there_from_the_start(buffer):
    assert os.fstat(buffer.fd).st_blocks * 512 == 4 * PAGE


def test_a_buffer_is_used_again_for_what_fits_it():
    pool = ReceiveBuffers()
    before = open_descriptors()
    with pool.borrow(100_000) as first:
        assert first.view.nbytes == 100_000
        with pool.borrow(100_000) as second:
            assert second.fd != first.fd
    with pool.borrow(90_000) as third:
        assert third in (first, second)
        assert third.size == 90_000
    with pool.borrow(1 << 20):
        pass
    assert pool.made == 3
    pool.close()
    assert open_descriptors() == before


def test_the_smallest_that_fits_is_taken():
    pool = ReceiveBuffers()
    with pool.borrow(1 << 20) as large, pool.borrow(1 << 16) as small:
        pass
    assert pool.take(10) is small
    assert pool.take(10) is large
    assert pool.made == 2
    small.close()
    large.close()


def test_only_so_much_is_kept(monkeypatch):
    monkeypatch.setattr(receive_buffers, "KEPT_BYTES", 1 << 17)
    before = open_descriptors()
    pool = ReceiveBuffers()
    with pool.borrow(1 << 16), pool.borrow(1 << 16), pool.borrow(1 << 16):
        assert open_descriptors() == before + 3 * 2  # Python's mapping has a descriptor of its own
    assert open_descriptors() == before + 2 * 2
    with pool.borrow(1 << 18):
        pass
    assert open_descriptors() == before
    pool.close()


def test_nothing_outlives_the_lease():
    before = open_descriptors()
    pool = ReceiveBuffers()
    kept = pool.take(10)
    with pool.borrow(10):
        pass
    pool.close()
    pool.give_back(kept)  # a run that was still being ended
    assert open_descriptors() == before


def test_no_memory_is_an_error_and_leaves_nothing():
    before = open_descriptors()
    with pytest.raises(OSError, match=r"No space|allocate memory|too large"):
        ReceiveBuffers().take(1 << 60)
    assert open_descriptors() == before
