"""The check `if (i < n)` of a kernel, taken out of its loop: which forms, and that nobody is let through."""

import os
import time

import numpy as np
import pytest

from coppermesh.exec.cuda_build import build_kernel
from coppermesh.exec.cuda_cpu import CudaCpu
from coppermesh.exec.cuda_guards import hoist_guards
from coppermesh.exec.cuda_toolchain import find_toolchain

toolchain = find_toolchain(os.environ.get("COPPERMESH_TEST_COMPILER"))

X = "blockIdx.x * blockDim.x + threadIdx.x"
Y = "blockIdx.y * blockDim.y + threadIdx.y"
KNOWN = [
    ("int n", f"int i = {X}; if (i < n) o[i] = 1;"),
    ("int n", f"int i = {X}; if (i >= n) return; o[i] = 1;"),
    ("unsigned n", "const unsigned int i = threadIdx.x + blockDim.x * blockIdx.x; if (i < n) { o[i] = 1; }"),
    ("size_t n", f"size_t i = ({X.replace(' + ', ') + ')}; if (i < n) o[i] = 1;"),
    ("float n", f"int i = {X}; if (i < n) o[i] = 1;"),
    ("long long n", f"auto i = {X}; if (i < 70) o[i] = n > 0;"),
    ("const int n", f"int i = {X}, j = {Y}; if (i < n && j < n) o[i] = 1;"),
    ("int n", f"int j = {Y};\n const int i = {X}; /* c */ if (i >= n || j >= n) return; o[i] = 1;"),
]
UNKNOWN = [
    ("int n", f"int i = {X} + 1; if (i < n) o[i] = 1;"),
    ("int n", f"int i = {X}; i += 3; if (i < n) o[i] = 1;"),
    ("int n", f"int i = {X}; n = 3; if (i < n) o[i] = 1;"),
    ("int n", f"int i = {X}; int m = n; if (i < m) o[i] = 1;"),
    ("int n", f"int i = {X}; if (i <= n) o[i] = 1;"),
    ("int n", f"int i = {X}; if (i < n || o[0]) o[i] = 1;"),
    ("int n", f"int i = {X}; if (i < n - 1) o[i] = 1;"),
    ("int n", f"char i = {X}; if (i < n) o[i] = 1;"),
    ("int n", f"int i = {X}; if (n < i) o[i] = 1;"),
    ("int n", f"int i = {Y}; if (i < n) o[i] = 1;"),
    ("int n", f"int i = {X};\n#if 1\n if (i < n)\n#endif\n o[i] = 1;"),
]


def source(parameter: str, body: str) -> str:
    """A kernel of one array and one number."""
    return (
        f'extern "C" __global__ void __launch_bounds__(64) k(int* __restrict__ o, {parameter}) {{ {body} }}'
    )


@pytest.mark.parametrize(("parameter", "body"), KNOWN)
def test_the_usual_forms_are_known_and_lines_stay(parameter, body):
    text = "// first\n" + source(parameter, body) + "\n// last"
    changed, names = hoist_guards(text, ["k"])
    assert names == ("k",)
    assert "coppermesh::whole" in changed
    assert changed.count("\n") == text.count("\n")


@pytest.mark.parametrize(("parameter", "body"), UNKNOWN)
def test_any_other_form_stays_as_it_is(parameter, body):
    text = source(parameter, body)
    assert hoist_guards(text, ["k"]) == (text, ())


def test_kernels_in_braces_templates_and_twice_stay_as_they_are():
    one = source(*KNOWN[0])
    for text in (
        one + one,
        f"namespace a {{ {one} }}",
        'extern "C" {' + one + "}",
        f"template <class T> {one}",
    ):
        assert hoist_guards(text, ["k"]) == (text, ())
    assert hoist_guards(one, ["other"]) == (one, ())


@pytest.mark.skipif(toolchain is None, reason="needs a C++ compiler")
@pytest.mark.parametrize(("parameter", "body"), KNOWN + UNKNOWN[:1])
def test_the_threads_that_pass_are_the_right_ones(tmp_path, tmp_path_factory, parameter, body):
    assert toolchain is not None
    cache = tmp_path_factory.getbasetemp()
    cuda = CudaCpu(lambda kernel: build_kernel(kernel, toolchain, tmp_path, cache))
    launch = cuda.load(source(parameter, body), "k", ())
    number = {
        "int": np.int32,
        "unsigned": np.uint32,
        "size_t": np.uint64,
        "float": np.float32,
        "long": np.int64,
    }[parameter.replace("const ", "").split()[0]]
    shift = 1 if "+ 1;" in body else 0
    for limit in (0, 1, 15, 16, 17, 64, 70, 79, 80, 100):
        out = np.zeros(200, np.int32)
        launch((5, 1, 1), (16, 1, 1), 0, [out, number(limit)])
        if "i < 70" in body:
            expected = np.arange(200) < (70 if limit else 0)
        else:
            expected = (np.arange(200) < min(limit, 80 + shift)) & (np.arange(200) >= shift)
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("unit", ["{", "void f() {", "__global__ void k(int n) {{}} "])
def test_hostile_sources_are_read_in_linear_time(unit):
    start = time.process_time()
    hoist_guards((unit * 200_000)[:200_000], ["k"])
    assert time.process_time() - start < 5  # a square of the length would be minutes
