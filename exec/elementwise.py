"""ElementwiseKernel: parameter lists, type placeholders, loop shape, and the CUDA source of the loop.

The call rules are CuPy's (cupy.ElementwiseKernel). A parameter is `[raw] TYPE NAME`; a TYPE of one letter is a
placeholder that stands for one dtype throughout. Arrays decide the placeholders, output arrays first; a scalar is
converted to what was decided. Arrays that are not raw are broadcast together and give the loop its shape; where there
is none, `size` must be given. In the operation, `i` is the flat index, `n` the loop's size, `_ind.size()` as well;
a raw parameter is indexed by hand and knows `size()`; given a number, it is that number. A parameter may be called `n`
(CuPy reserves the name, and takes it), which then hides the loop's size.

`generate_source` writes a plain kernel over contiguous arrays, in which each thread has a piece of the loop, so that a
backend needs to know nothing but `__global__` functions. CuPy gives each thread one element, and user's code can tell:
`return` in the operation ends a thread, a variable of `loop_prep` lives as long as one. `blocks_for` gives such code
the threads it counts on, and all other code pieces large enough for a vectorised loop.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from coppermesh.exec.cuda_source import tokens_and_macros
from coppermesh.exec.dtypes import HALF, NUMPY_DTYPES
from coppermesh.exec.errors import ProgramInvalid
from coppermesh.exec.program import ArraySpec, KernelSource
from coppermesh.exec.shapes import Shape, broadcast

THREADS_PER_BLOCK = 128
GENERATED_NAME = "_generated_kernel"
"""What the kernel is called in the source: a user's name for it may be a function of CUDA's, such as `norm`."""
MAX_BLOCKS = 64
"""More elements than this many blocks have threads go to each thread as one piece, so that its loop vectorises."""
MIN_SHARE = 16
"""Fewest elements of a thread, where there are so many."""
_TELLS_THREADS = frozenset({"return", "goto", "threadIdx", "blockIdx", "blockDim", "gridDim"})

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
    "float16": "float16",
    "float32": "float",
    "float64": "double",
    "complex64": "complex<float>",
    "complex128": "complex<double>",
}
_ALIASES = {
    "float": "float64",
    "int": "int64",
    "bool_": "bool",
    "complex": "complex128",
    "uint": "uint64",
    "double": "float64",
    "single": "float32",
}
_PARAMETER_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_RESERVED = frozenset({"i", "_ind"})
_REFUSED = {
    "half": "its name is float16",
    "cudaTextureObject_t": "textures are not possible",
}


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


@dataclass(frozen=True, slots=True)
class ElementwiseTexts:
    """The texts of a kernel of kind `elementwise`."""

    in_params: str
    out_params: str
    operation: str
    preamble: str
    loop_prep: str = ""
    after_loop: str = ""


def texts_of(kernel: KernelSource) -> ElementwiseTexts:
    """The texts by name."""
    return ElementwiseTexts(*kernel.texts)


def blocks_for(kernel: KernelSource, count: int) -> int:
    """How many blocks of `THREADS_PER_BLOCK` threads a loop over `count` elements gets."""
    texts = texts_of(kernel)
    words = set(tokens_and_macros(texts.operation)[0])
    for name, body in tokens_and_macros(texts.preamble)[1].items():
        words.update(body if name in words else ())
    if texts.loop_prep.strip() or texts.after_loop.strip() or words & _TELLS_THREADS:
        return -(-count // THREADS_PER_BLOCK)
    return min(MAX_BLOCKS, -(-count // (MIN_SHARE * THREADS_PER_BLOCK)))


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
        reason = _REFUSED.get(kind, f"{kind!r} is neither a dtype nor one letter")
        raise ProgramInvalid("kernel-parameters", f"parameter {name}: {reason}")
    return ElementwiseParameter(name, kind, raw)


def parse_kernel(
    kernel: KernelSource,
) -> tuple[tuple[ElementwiseParameter, ...], tuple[ElementwiseParameter, ...]]:
    """Input and output parameters of an elementwise kernel. Raises ProgramInvalid."""
    inputs, outputs = parse_parameters(kernel.texts[0]), parse_parameters(kernel.texts[1])
    names = [parameter.name for parameter in inputs + outputs]
    if len(set(names)) != len(names):
        raise ProgramInvalid("kernel-parameters", "two parameters have the same name")
    if len(kernel.texts) == 6 and not any(kernel.texts[4:]):
        raise ProgramInvalid(
            "kernel-parameters", "what comes before and after the loop is left out where empty"
        )
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
    shape = _loop_shape(parameters, specs, size)
    dtypes, placeholders = decide_types(inputs, outputs, specs)
    for position, parameter in enumerate(outputs, start=len(inputs)):
        given = specs[position] if position < len(specs) else None
        if given is not None and not parameter.raw and given.shape != shape:
            raise ProgramInvalid(
                "shape-mismatch", f"output {parameter.name} has shape {given.shape}, not {shape}"
            )
        if given is None and parameter.raw and size is None:
            raise ProgramInvalid("kernel-call", f"raw output {parameter.name}: pass the array or a size")
    return ResolvedLoop(shape, dtypes, placeholders)


def decide_types(
    inputs: Sequence[ElementwiseParameter],
    outputs: Sequence[ElementwiseParameter],
    specs: Sequence[ArraySpec | None],
) -> tuple[tuple[str, ...], Mapping[str, str]]:
    """The dtype of each parameter, inputs first, and of each placeholder. Raises ProgramInvalid (`bad-dtype`)."""
    parameters = [*inputs, *outputs]
    placeholders: dict[str, str] = {}
    # Output arrays decide first, as in CuPy.
    for position in [*range(len(inputs), len(specs)), *range(len(inputs))]:
        spec = specs[position]
        if spec is not None:
            _decide(parameters[position], spec.dtype, placeholders)
    return tuple(_type_of(parameter, placeholders) for parameter in parameters), placeholders


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


def generate_source(kernel: KernelSource, loop: ResolvedLoop, scalars: Sequence[bool]) -> str:
    """The CUDA source of the loop. `scalars` go with the parameters, inputs first.

    Arguments: for each parameter its value (a scalar), or its pointer, and for raw ones their shape and behind it their
    strides in bytes (a pointer to int64), how many dimensions they have, and their size; then the loop's shape (a
    pointer to int64) and its size. The first line of the user's operation is
    line 1 of "operation", so that a compiler's message points into what the user wrote.
    """
    texts = texts_of(kernel)
    inputs, outputs = parse_kernel(kernel)
    arguments: list[str] = []
    bindings: list[str] = []
    prologue: list[str] = []
    for position, (parameter, dtype) in enumerate(zip((*inputs, *outputs), loop.dtypes, strict=True)):
        element = ("const " if position < len(inputs) else "") + c_type(dtype)
        if scalars[position]:
            arguments.append(f"{element} {parameter.name}")
        elif parameter.raw:
            declared, made = raw_argument(parameter, element)
            arguments += declared
            prologue.append(made)
        else:
            arguments.append(f"{element} *_raw_{parameter.name}")
            bindings.append(f"{element} &{parameter.name} = _raw_{parameter.name}[i];")
    arguments += ["const ptrdiff_t *_loop_shape", "long long _n"]
    if not any(parameter.name == "n" for parameter in (*inputs, *outputs)):
        prologue.append("const long long n = _n; (void)n;")
    return "\n".join(
        [
            *prelude(kernel, loop.dtypes, loop.placeholders, texts.preamble),
            f'extern "C" __global__ void {GENERATED_NAME}({", ".join(arguments)}) {{',
            f"_coppermesh_index<{max(1, len(loop.shape))}> _ind{{_n, _loop_shape}};",
            *prologue,
            "(void)_ind;",
            '#line 1 "loop_prep"',
            f"{texts.loop_prep};",
            '#line 1 "generated"',
            "const long long _share = (_n - 1) / ((long long)gridDim.x * blockDim.x) + 1;",
            "const long long _begin = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * _share;",
            "const long long _end = _begin + _share < _n ? _begin + _share : _n;",
            "for (long long i = _begin; i < _end; i++) {",
            "_ind.at = i;",
            *bindings,
            "for (bool _once = true; _once; _once = false) {",  # `break` ends an element, as where each has a thread
            '#line 1 "operation"',
            f"{texts.operation};",
            "}",
            "}",
            '#line 1 "after_loop"',
            f"{texts.after_loop};",
            "}",
            "",
        ]
    )


def raw_argument(parameter: ElementwiseParameter, element: str) -> tuple[list[str], str]:
    """How a raw parameter is declared, and how the array that the user's code sees is made of it."""
    name = parameter.name
    parts = ("raw", "shape", "dimensions", "size")
    types = (f"{element} *", "const ptrdiff_t *", "long long ", "long long ")
    declared = [f"{kind}_{part}_{name}" for kind, part in zip(types, parts, strict=True)]
    values = ", ".join(f"_{part}_{name}" for part in parts)
    return declared, f"_coppermesh_raw<{element}> {name}{{{values}}};"


def prelude(
    kernel: KernelSource, dtypes: Sequence[str], placeholders: Mapping[str, str], preamble: str
) -> list[str]:
    """What comes before a generated kernel: helper types, the placeholders' types, the user's preamble."""
    is_complex = any(dtype.startswith("complex") for dtype in dtypes) or any(
        "complex" in text for text in kernel.texts
    )
    is_half = HALF in dtypes or any(HALF in text for text in kernel.texts)
    return [
        *(["#include <cupy/complex.cuh>"] if is_complex else []),
        *(["#include <cupy/float16.cuh>"] if is_half else []),
        "#include <cupy/carray.cuh>",
        *_HELPERS,
        *(f"typedef {c_type(dtype)} {letter};" for letter, dtype in sorted(placeholders.items())),
        '#line 1 "preamble"',
        preamble,
        '#line 1 "generated"',
    ]


_HELPERS = """
template <typename E> struct _coppermesh_raw {
  E *data; const ptrdiff_t *lengths; long long ndim, count;
  __device__ E &operator[](long long k) const { return data[k]; }
  template <typename I, int N> __device__ E &operator[](const I (&at)[N]) const {
    long long k = 0;
    for (int d = 0; d < N; d++) k = k * lengths[d] + (long long)at[d];
    return data[k];
  }
  __device__ ptrdiff_t size() const { return count; }
  __device__ const ptrdiff_t *shape() const { return lengths; }
  __device__ const ptrdiff_t *strides() const { return lengths + ndim; }
};
struct _coppermesh_range { long long count; __device__ ptrdiff_t size() const { return count; } };
template <int N> struct _coppermesh_index {
  long long count; const ptrdiff_t *lengths; long long at; ptrdiff_t place[N];
  __device__ _coppermesh_index(long long n, const ptrdiff_t *shape) : count(n), lengths(shape), at(0) {}
  static const int ndim = N;
  __device__ ptrdiff_t size() const { return count; }
  __device__ const ptrdiff_t *shape() const { return lengths; }
  __device__ const ptrdiff_t *get() {
    long long left = at;
    for (int d = N; d-- > 0; left /= lengths[d]) place[d] = left % lengths[d];
    return place;
  }
};
typedef ptrdiff_t IndexT;
""".strip().split("\n")


def c_type(dtype: str) -> str:
    """The C++ type of an element."""
    return _C_TYPES[dtype]
