"""ElementwiseKernel: parameter lists, type placeholders, loop shape, and the CUDA source of the loop.

The call rules are CuPy's (cupy.ElementwiseKernel). A parameter is `[raw] TYPE NAME`; a TYPE of one letter is a
placeholder that stands for one dtype throughout. Arrays decide the placeholders, output arrays first; a scalar is
converted to what was decided. Arrays that are not raw are broadcast together and give the loop its shape; where there
is none, `size` must be given. In the operation, `i` is the flat index, `n` the loop's size, `_ind.size()` as well;
a raw parameter is indexed by hand and knows `size()`.

`generate_source` writes a plain kernel over contiguous arrays, one element per thread in a grid-stride loop, so that a
backend needs to know nothing but `__global__` functions.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from coppermesh.exec.dtypes import NUMPY_DTYPES
from coppermesh.exec.errors import ProgramInvalid
from coppermesh.exec.program import ArraySpec, KernelSource
from coppermesh.exec.shapes import Shape, broadcast

THREADS_PER_BLOCK = 128
MAX_BLOCKS = 1 << 16
"""Beyond this the loop strides: a grid may be larger, but nothing is gained."""

_C_TYPES = {
    "bool": "bool",
    "int8": "signed char",
    "int16": "short",
    "int32": "int",
    "int64": "long long",
    "uint8": "unsigned char",
    "uint16": "unsigned short",
    "uint32": "unsigned int",
    "uint64": "unsigned long long",
    "float32": "float",
    "float64": "double",
}
_ALIASES = {"float": "float64", "int": "int64", "bool_": "bool"}
_PARAMETER_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_RESERVED = frozenset({"i", "n", "_ind"})


@dataclass(frozen=True, slots=True)
class ElementwiseParameter:
    """One parameter; `type` is a dtype name or a one-letter placeholder."""

    name: str
    type: str
    raw: bool

    @property
    def is_placeholder(self) -> bool:
        """Whether the type is decided by the arguments."""
        return len(self.type) == 1


@dataclass(frozen=True, slots=True)
class ResolvedLoop:
    """What one call means: the loop's shape and the dtype of each parameter and placeholder."""

    shape: Shape
    dtypes: tuple[str, ...]
    placeholders: Mapping[str, str]


def parse_parameters(text: str) -> tuple[ElementwiseParameter, ...]:
    """`'float32 x, raw T y'` as parameters. Raises ProgramInvalid (`kernel-parameters`)."""
    if not text.strip():
        return ()
    return tuple(_parse_parameter(part) for part in text.split(","))


def _parse_parameter(text: str) -> ElementwiseParameter:
    words = text.split()
    raw = words[:1] == ["raw"]
    if raw:
        words = words[1:]
    if len(words) != 2:
        raise ProgramInvalid("kernel-parameters", f"parameter {text.strip()!r}: write [raw] TYPE NAME")
    kind, name = words
    if not _PARAMETER_NAME.fullmatch(name) or name in _RESERVED:
        raise ProgramInvalid("kernel-parameters", f"{name!r} cannot name a parameter")
    if len(kind) == 1 and kind.isalpha():
        return ElementwiseParameter(name, kind, raw)
    kind = _ALIASES.get(kind, kind)
    if kind not in NUMPY_DTYPES:
        raise ProgramInvalid(
            "kernel-parameters", f"parameter {name}: {kind!r} is neither a dtype nor one letter"
        )
    return ElementwiseParameter(name, kind, raw)


def parse_kernel(
    kernel: KernelSource,
) -> tuple[tuple[ElementwiseParameter, ...], tuple[ElementwiseParameter, ...]]:
    """Input and output parameters of an elementwise kernel. Raises ProgramInvalid."""
    inputs, outputs = parse_parameters(kernel.texts[0]), parse_parameters(kernel.texts[1])
    names = [parameter.name for parameter in inputs + outputs]
    if len(set(names)) != len(names):
        raise ProgramInvalid("kernel-parameters", "two parameters have the same name")
    if not outputs:
        raise ProgramInvalid("kernel-parameters", "an elementwise kernel needs an output parameter")
    return inputs, outputs


def resolve(
    inputs: Sequence[ElementwiseParameter],
    outputs: Sequence[ElementwiseParameter],
    specs: Sequence[ArraySpec | None],
    size: int | None,
) -> ResolvedLoop:
    """What a call means. `specs` are those of the arrays given (None: a scalar), inputs first, then outputs if given.

    Raises ProgramInvalid: `bad-dtype`, `shape-mismatch` or `kernel-call`.
    """
    parameters = [*inputs, *outputs]
    placeholders: dict[str, str] = {}
    # Output arrays decide first, as in CuPy.
    order = [*range(len(inputs), len(specs)), *range(len(inputs))]
    for position in order:
        spec = specs[position]
        if spec is not None:
            _decide(parameters[position], spec.dtype, placeholders)
    shape = _loop_shape(parameters, specs, size)
    for position, parameter in enumerate(outputs, start=len(inputs)):
        given = specs[position] if position < len(specs) else None
        if given is not None and not parameter.raw and given.shape != shape:
            raise ProgramInvalid(
                "shape-mismatch", f"output {parameter.name} has shape {given.shape}, not {shape}"
            )
        if given is None and parameter.raw and size is None:
            raise ProgramInvalid("kernel-call", f"raw output {parameter.name}: pass the array or a size")
    dtypes = tuple(_type_of(parameter, placeholders) for parameter in parameters)
    return ResolvedLoop(shape, dtypes, placeholders)


def _decide(parameter: ElementwiseParameter, dtype: str, placeholders: dict[str, str]) -> None:
    wanted = placeholders.setdefault(parameter.type, dtype) if parameter.is_placeholder else parameter.type
    if dtype != wanted:
        raise ProgramInvalid("bad-dtype", f"kernel parameter {parameter.name} must be {wanted}, not {dtype}")


def _type_of(parameter: ElementwiseParameter, placeholders: Mapping[str, str]) -> str:
    if not parameter.is_placeholder:
        return parameter.type
    if parameter.type not in placeholders:
        raise ProgramInvalid(
            "bad-dtype", f"no array argument decides the type {parameter.type} of {parameter.name}"
        )
    return placeholders[parameter.type]


def _loop_shape(
    parameters: Sequence[ElementwiseParameter], specs: Sequence[ArraySpec | None], size: int | None
) -> Shape:
    shapes = [
        spec.shape
        for parameter, spec in zip(parameters, specs, strict=False)
        if spec is not None and not parameter.raw
    ]
    if size is not None:
        if shapes:
            raise ProgramInvalid("kernel-call", "size may be given only where every array is raw")
        return (size,)
    if not shapes:
        raise ProgramInvalid(
            "kernel-call", "the loop's size is undecided: pass an array that is not raw, or size"
        )
    shape: Shape = ()
    for one in shapes:
        shape = broadcast(shape, one)
    return shape


def generate_source(kernel: KernelSource, dtypes: Sequence[str], scalars: Sequence[bool]) -> str:
    """The CUDA source of the loop: one pointer (scalar: value) per parameter, then sizes of raw ones, then `n`.

    `dtypes` and `scalars` go with the parameters, inputs first. The first line of the user's operation is line 1 of
    "operation", so that a compiler's message points into what the user wrote.
    """
    inputs, outputs = parse_kernel(kernel)
    parameters = [*inputs, *outputs]
    arguments: list[str] = []
    bindings: list[str] = []
    prologue: list[str] = []
    placeholders: dict[str, str] = {}
    for position, (parameter, dtype) in enumerate(zip(parameters, dtypes, strict=True)):
        c_type = _c_type(dtype)
        if parameter.is_placeholder:
            placeholders[parameter.type] = c_type
        const = "const " if position < len(inputs) else ""
        if scalars[position]:
            arguments.append(f"{const}{c_type} {parameter.name}")
        elif parameter.raw:
            arguments += [f"{const}{c_type} *_raw_{parameter.name}", f"long long _size_{parameter.name}"]
            prologue.append(
                f"_coppermesh_raw<{const}{c_type}> {parameter.name}{{_raw_{parameter.name}, _size_{parameter.name}}};"
            )
        else:
            arguments.append(f"{const}{c_type} *_raw_{parameter.name}")
            bindings.append(f"{const}{c_type} &{parameter.name} = _raw_{parameter.name}[i];")
    arguments.append("long long n")
    return "\n".join(
        [
            "template <typename E> struct _coppermesh_raw {",
            "  E *data; long long count;",
            "  __device__ E &operator[](long long k) const { return data[k]; }",
            "  __device__ long long size() const { return count; }",
            "};",
            "struct _coppermesh_range { long long count; __device__ long long size() const { return count; } };",
            *(f"typedef {c_type} {letter};" for letter, c_type in sorted(placeholders.items())),
            '#line 1 "preamble"',
            kernel.texts[3],
            '#line 1 "generated"',
            f'extern "C" __global__ void {kernel.name}({", ".join(arguments)}) {{',
            "const _coppermesh_range _ind{n};",
            *prologue,
            "(void)_ind;",
            "const long long _step = (long long)gridDim.x * blockDim.x;",
            "for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += _step) {",
            *bindings,
            '#line 1 "operation"',
            f"{kernel.texts[2]};",
            "}",
            "}",
            "",
        ]
    )


def _c_type(dtype: str) -> str:
    if dtype not in _C_TYPES:
        raise ProgramInvalid("kernel-feature", f"{dtype} is not possible in an elementwise kernel yet")
    return _C_TYPES[dtype]
