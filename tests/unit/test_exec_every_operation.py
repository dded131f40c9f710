"""Every operation of the table against NumPy: dtypes, broadcasting, empty and zero-size arrays.

Mechanical: `CASES` has an entry for each operation, and a test fails where somebody adds one without. An entry draws
arguments and attributes and says by NumPy itself, or by a plain loop, what the result is. The dtypes are all that the
operation takes: its rule is asked to refuse every other one. How users write operations (promotion, axes left out,
spellings) is tested in `test_exec_arrays` and its like.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from coppermesh.exec import dtypes
from coppermesh.exec.dtypes import DTYPE_NAMES
from coppermesh.exec.errors import ProgramInvalid
from coppermesh.exec.evaluate import evaluate
from coppermesh.exec.graph import record, record_input
from coppermesh.exec.operations import OPERATIONS, Call
from coppermesh.exec.program import ArraySpec, Node, Program, decode_program, encode_program, make_scalar
from coppermesh.exec.recorder import Array, trace
from coppermesh.exec.schema import infer
from coppermesh.exec.tolerance_bounds import FACTORING, FOURIER, LIBRARY

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy warns of overflow and empty means
KERNELS = {name for name in OPERATIONS if name.endswith("_kernel") or name.startswith("module_")}
"""CUDA source, held against NumPy by the corpus of the kernel tests."""
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
LONG = hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=4)


class Case(NamedTuple):
    """How arguments, attributes and the result are drawn, and for which dtypes."""

    function: Callable[..., Any]
    dtypes: tuple[str, ...]


CASES: dict[str, Case] = {}


def case(*names, dtypes=dtypes.ALL):
    """Makes a function the case of these operations: it is given `draw`, the operation and a dtype."""

    def add(function):
        CASES.update(dict.fromkeys(names, Case(function, tuple(sorted(dtypes)))))
        return function

    return add


def values(draw, dtype, shape=SHAPES):
    shape = draw(shape) if isinstance(shape, st.SearchStrategy) else shape
    return draw(hnp.arrays(dtype, shape, elements=hnp.from_dtype(np.dtype(dtype), allow_subnormal=False)))


def small(draw, dtype, shape):
    """Small whole numbers: sums and products of them are exact in any order."""
    shape = draw(shape) if isinstance(shape, st.SearchStrategy) else shape
    numbers = draw(hnp.arrays("int8", shape, elements=st.integers(0, 1 if dtype == "bool" else 4)))
    return numbers.astype(dtype)


def broadcastable(draw, dtype, count, minimum=0):
    shapes = draw(
        hnp.mutually_broadcastable_shapes(num_shapes=count, max_dims=3, min_side=minimum, max_side=3)
    )
    return [values(draw, dtype, shape) for shape in shapes.input_shapes]


def axes_of(draw, ndim):
    return tuple(sorted(draw(st.sets(st.integers(0, ndim - 1))))) if ndim else ()


NUMPY = {
    "abs": "absolute",
    "acos": "arccos",
    "acosh": "arccosh",
    "asin": "arcsin",
    "asinh": "arcsinh",
    "atan": "arctan",
    "atan2": "arctan2",
    "atanh": "arctanh",
    "bitwise_invert": "invert",
    "round": "rint",
    "bitwise_left_shift": "left_shift",
    "bitwise_right_shift": "right_shift",
    "pow": "power",
    "cumulative_sum": "cumsum",
    "cumulative_prod": "cumprod",
    "permute_dims": "transpose",
    "concat": "concatenate",
}


def numpys(op):
    return getattr(np, NUMPY.get(op, op))


def unary(draw, op, dtype):
    x = values(draw, dtype)
    return [x], {}, numpys(op)(x)


def binary(draw, op, dtype):
    x, y = broadcastable(draw, dtype, 2)
    return [x, y], {}, numpys(op)(x, y)


# fmt: off
case("abs", "negative", "sign", "square", dtypes=dtypes.NUMERIC)(unary)
case("reciprocal", "sqrt", "round", "isfinite", "isinf", "isnan", "exp", "expm1", "log", "log1p", "log2", "log10",
     "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh",
     dtypes=dtypes.FLOATING)(unary)
case("conj", "real", "imag", dtypes=dtypes.COMPLEX)(unary)
case("logical_not", dtypes=dtypes.BOOLEAN)(unary)
case("bitwise_invert", dtypes=dtypes.INTEGER_OR_BOOLEAN)(unary)
case("signbit", "ceil", "floor", "trunc", dtypes=dtypes.REAL_FLOATING)(unary)
case("add", "subtract", "multiply", dtypes=dtypes.NUMERIC)(binary)
case("divide", dtypes=dtypes.FLOATING)(binary)
case("floor_divide", "remainder", "maximum", "minimum", "less", "less_equal", "greater", "greater_equal",
     dtypes=dtypes.REAL)(binary)
case("atan2", "hypot", "logaddexp", "copysign", "nextafter", dtypes=dtypes.REAL_FLOATING)(binary)
case("bitwise_and", "bitwise_or", "bitwise_xor", dtypes=dtypes.INTEGER_OR_BOOLEAN)(binary)
case("logical_and", "logical_or", "logical_xor", dtypes=dtypes.BOOLEAN)(binary)
case("equal", "not_equal")(binary)
# fmt: on


def binary_of_small(draw, op, dtype):
    x, y = broadcastable(draw, dtype, 2)
    y = np.abs(y) % 5 if y.dtype.kind in "iu" else y
    return [x, y], {}, numpys(op)(x, y)


case("bitwise_left_shift", "bitwise_right_shift", dtypes=dtypes.INTEGER)(binary_of_small)
case("pow", dtypes=dtypes.NUMERIC)(binary_of_small)


@case("where")
def where(draw, op, dtype):
    x, y, chosen = broadcastable(draw, dtype, 3)
    mask = chosen != 0
    return [mask, x, y], {}, np.where(mask, x, y)


@case("clip", dtypes=dtypes.REAL)
def clip(draw, op, dtype):
    arrays = broadcastable(draw, dtype, 3)
    return arrays, {}, np.clip(*arrays)


@case("astype")
def astype(draw, op, dtype):
    x = small(draw, dtype, SHAPES)
    allowed = "cb" if np.dtype(dtype).kind == "c" else "biufc"
    target = draw(st.sampled_from([name for name in DTYPE_NAMES if np.dtype(name).kind in allowed]))
    return [x], {"dtype": target}, x.astype(target)


@case("full")
def full(draw, op, dtype):
    value, shape = values(draw, dtype, ()), draw(SHAPES)
    return [value], {"shape": shape}, np.full(shape, value)


@case("arange", dtypes=dtypes.REAL)
def arange(draw, op, dtype):
    start, step = small(draw, dtype, ()), small(draw, dtype, ())
    length = draw(st.integers(0, 5))
    expected = [start + step * step.dtype.type(number) for number in range(length)]
    return [start, step], {"length": length}, np.array(expected, dtype)


@case("linspace", dtypes=dtypes.FLOATING)
def linspace(draw, op, dtype):
    start, stop = small(draw, dtype, ()), small(draw, dtype, ())
    num, endpoint = draw(st.integers(0, 6)), draw(st.booleans())
    expected = np.linspace(start, stop, num, endpoint=endpoint, dtype=dtype)
    return [start, stop], {"num": num, "endpoint": endpoint}, expected


@case("eye")
def eye(draw, op, dtype):
    rows, columns, diagonal = draw(st.integers(0, 4)), draw(st.integers(0, 4)), draw(st.integers(-5, 5))
    expected = np.zeros((rows, columns), dtype)
    for row in range(rows):
        if 0 <= row + diagonal < columns:
            expected[row, row + diagonal] = 1
    return [], {"rows": rows, "columns": columns, "diagonal": diagonal, "dtype": dtype}, expected


@case("sum", "prod", dtypes=dtypes.NUMERIC)
def accumulation(draw, op, dtype):
    x = small(draw, dtype, SHAPES)
    axes, keepdims = axes_of(draw, x.ndim), draw(st.booleans())
    wide = {"i": "int64", "u": "uint64"}.get(x.dtype.kind, dtype)
    expected = numpys(op)(x, axis=axes, keepdims=keepdims, dtype=wide)
    return [x], {"axes": axes, "keepdims": keepdims, "dtype": wide}, expected


def reduction(draw, op, dtype):
    x = (
        values(draw, dtype, LONG if op in ("max", "min") else SHAPES)
        if op != "mean"
        else small(draw, dtype, SHAPES)
    )
    axes, keepdims = axes_of(draw, x.ndim), draw(st.booleans())
    return [x], {"axes": axes, "keepdims": keepdims}, numpys(op)(x, axis=axes, keepdims=keepdims)


case("max", "min", dtypes=dtypes.REAL)(reduction)
case("any", "all", dtypes=dtypes.BOOLEAN)(reduction)
case("mean", dtypes=dtypes.FLOATING)(reduction)


@case("var", "std", dtypes=dtypes.REAL_FLOATING)
def spread(draw, op, dtype):
    x, correction = small(draw, dtype, SHAPES), draw(st.sampled_from([0.0, 1.0, 0.5]))
    axes, keepdims = axes_of(draw, x.ndim), draw(st.booleans())
    expected = numpys(op)(x, axis=axes, keepdims=keepdims, ddof=correction)
    return [x, correction], {"axes": axes, "keepdims": keepdims}, expected


@case("argmax", "argmin", dtypes=dtypes.REAL)
def position(draw, op, dtype):
    x, keepdims = values(draw, dtype, LONG), draw(st.booleans())
    axis = draw(st.integers(0, x.ndim - 1))
    return [x], {"axis": axis, "keepdims": keepdims}, numpys(op)(x, axis=axis, keepdims=keepdims)


@case("cumulative_sum", "cumulative_prod", dtypes=dtypes.NUMERIC)
def running(draw, op, dtype):
    x = small(draw, dtype, hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=3))
    axis = draw(st.integers(0, x.ndim - 1))
    return [x], {"axis": axis, "dtype": dtype}, numpys(op)(x, axis=axis, dtype=dtype)


@case("reshape")
def reshape(draw, op, dtype):
    x = values(draw, dtype)
    shape = draw(st.permutations([*x.shape, 1]))
    return [x], {"shape": tuple(shape)}, x.reshape(shape)


@case("broadcast_to")
def broadcast_to(draw, op, dtype):
    x = values(draw, dtype)
    before = draw(hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=2))
    shape = (*before, *(draw(st.integers(0, 3)) if length == 1 else length for length in x.shape))
    return [x], {"shape": shape}, np.broadcast_to(x, shape)


@case("permute_dims")
def permute_dims(draw, op, dtype):
    x = values(draw, dtype)
    axes = tuple(draw(st.permutations(range(x.ndim))))
    return [x], {"axes": axes}, np.transpose(x, axes)


@case("flip")
def flip(draw, op, dtype):
    x = values(draw, dtype)
    axes = axes_of(draw, x.ndim)
    return [x], {"axes": axes}, np.flip(x, axes)


@case("roll")
def roll(draw, op, dtype):
    x = values(draw, dtype)
    axes = axes_of(draw, x.ndim)
    shifts = tuple(draw(st.integers(-5, 5)) for _ in axes)
    return [x], {"axes": axes, "shifts": shifts}, np.roll(x, shifts, axes) if axes else x


@case("concat")
def concat(draw, op, dtype):
    first = values(draw, dtype, LONG)
    axis = draw(st.integers(0, first.ndim - 1))
    shape = list(first.shape)
    shape[axis] = draw(st.integers(0, 3))
    arrays = [first, values(draw, dtype, tuple(shape)), first]
    return arrays, {"axis": axis}, np.concatenate(arrays, axis)


def selection(draw, x):
    """An index as programs write it, and as NumPy does."""
    items, keys = [], []
    for length in x.shape:
        if length and draw(st.booleans()):
            at = draw(st.integers(0, length - 1))
            items.append((0, at))
            keys.append(at)
        else:
            chosen = range(length)[draw(st.slices(length))]
            step = chosen.step if len(chosen) > 1 else 1
            items.append((1, chosen.start, len(chosen), step) if len(chosen) else (1, 0, 0, 1))
            keys.append(list(chosen))
        if draw(st.booleans()):
            items.append((2,))
            keys.append(None)
    return tuple(items), keys


def select(x, keys):
    """One axis after the other, from the last."""
    axis = sum(key is not None for key in keys)
    for key in reversed(keys):
        if key is None:
            x = np.expand_dims(x, axis)
        else:
            axis -= 1
            x = np.take(x, np.array(key, dtype="int64"), axis)
    return x


@case("getitem")
def getitem(draw, op, dtype):
    x = values(draw, dtype)
    index, keys = selection(draw, x)
    return [x], {"index": index}, select(x, keys)


@case("setitem")
def setitem(draw, op, dtype):
    x = values(draw, dtype)
    index, keys = selection(draw, x)
    places = select(np.arange(x.size).reshape(x.shape), keys)
    new = values(draw, dtype, draw(st.sampled_from([(), places.shape, places.shape[1:]])))
    expected = x.copy()
    expected.reshape(-1)[places.reshape(-1)] = np.broadcast_to(new, places.shape).reshape(-1)
    return [x, new], {"index": index}, expected


def positions(draw, length, shape=SHAPES):
    shape = draw(shape) if isinstance(shape, st.SearchStrategy) else shape
    return draw(hnp.arrays("int64", shape, elements=st.integers(-length, length - 1)))


@case("take")
def take(draw, op, dtype):
    x = values(draw, dtype, LONG)
    axis = draw(st.integers(0, x.ndim - 1))
    index = positions(draw, x.shape[axis])
    return [x, index], {"axis": axis}, np.take(x, index, axis)


@case("take_along_axis")
def take_along_axis(draw, op, dtype):
    x = values(draw, dtype, LONG)
    axis = draw(st.integers(0, x.ndim - 1))
    shape = list(x.shape)
    shape[axis] = draw(st.integers(0, 4))
    index = positions(draw, x.shape[axis], tuple(shape))
    return [x, index], {"axis": axis}, np.take_along_axis(x, index, axis)


def put(draw, op, dtype):
    x = small(draw, dtype, LONG)
    axis = draw(st.integers(0, x.ndim - 1))
    index = positions(draw, x.shape[axis], draw(st.sampled_from([(), (0,), (2,), (1, 3)])))
    where = (slice(None),) * axis + (index,)
    shape = x[where].shape
    new = small(draw, dtype, draw(st.sampled_from([(), shape, shape[1:]])))
    expected = x.copy()
    for place in np.ndindex(index.shape):
        here = (slice(None),) * axis + (index[place],)
        part = np.broadcast_to(new, shape)[(slice(None),) * axis + place]
        expected[here] = part if op == "put" else expected[here] + part
    return [x, index, new], {"axis": axis}, expected


case("put")(put)
case("add_at", dtypes=dtypes.NUMERIC)(put)


@case("pad")
def pad(draw, op, dtype):
    x, value = values(draw, dtype, LONG), values(draw, dtype, ())
    mode = draw(st.sampled_from(["constant", "edge", "reflect", "symmetric", "wrap"]))
    most = [length - (mode == "reflect") if mode not in ("constant", "edge") else 3 for length in x.shape]
    widths = tuple((draw(st.integers(0, most_)), draw(st.integers(0, most_))) for most_ in most)
    options = {"constant_values": value} if mode == "constant" else {}
    return [x, value], {"widths": widths, "mode": mode}, np.pad(x, widths, mode=mode, **options)


@case("sort", dtypes=dtypes.REAL)
def sort(draw, op, dtype):
    x, descending = values(draw, dtype, LONG), draw(st.booleans())
    axis = draw(st.integers(0, x.ndim - 1))
    expected = np.sort(x, axis=axis)
    return [x], {"axis": axis, "descending": descending}, np.flip(expected, axis) if descending else expected


@case("argsort", dtypes=dtypes.REAL)
def argsort(draw, op, dtype):
    x, descending = small(draw, dtype, LONG), draw(st.booleans())
    axis = draw(st.integers(0, x.ndim - 1))
    keys = -x.astype("int64") if descending else x
    return [x], {"axis": axis, "descending": descending}, np.argsort(keys, axis=axis, kind="stable")


@case("searchsorted", dtypes=dtypes.REAL)
def searchsorted(draw, op, dtype):
    x, wanted = np.sort(small(draw, dtype, (draw(st.integers(0, 6)),))), small(draw, dtype, SHAPES)
    side = draw(st.sampled_from(["left", "right"]))
    return [x, wanted], {"side": side}, np.searchsorted(x, wanted, side=side)


@case("matmul", dtypes=dtypes.NUMERIC)
def matmul(draw, op, dtype):
    signature = "(m?,n),(n,p?)->(m?,p?)"
    shapes = draw(hnp.mutually_broadcastable_shapes(signature=signature, max_dims=2, min_side=0, max_side=3))
    x, y = (small(draw, dtype, shape) for shape in shapes.input_shapes)
    return [x, y], {}, np.matmul(x, y)


def waves(draw, dtype):
    shape = draw(LONG)
    x = np.random.default_rng(draw(st.integers(0, 99))).normal(size=(2, *shape))
    return (x[0] + 1j * x[1]).astype(dtype) if np.dtype(dtype).kind == "c" else x[0].astype(dtype)


def transform(draw, op, dtype):
    x, length = waves(draw, dtype), draw(st.integers(1, 6))
    axis, norm = draw(st.integers(0, x.ndim - 1)), draw(st.sampled_from(["backward", "ortho", "forward"]))
    expected = getattr(np.fft, op)(x, n=length, axis=axis, norm=norm)
    return [x], {"length": length, "axis": axis, "norm": norm}, expected


case("rfft", dtypes=dtypes.REAL_FLOATING)(transform)
case("fft", "ifft", "irfft", dtypes=dtypes.COMPLEX)(transform)


def transforms(draw, op, dtype):
    x = waves(draw, dtype)
    axes = tuple(draw(st.permutations(range(x.ndim))))[: draw(st.integers(1, x.ndim))]
    lengths = tuple(draw(st.integers(1, 5)) for _ in axes)
    norm = draw(st.sampled_from(["backward", "ortho", "forward"]))
    expected = getattr(np.fft, op)(x, s=lengths, axes=axes, norm=norm)
    return [x], {"lengths": lengths, "axes": axes, "norm": norm}, expected


case("rfftn", dtypes=dtypes.REAL_FLOATING)(transforms)
case("fftn", "ifftn", "irfftn", dtypes=dtypes.COMPLEX)(transforms)


def matrices(draw, dtype, rows, columns):
    stack = draw(hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=2))
    x = np.random.default_rng(draw(st.integers(0, 99))).normal(size=(2, *stack, rows, columns))
    whole = x[0] + 1j * x[1] if np.dtype(dtype).kind == "c" else x[0]
    return (whole + 4 * np.eye(rows, columns)).astype(dtype)


@case("inv", "det", "eigvalsh", "slogdet", "eigh", "cholesky", "solve", dtypes=dtypes.FLOATING)
def square(draw, op, dtype):
    side = draw(st.integers(0, 3))
    x = matrices(draw, dtype, side, side)
    attrs = {"upper": draw(st.booleans())} if op == "cholesky" else {}
    if op in ("eigvalsh", "eigh", "cholesky"):
        x = x @ np.conj(np.swapaxes(x, -1, -2)) + np.eye(side, dtype=dtype)
    if op == "solve":
        y = np.ones((*x.shape[:-1], draw(st.integers(0, 3))), dtype)
        return [x, y], {}, np.linalg.solve(x, y)
    if op == "cholesky":
        lower = np.linalg.cholesky(x)
        return [x], attrs, np.conj(np.swapaxes(lower, -1, -2)) if attrs["upper"] else lower
    found = getattr(np.linalg, op)(x)
    return [x], attrs, tuple(found) if isinstance(found, tuple) else found


@case("svd", "svdvals", "qr", dtypes=dtypes.FLOATING)
def rectangle(draw, op, dtype):
    x = matrices(draw, dtype, draw(st.integers(0, 3)), draw(st.integers(0, 3)))
    if op == "qr":
        mode = draw(st.sampled_from(["reduced", "complete"]))
        return [x], {"mode": mode}, tuple(np.linalg.qr(x, mode=mode))
    if op == "svdvals":
        return [x], {}, np.linalg.svd(x, compute_uv=False)
    full_matrices = draw(st.booleans())
    return [x], {"full_matrices": full_matrices}, tuple(np.linalg.svd(x, full_matrices=full_matrices))


@case("erf", dtypes=dtypes.REAL_FLOATING)
def erf(draw, op, dtype):
    x = values(draw, dtype)
    expected = np.array([math.erf(item) for item in x.reshape(-1).tolist()]).reshape(x.shape)
    return [x], {}, expected.astype(dtype)


@case("ndtri", dtypes=("float64",))
def ndtri(draw, op, dtype):
    """Back again through the normal distribution function; which side of 1/2 does not matter to the relative error."""
    z = draw(hnp.arrays(dtype, SHAPES, elements=st.floats(-5, 5)))
    p = np.array([0.5 * math.erfc(-item / math.sqrt(2)) for item in z.reshape(-1).tolist()]).reshape(z.shape)
    return [p], {}, z


@case("philox", dtypes=("uint32",))
def philox(draw, op, dtype):
    """Known answers are elsewhere; here that words do not depend on the shape they come in."""
    key = draw(hnp.arrays("uint32", (2,)))
    shape, stream = draw(SHAPES), draw(st.integers(0, 99))
    count = math.prod(shape)
    plain = record("philox", (record_input(key, "uint32"),), {"shape": (count + 4,), "stream": stream})
    words = evaluate(Array(plain[0]))[0]
    return [key], {"shape": shape, "stream": stream}, words[:count].reshape(shape)


def windows(draw, count):
    return {
        "strides": tuple(draw(st.integers(1, 2)) for _ in range(count)),
        "dilation": tuple(draw(st.integers(1, 2)) for _ in range(count)),
    }, tuple(draw(st.integers(1, 2)) for _ in range(count))


def windowed(x, window, attrs):
    """The windows of a padded array: (batch, channels, places..., window...)."""
    spans = [dilation * (length - 1) + 1 for length, dilation in zip(window, attrs["dilation"], strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(x, spans, axis=range(2, x.ndim))
    places = tuple(slice(None, None, step) for step in attrs["strides"])
    taps = tuple(slice(None, None, step) for step in attrs["dilation"])
    return view[(slice(None), slice(None), *places, *taps)]


@case("conv", dtypes=dtypes.NUMERIC)
def conv(draw, op, dtype):
    count, groups = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    attrs, window = windows(draw, count)
    padding = tuple((draw(st.integers(0, 1)), draw(st.integers(0, 1))) for _ in range(count))
    lengths = tuple(draw(st.integers(3, 4)) for _ in range(count))
    x = small(draw, dtype, (draw(st.integers(0, 2)), groups * 2, *lengths))
    weights = small(draw, dtype, (groups * draw(st.integers(1, 2)), 2, *window))
    seen = windowed(np.pad(x, ((0, 0), (0, 0), *padding)), window, attrs)
    outputs = weights.shape[0] // groups
    axes = ([1, *range(2 + count, 2 + 2 * count)], list(range(1, 2 + count)))
    parts = [
        np.tensordot(
            seen[:, 2 * group : 2 * group + 2], weights[group * outputs : (group + 1) * outputs], axes
        )
        for group in range(groups)
    ]
    expected = np.moveaxis(np.concatenate(parts, axis=-1), -1, 1)
    return [x, weights], {**attrs, "padding": padding, "groups": groups}, expected


@case("pool", dtypes=dtypes.NUMERIC)
def pool(draw, op, dtype):
    count, kind = draw(st.integers(1, 3)), draw(st.sampled_from(["max", "sum"]))
    kind = "sum" if np.dtype(dtype).kind == "c" else kind
    attrs, window = windows(draw, count)
    reach = [dilation * (length - 1) for length, dilation in zip(window, attrs["dilation"], strict=True)]
    padding = tuple((draw(st.integers(0, most)), draw(st.integers(0, most))) for most in reach)
    x = small(draw, dtype, (draw(st.integers(0, 2)), 2, *(draw(st.integers(3, 4)) for _ in range(count))))
    padded = np.pad(x, ((0, 0), (0, 0), *padding))  # no element is less than 0
    seen = windowed(padded, window, attrs)
    axes = tuple(range(2 + count, 2 + 2 * count))
    expected = seen.max(axis=axes) if kind == "max" else seen.sum(axis=axes, dtype=dtype)
    return [x], {**attrs, "padding": padding, "window": window, "kind": kind}, expected


@case("scan", dtypes=dtypes.NUMERIC)
def scan(draw, op, dtype):
    length, shape = (
        draw(st.integers(0, 4)),
        draw(hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3)),
    )
    start, xs, constant = (small(draw, dtype, lengths) for lengths in (shape, (length, *shape), shape))
    state, stacked = start, np.zeros((length, *shape), dtype)
    for step in range(length):
        state = state * constant + xs[step]
        stacked[step] = -state
    spec = ArraySpec(dtype, shape)
    nodes = (Node("multiply", (0, 2), {}), Node("add", (3, 1), {}), Node("negative", (4,), {}))
    body = encode_program(Program(1, (spec,) * 3, (), nodes, (4, 5)))
    return [body, start, xs, constant], {"carries": 1, "length": length, "scanned": 1}, (state, stacked)


# Running them.

SMOOTH = LIBRARY | FOURIER | FACTORING
SMOOTH |= {"mean", "var", "std", "square", "reciprocal", "sqrt", "divide", "multiply"}
"""A library may take another path for another layout: equal up to rounding. Everything else is equal bit for bit."""


def operand(item, op):
    if isinstance(item, bytes):
        return item
    if isinstance(item, float):  # the correction of variances
        return make_scalar("float64", item)
    return record_input(np.ascontiguousarray(item).reshape(np.shape(item)), np.asarray(item).dtype.name)


def check_case(op, dtype, data):
    arrays, attrs, expected = CASES[op].function(data.draw, op, dtype)
    results = record(op, [operand(item, op) for item in arrays], dict(sorted(attrs.items())))
    lazy = [Array(value) for value in results]
    assert op in [node.op for node in decode_program(trace(*lazy).program).nodes]
    wanted = expected if isinstance(expected, tuple) else (expected,)
    for result, value, one in zip(evaluate(*lazy), lazy, map(np.asarray, wanted), strict=True):
        assert result.dtype == one.dtype == value.dtype, (op, dtype)
        assert result.shape == one.shape == value.shape, (op, dtype)
        if op in SMOOTH and one.dtype.kind in "fc":
            bound = 1e-4 if one.dtype.name in ("float32", "complex64") else 1e-10
            np.testing.assert_allclose(
                result, one, rtol=bound, atol=bound if op in LOOSE else 0, equal_nan=True
            )
        else:
            np.testing.assert_array_equal(result, one)
    check_other_dtypes(op, dtype, arrays, attrs)


def check_other_dtypes(op, dtype, arrays, attrs):
    """What an entry does not name, the rule must refuse: else an entry could leave out a dtype unnoticed."""
    if op in ("eye", "scan", "ndtri", "philox"):
        return  # by an attribute, by the body, or by one dtype alone
    specs = [ArraySpec(np.asarray(item).dtype.name, np.shape(item)) for item in arrays]
    for other in set(DTYPE_NAMES) - set(CASES[op].dtypes):
        changed = [ArraySpec(other, spec.shape) if spec.dtype == dtype else spec for spec in specs]
        if op == "where":
            changed[0] = specs[0]
        with pytest.raises(ProgramInvalid):
            infer(op, Call(changed, {**attrs, **({"dtype": other} if op in ("sum", "prod") else {})}))


MOVING = {
    "astype", "broadcast_to", "concat", "flip", "full", "getitem", "pad", "permute_dims", "put", "reshape", "roll",
    "setitem", "take", "take_along_axis", "where",
}  # fmt: skip
"""Operations that compute nothing: they take float16."""


@pytest.mark.parametrize("op", sorted(set(OPERATIONS) - KERNELS - {"eye", "scan", "ndtri", "philox"}))
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_float16_is_moved_and_never_computed_with(op, data):
    dtype = "float32" if "float32" in CASES[op].dtypes else CASES[op].dtypes[0]
    arrays, attrs, expected = CASES[op].function(data.draw, op, dtype)
    given = [np.asarray(item) for item in arrays]
    halves = [item.astype("float16") if item.dtype == dtype else item for item in given]
    call = Call([ArraySpec(item.dtype.name, item.shape) for item in halves], attrs)
    if all(item.dtype != np.float16 for item in halves):
        return
    if op not in MOVING:
        with pytest.raises(ProgramInvalid, match="float16"):
            infer(op, call)
        return
    lazy = record(op, [operand(item, op) for item in halves], dict(sorted(attrs.items())))
    wanted = expected if isinstance(expected, tuple) else (expected,)
    for result, value, one in zip(evaluate(*map(Array, lazy)), lazy, map(np.asarray, wanted), strict=True):
        assert result.dtype == value.spec.dtype, op
        # Moving and rounding to halves can be done in either order.
        np.testing.assert_array_equal(result, one.astype("float32").astype(result.dtype), strict=True)


LOOSE = FOURIER | FACTORING | {"ndtri", "erf", "var", "std", "linspace", "mean"}


def test_every_operation_has_a_case():
    missing = set(OPERATIONS) - KERNELS - set(CASES)
    assert not missing, f"add an entry to CASES for {', '.join(sorted(missing))}"
    assert set(CASES) <= set(OPERATIONS)


@pytest.mark.parametrize("op", sorted(set(OPERATIONS) - KERNELS))
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_against_numpy(op, data):
    for dtype in CASES[op].dtypes:
        check_case(op, dtype, data)
