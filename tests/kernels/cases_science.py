"""Cases of numerical work: physics, linear algebra, statistics, networks."""

import math
from pathlib import Path

import numpy as np

f4, f8, i4, u8 = np.float32, np.float64, np.int32, np.uint64


def kernel(cm, file, name, **options):
    return cm.RawKernel((Path(__file__).parent / f"{file}.cu").read_text(), name, **options)


def record_nbody(cm, xp, rng):
    inputs = {"bodies": rng.standard_normal((150, 4)).astype(f4)}
    inputs["bodies"][:, 3] = rng.random(150, f4)
    result = xp.zeros((150, 3), dtype=f4)
    kernel(cm, "nbody", "accelerations")(
        (3,), (64,), (xp.asarray(inputs["bodies"]), result, i4(150), f4(0.01))
    )
    return inputs, [result]


def nbody(inputs):
    place, mass = inputs["bodies"][:, :3].astype(f8), inputs["bodies"][:, 3].astype(f8)
    away = place[None] - place[:, None]
    distance = np.sqrt((away**2).sum(-1) + f4(0.01))
    return [np.einsum("ij,ijk->ik", mass / distance**3, away)]


def record_ray(cm, xp, rng):
    light = xp.zeros((48, 64), dtype=f4)
    kernel(cm, "ray_spheres", "trace")((4, 6), (16, 8), (light, i4(64), i4(48)))
    return {}, [light]


def ray(inputs):
    centres = np.array([[0, 0, 3], [1.2, 0.3, 2.5], [-1.1, -0.4, 2.2]])
    radii, albedo = np.array([1.0, 0.5, 0.4]), np.array([0.9, 0.6, 0.3])

    def unit(v):
        return v / np.linalg.norm(v, axis=-1, keepdims=True)

    x, y = np.meshgrid((np.arange(64) + 0.5) / 64 - 0.5, (np.arange(48) + 0.5) / 48 - 0.5)
    towards = unit(np.stack([x, y, np.full_like(x, 0.6)], -1)).reshape(-1, 3)
    start = np.zeros_like(towards)
    sun = unit(np.array([0.5, -1.0, -0.7]))
    light, weight, alive = np.zeros(len(start)), 1.0, np.ones(len(start), bool)
    for _ in range(2):
        offset = centres - start[:, None]
        along = np.einsum("rsk,rk->rs", offset, towards)
        room = radii**2 - ((offset**2).sum(-1) - along**2)
        distance = np.where(room > 0, along - np.sqrt(np.maximum(room, 0)), np.inf)
        distance = np.where(distance > 1e-3, distance, np.inf)
        which, nearest = distance.argmin(1), distance.min(1)
        hit = alive & np.isfinite(nearest)
        light += np.where(alive & ~hit, weight * 0.1, 0)
        place = start + np.where(hit, nearest, 0)[:, None] * towards
        normal = unit(place - centres[which])
        light += np.where(hit, weight * albedo[which] * np.maximum(0, normal @ sun), 0)
        towards = towards - 2 * (towards * normal).sum(-1, keepdims=True) * normal
        start, weight, alive = place, weight / 2, hit
    return [light]


def record_spmv(cm, xp, rng):
    rows = 60
    lengths = rng.integers(0, 80, rows)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(i4)
    inputs = {"starts": starts, "columns": rng.integers(0, 100, starts[-1]).astype(i4)}
    inputs |= {"values": rng.standard_normal(starts[-1]), "x": rng.standard_normal(100)}
    y = xp.zeros(rows)
    arguments = [xp.asarray(inputs[name]) for name in ("starts", "columns", "values", "x")]
    kernel(cm, "spmv_csr", "spmv")((15,), (128,), (*arguments, y, i4(rows)))
    return inputs, [y]


def spmv(inputs):
    rows = np.repeat(np.arange(60), np.diff(inputs["starts"]))
    dense = np.zeros((60, 100))
    np.add.at(dense, (rows, inputs["columns"]), inputs["values"])
    return [dense @ inputs["x"]]


def record_jacobi(cm, xp, rng):
    n = 50
    inputs = {"matrix": rng.standard_normal((n, n)) + n * np.eye(n), "right": rng.standard_normal(n)}
    now, after = xp.zeros(n), xp.zeros(n)
    matrix, right = xp.asarray(inputs["matrix"]), xp.asarray(inputs["right"])
    sweep = kernel(cm, "jacobi", "sweep")
    for _ in range(40):
        sweep((2,), (32,), (matrix, right, now, after, i4(n)))
        now, after = after, now
    return inputs, [now]


def record_fft(cm, xp, rng):
    signal = rng.standard_normal((5, 256)) + 1j * rng.standard_normal((5, 256))
    inputs = {"signal": signal.astype(np.complex64)}
    out = xp.zeros((5, 256), dtype=np.complex64)
    kernel(cm, "fft_radix2", "fft")((5,), (96,), (xp.asarray(inputs["signal"]), out))
    return inputs, [out]


def record_softmax(cm, xp, rng):
    inputs = {"logits": (rng.standard_normal((9, 300)) * 5).astype(f4)}
    out = xp.zeros((9, 300), dtype=f4)
    kernel(cm, "softmax", "softmax")(
        (9,), (128,), (xp.asarray(inputs["logits"]), out, i4(300)), shared_mem=512
    )
    return inputs, [out]


def softmax(inputs):
    weights = np.exp(inputs["logits"].astype(f8))
    return [weights / weights.sum(1, keepdims=True)]


def record_layer_norm(cm, xp, rng):
    inputs = {"x": (rng.standard_normal((7, 200)) * 3 + 10).astype(f4)}
    inputs |= {"gain": rng.random(200, f4), "bias": rng.random(200, f4)}
    out = xp.zeros((7, 200), dtype=f4)
    arguments = [xp.asarray(inputs[name]) for name in ("x", "gain", "bias")]
    kernel(cm, "layer_norm", "layer_norm")((7,), (128,), (*arguments, out, i4(200)))
    return inputs, [out]


def layer_norm(inputs):
    x = inputs["x"].astype(f8)
    scaled = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    return [scaled * inputs["gain"] + inputs["bias"]]


def record_attention(cm, xp, rng):
    inputs = {name: rng.standard_normal((75, 16)).astype(f4) for name in "qkv"}
    out = xp.zeros((75, 16), dtype=f4)
    arguments = [xp.asarray(inputs[name]) for name in "qkv"]
    kernel(cm, "attention", "attention")((3,), (32,), (*arguments, out, i4(75)), shared_mem=2 * 32 * 16 * 4)
    return inputs, [out]


def attention(inputs):
    q, k, v = (inputs[name].astype(f8) for name in "qkv")
    weights = np.exp(q @ k.T / 4)
    return [weights @ v / weights.sum(1, keepdims=True)]


def record_kmeans(cm, xp, rng):
    n = 700
    inputs = {"points": rng.random((n, 2), f4), "centres": rng.random((7, 2), f4)}
    nearest, sizes = xp.zeros(n, dtype=i4), xp.zeros(7, dtype=i4)
    sums = xp.zeros((7, 2), dtype=np.int64)
    arguments = (xp.asarray(inputs["points"]), xp.asarray(inputs["centres"]), nearest, sizes, sums, i4(n))
    kernel(cm, "kmeans_assign", "assign")((6,), (128,), arguments)
    return inputs, [nearest, sizes, sums]


def kmeans(inputs):
    points = inputs["points"].astype(f8)
    nearest = np.linalg.norm(points[:, None] - inputs["centres"], axis=2).argmin(1)
    fixed = np.rint(points * 2**20).astype(np.int64)
    sums = np.zeros((7, 2), np.int64)
    np.add.at(sums, nearest, fixed)
    return [nearest, np.bincount(nearest, minlength=7), sums]


def record_options(cm, xp, rng):
    inputs = {"given": (rng.random((400, 3)) * [50, 50, 2] + [60, 60, 0.2]).astype(f4)}
    prices = xp.zeros((400, 2), dtype=f4)
    kernel(cm, "black_scholes", "options")(
        (4,), (128,), (xp.asarray(inputs["given"]), prices, f4(0.03), f4(0.25), i4(400))
    )
    return inputs, [prices]


def options(inputs):
    spot, strike, years = inputs["given"].astype(f8).T
    rate, volatility = f8(f4(0.03)), f8(f4(0.25))
    spread = volatility * np.sqrt(years)
    d1 = (np.log(spot / strike) + (rate + volatility**2 / 2) * years) / spread
    normal = np.vectorize(lambda x: 0.5 * math.erfc(-x / math.sqrt(2)))
    discounted = strike * np.exp(-rate * years)
    call = spot * normal(d1) - discounted * normal(d1 - spread)
    return [np.stack([call, call + discounted - spot], 1)]


def record_kahan(cm, xp, rng):
    inputs = {"rows": rng.standard_normal((30, 200)) * 10.0 ** rng.integers(-8, 9, (30, 200))}
    sums, lengths = xp.zeros(30), xp.zeros(30)
    kernel(cm, "kahan_double", "norms")(
        (1,), (32,), (xp.asarray(inputs["rows"]), sums, lengths, i4(200), i4(30))
    )
    return inputs, [sums, lengths]


def kahan(inputs):
    rows = inputs["rows"].tolist()
    return [[math.fsum(row) for row in rows], [math.hypot(*row) for row in rows]]


def record_monte_carlo(cm, xp, rng):
    inside = xp.zeros(1, dtype=u8)
    kernel(cm, "monte_carlo", "hits")((6,), (64,), (inside, i4(100), np.uint32(12345)))
    return {}, [inside]


def monte_carlo(inputs):
    mask = 0xFFFFFFFF
    seed = 12345 + np.arange(384, dtype=np.int64)
    a, b, c, d = seed ^ 0x9E3779B9, seed + 1, np.full(384, 362436069), np.zeros(384, np.int64)

    def following():
        nonlocal a, b, c, d
        t = a ^ (a >> 2)
        a, b = b, c
        c = ((c ^ (c << 4)) ^ (t ^ (t << 1))) & mask
        d = (d + 362437) & mask
        return (c + d) & mask

    for _ in range(8):
        following()
    inside = 0
    for _ in range(100):
        x, y = following() >> 16, following() >> 16
        inside += np.count_nonzero(x * x + y * y < 65536**2)
    return [inside]


def record_mathematics(cm, xp, rng):
    inputs = {"x": np.concatenate([rng.random(90) * 3.9 + 0.05, [0.25, 0.5, 1.0, 1.5, 2.0, 2.25]])}
    out = xp.zeros((12, 96))
    kernel(cm, "mathematics", "functions")((2,), (64,), (xp.asarray(inputs["x"]), out, i4(96)))
    return inputs, [out]


def mathematics(inputs):
    x = inputs["x"]
    turns = np.round(2 * x)
    angle, quadrant = np.pi * (x - turns / 2), turns.astype(int) % 4
    sine = np.choose(quadrant, [np.sin(angle), np.cos(angle), -np.sin(angle), -np.cos(angle)])
    cosine = np.choose(quadrant, [np.cos(angle), -np.sin(angle), -np.cos(angle), np.sin(angle)])
    normal = [0.5 * math.erfc((1 - v) / math.sqrt(2)) for v in x]
    inverse = [bisected(math.erf, v / 4, 0.0, 6.0) for v in x]
    mantissa, exponent = np.frexp(x)
    fraction, whole = np.modf(x)
    return [
        [
            sine, cosine, 1 / np.sqrt(x), 1 / np.cbrt(x), normal, inverse, np.sqrt(x**2 + 5), 1 / np.hypot(x, 3),
            10**x, mantissa + exponent, fraction + 8 * whole, np.i0(x),
        ]
    ]  # fmt: skip


def bisected(function, wanted, low, high):
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < wanted else (low, middle)
    return low


EXACT = (0.0, 0.0, "integers")
CASES = [
    ("nbody", ("shared float4 tiles", "rsqrtf"), record_nbody, nbody, (1e-4, 1e-3, "single precision sums")),
    (
        "ray_spheres",
        ("structures in constant memory", "float3 operators"),
        record_ray,
        ray,
        (1e-3, 1e-4, "single precision; rays that graze an edge may miss it", 0.02),
    ),
    ("spmv_csr", ("warp per row", "shfl_down", "double"), record_spmv, spmv, (1e-12, 1e-12, "another order")),
    (
        "jacobi",
        ("double", "40 launches"),
        record_jacobi,
        lambda inputs: [np.linalg.solve(inputs["matrix"], inputs["right"])],
        (1e-10, 1e-13, "converged to the solution"),
    ),
    (
        "fft_radix2",
        ("float2", "__brev", "barrier per stage", "odd block"),
        record_fft,
        lambda inputs: [np.fft.fft(inputs["signal"].astype(np.complex128))],
        (1e-5, 2e-5, "single precision, eight stages"),
    ),
    ("softmax", ("dynamic shared memory", "functors"), record_softmax, softmax, (2e-5, 1e-9, "__expf")),
    ("layer_norm", ("Welford by shuffles",), record_layer_norm, layer_norm, (1e-4, 1e-5, "cancellation")),
    (
        "attention",
        ("online softmax", "dynamic shared memory"),
        record_attention,
        attention,
        (2e-5, 2e-6, "float"),
    ),
    (
        "kmeans_assign",
        ("shared atomics", "fixed point"),
        record_kmeans,
        kmeans,
        EXACT,
    ),
    (
        "black_scholes",
        ("normcdff", "structures by value"),
        record_options,
        options,
        (1e-4, 1e-4, "cancellation"),
    ),
    ("kahan_double", ("double", "compensated sums"), record_kahan, kahan, (1e-14, 1e-9, "compensated")),
    ("monte_carlo", ("class with operator()", "64-bit atomics"), record_monte_carlo, monte_carlo, EXACT),
    ("mathematics", ("double functions",), record_mathematics, mathematics, (2e-14, 1e-15, "a few ulps")),
]
