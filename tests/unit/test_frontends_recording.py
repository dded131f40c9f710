"""What `map`, the executor and the dask scheduler record, without a mesh: programs, inputs, and what is refused."""

import dask.array as dask_array
import numpy as np
import pytest

import coppermesh as cm
from coppermesh.agent.dask_scheduler import compute_graph
from coppermesh.agent.executor import MAX_WORKERS, MeshExecutor
from coppermesh.agent.mapping import _Folder, map_chunks, prepare_chunks
from coppermesh.agent.parcels import Parcel, PreparedTask, StoredArray
from coppermesh.exec import barrier
from coppermesh.exec.budget import RunLimits
from coppermesh.exec.errors import NeedsValue, ProgramInvalid
from coppermesh.exec.evaluate import evaluate
from coppermesh.exec.numpy_runtime import NumpyRuntime
from coppermesh.exec.program import decode_program
from coppermesh.exec.schema import check_program
from coppermesh.exec.source_lines import describe_line, failed_node, named_node, with_node
from coppermesh.exec.tracing import trace
from coppermesh.p2p.blobs import digest_of
from coppermesh.p2p.messages import BlobInfo

xp = cm.xp
ROWS = np.arange(20, dtype=np.float64).reshape(10, 2)


def run(task):
    """What a provider would give for this task."""
    checked = check_program(decode_program(task.program))
    return NumpyRuntime().run(checked, task.inputs, RunLimits()).outputs


def test_chunks_of_one_shape_share_a_program_and_its_other_inputs():
    weights = np.ones((2, 3))
    tasks = prepare_chunks(lambda rows: rows @ xp.asarray(weights), ROWS, 4)
    assert [task.program for task in tasks[:2]] == [tasks[0].program] * 2
    assert tasks[2].program != tasks[0].program
    shared = [item for item in tasks[0].inputs if item.shape == (2, 3)]
    assert any(item is shared[0] for item in tasks[1].inputs)
    assert any(np.shares_memory(item, ROWS) for item in tasks[1].inputs)
    np.testing.assert_array_equal(np.concatenate([run(task)[0] for task in tasks]), ROWS @ weights)


def test_big_endian_and_strided_arrays_arrive_as_they_read():
    tasks = prepare_chunks(lambda rows: rows * 2, ROWS.astype(">f4")[::-1, :1], 3)
    np.testing.assert_array_equal(np.concatenate([run(task)[0] for task in tasks]), ROWS[::-1, :1] * 2)


def test_an_empty_array_is_one_empty_chunk_and_an_unused_chunk_is_no_input():
    [task] = prepare_chunks(lambda rows: rows + 1, np.empty((0, 2)), 4)
    assert run(task)[0].shape == (0, 2)
    for task in prepare_chunks(lambda rows: xp.ones(len(rows)), ROWS, 4):
        assert task.inputs == ()


@pytest.mark.parametrize(
    ("function", "array", "chunks", "error"),
    [
        (lambda rows: 3, ROWS, 4, TypeError),
        (lambda rows: (), ROWS, 4, TypeError),
        (lambda rows: np.ones(3), ROWS, 4, TypeError),
        (lambda rows: rows, ROWS, 0, ValueError),
        (lambda rows: rows, np.float64(1), 4, ValueError),
        (lambda rows: rows * float(rows[0, 0]), ROWS, 4, NeedsValue),
        (lambda rows: xp.asarray(np.asarray(rows)), ROWS, 4, NeedsValue),
    ],
)
def test_what_map_refuses(function, array, chunks, error):
    with barrier.evaluator(lambda arrays: evaluate(*arrays)), pytest.raises(error):
        prepare_chunks(function, array, chunks)


def test_a_chunk_that_leaks_out_of_its_function_has_no_value():
    kept = []
    prepare_chunks(lambda rows: kept.append(rows) or rows + 1, ROWS, 10)
    with pytest.raises(ProgramInvalid, match="stood for data"):
        evaluate(kept[0] + 1)
    with barrier.evaluator(lambda arrays: evaluate(*arrays)), pytest.raises(ProgramInvalid):
        float(kept[0][0, 0])


@pytest.mark.parametrize("reduce", ["sum", 3])
def test_an_unknown_reduction_is_refused_before_anything_runs(reduce):
    with pytest.raises(ValueError, match="reduce="):
        map_chunks(None, xp.sum, ROWS, chunks=3, reduce=reduce, progress=False, options={})


def test_concat_refuses_what_cannot_be_joined_before_anything_runs():
    with pytest.raises(ValueError, match="cannot join"):
        map_chunks(None, xp.sum, ROWS, chunks=3, reduce="concat", progress=False, options={})


def stored(array):
    view = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    return StoredArray(BlobInfo(digest_of(view), view.nbytes), bytes(view))


def test_folding_keeps_the_order_and_refers_to_what_is_stored():
    parts = [np.full(1, number) for number in range(70)]
    results = [(xp_spec(part), (stored(part),)) for part in parts]
    folder = _Folder(lambda a, b: a * 3 + b)
    tasks = folder.next_round(results)
    assert [len(task.inputs) for task in tasks] == [32, 32, 6]
    assert tasks[0].program == tasks[1].program
    filled = PreparedTask(tasks[2].program, tuple(parts[64:]), tasks[2].outputs, tasks[2].sources)
    expected = 64
    for number in range(65, 70):
        expected = expected * 3 + number
    assert tasks[2].inputs == tuple(results[number][1][0] for number in range(64, 70))
    assert run(filled)[0] == expected


def xp_spec(array):
    return (xp.asarray(array).recorded.spec,)


def test_a_parcel_carries_each_blob_once_and_large_ones_ahead():
    ahead = []
    large, small = np.zeros(1 << 20), np.ones(4)
    task = PreparedTask(b"program", (large, small, large), (), ())
    sent = set()
    parcel = Parcel(sent, lambda blob, view: ahead.append((blob.size, view.nbytes)))
    parcel.add([task, task])
    assert ahead == [(8 << 20, 8 << 20)]
    assert [len(blob.data) for blob in parcel.blobs] == [7, 32]
    assert len(parcel.tasks) == 2
    again = Parcel(sent, lambda blob, view: ahead.append(blob))
    again.add([task])
    assert len(ahead) == 1


@pytest.mark.parametrize("workers", [0, MAX_WORKERS + 1])
def test_threads_of_an_executor_are_bounded(workers):
    with pytest.raises(ValueError, match="max_workers"):
        MeshExecutor(None, workers, {})


def test_dask_functions_see_lazy_blocks_and_the_graph_stays_as_it_was():
    seen = []

    def look(block):
        seen.append(type(block))
        return block * 2

    class Local:
        def submit_prepared(self, tasks):
            self.inputs = [len(item.inputs) for item in tasks]
            self.result_tuples = lambda: [tuple(run(task)) for task in tasks]
            return self

    local = Local()
    x = dask_array.from_array(ROWS, chunks=(1, 1)).map_blocks(look, meta=np.empty((0, 0)))
    blocks = dask_array.concatenate([x] * 4)
    result = blocks.compute(scheduler=lambda graph, keys: compute_graph(local, graph, keys, {}))
    assert set(seen) == {cm.Array}
    np.testing.assert_array_equal(result, np.concatenate([ROWS * 2] * 4))
    many = dask_array.from_array(np.arange(300.0), chunks=1) + 1
    np.testing.assert_array_equal(
        many.compute(scheduler=lambda graph, keys: compute_graph(local, graph, keys, {})), np.arange(1.0, 301)
    )
    assert local.inputs == [1]
    np.testing.assert_array_equal(many.compute(scheduler="synchronous"), np.arange(1.0, 301))


def test_the_node_of_a_crashed_kernel_is_known_where_it_is_launched_once():
    def launch(name, array):
        source = f'extern "C" __global__ void {name}(float* x) {{ x[0] = 1; }}'
        cm.RawKernel(source, name)((1,), (1,), (array,))

    x = xp.zeros(4, dtype="float32")
    launch("first", x)
    launch("twice", x)
    launch("twice", x)
    recording = trace(x)
    sentence = "the worker died of SIGSEGV (a wild pointer) in kernel "
    assert recording.checked.nodes[failed_node(sentence + "first", recording.program)].node.op == "raw_kernel"
    assert failed_node(sentence + "twice", recording.program) is None
    assert failed_node(sentence + "unknown", recording.program) is None
    assert failed_node("node 0 (full): out of memory in kernel first", recording.program) == 0


def test_the_line_behind_a_node():
    assert with_node("it failed", None) == "it failed"
    assert with_node("it failed", 7) == "node 7: it failed"
    assert with_node("node 3 (add): it failed", 7) == "node 3 (add): it failed"
    assert named_node("node 12 (sin): bad") == 12
    assert named_node("the job has no node 12") is None
    here = (__file__, 1)
    assert describe_line([here], 0).startswith(f'{__file__}:1: """What `map`')
    assert describe_line([here], 1) == describe_line([here], None) == ""
    assert describe_line([("<stdin>", 3)], 0) == "<stdin>:3"
