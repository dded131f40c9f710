"""More ways to submit, against real agents: map, executor, dask, and Python asking for a value."""

import numpy as np
import pytest

import coppermesh as cm
from coppermesh.agent.client import JobFailed

xp = cm.xp

pytestmark = pytest.mark.processes


def test_map_keeps_order_with_a_ragged_last_chunk(lab, capsys):
    client = lab.start(2)
    values = np.random.default_rng(1).random((1000, 8), dtype=np.float32)
    weights = np.random.default_rng(2).random((8, 4), dtype=np.float32)
    calls = []

    def project(chunk):
        calls.append(chunk.shape)
        return chunk @ xp.asarray(weights)

    parts = client.map(project, values, chunks=300, progress=True)
    assert calls == [(300, 8), (100, 8)]
    assert [len(part) for part in parts] == [300, 300, 300, 100]
    np.testing.assert_allclose(np.concatenate(parts), values @ weights, rtol=1e-5)
    assert "4/4 chunks" in capsys.readouterr().err

    joined = client.map(project, values, chunks=300, reduce="concat")
    np.testing.assert_array_equal(joined, np.concatenate(parts))
    assert not capsys.readouterr().err


def test_map_reduces_on_the_mesh_in_order(lab):
    client = lab.start(1)
    values = np.arange(40, dtype=np.int64).reshape(40, 1)
    total = client.map(lambda chunk: xp.sum(chunk), values, chunks=1, reduce=xp.add)
    assert total == 780
    rows, count = client.map(
        lambda chunk: (chunk * 2, xp.asarray(1)),
        values,
        chunks=7,
        reduce=lambda a, b: (xp.concat([a[0], b[0]]), a[1] + b[1]),
    )
    np.testing.assert_array_equal(rows, values * 2)
    assert count == 6


def test_a_remote_failure_shows_the_users_own_line(lab):
    client = lab.start(1)
    picked = xp.take(xp.asarray([1.0, 2.0]), xp.asarray([5])) + 1  # the line that is to be shown
    with pytest.raises(JobFailed) as failure:
        client.compute(picked)
    assert failure.value.node is not None
    assert "the line that is to be shown" in failure.value.line
    assert failure.value.line in str(failure.value)
