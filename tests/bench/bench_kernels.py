# ruff: noqa: T201  # a program that prints its figures
"""CUDA kernels on the CPU beside native loops of the same algorithms: `python tests/bench/bench_kernels.py [COMPILER]`.

Native code is compiled by the same compiler with the same flags (`-O3`), takes its rows from the same counter on the
same two threads, and runs in turns with the kernels. Barrier-free kernels are compared with it; kernels with barriers,
for which no loop is the same algorithm, are stated as processor time. Least of `ROUNDS` runs, on a machine that may be
busy with other things.
"""

import ctypes
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from coppermesh.exec.cuda_build import Kernel, build_kernel
from coppermesh.exec.cuda_cpu import CudaCpu
from coppermesh.exec.cuda_toolchain import find_toolchain
from coppermesh.exec.threads import ThreadTeam

ROUNDS = 9
THREADS = 2

SAXPY = """
extern "C" __global__ void k(const float* x, float* y, float a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a * x[i] + y[i];
}"""
ELEMENTWISE = """
extern "C" __global__ void k(const float* x, const float* y, float* z, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) z[i] = sqrtf((x[i] - y[i]) * (x[i] - y[i]) + 1.0f) * x[i];
}"""
MANDELBROT = """
extern "C" __global__ void k(int* out, int w, int h, int most) {
    int px = blockIdx.x * blockDim.x + threadIdx.x, py = blockIdx.y * blockDim.y + threadIdx.y;
    if (px >= w || py >= h) return;
    float cr = -2.0f + 3.0f * px / w, ci = -1.5f + 3.0f * py / h, r = 0, i = 0;
    int n = 0;
    while (n < most && r * r + i * i < 4.0f) { float t = r * r - i * i + cr; i = 2 * r * i + ci; r = t; n++; }
    out[py * w + px] = n;
}"""
MATMUL = """
extern "C" __global__ void k(const float* a, const float* b, float* c, int n) {
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= n || y >= n) return;
    float sum = 0;
    for (int i = 0; i < n; i++) sum += a[y * n + i] * b[i * n + x];
    c[y * n + x] = sum;
}"""
TILED = """
extern "C" __global__ void k(const float* a, const float* b, float* c, int n) {
    __shared__ float s[16][16], t[16][16];
    int x = threadIdx.x, y = threadIdx.y, row = blockIdx.y * 16 + y, column = blockIdx.x * 16 + x;
    float sum = 0;
    for (int m = 0; m < n / 16; m++) {
        s[y][x] = a[row * n + m * 16 + x];
        t[y][x] = b[(m * 16 + y) * n + column];
        __syncthreads();
        for (int i = 0; i < 16; i++) sum += s[y][i] * t[i][x];
        __syncthreads();
    }
    c[row * n + column] = sum;
}"""
REDUCTION = """
extern "C" __global__ void k(const float* x, float* out, int n) {
    __shared__ float part[32];
    float sum = 0;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += blockDim.x * gridDim.x) sum += x[i];
    for (int d = 16; d; d >>= 1) sum += __shfl_down_sync(0xffffffffu, sum, d);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x < 32) {
        sum = threadIdx.x < blockDim.x / 32 ? part[threadIdx.x] : 0.0f;
        for (int d = 16; d; d >>= 1) sum += __shfl_down_sync(0xffffffffu, sum, d);
        if (threadIdx.x == 0) out[blockIdx.x] = sum;
    }
}"""
HISTOGRAM = """
extern "C" __global__ void k(const unsigned char* x, unsigned int* out, int n) {
    __shared__ unsigned int bins[256];
    bins[threadIdx.x] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += blockDim.x * gridDim.x) atomicAdd(&bins[x[i]], 1u);
    __syncthreads();
    atomicAdd(&out[threadIdx.x], bins[threadIdx.x]);
}"""
NO_BARRIER_MET = """
extern "C" __global__ void k(const float* x, float* y, float a, int n) {
    __shared__ float unused[4];
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (n < 0) { unused[threadIdx.x & 3] = a; __syncthreads(); y[0] = unused[0]; }
    if (i < n) y[i] = a * x[i] + y[i];
}"""

NATIVE = """
extern "C" {
float sqrtf(float);
static long take(long* next, long step) { return __atomic_fetch_add(next, step, __ATOMIC_RELAXED); }
#define RANGE(n, step) for (long first; (first = take(next, step)) < n;) \\
    for (long i = first, end = first + step < n ? first + step : n; i < end; i++)
void saxpy(long* next, const float* x, float* y, float a, int n) { RANGE(n, 524288) y[i] = a * x[i] + y[i]; }
void elementwise(long* next, const float* x, const float* y, float* z, int n) {
    RANGE(n, 524288) z[i] = sqrtf((x[i] - y[i]) * (x[i] - y[i]) + 1.0f) * x[i];
}
void mandelbrot(long* next, int* out, int w, int h, int most) {
    RANGE(h, 16) for (int px = 0; px < w; px++) {
        float cr = -2.0f + 3.0f * px / w, ci = -1.5f + 3.0f * (int)i / h, r = 0, im = 0;
        int n = 0;
        while (n < most && r * r + im * im < 4.0f) { float t = r * r - im * im + cr; im = 2 * r * im + ci; r = t; n++; }
        out[i * w + px] = n;
    }
}
void matmul(long* next, const float* a, const float* b, float* c, int n) {
    RANGE(n, 16) for (int x = 0; x < n; x++) {
        float sum = 0;
        for (int k = 0; k < n; k++) sum += a[i * n + k] * b[k * n + x];
        c[i * n + x] = sum;
    }
}
}"""


class Bench:
    """A compiler, the kernels built with it, and the native loops."""

    def __init__(self, compiler: str | None, directory: Path) -> None:
        found = find_toolchain(compiler)
        if found is None:
            raise SystemExit("no C++ compiler")
        self.toolchain, self.directory, self.builds = found, directory, 0
        self.cuda = CudaCpu(self._build, threads=THREADS)
        self.team = ThreadTeam(THREADS)
        self.build_ms: list[float] = []
        self.native = self._build_native()

    def _build(self, kernel: Kernel) -> int:
        self.builds += 1
        directory = self.directory / str(self.builds)
        directory.mkdir()
        start = time.perf_counter()
        library = build_kernel(kernel, self.toolchain, directory, self.directory)
        self.build_ms.append(1_000 * (time.perf_counter() - start))
        return library

    def _build_native(self) -> ctypes.CDLL:
        import subprocess

        (self.directory / "native.cpp").write_text(NATIVE)
        command = self.toolchain.arguments("c++17", self.directory, "native.cpp", "native.so")
        command = [word for word in command if word not in ("-nostdinc", "-fvisibility=hidden")]
        environment = self.toolchain.environment(str(self.directory))
        subprocess.run(command, cwd=self.directory, env=environment, check=True)
        return ctypes.CDLL(str(self.directory / "native.so"))

    def kernel(
        self, source: str, grid: tuple[int, ...], block: tuple[int, ...], *arguments
    ) -> Callable[[], None]:
        """What launches a kernel of `source`."""
        launch = self.cuda.load(source, "k", ())
        (gx, gy, gz), (bx, by, bz) = ((*lengths, 1, 1, 1)[:3] for lengths in (grid, block))
        return lambda: launch((gx, gy, gz), (bx, by, bz), 0, list(arguments))

    def loop(self, name: str, *arguments) -> Callable[[], None]:
        """What runs a native loop on the same number of threads."""
        passed = [
            ctypes.c_void_p(a.ctypes.data)
            if isinstance(a, np.ndarray)
            else (ctypes.c_float if isinstance(a, np.float32) else ctypes.c_int)(a)
            for a in arguments
        ]

        def run() -> None:
            following = ctypes.c_long(0)
            self.team.run(THREADS, lambda: self.native[name](ctypes.byref(following), *passed))

        return run


def measure(*actions: Callable[[], None]) -> list[tuple[float, float]]:
    """Least wall and processor milliseconds of each action, run in turns."""
    walls: list[list[float]] = [[] for _ in actions]
    cpus: list[list[float]] = [[] for _ in actions]
    for _ in range(ROUNDS):
        for number, action in enumerate(actions):
            wall, cpu = time.perf_counter(), time.process_time()
            action()
            walls[number].append(1_000 * (time.perf_counter() - wall))
            cpus[number].append(1_000 * (time.process_time() - cpu))
    return [(min(w), min(c)) for w, c in zip(walls, cpus, strict=True)]


def compare(what: str, kernel: Callable[[], None], loop: Callable[[], None]) -> None:
    """Print a kernel beside its loop, by processor time (the machine may be shared)."""
    (wall, cpu), (loop_wall, loop_cpu) = measure(kernel, loop)
    print(
        f"{what:30} {cpu:8.1f} ms of CPU, native {loop_cpu:8.1f}: {cpu / loop_cpu:5.2f} times"
        f"   (wall {wall:.1f} and {loop_wall:.1f})"
    )


def state(what: str, kernel: Callable[[], None]) -> None:
    """Print a kernel alone."""
    ((wall, cpu),) = measure(kernel)
    print(f"{what:30} {cpu:8.1f} ms of CPU, {wall:.1f} ms of wall time")


def main(compiler: str | None) -> None:
    """Everything."""
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(compiler, Path(directory))
        print(bench.toolchain.version())
        n = 1 << 24
        x, y, z = (rng.random(n, np.float32) for _ in range(3))
        a, count = np.float32(1e-9), np.int32(n)
        blocks = (n // 256,)
        compare(
            "saxpy 16M",
            bench.kernel(SAXPY, blocks, (256,), x, y, a, count),
            bench.loop("saxpy", x, y, a, count),
        )
        compare(
            "elementwise 16M", bench.kernel(ELEMENTWISE, blocks, (256,), x, y, z, count),
            bench.loop("elementwise", x, y, z, count),
        )  # fmt: skip
        w, h, most = np.int32(1024), np.int32(768), np.int32(256)
        picture, other = np.zeros((768, 1024), np.int32), np.zeros((768, 1024), np.int32)
        compare(
            "mandelbrot 1024x768x256", bench.kernel(MANDELBROT, (64, 48), (16, 16), picture, w, h, most),
            bench.loop("mandelbrot", other, w, h, most),
        )  # fmt: skip
        assert np.array_equal(picture, other)
        side = np.int32(512)
        m, k, c, d = (rng.random((512, 512), np.float32) for _ in range(4))
        compare(
            "naive matrix product 512", bench.kernel(MATMUL, (32, 32), (16, 16), m, k, c, side),
            bench.loop("matmul", m, k, d, side),
        )  # fmt: skip
        assert np.allclose(c, d, rtol=1e-5)
        compare(
            "saxpy, barrier never met", bench.kernel(NO_BARRIER_MET, blocks, (256,), x, y, a, count),
            bench.loop("saxpy", x, y, a, count),
        )  # fmt: skip
        state("tiled matrix product 512", bench.kernel(TILED, (32, 32), (16, 16), m, k, d, side))
        assert np.allclose(c, d, rtol=1e-5)
        partial = np.zeros(256, np.float32)
        size = np.int32(1 << 22)
        state("shuffle reduction 4M", bench.kernel(REDUCTION, (256,), (256,), x, partial, size))
        assert abs(partial.sum() / x[: 1 << 22].sum(dtype=np.float64) - 1) < 1e-5
        octets = rng.integers(0, 256, n, np.uint8)
        bins = np.zeros(256, np.uint32)
        histogram = bench.kernel(HISTOGRAM, (256,), (256,), octets, bins, count)
        histogram()
        assert np.array_equal(bins, np.bincount(octets, minlength=256))
        state("histogram 16M", histogram)
        print(
            f"compile, cold: {statistics.median(bench.build_ms):.0f} ms"
            f" ({min(bench.build_ms):.0f} to {max(bench.build_ms):.0f}, {len(bench.build_ms)} kernels)"
        )
        first = bench.kernel(TILED, (1, 1), (16, 16), m, k, d, np.int32(0))

        def a_hundred() -> None:
            for _ in range(100):
                first()

        ((wall, _),) = measure(a_hundred)
        print(f"launch of 256 fibers that meet nothing, the kernel being known: {10 * wall:.0f} us")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
