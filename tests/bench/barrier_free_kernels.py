# ruff: noqa: E501  # kernels are easier to compare with loops on one line
"""Kernels without barriers as people write them, each with a native loop of the same algorithm: a table for a bench.

`CASES` has rows of a name, the CUDA source (kernel `k`, or the expression `name`), the native loop's parameters and body,
the launch, and what makes the arguments. A native body takes its part of the work from `RANGE(n, step)`, which gives
`i`. Arguments are arrays and NumPy scalars in the order of the parameters, the same for both. `exact` is False where
threads add floating-point numbers in any order, and None where each thread leaves a sum of its own.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Arguments = list[Any]
N = 1 << 22
"""Elements of a one-dimensional case."""
W, H = 2048, 1536
"""Size of an image."""


@dataclass(frozen=True)
class Case:
    """One kernel and its loop."""

    name: str
    source: str
    parameters: str
    """Of the native function."""
    native: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    make: Callable[[np.random.Generator], Arguments]
    expression: str = "k"
    exact: bool | None = True


CASES: list[Case] = []
X = "int i = blockIdx.x * blockDim.x + threadIdx.x;"
XY = "int x = blockIdx.x * blockDim.x + threadIdx.x; int y = blockIdx.y * blockDim.y + threadIdx.y;"


def kernel(
    name: str,
    parameters: str,
    body: str,
    native: str,
    make: Callable[[np.random.Generator], Arguments],
    *,
    grid: tuple[int, ...] = (N // 256,),
    block: tuple[int, ...] = (256,),
    before: str = "",
    template: str = "",
    native_before: str = "",
    native_parameters: str = "",
    expression: str = "k",
    exact: bool | None = True,
) -> None:
    """Add a case. `before` stands before the kernel, `native_before` (or the same) before the loop."""
    start = "" if template else 'extern "C" '
    source = f"{before}\n{template}{start}__global__ void k({parameters}) {{\n{body}\n}}\n"
    CASES.append(
        Case(
            name, source, native_parameters or parameters.replace("__restrict__ ", ""), native, grid, block, make,
            expression, exact,
        )
    )  # fmt: skip
    NATIVE_BEFORE.append(native_before)


NATIVE_BEFORE: list[str] = []


def floats(*counts: int) -> Callable[[np.random.Generator], Arguments]:
    """Arrays of so many floats from 0 to 1, and `n` of the last."""
    return lambda rng: [*(rng.random(count, np.float32) for count in counts), np.int32(counts[-1])]


def saxpy(rng: np.random.Generator) -> Arguments:
    """x, y, a, n; the last 37 threads are beyond n."""
    return [rng.random(N, np.float32), rng.random(N, np.float32), np.float32(1e-9), np.int32(N - 37)]


SAXPY = "const float* x, float* y, float a, int n"
SAXPY_LOOP = "RANGE(n, 65536) y[i] = a * x[i] + y[i];"

# --- the ways to write an index and its check

kernel("saxpy", SAXPY, f"{X}\n if (i < n) y[i] = a * x[i] + y[i];", SAXPY_LOOP, saxpy)
kernel("early return", SAXPY, f"{X}\n if (i >= n) return;\n y[i] = a * x[i] + y[i];", SAXPY_LOOP, saxpy)
kernel(
    "early return in braces", SAXPY,
    "int tid = threadIdx.x + blockIdx.x * blockDim.x;\n if (tid >= n) {\n return;\n }\n y[tid] = a * x[tid] + y[tid];",
    SAXPY_LOOP, saxpy,
)  # fmt: skip
kernel(
    "declarations before the check", SAXPY,
    "int bid = blockIdx.x, tid = threadIdx.x;\n int i = bid * blockDim.x + tid;\n float v = 0.0f;\n"
    "if (i < n) { v = a * x[i]; y[i] = v + y[i]; }",
    SAXPY_LOOP, saxpy,
)  # fmt: skip
kernel(
    "unsigned index and size", "const float* x, float* y, float a, unsigned int n",
    "unsigned int i = blockIdx.x * blockDim.x + threadIdx.x;\n if (i < n) y[i] = a * x[i] + y[i];",
    SAXPY_LOOP, lambda rng: [*saxpy(rng)[:3], np.uint32(N)],
)  # fmt: skip
kernel(
    "size_t with a cast", "const float* x, float* y, float a, size_t n",
    "size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;\n if (i < n) y[i] = a * x[i] + y[i];",
    SAXPY_LOOP, lambda rng: [*saxpy(rng)[:3], np.uint64(N)],
)  # fmt: skip
kernel(
    "long long with static_cast", "const float* x, float* y, float a, long long n",
    "const long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;\n"
    "if (i >= n) return;\n y[i] = a * x[i] + y[i];",
    SAXPY_LOOP, lambda rng: [*saxpy(rng)[:3], np.int64(N)],
)  # fmt: skip
kernel(
    "n > i", SAXPY, f"{X}\n if (n > i) y[i] = a * x[i] + y[i];", SAXPY_LOOP, saxpy,
)  # fmt: skip
kernel(
    "index minus a bound", SAXPY, f"{X}\n if (i > n - 1) return; y[i] = a * x[i] + y[i];", SAXPY_LOOP, saxpy,
)  # fmt: skip
kernel(
    "no check at all", "const float* x, float* y, float a", f"{X}\n y[i] = a * x[i] + y[i];",
    f"RANGE({N}, 65536) y[i] = a * x[i] + y[i];", lambda rng: saxpy(rng)[:3],
)  # fmt: skip
kernel(
    "restrict", "const float* __restrict__ x, float* __restrict__ y, float a, int n",
    f"{X}\n if (i < n) y[i] = a * x[i] + y[i];", SAXPY_LOOP, saxpy,
    native_parameters="const float* __restrict x, float* __restrict y, float a, int n",
)  # fmt: skip
kernel(
    "template by name expression", "const T* x, T* y, T a, int n", f"{X}\n if (i < n) y[i] = a * x[i] + y[i];",
    SAXPY_LOOP, saxpy, template="template <typename T> ", native_parameters=SAXPY, expression="k<float>",
)  # fmt: skip
kernel(
    "template with a size, early return", "const T* x, T* y, T a, int n",
    "int i = blockIdx.x * BLOCK + threadIdx.x;\n if (i >= n) return;\n y[i] = a * x[i] + y[i];",
    SAXPY_LOOP, saxpy, template="template <typename T, int BLOCK> ", native_parameters=SAXPY,
    expression="k<float, 256>",
)  # fmt: skip
kernel(
    "index from a device function", SAXPY, "int i = index_of_thread();\n if (i < n) y[i] = a * x[i] + y[i];",
    SAXPY_LOOP, saxpy,
    before="__device__ __forceinline__ int index_of_thread() { return blockIdx.x * blockDim.x + threadIdx.x; }",
)  # fmt: skip
kernel(
    "bound computed", SAXPY, f"{X}\n const int last = n - 1;\n if (i < last) y[i] = a * x[i] + y[i];",
    "RANGE(n - 1, 65536) y[i] = a * x[i] + y[i];", saxpy,
)  # fmt: skip
kernel(
    "index by a macro", SAXPY, "int i = GID;\n if (i < n) y[i] = a * x[i] + y[i];", SAXPY_LOOP, saxpy,
    before="#define GID (blockIdx.x * blockDim.x + threadIdx.x)",
)  # fmt: skip
kernel(
    "loop over a range by a macro", SAXPY, "CUDA_1D_KERNEL_LOOP(i, n) { y[i] = a * x[i] + y[i]; }", SAXPY_LOOP,
    saxpy,
    before="#define CUDA_1D_KERNEL_LOOP(i, n) \\\n"
    "for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < (n); i += blockDim.x * gridDim.x)",
)  # fmt: skip

# --- launches of many shapes

for size in (32, 64, 1024):
    kernel(
        f"blocks of {size}", SAXPY, f"{X}\n if (i < n) y[i] = a * x[i] + y[i];", SAXPY_LOOP, saxpy,
        grid=(N // size,), block=(size,),
    )  # fmt: skip
kernel(
    "1M blocks of 4", SAXPY, f"{X}\n if (i < n) y[i] = a * x[i] + y[i];", SAXPY_LOOP, saxpy,
    grid=(N // 4,), block=(4,),
)  # fmt: skip
kernel(
    "1M blocks of 1, index of the block", SAXPY, "int i = blockIdx.x;\n if (i < n) y[i] = a * x[i] + y[i];",
    "RANGE(1048576, 65536) y[i] = a * x[i] + y[i];", saxpy, grid=(1 << 20,), block=(1,),
)  # fmt: skip
kernel(
    "4M blocks of 1", SAXPY, f"{X}\n if (i < n) y[i] = a * x[i] + y[i];", SAXPY_LOOP, saxpy,
    grid=(N,), block=(1,),
)  # fmt: skip
kernel(
    "blocks of 16x16, index made flat", SAXPY,
    "int i = blockIdx.x * (blockDim.x * blockDim.y) + threadIdx.y * blockDim.x + threadIdx.x;\n"
    "if (i < n) y[i] = a * x[i] + y[i];",
    SAXPY_LOOP, saxpy, block=(16, 16),
)  # fmt: skip

# --- loops that stride over the grid

STRIDE = f"for ({X[:-1]}; i < n; i += blockDim.x * gridDim.x)"
for blocks in (16, 160, N // 256):
    kernel(
        f"grid stride, {blocks} blocks", SAXPY, f"{STRIDE}\n y[i] = a * x[i] + y[i];", SAXPY_LOOP, saxpy,
        grid=(blocks,),
    )  # fmt: skip
kernel(
    "grid stride, stride named", SAXPY,
    f"{X}\n int stride = blockDim.x * gridDim.x;\n for (; i < n; i += stride) y[i] = a * x[i] + y[i];",
    SAXPY_LOOP, saxpy, grid=(160,),
)  # fmt: skip
kernel(
    "grid stride, index and stride", SAXPY,
    "int index = blockIdx.x * blockDim.x + threadIdx.x;\n int stride = blockDim.x * gridDim.x;\n"
    "for (int i = index; i < n; i += stride) y[i] = a * x[i] + y[i];",
    SAXPY_LOOP, saxpy, grid=(160,),
)  # fmt: skip
kernel(
    "grid stride, size_t", "const float* x, float* y, float a, size_t n",
    "for (size_t i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += blockDim.x * gridDim.x)\n"
    "y[i] = a * x[i] + y[i];",
    SAXPY_LOOP, lambda rng: [*saxpy(rng)[:3], np.uint64(N)], grid=(160,),
)  # fmt: skip
kernel(
    "grid stride, while", SAXPY,
    "int tid = threadIdx.x + blockIdx.x * blockDim.x;\n while (tid < n) {\n y[tid] = a * x[tid] + y[tid];\n"
    "tid += blockDim.x * gridDim.x;\n }",
    SAXPY_LOOP, saxpy, grid=(160,),
)  # fmt: skip
kernel(
    "grid stride, a longer body", "const float* x, float* y, float a, int n",
    f"{STRIDE} {{\n float v = x[i], s = 0.0f;\n for (int k = 0; k < 12; k++) s = s * v + a;\n"
    "y[i] = s > 0.5f ? sqrtf(s) : s;\n}",
    "RANGE(n, 65536) { float v = x[i], s = 0.0f; for (int k = 0; k < 12; k++) s = s * v + a;\n"
    "y[i] = s > 0.5f ? sqrtf(s) : s; }",
    saxpy, grid=(160,),
)  # fmt: skip
kernel(
    "sum by atomics, grid stride", "const float* x, float* out, int n",
    f"float s = 0.0f;\n {STRIDE} s += x[i];\n atomicAdd(out, s);",
    "float s = 0; RANGE(n, 65536) s += x[i];\n"
    "float old = *out, sum; do sum = old + s; while (!__atomic_compare_exchange(out, &old, &sum, 1, 0, 0));",
    lambda rng: [rng.random(N, np.float32), np.zeros(1, np.float32), np.int32(N)], grid=(64,), exact=False,
)  # fmt: skip

# --- element by element

kernel(
    "elementwise", "const float* x, const float* y, float* z, int n",
    f"{X}\n if (i < n) z[i] = sqrtf((x[i] - y[i]) * (x[i] - y[i]) + 1.0f) * x[i];",
    "RANGE(n, 65536) z[i] = sqrtf((x[i] - y[i]) * (x[i] - y[i]) + 1.0f) * x[i];", floats(N, N, N),
)  # fmt: skip
kernel(
    "Horner, degree 12", "const float* x, float* y, int n",
    f"{X}\n if (i < n) {{ float v = x[i], s = 1.0f;\n for (int k = 0; k < 12; k++) s = s * v + 0.5f;\n y[i] = s; }}",
    "RANGE(n, 65536) { float v = x[i], s = 1.0f; for (int k = 0; k < 12; k++) s = s * v + 0.5f; y[i] = s; }",
    floats(N, N),
)  # fmt: skip
kernel(
    "leaky ReLU", "const float* x, float* y, float a, int n",
    f"{X}\n if (i < n) {{ if (x[i] > 0.5f) y[i] = x[i]; else y[i] = a * x[i]; }}",
    "RANGE(n, 65536) { if (x[i] > 0.5f) y[i] = x[i]; else y[i] = a * x[i]; }", saxpy,
)  # fmt: skip
kernel(
    "sigmoid", "const float* x, float* y, int n", f"{X}\n if (i < n) y[i] = 1.0f / (1.0f + expf(-x[i]));",
    "RANGE(n, 65536) y[i] = 1.0f / (1.0f + expf(-x[i]));", floats(N, N),
)  # fmt: skip
BLACK = """const double s = price[i], k = strike[i], t = years[i];
const double d1 = (log(s / k) + (0.02 + 0.5 * 0.3 * 0.3) * t) / (0.3 * sqrt(t)), d2 = d1 - 0.3 * sqrt(t);
const double c1 = cnd(d1), c2 = cnd(d2), e = k * exp(-0.02 * t);
call[i] = s * c1 - e * c2; put[i] = e * (1.0 - c2) - s * (1.0 - c1);"""
CND = """double cnd(double d) {
    const double w = 1.0 / (1.0 + 0.2316419 * fabs(d));
    const double c = 0.3989422804014327 * exp(-0.5 * d * d) *
        (w * (0.31938153 + w * (-0.356563782 + w * (1.781477937 + w * (-1.821255978 + w * 1.330274429)))));
    return d > 0 ? 1.0 - c : c;
}"""
kernel(
    "Black-Scholes, double", "const double* price, const double* strike, const double* years, double* call, double* put, int n",
    f"{X}\n if (i >= n) return;\n{BLACK}", f"RANGE(n, 8192) {{ {BLACK} }}",
    lambda rng: [1 + rng.random(1 << 18), 1 + rng.random(1 << 18), 1 + rng.random(1 << 18), np.zeros(1 << 18),
                 np.zeros(1 << 18), np.int32(1 << 18)],
    grid=(1 << 10,), before=f"__device__ {CND}", native_before=f"static {CND}",
)  # fmt: skip
kernel(
    "structures of four floats", "const float4* p, float4* v, float dt, int n",
    f"{X}\n if (i >= n) return;\n float4 q = p[i], w = v[i];\n w.x += dt * q.x; w.y += dt * q.y; w.z += dt * q.z;\n v[i] = w;",
    "RANGE(n, 16384) { float4 q = p[i], w = v[i]; w.x += dt * q.x; w.y += dt * q.y; w.z += dt * q.z; v[i] = w; }",
    lambda rng: [rng.random(N, np.float32), rng.random(N, np.float32), np.float32(0.1), np.int32(N // 4)],
    grid=(N // 1024,), native_before="struct alignas(16) float4 { float x, y, z, w; };",
)  # fmt: skip
kernel(
    "particles, array of structures", "Particle* p, float dt, int n",
    f"{X}\n if (i < n) {{ step(&p[i], dt); }}", "RANGE(n, 16384) step(&p[i], dt);",
    lambda rng: [rng.random(N, np.float32), np.float32(0.1), np.int32(N // 8)], grid=(N // 2048,),
    before="struct Particle { float x, y, z, vx, vy, vz, m, pad; };\n"
    "__device__ void step(Particle* p, float dt) {\n"
    "p->x += dt * p->vx; p->y += dt * p->vy; p->z += dt * p->vz;\n"
    "if (p->x > 1.0f) p->vx = -p->vx;\n if (p->y > 1.0f) p->vy = -p->vy; }",
    native_before="struct Particle { float x, y, z, vx, vy, vz, m, pad; };\n"
    "static void step(Particle* p, float dt) {\n"
    "p->x += dt * p->vx; p->y += dt * p->vy; p->z += dt * p->vz;\n"
    "if (p->x > 1.0f) p->vx = -p->vx;\n if (p->y > 1.0f) p->vy = -p->vy; }",
)  # fmt: skip
kernel(
    "device functions with pointers", "const float* x, float* y, int n",
    f"{X}\n if (i < n) {{ float s, c;\n polar(x[i], &s, &c);\n y[i] = blend(&x[i], s, c); }}",
    "RANGE(n, 65536) { float s, c; polar(x[i], &s, &c); y[i] = blend(&x[i], s, c); }", floats(N, N),
    before="__device__ void polar(float v, float* s, float* c) { *s = v * (1.0f - v * v / 6.0f); *c = 1.0f - v * v / 2.0f; }\n"
    "__device__ float blend(const float* v, float s, float c) { return *v * s + (1.0f - *v) * c; }",
    native_before="static void polar(float v, float* s, float* c) { *s = v * (1.0f - v * v / 6.0f); *c = 1.0f - v * v / 2.0f; }\n"
    "static float blend(const float* v, float s, float c) { return *v * s + (1.0f - *v) * c; }",
)  # fmt: skip
HASH = "unsigned h = x[i]; h ^= h >> 16; h *= 0x85ebca6bu; h ^= h >> 13; h *= 0xc2b2ae35u; h ^= h >> 16; y[i] = h;"
kernel(
    "integer hash", "const unsigned* x, unsigned* y, int n", f"{X}\n if (i < n) {{ {HASH} }}",
    f"RANGE(n, 65536) {{ {HASH} }}",
    lambda rng: [rng.integers(0, 1 << 32, N, np.uint32), np.zeros(N, np.uint32), np.int32(N)],
)  # fmt: skip
COLLATZ = "unsigned v = i + 1; int s = 0; while (v != 1) { v = v & 1 ? 3 * v + 1 : v / 2; s++; } y[i] = s;"
kernel(
    "Collatz", "int* y, int n", f"{X}\n if (i >= n) return;\n {COLLATZ}", f"RANGE(n, 4096) {{ {COLLATZ} }}",
    lambda rng: [np.zeros(1 << 18, np.int32), np.int32(1 << 18)], grid=(1 << 10,),
)  # fmt: skip
WALK = """unsigned s = 12345u + 977u * (unsigned)i; int in = 0;
for (int k = 0; k < 64; k++) {
    s = s * 1664525u + 1013904223u; float a = (s >> 8) * (1.0f / 16777216.0f);
    s = s * 1664525u + 1013904223u; float b = (s >> 8) * (1.0f / 16777216.0f);
    if (a * a + b * b < 1.0f) in++;
}
y[i] = in;"""
kernel(
    "Monte Carlo pi", "int* y, int n", f"{X}\n if (i >= n) return;\n {WALK}", f"RANGE(n, 4096) {{ {WALK} }}",
    lambda rng: [np.zeros(1 << 18, np.int32), np.int32(1 << 18)], grid=(1 << 10,),
)  # fmt: skip

# --- gathers, scatters, sparse rows

INDICES = "const float* x, const int* at, float* y, int n"


def permuted(rng: np.random.Generator) -> Arguments:
    """x, a permutation, y, n."""
    return [
        rng.random(N, np.float32),
        rng.permutation(N).astype(np.int32),
        np.zeros(N, np.float32),
        np.int32(N),
    ]


kernel("gather", INDICES, f"{X}\n if (i < n) y[i] = x[at[i]];", "RANGE(n, 65536) y[i] = x[at[i]];", permuted)
kernel("scatter", INDICES, f"{X}\n if (i < n) y[at[i]] = x[i];", "RANGE(n, 65536) y[at[i]] = x[i];", permuted)
kernel(
    "histogram by global atomics", "const unsigned char* x, unsigned* bins, int n",
    f"{X}\n if (i < n) atomicAdd(&bins[x[i]], 1u);",
    "RANGE(n, 65536) __atomic_fetch_add(&bins[x[i]], 1u, __ATOMIC_RELAXED);",
    lambda rng: [rng.integers(0, 256, N, np.uint8), np.zeros(256, np.uint32), np.int32(N)],
)  # fmt: skip


def sparse(rng: np.random.Generator) -> Arguments:
    """Rows of 0 to 31 elements: begins, columns, values, x, y, rows."""
    rows = 1 << 16
    begins = np.concatenate(([0], np.cumsum(rng.integers(0, 32, rows)))).astype(np.int32)
    count = int(begins[-1])
    return [begins, rng.integers(0, rows, count, np.int32), rng.random(count, np.float32),
            rng.random(rows, np.float32), np.zeros(rows, np.float32), np.int32(rows)]  # fmt: skip


SPARSE = "float s = 0; for (int k = begin[i]; k < begin[i + 1]; k++) s += value[k] * x[column[k]]; y[i] = s;"
kernel(
    "sparse product, a row a thread", "const int* begin, const int* column, const float* value, const float* x, float* y, int rows",
    f"{X}\n if (i < rows) {{ {SPARSE} }}", f"RANGE(rows, 2048) {{ {SPARSE} }}", sparse, grid=(256,),
)  # fmt: skip
BODIES = """float ax = 0, ay = 0, az = 0; float4 b = p[i];
for (int j = 0; j < n; j++) {
    float4 o = p[j]; float dx = o.x - b.x, dy = o.y - b.y, dz = o.z - b.z;
    float r = dx * dx + dy * dy + dz * dz + 0.01f, f = o.w / (r * sqrtf(r));
    ax += dx * f; ay += dy * f; az += dz * f;
}
v[i].x += ax; v[i].y += ay; v[i].z += az;"""
kernel(
    "n-body, all pairs", "const float4* p, float4* v, int n", f"{X}\n if (i >= n) return;\n {BODIES}",
    f"RANGE(n, 64) {{ {BODIES} }}", lambda rng: [rng.random(1 << 13, np.float32), np.zeros(1 << 13, np.float32), np.int32(1 << 11)],
    grid=(8,), native_before="struct alignas(16) float4 { float x, y, z, w; };",
)  # fmt: skip

# --- images

IMAGE = "const float* a, float* b, int w, int h"


def image(rng: np.random.Generator) -> Arguments:
    """a, b, and a size that is no multiple of a block's."""
    return [rng.random(W * H, np.float32), np.zeros(W * H, np.float32), np.int32(W - 5), np.int32(H - 3)]


IMAGES = {"grid": (W // 16, H // 16), "block": (16, 16)}
PIXELS = "RANGE(h, 16) for (int x = 0; x < w; x++)"
for what, check in {
    "x < w && y < h": "if (x < w && y < h) b[y * w + x] = 1.0f - a[y * w + x];",
    "y < h && x < w": "if (y < h && x < w) b[y * w + x] = 1.0f - a[y * w + x];",
    "return, x first": "if (x >= w || y >= h) return;\n b[y * w + x] = 1.0f - a[y * w + x];",
    "return, y first": "if (y >= h || x >= w) return;\n b[y * w + x] = 1.0f - a[y * w + x];",
    "two returns": "if (x >= w) return;\n if (y >= h) return;\n int i = y * w + x;\n b[i] = 1.0f - a[i];",
}.items():
    kernel(
        f"image, {what}", IMAGE, f"{XY}\n {check}", f"{PIXELS} b[i * w + x] = 1.0f - a[i * w + x];", image,
        grid=(W // 16, H // 16), block=(16, 16),
    )  # fmt: skip
kernel(
    "image, blocks of 32x8", IMAGE, f"{XY}\n if (x < w && y < h) b[y * w + x] = 1.0f - a[y * w + x];",
    f"{PIXELS} b[i * w + x] = 1.0f - a[i * w + x];", image, grid=(W // 32, H // 8), block=(32, 8),
)  # fmt: skip
kernel(
    "row and column", IMAGE,
    "int col = blockIdx.x * blockDim.x + threadIdx.x;\n int row = blockIdx.y * blockDim.y + threadIdx.y;\n"
    "if (row < h && col < w) { int idx = row * w + col; b[idx] = 1.0f - a[idx]; }",
    f"{PIXELS} b[i * w + x] = 1.0f - a[i * w + x];", image, grid=(W // 16, H // 16), block=(16, 16),
)  # fmt: skip
GREY = "int at = 3 * ({0} * w + x); grey[{0} * w + x] = 0.299f * rgb[at] + 0.587f * rgb[at + 1] + 0.114f * rgb[at + 2];"


def colours(rng: np.random.Generator) -> Arguments:
    """An image of three bytes a pixel, the grey one, and its size."""
    return [rng.integers(0, 256, 3 * W * H, np.uint8), np.zeros(W * H, np.uint8), np.int32(W), np.int32(H)]


kernel(
    "RGB to grey", "const unsigned char* rgb, unsigned char* grey, int w, int h",
    f"{XY}\n if (x < w && y < h) {{ {GREY.format('y')} }}", f"{PIXELS} {{ {GREY.format('i')} }}", colours,
    grid=(W // 16, H // 16), block=(16, 16),
)  # fmt: skip
kernel(
    "uchar3 to grey, flat", "const uchar3* in, unsigned char* grey, int n",
    f"{X}\n if (i >= n) return;\n uchar3 p = in[i];\n grey[i] = (unsigned char)((p.x * 77 + p.y * 150 + p.z * 29) >> 8);",
    "RANGE(n, 65536) { uchar3 p = in[i]; grey[i] = (unsigned char)((p.x * 77 + p.y * 150 + p.z * 29) >> 8); }",
    lambda rng: [*colours(rng)[:2], np.int32(W * H)], grid=(W * H // 256,),
    native_before="struct uchar3 { unsigned char x, y, z; };",
)  # fmt: skip
STENCIL = "b[{0} * w + x] = 0.2f * (a[{0} * w + x] + a[({0} - 1) * w + x] + a[({0} + 1) * w + x] + a[{0} * w + x - 1] + a[{0} * w + x + 1]);"
kernel(
    "five-point stencil, inside only", IMAGE,
    f"{XY}\n if (x > 0 && x < w - 1 && y > 0 && y < h - 1) {STENCIL.format('y')}",
    f"RANGE(h, 16) if (i > 0 && i < h - 1) for (int x = 1; x < w - 1; x++) {STENCIL.format('i')}", image,
    grid=(W // 16, H // 16), block=(16, 16),
)  # fmt: skip
kernel(
    "five-point stencil, early return", IMAGE,
    f"{XY}\n if (x < 1 || y < 1 || x >= w - 1 || y >= h - 1) return;\n {STENCIL.format('y')}",
    f"RANGE(h, 16) if (i > 0 && i < h - 1) for (int x = 1; x < w - 1; x++) {STENCIL.format('i')}", image,
    grid=(W // 32, H // 8), block=(32, 8),
)  # fmt: skip
kernel(
    "heat, index from 1", IMAGE,
    "int x = blockIdx.x * blockDim.x + threadIdx.x + 1, y = blockIdx.y * blockDim.y + threadIdx.y + 1;\n"
    f"if (x < w - 1 && y < h - 1) {STENCIL.format('y')}",
    f"RANGE(h, 16) if (i > 0 && i < h - 1) for (int x = 1; x < w - 1; x++) {STENCIL.format('i')}", image,
    grid=(W // 16, H // 16), block=(16, 16),
)  # fmt: skip
SMOOTH = """float s = 0;
for (int dy = -1; dy <= 1; dy++)
    for (int dx = -1; dx <= 1; dx++) {{
        int yy = {0} + dy, xx = x + dx;
        if (yy >= 0 && yy < h && xx >= 0 && xx < w) s += filter[(dy + 1) * 3 + dx + 1] * a[yy * w + xx];
    }}
b[{0} * w + x] = s;"""
FILTER = "float filter[9] = {0.0625f, 0.125f, 0.0625f, 0.125f, 0.25f, 0.125f, 0.0625f, 0.125f, 0.0625f};"
kernel(
    "3x3 convolution, constant memory", IMAGE, f"{XY}\n if (x >= w || y >= h) return;\n {SMOOTH.format('y')}",
    f"{PIXELS} {{ {SMOOTH.format('(int)i')} }}", image, grid=(W // 16, H // 16), block=(16, 16),
    before=f"__constant__ {FILTER}", native_before=f"const {FILTER}",
)  # fmt: skip
BOX = """float s = 0;
for (int dy = -2; dy <= 2; dy++)
    for (int dx = -2; dx <= 2; dx++)
        s += a[min(max({0} + dy, 0), h - 1) * w + min(max(x + dx, 0), w - 1)];
b[{0} * w + x] = s / 25.0f;"""
kernel(
    "5x5 box blur, clamped", IMAGE, f"{XY}\n if (x < w && y < h) {{ {BOX.format('y')} }}",
    f"{PIXELS} {{ {BOX.format('(int)i')} }}", image, grid=(W // 16, H // 16), block=(16, 16),
    native_before="static int min(int a, int b) { return a < b ? a : b; }\n"
    "static int max(int a, int b) { return a > b ? a : b; }",
)  # fmt: skip
LIFE = """int n = 0;
for (int dy = -1; dy <= 1; dy++)
    for (int dx = -1; dx <= 1; dx++)
        if (dx || dy) n += a[(({0} + dy + h) % h) * w + (x + dx + w) % w];
b[{0} * w + x] = n == 3 || (n == 2 && a[{0} * w + x]);"""
kernel(
    "life on a torus", "const unsigned char* a, unsigned char* b, int w, int h",
    f"{XY}\n if (x < w && y < h) {{ {LIFE.format('y')} }}", f"{PIXELS} {{ {LIFE.format('(int)i')} }}",
    lambda rng: [rng.integers(0, 2, 1 << 18, np.uint8), np.zeros(1 << 18, np.uint8), np.int32(512), np.int32(512)],
    grid=(32, 32), block=(16, 16),
)  # fmt: skip
MANDELBROT = """float cr = -2.0f + 3.0f * x / w, ci = -1.5f + 3.0f * {0} / h, r = 0, t = 0;
int n = 0;
while (n < 256 && r * r + t * t < 4.0f) {{ float u = r * r - t * t + cr; t = 2 * r * t + ci; r = u; n++; }}
out[{0} * w + x] = n;"""
kernel(
    "Mandelbrot", "int* out, int w, int h", f"{XY}\n if (x >= w || y >= h) return;\n {MANDELBROT.format('y')}",
    f"{PIXELS} {{ {MANDELBROT.format('(int)i')} }}",
    lambda rng: [np.zeros(512 * 512, np.int32), np.int32(512), np.int32(512)], grid=(32, 32), block=(16, 16),
)  # fmt: skip

# --- matrices and volumes

M = 384
MATRICES = "const float* a, const float* b, float* c, int n"


def matrices(rng: np.random.Generator) -> Arguments:
    """a, b, c, and their side."""
    return [
        rng.random(M * M, np.float32),
        rng.random(M * M, np.float32),
        np.zeros(M * M, np.float32),
        np.int32(M),
    ]


PRODUCT = "float s = 0; for (int k = 0; k < n; k++) s += a[{0} * n + k] * b[k * n + x]; c[{0} * n + x] = s;"
kernel(
    "naive product", MATRICES, f"{XY}\n if (y < n && x < n) {{ {PRODUCT.format('y')} }}",
    f"RANGE(n, 8) for (int x = 0; x < n; x++) {{ {PRODUCT.format('i')} }}", matrices,
    grid=(M // 16, M // 16), block=(16, 16),
)  # fmt: skip
kernel(
    "naive product, x is the row", MATRICES,
    "int row = blockIdx.x * blockDim.x + threadIdx.x, col = blockIdx.y * blockDim.y + threadIdx.y;\n"
    "if (row < n && col < n) { float s = 0; for (int k = 0; k < n; k++) s += a[row * n + k] * b[k * n + col];\n"
    "c[row * n + col] = s; }",
    f"RANGE(n, 8) for (int x = 0; x < n; x++) {{ {PRODUCT.format('i')} }}", matrices,
    grid=(M // 16, M // 16), block=(16, 16),
)  # fmt: skip
kernel(
    "naive product, one index", MATRICES,
    f"{X}\n if (i >= n * n) return;\n int y = i / n, x = i % n;\n {PRODUCT.format('y')}",
    f"RANGE(n, 8) for (int x = 0; x < n; x++) {{ {PRODUCT.format('i')} }}", matrices, grid=(M * M // 256,),
)  # fmt: skip
ROWS = "float s = 0; for (int k = 0; k < n; k++) s += a[i * n + k] * x[k]; y[i] = s;"
kernel(
    "matrix times vector, a row a thread", "const float* a, const float* x, float* y, int n",
    f"{X}\n if (i < n) {{ {ROWS} }}", f"RANGE(n, 128) {{ {ROWS} }}",
    lambda rng: [rng.random(1 << 22, np.float32), rng.random(2048, np.float32), np.zeros(2048, np.float32), np.int32(2048)],
    grid=(8,),
)  # fmt: skip
SOFTMAX = """const float* in = a + (size_t)i * 64; float* out = b + (size_t)i * 64;
float most = in[0], sum = 0;
for (int k = 1; k < 64; k++) most = fmaxf(most, in[k]);
for (int k = 0; k < 64; k++) { out[k] = expf(in[k] - most); sum += out[k]; }
for (int k = 0; k < 64; k++) out[k] /= sum;"""
kernel(
    "softmax, a row a thread", "const float* a, float* b, int n", f"{X}\n if (i < n) {{ {SOFTMAX} }}",
    f"RANGE(n, 512) {{ {SOFTMAX} }}",
    lambda rng: [rng.random(1 << 20, np.float32), np.zeros(1 << 20, np.float32), np.int32(1 << 14)], grid=(64,),
)  # fmt: skip
kernel(
    "transpose", IMAGE, f"{XY}\n if (x < w && y < h) b[x * h + y] = a[y * w + x];",
    "RANGE(h, 16) for (int x = 0; x < w; x++) b[x * h + i] = a[i * w + x];", image,
    grid=(W // 16, H // 16), block=(16, 16),
)  # fmt: skip
VOLUME = "b[({0} * h + y) * w + x] = 0.5f * a[({0} * h + y) * w + x] + 0.25f;"
kernel(
    "volume, three checks", "const float* a, float* b, int w, int h, int d",
    "int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;\n"
    f"int z = blockIdx.z * blockDim.z + threadIdx.z;\n if (x < w && y < h && z < d) {VOLUME.format('z')}",
    f"RANGE(d, 4) for (int y = 0; y < h; y++) for (int x = 0; x < w; x++) {VOLUME.format('i')}",
    lambda rng: [rng.random(1 << 21, np.float32), np.zeros(1 << 21, np.float32), *[np.int32(v) for v in (127, 128, 128)]],
    grid=(16, 16, 32), block=(8, 8, 4),
)  # fmt: skip

# --- more ways of counting threads, as tutorials have them

FLAT_BLOCK = "threadIdx.x + threadIdx.y * blockDim.x"
kernel(
    "index over 2-D blocks", SAXPY,
    f"int idx = {FLAT_BLOCK} + blockIdx.x * (blockDim.x * blockDim.y);\n if (idx < n) y[idx] = a * x[idx] + y[idx];",
    SAXPY_LOOP, saxpy, block=(32, 8),
)  # fmt: skip
kernel(
    "index over a 2-D grid of 2-D blocks", SAXPY,
    "int blockId = blockIdx.x + blockIdx.y * gridDim.x;\n"
    "int threadId = blockId * (blockDim.x * blockDim.y) + (threadIdx.y * blockDim.x) + threadIdx.x;\n"
    "if (threadId < n) y[threadId] = a * x[threadId] + y[threadId];",
    SAXPY_LOOP, saxpy, grid=(128, N // 256 // 128), block=(16, 16),
)  # fmt: skip
kernel(
    "index over a 3-D grid of 3-D blocks", SAXPY,
    "int b = blockIdx.x + blockIdx.y * gridDim.x + gridDim.x * gridDim.y * blockIdx.z;\n"
    "int i = b * (blockDim.x * blockDim.y * blockDim.z) + (threadIdx.z * (blockDim.x * blockDim.y))"
    " + (threadIdx.y * blockDim.x) + threadIdx.x;\n if (i >= n) return;\n y[i] = a * x[i] + y[i];",
    SAXPY_LOOP, saxpy, grid=(32, 32, N // 256 // 1024), block=(8, 8, 4),
)  # fmt: skip
kernel(
    "index over a 2-D grid of 1-D blocks", SAXPY,
    "const int i = (blockIdx.y * gridDim.x + blockIdx.x) * blockDim.x + threadIdx.x;\n"
    "if (i < n) y[i] = a * x[i] + y[i];",
    SAXPY_LOOP, saxpy, grid=(128, N // 256 // 128),
)  # fmt: skip
kernel(
    "offset from x and y (CUDA by Example)", "const float* p, float* q, float a, int n",
    f"{XY}\n int offset = x + y * blockDim.x * gridDim.x;\n if (offset < n) q[offset] = a * p[offset] + q[offset];",
    "RANGE(n, 65536) q[i] = a * p[i] + q[i];", saxpy, grid=(128, N // 256 // 128), block=(16, 16),
)  # fmt: skip
kernel(
    "blocks of 100", SAXPY, f"{X}\n if (i < n) y[i] = a * x[i] + y[i];", SAXPY_LOOP, saxpy,
    grid=(-(-N // 100),), block=(100,),
)  # fmt: skip
kernel(
    "in a namespace", SAXPY, f"{X}\n if (i < n) y[i] = a * x[i] + y[i];\n}}", SAXPY_LOOP, saxpy,
    template="namespace ops { template <typename T> ", expression="ops::k<float>", native_parameters=SAXPY,
)  # fmt: skip
kernel(
    "if and else", SAXPY, f"{X}\n if (i < n) {{ y[i] = a * x[i] + y[i]; }} else {{ return; }}", SAXPY_LOOP, saxpy,
)  # fmt: skip
kernel(
    "else beyond a half", SAXPY, f"{X}\n if (i < n / 2) y[i] = a * x[i]; else if (i < n) y[i] = a + x[i];",
    "RANGE(n, 65536) if (i < n / 2) y[i] = a * x[i]; else y[i] = a + x[i];", saxpy,
)  # fmt: skip

# --- loops within a block, over two dimensions, with sums

MATRIX = "const float* a, float* b, int rows, int columns"


def matrix(rng: np.random.Generator) -> Arguments:
    """a, b, rows, columns."""
    return [rng.random(1 << 21, np.float32), np.zeros(1 << 21, np.float32), np.int32(2048), np.int32(1000)]


kernel(
    "a row a block", MATRIX,
    "int row = blockIdx.x;\n for (int c = threadIdx.x; c < columns; c += blockDim.x)\n"
    "b[row * columns + c] = 2.0f * a[row * columns + c] + 1.0f;",
    "RANGE(rows, 64) for (int c = 0; c < columns; c++) b[i * columns + c] = 2.0f * a[i * columns + c] + 1.0f;",
    matrix, grid=(2048,), block=(128,),
)  # fmt: skip
kernel(
    "a row a block, two indices", MATRIX,
    "b[blockIdx.x * blockDim.x + threadIdx.x] = a[threadIdx.x * 2] + a[blockIdx.x];",
    "RANGE(rows, 256) for (int c = 0; c < 256; c++) b[i * 256 + c] = a[c * 2] + a[i];",
    lambda rng: [*matrix(rng)[:2], np.int32(8192), np.int32(1000)], grid=(8192,),
)  # fmt: skip
kernel(
    "a row a thread, sums", MATRIX,
    f"{X}\n if (i < rows) {{ float s = 0.0f;\n for (int c = 0; c < columns; c++) s += a[i * columns + c];\n b[i] = s / columns; }}",
    "RANGE(rows, 64) { float s = 0; for (int c = 0; c < columns; c++) s += a[i * columns + c]; b[i] = s / columns; }",
    matrix, grid=(8,),
)  # fmt: skip
kernel(
    "a column a thread, sums", MATRIX,
    "int c = threadIdx.x + blockDim.x * blockIdx.x;\n if (c >= columns) return;\n float s = 0.0f;\n"
    "for (int r = 0; r < rows; r++) s += a[r * columns + c];\n b[c] = s;",
    "RANGE(columns, 64) { float s = 0; for (int r = 0; r < rows; r++) s += a[r * columns + i]; b[i] = s; }",
    matrix, grid=(4,),
)  # fmt: skip
kernel(
    "grid stride in x and y", MATRIX,
    "for (int r = blockIdx.y * blockDim.y + threadIdx.y; r < rows; r += blockDim.y * gridDim.y)\n"
    "for (int c = blockIdx.x * blockDim.x + threadIdx.x; c < columns; c += blockDim.x * gridDim.x)\n"
    "b[r * columns + c] = 2.0f * a[r * columns + c] + 1.0f;",
    "RANGE(rows, 64) for (int c = 0; c < columns; c++) b[i * columns + c] = 2.0f * a[i * columns + c] + 1.0f;",
    matrix, grid=(8, 8), block=(32, 8),
)  # fmt: skip
kernel(
    "dot product, a sum a thread", "const float* x, const float* y, float* part, int n",
    f"{X}\n float s = 0.0f;\n for (int k = i; k < n; k += blockDim.x * gridDim.x) s += x[k] * y[k];\n part[i] = s;",
    "float s = 0; RANGE(n, 65536) s += x[i] * y[i]; part[take(next, 1) & 1023] = s;",
    lambda rng: [rng.random(N, np.float32), rng.random(N, np.float32), np.zeros(N, np.float32), np.int32(N)],
    grid=(64,), exact=None,
)  # fmt: skip
kernel(
    "largest, a value a thread, double", "const double* x, double* part, int n",
    f"{X}\n double most = -1e300;\n for (int k = i; k < n; k += blockDim.x * gridDim.x)"
    " if (x[k] > most) most = x[k];\n part[i] = most;",
    "double most = -1e300; RANGE(n, 65536) if (x[i] > most) most = x[i]; part[take(next, 1) & 1023] = most;",
    lambda rng: [rng.random(N // 2), np.zeros(N // 2), np.int32(N // 2)], grid=(32,), exact=None,
)  # fmt: skip
kernel(
    "histogram, grid stride", "const int* x, int* bins, int n",
    f"{STRIDE} atomicAdd(&bins[x[i] & 1023], 1);",
    "RANGE(n, 65536) __atomic_fetch_add(&bins[x[i] & 1023], 1, __ATOMIC_RELAXED);",
    lambda rng: [rng.integers(0, 1 << 20, N, np.int32), np.zeros(1024, np.int32), np.int32(N)], grid=(160,),
)  # fmt: skip
kernel(
    "columns of a volume, z in a loop", "const float* a, float* b, int w, int h, int d",
    f"{XY}\n if (x >= w || y >= h) return;\n for (int z = 0; z < d; z++) b[(z * h + y) * w + x] = 0.5f * a[(z * h + y) * w + x];",
    "RANGE(h, 8) for (int x = 0; x < w; x++) for (int z = 0; z < d; z++) b[(z * h + i) * w + x] = 0.5f * a[(z * h + i) * w + x];",
    lambda rng: [rng.random(1 << 21, np.float32), np.zeros(1 << 21, np.float32), *[np.int32(v) for v in (128, 128, 128)]],
    grid=(8, 8), block=(16, 16),
)  # fmt: skip
kernel(
    "a functor by value", "const float* x, float* y, int n",
    f"{X}\n if (i >= n) return;\n Affine f = {{2.0f, 1.0f}};\n y[i] = f(x[i]);", "RANGE(n, 65536) y[i] = 2.0f * x[i] + 1.0f;",
    floats(N, N), before="struct Affine { float a, b; __device__ float operator()(float v) const { return a * v + b; } };",
)  # fmt: skip
kernel(
    "double precision, int64 index", "const double* x, double* y, double a, long long n",
    "long long i = blockDim.x * (long long)blockIdx.x + threadIdx.x;\n if (i < n) y[i] = a * x[i] + y[i];",
    "RANGE(n, 65536) y[i] = a * x[i] + y[i];",
    lambda rng: [rng.random(N // 2), rng.random(N // 2), np.float64(1e-9), np.int64(N // 2)], grid=(N // 512,),
)  # fmt: skip

# --- and those that somebody writes who has not read how this runtime works


def _more() -> None:
    path = Path(__file__).with_name("barrier_free_more.py")
    spec = importlib.util.spec_from_file_location("barrier_free_more", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.add(kernel, image, floats)


_more()
