"""What a kernel node must look like, and what it gives: rules of `raw_kernel` and `elementwise_kernel`.

A raw kernel's results are new versions of the arrays it may write, in argument order; an elementwise kernel's results
are its outputs. Launch limits are CUDA's own (CUDA C++ Programming Guide, technical specifications, every compute
capability since 3.0), checked here so that a launch no device could make is refused on both sides.
"""

import re
from collections.abc import Sequence

from coppermesh.exec import cuda_source, elementwise
from coppermesh.exec.dtypes import NUMPY_DTYPES
from coppermesh.exec.operations import (
    AttributeCheck,
    Call,
    define,
    is_int,
    is_ints,
    need_dtype,
)
from coppermesh.exec.program import ArraySpec, AttributeValue, KernelSource
from coppermesh.exec.shapes import array_spec, refuse

MAX_GRID = (2**31 - 1, 65_535, 65_535)
MAX_BLOCK = (1024, 1024, 64)
MAX_THREADS_PER_BLOCK = 1024
MAX_SHARED_BYTES = 227 * 1024
"""Most dynamic shared memory that any device offers to one block."""

_KERNEL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_TEXTS = {"raw": 1, "elementwise": 4}


def check_kernel(kernel: KernelSource) -> None:
    """Refuse a malformed kernel, whatever uses it. Raises ProgramInvalid."""
    if kernel.kind not in _TEXTS:
        raise refuse("kernel-kind", f"kernels of kind {kernel.kind!r} are not known")
    if len(kernel.texts) != _TEXTS[kernel.kind]:
        raise refuse("kernel-parameters", f"a kernel of kind {kernel.kind} has {_TEXTS[kernel.kind]} texts")
    if not _KERNEL_NAME.fullmatch(kernel.name):
        raise refuse("kernel-name", f"{kernel.name[:80]!r} cannot name a kernel")
    if any("\0" in text for text in kernel.texts):
        raise refuse("kernel-source", "a kernel's source holds a NUL character")
    cuda_source.check_options(kernel.options)
    for text in kernel.texts:
        cuda_source.check_source(text)
    if kernel.kind == "elementwise":
        elementwise.parse_kernel(kernel)


def written_arguments(kernel: KernelSource, is_array: Sequence[bool]) -> tuple[int, ...]:
    """Positions of the arguments of a raw kernel that it may write. Raises ProgramInvalid on a wrong number."""
    signature = cuda_source.read_signature(kernel.texts[0], kernel.name)
    if signature.found and len(signature.parameters) != len(is_array):
        raise refuse(
            "kernel-call",
            f"kernel {kernel.name} takes {len(signature.parameters)} arguments, {len(is_array)} were given",
        )
    return tuple(p for p, array in enumerate(is_array) if array and signature.written(p))


def _is_optional_int(value: AttributeValue) -> bool:
    return value is None or is_int(value)


def _kernel_of(call: Call, kind: str) -> KernelSource:
    if call.kernel is None or call.kernel.kind != kind:
        raise refuse("kernel-kind", f"the node needs a kernel of kind {kind}")
    return call.kernel


def _check_launch(call: Call) -> None:
    grid, block = call.integers("grid"), call.integers("block")
    if len(grid) != 3 or len(block) != 3:
        raise refuse("launch-limits", "grid and block have three lengths each")
    for what, lengths, limits in (("grid", grid, MAX_GRID), ("block", block, MAX_BLOCK)):
        if any(not 1 <= length <= limit for length, limit in zip(lengths, limits, strict=True)):
            raise refuse("launch-limits", f"{what} {lengths} is outside CUDA's limits {limits}")
    threads = block[0] * block[1] * block[2]
    if threads > MAX_THREADS_PER_BLOCK:
        raise refuse(
            "launch-limits", f"block {block} has {threads} threads, CUDA takes {MAX_THREADS_PER_BLOCK}"
        )
    if not 0 <= call.integer("shared_mem") <= MAX_SHARED_BYTES:
        raise refuse(
            "launch-limits", f"{call.attrs['shared_mem']} bytes of shared memory, at most {MAX_SHARED_BYTES}"
        )


def _raw_kernel(call: Call) -> tuple[ArraySpec, ...]:
    kernel = _kernel_of(call, "raw")
    _check_launch(call)
    written = written_arguments(kernel, [scalar is None for scalar in call.scalars])
    if not written:
        raise refuse("kernel-call", f"kernel {kernel.name} writes none of its arguments: it would do nothing")
    return tuple(call.specs[position] for position in written)


def _elementwise_kernel(call: Call) -> tuple[ArraySpec, ...]:
    kernel = _kernel_of(call, "elementwise")
    inputs, outputs = elementwise.parse_kernel(kernel)
    if len(call.specs) not in (len(inputs), len(inputs) + len(outputs)):
        raise refuse(
            "kernel-call",
            f"kernel {kernel.name} takes {len(inputs)} inputs (and {len(outputs)} outputs), not {len(call.specs)}",
        )
    if any(scalar is not None for scalar in call.scalars[len(inputs) :]):
        raise refuse("kernel-call", "an output argument must be an array")
    arrays = [spec if s is None else None for spec, s in zip(call.specs, call.scalars, strict=True)]
    for parameter, spec in zip(inputs, arrays, strict=False):
        if parameter.raw and spec is None:
            raise refuse("kernel-call", f"raw parameter {parameter.name} needs an array")
    size = call.attrs["size"]
    if size is not None and not isinstance(size, int):
        raise refuse("bad-attribute", "size is an integer or absent")
    loop = elementwise.resolve(inputs, outputs, arrays, size)
    for parameter, spec, dtype in zip(inputs, call.specs, loop.dtypes, strict=False):
        need_dtype(spec, frozenset({dtype}), f"kernel argument {parameter.name}")
    for dtype in loop.dtypes:
        need_dtype(
            ArraySpec(dtype, ()), frozenset(NUMPY_DTYPES) - {"complex64", "complex128"}, "kernel argument"
        )
    given = call.specs[len(inputs) :]
    if given:
        return tuple(given)
    return tuple(array_spec(dtype, loop.shape) for dtype in loop.dtypes[len(inputs) :])


def _launch_cost(call: Call, _results: Sequence[ArraySpec]) -> float:
    threads = 1.0
    for length in call.integers("grid") + call.integers("block"):
        threads *= length
    return 16.0 * threads


def _loop_cost(call: Call, results: Sequence[ArraySpec]) -> float:
    return 16.0 * max((spec.size for spec in (*results, *call.specs)), default=1)


_LAUNCH: dict[str, AttributeCheck] = {
    "kernel": is_int,
    "grid": is_ints,
    "block": is_ints,
    "shared_mem": is_int,
}

define("raw_kernel", (1, 128), _raw_kernel, _launch_cost, _LAUNCH)
define(
    "elementwise_kernel",
    (0, 128),
    _elementwise_kernel,
    _loop_cost,
    {"kernel": is_int, "size": _is_optional_int},
    1.0,
)
