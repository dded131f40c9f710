"""Functions that NumPy lacks, written once for every array library: erf, the normal quantile, counter-based bits.

Only additions, multiplications, divisions, square roots and integer operations, each rounded as IEEE 754 says, so that
every runtime gives the same bits; `erf` of float64 alone uses the library's `exp`.

Sources: erf in single precision by the rational approximation that Eigen and XLA use; in double precision by the four
intervals of Sun's fdlibm (s_erf.c). Quantile: Wichura, algorithm AS 241 (PPND16), Applied Statistics 37 (1988).
Philox4x32-10: Salmon, Moraes, Dror and Shaw, Parallel random numbers: as easy as 1, 2, 3 (SC 2011).
"""

from collections.abc import Sequence
from math import prod, sqrt
from typing import Any, Final

_ERF32_TOP: Final = (
    -2.72614225801306e-10,
    2.77068142495902e-08,
    -2.10102402082508e-06,
    -5.69250639462346e-05,
    -7.34990630326855e-04,
    -2.95459980854025e-03,
    -1.60960333262415e-02,
)
_ERF32_BOTTOM: Final = (
    -1.45660718464996e-05,
    -2.13374055278905e-04,
    -1.68282697438203e-03,
    -7.37332916720468e-03,
    -1.42647390514189e-02,
)


def _horner(x: Any, coefficients: Sequence[float]) -> Any:
    """The polynomial with these coefficients, highest power first, in the dtype of `x`."""
    result = x * x.dtype.type(coefficients[0])
    for coefficient in coefficients[1:-1]:
        result += x.dtype.type(coefficient)
        result *= x
    result += x.dtype.type(coefficients[-1])
    return result


def erf(library: Any, x: Any) -> Any:
    """The error function of a float32 or float64 array, within 4 units in the last place."""
    x = library.asarray(x)
    if x.dtype.itemsize == 8:
        return _erf64(library, x)
    if x.ndim == 0:
        return erf(library, x.reshape(1)).reshape(())
    inside = library.clip(x, -4, 4)
    square = inside * inside
    result = _horner(square, _ERF32_TOP)
    result *= inside
    result /= _horner(square, _ERF32_BOTTOM)
    return result


# fmt: off
_SMALL = (
    (-2.37630166566501626084e-05, -5.77027029648944159157e-03, -2.84817495755985104766e-02,
     -3.25042107247001499370e-01, 1.28379167095512558561e-01),
    (-3.96022827877536812320e-06, 1.32494738004321644526e-04, 5.08130628187576562776e-03,
     6.50222499887672944485e-02, 3.97917223959155352819e-01, 1.0),
)
_MIDDLE = (
    (-2.16637559486879084300e-03, 3.54783043256182359371e-02, -1.10894694282396677476e-01,
     3.18346619901161753674e-01, -3.72207876035701323847e-01, 4.14856118683748331666e-01,
     -2.36211856075265944077e-03),
    (1.19844998467991074170e-02, 1.36370839120290507362e-02, 1.26171219808761642112e-01,
     7.18286544141962662868e-02, 5.40397917702171048937e-01, 1.06420880400844228286e-01, 1.0),
)
_LARGE = (
    (-9.81432934416914548592e00, -8.12874355063065934246e01, -1.84605092906711035994e02,
     -1.62396669462573470355e02, -6.23753324503260060396e01, -1.05586262253232909814e01,
     -6.93858572707181764372e-01, -9.86494403484714822705e-03),
    (-6.04244152148580987438e-02, 6.57024977031928170135e00, 1.08635005541779435134e02,
     4.29008140027567833386e02, 6.45387271733267880336e02, 4.34565877475229228821e02,
     1.37657754143519042600e02, 1.96512716674392571292e01, 1.0),
)
_LARGEST = (
    (-4.83519191608651397019e02, -1.02509513161107724954e03, -6.37566443368389627722e02,
     -1.60636384855821916062e02, -1.77579549177547519889e01, -7.99283237680523006574e-01,
     -9.86494292470009928597e-03),
    (-2.24409524465858183362e01, 4.74528541206955367215e02, 2.55305040643316442583e03,
     3.19985821950859553908e03, 1.53672958608443695994e03, 3.25792512996573918826e02,
     3.03380607434824582924e01, 1.0),
)
# fmt: on
_ERF_AT_ONE: Final = 8.45062911510467529297e-01


def _ratio(x: Any, pair: tuple[Sequence[float], Sequence[float]]) -> Any:
    return _horner(x, pair[0]) / _horner(x, pair[1])


def _erf64(library: Any, x: Any) -> Any:
    """Each interval's formula on the elements that fall into it."""
    flat = x.reshape(-1)
    size = library.abs(flat)
    result = library.where(library.isnan(flat), flat, library.copysign(1.0, flat))
    small = library.nonzero(size < 0.84375)[0]
    part = flat[small]
    result[small] = part + part * _ratio(part * part, _SMALL)
    middle = library.nonzero((size >= 0.84375) & (size < 1.25))[0]
    part = size[middle]
    result[middle] = library.copysign(_ERF_AT_ONE + _ratio(part - 1.0, _MIDDLE), flat[middle])
    for low, high, pair in ((1.25, 1 / 0.35, _LARGE), (1 / 0.35, 6.0, _LARGEST)):
        chosen = library.nonzero((size >= low) & (size < high))[0]
        part = size[chosen]
        rounded = part.astype("float32").astype("float64")
        rest = (rounded - part) * (rounded + part) + _ratio(1.0 / (part * part), pair)
        tail = library.exp(-rounded * rounded - 0.5625) * library.exp(rest) / part
        result[chosen] = library.copysign(1.0 - tail, flat[chosen])
    return result.reshape(x.shape)


# fmt: off
_CENTRE = (
    (2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4, 4.5921953931549871457e4,
     1.3731693765509461125e4, 1.9715909503065514427e3, 1.3314166789178437745e2, 3.3871328727963666080e0),
    (5.2264952788528545610e3, 2.8729085735721942674e4, 3.9307895800092710610e4, 2.1213794301586595867e4,
     5.3941960214247511077e3, 6.8718700749205790830e2, 4.2313330701600911252e1, 1.0),
)
_TAIL = (
    (7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1,
     1.27045825245236838258e0, 3.64784832476320460504e0, 5.76949722146069140550e0,
     4.63033784615654529590e0, 1.42343711074968357734e0),
    (1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2,
     1.48103976427480074590e-1, 6.89767334985100004550e-1, 1.67638483018380384940e0,
     2.05319162663775882187e0, 1.0),
)
_FAR_TAIL = (
    (2.01033439929228813265e-7, 2.71155556874348757815e-5, 1.24266094738807843860e-3,
     2.65321895265761230930e-2, 2.96560571828504891230e-1, 1.78482653991729133580e0,
     5.46378491116411436990e0, 6.65790464350110377720e0),
    (2.04426310338993978564e-15, 1.42151175831644588870e-7, 1.84631831751005468180e-5,
     7.86869131145613259100e-4, 1.48753612908506148525e-2, 1.36929880922735805310e-1,
     5.99832206555887937690e-1, 1.0),
)
# fmt: on
_LOG_SERIES: Final = tuple(1.0 / n for n in range(23, 0, -2))
_LOG_2: Final = 0.6931471805599453


def _logarithm(library: Any, x: Any) -> Any:
    """The natural logarithm of positive float64, from exact operations only: exponent, then the series of atanh."""
    fraction, exponent = library.frexp(x)
    low = fraction < sqrt(0.5)
    fraction = library.where(low, fraction * 2.0, fraction)
    exponent = exponent.astype("float64") - low.astype("float64")
    z = (fraction - 1.0) / (fraction + 1.0)
    return exponent * _LOG_2 + 2.0 * z * _horner(z * z, _LOG_SERIES)


def ndtri(library: Any, p: Any) -> Any:
    """The quantile of the standard normal distribution for float64 `p`; infinite at 0 and 1, NaN outside."""
    shape = p.shape
    p = library.asarray(p).reshape(-1)
    q = p - 0.5
    tail = library.minimum(p, 1.0 - p)
    result = library.where(tail == 0, library.copysign(float("inf"), q), float("nan"))
    centre = library.nonzero(library.abs(q) <= 0.425)[0]
    part = q[centre]
    result[centre] = part * _ratio(0.180625 - part * part, _CENTRE)
    outside = library.nonzero((library.abs(q) > 0.425) & (tail > 0))[0]
    root = library.sqrt(-_logarithm(library, tail[outside]))
    value = library.where(root <= 5.0, _ratio(root - 1.6, _TAIL), _ratio(root - 5.0, _FAR_TAIL))
    result[outside] = library.copysign(value, q[outside])
    return result.reshape(shape)


_PHILOX_FACTORS: Final = (0xD2511F53, 0xCD9E8D57)
_PHILOX_STEPS: Final = (0x9E3779B9, 0xBB67AE85)
_LOW_WORD: Final = 0xFFFFFFFF


def philox_block(library: Any, counter: Sequence[Any], key: Sequence[Any]) -> list[Any]:
    """Philox4x32-10: four words of counter and two of key, each a uint64 array below 2**32, to four random words."""
    word = library.uint64
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        first, second = c0 * word(_PHILOX_FACTORS[0]), c2 * word(_PHILOX_FACTORS[1])
        c0, c2 = (second >> word(32)) ^ c1 ^ k0, (first >> word(32)) ^ c3 ^ k1
        c1, c3 = second & word(_LOW_WORD), first & word(_LOW_WORD)
        k0 = (k0 + word(_PHILOX_STEPS[0])) & word(_LOW_WORD)
        k1 = (k1 + word(_PHILOX_STEPS[1])) & word(_LOW_WORD)
    return [c0, c1, c2, c3]


def philox(library: Any, key: Any, shape: Sequence[int], stream: int) -> Any:
    """uint32 of `shape`: element e is word e % 4 of the block with counter (e // 4, stream), low words first."""
    count = prod(shape)
    blocks = -(-count // 4)
    number = library.arange(blocks, dtype="uint64")
    word = library.uint64
    low = library.asarray(word(_LOW_WORD))
    streams = [library.full(blocks, part, dtype="uint64") for part in (stream & _LOW_WORD, stream >> 32)]
    keys = library.asarray(key).astype("uint64")
    counter = [number & low, number >> word(32), *streams]
    words = philox_block(library, counter, [keys[0:1], keys[1:2]])
    result = library.stack(words, axis=-1).astype("uint32")
    return result.reshape(-1)[:count].reshape(tuple(shape))
