"""Kernels and a model on CuPy against NumPy: the corpus, MiniLM, random numbers bit for bit."""

import numpy as np
import pytest

import coppermesh as cm
from coppermesh.exec import xp
from coppermesh.exec.budget import RunLimits
from coppermesh.exec.numpy_runtime import NumpyRuntime
from coppermesh.exec.tolerance import compare
from coppermesh.exec.tracing import trace

LIMITS = RunLimits()


async def test_the_corpus_of_kernels(gpu, load, figure, tmp_path):
    corpus, workers = load("kernels/corpus.py"), load("gpu/test_device.py")
    failures = []
    async with workers.worker_on(gpu, tmp_path) as (
        worker,
        _,
    ):  # one that goes wrong must not take the others along
        for case in corpus.CASES:
            inputs, outputs = case.record(cm, xp, np.random.default_rng(1))
            outcome, values = await workers.run(worker, trace(*outputs))
            try:
                assert outcome.status == "ok", f"{outcome.code}: {outcome.sentence}\n{outcome.detail}"
                case.check(inputs, values)
            except AssertionError as error:
                failures.append(f"{case.name}: {error}")
    figure("kernels of the corpus that agree with their oracles", len(corpus.CASES) - len(failures))
    figure("kernels of the corpus", len(corpus.CASES))
    assert not failures, "\n".join(failures)


def test_minilm(runtime, load, figure):
    minilm = load("models/minilm.py")
    path = minilm.find_weights()
    if path is None:
        weights, kind = random_weights(), "random weights of its shapes"
    else:
        weights, kind = minilm.read_weights(path), "its own weights"
    lazy = {name: xp.asarray(array) for name, array in weights.items()}
    ids, mask = minilm.sample(8, 64)
    recording = trace(minilm.embed(xp, xp.erf, xp.asarray(ids), xp.asarray(mask), lazy))
    expected = NumpyRuntime().run(recording.checked, recording.inputs, LIMITS).outputs[0]
    result = runtime.run(recording.checked, recording.inputs, LIMITS).outputs[0]
    difference = float(np.abs(result - expected).max())
    figure(f"MiniLM, {kind}: largest difference from NumPy", difference)
    assert difference < 1e-5


def random_weights():
    """Weights of all-MiniLM-L6-v2's shapes: the package with its own is 88 MB."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(0, 0.05, shape).astype(np.float32)

    width, inner = 384, 1536
    weights = {
        "embeddings.word_embeddings.weight": normal(30522, width),
        "embeddings.position_embeddings.weight": normal(512, width),
        "embeddings.token_type_embeddings.weight": normal(2, width),
    }
    scales = ["embeddings.LayerNorm"]
    for layer in range(6):
        place = f"encoder.layer.{layer}"
        shapes = {f"attention.self.{name}": (width, width) for name in ("query", "key", "value")}
        shapes["attention.output.dense"] = (width, width)
        shapes["intermediate.dense"] = (inner, width)
        shapes["output.dense"] = (width, inner)
        for name, shape in shapes.items():
            weights[f"{place}.{name}.weight"], weights[f"{place}.{name}.bias"] = (
                normal(*shape),
                normal(shape[0]),
            )
        scales += [f"{place}.attention.output.LayerNorm", f"{place}.output.LayerNorm"]
    for name in scales:
        weights[f"{name}.weight"], weights[f"{name}.bias"] = 1 + normal(width), normal(width)
    return weights


@pytest.mark.parametrize("draw", ["bits", "uniform", "normal"])
def test_random_numbers_have_the_same_bits(runtime, draw):
    recording = trace(getattr(xp.random.generator(7), draw)((1000,)))
    expected = NumpyRuntime().run(recording.checked, recording.inputs, LIMITS).outputs[0]
    result = runtime.run(recording.checked, recording.inputs, LIMITS).outputs[0]
    assert result.tobytes() == expected.tobytes()


def test_what_counts_as_one_block_of_memory(runtime):
    """The interpreter writes in place where `base` says that nobody else rests on it: that must be so in CuPy."""
    cupy = runtime._cupy
    with runtime._device, runtime._stream:
        x = cupy.arange(24, dtype="float32").reshape(2, 3, 4).copy()
        views = [
            x.reshape(6, 4),
            x[1],
            x[:, ::2],
            cupy.broadcast_to(x, (5, 2, 3, 4)),
            cupy.transpose(x),
            cupy.flip(x, 1),
            cupy.swapaxes(x, 0, 1),
            cupy.expand_dims(x, 0),
            cupy.lib.stride_tricks.as_strided(x, (2, 2), (4, 4)),
            x.astype("float32", copy=False)[...],
            (x + 1j).real,
        ]
        for view in views:
            assert view.base is not None, view.shape
        for view in views[:-1]:
            assert view.base is x
            assert view.data.mem is x.data.mem
        fresh = [x + 1, cupy.roll(x, 1), cupy.concatenate([x, x]), cupy.take(x, cupy.asarray([0]), axis=0)]
        for array in fresh:
            assert array.base is None
            assert array.data.mem is not x.data.mem


def test_loops_agree(runtime):
    def body(carry, element):
        return carry * 0.5 + element, carry

    outputs = xp.scan(body, xp.zeros(100), xp.asarray(np.random.default_rng(0).normal(size=(50, 100))))
    recording = trace(*outputs)
    expected = NumpyRuntime().run(recording.checked, recording.inputs, LIMITS).outputs
    assert compare(expected, runtime.run(recording.checked, recording.inputs, LIMITS).outputs, recording)
