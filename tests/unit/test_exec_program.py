"""Program bytes: canonical, the same for the same code, and whatever else arrives is refused as ProgramInvalid."""

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coppermesh.exec import codec, xp
from coppermesh.exec.errors import ProgramInvalid
from coppermesh.exec.evaluate import evaluate
from coppermesh.exec.kernels import RawKernel
from coppermesh.exec.program import MAX_NODES, Program, decode_program, encode_program
from coppermesh.exec.recorder import trace
from coppermesh.exec.schema import check_program

SOURCE = 'extern "C" __global__ void k(const float* x, float* y, int n) { y[0] = x[0]; }'


def example(data=None, scale=2.0):
    x = xp.asarray(np.ones((4, 3), dtype=np.float32) if data is None else data)
    y = xp.empty_like(x)
    xp.exp(x)  # not needed by the result: must leave no trace
    RawKernel(SOURCE, "k")((1,), (32,), (x * scale, y, np.int32(12)))
    y[1:, ::2] += 1
    return xp.sum(y, axis=0), y


def plain(program):
    """The program as lists and maps, to be bent."""
    return msgpack.unpackb(encode_program(program))


def test_decoding_gives_the_program_back():
    recording = trace(*example())
    assert decode_program(recording.program) == recording.checked.program
    assert encode_program(recording.checked.program) == recording.program


def test_same_code_on_same_shapes_gives_the_same_bytes():
    first = trace(*example())
    second = trace(*example(np.full((4, 3), 7, dtype=np.float32)))
    assert first.program == second.program
    assert trace(*example(scale=3.0)).program != first.program


def test_unneeded_nodes_are_dropped_and_shared_ones_kept_once():
    x = xp.asarray([1.0, 2.0])
    shared = xp.exp(x)
    recording = trace(shared + shared, shared)
    assert [node.op for node in recording.checked.program.nodes] == ["exp", "add"]


def test_python_numbers_are_in_the_program_and_arrays_are_inputs():
    recording = trace(xp.asarray([1.0, 2.0]) * 3.0)
    assert len(recording.inputs) == 1
    assert recording.inputs[0].tobytes() == np.array([1.0, 2.0]).tobytes()


def test_inputs_are_contiguous_little_endian_and_a_snapshot():
    data = np.arange(6, dtype=">i4").reshape(2, 3).T
    lazy = xp.asarray(data)
    data[...] = 0
    [stored] = trace(lazy).inputs
    assert stored.flags.c_contiguous
    assert stored.dtype == np.dtype("<i4")
    np.testing.assert_array_equal(stored, np.arange(6).reshape(2, 3).T)


def test_asarray_without_copy_shares_memory_or_says_why_not():
    data = np.zeros((2, 2))
    [stored] = trace(xp.asarray(data, copy=False)).inputs
    assert np.shares_memory(stored, data)
    with pytest.raises(ValueError, match="C-contiguous"):
        xp.asarray(data.T[:1], copy=False)


def test_an_input_may_be_an_output():
    np.testing.assert_array_equal(evaluate(xp.asarray([1, 2]))[0], [1, 2])


@pytest.mark.parametrize(
    "bend",
    [
        lambda data: data + b"\0",
        lambda data: data[:-1],
        lambda data: b"",
        lambda data: msgpack.packb(msgpack.unpackb(data), use_single_float=True, use_bin_type=False),
        lambda data: data.replace(b"\x84\xa5block", b"\xde\x00\x04\xa5block"),
        lambda data: b"\xdc\x00\x05" + data[1:],
    ],
)
def test_other_encodings_of_the_same_program_are_refused(bend):
    data = trace(*example()).program
    bent = bend(data)
    assert bent != data
    with pytest.raises(ProgramInvalid):
        decode_program(bent)


def test_maps_out_of_order_and_with_repeated_keys_are_refused():
    program = trace(xp.sum(xp.asarray([1.0]))).checked.program
    document = plain(program)
    op, args, attrs = document[3][0]
    document[3][0] = [op, args, dict(reversed(attrs.items()))]
    with pytest.raises(ProgramInvalid, match="canonical"):
        decode_program(msgpack.packb(document))
    document[3][0] = [op, args, attrs]
    data = msgpack.packb(document)
    assert decode_program(data) == program
    twice = data.replace(b"\x83\xa4axes\x91\x00", b"\x84\xa4axes\x91\x00\xa4axes\x91\x00")
    assert twice != data
    with pytest.raises(ProgramInvalid):
        decode_program(twice)


def test_unknown_versions_are_refused():
    document = plain(trace(xp.zeros(1)).checked.program)
    document[0] = 2
    with pytest.raises(ProgramInvalid) as caught:
        decode_program(msgpack.packb(document))
    assert caught.value.code == "program-version"


def test_a_claimed_length_allocates_nothing_like_it():
    # 100 nested arrays, each claiming 2**31 items.
    with pytest.raises(ProgramInvalid):
        decode_program(b"\xdd\x7f\xff\xff\xff" * 100)
    with pytest.raises(ProgramInvalid):
        decode_program(b"\xdd" + MAX_NODES.to_bytes(4, "big") + b"\x91" * 2_000)


def test_size_limit():
    with pytest.raises(ProgramInvalid) as caught:
        codec.decode(Program, b"\0" * 101, max_bytes=100, max_items=10)
    assert caught.value.code == "program-too-large"


json_like = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=True)
    | st.text(max_size=8)
    | st.binary(max_size=17)
    | st.sampled_from(["add", "float64", "sum", "axes", "shape", "raw_kernel", "../etc/passwd", "O"]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=20,
)


some_operations = st.sampled_from(["add", "sum", "reshape", "getitem", "matmul", "pad"])


def check_bytes(data):
    """Decoding and checking may succeed or raise ProgramInvalid; anything else is a defect."""
    try:
        check_program(decode_program(data))
    except ProgramInvalid as error:
        assert error.code
        assert len(error.sentence) <= 400


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes(data):
    check_bytes(data)


@settings(max_examples=200, deadline=None)
@given(json_like)
def test_random_documents(document):
    check_bytes(msgpack.packb(document))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "sum", "reshape", "getitem", "matmul", "pad"]), json_like, json_like
        )
    )
)
def test_random_nodes(nodes):
    document = [1, [["float64", [2, 3]], ["int32", []]], [], [list(node) for node in nodes], [0]]
    check_bytes(msgpack.packb(document))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_mutated_programs(data):
    good = bytearray(trace(*example()).program)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(good) - 1))
        good[position] = data.draw(st.integers(0, 255))
    check_bytes(bytes(good))


def _leaves(document, path=()):
    if isinstance(document, list):
        for position, item in enumerate(document):
            yield from _leaves(item, (*path, position))
    elif isinstance(document, dict):
        for key, item in document.items():
            yield from _leaves(item, (*path, key))
    else:
        yield path


@settings(max_examples=300, deadline=None)
@given(data=st.data(), value=json_like)
def test_replaced_parts(data, value):
    document = plain(trace(*example()).checked.program)
    path = data.draw(st.sampled_from(list(_leaves(document))))
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    check_bytes(msgpack.packb(document))
