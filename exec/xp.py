"""`coppermesh.xp`: the array namespace whose operations are recorded instead of run.

It follows the Python Array API standard (2024.12; data-apis.org/array-api) with NumPy's spellings beside it where
users of NumPy expect them, with `xp.linalg` and `xp.fft`. Arrays are lazy: shapes and dtypes are known at once,
values only after `mesh.compute`.

>>> import coppermesh as cm
>>> xp = cm.xp
>>> y = xp.mean(xp.asarray([[1.0, 2.0], [3.0, 4.0]]), axis=0)
>>> y.shape, y.dtype
((2,), dtype('float64'))

The functions live in `xp_creation`, `xp_elementwise`, `xp_reductions`, `xp_arrangement`, `xp_products`,
`xp_sets`, `xp_inspection`, `xp_linalg` and `xp_fft`; beyond the standard in `xp_windows`, `xp_random`
and `xp_scan`; for scripts written for CuPy in `xp_spellings`, with the kernels' classes.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import bool_ as bool
from numpy import complex64 as complex64
from numpy import complex128 as complex128
from numpy import float16 as float16
from numpy import float32 as float32
from numpy import float64 as float64
from numpy import int8 as int8
from numpy import int16 as int16
from numpy import int32 as int32
from numpy import int64 as int64
from numpy import uint8 as uint8
from numpy import uint16 as uint16
from numpy import uint32 as uint32
from numpy import uint64 as uint64

from coppermesh.exec import xp_fft, xp_linalg, xp_names, xp_random
from coppermesh.exec.kernels import ElementwiseKernel as ElementwiseKernel
from coppermesh.exec.kernels import RawKernel as RawKernel
from coppermesh.exec.kernels import RawModule as RawModule
from coppermesh.exec.kernels import ReductionKernel as ReductionKernel
from coppermesh.exec.module_arrays import ndarray as ndarray
from coppermesh.exec.recorder import Array as Array
from coppermesh.exec.xp_advice import NUMPY_ADVICE
from coppermesh.exec.xp_arrangement import add_at as add_at
from coppermesh.exec.xp_arrangement import argsort as argsort
from coppermesh.exec.xp_arrangement import broadcast_arrays as broadcast_arrays
from coppermesh.exec.xp_arrangement import broadcast_to as broadcast_to
from coppermesh.exec.xp_arrangement import concat as concat
from coppermesh.exec.xp_arrangement import concatenate as concatenate
from coppermesh.exec.xp_arrangement import expand_dims as expand_dims
from coppermesh.exec.xp_arrangement import flip as flip
from coppermesh.exec.xp_arrangement import matrix_transpose as matrix_transpose
from coppermesh.exec.xp_arrangement import moveaxis as moveaxis
from coppermesh.exec.xp_arrangement import pad as pad
from coppermesh.exec.xp_arrangement import permute_dims as permute_dims
from coppermesh.exec.xp_arrangement import put as put
from coppermesh.exec.xp_arrangement import ravel as ravel
from coppermesh.exec.xp_arrangement import repeat as repeat
from coppermesh.exec.xp_arrangement import reshape as reshape
from coppermesh.exec.xp_arrangement import roll as roll
from coppermesh.exec.xp_arrangement import searchsorted as searchsorted
from coppermesh.exec.xp_arrangement import sort as sort
from coppermesh.exec.xp_arrangement import squeeze as squeeze
from coppermesh.exec.xp_arrangement import stack as stack
from coppermesh.exec.xp_arrangement import swapaxes as swapaxes
from coppermesh.exec.xp_arrangement import take as take
from coppermesh.exec.xp_arrangement import take_along_axis as take_along_axis
from coppermesh.exec.xp_arrangement import tile as tile
from coppermesh.exec.xp_arrangement import topk as topk
from coppermesh.exec.xp_arrangement import transpose as transpose
from coppermesh.exec.xp_arrangement import unstack as unstack
from coppermesh.exec.xp_creation import arange as arange
from coppermesh.exec.xp_creation import array as array
from coppermesh.exec.xp_creation import asarray as asarray
from coppermesh.exec.xp_creation import empty as empty
from coppermesh.exec.xp_creation import empty_like as empty_like
from coppermesh.exec.xp_creation import eye as eye
from coppermesh.exec.xp_creation import from_dlpack as from_dlpack
from coppermesh.exec.xp_creation import full as full
from coppermesh.exec.xp_creation import full_like as full_like
from coppermesh.exec.xp_creation import identity as identity
from coppermesh.exec.xp_creation import linspace as linspace
from coppermesh.exec.xp_creation import meshgrid as meshgrid
from coppermesh.exec.xp_creation import ones as ones
from coppermesh.exec.xp_creation import ones_like as ones_like
from coppermesh.exec.xp_creation import tril as tril
from coppermesh.exec.xp_creation import triu as triu
from coppermesh.exec.xp_creation import zeros as zeros
from coppermesh.exec.xp_creation import zeros_like as zeros_like
from coppermesh.exec.xp_einsum import einsum as einsum
from coppermesh.exec.xp_elementwise import abs as abs
from coppermesh.exec.xp_elementwise import acos as acos
from coppermesh.exec.xp_elementwise import acosh as acosh
from coppermesh.exec.xp_elementwise import add as add
from coppermesh.exec.xp_elementwise import asin as asin
from coppermesh.exec.xp_elementwise import asinh as asinh
from coppermesh.exec.xp_elementwise import astype as astype
from coppermesh.exec.xp_elementwise import atan as atan
from coppermesh.exec.xp_elementwise import atan2 as atan2
from coppermesh.exec.xp_elementwise import atanh as atanh
from coppermesh.exec.xp_elementwise import bitwise_and as bitwise_and
from coppermesh.exec.xp_elementwise import bitwise_invert as bitwise_invert
from coppermesh.exec.xp_elementwise import bitwise_left_shift as bitwise_left_shift
from coppermesh.exec.xp_elementwise import bitwise_or as bitwise_or
from coppermesh.exec.xp_elementwise import bitwise_right_shift as bitwise_right_shift
from coppermesh.exec.xp_elementwise import bitwise_xor as bitwise_xor
from coppermesh.exec.xp_elementwise import ceil as ceil
from coppermesh.exec.xp_elementwise import clip as clip
from coppermesh.exec.xp_elementwise import conj as conj
from coppermesh.exec.xp_elementwise import copysign as copysign
from coppermesh.exec.xp_elementwise import cos as cos
from coppermesh.exec.xp_elementwise import cosh as cosh
from coppermesh.exec.xp_elementwise import divide as divide
from coppermesh.exec.xp_elementwise import equal as equal
from coppermesh.exec.xp_elementwise import exp as exp
from coppermesh.exec.xp_elementwise import expm1 as expm1
from coppermesh.exec.xp_elementwise import floor as floor
from coppermesh.exec.xp_elementwise import floor_divide as floor_divide
from coppermesh.exec.xp_elementwise import greater as greater
from coppermesh.exec.xp_elementwise import greater_equal as greater_equal
from coppermesh.exec.xp_elementwise import hypot as hypot
from coppermesh.exec.xp_elementwise import imag as imag
from coppermesh.exec.xp_elementwise import isfinite as isfinite
from coppermesh.exec.xp_elementwise import isinf as isinf
from coppermesh.exec.xp_elementwise import isnan as isnan
from coppermesh.exec.xp_elementwise import less as less
from coppermesh.exec.xp_elementwise import less_equal as less_equal
from coppermesh.exec.xp_elementwise import log as log
from coppermesh.exec.xp_elementwise import log1p as log1p
from coppermesh.exec.xp_elementwise import log2 as log2
from coppermesh.exec.xp_elementwise import log10 as log10
from coppermesh.exec.xp_elementwise import logaddexp as logaddexp
from coppermesh.exec.xp_elementwise import logical_and as logical_and
from coppermesh.exec.xp_elementwise import logical_not as logical_not
from coppermesh.exec.xp_elementwise import logical_or as logical_or
from coppermesh.exec.xp_elementwise import logical_xor as logical_xor
from coppermesh.exec.xp_elementwise import maximum as maximum
from coppermesh.exec.xp_elementwise import minimum as minimum
from coppermesh.exec.xp_elementwise import multiply as multiply
from coppermesh.exec.xp_elementwise import negative as negative
from coppermesh.exec.xp_elementwise import nextafter as nextafter
from coppermesh.exec.xp_elementwise import not_equal as not_equal
from coppermesh.exec.xp_elementwise import positive as positive
from coppermesh.exec.xp_elementwise import pow as pow
from coppermesh.exec.xp_elementwise import real as real
from coppermesh.exec.xp_elementwise import reciprocal as reciprocal
from coppermesh.exec.xp_elementwise import remainder as remainder
from coppermesh.exec.xp_elementwise import round as round
from coppermesh.exec.xp_elementwise import sign as sign
from coppermesh.exec.xp_elementwise import signbit as signbit
from coppermesh.exec.xp_elementwise import sin as sin
from coppermesh.exec.xp_elementwise import sinh as sinh
from coppermesh.exec.xp_elementwise import sqrt as sqrt
from coppermesh.exec.xp_elementwise import square as square
from coppermesh.exec.xp_elementwise import subtract as subtract
from coppermesh.exec.xp_elementwise import tan as tan
from coppermesh.exec.xp_elementwise import tanh as tanh
from coppermesh.exec.xp_elementwise import trunc as trunc
from coppermesh.exec.xp_elementwise import where as where
from coppermesh.exec.xp_inspection import __array_namespace_info__ as __array_namespace_info__
from coppermesh.exec.xp_inspection import can_cast as can_cast
from coppermesh.exec.xp_inspection import finfo as finfo
from coppermesh.exec.xp_inspection import iinfo as iinfo
from coppermesh.exec.xp_inspection import isdtype as isdtype
from coppermesh.exec.xp_inspection import result_type as result_type
from coppermesh.exec.xp_products import dot as dot
from coppermesh.exec.xp_products import matmul as matmul
from coppermesh.exec.xp_products import outer as outer
from coppermesh.exec.xp_products import tensordot as tensordot
from coppermesh.exec.xp_products import trace as trace
from coppermesh.exec.xp_products import vecdot as vecdot
from coppermesh.exec.xp_reductions import all as all
from coppermesh.exec.xp_reductions import any as any
from coppermesh.exec.xp_reductions import argmax as argmax
from coppermesh.exec.xp_reductions import argmin as argmin
from coppermesh.exec.xp_reductions import count_nonzero as count_nonzero
from coppermesh.exec.xp_reductions import cumulative_prod as cumulative_prod
from coppermesh.exec.xp_reductions import cumulative_sum as cumulative_sum
from coppermesh.exec.xp_reductions import diff as diff
from coppermesh.exec.xp_reductions import max as max
from coppermesh.exec.xp_reductions import mean as mean
from coppermesh.exec.xp_reductions import median as median
from coppermesh.exec.xp_reductions import min as min
from coppermesh.exec.xp_reductions import prod as prod
from coppermesh.exec.xp_reductions import std as std
from coppermesh.exec.xp_reductions import sum as sum
from coppermesh.exec.xp_reductions import var as var
from coppermesh.exec.xp_scan import scan as scan
from coppermesh.exec.xp_sets import nonzero as nonzero
from coppermesh.exec.xp_sets import unique_all as unique_all
from coppermesh.exec.xp_sets import unique_counts as unique_counts
from coppermesh.exec.xp_sets import unique_inverse as unique_inverse
from coppermesh.exec.xp_sets import unique_values as unique_values
from coppermesh.exec.xp_spellings import ADVICE as _CUPY_ADVICE
from coppermesh.exec.xp_spellings import allclose as allclose
from coppermesh.exec.xp_spellings import array_equal as array_equal
from coppermesh.exec.xp_spellings import ascontiguousarray as ascontiguousarray
from coppermesh.exec.xp_spellings import asnumpy as asnumpy
from coppermesh.exec.xp_spellings import get_array_module as get_array_module
from coppermesh.exec.xp_spellings import hstack as hstack
from coppermesh.exec.xp_spellings import isclose as isclose
from coppermesh.exec.xp_spellings import vstack as vstack
from coppermesh.exec.xp_windows import avg_pool as avg_pool
from coppermesh.exec.xp_windows import conv as conv
from coppermesh.exec.xp_windows import erf as erf
from coppermesh.exec.xp_windows import max_pool as max_pool
from coppermesh.exec.xp_windows import ndtri as ndtri

__array_api_version__ = xp_names.STANDARD

bool_ = bool
e = np.e
fft = xp_fft
inf = np.inf
linalg = xp_linalg
nan = np.nan
newaxis = None
pi = np.pi
random = xp_random

# NumPy's older spellings.
absolute = abs
amax = max
amin = min
arccos = acos
arccosh = acosh
arcsin = asin
arcsinh = asinh
arctan = atan
arctan2 = atan2
arctanh = atanh
conjugate = conj
cumsum = cumulative_sum
invert = bitwise_invert
left_shift = bitwise_left_shift
mod = remainder
power = pow
right_shift = bitwise_right_shift
true_divide = divide


def __dir__() -> list[str]:
    return xp_names.public(globals())


if not TYPE_CHECKING:  # a type checker shall go on telling which names there are

    def __getattr__(name: str) -> Any:
        raise xp_names.missing("coppermesh.xp", name, __dir__(), NUMPY_ADVICE | _CUPY_ADVICE)
