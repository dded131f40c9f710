"""Which features of CUDA C++ there are, what shows them in a source, and which runtimes have them: one table.

Used by everybody who must agree: the client and the agent before they send a program, the provider before it runs
one, the gate before a compiler, and `coppermesh check`. A device announces the codes of what its runtime can do
beyond `cuda-source` (plain barrier-free kernels); an order names the codes that its programs need, found in their
sources by this table. So a program is never sent to a device without. An agent that does not know a code declines.

The table is about words, not meaning: a feature named in a branch that is never compiled counts as used. What a
row's runtimes claim is shown by tests: `cpu` by tests/kernels against NumPy, `cuda` by NVRTC compiling it without a
GPU. A feature with no runtime is refused when the kernel is made, with its name and line.

To move a feature, change `runtimes` of its rows: rows with one code move together.
"""

import re
from dataclasses import dataclass

CPU = "cpu"
CUDA = "cuda"
EVERYWHERE = frozenset({CPU, CUDA})
CUDA_ONLY = frozenset({CUDA})
NOWHERE: frozenset[str] = frozenset()

MAX_CODES = 28
"""Codes that an announcement has room for, beside those of other kinds (`DeviceOffer.features` holds 32)."""

_USE_CUDA = "run the job on a CUDA device, or write the kernel without it"


@dataclass(frozen=True, slots=True)
class Feature:
    """One row: a feature of CUDA C++."""

    code: str
    """What announcements and orders call it. Rows may share one."""
    name: str
    """What a person calls it."""
    runtimes: frozenset[str]
    """Kinds of devices whose runtime has it."""
    instead: str
    """What to do about a refusal."""
    words: frozenset[str] = frozenset()
    """Identifiers that show it."""
    pattern: str = ""
    """A regular expression of further identifiers."""
    namespaces: frozenset[str] = frozenset()
    """Ordinary words that show it only before `::`."""
    headers: str = ""
    """A regular expression of the headers that show it. They may be included where a runtime has the feature."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


FEATURES: tuple[Feature, ...] = (
    Feature(
        "cuda-shared-memory", "shared memory", EVERYWHERE, _USE_CUDA, words=_words("__shared__"),
    ),
    Feature(
        "cuda-barriers", "barriers", EVERYWHERE, _USE_CUDA, pattern=r"__syncthreads(?:_and|_or|_count)?",
    ),
    Feature(
        "cuda-warps", "warp shuffles", EVERYWHERE, _USE_CUDA, pattern=r"__shfl(?:_up|_down|_xor)?_sync",
    ),
    Feature(
        "cuda-warps", "warp votes", EVERYWHERE, _USE_CUDA,
        words=_words("__activemask"), pattern=r"__(?:any|all|ballot)_sync",
    ),
    Feature(
        "cuda-warps", "warp votes and reductions", EVERYWHERE, _USE_CUDA,
        pattern=r"__match_(?:any|all)_sync|__reduce_(?:add|min|max|and|or|xor)_sync",
    ),
    Feature(
        "cuda-warps", "warp synchronisation", EVERYWHERE, _USE_CUDA, words=_words("__syncwarp"),
    ),
    Feature(
        "cuda-unsynchronised-warps", "warp functions that Volta took away", NOWHERE, "use the one ending in _sync",
        pattern=r"__shfl(?:_up|_down|_xor)?|__(?:any|all|ballot)",
    ),
    Feature(
        "cuda-named-barriers", "barriers by number", CUDA_ONLY, _USE_CUDA, pattern=r"__barrier_sync\w*|__uni_sync",
    ),
    Feature(
        "cuda-groups", "cooperative groups", EVERYWHERE, _USE_CUDA,
        words=_words("cooperative_groups"), headers=r"cooperative_groups(?:/reduce)?\.h",
    ),
    Feature(
        "cuda-large-tiles", "groups of several warps", CUDA_ONLY,
        "run the job on a CUDA device, or use tiles of at most 32 threads",
        words=_words("block_tile_memory thread_block_tile_memory"),  # and tiles of a larger size: cuda_gate tells
    ),
    Feature(
        "cuda-half", "half precision", EVERYWHERE,
        "run the job on a CUDA device, or compute in float",
        words=_words("__half __half2 __half_raw __half2_raw __float2half __half2float __float2half_rn float16"),
        # `__hadd` alone is the average of two integers.
        pattern=r"__hadd(?:2|_)\w*|__h(?:sub|mul|div|neg|abs|fma|eq|ne|lt|le|gt|ge|max|min)2?(?:_\w+)?"
        r"|__(?:low|high)2half\w*|__half22\w+|__halves2half2|h(?:sqrt|rsqrt|exp|log|sin|cos|rcp|floor|ceil|trunc|rint)",
        headers=r"cuda_fp16\.h|cupy/float16\.cuh",
    ),
    Feature(
        "cuda-bfloat16", "bfloat16", CUDA_ONLY, "run the job on a CUDA device, or compute in float",
        pattern=r"_{0,2}nv_bfloat16\w*|__float2bfloat16\w*|__bfloat16\w*", headers=r"cuda_bf16\.h",
    ),
    Feature(
        "cuda-complex", "complex number headers, and CuPy's others", EVERYWHERE, _USE_CUDA,
        words=_words("cuComplex cuFloatComplex cuDoubleComplex"),
        headers=r"cuComplex\.h|cupy/(?:complex\.cuh|carray\.cuh|math_constants\.h)",
    ),
    Feature(
        "cuda-inline-ptx", "inline assembly", CUDA_ONLY,
        "run the job on a CUDA device, or write it in C++", words=_words("asm __asm __asm__"),
    ),
    Feature(
        "cuda-textures", "textures", NOWHERE, "pass a plain array and index it",
        words=_words("cudaTextureObject_t"), pattern=r"tex(?:1D|2D|3D|Cubemap)\w*", headers=r"\w*texture_\w+\.h",
    ),
    Feature(
        "cuda-surfaces", "surfaces", NOWHERE, "pass a plain array and index it",
        words=_words("cudaSurfaceObject_t"), pattern=r"surf(?:1D|2D|3D|Cubemap)\w*", headers=r"\w*surface_\w+\.h",
    ),
    Feature(
        "cuda-dynamic-parallelism", "dynamic parallelism", NOWHERE, "record one launch after the other",
        words=_words("<<<"), pattern=r"cudaLaunch\w*|cudaDeviceSynchronize|cudaGraph\w*|cudaStream\w+",
        headers=r"cuda_device_runtime_api\.h",
    ),
    Feature(
        "cuda-grid-sync", "grid synchronisation", NOWHERE, "split the kernel in two where the grid must wait",
        words=_words("this_multi_grid multi_grid_group"),  # and what waits for a `grid_group`: cuda_gate tells
    ),
    Feature(
        "cuda-clusters", "thread block clusters", NOWHERE, "use blocks alone",
        words=_words("__cluster_dims__ this_cluster cluster_group __clusterDim __clusterIdx __cluster_barrier_sync"),
        pattern=r"__cluster\w+",
    ),
    Feature(
        "cuda-managed-memory", "managed memory", NOWHERE, "pass an array as an argument",
        words=_words("__managed__"), pattern=r"cudaMallocManaged\w*",
    ),
    Feature(
        "cuda-device-heap", "the device heap", EVERYWHERE, "allocate arrays outside the kernel and pass them",
        words=_words("malloc new"),
    ),
    Feature(
        "cuda-runtime-api", "the CUDA runtime's functions", NOWHERE, "allocate and copy outside the kernel",
        pattern=r"cuda(?:Malloc|Free|Memcpy|Memset|Event|Func|Get|Set|Peek|Occupancy)\w*",
    ),
    Feature(
        "cuda-wmma", "tensor-core (wmma) operations", NOWHERE, "use xp.matmul",
        words=_words("nvcuda"), namespaces=_words("wmma"), headers=r"mma\.h",
    ),
    Feature(
        "cuda-curand", "curand", NOWHERE, "make random numbers with xp.random, or hash the thread's index",
        pattern=r"curand\w*", headers=r"curand\w*\.h",
    ),
    Feature(
        "cuda-cub", "cub", NOWHERE, "use xp's sort, cumsum and reductions", namespaces=_words("cub"),
        headers=r"cub/[\w./]*",
    ),
    Feature(
        "cuda-thrust", "thrust", NOWHERE, "use xp's sort, cumsum and reductions", namespaces=_words("thrust"),
        headers=r"thrust/[\w./]*",
    ),
    Feature(
        "cuda-libcudacxx", "the C++ standard library", NOWHERE, "write it out: kernels have no library headers",
        namespaces=_words("std"),
        headers=r"(?:cuda|nv)/[\w./]*|c\w+|algorithm|array|atomic|bit|functional|initializer_list|iostream|iterator|limits"
        r"|map|memory|numeric|random|string|thread|tuple|type_traits|utility|vector",
    ),
)  # fmt: skip
"""Order matters where a word fits two rows: the first counts."""

_BY_WORD = {word: feature for feature in reversed(FEATURES) for word in feature.words}
_BY_NAMESPACE = {word: feature for feature in FEATURES for word in feature.namespaces}
_BY_PATTERN = tuple((re.compile(feature.pattern), feature) for feature in FEATURES if feature.pattern)
_BY_HEADER = tuple((re.compile(feature.headers), feature) for feature in FEATURES if feature.headers)


GRID_SYNC = next(feature for feature in FEATURES if feature.code == "cuda-grid-sync")
"""Shown by what is done with a grid's group, not by a word: to ask it for a thread's rank is possible everywhere."""
LARGE_TILES = next(feature for feature in FEATURES if feature.code == "cuda-large-tiles")
"""Shown by a number too: `tiled_partition<64>`."""


def feature_of_word(word: str, following: str = "") -> Feature | None:
    """The feature that the token `word` shows, `following` being the next token; None for all others."""
    if found := _BY_WORD.get(word):
        return found
    if following in (":", "::") and (found := _BY_NAMESPACE.get(word)):
        return found
    return next((feature for pattern, feature in _BY_PATTERN if pattern.fullmatch(word)), None)


def feature_of_header(name: str) -> Feature | None:
    """The feature that including `name` shows; None for headers of `cuda-source` itself and for unknown ones."""
    return next((feature for pattern, feature in _BY_HEADER if pattern.fullmatch(name)), None)


def runtime_features(runtime: str) -> frozenset[str]:
    """Codes of the features that devices of the kind `runtime` have, beyond `cuda-source`."""
    having = {feature.code for feature in FEATURES if runtime in feature.runtimes}
    return frozenset(having - {feature.code for feature in FEATURES if runtime not in feature.runtimes})


def feature_names(code: str) -> str:
    """What a person calls the features of `code`; the code itself where it is none of the table."""
    return ", ".join(dict.fromkeys(f.name for f in FEATURES if f.code == code)) or code
