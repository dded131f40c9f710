"""`xp`, element by element: arithmetic, comparisons, logic, bits, exponentials, trigonometry, choosing, rounding.

Every function takes lazy arrays, NumPy arrays and numbers, broadcasts them, and promotes their dtypes by NumPy 2's
rules (see `promotion`). Names and meanings are the Python Array API standard's, 2024.12.
"""

from typing import Any

from coppermesh.exec import dtypes
from coppermesh.exec.graph import record_one
from coppermesh.exec.promotion import as_operand, as_value, cast, cast_value, common_dtype, elementwise, truth
from coppermesh.exec.recorder import Array, power


def add(x1: Any, x2: Any, /) -> Array:
    return Array(elementwise("add", x1, x2))


def subtract(x1: Any, x2: Any, /) -> Array:
    return Array(elementwise("subtract", x1, x2))


def multiply(x1: Any, x2: Any, /) -> Array:
    return Array(elementwise("multiply", x1, x2))


def divide(x1: Any, x2: Any, /) -> Array:
    return Array(elementwise("divide", x1, x2))


def floor_divide(x1: Any, x2: Any, /) -> Array:
    return Array(elementwise("floor_divide", x1, x2))


def remainder(x1: Any, x2: Any, /) -> Array:
    return Array(elementwise("remainder", x1, x2))


def pow(x1: Any, x2: Any, /) -> Array:
    return power(x1, x2)


def negative(x: Any, /) -> Array:
    return Array(elementwise("negative", x))


def positive(x: Any, /) -> Array:
    return Array(as_value(x))


def abs(x: Any, /) -> Array:
    return Array(elementwise("abs", x))


def sign(x: Any, /) -> Array:
    return Array(elementwise("sign", x))


def square(x: Any, /) -> Array:
    return Array(elementwise("square", x))


def reciprocal(x: Any, /) -> Array:
    return Array(elementwise("reciprocal", x))


def sqrt(x: Any, /) -> Array:
    return Array(elementwise("sqrt", x))


def hypot(x1: Any, x2: Any, /) -> Array:
    return Array(elementwise("hypot", x1, x2))


def copysign(x1: Any, x2: Any, /) -> Array:
    return Array(elementwise("copysign", x1, x2))


def nextafter(x1: Any, x2: Any, /) -> Array:
    return Array(elementwise("nextafter", x1, x2))


def signbit(x: Any, /) -> Array:
    return Array(elementwise("signbit", x))


def conj(x: Any, /) -> Array:
    return Array(elementwise("conj", x))


def real(x: Any, /) -> Array:
    return Array(elementwise("real", x))


def imag(x: Any, /) -> Array:
    return Array(elementwise("imag", x))


def ceil(x: Any, /) -> Array:
    return Array(elementwise("ceil", x))


def floor(x: Any, /) -> Array:
    return Array(elementwise("floor", x))


def trunc(x: Any, /) -> Array:
    return Array(elementwise("trunc", x))


def round(x: Any, /, decimals: int = 0) -> Array:
    """To whole numbers, halves to even; with `decimals`, as NumPy does it: by a power of ten there and back."""
    if decimals == 0:
        return Array(elementwise("round", x))
    value = as_value(x)
    if value.spec.dtype not in dtypes.FLOATING:
        if decimals > 0 or value.spec.dtype == "bool":
            return Array(value)
        return astype(round(astype(Array(value), "float64"), decimals), value.spec.dtype)
    if value.spec.dtype in dtypes.COMPLEX:  # part by part: a quotient of complex numbers rounds otherwise
        parts = (round(real(Array(value)), decimals), round(imag(Array(value)), decimals))
        return add(parts[0], multiply(parts[1], 1j))
    power, array = 10.0 ** (-decimals if decimals < 0 else decimals), Array(value)
    return round(array / power) * power if decimals < 0 else round(array * power) / power


def exp(x: Any, /) -> Array:
    return Array(elementwise("exp", x))


def expm1(x: Any, /) -> Array:
    return Array(elementwise("expm1", x))


def log(x: Any, /) -> Array:
    return Array(elementwise("log", x))


def log1p(x: Any, /) -> Array:
    return Array(elementwise("log1p", x))


def log2(x: Any, /) -> Array:
    return Array(elementwise("log2", x))


def log10(x: Any, /) -> Array:
    return Array(elementwise("log10", x))


def logaddexp(x1: Any, x2: Any, /) -> Array:
    return Array(elementwise("logaddexp", x1, x2))


def sin(x: Any, /) -> Array:
    return Array(elementwise("sin", x))


def cos(x: Any, /) -> Array:
    return Array(elementwise("cos", x))


def tan(x: Any, /) -> Array:
    return Array(elementwise("tan", x))


def asin(x: Any, /) -> Array:
    return Array(elementwise("asin", x))


def acos(x: Any, /) -> Array:
    return Array(elementwise("acos", x))


def atan(x: Any, /) -> Array:
    return Array(elementwise("atan", x))


def atan2(x1: Any, x2: Any, /) -> Array:
    return Array(elementwise("atan2", x1, x2))


def sinh(x: Any, /) -> Array:
    return Array(elementwise("sinh", x))


def cosh(x: Any, /) -> Array:
    return Array(elementwise("cosh", x))


def tanh(x: Any, /) -> Array:
    return Array(elementwise("tanh", x))


def asinh(x: Any, /) -> Array:
    return Array(elementwise("asinh", x))


def acosh(x: Any, /) -> Array:
    return Array(elementwise("acosh", x))


def atanh(x: Any, /) -> Array:
    return Array(elementwise("atanh", x))


def equal(x1: Any, x2: Any, /) -> Array:
    return Array(elementwise("equal", x1, x2))


def not_equal(x1: Any, x2: Any, /) -> Array:
    return Array(elementwise("not_equal", x1, x2))


def less(x1: Any, x2: Any, /) -> Array:
    return Array(elementwise("less", x1, x2))


def less_equal(x1: Any, x2: Any, /) -> Array:
    return Array(elementwise("less_equal", x1, x2))


def greater(x1: Any, x2: Any, /) -> Array:
    return Array(elementwise("greater", x1, x2))


def greater_equal(x1: Any, x2: Any, /) -> Array:
    return Array(elementwise("greater_equal", x1, x2))


def isfinite(x: Any, /) -> Array:
    return Array(elementwise("isfinite", x))


def isinf(x: Any, /) -> Array:
    return Array(elementwise("isinf", x))


def isnan(x: Any, /) -> Array:
    return Array(elementwise("isnan", x))


def logical_and(x1: Any, x2: Any, /) -> Array:
    return Array(elementwise("logical_and", x1, x2))


def logical_or(x1: Any, x2: Any, /) -> Array:
    return Array(elementwise("logical_or", x1, x2))


def logical_xor(x1: Any, x2: Any, /) -> Array:
    return Array(elementwise("logical_xor", x1, x2))


def logical_not(x: Any, /) -> Array:
    return Array(elementwise("logical_not", x))


def bitwise_and(x1: Any, x2: Any, /) -> Array:
    return Array(elementwise("bitwise_and", x1, x2))


def bitwise_or(x1: Any, x2: Any, /) -> Array:
    return Array(elementwise("bitwise_or", x1, x2))


def bitwise_xor(x1: Any, x2: Any, /) -> Array:
    return Array(elementwise("bitwise_xor", x1, x2))


def bitwise_invert(x: Any, /) -> Array:
    return Array(elementwise("bitwise_invert", x))


def bitwise_left_shift(x1: Any, x2: Any, /) -> Array:
    return Array(elementwise("bitwise_left_shift", x1, x2))


def bitwise_right_shift(x1: Any, x2: Any, /) -> Array:
    return Array(elementwise("bitwise_right_shift", x1, x2))


def maximum(x1: Any, x2: Any, /) -> Array:
    return Array(elementwise("maximum", x1, x2))


def minimum(x1: Any, x2: Any, /) -> Array:
    return Array(elementwise("minimum", x1, x2))


def where(condition: Any, x1: Any, x2: Any, /) -> Array:
    """Elements of `x1` where `condition` is true, else of `x2`."""
    first, second = as_operand(x1), as_operand(x2)
    dtype = common_dtype((first, second))
    chosen = truth(as_operand(condition))
    return Array(record_one("where", (chosen, cast(first, dtype), cast(second, dtype))))


def clip(x: Any, /, min: Any = None, max: Any = None) -> Array:
    """`x` limited to `min` and `max`; either may be left out. The dtype stays that of `x` against Python numbers."""
    if min is None and max is None:
        return positive(x)
    if min is None:
        return minimum(x, max)
    if max is None:
        return maximum(x, min)
    operands = [as_operand(item) for item in (x, min, max)]
    dtype = common_dtype(operands)
    return Array(record_one("clip", [cast(operand, dtype) for operand in operands]))


def astype(x: Any, dtype: Any, /, *, copy: bool = True, device: Any = None) -> Array:
    """`x` converted to `dtype`. A lazy array is never changed, so `copy` makes no difference."""
    return Array(cast_value(as_operand(x), dtypes.dtype_name(dtype)))
