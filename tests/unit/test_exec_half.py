"""Half precision on a CPU: every operation rounds once, and NumPy's float16 (or exact fractions) say to what."""

import os
from fractions import Fraction
from math import frexp

import numpy as np
import pytest

from coppermesh.exec import xp
from coppermesh.exec.cuda_build import build_kernel
from coppermesh.exec.cuda_cpu import CudaCpu
from coppermesh.exec.cuda_toolchain import find_toolchain
from coppermesh.exec.errors import ProgramInvalid
from coppermesh.exec.kernels import ElementwiseKernel, RawKernel
from coppermesh.exec.program import decode_program
from coppermesh.exec.schema import FEATURE_HALF, check_program
from coppermesh.exec.tracing import trace

toolchain = find_toolchain(os.environ.get("COPPERMESH_TEST_COMPILER"))
pytestmark = [
    pytest.mark.skipif(toolchain is None, reason="needs a C++ compiler"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
f2 = np.float16
EVERY = np.arange(1 << 16, dtype=np.uint16).view(f2)
FINITE = EVERY[np.isfinite(EVERY)]
HEAD = '#include <cuda_fp16.h>\nextern "C" __global__ void k('


@pytest.fixture
def run(tmp_path):
    def launch(parameters, body, *arguments):
        cuda = CudaCpu(lambda kernel: build_kernel(kernel, toolchain, tmp_path, tmp_path), threads=2)
        n = arguments[0].size
        index = "int i = blockIdx.x * blockDim.x + threadIdx.x;"
        text = f"{HEAD}{parameters}, int n) {{ {index} if (i < n) {{ {body} }} }}"
        cuda.load(text, "k", ())((n // 256 + 1, 1, 1), (256, 1, 1), 0, [*arguments, np.int32(n)])

    return launch


def same(got, wanted):
    """Equal to the bit; NaN is NaN."""
    both = np.isnan(got) & np.isnan(wanted)
    kind = np.uint16 if got.dtype == f2 else np.uint32
    wrong = (got.view(kind) != wanted.astype(got.dtype).view(kind)) & ~both
    assert not wrong.any(), (np.count_nonzero(wrong), got[wrong][:4], wanted[wrong][:4])


def test_every_half_as_float(run):
    out = np.zeros(EVERY.size, np.float32)
    run("const half* x, float* y", "y[i] = __half2float(x[i]);", EVERY, out)
    same(out, EVERY.astype(np.float32))


@pytest.mark.parametrize("kind", ["float", "double"])
def test_numbers_at_and_beside_every_border_between_two_halves(run, kind):
    wide = np.dtype(f"f{4 if kind == 'float' else 8}").type
    numbers = np.sort(FINITE.astype(wide))
    middles = ((numbers[:-1] + numbers[1:]) / 2).astype(wide)
    beside = [np.nextafter(middles, wide(side), dtype=wide) for side in (np.inf, -np.inf)]
    ends = np.array([65519.996, 65520, 1e30, np.inf, -np.inf, np.nan, 1e-30, -1e-30, 0, -0.0], wide)
    x = np.concatenate([numbers, middles, *beside, ends])
    if kind == "double":
        x = np.concatenate([x, [1e300, 1e-320, -1e-320]])
    out = np.zeros(x.size, f2)
    run(f"const {kind}* x, half* y", f"y[i] = __{kind}2half(x[i]);", x, out)
    same(out, x.astype(f2))


def test_directed_rounding(run):
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.normal(0, 1e-6, 4000), rng.normal(0, 3e4, 4000), [7e4, -7e4, 0, -0.0]]).astype(
        "f4"
    )
    outs = [np.zeros(x.size, f2) for _ in range(3)]
    body = " ".join(f"{name}[i] = __float2half_{name}(x[i]);" for name in ("rd", "ru", "rz"))
    run("const float* x, half* rd, half* ru, half* rz", body, x, *outs)
    near = x.astype(f2)
    down = np.where(near.astype("f4") > x, np.nextafter(near, f2(-np.inf)), near)
    up = np.where(near.astype("f4") < x, np.nextafter(near, f2(np.inf)), near)
    for got, wanted in zip(outs, (down, up, np.where(x > 0, down, up)), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_arithmetic_and_comparisons_are_numpys(run):
    rng = np.random.default_rng(2)
    a, b = (rng.integers(0, 1 << 16, 1 << 17).astype(np.uint16).view(f2) for _ in range(2))
    a[: 1 << 16], b[: 1 << 16] = (rng.normal(0, 2, 1 << 16).astype(f2) for _ in range(2))
    outs = [np.zeros(a.size, f2) for _ in range(7)]
    body = (
        "s[i] = a[i] + b[i]; d[i] = __hsub(a[i], b[i]); p[i] = a[i] * b[i]; q[i] = __hdiv(a[i], b[i]);"
        " r[i] = hsqrt(a[i]); m[i] = __hmax(a[i], b[i]); c[i] = half((a[i] < b[i]) + 2 * __hneu(a[i], b[i])"
        " + 4 * __hge(a[i], b[i]) + 8 * __hisnan(a[i]) + 16 * __hltu(a[i], b[i]));"
    )
    names = ", ".join(f"half* {name}" for name in "sdpqrmc")
    run(f"const half* a, const half* b, {names}", body, a, b, *outs)
    compared = (a < b) + 2 * (a != b) + 4 * (a >= b) + 8 * np.isnan(a) + 16 * ~(a >= b)
    for got, wanted in zip(outs[:5], (a + b, a - b, a * b, a / b, np.sqrt(a)), strict=True):
        same(got, wanted)
    np.testing.assert_array_equal(outs[5], np.fmax(a, b))
    np.testing.assert_array_equal(outs[6], compared.astype(f2))


def nearest_half(exact):
    """A fraction as the half next to it, ties to even."""
    size = abs(exact)
    if not size:
        return 0.0
    unit = max(frexp(float(size))[1] - 11, -24)
    whole = round(size / Fraction(2) ** unit)  # Python rounds fractions to even
    value = float(whole) * 2.0**unit
    return (1 if exact > 0 else -1) * (value if value <= 65504 else np.inf)


def test_products_with_a_sum_round_once(run):
    rng = np.random.default_rng(3)
    a, b, c = (rng.choice(FINITE, 4000) for _ in range(3))
    # Products on the border between two halves, and a little beside it: rounding twice takes them for the border.
    grid = (1 + np.arange(1024) / 1024).astype(f2)
    x, y = (side.ravel() for side in np.meshgrid(grid, grid))
    scaled = np.ldexp(x.astype(float) * y, 10 - (x.astype(float) * y >= 2))
    ties = np.flatnonzero(scaled % 1 == 0.5)
    a, b = np.concatenate([a, x[ties]]), np.concatenate([b, y[ties]])
    c = np.concatenate([c, rng.choice([-1, 1], ties.size).astype(f2) * f2(2.0**-24)])
    out = np.zeros(a.size, f2)
    run(
        "const half* a, const half* b, const half* c, half* y",
        "y[i] = __hfma(a[i], b[i], c[i]);",
        a,
        b,
        c,
        out,
    )
    exact = [
        Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)) for x, y, z in zip(a, b, c, strict=True)
    ]
    want = np.array([nearest_half(value) for value in exact])
    np.testing.assert_array_equal(out.astype(float), want)
    twice = (a.astype(np.float32) * b.astype(np.float32) + c.astype(np.float32)).astype(f2)
    assert np.count_nonzero(twice != want) > 100, "else rounding twice would pass too"


def test_a_program_with_halves_is_sent_to_who_announces_them():
    x, y = xp.asarray(np.ones(4, f2)), xp.zeros(4, dtype=xp.float16)
    assert trace(x[::2].astype(xp.float32)).checked.features == {"array-programs", "float16-arrays"}
    kernel = RawKernel(f"{HEAD}const half* x, half* y) {{ y[0] = x[1]; }}", "k")
    kernel((1,), (1,), (x, y))
    assert trace(y).checked.features == {"array-programs", "float16-arrays", "cuda-source", "cuda-half"}
    with pytest.raises(ProgramInvalid, match=r"x\.astype\(xp\.float32\)"):
        x + x
    with pytest.raises(ProgramInvalid, match="reads __half"):
        kernel((1,), (1,), (xp.zeros(4, dtype="float32"), y))


HALF_CONSTANT = RawKernel('extern "C" __global__ void k(float* o, half v) { o[0] = __half2float(v); }', "k")
NAMED_HALF = ElementwiseKernel("T x, float16 s", "T y", "y = x * float(s)", "named_half")


def _by_a_constant():
    out = xp.zeros(1, dtype=xp.float32)
    HALF_CONSTANT((1,), (1,), (out, np.float16(2.5)))
    return out


@pytest.mark.parametrize(
    "recorded",
    [
        _by_a_constant,
        lambda: NAMED_HALF(xp.asarray(np.ones(3, np.float32)), 2.0),
        lambda: xp.astype(xp.astype(xp.asarray(np.ones(3, np.float32)), np.float16), xp.float32),
    ],
)
def test_a_program_with_halves_anywhere_is_only_for_who_knows_them(recorded):
    checked = check_program(decode_program(trace(recorded()).program))
    assert FEATURE_HALF in checked.features
    plain = check_program(decode_program(trace(xp.asarray(np.ones(3, np.float32)) + 1).program))
    assert FEATURE_HALF not in plain.features
