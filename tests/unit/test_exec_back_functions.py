"""CUDA's functions and intrinsics on the CPU, against Python's mathematics in double precision and exact integers.

One kernel holds all calls of a kind, so that each kind is compiled once. Where Python has no such function the oracle
is its definition: a series or a continued fraction in `decimal`, or an inverse by bisection.
"""

import math
import os
from decimal import Decimal, getcontext
from fractions import Fraction

import numpy as np
import pytest

from coppermesh.exec.cuda_build import build_kernel
from coppermesh.exec.cuda_cpu import CudaCpu
from coppermesh.exec.cuda_gate import HEADERS, SHIM
from coppermesh.exec.cuda_toolchain import find_toolchain
from coppermesh.exec.errors import KernelCompileError

toolchain = find_toolchain(os.environ.get("COPPERMESH_TEST_COMPILER"))
pytestmark = pytest.mark.skipif(toolchain is None, reason="needs a C++ compiler")

f4, f8, i4, i8, u4, u8 = np.float32, np.float64, np.int32, np.int64, np.uint32, np.uint64
getcontext().prec = 60
PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("functions")
    builds = iter(range(1000))

    def build(kernel):
        directory = root / str(next(builds))
        directory.mkdir()
        return build_kernel(kernel, toolchain, directory, root)

    cuda = CudaCpu(build, threads=1)

    def launch(body, *arguments, parameters, before=""):
        source = f'{before}\nextern "C" __global__ void k({parameters}) {{\n{body}\n}}'
        cuda.load(source, "k", ())((1, 1, 1), (1, 1, 1), 0, list(arguments))

    return launch


# --- definitions


def exact_erfcx(x):
    """exp(x^2) erfc(x) by erf's series 7.1.6, or by the continued fraction 7.1.14 where it converges fast."""
    x = Decimal(x)
    if x > 3:
        fraction = x
        for k in range(400, 0, -1):
            fraction = x + Decimal(k) / 2 / fraction
        return float(1 / (PI.sqrt() * fraction))
    term = total = x
    for k in range(1, 400):
        term *= 2 * x * x / (2 * k + 1)
        total += term
    return float((x * x).exp() - 2 * total / PI.sqrt())


def exact_bessel(order):
    def value(x):
        x = Decimal(x)
        term = total = x / 2 if order else Decimal(1)
        for k in range(1, 400):
            term *= x * x / 4 / (k * (k + order))
            total += term
        return float(total)

    return value


def exact_normal(x):
    return (
        exact_erfcx(-x / math.sqrt(2)) * 0.5 * math.exp(-x * x / 2)
        if x < -3
        else math.erfc(-x / math.sqrt(2)) / 2
    )


def bisected(function, wanted, low, high):
    """Where the rising `function` has the value `wanted`."""
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if function(middle) < wanted else (low, middle)
    return low


def exact_turn(function, quarter):
    def value(x):
        x = Fraction(x) % 2
        near = round(2 * x)
        angle = math.pi * float(x - Fraction(near, 2))
        return [math.sin, math.cos, lambda a: -math.sin(a), lambda a: -math.cos(a)][(near + quarter) % 4](
            angle
        )

    return value


def bessel_j(order):
    # The trapezoidal rule is exact to rounding for a periodic integrand.
    angle = np.arange(400) * (2 * np.pi / 400)
    return lambda x: float(np.mean(np.cos(order * angle - x * np.sin(angle))))


SMALL, POSITIVE, WIDE = np.linspace(-0.95, 0.95, 39), np.geomspace(0.01, 90, 60), np.linspace(-20, 20, 81)
# Name, oracle, arguments, units in the last place (of double precision), absolute error.
UNARY = [
    ("acos", math.acos, SMALL, 2, 0), ("acosh", math.acosh, 1 + POSITIVE, 4, 0), ("asin", math.asin, SMALL, 2, 0),
    ("asinh", math.asinh, WIDE, 4, 0), ("atan", math.atan, WIDE, 2, 0), ("atanh", math.atanh, SMALL, 4, 0),
    ("cbrt", lambda x: math.copysign(abs(x) ** (1 / 3), x), WIDE, 4, 0), ("ceil", math.ceil, WIDE, 0, 0),
    ("cos", math.cos, WIDE, 2, 0), ("cosh", math.cosh, WIDE, 3, 0), ("cospi", exact_turn(math.cos, 1), WIDE, 3, 0),
    ("cyl_bessel_i0", exact_bessel(0), np.linspace(-60, 60, 41), 8, 0),
    ("cyl_bessel_i1", exact_bessel(1), np.linspace(0.1, 60, 41), 8, 0),
    ("erf", math.erf, SMALL * 4, 2, 0), ("erfc", math.erfc, SMALL * 6, 8, 0),
    ("erfcinv", lambda x: bisected(lambda y: -math.erfc(y), -x, -6, 30), np.geomspace(1e-290, 1.9, 60), 60, 1e-16),
    ("erfcx", exact_erfcx, np.linspace(-5, 40, 91), 10, 0),
    ("erfinv", lambda x: bisected(math.erf, x, -6, 6), SMALL, 20, 1e-50),
    ("exp", math.exp, WIDE, 2, 0), ("exp10", lambda x: 10.0**x, WIDE, 4, 0), ("exp2", lambda x: 2.0**x, WIDE, 2, 0),
    ("expm1", math.expm1, SMALL, 2, 0), ("fabs", math.fabs, WIDE, 0, 0), ("floor", math.floor, WIDE, 0, 0),
    ("j0", bessel_j(0), WIDE, 0, 2e-15), ("j1", bessel_j(1), WIDE, 0, 2e-15),
    ("lgamma", math.lgamma, POSITIVE, 8, 2e-15), ("log", math.log, POSITIVE, 2, 0),
    ("log10", math.log10, POSITIVE, 3, 0), ("log1p", math.log1p, POSITIVE, 2, 0), ("log2", math.log2, POSITIVE, 3, 0),
    ("logb", lambda x: math.frexp(x)[1] - 1, POSITIVE, 0, 0),
    ("nearbyint", round, WIDE, 0, 0), ("normcdf", exact_normal, np.linspace(-36, 6, 85), 12, 0),
    ("normcdfinv", lambda x: bisected(exact_normal, x, -38, 10), np.geomspace(1e-280, 0.99, 50), 60, 2e-16),
    ("rcbrt", lambda x: x ** (-1 / 3), POSITIVE, 6, 0), ("rint", round, WIDE, 0, 0),
    ("round", lambda x: math.copysign(math.floor(abs(x) + 0.5), x), WIDE, 0, 0),
    ("rsqrt", lambda x: 1 / math.sqrt(x), POSITIVE, 1, 0), ("sin", math.sin, WIDE, 2, 0),
    ("sinh", math.sinh, WIDE, 3, 0), ("sinpi", exact_turn(math.sin, 0), WIDE, 3, 0),
    ("sqrt", math.sqrt, POSITIVE, 0, 0),
    ("tan", math.tan, WIDE, 3, 0), ("tanh", math.tanh, WIDE, 3, 0),
    ("tgamma", math.gamma, POSITIVE, 12, 0), ("trunc", math.trunc, WIDE, 0, 0),
]  # fmt: skip


def call_all(run, names, arguments, kind, typename):
    """Row by row, `name(x)` for that row's arguments."""
    width = max(map(len, arguments))
    grid = np.ones((len(names), width), kind)
    for row, values in zip(grid, arguments, strict=True):
        row[: len(values)] = values
    out = np.empty_like(grid)
    lines = [
        f"for (int i = 0; i < {width}; i++) out[{row} * {width} + i] = {name}(x[{row} * {width} + i]);"
        for row, name in enumerate(names)
    ]
    run("\n".join(lines), grid, out, parameters=f"const {typename}* x, {typename}* out")
    return [row[: len(values)] for row, values in zip(out, arguments, strict=True)]


def test_functions_of_one_number_in_double_precision(run):
    results = call_all(run, [row[0] for row in UNARY], [row[2] for row in UNARY], f8, "double")
    for (name, oracle, arguments, ulps, absolute), got in zip(UNARY, results, strict=True):
        expected = np.array([oracle(float(x)) for x in arguments])
        rtol = ulps * 2.0**-52
        np.testing.assert_allclose(got, expected, rtol=rtol, atol=absolute, err_msg=name)


def test_functions_of_one_number_in_single_precision(run):
    # CUDA's own bounds are 1 to 10 units (Programming Guide, mathematical functions); these are closer.
    arguments = [row[2].astype(f4) for row in UNARY]
    arguments = [x[np.abs(x) > 1e-30] for x in arguments]
    for names in ([row[0] for row in UNARY], [f"{row[0]}f" for row in UNARY]):
        results = call_all(run, names, arguments, f4, "float")
        for (name, oracle, _, _, _), x, got in zip(UNARY, arguments, results, strict=True):
            with np.errstate(over="ignore", under="ignore"):
                expected = np.array([oracle(float(v)) for v in x]).astype(f4)
            noise = 4e-6 if name in ("j0", "j1", "lgamma") else 1e-42
            np.testing.assert_allclose(got, expected, rtol=5e-7, atol=noise, err_msg=name)


BINARY = {
    "atan2": math.atan2, "copysign": math.copysign, "fdim": lambda x, y: max(x - y, 0.0), "fmax": max, "fmin": min,
    "fmod": math.fmod, "hypot": math.hypot, "max": max, "min": min, "nextafter": math.nextafter,
    "pow": lambda x, y: abs(x) ** y, "remainder": math.remainder, "rhypot": lambda x, y: 1 / math.hypot(x, y),
    "fdivide": lambda x, y: x / y,
}  # fmt: skip


def test_functions_of_two_numbers(run):
    x, y = np.linspace(-7, 9, 50), np.linspace(3, -2.5, 50)
    lines = []
    for row, name in enumerate(BINARY):
        first = "fabs(x[i])" if name == "pow" else "x[i]"
        lines.append(f"out[{row} * 50 + i] = {name}({first}, y[i]);")
    for kind, typename, rtol in ((f8, "double", 1e-15), (f4, "float", 3e-7)):
        a, b, out = x.astype(kind), y.astype(kind), np.empty((len(BINARY), 50), kind)
        if kind is f4:
            lines = [
                line.replace("nextafter(", "nextafterf(").replace("fdivide(", "fdividef(") for line in lines
            ]
        run(f"for (int i = 0; i < 50; i++) {{\n{chr(10).join(lines)}\n}}", a, b, out,
            parameters=f"const {typename}* x, const {typename}* y, {typename}* out")  # fmt: skip
        for (name, oracle), got in zip(BINARY.items(), out, strict=True):
            if name == "nextafter":
                expected = [np.nextafter(kind(v), kind(w)) for v, w in zip(a, b, strict=True)]
            else:
                expected = [oracle(float(v), float(w)) for v, w in zip(a, b, strict=True)]
            np.testing.assert_allclose(got, expected, rtol=rtol, atol=1e-7 if kind is f4 else 0, err_msg=name)


def test_functions_with_several_results_and_special_values(run):
    out = np.zeros(64)
    body = """
    double s, c, whole; float sf, cf, wf; int e, q; int n = 0;
    const double inf = 1.0 / zero[0], nan = inf - inf; const float inff = (float)inf, nanf_ = (float)nan;
    const double v[4] = {1e200, -2e200, 2e200, 4e200}; const float w[3] = {3e30f, 4e30f, 0.0f};
    sincos(0.7, &s, &c); out[n++] = s; out[n++] = c;  sincosf(0.7f, &sf, &cf); out[n++] = sf; out[n++] = cf;
    sincospi(-1.5, &s, &c); out[n++] = s; out[n++] = c;  sincospif(2.25f, &sf, &cf); out[n++] = sf; out[n++] = cf;
    out[n++] = modf(-2.75, &whole); out[n++] = whole;  out[n++] = frexp(10.0f, &e); out[n++] = e;
    out[n++] = remquo(7.5, 2.0, &q); out[n++] = q;  out[n++] = ldexp(0.75f, 4); out[n++] = scalbln(3.0, -2L);
    out[n++] = ilogb(9.0f); out[n++] = lround(-2.5); out[n++] = llrint(2.5f);
    out[n++] = norm(4, v); out[n++] = norm3d(3e-200, 4e-200, 12e-200); out[n++] = norm4d(1, 2, 4, 10);
    out[n++] = normf(3, w); out[n++] = rnorm3d(2, 3, 6); out[n++] = rnorm4df(1, 2, 4, 10); out[n++] = rnorm(2, v + 2);
    out[n++] = norm3d(nan, inf, 1); out[n++] = norm3d(0, 0, 0);
    out[n++] = erfinv(1.0) == inf; out[n++] = isnan(erfinv(1.5)); out[n++] = erfcinv(2.0) == -inf;
    out[n++] = normcdfinv(0.0) == -inf; out[n++] = normcdfinv(0.5); out[n++] = normcdf(-40.0);
    out[n++] = normcdf(9.0f);
    out[n++] = isnan(sinpi(inf)); out[n++] = signbit(sinpif(-3.0f)); out[n++] = cospi(1e300);
    out[n++] = erfcx(-30.0) == inf; out[n++] = isnan(cyl_bessel_i0(nan)); out[n++] = rsqrtf(0.0f) == inff;
    out[n++] = fminf(nanf_, 3.0f); out[n++] = fmax(4.0, nan); out[n++] = max(2.0f, nanf_);
    out[n++] = isnan(__powf(-8.0f, 3.0f)); out[n++] = pow(-8.0, 3); out[n++] = pow(2.0f, 5);
    out[n++] = umax(1u, 4294967295u) == 4294967295u; out[n++] = llmin(-5, 4); out[n++] = min(1, 2u);
    out[n++] = abs(-7LL); out[n++] = __saturatef(nanf_); out[n++] = __saturatef(1.5f); out[n++] = jn(2, 1.5);
    out[n++] = y1(1.5) * j0(1.5) - y0(1.5) * j1(1.5);
    """
    run(body, np.zeros(1), out, parameters="const double* zero, double* out")
    half = math.sqrt(0.5)
    expected = [
        math.sin(0.7),
        math.cos(0.7),
        math.sin(f4(0.7)),
        math.cos(f4(0.7)),
        1,
        0,
        half,
        half,
        -0.75,
        -2,
    ]
    expected += [
        0.625,
        4,
        -0.5,
        4,
        12,
        0.75,
        3,
        -3,
        2,
        5e200,
        13e-200,
        11,
        5e30,
        1 / 7,
        1 / 11,
        1 / math.hypot(2e200, 4e200),
    ]
    expected += [math.inf, 0, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1, 1, 3, 4, 2, 1, -512, 32, 1, -5, 1, 7, 0, 1]
    expected += [bessel_j(2)(1.5), -2 / (math.pi * 1.5)]
    np.testing.assert_allclose(out[: len(expected)], expected, rtol=2e-7, atol=1e-15)
    double = [0, 1, 4, 5, 19, 20, 21, 23, 25, 53, 54]
    np.testing.assert_allclose(out[double], np.array(expected)[double], rtol=1e-15, atol=1e-16)


# --- rounding


def neighbours(value, kind):
    """The floats of `kind` around the exact Fraction `value`: below, nearest (ties to even), above."""
    near = kind(float(value)) if kind is f8 else single(value)
    if not np.isfinite(near):
        return near, near, near
    below = near if Fraction(float(near)) <= value else np.nextafter(near, kind(-np.inf))
    above = near if Fraction(float(near)) >= value else np.nextafter(near, kind(np.inf))
    return below, near, above


def single(value):
    """A Fraction to the nearest float32, by way of a double rounded to odd."""
    wide = float(value)
    if Fraction(wide) != value and np.float64(wide).view(i8) & 1 == 0:
        wide = math.nextafter(wide, math.inf if value > Fraction(wide) else -math.inf)
    return f4(wide)


def sqrt_around(x, kind):
    near = kind(np.sqrt(kind(x)))
    square, x = Fraction(float(near)) ** 2, Fraction(float(x))
    below = near if square <= x else np.nextafter(near, kind(0))
    return below, near, near if square >= x else np.nextafter(near, kind(np.inf))


def check_rounding(run, kind, typename, names):
    rng = np.random.default_rng(11)
    x, y, z = ((rng.standard_normal(60) * 10.0 ** rng.integers(-12, 13, 60)).astype(kind) for _ in range(3))
    x[:3], y[:3], z[:3] = [1, 1, 3], [-1, 1e-9, 7], [1, -1, 0]
    add, sub, mul, div, rcp, root, multiply_add = names
    calls = [f"{add}_M(x[i], y[i])", f"{sub}_M(x[i], y[i])", f"{mul}_M(x[i], y[i])", f"{div}_M(x[i], y[i])"]
    calls += [f"{rcp}_M(x[i])", f"{root}_M(x[i] < 0 ? -x[i] : x[i])", f"{multiply_add}_M(x[i], y[i], z[i])"]
    modes = ["rd", "rn", "ru", "rz"]
    lines = [
        f"out[({row} * 4 + {m}) * 60 + i] = {call.replace('_M', '_' + mode)};"
        for row, call in enumerate(calls)
        for m, mode in enumerate(modes)
    ]
    out = np.empty((7, 4, 60), kind)
    pointer = f"const {typename}*"
    run(f"for (int i = 0; i < 60; i++) {{\n{chr(10).join(lines)}\n}}", x, y, z, out,
        parameters=f"{pointer} x, {pointer} y, {pointer} z, {typename}* out")  # fmt: skip
    for i in range(60):
        a, b, c = (Fraction(float(v[i])) for v in (x, y, z))
        exact = [a + b, a - b, a * b, a / b, 1 / a, None, a * b + c]
        for row, value in enumerate(exact):
            below, near, above = sqrt_around(abs(x[i]), kind) if value is None else neighbours(value, kind)
            toward_zero = below if value is None or value > 0 else above
            assert out[row, :, i].tolist() == [below, near, above, toward_zero], (calls[row], i)


def test_single_precision_arithmetic_rounds_as_asked(run):
    names = ["__fadd", "__fsub", "__fmul", "__fdiv", "__frcp", "__fsqrt", "__fmaf"]
    check_rounding(run, f4, "float", names)


def test_double_precision_arithmetic_rounds_as_asked(run):
    names = ["__dadd", "__dsub", "__dmul", "__ddiv", "__drcp", "__dsqrt", "__fma"]
    check_rounding(run, f8, "double", names)


def test_integers_to_floating_point_round_as_asked(run):
    values = [
        0,
        1,
        -1,
        2**24 + 1,
        -(2**24) - 1,
        2**53 + 1,
        -(2**53) - 3,
        2**63 - 1,
        -(2**63),
        2**40 + 2**16 + 1,
    ]
    unsigned = [
        0,
        1,
        2**24 + 3,
        2**53 + 1,
        2**64 - 1,
        2**63 + 1,
        2**63 + 2**11,
        2**64 - 2**40 + 1,
        7,
        2**62 + 1,
    ]
    modes = ["rd", "rn", "ru", "rz"]
    lines = []
    for m, mode in enumerate(modes):
        lines += [
            f"f[{m} * 10 + i] = __ll2float_{mode}(s[i]); f[{m + 4} * 10 + i] = __ull2float_{mode}(u[i]);"
        ]
        lines += [
            f"d[{m} * 10 + i] = __ll2double_{mode}(s[i]); d[{m + 4} * 10 + i] = __ull2double_{mode}(u[i]);"
        ]
        lines += [f"f[{m + 8} * 10 + i] = __int2float_{mode}((int)s[i]);"]
        lines += [f"f[{m + 12} * 10 + i] = __uint2float_{mode}((unsigned)u[i]);"]
        lines += [f"f[{m + 16} * 10 + i] = __double2float_{mode}((double)s[i] / 3);"]
    f, d = np.empty((20, 10), f4), np.empty((8, 10))
    run(f"for (int i = 0; i < 10; i++) {{\n{chr(10).join(lines)}\n}}", np.array(values), np.array(unsigned, u8), f, d,
        parameters="const long long* s, const unsigned long long* u, float* f, double* d")  # fmt: skip

    def around(value, kind):
        below, near, above = neighbours(Fraction(value), kind)
        return [below, near, above, below if value > 0 else above]

    for i, (s, u) in enumerate(zip(values, unsigned, strict=True)):
        narrow = np.array(s).astype(i4).item()
        third = Fraction(float(s) / 3)
        assert f[:4, i].tolist() == around(s, f4), s
        assert f[4:8, i].tolist() == around(u, f4), u
        assert d[:4, i].tolist() == around(s, f8), s
        assert d[4:, i].tolist() == around(u, f8), u
        assert f[8:12, i].tolist() == around(narrow, f4), narrow
        assert f[12:16, i].tolist() == around(u % 2**32, f4), u
        assert f[16:, i].tolist() == around(third, f4), s


def test_floating_point_to_integers_saturates_and_knows_nan(run):
    x = np.array(
        [np.nan, np.inf, -np.inf, 2.5, -2.5, 1e30, -1e30, 2**31, -(2**31) - 4096, 0.75, -0.75, 4e9, 1.7e19]
    )
    targets = {"int": (4, True), "uint": (4, False), "ll": (8, True), "ull": (8, False)}
    for source, typename in (("float", f4), ("double", f8)):
        values = x.astype(typename)
        lines, n = [], len(x)
        for row, target in enumerate(targets):
            for m, mode in enumerate(["rn", "rz", "ru", "rd"]):
                lines.append(
                    f"out[({row} * 4 + {m}) * {n} + i] = (long long)__{source}2{target}_{mode}(x[i]);"
                )
        out = np.empty((4, 4, n), i8)
        run(f"for (int i = 0; i < {n}; i++) {{\n{chr(10).join(lines)}\n}}", values, out,
            parameters=f"const {source}* x, long long* out")  # fmt: skip
        for row, (width, signed) in enumerate(targets.values()):
            low, high = (
                (-(2 ** (8 * width - 1)), 2 ** (8 * width - 1) - 1) if signed else (0, 2 ** (8 * width) - 1)
            )
            nothing = 1 << (8 * width - 1) if width == 8 or source == "double" else 0
            nothing = -nothing if signed else nothing
            for m, rounding in enumerate([round, math.trunc, math.ceil, math.floor]):
                for i, value in enumerate(values.tolist()):
                    if math.isnan(value):
                        expected = nothing
                    elif math.isinf(value):
                        expected = high if value > 0 else low
                    else:
                        expected = min(max(rounding(value), low), high)
                    got = int(out[row, m, i]) % 2**64
                    assert got == expected % 2**64, (source, row, m, value)


# --- integers


def test_words_as_parts_shifts_and_products(run):
    out = np.zeros(64, i8)
    body = """
    int n = 0; bool first, low, high;
    out[n++] = __fns(0xF0u, 0, 2); out[n++] = __fns(0xF0u, 7, -1); out[n++] = __fns(0xF0u, 5, 0);
    out[n++] = __fns(1u, 1, 1) == 0xffffffffu;
    out[n++] = __funnelshift_lc(1u, 2u, 32); out[n++] = __funnelshift_rc(1u, 2u, 33);
    out[n++] = __funnelshift_l(1u, 2u, 33);
    out[n++] = __hadd(-3, 2); out[n++] = __rhadd(-3, 2); out[n++] = __urhadd(4294967295u, 4294967294u);
    out[n++] = __uhadd(4294967295u, 1u); out[n++] = __sad(-5, 7, 100u); out[n++] = __mul64hi(-1LL, 5);
    out[n++] = __dp4a(0x01FF7F80, 0x7F8001FF, -10); out[n++] = __dp4a(0xFFFFFFFFu, 0xFFFFFFFFu, 1u);
    out[n++] = __dp4a(make_char4(1, -2, 3, -4), make_char4(5, 6, 7, 8), 0);
    out[n++] = __dp2a_lo(0x00020003, 0x04050607, 1); out[n++] = __dp2a_hi(0x0002FFFF, 0x04050607, 1);
    out[n++] = __vimax3_s32(-5, 3, 1); out[n++] = __vimin_s32_relu(-5, 3);
    out[n++] = __viaddmax_u32(4294967295u, 2u, 9u);
    out[n++] = __vibmax_s32(3, 3, &first) + 10 * first;
    out[n++] = __vibmin_u16x2(0x00010005u, 0x00020004u, &high, &low);
    out[n++] = high + 10 * low; out[n++] = __vimax3_s16x2_relu(0x8000FFFFu, 0x80000001u, 0x80000000u);
    out[n++] = __vsetltu2(0x00010002u, 0x00020002u); out[n++] = __vnegss4(0x80017F00u);
    out[n++] = __vhaddu4(0xFF010203u, 0x01010101u);
    out[n++] = __vsads2(0x7FFF8000u, 0x80007FFFu); out[n++] = __vavgs2(0xFFFF0001u, 0xFFFE0002u);
    out[n++] = __double2hiint(-2.0); out[n++] = __double2loint(0.1);
    out[n++] = __hiloint2double(0x40080000, 0) == 3.0;
    out[n++] = __nv_bswap32(0x01020304u); out[n++] = printf("%d %d", 1, 2); out[n++] = __float_as_uint(-0.0f) >> 31;
    """
    run(body, out, parameters="long long* out")
    expected = [5, 7, 5, 1, 1, 2, 4, -1, 0, 4294967295, 2**31, 112, -1]
    signed = sum(a * b for a, b in zip([1, -1, 127, -128], [127, -128, 1, -1], strict=True))
    expected += [signed - 10, 4 * 255 * 255 + 1, 5 - 12 + 21 - 32, 3 * 7 + 2 * 6 + 1, -1 * 5 + 2 * 4 + 1]
    expected += [3, 0, 9, 13, 0x00010004, 1, 0x00000001, 0x00010000, 0x7FFF8100, 0x80010102]
    expected += [65535 + 65535, 0xFFFF0002, -(2**30), np.frombuffer(np.float64(0.1).tobytes(), i4)[0], 1]
    expected += [0x04030201, 2, 1]
    assert out[: len(expected)].tolist() == expected


def test_vector_types_have_cudas_sizes_and_no_operators_of_their_own(run):
    sizes = {
        "char": 1,
        "uchar": 1,
        "short": 2,
        "ushort": 2,
        "int": 4,
        "uint": 4,
        "long": 8,
        "ulong": 8,
        "float": 4,
    }
    sizes |= {"longlong": 8, "ulonglong": 8, "double": 8}
    checks = []
    for name, size in sizes.items():
        for count, align in ((1, size), (2, 2 * size), (3, size), (4, min(4 * size, 16))):
            checks.append(f'static_assert(sizeof({name}{count}) == {count * size}, "");')
            checks.append(f'static_assert(alignof({name}{count}) == {align}, "");')
        checks.append(f"{name}4 v_{name} = make_{name}4(1, 2, 3, 4); sum += v_{name}.w + make_{name}1(1).x;")
    checks.append('static_assert(alignof(double4_32a) == 32 && alignof(long4_16a) == 16, "");')
    checks.append(
        "float4 a = make_float4(1, 2, 3, 4); float2 b{5, 6}; dim3 d(7, 8); uint3 u = d; dim3 e = u;"
    )
    checks.append("out[0] = sum; out[1] = (a + a).w + (2.0f * b).y + e.z + e.y;")
    before = """
    __device__ float4 operator+(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }
    __device__ float2 operator*(float s, float2 v) { return make_float2(s * v.x, s * v.y); }
    """
    out = np.zeros(2)
    run("double sum = 0;\n" + "\n".join(checks), out, parameters="double* out", before=before)
    assert out.tolist() == [5 * len(sizes), 8 + 12 + 1 + 8]


def test_kernels_may_define_the_names_that_nvrtc_leaves_free(run):
    before = """
    typedef long long int64_t; typedef unsigned long long uint64_t; typedef unsigned char uint8_t;
    typedef unsigned int uint; enum Limits { INT_MAX = 5 }; static const float INFINITY = 1.0f;
    __device__ int strlen(const char* text) { int n = 0; while (text[n]) n++; return n; }
    __device__ float clamp(float v, float a, float b) { return fminf(fmaxf(v, a), b); }
    __device__ float lerp(float a, float b, float t) { return a + t * (b - a); }
    """
    out = np.zeros(4)
    body = """
    int64_t n = INT_MAX; uint64_t u = 3; uint8_t c = 255; uint k = 1;
    out[0] = n + u + c + k; out[1] = strlen("copper"); out[2] = clamp(7, 0, 2) + INFINITY; out[3] = lerp(0, 4, 0.5f);
    """
    run(body, out, parameters="double* out", before=before)
    assert out.tolist() == [264, 6, 3, 2]


def test_every_header_that_may_be_included_is_there_and_compiles(run):
    out = np.zeros(1)
    includes = "\n".join(f"#include <{name}>" for name in sorted(HEADERS))
    run("out[0] = CUDART_PI + INT_MAX + cuda::std::numeric_limits<uint16_t>::max();", out, parameters="double* out",
        before=includes)  # fmt: skip
    assert out[0] == math.pi + 2**31 - 1 + 65535
    assert all((SHIM / name).is_file() for name in HEADERS)


def test_constants_of_math_constants_h(run):
    names = {"CUDART_PI": math.pi, "CUDART_L2E": math.log2(math.e), "CUDART_LN2": math.log(2),
             "CUDART_SQRT_TWO": math.sqrt(2), "CUDART_LNPI": math.log(math.pi), "CUDART_LG2": math.log10(2),
             "CUDART_SQRT_2PI": math.sqrt(2 * math.pi), "CUDART_TWO_TO_M1022": 2.0**-1022,
             "CUDART_MIN_DENORM": 2.0**-1074, "CUDART_LN2_X_1075": 1075 * math.log(2), "CUDART_L2T": math.log2(10),
             "CUDART_LGE": math.log10(math.e), "CUDART_LNT": math.log(10), "CUDART_SQRT_2OPI": math.sqrt(2 / math.pi),
             "CUDART_PI_LO": 1.2246467991473532e-16, "CUDART_3PIO4": 0.75 * math.pi}  # fmt: skip
    out = np.zeros(len(names))
    body = "".join(f"out[{i}] = {name};" for i, name in enumerate(names))
    run(body, out, parameters="double* out", before="#include <math_constants.h>")
    np.testing.assert_allclose(out, list(names.values()), rtol=2.5e-16)


def test_atomics_exist_for_the_documented_types_and_no_others(run):
    body = """
    float2 pair = {1, 2}; unsigned short half = 3; float x = 1; double y = 2;
    atomicAdd(&pair, make_float2(10, 20)); atomicAdd_system(&x, 2.0f); atomicAdd_block(&y, 0.5);
    out[0] = pair.x + pair.y; out[1] = atomicCAS(&half, (unsigned short)3, (unsigned short)9) + 100 * half;
    out[2] = x + y; out[3] = atomicExch(&x, 7.0f) + x;
    """
    out = np.zeros(4)
    run(body, out, parameters="double* out")
    assert out.tolist() == [33, 903, 5.5, 10]
    for call in ("atomicAdd((long long*)out, 1LL)", "atomicMax((float*)out, 1.0f)", "atomicExch(out, 1.0)"):
        with pytest.raises(KernelCompileError, match="atomic"):
            run(f"{call};", out, parameters="double* out")
