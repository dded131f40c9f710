"""`RawKernel` and `ElementwiseKernel`: CUDA C++ kernels with CuPy's constructors and call forms, on lazy arrays.

>>> import numpy as np
>>> import coppermesh as cm
>>> xp = cm.xp
>>> double = cm.RawKernel('''
... extern "C" __global__ void twice(const float* x, float* y, int n) {
...     int i = blockIdx.x * blockDim.x + threadIdx.x;
...     if (i < n) y[i] = 2 * x[i];
... }''', "twice")
>>> x = xp.asarray(np.arange(256, dtype=np.float32))
>>> y = xp.empty_like(x)
>>> double((2,), (128,), (x, y, np.int32(256)))

A call runs nothing: it records a node. Arrays that the kernel may write (every pointer parameter that is not
`const T*`) become new versions, which the handles passed in name from then on. Handles to earlier versions keep them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from coppermesh.exec import elementwise, kernel_rules
from coppermesh.exec.dtypes import dtype_name
from coppermesh.exec.errors import ProgramInvalid
from coppermesh.exec.graph import Handle, Operand, Value, operand_spec, pointing_at_caller, record
from coppermesh.exec.program import Attributes, KernelSource, make_scalar
from coppermesh.exec.promotion import as_operand, cast
from coppermesh.exec.recorder import Array


class RawKernel:
    """A kernel given as CUDA C++ source, as `cupy.RawKernel`.

    `name` must be declared `extern "C"`. `options` may name the language standard, fast math, `-fmad` and `-D` macros.
    """

    @pointing_at_caller
    def __init__(self, code: str, name: str, options: Sequence[str] = ()) -> None:
        self.code = code
        self.name = name
        self.options = tuple(options)
        self._source = KernelSource("raw", name, self.options, (code,))
        kernel_rules.check_kernel(self._source)

    @pointing_at_caller
    def __call__(
        self, grid: Sequence[int], block: Sequence[int], args: Sequence[Any], *, shared_mem: int = 0
    ) -> None:
        """Record a launch: `grid` blocks of `block` threads (up to three lengths each), `shared_mem` in bytes.

        Arguments are lazy arrays and numbers. NumPy scalars keep their type; a Python int is passed as `long long`
        (`unsigned long long` from 2**63), a float as `double`, a bool as `bool`, as CuPy does.
        Raises ProgramInvalid for a wrong number of arguments or a launch beyond CUDA's limits.
        """
        operands = [_kernel_operand(position, item) for position, item in enumerate(args)]
        written = kernel_rules.written_arguments(self._source, [isinstance(o, Value) for o in operands])
        _refuse_twice_written([args[position] for position in written])
        attrs: Attributes = {
            "kernel": 0,
            "grid": _dim3(grid),
            "block": _dim3(block),
            "shared_mem": int(shared_mem),
        }
        for position, version in zip(
            written, record("raw_kernel", operands, attrs, self._source), strict=True
        ):
            args[position].recorded = version

    def __repr__(self) -> str:
        return f"RawKernel({self.name!r})"


class ElementwiseKernel:
    """A kernel given as the body of a loop over elements, as `cupy.ElementwiseKernel`.

    Parameters are `'float32 x, raw T y'`: a dtype or a one-letter placeholder, `raw` for arrays indexed by hand.
    In `operation` each parameter is the element at hand, `i` its flat index, `n` and `_ind.size()` the loop's size.
    """

    @pointing_at_caller
    def __init__(
        self,
        in_params: str,
        out_params: str,
        operation: str,
        name: str = "kernel",
        preamble: str = "",
        options: Sequence[str] = (),
    ) -> None:
        texts = (in_params, out_params, operation, preamble)
        self.name = name
        self.operation = operation
        self._source = KernelSource("elementwise", name, tuple(options), texts)
        kernel_rules.check_kernel(self._source)
        self.in_params, self.out_params = elementwise.parse_kernel(self._source)

    @pointing_at_caller
    def __call__(self, *args: Any, size: int | None = None) -> Array | tuple[Array, ...]:
        """Record the loop. `args` are the inputs, or the inputs and then the arrays to write.

        Arrays that are not raw broadcast together; `size` must be given where there is none. Returns the output, or a
        tuple where there are several; outputs passed in are returned as new versions of themselves.
        """
        inputs = len(self.in_params)
        if len(args) not in (inputs, inputs + len(self.out_params)):
            raise TypeError(
                f"kernel {self.name} takes {inputs} inputs, or {inputs + len(self.out_params)} arguments with outputs;"
                f" {len(args)} were given"
            )
        given = args[inputs:]
        if not all(isinstance(output, Handle) for output in given):
            raise TypeError("output arguments must be lazy arrays")
        _refuse_twice_written(given)
        operands = self._typed(args, size)
        results = record("elementwise_kernel", operands, {"kernel": 0, "size": size}, self._source)
        outputs = tuple(Array(value) for value in results)
        for handle, value in zip(given, results, strict=False):
            handle.recorded = value
        if given:
            outputs = given
        return outputs[0] if len(outputs) == 1 else outputs

    def _typed(self, args: Sequence[Any], size: int | None) -> list[Operand]:
        """The arguments with every number converted to its parameter's dtype."""
        items = [as_operand(item) for item in args]
        specs = [operand_spec(item) if isinstance(item, Value) else None for item in items]
        loop = elementwise.resolve(self.in_params, self.out_params, specs, size)
        return [
            item if isinstance(item, Value) else cast(item, dtype)
            for item, dtype in zip(items, loop.dtypes, strict=False)
        ]

    def __repr__(self) -> str:
        return f"ElementwiseKernel({self.name!r})"


def _dim3(lengths: Sequence[int]) -> tuple[int, ...]:
    given = (lengths,) if isinstance(lengths, int | np.integer) else tuple(lengths)
    if not 1 <= len(given) <= 3:
        raise ProgramInvalid("launch-limits", f"a grid or block has one to three lengths, not {len(given)}")
    return (*(int(length) for length in given), 1, 1)[:3]


def _kernel_operand(position: int, item: Any) -> Operand:
    """One argument of a raw kernel, typed as CuPy types it."""
    if isinstance(item, Handle):
        return item.recorded
    if isinstance(item, np.ndarray) and item.size == 1:
        item = item.reshape(())[()]  # CuPy passes a NumPy array of one element by value
    if isinstance(item, np.generic):
        return make_scalar(dtype_name(item.dtype), item)
    if isinstance(item, bool):
        return make_scalar("bool", item)
    if isinstance(item, int):
        return make_scalar("uint64" if item >= 1 << 63 else "int64", item)
    if isinstance(item, float | complex):
        return make_scalar("complex128" if isinstance(item, complex) else "float64", item)
    hint = "; make it lazy with xp.asarray" if isinstance(item, np.ndarray) else ""
    raise TypeError(f"kernel argument {position} is a {type(item).__name__}{hint}")


def _refuse_twice_written(handles: Sequence[Any]) -> None:
    if len({id(handle) for handle in handles}) != len(handles):
        raise ProgramInvalid("kernel-call", "the same array is passed twice to be written; pass a copy")
