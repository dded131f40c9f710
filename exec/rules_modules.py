"""Rules of nodes that use a module: `module_kernel`, `module_state`, `module_set`, `module_get` (see `cuda_modules`).

Where the source has state, the first argument and the first result of a node are the state before and after it, an
empty uint8 array. `schema` holds a program to using each state once, and only where it belongs.

    module_state                                        -> state
    module_kernel [state] argument...                   -> [state] written argument...
    module_set     state  array                         -> state           the variable's bytes become the array's
    module_get     state                                -> state array     the variable's bytes, read
"""

from collections.abc import Sequence

from coppermesh.exec import cuda_source
from coppermesh.exec.cuda_modules import STATE_SPEC, ModuleParts, has_state, module_parts
from coppermesh.exec.kernel_rules import LAUNCH_ATTRIBUTES, check_launch, kernel_of, launch_cost
from coppermesh.exec.operations import Call, define, is_dtype, is_int, is_ints
from coppermesh.exec.program import ArraySpec, KernelSource
from coppermesh.exec.shapes import array_spec, refuse

MAX_BY_VALUE_BYTES = 4096
"""CUDA's bound on the parameters of one kernel, so on one structure among them."""
MAX_SYMBOL_BYTES = 1 << 40
OPERATIONS = frozenset(("module_kernel", "module_state", "module_set", "module_get"))


def needs_state(kernel: KernelSource) -> bool:
    """Whether uses of this module are ordered by a state."""
    return kernel.kind == "module" and has_state(module_parts(kernel).source)


def written_by(kernel: KernelSource, function: int, is_array: Sequence[bool]) -> tuple[int, ...]:
    """Positions of the arguments (the state is none) that a module's kernel may write.

    `is_array` is False for constants and for structures passed by value. Raises ProgramInvalid on a wrong number.
    """
    parts = module_parts(kernel)
    name = parts.kernels[function]
    signature = cuda_source.read_signature(parts.source, name)
    if signature.found and len(signature.parameters) != len(is_array):
        raise refuse(
            "kernel-call",
            f"kernel {name} takes {len(signature.parameters)} arguments, {len(is_array)} were given",
        )
    return tuple(p for p, array in enumerate(is_array) if array and signature.written(p))


def launch_arguments(call: Call) -> tuple[int, list[bool]]:
    """Where a `module_kernel` node's own arguments begin (after the state), and which of them are arrays."""
    assert call.kernel is not None
    first = 1 if needs_state(call.kernel) else 0
    by_value = call.integers("by_value")
    return first, [
        scalar is None and position not in by_value for position, scalar in enumerate(call.scalars[first:])
    ]


def _parts(call: Call) -> ModuleParts:
    return module_parts(kernel_of(call, "module"))


def _check_state(call: Call) -> None:
    if not call.specs or call.specs[0] != STATE_SPEC or call.scalars[0] is not None:
        raise refuse("kernel-state", "the module has variables: the first argument must be their state")


def _module_kernel(call: Call) -> tuple[ArraySpec, ...]:
    parts = _parts(call)
    assert call.kernel is not None
    function, by_value = call.integer("function"), call.integers("by_value")
    if not 0 <= function < len(parts.kernels):
        raise refuse("kernel-name", f"the module has no kernel {function}")
    check_launch(call, parts.kernels[function])
    state = needs_state(call.kernel)
    if state:
        _check_state(call)
    first, is_array = launch_arguments(call)
    specs = call.specs[first:]
    if list(by_value) != sorted(set(by_value)) or any(not 0 <= p < len(specs) for p in by_value):
        raise refuse("kernel-call", "structures passed by value are named by their positions, in order")
    for position in by_value:
        spec = specs[position]
        if (
            call.scalars[first + position] is not None
            or spec.dtype != "uint8"
            or spec.ndim != 1
            or not 0 < spec.size <= MAX_BY_VALUE_BYTES
        ):
            raise refuse(
                "kernel-call", f"argument {position}: a structure has 1 to {MAX_BY_VALUE_BYTES} bytes"
            )
    written = written_by(call.kernel, function, is_array)
    if not written and not state:
        raise refuse(
            "kernel-call",
            f"kernel {parts.kernels[function]} writes none of its arguments: it would do nothing",
        )
    return (*([STATE_SPEC] if state else []), *(specs[position] for position in written))


def _module_state(call: Call) -> ArraySpec:
    kernel = kernel_of(call, "module")
    if not needs_state(kernel):
        raise refuse("kernel-state", "the module's source has no variables that outlive a launch")
    return STATE_SPEC


def _symbol(call: Call, nbytes: int) -> None:
    parts = _parts(call)
    assert call.kernel is not None
    if not needs_state(call.kernel):
        raise refuse("kernel-state", "the module's source has no variables that outlive a launch")
    _check_state(call)
    if not 0 <= call.integer("symbol") < len(parts.symbols):
        raise refuse("kernel-name", f"the module names no variable {call.attrs['symbol']}")
    if not 0 <= call.integer("offset") <= call.integer("offset") + nbytes <= MAX_SYMBOL_BYTES:
        raise refuse("bad-attribute", f"{nbytes} bytes at {call.attrs['offset']} are in no variable")


def _module_set(call: Call) -> ArraySpec:
    if call.scalars[1] is not None:
        raise refuse("bad-argument", "a variable is set from an array")
    _symbol(call, call.specs[1].nbytes)
    return STATE_SPEC


def _module_get(call: Call) -> tuple[ArraySpec, ...]:
    spec = array_spec(call.word("dtype"), call.integers("shape"))
    _symbol(call, spec.nbytes)
    return STATE_SPEC, spec


def _bytes_cost(call: Call, results: Sequence[ArraySpec]) -> float:
    return 1000.0 + sum(spec.nbytes for spec in (*call.specs, *results))


_PLACE = {"kernel": is_int, "symbol": is_int, "offset": is_int}

define(
    "module_kernel",
    (0, 128),
    _module_kernel,
    launch_cost,
    {**LAUNCH_ATTRIBUTES, "function": is_int, "by_value": is_ints},
)
define("module_state", 0, _module_state, _bytes_cost, {"kernel": is_int})
define("module_set", 2, _module_set, _bytes_cost, _PLACE)
define("module_get", 1, _module_get, _bytes_cost, {**_PLACE, "dtype": is_dtype, "shape": is_ints})
