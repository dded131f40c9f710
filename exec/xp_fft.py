"""`xp.fft`: discrete Fourier transforms, with the standard's names and NumPy's scaling (`norm`).

Real input to a complex transform is converted; integers become float64. Lengths and axes are written into the program
in full. `hfft` and `ihfft` are recorded as the transforms of real data that they mirror.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from coppermesh.exec import dtypes
from coppermesh.exec.graph import Value, record_one
from coppermesh.exec.indexing import normalize_axes, normalize_axis
from coppermesh.exec.program import Attributes
from coppermesh.exec.promotion import cast_value, elementwise, floating_value
from coppermesh.exec.recorder import Array
from coppermesh.exec.xp_arrangement import concat, roll
from coppermesh.exec.xp_creation import arange
from coppermesh.exec.xp_names import missing, public


def _complex(x: Any) -> Value:
    value = floating_value(x)
    return cast_value(value, dtypes.COMPLEX_OF.get(value.spec.dtype, value.spec.dtype))


def _real(x: Any) -> Value:
    value = floating_value(x)
    if value.spec.dtype in dtypes.COMPLEX:
        raise TypeError("a transform of real input cannot take complex numbers; use xp.fft.fft")
    return value


def _one(op: str, value: Value, length: int, axis: int, norm: str | None) -> Array:
    number = normalize_axis(axis, value.spec.ndim)
    attrs: Attributes = {"length": int(length), "axis": number, "norm": norm or "backward"}
    return Array(record_one(op, (value,), attrs))


def _own_length(value: Value, axis: int) -> int:
    return value.spec.shape[normalize_axis(axis, value.spec.ndim)]


def fft(x: Any, /, *, n: int | None = None, axis: int = -1, norm: str | None = None) -> Array:
    """The discrete Fourier transform along one axis, cut or zero-padded to length `n`."""
    value = _complex(x)
    return _one("fft", value, _own_length(value, axis) if n is None else n, axis, norm)


def ifft(x: Any, /, *, n: int | None = None, axis: int = -1, norm: str | None = None) -> Array:
    """The inverse of `fft`."""
    value = _complex(x)
    return _one("ifft", value, _own_length(value, axis) if n is None else n, axis, norm)


def rfft(x: Any, /, *, n: int | None = None, axis: int = -1, norm: str | None = None) -> Array:
    """The transform of real input: the `n // 2 + 1` terms that are not redundant."""
    value = _real(x)
    return _one("rfft", value, _own_length(value, axis) if n is None else n, axis, norm)


def irfft(x: Any, /, *, n: int | None = None, axis: int = -1, norm: str | None = None) -> Array:
    """The inverse of `rfft`; `n` is the length of the real result, by default even."""
    value = _complex(x)
    return _one("irfft", value, 2 * (_own_length(value, axis) - 1) if n is None else n, axis, norm)


_MIRRORED = {"backward": "forward", "forward": "backward", "ortho": "ortho"}


def _mirrored(norm: str | None) -> str:
    if (norm or "backward") not in _MIRRORED:
        raise ValueError(f"norm is 'backward', 'ortho' or 'forward', not {norm!r}")
    return _MIRRORED[norm or "backward"]


def hfft(x: Any, /, *, n: int | None = None, axis: int = -1, norm: str | None = None) -> Array:
    """The real transform of a signal with Hermitian symmetry, of which `x` is the first half."""
    value = _complex(x)
    length = 2 * (_own_length(value, axis) - 1) if n is None else n
    return _one("irfft", elementwise("conj", Array(value)), length, axis, _mirrored(norm))


def ihfft(x: Any, /, *, n: int | None = None, axis: int = -1, norm: str | None = None) -> Array:
    """The inverse of `hfft`."""
    value = _real(x)
    length = _own_length(value, axis) if n is None else n
    return Array(elementwise("conj", _one("rfft", value, length, axis, _mirrored(norm))))


def _many(
    op: str, value: Value, s: Sequence[int] | None, axes: Sequence[int] | None, norm: str | None
) -> Array:
    ndim = value.spec.ndim
    if axes is None:
        chosen = list(range(ndim)) if s is None else list(range(ndim - len(s), ndim))
    else:
        chosen = [normalize_axis(axis, ndim) for axis in axes]
    lengths = [value.spec.shape[axis] for axis in chosen] if s is None else [int(length) for length in s]
    if s is None and op == "irfftn" and lengths:
        lengths[-1] = 2 * (lengths[-1] - 1)
    attrs: Attributes = {"lengths": tuple(lengths), "axes": tuple(chosen), "norm": norm or "backward"}
    return Array(record_one(op, (value,), attrs))


def fftn(
    x: Any, /, *, s: Sequence[int] | None = None, axes: Sequence[int] | None = None, norm: str | None = None
) -> Array:
    """The transform along several axes, by default all."""
    return _many("fftn", _complex(x), s, axes, norm)


def ifftn(
    x: Any, /, *, s: Sequence[int] | None = None, axes: Sequence[int] | None = None, norm: str | None = None
) -> Array:
    """The inverse of `fftn`."""
    return _many("ifftn", _complex(x), s, axes, norm)


def rfftn(
    x: Any, /, *, s: Sequence[int] | None = None, axes: Sequence[int] | None = None, norm: str | None = None
) -> Array:
    """The transform of real input along several axes; the last of them is halved."""
    return _many("rfftn", _real(x), s, axes, norm)


def irfftn(
    x: Any, /, *, s: Sequence[int] | None = None, axes: Sequence[int] | None = None, norm: str | None = None
) -> Array:
    """The inverse of `rfftn`."""
    return _many("irfftn", _complex(x), s, axes, norm)


def fft2(
    x: Any, /, *, s: Sequence[int] | None = None, axes: Sequence[int] = (-2, -1), norm: str | None = None
) -> Array:
    """`fftn` along the last two axes (NumPy)."""
    return fftn(x, s=s, axes=axes, norm=norm)


def ifft2(
    x: Any, /, *, s: Sequence[int] | None = None, axes: Sequence[int] = (-2, -1), norm: str | None = None
) -> Array:
    """The inverse of `fft2`."""
    return ifftn(x, s=s, axes=axes, norm=norm)


def rfft2(
    x: Any, /, *, s: Sequence[int] | None = None, axes: Sequence[int] = (-2, -1), norm: str | None = None
) -> Array:
    """`rfftn` along the last two axes (NumPy)."""
    return rfftn(x, s=s, axes=axes, norm=norm)


def irfft2(
    x: Any, /, *, s: Sequence[int] | None = None, axes: Sequence[int] = (-2, -1), norm: str | None = None
) -> Array:
    """The inverse of `rfft2`."""
    return irfftn(x, s=s, axes=axes, norm=norm)


def fftfreq(n: int, /, *, d: float = 1.0, dtype: Any = None, device: Any = None) -> Array:
    """Frequencies of the terms of `fft` of length `n` with sample spacing `d`."""
    positive = arange((n - 1) // 2 + 1, dtype="float64")
    negative = arange(-(n // 2), 0, dtype="float64")
    return (concat([positive, negative]) / (n * d)).astype("float64" if dtype is None else dtype)


def rfftfreq(n: int, /, *, d: float = 1.0, dtype: Any = None, device: Any = None) -> Array:
    """Frequencies of the terms of `rfft` of length `n` with sample spacing `d`."""
    return (arange(n // 2 + 1, dtype="float64") / (n * d)).astype("float64" if dtype is None else dtype)


def fftshift(x: Any, /, *, axes: int | tuple[int, ...] | None = None) -> Array:
    """The zero frequency moved to the middle."""
    return _shift(x, axes, inverse=False)


def ifftshift(x: Any, /, *, axes: int | tuple[int, ...] | None = None) -> Array:
    """The inverse of `fftshift`."""
    return _shift(x, axes, inverse=True)


def _shift(x: Any, axes: int | tuple[int, ...] | None, *, inverse: bool) -> Array:
    shape = x.shape
    chosen = normalize_axes(axes, len(shape))
    shifts = tuple(-(shape[axis] // 2) if inverse else shape[axis] // 2 for axis in chosen)
    return roll(x, shifts, axis=chosen) if chosen else Array(floating_value(x))


if not TYPE_CHECKING:  # a type checker shall go on telling which names there are

    def __getattr__(name: str) -> Any:
        raise missing("coppermesh.xp.fft", name, public(globals()))
