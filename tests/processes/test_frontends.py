"""More ways to submit, against real agents: map, executor, dask, and Python asking for a value."""

import threading
from concurrent.futures import as_completed, wait

import dask.array as dask_array
import numpy as np
import pytest

import coppermesh as cm
from coppermesh.agent.job_handle import JobFailed
from coppermesh.exec import barrier
from coppermesh.exec.errors import NeedsValue

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
    y = xp.zeros(1, dtype=xp.float32)
    wild = 'extern "C" __global__ void wild(float* x) { x[1ull << 40] = 1; }'
    cm.RawKernel(wild, "wild")((1,), (1,), (y,))  # the launch that kills
    with pytest.raises(JobFailed, match="the launch that kills") as failure:
        client.compute(y + 1)
    assert failure.value.code == "crashed"
    total = xp.sum(xp.zeros((100 << 40,), dtype=xp.uint8))  # too much for anybody
    with pytest.raises(cm.MeshError, match="too much for anybody"):
        client.compute(total)
    with pytest.raises(cm.MeshError, match="too much for anybody"):
        client.submit_many([xp.zeros(3), total])


def test_waiting_with_a_timeout_leaves_the_job_going(lab):
    client = lab.start(0)
    job = client.submit(xp.sum(xp.asarray([1.0, 2.0])))
    for seconds in (0, 0.2):
        with pytest.raises(
            TimeoutError, match=rf"{job.id[:8]} has not ended within {seconds:g} s \(0 of 1 task"
        ):
            job.result(timeout=seconds)
    lab.start_provider("late")
    assert job.result(timeout=60) == 3.0
    assert job.result(timeout=0) == 3.0
    assert repr(job) == f"<Job {job.id[:8]}: 1 of 1 task done>"


def test_what_needs_a_value_costs_one_round_trip_inside_the_block(lab):
    lab.start(1)
    before = barrier.count()
    total = xp.sum(xp.asarray([1.0, 2.0, 3.0]))
    with pytest.raises(NeedsValue):
        bool(total > 5)
    with lab.client() as mesh:
        assert total > 5
        assert float(total) == 6.0
        assert float(total) == 6.0
        assert barrier.count() - before == 2
        with pytest.raises(NeedsValue):
            mesh.map(lambda chunk: chunk * float(chunk[0]), np.arange(4.0), chunks=2)
        assert barrier.barriers()[-1].source[0] == __file__
    with pytest.raises(NeedsValue):
        float(total + 1)


def test_executor_gives_futures_in_bounded_threads(lab):
    before = threading.active_count()
    client = lab.start(1)
    arrays = [np.full(4, number, dtype=np.float64) for number in range(6)]
    with client.executor(max_workers=2) as executor:
        futures = {executor.submit(lambda x, scale: (xp.sum(x) * scale, x), a, 2): a[0] for a in arrays}
        for future in as_completed(futures, timeout=30):
            total, same = future.result()
            assert total == 8 * futures[future]
            np.testing.assert_array_equal(same, np.full(4, futures[future]))
            assert future.job.receipt["verified"]
        assert threading.active_count() <= before + 2
        assert list(executor.map(lambda a, b: a @ b, arrays[:2], arrays[1:3])) == [0, 8]
        with pytest.raises(TypeError, match=r"return lazy arrays.*cm\.xp"):
            executor.submit(lambda x: 3, arrays[0]).result()
        with pytest.raises(ZeroDivisionError):
            executor.submit(lambda x: x * (1 // 0), arrays[0]).result()
    with pytest.raises(RuntimeError):
        executor.submit(xp.sum, arrays[0])
    assert threading.active_count() == before


def test_a_future_times_out_and_its_job_is_cancelled_with_it(lab):
    client = lab.start(0)
    with client.executor(max_workers=1) as executor:
        running = executor.submit(xp.sum, np.ones(3))
        waiting = executor.submit(xp.sum, np.ones(4))
        with pytest.raises(TimeoutError):
            running.result(timeout=0.1)
        lab.wait_until(lambda: running.job is not None, "the job was sent")
        assert running.cancel()
        assert waiting.cancel()
        assert wait([running, waiting], timeout=20).not_done == set()
    with pytest.raises(JobFailed) as failure:
        running.job.result()
    assert failure.value.code == "cancelled"


def test_dask_graphs_run_as_one_program(lab):
    client = lab.start(1)
    rng = np.random.default_rng(7)
    x = dask_array.from_array(rng.random((60, 40)), chunks=(25, 15))
    w = dask_array.from_array(rng.random((40, 30)), chunks=15)
    many = dask_array.from_array(rng.random((60, 40)), chunks=4)
    collections = {
        "sin and sum": (dask_array.sin(x) + x.sum()).sum(axis=0),
        "mean of a product": (x @ x.T).mean(),
        "std": x.std(axis=1),
        "norm": dask_array.linalg.norm(x),
        "roll": dask_array.roll(x, 7, axis=0),
        "slices joined": dask_array.concatenate([x[:10], x[30:50:2]], axis=0),
        "tensordot": dask_array.tensordot(x, w, axes=1),
        "where and cumsum": dask_array.where(x > 0.5, x, 0).cumsum(axis=0),
        "made by dask": dask_array.ones((6, 6), chunks=4) * dask_array.arange(6, chunks=4),
        "150 blocks": many + 1,
    }
    for name, collection in collections.items():
        barriers, rows = barrier.count(), len(lab.ask(client, "receipts", limit=100))
        result = collection.compute(scheduler=client.dask)
        expected = collection.compute(scheduler="threads")
        assert result.dtype == expected.dtype
        np.testing.assert_allclose(result, expected, rtol=1e-12, err_msg=name)
        assert barrier.count() == barriers
        assert len(lab.ask(client, "receipts", limit=100)) == rows + 1
    first, second = dask_array.compute(x.sum(), x.max(), scheduler=client.dask)
    np.testing.assert_allclose([first, second], dask_array.compute(x.sum(), x.max()), rtol=1e-12)
