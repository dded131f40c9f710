"""The Python in README.md runs as it stands there."""

import re
from pathlib import Path
from typing import Any

import dask.array as dask_array
import numpy as np
import pytest

import coppermesh as cm

README = Path(__file__).parents[2] / "README.md"
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.processes


def blocks() -> list[Any]:
    """The code of each block, which keeps the line numbers that it has in README.md."""
    text = README.read_text()
    found = []
    for match in _BLOCK.finditer(text):
        above = text.count("\n", 0, match.start(1))
        found.append(compile("\n" * above + match[1], str(README), "exec"))
    return found


def test_every_block_runs(lab, monkeypatch, capsys):
    lab.start(2)
    monkeypatch.setenv("COPPERMESH_HOME", str(lab.mesh.home("requester").path))
    rng = np.random.default_rng(3)
    names: dict[str, Any] = {
        "rows": rng.random((3, 64)),
        "data": rng.random((25_000, 4)),
        "weights": rng.random((4, 2)),
        "pairs": [(rng.random((2, 3)), rng.random((3, 2))) for _ in range(3)],
        "dask_array": dask_array.from_array(rng.random((6, 4)), chunks=3),
    }
    first, second = blocks()
    exec(first, names)  # noqa: S102 - the code of our own README
    assert re.fullmatch(r"\[0\..*\] 0\.\d+ usd\n", capsys.readouterr().out)
    before = cm.run_local(names["y"])
    exec(second, names)  # noqa: S102
    np.testing.assert_array_equal(names["waves"], np.sin(names["rows"]))
    np.testing.assert_allclose(
        np.concatenate(names["parts"]), np.tanh(names["data"] @ names["weights"]), rtol=1e-12
    )
    np.testing.assert_allclose(names["total"], names["data"].sum(), rtol=1e-12)
    np.testing.assert_array_equal(names["joined"], np.sin(names["data"]))
    np.testing.assert_allclose(names["last"], names["data"].sum(axis=0), rtol=1e-12)
    np.testing.assert_array_equal(names["sums"][1], names["data"][0] + names["data"][1])
    for future, (left, right) in zip(names["futures"], names["pairs"], strict=True):
        np.testing.assert_allclose(future.result(), left @ right, rtol=1e-12)
    np.testing.assert_allclose(names["mean"], names["dask_array"].mean(axis=0).compute(), rtol=1e-12)
    assert before.max() <= 1  # so that the branch of the block is not taken
    assert "nodes" in capsys.readouterr().out
