"""From what a user writes to what a program may say: Python scalars, mixed dtypes, NumPy habits.

Programs allow one dtype per operation. Here the operands are brought to it: by NumPy 2's rules, which extend the Array
API's to mixed kinds, with Python scalars taking the array's dtype where their kind allows it. Where the standard leaves
a case open and NumPy does not, NumPy's answer is recorded: integers given to `sin` become float64, booleans added are
or-ed. (NumPy would take `sin` of an int8 to float16, which programs do not have; here it is float64.)
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from coppermesh.exec import dtypes
from coppermesh.exec.graph import Handle, Operand, Value, operand_spec, record_input, record_one
from coppermesh.exec.program import Scalar, make_scalar

PythonScalar = bool | int | float | complex

_FLOATING_OPERATIONS = frozenset(
    [
        "acos",
        "acosh",
        "asin",
        "asinh",
        "atan",
        "atan2",
        "atanh",
        "copysign",
        "cos",
        "cosh",
        "divide",
        "exp",
        "expm1",
        "hypot",
        "log",
        "log10",
        "log1p",
        "log2",
        "logaddexp",
        "nextafter",
        "reciprocal",
        "signbit",
        "sin",
        "sinh",
        "sqrt",
        "tan",
        "tanh",
    ]
)
_BOOLEAN_TWINS = {
    "add": "logical_or",
    "multiply": "logical_and",
    "maximum": "logical_or",
    "minimum": "logical_and",
    "pow": "pow",
}
_ORDERINGS = frozenset(("less", "less_equal", "greater", "greater_equal", "floor_divide", "remainder", "pow"))
_LOGICAL = frozenset(("logical_and", "logical_not", "logical_or", "logical_xor"))
_NO_CHANGE_FOR_INTEGERS = frozenset(("ceil", "floor", "round", "trunc"))
_NO_CHANGE_FOR_REAL = frozenset(("conj", "real"))
_DEFAULTS = {"b": "bool", "i": "int64", "f": "float64", "c": "complex128"}


def as_operand(item: Any) -> Operand | PythonScalar:
    """A lazy array's value, a NumPy array as an input, a NumPy scalar as a typed constant, a Python scalar as is.

    Raises TypeError for anything else.
    """
    if isinstance(item, Handle):
        return item.recorded
    if isinstance(item, np.generic):
        name = dtypes.dtype_name(item.dtype)
        return make_scalar(name, item)
    if isinstance(item, bool | int | float | complex):
        return item
    if isinstance(item, np.ndarray | list | tuple):
        return input_value(np.asarray(item), copy=True)
    raise TypeError(f"{type(item).__name__} is not an array or a number")


def input_value(array: np.ndarray[Any, Any], *, copy: bool, dtype: str | None = None) -> Value:
    """A value that holds `array`'s data, C-contiguous and little-endian; `copy` guards against later changes."""
    name = dtypes.dtype_name(array.dtype if dtype is None else dtype)
    target = dtypes.NUMPY_DTYPES[name].newbyteorder("<")
    data = np.array(array, dtype=target, order="C", copy=True if copy else None)
    return record_input(data, name)


def common_dtype(items: Sequence[Operand | PythonScalar]) -> str:
    """The dtype that all items of one operation convert to."""
    result: str | None = None
    for item in items:
        if isinstance(item, Value | Scalar):
            dtype = operand_spec(item).dtype
            result = dtype if result is None else dtypes.promote(result, dtype)
    for item in items:
        if not isinstance(item, Value | Scalar):
            result = _default_dtype(item) if result is None else dtypes.promote_python_scalar(result, item)
    return "float64" if result is None else result


def _default_dtype(scalar: PythonScalar) -> str:
    return (
        np.result_type(type(scalar)).name
        if not isinstance(scalar, int) or isinstance(scalar, bool)
        else "int64"
    )


def cast(item: Operand | PythonScalar, dtype: str) -> Operand:
    """`item` as `dtype`. A Python integer that does not fit raises OverflowError; arrays convert as `astype` does."""
    if isinstance(item, Value):
        return item if item.spec.dtype == dtype else record_one("astype", (item,), {"dtype": dtype})
    with np.errstate(all="ignore"):
        if isinstance(item, Scalar):
            if item.dtype == dtype:
                return item
            return make_scalar(dtype, item.value().astype(dtypes.NUMPY_DTYPES[dtype]))
        return make_scalar(dtype, item)


def cast_value(item: Operand | PythonScalar, dtype: str) -> Value:
    """`item` as a value of `dtype`, also where it is a constant."""
    operand = cast(item, dtype)
    return operand if isinstance(operand, Value) else record_one("full", (operand,), {"shape": ()})


def as_value(item: Any) -> Value:
    """`item` as a value of its own dtype."""
    operand = as_operand(item)
    return operand if isinstance(operand, Value) else cast_value(operand, common_dtype([operand]))


def floating_value(item: Any) -> Value:
    """`item` as a floating-point value: integers and booleans become float64."""
    value = as_value(item)
    return value if value.spec.dtype in dtypes.FLOATING else cast_value(value, "float64")


def elementwise(op: str, *items: Any) -> Value:
    """Record an operation that works element by element, after promotion."""
    operands = [as_operand(item) for item in items]
    dtype = common_dtype(operands)
    if op in _FLOATING_OPERATIONS and dtype not in dtypes.FLOATING:
        dtype = "float64"
    elif op in _LOGICAL:
        return record_one(op, [truth(operand) for operand in operands])
    elif dtype == "bool":
        if op in _ORDERINGS:
            dtype = "int8" if op in ("floor_divide", "remainder", "pow") else "uint8"
        else:
            op = _BOOLEAN_TWINS.get(op, op)
    shortcut = _without_effect(op, dtype, operands)
    if shortcut is not None:
        return shortcut
    return record_one(op, [cast(operand, dtype) for operand in operands])


def _without_effect(op: str, dtype: str, operands: Sequence[Operand | PythonScalar]) -> Value | None:
    """The result of an operation that has nothing to do for this dtype, else None."""
    integral = dtype in dtypes.INTEGER_OR_BOOLEAN
    real = dtype not in dtypes.COMPLEX
    if (integral and op in _NO_CHANGE_FOR_INTEGERS) or (real and op in _NO_CHANGE_FOR_REAL):
        return cast_value(operands[0], dtype)
    if op == "abs" and dtype == "bool":
        return cast_value(operands[0], dtype)
    if integral and op in ("isfinite", "isinf", "isnan"):
        value = cast_value(operands[0], dtype)
        return record_one("equal" if op == "isfinite" else "not_equal", (value, value))
    if real and op == "imag":
        return zeros_like(cast_value(operands[0], dtype))
    return None


def truth(operand: Operand | PythonScalar) -> Operand:
    """`operand` as booleans: everything but zero is true."""
    if not isinstance(operand, Value | Scalar):
        return make_scalar("bool", bool(operand))
    if operand_spec(operand).dtype == "bool":
        return operand
    return record_one("not_equal", (operand, make_scalar(operand_spec(operand).dtype, 0)))


def zeros_like(value: Value) -> Value:
    """Zeros of the same dtype and shape."""
    return record_one("full", (make_scalar(value.spec.dtype, 0),), {"shape": value.spec.shape})


def reshape_value(value: Value, shape: Sequence[int]) -> Value:
    """`value` in another shape; no node where it has it already."""
    if value.spec.shape == tuple(shape):
        return value
    return record_one("reshape", (value,), {"shape": tuple(shape)})


def broadcast_value(value: Value, shape: Sequence[int]) -> Value:
    """`value` broadcast to `shape`; no node where it has it already."""
    if value.spec.shape == tuple(shape):
        return value
    return record_one("broadcast_to", (value,), {"shape": tuple(shape)})


def permute_value(value: Value, axes: Sequence[int]) -> Value:
    """`value` with its axes in another order."""
    if tuple(axes) == tuple(range(value.spec.ndim)):
        return value
    return record_one("permute_dims", (value,), {"axes": tuple(axes)})
