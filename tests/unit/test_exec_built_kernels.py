"""Libraries kept for a lease: under the very request, sealed, bounded, gone with the lease."""

import os

import pytest

from coppermesh.exec import built_kernels, linux, pipe
from coppermesh.exec.built_kernels import BuiltKernels

REQUEST = pipe.Build(b"source", "k", ("-DN=1",))


@pytest.fixture
def kept():
    built = BuiltKernels()
    yield built
    built.close()


def put(built, request, data):
    file = linux.sealed_file("test", data)
    built.keep(request, file)
    os.close(file)


def get(built, request):
    found = built.find(request)
    if found is None:
        return None
    with open(found, "rb") as file:
        return os.pread(file.fileno(), 1000, 0)


def test_the_same_request_gets_the_library_and_no_other_does(kept):
    put(kept, REQUEST, b"library")
    assert get(kept, REQUEST) == get(kept, pipe.Build(b"source", "k", ("-DN=1",))) == b"library"
    for other in [
        pipe.Build(b"source ", "k", ("-DN=1",)),
        pipe.Build(b"source", "l", ("-DN=1",)),
        pipe.Build(b"source", "k", ("-DN=2",)),
        pipe.Build(b"source", "k", ("-DN=1",), functions=("k",)),
        pipe.Build(b"source", "k", ("-DN=1",), symbols=("s",)),
    ]:
        assert get(kept, other) is None
    put(kept, REQUEST, b"another")
    assert get(kept, REQUEST) == b"library"
    assert get(BuiltKernels(), REQUEST) is None


def test_what_somebody_could_still_change_is_not_kept(kept):
    file = linux.memory_file("test")
    os.write(file, b"library")
    kept.keep(REQUEST, file)
    os.close(file)
    assert get(kept, REQUEST) is None
    lent = pipe.Build(6, "k", (), file=0)
    put(kept, lent, b"library")
    assert get(kept, lent) is None


def test_they_are_bounded_by_number_and_bytes(kept, monkeypatch):
    before = len(os.listdir("/proc/self/fd"))
    for number in range(built_kernels.MAX_KEPT + 5):
        put(kept, pipe.Build(b"%d" % number, "k", ()), b"x")
        get(kept, pipe.Build(b"0", "k", ()))
    assert len(os.listdir("/proc/self/fd")) == before + built_kernels.MAX_KEPT
    assert get(kept, pipe.Build(b"0", "k", ())) == b"x"
    assert get(kept, pipe.Build(b"1", "k", ())) is None
    monkeypatch.setattr(built_kernels, "MAX_KEPT_BYTES", 100)
    put(kept, REQUEST, bytes(101))
    assert get(kept, REQUEST) is None
    put(kept, REQUEST, bytes(60))
    put(kept, pipe.Build(b"next", "k", ()), bytes(60))
    assert get(kept, REQUEST) is None
    kept.close()
    assert len(os.listdir("/proc/self/fd")) == before
