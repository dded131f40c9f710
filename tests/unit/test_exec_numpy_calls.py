"""NumPy's functions on lazy arrays: `einsum` and `round` as NumPy's, and clear words for what is not recorded."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coppermesh.agent.mapping import prepare_chunks
from coppermesh.exec import barrier, xp
from coppermesh.exec.errors import NeedsValue
from coppermesh.exec.evaluate import evaluate

quick = settings(max_examples=40, deadline=None)
SIZES = {"i": 2, "j": 3, "k": 1, "l": 0, "m": 4}
SUBSCRIPTS = [
    "ij,jk->ik",
    "ij,jm",
    "ii",
    "ii->i",
    "ij->ji",
    "ba",
    "i,j",
    "i,i",
    "iij,jm->im",
    "ij,jm,mi->",
    "ij,jm,mi->jim",
    "...i,...i->...",
    "...ij,...jm->...im",
    "...ij->...",
    "i...->...i",
    "ij,ij->ij",
    "il,lj->ij",
    "m,m,m->m",
    "iii->i",
    "ijm,im->j",
    ",ij->ij",
    "ij , jm -> im",
    "Ai,iA->A",
]


@st.composite
def einsums(draw):
    subscripts = draw(st.sampled_from(SUBSCRIPTS))
    dtype = draw(st.sampled_from(["int32", "float32", "float64", "complex128", "uint8"]))
    stack = draw(st.sampled_from([(), (2,), (3, 2)]))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    arrays = []
    for part in subscripts.replace(" ", "").partition("->")[0].split(","):
        shape = []
        for piece in part.partition("..."):
            if piece == "...":
                shape += [draw(st.sampled_from([length, 1])) for length in stack]
            else:
                shape += [SIZES.get(letter, 2) for letter in piece]
        arrays.append(rng.integers(0, 5, shape).astype(dtype))
    return subscripts, arrays


@settings(max_examples=200, deadline=None)
@given(einsums())
def test_einsum(case):
    subscripts, arrays = case
    expected = np.einsum(subscripts, *arrays)
    lazy = np.einsum(subscripts, *map(xp.asarray, arrays), optimize=True)
    [result] = evaluate(lazy)
    assert result.shape == expected.shape == lazy.shape
    assert result.dtype == expected.dtype == lazy.dtype
    np.testing.assert_array_equal(result, expected)


def test_einsum_takes_lengths_of_one_with_any_other():
    a, b = np.arange(3.0).reshape(3, 1), np.arange(4.0).reshape(1, 4) + 1
    [result] = evaluate(xp.einsum("ij,ij->ij", a, b))
    np.testing.assert_array_equal(result, np.einsum("ij,ij->ij", a, b))
    [result] = evaluate(xp.einsum("ij,ij", a, b))
    np.testing.assert_array_equal(result, np.einsum("ij,ij", a, b))


@pytest.mark.parametrize(
    ("subscripts", "shapes", "words"),
    [
        ("ij", [(2, 2), (2, 2)], "1 operands, 2 were given"),
        ("ij->k", [(2, 2)], "no operand has"),
        ("ij->ii", [(2, 2)], "twice"),
        ("i", [(2, 2)], "does not fit"),
        ("i!", [(2, 2)], "not letters"),
        ("ii", [(2, 3)], "lengths 2 and 3"),
        ("ij,jk", [(2, 3), (4, 5)], "lengths 3 and 4"),
        ("......i", [(2, 2)], "not letters"),
    ],
)
def test_what_einsum_refuses(subscripts, shapes, words):
    with pytest.raises(ValueError, match=words):
        xp.einsum(subscripts, *(xp.zeros(shape) for shape in shapes))


def test_einsum_of_lists_and_booleans():
    with pytest.raises(TypeError, match="as text"):
        np.einsum(xp.zeros((2, 2)), [0, 1])
    with pytest.raises(TypeError, match="astype"):
        xp.einsum("ij->", xp.ones((2, 2), dtype="bool"))


@quick
@given(
    values=st.lists(st.floats(-1e6, 1e6), max_size=8),
    dtype=st.sampled_from(["float32", "float64", "int32", "uint8", "complex64"]),
    decimals=st.integers(-3, 4),
)
def test_round_to_decimals(values, dtype, decimals):
    x = (
        np.array(values).astype("int64").astype(dtype)
        if dtype in ("int32", "uint8")
        else np.array(values, dtype=dtype)
    )
    expected = np.round(x, decimals)
    for lazy in (
        xp.round(xp.asarray(x), decimals=decimals),
        np.round(xp.asarray(x), decimals),
        xp.asarray(x).round(decimals),
    ):
        [result] = evaluate(lazy)
        assert result.dtype == expected.dtype == lazy.dtype
        np.testing.assert_array_equal(result, expected)


OUT = np.zeros((2, 2))
MASK = np.ones((2, 2), dtype=bool)
REFUSED = {
    "out": (lambda a: np.add(a, a, out=OUT), r"np\.add\(out=\.\.\.\).*without out="),
    "out lazy": (lambda a: np.add(a, a, out=a), "without out="),
    "out of a sum": (lambda a: np.sum(a, out=OUT), r"np\.sum\(out"),
    "out of a running sum": (lambda a: np.cumsum(a, out=OUT), r"np\.cumsum\(out"),
    "out of a product": (lambda a: np.multiply.reduce(a, out=OUT), "without out="),
    "into an array": (lambda a: np.ndarray.__iadd__(OUT, a), "without out="),
    "where": (lambda a: np.add(a, a, where=MASK), r"xp\.where\("),
    "accumulate": (lambda a: np.add.accumulate(a), r"np\.add\.accumulate has no counterpart"),
    "outer": (lambda a: np.add.outer(a, a), r"is it xp\.outer"),
    "no counterpart": (lambda a: np.unwrap(a), r"np\.unwrap has no counterpart.*mesh\.compute"),
    "no counterpart of a ufunc": (lambda a: np.gcd(a, a), r"np\.gcd has no counterpart"),
    "in a module": (lambda a: np.linalg.eig(a), r"np\.linalg\.eig has no counterpart"),
    "a dtype of its own": (lambda a: np.sum(a, initial=3), "initial"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_recorded_is_told_in_our_words(name):
    call, words = REFUSED[name]
    with pytest.raises(TypeError, match=words):
        call(xp.asarray(np.ones((2, 2))))


def test_keywords_without_effect_are_taken():
    a = xp.asarray(np.ones((2, 2)))
    np.testing.assert_array_equal(evaluate(np.add(a, a, where=True))[0], 2 * np.ones((2, 2)))
    np.testing.assert_array_equal(evaluate(np.reshape(a, (4,), order="C"))[0], np.ones(4))


class Foreign:
    """Another library's array, which may know what we do not."""

    __array_priority__ = 0

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        return "theirs"


def test_other_libraries_are_asked():
    assert np.gcd(xp.asarray([1]), Foreign()) == "theirs"


@pytest.mark.parametrize("chunks", [(2, 2), 2.5, "3", True, None])
def test_chunks_are_one_whole_number(chunks):
    with pytest.raises(TypeError, match="want one whole number, the rows of a chunk"):
        prepare_chunks(lambda chunk: chunk, np.ones((4, 4)), chunks)
    assert len(prepare_chunks(lambda chunk: chunk, np.ones((4, 4)), np.int64(2))) == 2


# Values needed in threads.


def through(log):
    def fetch(arrays):
        log.append(threading.current_thread().name)
        return evaluate(*arrays)

    return fetch


def test_a_thread_takes_the_evaluator_of_the_open_block():
    log = []
    with barrier.evaluator(through(log)), ThreadPoolExecutor(2) as threads:
        results = list(threads.map(lambda number: float(xp.ones(()) * number), range(4)))
    assert results == [0.0, 1.0, 2.0, 3.0]
    assert len(log) == 4
    with ThreadPoolExecutor(1) as threads, pytest.raises(NeedsValue, match=r"mesh\.compute"):
        threads.submit(lambda: float(xp.ones(()) * 2)).result()


def test_a_thread_is_told_what_to_do_where_several_are_open():
    log = []
    with ThreadPoolExecutor(1) as threads, barrier.evaluator(through([])), barrier.evaluator(through(log)):
        with pytest.raises(
            NeedsValue, match=r"several connections are open.*contextvars\.copy_context"
        ) as caught:
            threads.submit(lambda: float(xp.ones(()) * 2)).result()
        assert "test_exec_numpy_calls.py" in caught.value.line

        def alone():
            with barrier.evaluator(through(log)):
                return float(xp.ones(()) * 2)

        assert threads.submit(alone).result() == 2.0
        assert bool(xp.ones(()) > 0)
    assert len(log) == 2


def test_blocks_with_the_same_evaluator_count_as_one():
    fetch = through([])
    with ThreadPoolExecutor(1) as threads, barrier.evaluator(fetch), barrier.evaluator(fetch):
        assert threads.submit(lambda: float(xp.ones(()) * 2)).result() == 2.0
