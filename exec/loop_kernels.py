"""`ElementwiseKernel` and `ReductionKernel`: kernels given as the body of a loop, with CuPy's constructors and calls.

>>> import coppermesh as cm
>>> xp = cm.xp
>>> difference = cm.ElementwiseKernel("T x, T y", "T z", "z = (x - y) * (x - y)", "squared_difference")
>>> norm = cm.ReductionKernel("T x", "T y", "x * x", "a + b", "y = sqrt(a)", "0", "norm")
>>> distance = norm(difference(xp.arange(6.0).reshape(2, 3), 1.0), axis=1)
"""

from collections.abc import Sequence
from typing import Any

from coppermesh.exec import elementwise, kernel_rules, reduction
from coppermesh.exec.errors import ProgramInvalid
from coppermesh.exec.graph import Handle, Operand, Value, operand_spec, pointing_at_caller, record
from coppermesh.exec.kernel_arguments import refuse_twice_written
from coppermesh.exec.program import ArraySpec, Attributes, KernelSource
from coppermesh.exec.promotion import PythonScalar, as_operand, cast
from coppermesh.exec.recorder import Array

MAX_BLOCK_SIZE = 1024


class ElementwiseKernel:
    """A kernel given as the body of a loop over elements, as `cupy.ElementwiseKernel`.

    Parameters are `'float32 x, raw T y'`: a dtype or a one-letter placeholder, `raw` for arrays indexed by hand.
    In `operation` each parameter is the element at hand, `i` its flat index, `n` and `_ind.size()` the loop's size.
    """

    @pointing_at_caller
    def __init__(  # noqa: PLR0917 - CuPy's order of arguments
        self,
        in_params: str,
        out_params: str,
        operation: str,
        name: str = "kernel",
        reduce_dims: bool = True,
        preamble: str = "",
        no_return: bool = False,
        return_tuple: bool = False,
        doc: str = "",
        *,
        loop_prep: str = "",
        after_loop: str = "",
        options: Sequence[str] = (),
    ) -> None:
        """`loop_prep` and `after_loop` run once per thread, before and after its part of the loop.

        `reduce_dims` is a matter of speed and decides nothing here.
        """
        texts: tuple[str, ...] = (in_params, out_params, operation, preamble)
        if loop_prep or after_loop:
            texts += (loop_prep, after_loop)
        self.name = self.__name__ = name
        self.operation = operation
        self.preamble = preamble
        self.reduce_dims = reduce_dims
        self.no_return = no_return
        self.return_tuple = return_tuple
        self.__doc__ = doc or type(self).__doc__
        self._source = KernelSource("elementwise", name, tuple(options), texts)
        kernel_rules.check_kernel(self._source)
        self.in_params, self.out_params = elementwise.parse_kernel(self._source)
        self.nin, self.nout = len(self.in_params), len(self.out_params)
        self.nargs = self.nin + self.nout

    @pointing_at_caller
    def __call__(
        self, *args: Any, size: int | None = None, block_size: int = 128, stream: Any = None
    ) -> Array | tuple[Array, ...] | None:
        """Record the loop. `args` are the inputs, or the inputs and then the arrays to write.

        Arrays that are not raw broadcast together; `size` must be given where there is none. `block_size` is checked
        and otherwise the device's own affair. Returns the output, or a tuple where there are several; outputs passed
        in are returned as new versions of themselves.
        """
        _refuse_stream(stream)
        if not 0 < block_size <= MAX_BLOCK_SIZE:
            raise ValueError(f"block_size must be from 1 to {MAX_BLOCK_SIZE}, not {block_size}")
        given = _given_outputs(self.name, self.nin, self.nout, args)
        items = [as_operand(item) for item in args]
        loop = elementwise.resolve(self.in_params, self.out_params, _specs(items), size)
        operands = _typed(items, loop.dtypes)
        results = record("elementwise_kernel", operands, {"kernel": 0, "size": size}, self._source)
        outputs = _outputs(results, given)
        if self.no_return:
            return None
        return outputs[0] if len(outputs) == 1 and not self.return_tuple else outputs

    def __repr__(self) -> str:
        return f"ElementwiseKernel({self.name!r})"


class ReductionKernel:
    """A kernel given as a map and a reduction of the mapped values, as `cupy.ReductionKernel`.

    `map_expr` maps an element, `reduce_expr` joins two mapped values `a` and `b`, and `post_map_expr` writes the
    outputs from the result `a`. `identity` starts the reduction; with None it starts from a value-initialised
    `reduce_type`, as CuPy's does, and an empty axis is refused. `reduce_type` is the first output's type if not given.
    """

    @pointing_at_caller
    def __init__(  # noqa: PLR0917 - CuPy's order of arguments
        self,
        in_params: str,
        out_params: str,
        map_expr: str,
        reduce_expr: str,
        post_map_expr: str,
        identity: Any,
        name: str = "reduce_kernel",
        reduce_type: str | None = None,
        reduce_dims: bool = True,
        preamble: str = "",
        options: Sequence[str] = (),
    ) -> None:
        """`reduce_dims` is a matter of speed and decides nothing here."""
        texts = (
            in_params,
            out_params,
            map_expr,
            reduce_expr,
            post_map_expr,
            "" if identity is None else str(identity),
            reduce_type or "",
            preamble,
        )
        self.name = self.__name__ = name
        self.map_expr, self.reduce_expr, self.post_map_expr = map_expr, reduce_expr, post_map_expr
        self.identity, self.reduce_type, self.preamble = texts[5], texts[6], preamble
        self.reduce_dims = reduce_dims
        self._source = KernelSource("reduction", name, tuple(options), texts)
        kernel_rules.check_kernel(self._source)
        self.in_params, self.out_params = reduction.parse_kernel(self._source)
        self.nin, self.nout = len(self.in_params), len(self.out_params)
        self.nargs = self.nin + self.nout

    @pointing_at_caller
    def __call__(
        self,
        *args: Any,
        out: Array | None = None,
        axis: int | Sequence[int] | None = None,
        keepdims: bool = False,
        stream: Any = None,
    ) -> Array | tuple[Array, ...]:
        """Record the reduction along `axis` (all axes where None). `args` are the inputs, or inputs and outputs.

        Returns the output, or a tuple where there are several. Raises ProgramInvalid for shapes, dtypes or axes that
        do not go together.
        """
        _refuse_stream(stream)
        if out is not None:
            if self.nout != 1:
                raise TypeError(
                    f"kernel {self.name} has {self.nout} outputs: pass them after the inputs, not as out="
                )
            if len(args) != self.nin:
                raise ValueError("the output is given twice: after the inputs, and as out=")
            args = (*args, out)
        given = _given_outputs(self.name, self.nin, self.nout, args)
        items = [as_operand(item) for item in args]
        specs = _specs(items)
        shape = reduction.broadcast_shape(self.in_params, specs[: self.nin])
        axes = _axes(axis, len(shape))
        resolved = reduction.resolve(
            self.in_params, self.out_params, specs, axes, keepdims, has_identity=bool(self.identity)
        )
        attrs: Attributes = {"kernel": 0, "axes": axes, "keepdims": bool(keepdims)}
        outputs = _outputs(
            record("reduction_kernel", _typed(items, resolved.dtypes), attrs, self._source), given
        )
        return outputs[0] if len(outputs) == 1 else outputs

    def __repr__(self) -> str:
        return f"ReductionKernel({self.name!r})"


def _refuse_stream(stream: Any) -> None:
    if stream is not None:
        raise TypeError("stream= is not possible: calls take effect in the order in which they are written")


def _given_outputs(name: str, inputs: int, outputs: int, args: Sequence[Any]) -> tuple[Array, ...]:
    """The arrays among `args` that are to be written. Raises TypeError where `args` cannot be what the kernel takes."""
    if len(args) not in (inputs, inputs + outputs):
        raise TypeError(
            f"kernel {name} takes {inputs} inputs, or {inputs + outputs} arguments with outputs;"
            f" {len(args)} were given"
        )
    given = tuple(args[inputs:])
    if not all(isinstance(output, Handle) for output in given):
        raise TypeError("output arguments must be lazy arrays")
    refuse_twice_written(given)
    return given


def _specs(items: Sequence[Operand | PythonScalar]) -> list[ArraySpec | None]:
    return [operand_spec(item) if isinstance(item, Value) else None for item in items]


def _typed(items: Sequence[Operand | PythonScalar], dtypes: Sequence[str]) -> list[Operand]:
    """The arguments with every number converted to its parameter's dtype."""
    return [
        item if isinstance(item, Value) else cast(item, dtype)
        for item, dtype in zip(items, dtypes, strict=False)
    ]


def _outputs(results: Sequence[Value], given: tuple[Array, ...]) -> tuple[Array, ...]:
    for handle, value in zip(given, results, strict=False):
        handle.recorded = value
    return given or tuple(Array(value) for value in results)


def _axes(axis: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(ndim))
    wanted = tuple(axis) if isinstance(axis, Sequence) else (axis,)
    axes = []
    for one in wanted:
        if not -ndim <= one < ndim:
            raise ProgramInvalid("bad-axis", f"axis {one} of {ndim} dimensions")
        axes.append(int(one) % ndim)
    if len(set(axes)) != len(axes):
        raise ProgramInvalid("bad-axis", f"an axis is given twice in {wanted}")
    return tuple(sorted(axes))
