"""What is recognised at the beginning of a kernel, and that lines stay. Results: see `test_exec_loops.py`."""

import os
import time

import pytest

from coppermesh.exec import cuda_build
from coppermesh.exec.cuda_build import Kernel, build_kernel
from coppermesh.exec.cuda_loops import rewrite_loops
from coppermesh.exec.cuda_toolchain import find_toolchain
from coppermesh.exec.errors import KernelCompileError

toolchain = find_toolchain(os.environ.get("COPPERMESH_TEST_COMPILER"))

X = "blockIdx.x * blockDim.x + threadIdx.x"
Y = "blockIdx.y * blockDim.y + threadIdx.y"
GUARDED = [
    f"int i = {X}; if (i < n) o[i] = 1;",
    f"int i = {X}; if (i >= n) return; o[i] = 1;",
    f"int i = {X}; if (i >= n) {{ return; }} o[i] = 1;",
    f"int i = {X}; if (!(i < n)) return; o[i] = 1;",
    f"int i = {X}; if (n > i) o[i] = 1;",
    f"int i = {X}; if (i > n - 1) return; o[i] = 1;",
    f"int i = {X}; if (i <= n - 1) o[i] = 1; return;",
    f"int i = {X} + 1; if (i < n) o[i] = 1;",
    f"int i = {X}; int m = 2 * n; if (i < m) o[i] = 1;",
    f"int i = {X}; float v = o[i] / 2.0f; if (i < n) o[i] = v;",
    f"int i = {X}; if (i < n && o[i] > 3) o[i] = 1;",
    "const unsigned int i = threadIdx.x + blockDim.x * blockIdx.x; if (i < n) { o[i] = 1; }",
    f"size_t i = ({X.replace(' + ', ') + ')}; if (i < n) o[i] = 1;",
    "size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; if (i < n) o[i] = 1;",
    "long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; if (i < n) o[i] = 1;",
    "int i = __mul24(blockIdx.x, blockDim.x) + threadIdx.x; if (i < n) o[i] = 1;",
    "int i = blockIdx.x * 64 + threadIdx.x; if (i < n) o[i] = 1;",
    "int b = blockIdx.x, t = threadIdx.x; int i = b * blockDim.x + t; if (i < n) o[i] = 1;",
    f"auto i = {X}; if (i < 70) o[i] = n > 0;",
    f"const int i = {X}, j = {Y}; if (i < n && j < n) o[i] = 1;",
    f"int j = {Y};\n const int i = {X}; /* c */ if (i >= n || j >= n) return; o[i] = 1;",
    f"int j = {Y}; int i = {X}; if (i >= n) return; if (j >= n) return; o[i] = 1;",
    f"int i = {X}; if (i > 0 && i < n - 1) o[i] = 1;",
]
STRIDED = [
    f"for (int i = {X}; i < n; i += blockDim.x * gridDim.x) o[i] = 1;",
    f"for (int i = {X};\n i < n;\n i += gridDim.x * blockDim.x) {{ o[i] = 1; }}",
    f"for (size_t i = {X}; i < n; i += (blockDim.x * gridDim.x)) o[i] = 1;",
    f"int s = blockDim.x * gridDim.x; for (int i = {X}; i < n; i = i + s) o[i] = 1;",
    f"int b = {X}, s = blockDim.x * gridDim.x; for (int i = b; i < n; i += s) o[i] = 1;",
    f"int i = {X}; for (; i < n; i += blockDim.x * gridDim.x) o[i] = 1;",
    f"int i = {X};\n while (i < n) {{ o[i] = 1;\n i += blockDim.x * gridDim.x; }}",
]
NOT_GUARDED = [
    f"int i = {X}; i += 3; if (i < n) o[i] = 1;",
    f"int i = {X}; n = 3; if (i < n) o[i] = 1;",
    f"int i = {X}; int m = n++; if (i < m) o[i] = 1;",
    f"int i = {X}; int m = take(n); if (i < m) o[i] = 1;",
    f"int i = {X}; int& m = n; if (i < m) o[i] = 1;",
    f"int i = {X}; if (i < n || o[0]) o[i] = 1;",
    f"int i = {X}; if (i < n) o[i] = 1; else o[i] = 2;",
    f"int i = {X}; if (i < n) o[i] = 1; o[0] = 2;",
    f"int i = {X}; if (i < o[0]) o[i] = 1;",
    f"char i = {X}; if (i < n) o[i] = 1;",
    f"int i = {Y}; int j = o[i]; if (j < n) o[i] = 1;",
    f"int i = {X};\n#if 1\n if (i < n)\n#endif\n o[i] = 1;",
]
NOT_STRIDED = [
    f"int s = 0; for (int i = {X}; i < n; i += blockDim.x * gridDim.x) s += o[i]; o[0] = s;",
    f"float s; for (int i = {X}; i < n; i += blockDim.x * gridDim.x) o[i] = 1;",
    f"for (int i = {X}; i < n; i += blockDim.x * gridDim.x) {{ if (o[i]) break; o[i] = 1; }}",
    f"for (int i = {X}; i < n; i += blockDim.x * gridDim.x) {{ if (o[i]) return; o[i] = 1; }}",
    f"for (int i = {X}; i < n; i += blockDim.x * gridDim.x) {{ if (o[i]) continue; o[i] = 1; }}",
    f"for (int i = {X}; i < n; i += blockDim.x * gridDim.x) STOP(i)",
    f"for (int i = {X}; i < n; i += blockDim.x) o[i] = 1;",
    f"for (int i = {X}; i < n; i += gridDim.x * blockDim.x) o[i] = 1; o[0] = 2;",
    f"for (int i = {X}; i < n; i += blockDim.x * gridDim.x) o[threadIdx.x] = i;",
    f"for (int i = {X}; i > n; i += blockDim.x * gridDim.x) o[i] = 1;",
    f"int b = {X}, s = blockDim.x * gridDim.x; for (int i = b; i < n; i += s) o[b] = i;",
    f"int s = blockDim.x * gridDim.x; for (int i = {X}; i < n; i += s) o[i] = s;",
    f"for (auto i = {X}; i < n; i += blockDim.x * gridDim.x) o[i] = 1;",
    f"int i = {X}; while (i < n) {{ i += blockDim.x * gridDim.x; o[i] = 1; }}",
]
MEANS_SOMETHING_ELSE = [
    "#define x y\n",
    "#define blockDim gridDim\n",
    "#define return\n",
    "#define int short\n",
    "typedef short uint32_t;\n",
    "#define JOIN(a, b) a##b\n",
    "#define OPEN {\n",
    "__device__ volatile int flag;\n",
    "__device__ void wait(int* p) { while (atomicAdd(p, 0) == 0) { } }\n",
    "__device__ int turn(int* p) { return atomicCAS(p, 0, 1); }\n",
]


def source(body: str, before: str = "") -> str:
    """A kernel of one array and one number."""
    return (
        f'{before}extern "C" __global__ void __launch_bounds__(64) k(int* __restrict__ o, int n) {{ {body} }}'
    )


@pytest.mark.parametrize("body", GUARDED + STRIDED)
def test_the_usual_forms_are_known_and_lines_stay(body):
    text = "// first\n" + source(body) + "\n// last"
    changed, lines = rewrite_loops(text, ["k"], {})
    assert lines == ("COPPERMESH_LOOP(k) : coppermesh_loop_k {};\n",)
    assert "coppermesh::whole" in changed
    assert ("strided = true" in changed) == (body in STRIDED)
    assert changed.count("\n") == text.count("\n")


@pytest.mark.parametrize("body", NOT_GUARDED + NOT_STRIDED)
def test_other_checks_and_loops_stay_as_they_are(body):
    text = source(body, before="#define STOP(i) return;\n")
    changed, _ = rewrite_loops(text, ["k"], {})
    assert "coppermesh::whole" not in changed
    assert "coppermesh::turn" not in changed


@pytest.mark.parametrize("before", MEANS_SOMETHING_ELSE)
def test_nothing_is_changed_where_words_could_mean_something_else(before):
    text = source(GUARDED[0], before)
    assert rewrite_loops(text, ["k"], {}) == (text, ())
    assert rewrite_loops(source(GUARDED[0]), ["k"], {"y": "x"}) == (source(GUARDED[0]), ())


def test_indices_that_are_not_one_number_keep_their_loops():
    for body in (
        f"int i = {X}; o[i] = threadIdx.x;",
        "int i = blockIdx.x * blockDim.x + threadIdx.x * 2; o[i] = 1;",
        "int i = 3 * blockIdx.x * blockDim.x + threadIdx.x; o[i] = 1;",
        "int i = blockIdx.x * blockDim.y + threadIdx.x; o[i] = 1;",
        f"o[TWICE({X})] = 1;",
        "uint3 t = threadIdx; o[t.x] = 1;",
    ):
        changed, _ = rewrite_loops(source(body, "#define TWICE(a) 2 * a\n"), ["k"], {})
        assert "flat = true" not in changed


def test_templates_kernels_in_extern_c_braces_and_macros_are_known():
    one = source(GUARDED[0])
    changed, lines = rewrite_loops('extern "C" {' + one.removeprefix('extern "C"') + "}", ["k"], {})
    assert "coppermesh::whole" in changed
    assert len(lines) == 1
    template = (
        "template <typename T, int N> __global__ void k(T* o, int n)"
        " { int i = blockIdx.x * N + threadIdx.x; if (i < n) o[i] = N; }"
    )
    changed, lines = rewrite_loops(template, ["k<float, 64>", "k<int, 32>"], {})
    assert "blockDim.x == (N)" in changed
    assert lines[1] == "COPPERMESH_LOOP(k<int, 32>) : coppermesh_loop_k<int, 32> {};\n"
    macro = f"#define LOOP(i, n) \\\n for (int i = {X}; i < (n); i += blockDim.x * gridDim.x)\n"
    changed, lines = rewrite_loops(source("LOOP(j, n) { o[j] = 1; }", macro), ["k"], {})
    assert "strided = true" in changed


def test_kernels_in_namespaces_and_twice_stay_as_they_are():
    one = source(GUARDED[0])
    for text in (one + one, f"namespace a {{ {one} }}"):
        assert rewrite_loops(text, ["k"], {})[1] == ()
    assert rewrite_loops(one, ["other"], {}) == (one, ())


def test_subscripts_of_signed_sums_are_widened_and_others_stay():
    changed, _ = rewrite_loops(
        source(f"int i = {X}; int at = i * n + 1; o[at] = o[i - n] + o[i & 3] + o[i];"), ["k"], {}
    )
    assert "wide(i) * ::coppermesh::wide(n) + 1" in changed
    assert "wide(i) - ::coppermesh::wide(n)" in changed
    assert "o[i & 3]" in changed
    assert "o[i]" in changed
    for change in (
        "at++;",
        "at = 3;",
        "take(at);",
        "int* p = &at;",
        "{ float at = 2; o[at * 2] = 1; }",
        "at += n;",
        "i = 4;",
        "--n;",
    ):
        body = f"int i = {X}; int at = i * n + 1; {change} o[at] = 1;"
        changed, _ = rewrite_loops(source(body), ["k"], {})
        assert changed.endswith(" o[at] = 1; }")  # a variable that may have changed stays itself


@pytest.mark.parametrize(
    "unit",
    [
        "{",
        "void f() {",
        "__global__ void k(int n) {{}} ",
        f"int i = {X};",
        "#define A(i, n) for (i)\nA(1, 2) ",
        "a[",
        "typedef ",
    ],
)
def test_hostile_sources_are_read_in_linear_time(unit):
    start = time.process_time()
    rewrite_loops((unit * 200_000)[:200_000], ["k"], {})
    assert time.process_time() - start < 5  # a square of the length would be minutes


@pytest.mark.skipif(toolchain is None, reason="needs a C++ compiler")
def test_a_source_that_does_not_compile_as_changed_is_compiled_as_written(tmp_path, monkeypatch):
    assert toolchain is not None
    changed = []

    def spoil(text, *arguments):
        changed.append(text)
        return "this compiles nowhere;" + text, rewrite_loops(text, *arguments)[1]

    monkeypatch.setattr(cuda_build, "rewrite_loops", spoil)
    os.close(build_kernel(Kernel(source(GUARDED[0]), "k", ()), toolchain, tmp_path, tmp_path))
    assert changed, "the changed source was tried first"
    with pytest.raises(KernelCompileError) as caught:
        build_kernel(Kernel(source(GUARDED[0] + "\n x;"), "k", ()), toolchain, tmp_path, tmp_path)
    assert "kernel.cu:2:2" in caught.value.detail
