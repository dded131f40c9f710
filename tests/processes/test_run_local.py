"""`run_local`: the explicit way to run on this machine, in a worker process."""

import asyncio

import numpy as np
import pytest

import coppermesh as cm
from coppermesh.exec.errors import RunFailed

xp = cm.xp

pytestmark = pytest.mark.processes


def test_it_runs_in_a_worker_and_says_where(capsys):
    values = np.random.default_rng(3).random((300, 200))
    x = xp.asarray(values)
    product, total = cm.run_local(x @ x.T, xp.sum(x))
    np.testing.assert_allclose(product, values @ values.T)
    np.testing.assert_allclose(total, values.sum())
    note = capsys.readouterr().err
    assert "this machine" in note
    assert f"numpy/{np.__version__}" in note


def test_a_failure_names_the_users_line():
    x = xp.asarray([1.0, 2.0])
    picked = xp.take(x, xp.asarray([7]))  # reaches outside
    with pytest.raises(RunFailed, match="reaches outside") as failure:
        cm.run_local(picked)
    assert failure.value.node is not None


async def test_inside_an_event_loop():
    assert cm.run_local(xp.asarray([1.0]) + 1) == 2.0


def test_inside_a_notebook():
    async def cell():
        return cm.run_local(xp.asarray([1.0]) + 1)

    assert asyncio.run(cell()) == 2.0
