"""`xp.random`: counter-based random numbers, the same bits on every runtime.

>>> from coppermesh.exec import xp
>>> rng = xp.random.generator(seed=7)
>>> rng.normal((2, 3)).shape
(2, 3)

Philox4x32-10 makes a block of four words from a key and a counter, with no state to keep. Every call of a generator
takes a stream of its own, so results depend on the seed and on how many calls came before, not on shapes or machines.
The seed is data: programs are the same for every seed. Numbers are made from the words by exact arithmetic. Not for
secrets.

`rand`, `randn`, `randint`, `uniform`, `normal` and their like are CuPy's names and arguments, by one generator of this
process: from `seed(n)`, else from a seed that the operating system gives at the first call.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from coppermesh.exec import dtypes, xp_names
from coppermesh.exec.graph import Handle, record_one
from coppermesh.exec.indexing import normalize_shape
from coppermesh.exec.program import Attributes
from coppermesh.exec.promotion import as_value
from coppermesh.exec.recorder import Array
from coppermesh.exec.xp_creation import asarray
from coppermesh.exec.xp_elementwise import astype
from coppermesh.exec.xp_windows import ndtri

Shape = int | tuple[int, ...] | list[int]
_WORD = np.uint64


class Generator:
    """Random arrays from a key of two uint32 words."""

    def __init__(self, key: Any, stream: int = 0) -> None:
        self._key = as_value(key)
        self._stream = stream

    def bits(self, shape: Shape = ()) -> Array:
        """Random uint32 words."""
        attrs: Attributes = {"shape": normalize_shape(shape), "stream": self._stream}
        words = record_one("philox", (self._key,), attrs)
        self._stream += 1
        return Array(words)

    def _wide(self, shape: Shape) -> tuple[Array, Array]:
        pairs = astype(self.bits((*normalize_shape(shape), 2)), "uint64")
        return pairs[..., 0], pairs[..., 1]

    def _whole(self, shape: Shape, bits: int) -> Array:
        """Random integers below 2**bits as uint64; `bits` from 33 to 64."""
        high, low = self._wide(shape)
        return (high << _WORD(bits - 32)) | (low >> _WORD(64 - bits))

    def uniform(
        self, shape: Shape = (), *, low: float = 0.0, high: float = 1.0, dtype: Any = "float64"
    ) -> Array:
        """Uniform in [low, high): multiples of 2**-53 (float64) or 2**-24 (float32) of the width."""
        name = dtypes.dtype_name(dtype)
        if name == "float32":
            unit = astype(self.bits(shape) >> np.uint32(8), name) * 2.0**-24
        elif name == "float64":
            unit = astype(self._whole(shape, 53), name) * 2.0**-53
        else:
            raise TypeError(f"uniform numbers are float32 or float64, not {name}")
        return unit if (low, high) == (0.0, 1.0) else unit * (high - low) + low

    def random(self, shape: Shape = (), dtype: Any = "float64") -> Array:
        """Uniform in [0, 1)."""
        return self.uniform(shape, dtype=dtype)

    def standard_normal(self, shape: Shape = (), dtype: Any = "float64") -> Array:
        """Normally distributed with mean 0 and standard deviation 1."""
        return self.normal(shape, dtype=dtype)

    def __getattr__(self, name: str) -> Any:
        """Only reached for what there is not: says what there is."""
        advice = _ADVICE.get(name, "there are random, uniform, normal, standard_normal, integers and bits")
        raise AttributeError(f"xp.random's generators have no {name!r}: {advice}")

    def normal(
        self, shape: Shape = (), *, mean: float = 0.0, std: float = 1.0, dtype: Any = "float64"
    ) -> Array:
        """Normally distributed, by the quantile of a uniform number with 52 bits; float32 is rounded from float64."""
        name = dtypes.dtype_name(dtype)
        if name not in dtypes.REAL_FLOATING:
            raise TypeError(f"normal numbers are float32 or float64, not {name}")
        odd = (self._whole(shape, 52) << _WORD(1)) | _WORD(1)  # the middle of each of 2**52 intervals
        value = ndtri(astype(odd, "float64") * 2.0**-53)
        scaled = value if (mean, std) == (0.0, 1.0) else value * std + mean
        return astype(scaled, name)

    def integers(self, low: int, high: int, shape: Shape = (), *, dtype: Any = "int64") -> Array:
        """Integers from `low` up to but not including `high`; their number is at most 2**32.

        By scaling 64 random bits: no value is more likely than another by more than 2**-32 of its chance.
        """
        count = int(high) - int(low)
        name = dtypes.dtype_name(dtype)
        if name not in dtypes.INTEGER or not 0 < count <= 1 << 32:
            raise ValueError("integers need an integer dtype and low < high, not more than 2**32 apart")
        limits = np.iinfo(name)
        if low < limits.min or high - 1 > limits.max:
            raise ValueError(f"{low} to {high} does not fit into {name}")
        first, second = self._wide(shape)
        carry = (second * _WORD(count)) >> _WORD(32)
        offset = astype((first * _WORD(count) + carry) >> _WORD(32), "int64" if name != "uint64" else name)
        return astype(offset + int(low), name)


def generator(seed: Any = 0) -> Generator:
    """A generator for a seed from 0 to 2**64 - 1, or for a key: an array of two uint32."""
    if isinstance(seed, Handle | np.ndarray):
        return Generator(seed)
    number = int(seed)
    if not 0 <= number < 1 << 64:
        raise ValueError("a seed is a number from 0 to 2**64 - 1")
    words = np.array([number & 0xFFFFFFFF, number >> 32], dtype=np.uint32)
    return Generator(asarray(words))


_default: list[Generator] = []
"""The generator behind the functions below, once there is one."""
_ADVICE: dict[str, str] = dict.fromkeys(
    ("choice", "permutation", "shuffle"), "xp.argsort(xp.random.rand(n)) is a random order"
)
_GENERATORS = "default_rng", "RandomState", "Generator"
_ADVICE |= dict.fromkeys(_GENERATORS, "use xp.random.generator(seed), with uniform, normal and integers")


def seed(seed: int | None = None) -> None:
    """Begin anew with this seed, from 0 to 2**64 - 1; with None, with one that the operating system gives."""
    entropy = np.random.SeedSequence().generate_state(1, np.uint64)[0] if seed is None else seed
    _default[:] = [generator(int(entropy))]


def _generator() -> Generator:
    if not _default:
        seed()
    return _default[0]


def uniform(low: float = 0.0, high: float = 1.0, size: Shape | None = None, dtype: Any = "float64") -> Array:
    """Uniform in [low, high)."""
    return _generator().uniform(() if size is None else size, low=low, high=high, dtype=dtype)


def normal(loc: float = 0.0, scale: float = 1.0, size: Shape | None = None, dtype: Any = "float64") -> Array:
    """Normally distributed."""
    return _generator().normal(() if size is None else size, mean=loc, std=scale, dtype=dtype)


def randint(low: int, high: int | None = None, size: Shape | None = None, dtype: Any = "int64") -> Array:
    """Integers from `low` up to but not including `high`, or from 0 up to `low`."""
    first, end = (0, low) if high is None else (low, high)
    return _generator().integers(first, end, () if size is None else size, dtype=dtype)


def random(size: Shape | None = None, dtype: Any = "float64") -> Array:
    """Uniform in [0, 1)."""
    return uniform(size=size, dtype=dtype)


random_sample = random


def standard_normal(size: Shape | None = None, dtype: Any = "float64") -> Array:
    """Normally distributed with mean 0 and deviation 1."""
    return normal(size=size, dtype=dtype)


def rand(*size: int, dtype: Any = "float64") -> Array:
    """Uniform in [0, 1): lengths as arguments."""
    return uniform(size=size, dtype=dtype)


def randn(*size: int, dtype: Any = "float64") -> Array:
    """Normally distributed: lengths as arguments."""
    return normal(size=size, dtype=dtype)


def __dir__() -> list[str]:
    return xp_names.public(globals())


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        raise xp_names.missing("coppermesh.xp.random", name, __dir__(), _ADVICE)
