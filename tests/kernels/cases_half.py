"""Cases in half precision, held against NumPy's float16: each operation rounds once, as its does."""

from pathlib import Path

import numpy as np

f2, f4, i4 = np.float16, np.float32, np.int32
CONTRACTED = (2e-3, 2e-3, "a GPU may contract a product and a sum, which then round once")
ERF = (2e-3, 1e-4, "the last digit of a half: erff and the order of sums differ")


def kernel(cm, file, name):
    return cm.RawKernel((Path(__file__).parent / f"{file}.cu").read_text(), name)


def record_layer(cm, xp, rng):
    shapes = {"a": (24, 32), "b": (32, 40), "bias": (40,)}
    inputs = {name: rng.normal(0, 0.5, shape).astype(f2) for name, shape in shapes.items()}
    out = xp.zeros((24, 40), dtype=f2)
    arrays = [xp.asarray(inputs[name]) for name in ("a", "b", "bias")]
    kernel(cm, "half_layer", "half_layer")((5, 3), (8, 8), (*arrays, out, i4(40), i4(32)))
    return inputs, [out]


def layer(inputs):
    from math import erf

    a, b, bias = (inputs[name].astype(np.float64) for name in ("a", "b", "bias"))
    x = a @ b + bias
    return [(0.5 * x * (1 + np.vectorize(erf)(x / np.sqrt(2)))).astype(f2)]


def record_pairs(cm, xp, rng):
    inputs = {"x": rng.normal(0, 2, (200, 2)).astype(f2), "many": rng.normal(0, 2, 300).astype(f2)}
    x, y = xp.asarray(inputs["x"]), xp.zeros((200, 2), dtype=f2)
    scale = np.array([0.75, -1.25], f2).view(np.uint32)[0]
    kernel(cm, "half_pairs", "clipped")((4,), (64,), (x, y, scale, f2(1.75), i4(200)))
    sums, order = xp.zeros(2, dtype=f2), xp.zeros(300, dtype=i4)
    kernel(cm, "half_pairs", "counted")((5,), (64,), (xp.asarray(inputs["many"]), sums, order, i4(300)))
    return inputs, [y, sums, order]


def pairs(inputs):
    x = inputs["x"].astype(np.float64) * np.array([0.75, -1.25]) + np.array([0.5, -0.5])
    v = np.clip(x.astype(f2), f2(-1.75), f2(1.75))
    many = inputs["many"]
    sums = np.array([np.count_nonzero(many >= 1), np.count_nonzero(many < 0)], f2)
    roots = (1 / np.sqrt(np.abs(many.astype(f4)))).astype(f2)
    return [(v > 0) * v - v[:, ::-1], sums, np.floor(roots * f2(8)).astype(i4)]


CASES = [
    ("half_layer", ("half precision", "templates", "tiles"), record_layer, layer, ERF),
    ("half_pairs", ("half precision", "shuffles", "atomics"), record_pairs, pairs, CONTRACTED),
]
