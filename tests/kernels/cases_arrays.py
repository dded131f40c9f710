"""Cases over grids: images, matrices, stencils."""

from pathlib import Path

import numpy as np

EXACT = (0.0, 0.0, "integers, or the same IEEE operations in the same order")

f4, i4, u1, u4 = np.float32, np.int32, np.uint8, np.uint32


def kernel(cm, file, name, **options):
    return cm.RawKernel((Path(__file__).parent / f"{file}.cu").read_text(), name, **options)


def blocks(lengths, block):
    return tuple(-(-length // size) for length, size in zip(lengths, block, strict=True))


# --- saxpy


def record_grid_stride(cm, xp, rng):
    inputs = {"x": rng.random(10_007, f4), "y": rng.random(10_007, f4)}
    x, y = xp.asarray(inputs["x"]), xp.asarray(inputs["y"])
    kernel(cm, "grid_stride", "saxpy")((7,), (96,), (x, y, f4(2.5), i4(10_007)))
    return inputs, [y]


def saxpy(inputs):
    return [(2.5 * inputs["x"].astype(np.float64) + inputs["y"]).astype(f4)]


# --- three dimensions


def record_grid_3d(cm, xp, rng):
    nz, ny, nx = 5, 11, 19
    inputs = {"field": rng.integers(0, 1000, (nz, ny, nx)).astype(i4)}
    out = xp.zeros((nz, ny, nx), dtype=i4)
    grid = blocks((nx, ny, nz), (8, 4, 2))
    kernel(cm, "grid_3d", "shear")(
        grid, (8, 4, 2), (xp.asarray(inputs["field"]), out, i4(nx), i4(ny), i4(nz))
    )
    return inputs, [out]


def shear(inputs):
    field = inputs["field"]
    rolled = [[np.roll(row, -(y + z)) for y, row in enumerate(plane)] for z, plane in enumerate(field)]
    return [np.array(rolled) + 3]  # three blocks deep


# --- mandelbrot


def record_mandelbrot(cm, xp, rng):
    counts = xp.zeros((60, 90), dtype=i4)
    grid = blocks((90, 60), (16, 16))
    kernel(cm, "mandelbrot", "mandelbrot")(
        grid, (16, 16), (counts, i4(90), i4(60), f4(-2.0), f4(-1.0), f4(1 / 30))
    )
    return {}, [counts]


def mandelbrot(inputs):
    x, y = np.meshgrid(-2.0 + np.arange(90) / 30, -1.0 + np.arange(60) / 30)
    c = x + 1j * y
    z, counts = np.zeros_like(c), np.zeros(c.shape, i4)
    with np.errstate(all="ignore"):
        for _ in range(64):
            inside = np.abs(z) <= 2.0
            counts += inside
            z = np.where(inside, z * z + c, z)
    return [counts]


# --- Game of Life


def record_life(cm, xp, rng):
    inputs = {"cells": rng.integers(0, 2, (37, 53)).astype(u1)}
    now, after = xp.asarray(inputs["cells"]), xp.zeros((37, 53), dtype=u1)
    step = kernel(cm, "life", "generation")
    for _ in range(4):
        step(blocks((53, 37), (16, 8)), (16, 8), (now, after, i4(53), i4(37)))
        now, after = after, now
    return inputs, [now]


def life(inputs):
    cells = inputs["cells"].astype(int)
    for _ in range(4):
        alive = sum(
            np.roll(cells, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)
        )
        cells = ((alive == 3) | ((alive == 2) & (cells == 1))).astype(int)
    return [cells]


# --- heat


def record_heat(cm, xp, rng):
    inputs = {"plate": rng.random((45, 70), f4)}
    now, after = xp.asarray(inputs["plate"]), xp.zeros((45, 70), dtype=f4)
    step = kernel(cm, "heat_2d", "heat")
    for _ in range(6):
        step(blocks((70, 45), (16, 16)), (16, 16), (now, after, i4(70), i4(45), f4(0.2)))
        now, after = after, now
    return inputs, [now]


def heat(inputs):
    plate = inputs["plate"].astype(np.float64)
    for _ in range(6):
        edged = np.pad(plate, 1, mode="edge")
        around = edged[:-2, 1:-1] + edged[2:, 1:-1] + edged[1:-1, :-2] + edged[1:-1, 2:]
        plate += 0.2 * (around - 4 * plate)
    return [plate]


# --- Sobel


def record_sobel(cm, xp, rng):
    inputs = {"image": rng.integers(0, 256, (41, 67)).astype(u1)}
    gradient, edge = xp.zeros((41, 67, 2), dtype=np.int16), xp.zeros((41, 67), dtype=u1)
    kernel(cm, "sobel", "sobel")(
        blocks((67, 41), (16, 16)), (16, 16), (xp.asarray(inputs["image"]), gradient, edge, i4(67), i4(41))
    )
    return inputs, [gradient, edge]


def sobel(inputs):
    image = np.pad(inputs["image"].astype(int), 1, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(image, (3, 3))
    across = np.outer([1, 2, 1], [-1, 0, 1])
    gx, gy = np.einsum("yxij,ij->yx", windows, across), np.einsum("yxij,ij->yx", windows, across.T)
    return [np.stack([gx, gy], -1), np.minimum(np.abs(gx) + np.abs(gy), 255)]


# --- blur


def record_blur(cm, xp, rng):
    inputs = {"image": rng.random((33, 50, 4), f4)}
    between, out = xp.zeros((33, 50, 4), dtype=f4), xp.zeros((33, 50, 4), dtype=f4)
    grid, block = blocks((50, 33), (16, 8)), (16, 8)
    kernel(cm, "gaussian_blur", "blur_rows")(
        grid, block, (xp.asarray(inputs["image"]), between, i4(50), i4(33))
    )
    kernel(cm, "gaussian_blur", "blur_columns")(grid, block, (between, out, i4(50), i4(33)))
    return inputs, [out]


def blur(inputs):
    weights = np.array([1, 6, 15, 20, 15, 6, 1]) / 64
    image = np.pad(inputs["image"].astype(np.float64), ((3, 3), (3, 3), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(image, (7, 7), (0, 1))
    return [np.einsum("yxcij,i,j->yxc", windows, weights, weights)]


# --- transpose and matrix product


def record_transpose(cm, xp, rng):
    inputs = {"matrix": rng.random((75, 101))}
    out = xp.zeros((101, 75))
    kernel(cm, "transpose", "transpose")(
        blocks((101, 75), (32, 32)), (32, 8), (xp.asarray(inputs["matrix"]), out, i4(101), i4(75))
    )
    return inputs, [out]


def record_matmul(cm, xp, rng):
    inputs = {"a": rng.random((50, 77), f4), "b": rng.random((77, 65), f4)}
    c = xp.zeros((50, 65), dtype=f4)
    arguments = (xp.asarray(inputs["a"]), xp.asarray(inputs["b"]), c, i4(50), i4(77), i4(65))
    kernel(cm, "matmul_tiled", "matmul")(blocks((65, 50), (16, 16)), (16, 16), arguments)
    return inputs, [c]


def matmul(inputs):
    return [inputs["a"].astype(np.float64) @ inputs["b"]]


def record_matvec(cm, xp, rng):
    inputs = {"matrix": rng.random((61, 143), f4), "x": rng.random(143, f4)}
    y = xp.zeros(61, dtype=f4)
    arguments = (xp.asarray(inputs["matrix"]), xp.asarray(inputs["x"]), y, i4(61), i4(143))
    kernel(cm, "matvec_warp", "matvec")((16,), (32, 4), arguments)
    return inputs, [y]


def matvec(inputs):
    return [inputs["matrix"].astype(np.float64) @ inputs["x"]]


# --- convolutions


def record_convolution(cm, xp, rng):
    inputs = {"image": rng.integers(-100, 100, (45, 39)).astype(i4)}
    out = xp.zeros((45, 39), dtype=i4)
    kernel(cm, "convolution_2d", "convolve")(
        blocks((39, 45), (16, 16)), (16, 16), (xp.asarray(inputs["image"]), out, i4(39), i4(45))
    )
    return inputs, [out]


def convolution(inputs):
    stencil = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1])
    stencil[2, 2] = -476
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(inputs["image"], 2), (5, 5))
    return [(windows * stencil).sum((2, 3))]


def record_stencil(cm, xp, rng):
    inputs = {"line": rng.random(1000)}
    out = xp.zeros(1000)
    kernel(cm, "stencil_1d", "smooth")((11,), (96,), (xp.asarray(inputs["line"]), out, i4(1000)))
    return inputs, [out]


def stencil(inputs):
    return [np.mean([np.roll(inputs["line"], shift) for shift in range(-4, 5)], 0)]


def record_correlation(cm, xp, rng):
    inputs = {"signal": rng.standard_normal(700).astype(f4), "taps": rng.standard_normal(17).astype(f4)}
    out = xp.zeros(684, dtype=f4)
    arguments = (xp.asarray(inputs["signal"]), xp.asarray(inputs["taps"]), out, i4(700))
    kernel(cm, "cross_correlation", "correlate")((6,), (128,), arguments)
    return inputs, [out]


def correlation(inputs):
    return [np.correlate(inputs["signal"].astype(np.float64), inputs["taps"], "valid")]


# --- DCT


def record_dct(cm, xp, rng):
    inputs = {"image": rng.random((40, 56), f4)}
    out = xp.zeros((40, 56), dtype=f4)
    kernel(cm, "dct_8x8", "dct")((7, 5), (8, 8), (xp.asarray(inputs["image"]), out, i4(56)))
    return inputs, [out]


def dct(inputs):
    k = np.arange(8)
    basis = np.cos(np.pi * np.outer(k, 2 * k + 1) / 16) * np.where(k == 0, np.sqrt(1 / 8), 0.5)[:, None]
    tiles = inputs["image"].reshape(5, 8, 7, 8).astype(np.float64)
    return [np.einsum("ui,aibj,vj->aubv", basis, tiles, basis).reshape(40, 56)]


ROUNDED = (2e-5, 1e-6, "single precision; a GPU contracts a*b+c, the oracle is double")
CASES = [
    (
        "grid_stride",
        ("grid-stride", "restrict"),
        record_grid_stride,
        saxpy,
        (3e-7, 0.0, "one contraction or none"),
    ),
    ("grid_3d", ("3-d grid", "dim3"), record_grid_3d, shear, EXACT),
    (
        "mandelbrot",
        ("2-d grid", "divergence", "operators"),
        record_mandelbrot,
        mandelbrot,
        (0.0, 0.0, "orbits of single precision leave the oracle's near the edge", 0.02),
    ),
    ("life", ("bytes", "ping-pong"), record_life, life, EXACT),
    ("heat_2d", ("shared tile", "halo", "lambda"), record_heat, heat, ROUNDED),
    ("sobel", ("short2", "saturation"), record_sobel, sobel, EXACT),
    ("gaussian_blur", ("float4", "constexpr", "template bool"), record_blur, blur, ROUNDED),
    (
        "transpose",
        ("shared tile", "32x8 block"),
        record_transpose,
        lambda inputs: [inputs["matrix"].T],
        EXACT,
    ),
    ("matmul_tiled", ("shared tile", "template int", "barriers in a loop"), record_matmul, matmul, ROUNDED),
    ("matvec_warp", ("warp per row", "shfl_xor"), record_matvec, matvec, ROUNDED),
    ("convolution_2d", ("shared apron", "constant memory"), record_convolution, convolution, EXACT),
    (
        "stencil_1d",
        ("shared halo", "double"),
        record_stencil,
        stencil,
        (1e-14, 0.0, "sums in another order"),
    ),
    (
        "cross_correlation",
        ("shared window", "fmaf"),
        record_correlation,
        correlation,
        (1e-5, 1e-5, "single precision with cancellation"),
    ),
    ("dct_8x8", ("8x8 blocks", "constant table"), record_dct, dct, (1e-5, 2e-6, "single precision")),
]
