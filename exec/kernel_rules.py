"""What a kernel node must look like, and what it gives: rules of `raw_kernel` and `elementwise_kernel`.

A raw kernel's results are new versions of the arrays it may write, in argument order; an elementwise kernel's results
are its outputs. Launch limits are CUDA's own (CUDA C++ Programming Guide, technical specifications, every compute
capability since 3.0), checked here so that a launch no device could make is refused on both sides.
"""

import re
from collections.abc import Sequence

from coppermesh.exec import cuda_source, elementwise, reduction
from coppermesh.exec.cuda_modules import check_module, has_state
from coppermesh.exec.cuda_needs import check_kernel_source
from coppermesh.exec.dtypes import ITEMSIZES
from coppermesh.exec.operations import (
    AttributeCheck,
    Call,
    define,
    is_bool,
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
_TEXTS = {"raw": (1,), "elementwise": (4, 6), "module": (4,), "reduction": (8,)}


def check_kernel(kernel: KernelSource) -> None:
    """Refuse a malformed kernel, whatever uses it. Raises ProgramInvalid."""
    if kernel.kind not in _TEXTS:
        raise refuse("kernel-kind", f"kernels of kind {kernel.kind!r} are not known")
    if len(kernel.texts) not in _TEXTS[kernel.kind]:
        numbers = " or ".join(map(str, _TEXTS[kernel.kind]))
        raise refuse("kernel-parameters", f"a kernel of kind {kernel.kind} has {numbers} texts")
    if not _KERNEL_NAME.fullmatch(kernel.name):
        raise refuse("kernel-name", f"{kernel.name[:80]!r} cannot name a kernel")
    if any("\0" in text for text in kernel.texts):
        raise refuse("kernel-source", "a kernel's source holds a NUL character")
    cuda_source.check_options(kernel.options)
    for text in kernel.texts:
        cuda_source.check_source(text)
    check_kernel_source(kernel)
    if kernel.kind == "raw" and has_state(kernel.texts[0]):
        raise refuse("kernel-state", "a source with variables that outlive a launch is a module")
    if kernel.kind in ("elementwise", "reduction") and any(
        has_state(t, constants=False) for t in kernel.texts
    ):
        raise refuse("kernel-state", "a variable that outlives a launch belongs in a RawModule")
    if kernel.kind == "module":
        check_module(kernel)
    if kernel.kind == "elementwise":
        elementwise.parse_kernel(kernel)
    if kernel.kind == "reduction":
        reduction.parse_kernel(kernel)


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


def kernel_of(call: Call, kind: str) -> KernelSource:
    """The node's kernel source. Raises ProgramInvalid where it is of another kind."""
    if call.kernel is None or call.kernel.kind != kind:
        raise refuse("kernel-kind", f"the node needs a kernel of kind {kind}")
    return call.kernel


def check_launch(call: Call, kernel: str) -> None:
    """Refuse a launch of `kernel` beyond CUDA's limits. Raises ProgramInvalid (`launch-limits`)."""
    name = f"kernel {kernel}"
    grid, block = call.integers("grid"), call.integers("block")
    if len(grid) != 3 or len(block) != 3:
        raise refuse("launch-limits", "grid and block have three lengths each")
    for what, lengths, limits in (("grid", grid, MAX_GRID), ("block", block, MAX_BLOCK)):
        if any(not 1 <= length <= limit for length, limit in zip(lengths, limits, strict=True)):
            raise refuse("launch-limits", f"{name}: {what} {lengths} is outside CUDA's limits {limits}")
    threads = block[0] * block[1] * block[2]
    if threads > MAX_THREADS_PER_BLOCK:
        raise refuse(
            "launch-limits",
            f"{name}: block {block} has {threads} threads, CUDA takes {MAX_THREADS_PER_BLOCK}",
        )
    if not 0 <= call.integer("shared_mem") <= MAX_SHARED_BYTES:
        raise refuse(
            "launch-limits",
            f"{name}: {call.attrs['shared_mem']} bytes of shared memory, at most {MAX_SHARED_BYTES}",
        )


def _raw_kernel(call: Call) -> tuple[ArraySpec, ...]:
    kernel = kernel_of(call, "raw")
    check_launch(call, kernel.name)
    written = written_arguments(kernel, [scalar is None for scalar in call.scalars])
    if not written:
        raise refuse("kernel-call", f"kernel {kernel.name} writes none of its arguments: it would do nothing")
    return tuple(call.specs[position] for position in written)


def _elementwise_kernel(call: Call) -> tuple[ArraySpec, ...]:
    kernel = kernel_of(call, "elementwise")
    inputs, outputs = elementwise.parse_kernel(kernel)
    if len(call.specs) not in (len(inputs), len(inputs) + len(outputs)):
        raise refuse(
            "kernel-call",
            f"kernel {kernel.name} takes {len(inputs)} inputs (and {len(outputs)} outputs), not {len(call.specs)}",
        )
    if any(scalar is not None for scalar in call.scalars[len(inputs) :]):
        raise refuse("kernel-call", "an output argument must be an array")
    arrays = [spec if s is None else None for spec, s in zip(call.specs, call.scalars, strict=True)]
    size = call.attrs["size"]
    if size is not None and not isinstance(size, int):
        raise refuse("bad-attribute", "size is an integer or absent")
    loop = elementwise.resolve(inputs, outputs, arrays, size)
    for parameter, spec, dtype in zip(inputs, call.specs, loop.dtypes, strict=False):
        need_dtype(spec, frozenset({dtype}), f"kernel argument {parameter.name}")
    given = call.specs[len(inputs) :]
    if given:
        return tuple(given)
    return tuple(array_spec(dtype, loop.shape) for dtype in loop.dtypes[len(inputs) :])


def launch_cost(call: Call, _results: Sequence[ArraySpec]) -> float:
    """16 operations for each thread: what a thread does is not known."""
    threads = 1.0
    for length in call.integers("grid") + call.integers("block"):
        threads *= length
    return 16.0 * threads


def _loop_cost(call: Call, results: Sequence[ArraySpec]) -> float:
    return 16.0 * max((spec.size for spec in (*results, *call.specs)), default=1)


LAUNCH_ATTRIBUTES: dict[str, AttributeCheck] = {
    "kernel": is_int,
    "grid": is_ints,
    "block": is_ints,
    "shared_mem": is_int,
}


def _loop_workspace(call: Call, results: Sequence[ArraySpec]) -> int:
    """Arguments that are broadcast, or not contiguous, are written out at the loop's size."""
    elements = max((spec.size for spec in results), default=0)
    return sum(max(spec.nbytes, elements * ITEMSIZES[spec.dtype]) for spec in call.specs)


def _reduction_kernel(call: Call) -> tuple[ArraySpec, ...]:
    kernel = kernel_of(call, "reduction")
    inputs, outputs = reduction.parse_kernel(kernel)
    if len(call.specs) not in (len(inputs), len(inputs) + len(outputs)):
        raise refuse(
            "kernel-call",
            f"kernel {kernel.name} takes {len(inputs)} inputs (and {len(outputs)} outputs), not {len(call.specs)}",
        )
    if any(scalar is not None for scalar in call.scalars[len(inputs) :]):
        raise refuse("kernel-call", "an output argument must be an array")
    resolved = resolve_reduction(call)
    for parameter, spec, dtype in zip(inputs, call.specs, resolved.dtypes, strict=False):
        need_dtype(spec, frozenset({dtype}), f"kernel argument {parameter.name}")
    given = call.specs[len(inputs) :]
    if given:
        return tuple(given)
    return tuple(array_spec(dtype, resolved.out_shape) for dtype in resolved.dtypes[len(inputs) :])


def resolve_reduction(call: Call) -> reduction.ResolvedReduction:
    """What a `reduction_kernel` node means. Raises ProgramInvalid."""
    kernel = kernel_of(call, "reduction")
    inputs, outputs = reduction.parse_kernel(kernel)
    arrays = [spec if s is None else None for spec, s in zip(call.specs, call.scalars, strict=True)]
    has_identity = bool(reduction.texts_of(kernel).identity)
    return reduction.resolve(
        inputs, outputs, arrays, call.integers("axes"), call.flag("keepdims"), has_identity=has_identity
    )


def _reduction_elements(call: Call) -> int:
    elements = 1
    for length in resolve_reduction(call).shape:
        elements *= length
    return elements


def _reduction_cost(call: Call, _results: Sequence[ArraySpec]) -> float:
    return 16.0 * _reduction_elements(call)


def _reduction_workspace(call: Call, _results: Sequence[ArraySpec]) -> int:
    """As `_loop_workspace`: at worst every input is written out at the size of all together."""
    elements = _reduction_elements(call)
    return sum(max(spec.nbytes, elements * ITEMSIZES[spec.dtype]) for spec in call.specs)


define("raw_kernel", (1, 128), _raw_kernel, launch_cost, LAUNCH_ATTRIBUTES)
define(
    "elementwise_kernel",
    (0, 128),
    _elementwise_kernel,
    _loop_cost,
    {"kernel": is_int, "size": _is_optional_int},
    workspace=_loop_workspace,
)
define(
    "reduction_kernel",
    (1, 128),
    _reduction_kernel,
    _reduction_cost,
    {"kernel": is_int, "axes": is_ints, "keepdims": is_bool},
    workspace=_reduction_workspace,
)
