"""What to write for NumPy's functions that the namespace does not have: short expressions of what it does have.

`x`, `y` are arrays, `n` a count, the rest as in NumPy's own documentation. An entry that starts with `use xp.` or
`use x` is an expression, checked against NumPy by `tests/unit/test_exec_advice.py`.
"""

_NAN = "use xp.where(xp.isnan(x), 0, x), and xp.sum(~xp.isnan(x)) for how many there are"
_SLICES = "use slices: x[:n], x[n:]"

NUMPY_ADVICE = {
    "apply_along_axis": "functions take axis=; a loop along an axis is xp.scan",
    "argwhere": "use xp.stack(xp.nonzero(x), axis=1)",
    "array_split": _SLICES,
    "asscalar": "use x.item()",
    "atleast_1d": "use x.reshape(-1), or x as it is",
    "atleast_2d": "use x[None, :] for a row, x[:, None] for a column",
    "average": "use xp.sum(x * weights) / xp.sum(weights)",
    "bincount": "use xp.add_at(xp.zeros(n, dtype=xp.int64), x, xp.ones_like(x, dtype=xp.int64))",
    "cbrt": "use xp.sign(x) * xp.abs(x) ** (1 / 3)",
    "column_stack": "use xp.stack((x, y), axis=1)",
    "convolve": "use xp.conv(x[None, None], xp.flip(y)[None, None], padding=y.size - 1)[0, 0]",
    "corrcoef": "subtract the means, and use d @ d.T divided by the standard deviations",
    "cov": "subtract the means of the rows; then it is d @ d.T / (n - 1)",
    "cross": "use xp.linalg.cross(x, y)",
    "cumprod": "use xp.cumulative_prod(x)",
    "deg2rad": "use x * (xp.pi / 180)",
    "diag": "use xp.eye(n) * x for a matrix with this diagonal, xp.linalg.diagonal(x) for that of a matrix",
    "diagonal": "use xp.linalg.diagonal(x)",
    "digitize": "use xp.searchsorted(bins, x, side='right')",
    "dstack": "use xp.stack((x, y), axis=2)",
    "ediff1d": "use xp.diff(x)",
    "fix": "use xp.trunc(x)",
    "flatnonzero": "use xp.nonzero(xp.ravel(x))[0]",
    "fliplr": "use xp.flip(x, axis=1)",
    "flipud": "use xp.flip(x, axis=0)",
    "fmod": "use x - y * xp.trunc(x / y)",
    "fromfunction": "use xp.meshgrid(..., indexing='ij'), and call the function",
    "gradient": "use (x[2:] - x[:-2]) / 2 inside, and differences at the ends",
    "heaviside": "use xp.where(x == 0, y, xp.where(x < 0, 0, 1))",
    "histogram": "use xp.searchsorted(edges, x, side='right'), and add_at to count",
    "indices": "use xp.meshgrid(..., indexing='ij')",
    "inner": "use xp.tensordot(x, y, axes=((-1,), (-1,)))",
    "int_": "use xp.int64",
    "interp": "use xp.searchsorted to find the interval, then take and arithmetic",
    "intp": "use xp.int64",
    "isin": "use xp.any(x[..., None] == y, axis=-1)",
    "ix_": "use x[rows][:, columns]",
    "kron": "use xp.reshape(x[:, None, :, None] * y[None, :, None, :], (rows, columns))",
    "lexsort": "sort by the last key first, with stable argsort each time",
    "logspace": "use 10.0 ** xp.linspace(...)",
    "mgrid": "use xp.meshgrid(..., indexing='ij')",
    "nan_to_num": "use xp.where(xp.isnan(x), 0, x)",
    "nanmax": _NAN,
    "nanmean": _NAN,
    "nanmin": _NAN,
    "nanstd": _NAN,
    "nansum": "use xp.sum(xp.where(xp.isnan(x), 0, x))",
    "ogrid": "use xp.arange(n)[:, None] and its like",
    "partition": "use xp.sort, or xp.topk for the largest",
    "percentile": "use xp.sort, and pick or interpolate by slices; xp.median is there",
    "piecewise": "use xp.where, one inside the other",
    "polyfit": "use xp.linalg.pinv(powers) @ y",
    "ptp": "use xp.max(x) - xp.min(x)",
    "quantile": "use xp.sort, and pick or interpolate by slices; xp.median is there",
    "rad2deg": "use x * (180 / xp.pi)",
    "rint": "use xp.round(x)",
    "rot90": "use xp.flip(xp.matrix_transpose(x), axis=0)",
    "select": "use xp.where, one inside the other",
    "sinc": "use xp.where(x == 0, 1.0, xp.sin(xp.pi * x) / xp.where(x == 0, 1.0, xp.pi * x))",
    "split": _SLICES,
    "tri": "use xp.tril(xp.ones((n, n)))",
    "vdot": "use xp.vecdot(xp.ravel(x), xp.ravel(y))",
}
"""By the name in NumPy's namespace, which CuPy has, too."""

LINALG_ADVICE = {
    "eig": "use eigh where the matrix is symmetric or Hermitian; else numpy.linalg.eig on what mesh.compute(x) gives",
    "eigvals": "use eigvalsh where the matrix is symmetric or Hermitian; else numpy.linalg.eigvals on mesh.compute(x)",
    "lstsq": "use xp.linalg.pinv(x) @ y",
}
"""By the name in `numpy.linalg`."""
