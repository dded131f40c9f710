"""ReductionKernel: what a call means, and the CUDA source of the reduction for machines without a GPU.

The call rules are CuPy's (cupy.ReductionKernel). Arrays that are not raw broadcast together; each element is mapped,
the mapped values along the axes are reduced by an expression in `a` and `b`, and the result `a` is mapped to the
outputs. Reduction starts from the identity, or from the value-initialised reduction type where there is none (then an
empty axis is refused). A raw argument needs the axes at the head of the shape: its index would mean nothing otherwise.

Order. On a CPU the values along the axes are taken in C order, in leaves of `LEAF` values: within a leaf eight partial
results take every eighth value in turn and are then joined in pairs, and leaves are joined like the digits of a binary
counter, two of one size at a time. So rounding errors grow with the logarithm of the count, as in NumPy's pairwise
sums, and the order depends on the count alone, never on threads. A GPU has an order of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from coppermesh.exec.elementwise import (
    GENERATED_NAME,
    ElementwiseParameter,
    c_type,
    decide_types,
    parse_parameters,
    prelude,
    raw_argument,
)
from coppermesh.exec.errors import ProgramInvalid
from coppermesh.exec.program import ArraySpec, KernelSource
from coppermesh.exec.shapes import Shape, broadcast

LEAF = 512
WIDE = 16
"""Outputs that one thread makes side by side where they are neighbours in memory: a line of cache holds as many."""
THREADS_PER_BLOCK = 32
MAX_BLOCKS = 1 << 16

_OWN_NAMES = frozenset({"a", "b"})


@dataclass(frozen=True, slots=True)
class ReductionTexts:
    """The texts of a kernel of kind `reduction`."""

    in_params: str
    out_params: str
    map_expr: str
    reduce_expr: str
    post_map_expr: str
    identity: str
    reduce_type: str
    preamble: str


@dataclass(frozen=True, slots=True)
class ResolvedReduction:
    """What one call means."""

    shape: Shape
    """Of the inputs together."""
    axes: tuple[int, ...]
    out_shape: Shape
    dtypes: tuple[str, ...]
    """Of each parameter, inputs first."""
    placeholders: Mapping[str, str]


def texts_of(kernel: KernelSource) -> ReductionTexts:
    """The texts by name."""
    return ReductionTexts(*kernel.texts)


def parse_kernel(
    kernel: KernelSource,
) -> tuple[tuple[ElementwiseParameter, ...], tuple[ElementwiseParameter, ...]]:
    """Input and output parameters. Raises ProgramInvalid (`kernel-parameters`)."""
    texts = texts_of(kernel)
    inputs, outputs = parse_parameters(texts.in_params), parse_parameters(texts.out_params)
    names = [parameter.name for parameter in inputs + outputs]
    if len(set(names)) != len(names) or _OWN_NAMES.intersection(names):
        raise ProgramInvalid(
            "kernel-parameters", "parameters have names of their own, and none is called a or b"
        )
    if not inputs or not outputs:
        raise ProgramInvalid("kernel-parameters", "a reduction needs an input and an output parameter")
    if any(parameter.raw for parameter in outputs):
        raise ProgramInvalid("kernel-parameters", "raw outputs are not possible in a reduction")
    for what, text in (
        ("map", texts.map_expr),
        ("reduce", texts.reduce_expr),
        ("post-map", texts.post_map_expr),
    ):
        if not text.strip():
            raise ProgramInvalid("kernel-parameters", f"the {what} expression is empty")
    return inputs, outputs


def resolve(
    inputs: Sequence[ElementwiseParameter],
    outputs: Sequence[ElementwiseParameter],
    specs: Sequence[ArraySpec | None],
    axes: Sequence[int],
    keepdims: bool,
    *,
    has_identity: bool,
) -> ResolvedReduction:
    """What a call means. `specs` are those of the arrays given (None: a scalar), inputs first, then outputs if given.

    Raises ProgramInvalid: `bad-dtype`, `bad-axis`, `shape-mismatch`, `empty-reduction` or `kernel-call`.
    """
    dtypes, placeholders = decide_types(inputs, outputs, specs)
    shape = broadcast_shape(inputs, specs)
    if list(axes) != sorted(set(axes)) or any(not 0 <= axis < len(shape) for axis in axes):
        raise ProgramInvalid("bad-axis", f"axes {tuple(axes)} of {len(shape)} dimensions")
    if any(p.raw for p in inputs) and tuple(axes) != tuple(range(len(axes))):
        raise ProgramInvalid(
            "kernel-call", "with a raw argument the axes must be the first ones: 0, or (0, 1), ..."
        )
    out_shape = tuple(
        1 if axis in axes else length for axis, length in enumerate(shape) if keepdims or axis not in axes
    )
    empty = any(shape[axis] == 0 for axis in axes)
    if empty and not has_identity and 0 not in out_shape:
        raise ProgramInvalid("empty-reduction", "no element to reduce, and the kernel has no identity")
    for parameter, given in zip(outputs, specs[len(inputs) :], strict=False):
        if given is not None and given.shape != out_shape:
            raise ProgramInvalid(
                "shape-mismatch", f"output {parameter.name} has shape {given.shape}, not {out_shape}"
            )
    return ResolvedReduction(shape, tuple(axes), out_shape, dtypes, placeholders)


def broadcast_shape(inputs: Sequence[ElementwiseParameter], specs: Sequence[ArraySpec | None]) -> Shape:
    """The shape of the inputs that are not raw, together. Raises ProgramInvalid where there is none."""
    shapes = [
        spec.shape
        for parameter, spec in zip(inputs, specs, strict=False)
        if spec is not None and not parameter.raw
    ]
    if not shapes:
        raise ProgramInvalid("kernel-call", "the shape is undecided: pass an array that is not raw")
    shape: Shape = ()
    for one in shapes:
        shape = broadcast(shape, one)
    return shape


def generate_source(
    kernel: KernelSource, resolved: ResolvedReduction, scalars: Sequence[bool], width: int = 1
) -> str:
    """The CUDA source: one thread for `width` neighbouring outputs, which it makes side by side.

    More than one is for arrays whose neighbouring outputs are closer in memory than the values of one output. The
    result is the same to the bit.

    Arguments: for each input its value (a scalar), pointer, shape and dimensions (raw: see `elementwise`), or pointer
    and element strides from one output to the next and from one reduced value to the next; for each output its
    pointer; then the counts of outputs and of values per output.
    """
    texts = texts_of(kernel)
    inputs, outputs = parse_kernel(kernel)
    arguments: list[str] = []
    prologue: list[str] = []
    reads: list[str] = []
    for parameter, dtype, scalar in zip(inputs, resolved.dtypes, scalars, strict=False):
        element = c_type(dtype)
        name = parameter.name
        if scalar:
            arguments.append(f"const {element} {name}")
        elif parameter.raw:
            declared, made = raw_argument(parameter, f"const {element}")
            arguments += declared
            prologue.append(made)
        else:
            arguments += [f"const {element} *_raw_{name}", f"long long _out_{name}", f"long long _in_{name}"]
            reads.append(f"const {element} {name} = _raw_{name}[_i * _out_{name} + _J * _in_{name}];")
    writes = []
    for parameter, dtype in zip(outputs, resolved.dtypes[len(inputs) :], strict=True):
        arguments.append(f"{c_type(dtype)} *_raw_{parameter.name}")
        writes.append(f"{c_type(dtype)} &{parameter.name} = _raw_{parameter.name}[_i];")
    arguments += ["long long _outputs", "long long _count"]
    reduce_type = texts.reduce_type or c_type(resolved.dtypes[len(inputs)])
    return "\n".join(
        [
            *prelude(kernel, resolved.dtypes, resolved.placeholders, texts.preamble),
            f"typedef {reduce_type} _type_reduce;",
            f'extern "C" __global__ void {GENERATED_NAME}({", ".join(arguments)}) {{',
            "const _coppermesh_range _in_ind{_outputs * _count}, _out_ind{_outputs};",
            *prologue,
            "(void)_in_ind; (void)_out_ind;",
            "const auto _reduce = [&](_type_reduce a, _type_reduce b) -> _type_reduce {",
            '#line 1 "reduce"',
            f"return ({texts.reduce_expr}\n);",
            '#line 1 "generated"',
            "};",
            "const auto _map = [&](long long _i, long long _J) -> _type_reduce {",
            "const long long _j = _J * _outputs + _i; (void)_j;",
            *reads,
            '#line 1 "map"',
            f"return static_cast<_type_reduce>({texts.map_expr}\n);",
            '#line 1 "generated"',
            "};",
            "const auto _start = [&]() -> _type_reduce {",
            f"return _type_reduce({texts.identity});" if texts.identity else "return _type_reduce();",
            "};",
            f"constexpr int _width = {width};",
            *_TREE,
            *writes,
            "{ _type_reduce a = _s; (void)a;",
            '#line 1 "post_map"',
            f"{texts.post_map_expr};",
            '#line 1 "generated"',
            "}",
            "}",
            "}",
            "}",
            "",
        ]
    )


_TREE = f"""
const long long _step = (long long)gridDim.x * blockDim.x * _width;
long long _first = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * _width;
for (; _first < _outputs; _first += _step) {{
  const int _wide = _width == 1 || _outputs - _first >= _width ? _width : (int)(_outputs - _first);
  _type_reduce _joined[48][_width];
  int _height = 0;
  for (long long _begin = 0, _leaf = 0; _begin < _count; _begin += {LEAF}, _leaf++) {{
    const long long _end = _begin + {LEAF} < _count ? _begin + {LEAF} : _count;
    long long _at = _begin;
    _type_reduce _value[_width];
    for (int _w = 0; _w < _wide; _w++) _value[_w] = _start();
    if (_end - _begin >= 16) {{
      _type_reduce _part[8][_width];
      for (int _lane = 0; _lane < 8; _lane++)
        for (int _w = 0; _w < _wide; _w++) _part[_lane][_w] = _start();
      for (; _at + 8 <= _end; _at += 8)
        for (int _lane = 0; _lane < 8; _lane++)
          for (int _w = 0; _w < _wide; _w++)
            _part[_lane][_w] = _reduce(_part[_lane][_w], _map(_first + _w, _at + _lane));
      for (int _w = 0; _w < _wide; _w++)
        _value[_w] = _reduce(_reduce(_reduce(_part[0][_w], _part[1][_w]), _reduce(_part[2][_w], _part[3][_w])),
                             _reduce(_reduce(_part[4][_w], _part[5][_w]), _reduce(_part[6][_w], _part[7][_w])));
    }}
    for (; _at < _end; _at++)
      for (int _w = 0; _w < _wide; _w++) _value[_w] = _reduce(_value[_w], _map(_first + _w, _at));
    for (long long _digits = _leaf; _digits & 1; _digits >>= 1) {{
      _height--;
      for (int _w = 0; _w < _wide; _w++) _value[_w] = _reduce(_joined[_height][_w], _value[_w]);
    }}
    for (int _w = 0; _w < _wide; _w++) _joined[_height][_w] = _value[_w];
    _height++;
  }}
  for (int _w = 0; _w < _wide; _w++) {{
    const long long _i = _first + _w;
    int _left = _height;
    _type_reduce _s = _start();
    if (_left) _s = _joined[--_left][_w];
    while (_left) _s = _reduce(_joined[--_left][_w], _s);
""".strip().split("\n")
