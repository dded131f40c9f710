"""Arguments of a kernel call as a user writes them: lazy arrays, numbers, structures; grid and block.

Numbers are typed as CuPy types them. What the kernel's own declaration plainly contradicts is refused at once, at the
user's line: CuPy hands anything over, and the kernel reads garbage. Only what cannot be meant is refused; reading
memory as words of another size stays possible through unsigned pointers, bytes and `void *`.
"""

import operator
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from coppermesh.exec.cuda_source import PLAIN_TYPES, Parameter, Signature
from coppermesh.exec.dtypes import NUMPY_DTYPES, dtype_name
from coppermesh.exec.errors import ProgramInvalid
from coppermesh.exec.graph import Handle, Operand, Value, operand_spec, record_input
from coppermesh.exec.program import Scalar, make_scalar

POINTER_BYTES = 8
_VIEWS = frozenset(("getitem", "reshape", "permute_dims", "broadcast_to", "squeeze", "expand_dims", "flip"))


def dim3(lengths: Sequence[int] | int) -> tuple[int, ...]:
    """A grid or block as three lengths. Raises ProgramInvalid (`launch-limits`)."""
    given = (lengths,) if isinstance(lengths, int | np.integer) else tuple(lengths)
    if not 1 <= len(given) <= 3:
        raise ProgramInvalid("launch-limits", f"a grid or block has one to three lengths, not {len(given)}")
    try:
        return (*(operator.index(length) for length in given), 1, 1)[:3]
    except TypeError:
        raise ProgramInvalid(
            "launch-limits",
            f"a grid or block is whole numbers, not {given}: round up, as in (n + 255) // 256",
        ) from None


def kernel_operand(position: int, item: Any) -> tuple[Operand, bool]:
    """One argument as CuPy types it, and whether it is a structure, whose bytes are passed by value."""
    if isinstance(item, Handle):
        return item.recorded, False
    if isinstance(item, np.ndarray) and item.size == 1:
        item = item.reshape(())[()]  # CuPy passes a NumPy array of one element by value
    if isinstance(item, np.void):
        return record_input(np.frombuffer(item.tobytes(), np.uint8), "uint8"), True
    if isinstance(item, np.generic):
        return make_scalar(dtype_name(item.dtype), item), False
    if isinstance(item, bool):
        return make_scalar("bool", item), False
    if isinstance(item, int):
        return make_scalar("uint64" if item >= 1 << 63 else "int64", item), False
    if isinstance(item, float | complex):
        return make_scalar("complex128" if isinstance(item, complex) else "float64", item), False
    hint = ""
    if isinstance(item, np.ndarray):
        hint = "; make it lazy with xp.asarray"
    elif item is None:
        hint = "; a null pointer is 0"
    elif type(item).__name__ == "TextureObject":
        hint = "; textures are not possible"
    raise TypeError(f"kernel argument {position} is a {type(item).__name__}{hint}")


def check_types(name: str, signature: Signature, operands: Sequence[Operand]) -> None:
    """Refuse arguments that a plainly declared parameter cannot take. Raises ProgramInvalid (`kernel-call`)."""
    if not signature.found:
        return
    for position, (parameter, operand) in enumerate(zip(signature.parameters, operands, strict=False)):
        if fault := _fault(parameter, operand):
            raise ProgramInvalid("kernel-call", f"kernel {name}, argument {position}: {fault}")


def _fault(parameter: Parameter, operand: Operand) -> str | None:
    if parameter.element is None:
        return None
    wanted = NUMPY_DTYPES[PLAIN_TYPES[parameter.element]]
    given = NUMPY_DTYPES[operand_spec(operand).dtype]
    if isinstance(operand, Value):
        if not parameter.pointer:
            return None  # a structure by value, or an array where a number is due: the run tells, with sizes
        if _cannot_be_meant(wanted, given):
            return (
                f"the kernel reads {parameter.element} ({wanted}), the array is {given}; use astype, or declare the"
                " parameter void * to read the bytes as they are"
            )
        return None
    if parameter.pointer:
        if given.kind in "iu" and given.itemsize == POINTER_BYTES and int(operand.value()) == 0:
            return None
        return f"a {given} was given for a pointer; pass an array, or 0 for a null pointer"
    return _number_fault(parameter.element, wanted, given, operand)


def _cannot_be_meant(wanted: np.dtype[Any], given: np.dtype[Any]) -> bool:
    if wanted.itemsize == given.itemsize or min(wanted.itemsize, given.itemsize) == 1 or given.kind == "c":
        return False
    return wanted.kind != "u" and given.kind != "u"


def _number_fault(element: str, wanted: np.dtype[Any], given: np.dtype[Any], operand: Scalar) -> str | None:
    spelled = f"np.{wanted}(...)"
    if given.kind == "c" or (wanted.kind == "f") != (given.kind == "f"):
        return f"the kernel takes {element}, {given} was given; pass {spelled}"
    if wanted.kind == "f":
        return None if wanted == given else f"the kernel takes {element}, {given} was given; pass {spelled}"
    if given.itemsize < wanted.itemsize:
        return f"the kernel takes {element} of {wanted.itemsize} bytes, {given} was given; pass {spelled}"
    value = int(operand.value())
    if given.itemsize > wanted.itemsize and not -(1 << (8 * wanted.itemsize - 1)) <= value < 1 << (
        8 * wanted.itemsize
    ):
        return f"{value} does not fit {element}"
    return None


def refuse_twice_written(handles: Sequence[Any]) -> None:
    """Refuse one handle given twice to be written. Raises ProgramInvalid (`kernel-call`)."""
    if len({id(handle) for handle in handles}) != len(handles):
        raise ProgramInvalid("kernel-call", "the same array is passed twice to be written; pass a copy")


def warn_of_lost_writes(name: str, args: Sequence[Any], written: Sequence[int]) -> None:
    """Warn where a slice is written that only the argument list knows: the kernel's result would be lost."""
    for position in written:
        is_view = args[position].recorded.node.op in _VIEWS
        if is_view and sys.getrefcount(args[position]) <= 2:  # the argument list, and this call
            warnings.warn(
                f"kernel {name} may write argument {position}, a slice that nothing else names: what it writes is"
                " lost. A slice is a value of its own here: name it, call the kernel, then assign it back"
                " (part = y[2:5]; kernel(...); y[2:5] = part); or declare the parameter const",
                stacklevel=4,
            )
