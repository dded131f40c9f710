"""Cases of the language: templates, classes, structures, constant memory, modules, libcu++."""

from pathlib import Path

import numpy as np

EXACT = (0.0, 0.0, "the same IEEE operations")

f4, f8, i4, i8, u4 = np.float32, np.float64, np.int32, np.int64, np.uint32


def source(file):
    return (Path(__file__).parent / f"{file}.cu").read_text()


def kernel(cm, file, name, **options):
    return cm.RawKernel(source(file), name, **options)


def record_templates(cm, xp, rng):
    inputs = {"coefficients": rng.standard_normal(5), "x": rng.standard_normal(100)}
    out = xp.zeros(100)
    arguments = (xp.asarray(inputs["coefficients"]), xp.asarray(inputs["x"]), out, i4(100))
    kernel(cm, "templates", "evaluate")((2,), (64,), arguments)
    return inputs, [out]


def templates(inputs):
    x = inputs["x"]
    return [np.polyval(inputs["coefficients"][::-1], x) - (x + 6.0 * np.arange(100)) / 4]


def record_expressions(cm, xp, rng):
    inputs = {"x": rng.standard_normal(150), "whole": rng.integers(-50, 50, 150).astype(i4)}
    names = ["scaled<double, 3>", "scaled<int, -2>", "tools::filled<float>"]
    module = cm.RawModule(code=source("name_expressions"), name_expressions=names)
    x, whole, fill = xp.asarray(inputs["x"]), xp.asarray(inputs["whole"]), xp.zeros(150, dtype=f4)
    module.get_function(names[0])((2,), (128,), (x, i4(150)))
    module.get_function(names[1])((2,), (128,), (whole, i4(150)))
    module.get_function(names[2])((2,), (128,), (fill, f4(1.5), i4(150)))
    return inputs, [x, whole, fill]


def expressions(inputs):
    return [3 * inputs["x"], -2 * inputs["whole"], np.full(150, 1.5)]


def record_constants(cm, xp, rng):
    inputs = {"coefficients": rng.standard_normal(4).astype(f4), "x": rng.standard_normal(120).astype(f4)}
    module = cm.RawModule(code=source("constant_memory"))
    table = xp.ndarray((4,), dtype=f4, memptr=module.get_global("coefficients"))
    table[...] = xp.asarray(inputs["coefficients"])
    y = xp.zeros(120, dtype=f4)
    module.get_function("polynomial")((2,), (64,), (xp.asarray(inputs["x"]), y, i4(120)))
    return inputs, [y]


def constants(inputs):
    x = inputs["x"].astype(f8)
    return [np.polyval(inputs["coefficients"][::-1].astype(f8), x) + np.arange(120) % 3 - 1]


PARTICLE = np.dtype(
    [("x", f8), ("v", f8), ("mass", f4), ("kind", np.uint8), ("padding", "V3"), ("state", u4), ("tail", "V4")]
)
"""`struct Particle` of structures.cu, as C++ lays it out."""


def record_structures(cm, xp, rng):
    n = 77
    particles = np.zeros(n, PARTICLE)
    # Multiples of 2^-20 stay exact through x + v * dt, so contracting it changes nothing.
    particles["x"], particles["v"] = (
        rng.integers(0, 2**20, n) / 2**20,
        rng.integers(-(2**21), 2**21, n) / 2**20,
    )
    particles["mass"], particles["kind"] = rng.random(n), rng.integers(0, 4, n)
    particles["state"] = rng.integers(0, 2, n) | rng.integers(0, 2**24, n) << 8
    inputs = {"particles": particles.view(u4).reshape(n, -1)}
    held = xp.asarray(inputs["particles"])
    kernel(cm, "structures", "advance")((3,), (32,), (held, f8(0.125), i4(20), i4(n)))
    return inputs, [held]


def structures(inputs):
    particles = inputs["particles"].copy().view(PARTICLE).ravel()
    free = particles["state"] & 1 == 0
    x, v, hits = particles["x"].copy(), particles["v"].copy(), np.zeros(particles.size, u4)
    for _ in range(20):
        x = x + v * 0.125
        outside = (x < 0) | (x > 1)
        v = np.where(outside, -v, v)
        hits += outside
    particles["x"], particles["v"] = np.where(free, x, particles["x"]), np.where(free, v, particles["v"])
    particles["state"] += np.where(free, 2 * hits, 0).astype(u4)
    particles["mass"] *= np.where(free, np.where(particles["kind"] == 2, 0.5, 2.0), 1.0).astype(f4)
    return [particles.view(u4)]


def record_mask(cm, xp, rng):
    n = 210
    inputs = {"mask": rng.random(n) < 0.5, "a": rng.integers(-(2**15), 2**15, n).astype(np.int16)}
    inputs["b"] = rng.integers(0, 2**16, n).astype(np.uint16)
    out, changed = xp.zeros(n, dtype=np.int16), xp.zeros(n, dtype=np.bool_)
    arguments = [xp.asarray(inputs[name]) for name in ("mask", "a", "b")]
    launch = kernel(cm, "bool_mask", "choose")
    launch((4,), (64,), (*arguments, np.bool_(True), np.int8(3), out, changed, i4(n)))
    return inputs, [out, changed]


def mask(inputs):
    out = np.where(inputs["mask"], (inputs["b"] >> 3).astype(np.int16), inputs["a"])
    return [out, out != inputs["a"]]


def record_library(cm, xp, rng):
    inputs = {"x": rng.random(90, f4) - f4(0.3)}
    roots, turned, wide = xp.zeros(90, dtype=f4), xp.zeros(90, dtype=u4), xp.zeros(90, dtype=i8)
    kernel(cm, "libcudacxx", "library")((3,), (32,), (xp.asarray(inputs["x"]), roots, turned, wide, i4(90)))
    return inputs, [roots, turned, wide]


def library(inputs):
    x = inputs["x"]
    terms = np.stack([x, x / 2, np.full(90, np.finfo(f4).eps, f4)])
    bits = x.view(u4)
    counts = np.unpackbits(bits.view(np.uint8)).reshape(90, 32).sum(1)
    turned = (bits << u4(5) | bits >> u4(27)) ^ counts.astype(u4)
    return [np.sqrt(terms.max(0)), turned, (terms.argmax(0) << 32) + (2**31 - 1) // 2]


def record_shapes(cm, xp, rng):
    inputs = {"kinds": rng.integers(0, 60, 100).astype(i4), "sizes": rng.random((100, 2), f4)}
    areas, corners = xp.zeros(100, dtype=f4), xp.zeros(100, dtype=i4)
    arguments = (xp.asarray(inputs["kinds"]), xp.asarray(inputs["sizes"]), areas, corners, i4(100))
    kernel(cm, "virtual_shapes", "shapes")((4,), (32,), arguments)
    return inputs, [areas, corners]


def shapes(inputs):
    kinds, (a, b) = inputs["kinds"], inputs["sizes"].astype(f8).T
    round_ = kinds % 2 == 0
    return [np.where(round_, np.pi * a * a, a * b), np.where(round_, 0, 4) + 10 * np.gcd(kinds + 12, 18)]


def record_device_state(cm, xp, rng):
    inputs = {"x": rng.integers(0, 100, 64).astype(i4)}
    module = cm.RawModule(code=source("module_state"))
    push, read = module.get_function("push"), module.get_function("read_out")
    x, out = xp.asarray(inputs["x"]), xp.zeros(65, dtype=i4)
    for start in range(0, 64, 16):
        push((1,), (16,), (x, i4(start)))
    read((1,), (64,), (out,))
    return inputs, [xp.sort(out[:64]), out[64]]


def device_state(inputs):
    return [np.sort(inputs["x"]), 64]


def record_portable(cm, xp, rng):
    inputs = {"weights": rng.random(5000), "bins": rng.integers(0, 13, 5000).astype(i4)}
    sums = xp.zeros(13)
    arguments = (xp.asarray(inputs["weights"]), xp.asarray(inputs["bins"]), sums, i4(5000))
    kernel(cm, "portable_source", "bin_weights")((5,), (64,), arguments)
    return inputs, [sums]


def portable(inputs):
    return [np.bincount(inputs["bins"], inputs["weights"], 13)]


def record_macro_scan(cm, xp, rng):
    inputs = {"x": rng.integers(0, 9, (3, 256)).astype(f4)}
    out, totals = xp.zeros((3, 256), dtype=f4), xp.zeros(3, dtype=f4)
    arguments = (xp.asarray(inputs["x"]), out, totals, i4(256))
    kernel(cm, "macro_scan", "exclusive_scan")((3,), (128,), arguments, shared_mem=4 * (256 + 16))
    return inputs, [out, totals]


def macro_scan(inputs):
    x = inputs["x"]
    return [np.cumsum(x, 1) - x, x.sum(1)]


CASES = [
    ("templates", ("templates", "variadics", "lambdas", "if constexpr"), record_templates, templates,
     (1e-12, 1e-12, "contraction")),
    ("name_expressions", ("RawModule", "name expressions", "namespaces"), record_expressions, expressions, EXACT),
    ("constant_memory", ("__constant__", "get_global"), record_constants, constants,
     (1e-5, 1e-5, "single precision")),
    ("module_state", ("__device__ data over launches", "RawModule"), record_device_state, device_state, EXACT),
    ("structures", ("structures", "union", "bit fields"), record_structures, structures, EXACT),
    ("bool_mask", ("bool", "short", "narrow scalars"), record_mask, mask, EXACT),
    ("libcudacxx", ("cuda/std headers",), record_library, library, (1e-7, 0.0, "one root")),
    ("portable_source", ("host headers", "__CUDA_ARCH__", "atomicCAS"), record_portable, portable,
     (1e-12, 0.0, "sums in any order")),
    ("macro_scan", ("__shared__ at file scope", "macros", "extern __shared__"), record_macro_scan, macro_scan, EXACT),
    ("virtual_shapes", ("virtual functions", "recursion"), record_shapes, shapes, (1e-6, 0.0, "one product")),
]  # fmt: skip
