"""Beyond the array standard: erf, quantiles, convolution, pooling, random numbers."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coppermesh.exec import special, xp
from coppermesh.exec.errors import ProgramInvalid
from coppermesh.exec.evaluate import evaluate
from coppermesh.exec.tracing import trace

quick = settings(max_examples=40, deadline=None)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_erf(dtype):
    x = np.concatenate([np.linspace(-7, 7, 20_001), [np.inf, -np.inf, np.nan, 0.0]]).astype(dtype)
    [result] = evaluate(xp.erf(xp.asarray(x)))
    expected = np.array([math.erf(float(item)) for item in x])
    assert result.dtype == dtype
    bound = 4 * np.finfo(dtype).eps
    np.testing.assert_allclose(result, expected, rtol=bound, atol=bound)


def test_ndtri_has_the_tables_values():
    p = np.array([0.5, 0.975, 0.025, 1e-10, 1 - 1e-10, 2.0**-1000, 0.0, 1.0, -1.0, np.nan])
    [result] = evaluate(xp.ndtri(p))
    expected = [0.0, 1.959963984540054, -1.959963984540054, -6.361340902404056, 6.361340889697422]
    np.testing.assert_allclose(result[:5], expected, rtol=1e-14)
    np.testing.assert_array_equal(result[6:], [-np.inf, np.inf, np.nan, np.nan])
    x = np.linspace(-5, 5, 101)
    p = np.array([0.5 * math.erfc(-item / math.sqrt(2)) for item in x])
    np.testing.assert_allclose(evaluate(xp.ndtri(p))[0], x, rtol=0, atol=1e-9)


# Counter, key, words: the known-answer vectors that come with Random123 for philox4x32-10.
PHILOX = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), PHILOX)
def test_philox_known_answers(counter, key, words):
    block = special.philox_block(
        np, [np.array([c], dtype=np.uint64) for c in counter], [np.array([k], dtype=np.uint64) for k in key]
    )
    assert [int(word[0]) for word in block] == words


def test_random_words_are_philox_blocks_in_order():
    assert evaluate(xp.random.generator(0).bits(6))[0][:4].tolist() == PHILOX[0][2]
    longer, shorter = evaluate(xp.random.generator(5).bits((4, 5)), xp.random.generator(5).bits(7))
    np.testing.assert_array_equal(longer.reshape(-1)[:7], shorter)
    rng = xp.random.generator(5)
    first, second = evaluate(rng.bits(100), rng.bits(100))
    assert not np.any(first == second)


def test_the_seed_is_data():
    programs = {trace(xp.random.generator(seed).normal((3, 4))).program for seed in (0, 1, 2**64 - 1)}
    assert len(programs) == 1
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match="seed"):
            xp.random.generator(seed)


def test_distributions():
    rng = xp.random.generator(11)
    count = 200_000
    uniform, single, normal, dice = evaluate(
        rng.uniform(count),
        rng.uniform(count, dtype="float32", low=2, high=4),
        rng.normal(count),
        rng.integers(-3, 4, count),
    )
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 0.003
    assert single.dtype == np.float32
    assert 2 <= single.min() <= single.max() < 4
    assert abs(normal.mean()) < 0.01
    assert abs(normal.std() - 1) < 0.01
    assert abs(np.mean(normal**4) - 3) < 0.1
    assert set(dice) == set(range(-3, 4))
    assert np.bincount(dice + 3).min() > count / 7 * 0.97


def test_random_bits_never_change():
    """Known answers of our own: a change of these breaks every program that was run before."""
    rng = xp.random.generator(2011)
    uniform, normal, whole = evaluate(rng.uniform(2), rng.normal(2), rng.integers(0, 1000, 3))
    assert [float(x).hex() for x in uniform] == UNIFORM
    assert [float(x).hex() for x in normal] == NORMAL
    assert whole.tolist() == WHOLE


UNIFORM = ["0x1.008930717d180p-2", "0x1.1454b31d20b6ep-1"]
NORMAL = ["0x1.742bfd6e16a4ep+0", "-0x1.4548eddd5b6d8p-1"]
WHOLE = [257, 863, 40]


def direct_conv(x, w, strides, padding, dilation, groups):
    x = np.pad(x, ((0, 0), (0, 0), *padding))
    kernel = w.shape[2:]
    lengths = [
        (n - d * (k - 1) - 1) // s + 1
        for n, k, s, d in zip(x.shape[2:], kernel, strides, dilation, strict=True)
    ]
    result = np.zeros((x.shape[0], w.shape[0], *lengths), dtype=x.dtype)
    inner, outer = w.shape[1], w.shape[0] // groups
    for place in np.ndindex(*lengths):
        for tap in np.ndindex(*kernel):
            at = tuple(p * s + t * d for p, s, t, d in zip(place, strides, tap, dilation, strict=True))
            for output in range(w.shape[0]):
                group = output // outer
                part = x[(slice(None), slice(group * inner, (group + 1) * inner), *at)]
                result[(slice(None), output, *place)] += part @ w[(output, slice(None), *tap)]
    return result


@st.composite
def windows(draw):
    count = draw(st.integers(1, 3))
    each = lambda low, high: [draw(st.integers(low, high)) for _ in range(count)]  # noqa: E731
    kernel, strides, dilation = each(1, 3), each(1, 3), each(1, 2)
    padding = [(draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in range(count)]
    lengths = [
        draw(st.integers(d * (k - 1) + 1, d * (k - 1) + 3)) for k, d in zip(kernel, dilation, strict=True)
    ]
    return kernel, strides, dilation, padding, lengths


@quick
@given(windows(), st.integers(1, 2), st.integers(1, 2), st.integers(1, 2), st.integers(0, 2))
def test_conv(window, groups, inner, outer, batch):
    kernel, strides, dilation, padding, lengths = window
    rng = np.random.default_rng(0)
    x = rng.integers(-9, 9, (batch, groups * inner, *lengths)).astype("float64")
    w = rng.integers(-9, 9, (groups * outer, inner, *kernel)).astype("float64")
    lazy = xp.conv(x, w, strides=strides, padding=padding, dilation=dilation, groups=groups)
    [result] = evaluate(lazy)
    expected = direct_conv(x, w, strides, padding, dilation, groups)
    assert lazy.shape == expected.shape
    np.testing.assert_array_equal(result, expected)


@quick
@given(windows(), st.sampled_from(["float32", "int16"]))
def test_pooling(window, dtype):
    kernel, strides, dilation, _, lengths = window
    x = np.random.default_rng(1).integers(-99, 99, (2, 3, *lengths)).astype(dtype)
    padding = [(d * (k - 1) // 2, d * (k - 1)) for k, d in zip(kernel, dilation, strict=True)]
    options = {"strides": strides, "padding": padding, "dilation": dilation}
    largest, mean = evaluate(xp.max_pool(x, kernel, **options), xp.avg_pool(x, kernel, **options))
    padded = np.pad(x.astype("float64"), ((0, 0), (0, 0), *padding), constant_values=np.nan)
    for place in np.ndindex(*largest.shape[2:]):
        at = tuple(
            slice(p * s, p * s + d * (k - 1) + 1, d)
            for p, s, d, k in zip(place, strides, dilation, kernel, strict=True)
        )
        part = padded[(slice(None), slice(None), *at)].reshape(2, 3, -1)
        np.testing.assert_array_equal(largest[(slice(None), slice(None), *place)], np.nanmax(part, -1))
        np.testing.assert_allclose(
            mean[(slice(None), slice(None), *place)], np.nanmean(part, -1), rtol=1e-5, atol=1e-5
        )


def test_what_conv_and_pooling_refuse():
    x, w = xp.zeros((1, 4, 8)), xp.zeros((6, 2, 3))
    assert xp.conv(x, w, groups=2, padding="same").shape == (1, 6, 8)
    for options in (
        {"groups": 3},
        {"groups": 1},
        {"groups": 0},
        {"groups": 2, "strides": 0},
        {"groups": 2, "dilation": 4},
        {"groups": 2, "padding": -1},
        {"groups": 2, "padding": 1 << 40},
        {"groups": 2, "strides": 1 << 40},
    ):
        with pytest.raises(ProgramInvalid):
            xp.conv(x, w, **options)
    for options in ({"padding": 3}, {"dilation": 9}, {"strides": -1}):
        with pytest.raises(ProgramInvalid):
            xp.max_pool(x, 3, **options)


def test_a_generator_has_numpys_usual_names_and_says_what_it_has_not():
    generator = xp.random.generator(7)
    [drawn] = evaluate(generator.random((3, 4)))
    assert drawn.shape == (3, 4)
    assert np.all((drawn >= 0) & (drawn < 1))
    assert np.array_equal(drawn, evaluate(xp.random.generator(7).uniform((3, 4)))[0])
    [same] = evaluate(xp.random.generator(7).normal(5))
    assert np.array_equal(evaluate(xp.random.generator(7).standard_normal(5))[0], same)
    with pytest.raises(AttributeError, match="no 'exponential': there are random, uniform"):
        _ = generator.exponential
    with pytest.raises(AttributeError, match="random order"):
        _ = generator.permutation
