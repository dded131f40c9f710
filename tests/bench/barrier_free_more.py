# ruff: noqa: E501  # kernels are easier to compare with loops on one line
"""More kernels without barriers, as somebody writes them who has not read how this runtime works: `add(kernel, ...)`.

A second part of `barrier_free_kernels.py`'s table, whose helpers it is given.
"""

from typing import Any

import numpy as np

N = 1 << 22
W, H = 2048, 1536
X = "int i = blockIdx.x * blockDim.x + threadIdx.x;"
XY = "int x = blockIdx.x * blockDim.x + threadIdx.x; int y = blockIdx.y * blockDim.y + threadIdx.y;"
ROWS = "RANGE(h, 16) for (int x = 0; x < w; x++)"
FLOAT4 = "struct alignas(16) float4 { float x, y, z, w; };"


def add(kernel: Any, image: Any, floats: Any) -> None:
    """Add all of them with the table's `kernel`; `image` and `floats` make arguments."""
    plain = {"grid": (W // 16, H // 16), "block": (16, 16)}

    def strided(rng: np.random.Generator) -> list[Any]:
        return [
            rng.random(N, np.float32),
            rng.random(N, np.float32),
            np.float32(1e-9),
            np.int32(3),
            np.int32(N // 3),
        ]

    kernel(
        "saxpy with strides (BLAS)", "const float* x, float* y, float a, int inc, int n",
        f"{X}\n if (i < n) y[i * inc] += a * x[i * inc];", "RANGE(n, 32768) y[i * inc] += a * x[i * inc];", strided,
        grid=(-(-(N // 3) // 256),),
    )  # fmt: skip
    kernel(
        "2-D grid stride over an image", "const float* a, float* b, int w, int h",
        "for (int y = blockIdx.y * blockDim.y + threadIdx.y; y < h; y += gridDim.y * blockDim.y) {\n"
        "for (int x = blockIdx.x * blockDim.x + threadIdx.x; x < w; x += gridDim.x * blockDim.x) {\n"
        "b[y * w + x] = sqrtf(a[y * w + x]) + 1.0f;\n}\n}",
        f"{ROWS} b[i * w + x] = sqrtf(a[i * w + x]) + 1.0f;", image, grid=(16, 12), block=(32, 8),
    )  # fmt: skip
    kernel(
        "nine-point stencil by a device function", "const float* in, float* out, int w, int h",
        f"{XY}\n if (x < 1 || x >= w - 1 || y < 1 || y >= h - 1) return;\n"
        "out[y * w + x] = nine(in, x, y, w);",
        "RANGE(h, 16) if (i > 0 && i < h - 1) for (int x = 1; x < w - 1; x++) out[i * w + x] = nine(in, x, (int)i, w);",
        image, **plain,
        before="__device__ float nine(const float* p, int x, int y, int w) { float s = 0.0f;\n"
        "for (int dy = -1; dy <= 1; ++dy) for (int dx = -1; dx <= 1; ++dx) s += p[(y + dy) * w + x + dx]; return s / 9.0f; }",
        native_before="static float nine(const float* p, int x, int y, int w) { float s = 0.0f;\n"
        "for (int dy = -1; dy <= 1; ++dy) for (int dx = -1; dx <= 1; ++dx) s += p[(y + dy) * w + x + dx]; return s / 9.0f; }",
    )  # fmt: skip
    sobel = (
        "float gx = -a[({0} - 1) * w + x - 1] - 2 * a[{0} * w + x - 1] - a[({0} + 1) * w + x - 1]"
        " + a[({0} - 1) * w + x + 1] + 2 * a[{0} * w + x + 1] + a[({0} + 1) * w + x + 1];\n"
        "float gy = -a[({0} - 1) * w + x - 1] - 2 * a[({0} - 1) * w + x] - a[({0} - 1) * w + x + 1]"
        " + a[({0} + 1) * w + x - 1] + 2 * a[({0} + 1) * w + x] + a[({0} + 1) * w + x + 1];\n"
        "b[{0} * w + x] = sqrtf(gx * gx + gy * gy);"
    )
    kernel(
        "Sobel", "const float* a, float* b, int w, int h",
        f"{XY}\n if (x > 0 && y > 0 && x < w - 1 && y < h - 1) {{ {sobel.format('y')} }}",
        f"RANGE(h, 16) if (i > 0 && i < h - 1) for (int x = 1; x < w - 1; x++) {{ {sobel.format('i')} }}", image, **plain,
    )  # fmt: skip
    kernel(
        "float4 loads by a cast", "const float* x, float* y, float a, int n",
        f"{X}\n if (i < n / 4) {{ float4 v = reinterpret_cast<const float4*>(x)[i]; float4 u = ((float4*)y)[i];\n"
        "u.x += a * v.x; u.y += a * v.y; u.z += a * v.z; u.w += a * v.w; reinterpret_cast<float4*>(y)[i] = u; }",
        "RANGE(n / 4, 16384) { float4 v = ((const float4*)x)[i], u = ((float4*)y)[i];\n"
        "u.x += a * v.x; u.y += a * v.y; u.z += a * v.z; u.w += a * v.w; ((float4*)y)[i] = u; }",
        lambda rng: [rng.random(N, np.float32), rng.random(N, np.float32), np.float32(1e-9), np.int32(N)],
        grid=(N // 1024,), native_before=FLOAT4,
    )  # fmt: skip
    kernel(
        "size by a structure of parameters", "const float* x, float* y, const Settings* s",
        f"{X}\n if (i >= s->n) return;\n y[i] = s->scale * x[i] + s->shift;",
        "const int n = s->n; RANGE(n, 65536) y[i] = s->scale * x[i] + s->shift;",
        lambda rng: [rng.random(N, np.float32), np.zeros(N, np.float32),
                     np.array([(2.0, 1.0, N)], [("scale", "f4"), ("shift", "f4"), ("n", "i4")]).view(np.uint8)],
        before="struct Settings { float scale, shift; int n; };",
        native_before="struct Settings { float scale, shift; int n; };",
    )  # fmt: skip
    switch = """switch (op[i]) {
    case 0: y[i] = x[i]; break;
    case 1: y[i] = -x[i]; break;
    case 2: y[i] = x[i] * x[i]; break;
    default: y[i] = 0.0f;
}"""
    kernel(
        "switch", "const float* x, const int* op, float* y, int n", f"{X}\n if (i >= n) return;\n {switch}",
        f"RANGE(n, 65536) {switch}",
        lambda rng: [rng.random(N, np.float32), rng.integers(0, 5, N, np.int32), np.zeros(N, np.float32), np.int32(N)],
    )  # fmt: skip
    kernel(
        "template with a functor", "const T* x, T* y, int n", f"{X}\n if (i < n) y[i] = F()(x[i]);",
        "RANGE(n, 65536) y[i] = x[i] > 0.5f ? x[i] : 0.0f;", floats(N, N), template="template <typename T, typename F> ",
        before="struct Relu { __device__ float operator()(float v) const { return v > 0.5f ? v : 0.0f; } };",
        native_parameters="const float* x, float* y, int n", expression="k<float, Relu>",
    )  # fmt: skip
    kernel(
        "64-bit index from a helper", "const double* x, double* y, size_t n",
        "const size_t i = global_id();\n if (i < n) y[i] = 1.0 / (1.0 + x[i] * x[i]);",
        "RANGE(n, 32768) y[i] = 1.0 / (1.0 + x[i] * x[i]);",
        lambda rng: [rng.random(N // 2), np.zeros(N // 2), np.uint64(N // 2)], grid=(N // 512,),
        before="__device__ __forceinline__ size_t global_id() { return (size_t)blockIdx.x * blockDim.x + threadIdx.x; }",
    )  # fmt: skip
    kernel(
        "prefix sums by one thread", "const float* x, float* y, int n",
        "if (blockIdx.x * blockDim.x + threadIdx.x == 0) { float s = 0.0f; for (int i = 0; i < n; i++) { s += x[i]; y[i] = s; } }",
        "if (take(next, 1) == 0) { float s = 0; for (int i = 0; i < n; i++) { s += x[i]; y[i] = s; } }",
        floats(N, N), grid=(1,), block=(32,),
    )  # fmt: skip
    kernel(
        "histogram in two dimensions", "const float* x, const float* y, int* bins, int n",
        f"{X}\n if (i >= n) return;\n int a = (int)(x[i] * 64), b = (int)(y[i] * 64);\n"
        "if (a < 64 && b < 64) atomicAdd(&bins[a * 64 + b], 1);",
        "RANGE(n, 65536) { int a = (int)(x[i] * 64), b = (int)(y[i] * 64);\n"
        "if (a < 64 && b < 64) __atomic_fetch_add(&bins[a * 64 + b], 1, __ATOMIC_RELAXED); }",
        lambda rng: [rng.random(N, np.float32), rng.random(N, np.float32), np.zeros(4096, np.int32), np.int32(N)],
    )  # fmt: skip
    kernel(
        "a sum by one atomic a thread", "const int* x, int* out, int n", f"{X}\n if (i < n) atomicAdd(out, x[i]);",
        "RANGE(n, 65536) __atomic_fetch_add(out, x[i], __ATOMIC_RELAXED);",
        lambda rng: [rng.integers(0, 9, N // 4, np.int32), np.zeros(1, np.int32), np.int32(N // 4)], grid=(N // 1024,),
    )  # fmt: skip
    kernel(
        "transpose, coalesced writes", "const float* a, float* b, int w, int h",
        f"{XY}\n if (x < h && y < w) b[y * h + x] = a[x * w + y];",
        "RANGE(w, 16) for (int x = 0; x < h; x++) b[i * h + x] = a[x * w + i];", image,
        grid=(H // 16, W // 16), block=(16, 16),
    )  # fmt: skip
    kernel(
        "complex numbers as pairs", "const float2* a, const float2* b, float2* c, int n",
        f"{X}\n if (i < n) {{ c[i].x = a[i].x * b[i].x - a[i].y * b[i].y; c[i].y = a[i].x * b[i].y + a[i].y * b[i].x; }}",
        "RANGE(n, 32768) { c[i].x = a[i].x * b[i].x - a[i].y * b[i].y; c[i].y = a[i].x * b[i].y + a[i].y * b[i].x; }",
        lambda rng: [*(rng.random(N, np.float32) for _ in range(3)), np.int32(N // 2)], grid=(N // 512,),
        native_before="struct alignas(8) float2 { float x, y; };",
    )  # fmt: skip
    kernel(
        "distance of points to centres", "const float* p, const float* c, int* nearest, int n, int k",
        f"{X}\n if (i >= n) return;\n float best = 1e30f; int at = 0;\n"
        "for (int j = 0; j < k; j++) { float d = 0.0f; for (int e = 0; e < 4; e++) { float t = p[i * 4 + e] - c[j * 4 + e]; d += t * t; }\n"
        "if (d < best) { best = d; at = j; } }\n nearest[i] = at;",
        "RANGE(n, 4096) { float best = 1e30f; int at = 0;\n"
        "for (int j = 0; j < k; j++) { float d = 0.0f; for (int e = 0; e < 4; e++) { float t = p[i * 4 + e] - c[j * 4 + e]; d += t * t; }\n"
        "if (d < best) { best = d; at = j; } } nearest[i] = at; }",
        lambda rng: [rng.random(1 << 18, np.float32), rng.random(64, np.float32), np.zeros(1 << 16, np.int32),
                     np.int32(1 << 16), np.int32(16)],
        grid=(256,),
    )  # fmt: skip
    kernel(
        "RGBA to grey, uchar4", "const uchar4* in, unsigned char* out, int w, int h",
        f"{XY}\n if (x >= w || y >= h) return;\n uchar4 p = in[y * w + x];\n"
        "out[y * w + x] = (unsigned char)(.299f * p.x + .587f * p.y + .114f * p.z);",
        f"{ROWS} {{ uchar4 p = in[i * w + x]; out[i * w + x] = (unsigned char)(.299f * p.x + .587f * p.y + .114f * p.z); }}",
        lambda rng: [rng.integers(0, 256, 4 * W * H, np.uint8), np.zeros(W * H, np.uint8), np.int32(W - 5), np.int32(H - 3)],
        **plain, native_before="struct alignas(4) uchar4 { unsigned char x, y, z, w; };",
    )  # fmt: skip
    wave = "after[{0}] = 2.0f * now[{0}] - before[{0}] + c * (now[{0} - 1] + now[{0} + 1] + now[{0} - w] + now[{0} + w] - 4.0f * now[{0}]);"
    kernel(
        "wave equation, linear index", "const float* before, const float* now, float* after, float c, int w, int h",
        f"{XY}\n int id = y * w + x;\n if (x > 0 && y > 0 && x < w - 1 && y < h - 1) {wave.format('id')}",
        "RANGE(h, 16) if (i > 0 && i < h - 1) for (int x = 1; x < w - 1; x++) { long id = i * w + x; "
        + wave.format("id") + " }",
        lambda rng: [rng.random(W * H, np.float32), rng.random(W * H, np.float32), np.zeros(W * H, np.float32),
                     np.float32(0.1), np.int32(W - 5), np.int32(H - 3)],
        **plain,
    )  # fmt: skip
    kernel(
        "row and column from one index", "const float* m, const float* v, float* out, int rows, int columns",
        "int idx = blockIdx.x * blockDim.x + threadIdx.x;\n if (idx < rows * columns) { int c = idx % columns; out[idx] = m[idx] + v[c]; }",
        "RANGE(rows * columns, 65536) { int c = (int)i % columns; out[i] = m[i] + v[c]; }",
        lambda rng: [rng.random(1 << 21, np.float32), rng.random(1024, np.float32), np.zeros(1 << 21, np.float32),
                     np.int32(2048), np.int32(1000)],
        grid=(2048 * 1000 // 256,),
    )  # fmt: skip
    kernel(
        "batch norm, channel from blockIdx.y", "const float* x, float* y, const float* mean, const float* scale, int n",
        f"{X}\n int c = blockIdx.y;\n if (i < n) y[c * n + i] = (x[c * n + i] - mean[c]) * scale[c];",
        "RANGE(64, 2) for (int k = 0; k < n; k++) y[i * n + k] = (x[i * n + k] - mean[i]) * scale[i];",
        lambda rng: [rng.random(1 << 21, np.float32), np.zeros(1 << 21, np.float32), rng.random(64, np.float32),
                     rng.random(64, np.float32), np.int32(32000)],
        grid=(125, 64),
    )  # fmt: skip
    kernel(
        "several elements a thread", "const float* x, float* y, int n",
        "int base = (blockIdx.x * blockDim.x + threadIdx.x) * 4;\n#pragma unroll\n"
        "for (int k = 0; k < 4; k++) { if (base + k < n) y[base + k] = x[base + k] * 2.0f; }",
        "RANGE((n + 3) / 4, 16384) for (int k = 0; k < 4; k++) { if (i * 4 + k < n) y[i * 4 + k] = x[i * 4 + k] * 2.0f; }",
        floats(N, N), grid=(N // 1024,),
    )  # fmt: skip
    kernel(
        "z in a loop over layers, three indices", "const float* a, float* b, int w, int h, int d",
        f"{XY}\n int z = blockIdx.z;\n if (x < w && y < h && z < d) {{ int p = z * w * h + y * w + x; b[p] = a[p] * 0.5f; }}",
        "RANGE(d, 4) for (int y = 0; y < h; y++) for (int x = 0; x < w; x++) { int p = (int)i * w * h + y * w + x; b[p] = a[p] * 0.5f; }",
        lambda rng: [rng.random(1 << 21, np.float32), np.zeros(1 << 21, np.float32), *[np.int32(v) for v in (128, 128, 128)]],
        grid=(4, 16, 128), block=(32, 8),
    )  # fmt: skip
    kernel(
        "bounds by a macro", "const float* x, float* y, int n",
        f"{X}\n CHECK(i, n);\n y[i] = fmaxf(x[i], 0.25f);", "RANGE(n, 65536) y[i] = x[i] > 0.25f ? x[i] : 0.25f;", floats(N, N),
        before="#define CHECK(i, n) if ((i) >= (n)) return",
    )  # fmt: skip
    kernel(
        "AoS to SoA", "const float* xyz, float* x, float* y, float* z, int n",
        f"{X}\n if (i < n) {{ x[i] = xyz[3 * i]; y[i] = xyz[3 * i + 1]; z[i] = xyz[3 * i + 2]; }}",
        "RANGE(n, 32768) { x[i] = xyz[3 * i]; y[i] = xyz[3 * i + 1]; z[i] = xyz[3 * i + 2]; }",
        lambda rng: [rng.random(3 * (N // 4), np.float32), *(np.zeros(N // 4, np.float32) for _ in range(3)), np.int32(N // 4)],
        grid=(N // 1024,),
    )  # fmt: skip
