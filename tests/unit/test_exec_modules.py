"""RawModule: variables and their state, name expressions, and modules of a hostile hand."""

import time
from typing import Any, cast

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coppermesh.exec import xp
from coppermesh.exec.cuda_build import Kernel, build_kernel
from coppermesh.exec.cuda_cpu import CudaCpu
from coppermesh.exec.cuda_gate import SourceRefused
from coppermesh.exec.cuda_modules import base_name, has_state
from coppermesh.exec.cuda_toolchain import Toolchain, find_toolchain
from coppermesh.exec.errors import KernelCompileError, ProgramInvalid, RunFailed
from coppermesh.exec.evaluate import evaluate
from coppermesh.exec.kernels import ElementwiseKernel, RawKernel, RawModule
from coppermesh.exec.module_arrays import MemoryPointer
from coppermesh.exec.name_expressions import canonical
from coppermesh.exec.numpy_runtime import NumpyRuntime
from coppermesh.exec.program import MAX_SOURCE_CHARACTERS, decode_program
from coppermesh.exec.schema import check_program
from coppermesh.exec.source_lines import failed_node
from coppermesh.exec.tracing import trace

COUNTER = r"""
__device__ int total = 5;
__constant__ int step;
extern "C" __global__ void add(int* out, int by) { total += by; out[0] = total; }
extern "C" __global__ void twice(int* out) { total *= 2; out[0] = total + step; }
extern "C" __global__ void quietly() { total += 100; }
"""


@pytest.fixture(scope="module")
def builds():
    return []


@pytest.fixture(scope="module")
def cpu(tmp_path_factory, builds):
    toolchain = find_toolchain()
    if toolchain is None:
        pytest.skip("no C++ compiler on this machine")
    cache = tmp_path_factory.mktemp("cache")

    def build(kernel):
        builds.append(kernel)
        return build_kernel(kernel, toolchain, tmp_path_factory.mktemp("build"), cache)

    return NumpyRuntime(CudaCpu(build, threads=2))


def counters(count):
    return [xp.zeros(1, dtype=np.int32) for _ in range(count)]


def values(cpu, *arrays):
    return [int(result.reshape(-1)[0]) for result in evaluate(*arrays, runtime=cpu)]


def test_kernels_of_one_module_share_its_variables(cpu, builds):
    del builds[:]
    module = RawModule(code=COUNTER)
    add, twice = module.get_function("add"), module.get_function("twice")
    first, second, third = counters(3)
    add((1,), (1,), (first, np.int32(2)))
    twice((1,), (1,), (second,))
    module.get_function("quietly")((1,), (1,), ())
    step = xp.ndarray((), np.int32, module.get_global("step"))
    step[...] = 1000
    twice((1,), (1,), (third,))
    total = xp.ndarray(1, "int32", module.get_global("total"))
    assert values(cpu, first, second, third, total) == [7, 14, 1228, 228]
    assert values(cpu, second) == [14]  # a run begins anew, and does what the result needs
    assert values(cpu, total, step) == [228, 1000]
    # One library for each set of kernels that a program uses, with the source once.
    assert [kernel.functions for kernel in builds] == [("add", "quietly", "twice"), ("add", "twice")]
    recording = trace(first, second, third, total)
    assert len(recording.checked.program.kernels) == 1
    assert recording.program.count(b"total *= 2") == 1


def test_modules_of_one_source_are_apart(cpu):
    one, other = RawModule(code=COUNTER), RawModule(code=COUNTER)
    outs = counters(3)
    one.get_function("add")((1,), (1,), (outs[0], np.int32(1)))
    other.get_function("add")((1,), (1,), (outs[1], np.int32(10)))
    one.get_function("add")((1,), (1,), (outs[2], np.int32(1)))
    assert values(cpu, *outs) == [6, 15, 7]
    assert len(trace(*outs).checked.program.kernels) == 1


def test_a_single_kernel_keeps_its_variables_too(cpu):
    count = RawKernel(
        'extern "C" __global__ void count(int* out) { static int calls = 10; out[0] = ++calls; }', "count"
    )
    outs = counters(3)
    for out in outs:
        count((1,), (1,), (out,))
    assert values(cpu, *outs) == [11, 12, 13]
    assert values(cpu, *outs) == [11, 12, 13]


def test_a_variable_reads_as_an_array(cpu):
    module = RawModule(
        code="__device__ float table[6] = {1, 2, 3};"
        'extern "C" __global__ void grow(float by) { table[threadIdx.x] += by; }'
    )
    whole = xp.ndarray((2, 3), np.float32, memptr=module.get_global("table"))
    tail = xp.ndarray(2, np.float32, module.get_global("table") + 16)
    before = whole + 0
    module.get_function("grow")((1,), (6,), (np.float32(0.5),))
    after = whole[0] * 2
    tail[...] = [7, 8]
    results = evaluate(before, after, whole, xp.sum(tail), runtime=cpu)
    np.testing.assert_array_equal(results[0], [[1, 2, 3], [0, 0, 0]])
    np.testing.assert_array_equal(results[1], [3, 5, 7])
    np.testing.assert_array_equal(results[2], [[1.5, 2.5, 3.5], [0.5, 7, 8]])
    assert float(results[3]) == 15
    assert (whole.shape, whole.dtype, isinstance(whole, xp.ndarray)) == ((2, 3), np.float32, True)


def test_two_threads_share_variables(cpu):
    module = RawModule(
        code='__device__ unsigned int hits; extern "C" __global__ void hit() { atomicAdd(&hits, 1u); }'
    )
    module.get_function("hit")((200,), (64,), ())
    [hits] = values(cpu, xp.ndarray((), np.uint32, module.get_global("hits")))
    assert hits == 200 * 64


def test_variables_have_bounds_and_may_be_const(cpu):
    module = RawModule(
        code="__device__ int few[4]; __constant__ const int fixed = 3;"
        'extern "C" __global__ void k(int* x) { x[0] = few[0] + fixed; }'
    )
    beyond = xp.ndarray(5, np.int32, module.get_global("few"))
    with pytest.raises(RunFailed, match="20 bytes at 0 of the variable few, which has 16") as caught:
        evaluate(beyond + 1, runtime=cpu)
    assert caught.value.code == "kernel-symbol"
    module = RawModule(code=module.code)
    fixed = xp.ndarray((), np.int32, module.get_global("fixed"))
    fixed[...] = 4
    out = xp.zeros(1, dtype=np.int32)
    module.get_function("k")((1,), (1,), (out,))
    with pytest.raises(RunFailed, match="read-only"):
        evaluate(out, runtime=cpu)
    unchecked = MemoryPointer(RawModule(code=COUNTER)._module, "nowhere")
    absent = xp.ndarray(1, np.int32, unchecked)
    with pytest.raises(KernelCompileError, match="no variable 'nowhere'"):
        evaluate(absent, runtime=cpu)
    with pytest.raises(ProgramInvalid, match="the source has no variable 'nowhere'"):
        RawModule(code=COUNTER).get_global("nowhere")
    with pytest.raises(ProgramInvalid, match=r"the source has no kernel 'nowhere'; its kernels are .*twice"):
        RawModule(code=COUNTER).get_function("nowhere")


def test_same_code_same_bytes():
    def program():
        module = RawModule(code=COUNTER, name_expressions=["add", "twice"])
        outs = counters(2)
        module.get_function("twice")((1,), (1,), (outs[0],))
        module.get_function("add")((1,), (1,), (outs[1], np.int32(1)))
        return trace(*outs).program

    assert program() == program()
    decoded = decode_program(program())
    assert [node.op for node in decoded.nodes].count("module_state") == 1
    assert decoded.kernels[0].texts[2] == "add\ntwice"


def test_a_failing_kernel_of_a_module_is_told(cpu):
    module = RawModule(
        code="template <typename T> __global__ void bad(T* x) { x[0] = missing; }",
        name_expressions=["bad<int>"],
    )
    x = xp.zeros(1, dtype=np.int32)
    module.get_function("bad<int>")((1,), (1,), (x,))
    with pytest.raises(KernelCompileError, match="kernel bad does not compile") as caught:
        evaluate(x, runtime=cpu)
    assert "kernel.cu:1:" in caught.value.log
    assert failed_node("the worker died in kernel bad", trace(x).program) == 1
    assert base_name("tools::bad<a::b>") == "bad"


def test_kernels_in_a_loop(cpu):
    halve = RawKernel(
        'extern "C" __global__ void halve(const double* x, double* y) { y[threadIdx.x] = x[threadIdx.x] / 2; }',
        "halve",
    )
    shift = ElementwiseKernel("T x, T y", "T z", "z = x + y", "shift")

    def step(carry, x):
        y = xp.zeros(3)
        halve((1,), (3,), (carry, y))
        return shift(y, x), y

    last, halves = xp.scan(step, xp.asarray([8.0, 4.0, 2.0]), xp.asarray([1.0, 2.0, 3.0]))
    state, expected = np.array([8.0, 4.0, 2.0]), []
    for x in (1.0, 2.0, 3.0):
        expected.append(state / 2)
        state = state / 2 + x
    results = evaluate(last, halves, runtime=cpu)
    np.testing.assert_array_equal(results[0], state)
    np.testing.assert_array_equal(results[1], expected)
    assert trace(last).checked.features == {"array-programs", "cuda-source"}


def test_variables_in_a_loop_are_refused():
    module = RawModule(code=COUNTER)

    def step(carry):
        module.get_function("twice")((1,), (1,), (carry,))
        return carry

    with pytest.raises(ProgramInvalid, match="variables of its own"):
        xp.scan(lambda carry, _: (step(carry), None), xp.zeros(1, dtype=np.int32), length=3)


# --- what is read off a source


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("__device__ int n;", True),
        ("__device__ float table[3] = {1, 2, 3};", True),
        ("__constant__ float table[3];", True),
        ("static __device__ __align__(16) float4 corner;", True),
        ("__device__ float (*function)(float) = square;", True),
        ("template <class T> __device__ T anything;", True),
        ("__device__ Pair<int, (3 > 2)> pair{};", True),
        ("#define SHARED __device__\nSHARED int n;", True),
        ("#define COUNTER(name) __device__ int name;\nCOUNTER(n)", True),
        ("__global__ void k() { static int n; }", True),
        ("__device__ const char* name;", True),
        ("__device__ float square(float x) { return x * x; }", False),
        ("static __device__ __forceinline__ float2 operator+(float2 x, float2 y) { return x; }", False),
        ("#define INLINE __device__ inline\nINLINE float square(float x);", False),
        ("__device__ const float table[2] = {1, 2};", False),
        ("static constexpr int N = 3;", False),
        ("__global__ void k() { __shared__ int n; static const int m = 3; }", False),
        ("auto f = [] __device__ (int x) { return x; };", False),
        ("struct S { __device__ S(int n) : n(n) {} int n; };", False),
        ('// __device__ int n;\nconst char* s = "__device__ int n;";', False),
    ],
)
def test_which_sources_have_state(source, expected):
    assert has_state(source) is expected


def test_constants_alone():
    assert not has_state("__constant__ float table[3] = {1, 2, 3};", constants=False)
    assert has_state("__constant__ float table[3]; __device__ int n;", constants=False)


@pytest.mark.parametrize(
    "piece", ["__device__ ", "static (", "__device__ a<", "#define a __device__\n", "__device__ decltype("]
)
def test_reading_state_takes_time_in_proportion(piece):
    text = piece * (MAX_SOURCE_CHARACTERS // len(piece))
    start = time.process_time()
    has_state.__wrapped__(text)
    assert time.process_time() - start < 4


# --- name expressions


@pytest.mark.parametrize(
    ("given_name", "expected"),
    [
        ("k", "k"),
        ("k<float,4>", "k<float, 4>"),
        (" ns :: k < complex<float> > ", "ns::k<complex<float>>"),
        ("::k<const float*,unsigned   int>", "::k<const float*, unsigned int>"),
        ("k<-3, 0x1fULL, true>", "k<-3, 0x1fULL, true>"),
        ("k<&square, int[3], T<int>::type>", "k<&square, int[3], T<int>::type>"),
        ("box<int>::k<>", "box<int>::k<>"),
    ],
)
def test_name_expressions_have_one_spelling(given_name, expected):
    assert canonical(given_name) == expected
    assert canonical(expected) == expected


INJECTIONS = [
    "k);",
    "k; int x",
    "k<int>; extern int y",
    "k()",
    "k<f()>",
    "k<(1)>",
    "k<int>{}",
    "k<{1}>",
    "k)\n#include </etc/passwd>\n(",
    "k\n",
    "k<int>\n",
    "k\\\n",
    "k#define",
    "k<'a'>",
    'k<"a">',
    'k<R"(x)">',
    "k<a/**/>",
    "k//",
    "k??/",
    "k%:",
    "k<:int:>",
    "k<sizeof int>",
    "k<decltype x>",
    "k<__builtin_trap>",
    "k<__FILE__>",
    "k<asm>",
    "k<new int>",
    "operator new",
    "k<operator>",
    "k, other",
    "k<int>, other",
    "k<int> other",
    "&k",
    "*k",
    "k + 1",
    "k<1 + 2>",
    "k<a = b>",
    "k<a, >",
    "k<, a>",
    "k<int",
    "k<int>>",
    "k<<int>",
    "<int>",
    "k<int><int>",
    "k::",
    "k<>::",
    "::",
    "k<1.5>",
    "k<1e5>",
    "k<0b1'0>",
    "k<-x>",
    "k<int[n]>",
    "k<coppermesh::entry>",
    "COPPERMESH_EXPORT",
    "k<_Pragma>",
    "k<int\0>",
    "k<\xe9>",
    "k\u202e",
    "",
    " ",
    "k<" * 20 + ">" * 20,
    "k" * 257,
]


@pytest.mark.parametrize("name", INJECTIONS)
def test_what_is_no_name_expression_is_refused_on_both_sides(name, tmp_path):
    with pytest.raises(ProgramInvalid) as caught:
        RawModule(code="template <class T> __global__ void k(T* x) {}", name_expressions=[name])
    assert caught.value.code == "kernel-name"
    document = module_program(expressions=name)
    if name.strip("\n"):
        with pytest.raises(ProgramInvalid) as caught:
            check_program(decode_program(msgpack.packb(document)))
        assert caught.value.code in ("kernel-name", "kernel-source", "kernel-include", "unsupported-feature")
    nothing = Toolchain(("/nonexistent/c++",), "gcc")
    with pytest.raises((SourceRefused, ProgramInvalid)):
        build_kernel(Kernel("__global__ void k() {}", "k", (), (), (name,)), nothing, tmp_path, tmp_path)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="kT<>,:&*-[]01x ()#;\"'\\\n{}=", max_size=40))
def test_whatever_passes_as_a_name_expression_ends_nothing(text):
    try:
        name = canonical(text)
    except ProgramInvalid:
        return
    assert not set(name) & set("(){};#\"'\\\n=")
    assert name.count("<") == name.count(">")
    assert canonical(name) == name


# --- hostile programs

I4 = ["int32", [4]]
CODE = '__device__ int n; extern "C" __global__ void k(int* x) { x[0] = ++n; }'
PLAIN = 'extern "C" __global__ void k(int* x) { x[0] = 1; }'
LAUNCH = {"block": [1, 1, 1], "by_value": [], "function": 0, "grid": [1, 1, 1], "kernel": 0, "shared_mem": 0}
RAW_LAUNCH = {"block": [1, 1, 1], "grid": [1, 1, 1], "kernel": 0, "shared_mem": 0}
BEGIN = ["module_state", [], {"kernel": 0}]
PLACE = {"kernel": 0, "offset": 0, "symbol": 0}
READ = {"dtype": "int32", "kernel": 0, "offset": 0, "shape": [1], "symbol": 0}


LOOP_CALL = ["elementwise_kernel", [0], {"kernel": 0, "size": None}]


def loop(*texts):
    return [1, [I4], [["elementwise", "k", [], list(texts)]], [LOOP_CALL], [1]]


def reduction(axes=(0,), expressions=("x", "a + b", "y = a")):
    source = ["reduction", "k", [], ["T x", "T y", *expressions, "0", "", ""]]
    call = ["reduction_kernel", [0], {"axes": list(axes), "keepdims": False, "kernel": 0}]
    return [1, [I4], [source], [call], [1]]


def document(*nodes, kernels=(("k", "", "n"),), code=CODE, name="module", inputs=(I4,)):
    sources = [["module", name, [], [code, *lists]] for lists in kernels]
    return [1, list(inputs), sources, [list(node) for node in nodes], [0]]


def module_program(expressions="", functions="k", symbols="", code=PLAIN, **launch):
    return document(
        ("module_kernel", [0], {**LAUNCH, **launch}), kernels=((functions, expressions, symbols),), code=code
    )


HOSTILE = {
    "two uses of one state": (
        document(BEGIN, ("module_kernel", [1, 0], LAUNCH), ("module_kernel", [1, 0], LAUNCH)),
        "kernel-state",
    ),
    "a state that is an array": (
        document(("module_kernel", [0, 0], LAUNCH), inputs=(["uint8", [0]],)),
        "kernel-state",
    ),
    "an array after a state was begun": (document(BEGIN, ("module_kernel", [0, 0], LAUNCH)), "kernel-state"),
    "no state at all": (document(("module_kernel", [], LAUNCH)), "kernel-state"),
    "a state of another module": (
        document(
            BEGIN,
            ("module_kernel", [1, 0], {**LAUNCH, "kernel": 1}),
            kernels=(("k", "", ""), ("", "", "n")),
        ),
        "kernel-state",
    ),
    "a state read twice": (
        document(BEGIN, ("module_get", [1], READ), ("module_get", [1], READ)),
        "kernel-state",
    ),
    "a state of a source without variables": (document(BEGIN, code=PLAIN), "kernel-state"),
    "a variable of a source without variables": (
        document(("module_get", [0], READ), code=PLAIN),
        "kernel-state",
    ),
    "a kernel that is not there": (module_program(function=1), "kernel-name"),
    "a kernel before the first": (module_program(function=-1), "kernel-name"),
    "a variable that is not there": (
        document(BEGIN, ("module_get", [1], {**READ, "symbol": 1})),
        "kernel-name",
    ),
    "a place before the variable": (
        document(BEGIN, ("module_get", [1], {**READ, "offset": -1})),
        "bad-attribute",
    ),
    "a place far beyond it": (
        document(BEGIN, ("module_get", [1], {**READ, "offset": 2**61})),
        "bad-attribute",
    ),
    "more than any memory": (document(BEGIN, ("module_get", [1], {**READ, "shape": [2**59]})), "bad-shape"),
    "a read of objects": (document(BEGIN, ("module_get", [1], {**READ, "dtype": "object"})), "bad-attribute"),
    "a variable set by a constant": (
        document(BEGIN, ("module_set", [1, ["int32", b"\0\0\0\0"]], PLACE)),
        "bad-argument",
    ),
    "a structure beyond the arguments": (module_program(by_value=[1]), "kernel-call"),
    "a structure twice": (module_program(by_value=[0, 0]), "kernel-call"),
    "a structure of integers": (module_program(by_value=[0]), "kernel-call"),
    "a launch beyond CUDA's limits": (module_program(block=[2048, 1, 1]), "launch-limits"),
    "names out of order": (module_program(functions="k\na"), "kernel-name"),
    "a name twice": (module_program(functions="k\nk"), "kernel-name"),
    "an empty name": (module_program(functions="\nk"), "kernel-name"),
    "a function that is code": (module_program(functions="k(int*); int y"), "kernel-name"),
    "a variable that is code": (document(BEGIN, kernels=(("k", "", "n); int y("),)), "kernel-name"),
    "too many names": (
        module_program(functions="\n".join(f"k{number:03}" for number in range(200))),
        "kernel-name",
    ),
    "a name expression in another spelling": (module_program(expressions="k<int,4>"), "kernel-name"),
    "a module of another name": (document(BEGIN, name="other"), "kernel-name"),
    "a source that includes files": (
        module_program(code='#include "/etc/passwd"\n' + PLAIN),
        "kernel-include",
    ),
    "variables in a raw kernel": (
        [1, [I4], [["raw", "k", [], [CODE]]], [["raw_kernel", [0], RAW_LAUNCH]], [0]],
        "kernel-state",
    ),
    "variables in a preamble": (loop("T x", "T y", "y = n++", "__device__ int n;"), "kernel-state"),
    "an empty text that may be left out": (loop("T x", "T y", "y = x", "", "", ""), "kernel-parameters"),
    "a reduction along no axis of the array": (reduction(axes=[1]), "bad-axis"),
    "a reduction along an axis twice": (reduction(axes=[0, 0]), "bad-axis"),
    "a reduction without expressions": (reduction(expressions=("", "", "")), "kernel-parameters"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_refused(name):
    hostile, code = HOSTILE[name]
    with pytest.raises(ProgramInvalid) as caught:
        check_program(decode_program(msgpack.packb(hostile)))
    assert caught.value.code == code


def test_harmless_modules_pass():
    check_program(decode_program(msgpack.packb(module_program())))
    check_program(
        decode_program(
            msgpack.packb(document(BEGIN, ("module_kernel", [1, 0], LAUNCH), ("module_get", [2], READ)))
        )
    )


# --- what the client refuses early

TYPED = "__global__ void k(const float* p, int* q, const unsigned* w, void* v, T* t, float a, int n, long long m) {}"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({0: xp.zeros(3)}, "reads float .float32., the array is float64"),
        ({1: xp.zeros(3, dtype="int64")}, "reads int .int32., the array is int64"),
        ({1: xp.zeros(3, dtype="float64")}, "reads int"),
        ({5: 1.5}, r"takes float, float64 was given; pass np.float32"),
        ({5: 3}, "takes float, int64"),
        ({6: 2.0}, "takes int, float64"),
        ({6: 2**40}, "does not fit int"),
        ({7: np.int32(3)}, "takes long long of 8 bytes, int32"),
        ({0: 8}, "was given for a pointer"),
    ],
)
def test_arguments_that_cannot_be_meant(change, words):
    good = {
        0: xp.zeros(3, dtype="float32"),
        1: xp.zeros(3, dtype="float32"),  # bits of floats as integers
        2: xp.zeros(3, dtype="uint64"),  # words of larger integers
        3: xp.zeros(3),
        4: xp.zeros(3, dtype="int8"),
        5: np.float32(1),
        6: 7,
        7: 8,
    }
    kernel = RawKernel(TYPED, "k")
    kernel((1,), (1,), tuple(good.values()))
    with pytest.raises(ProgramInvalid, match=words):
        kernel((1,), (1,), tuple({**good, **change}.values()))


def test_a_slice_whose_changes_are_lost_is_told():
    y = xp.zeros(8, dtype="float32")
    fill = RawKernel("__global__ void k(float* y) {}", "k")
    with pytest.warns(UserWarning, match="name it, call the kernel, then assign"):
        fill((1,), (4,), (y[2:6],))
    part = y[2:6]
    fill((1,), (4,), (part,))
    fill((1,), (4,), (xp.zeros(4, dtype="float32"),))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: RawKernel(PLAIN, "k", backend="nvcc"), ProgramInvalid, "NVRTC"),
        (lambda: RawKernel(PLAIN, "k", enable_cooperative_groups=True), ProgramInvalid, "grid-wide barrier"),
        (lambda: RawKernel(PLAIN, "k", jitify=True), ProgramInvalid, "C.. library"),
        (lambda: RawKernel(PLAIN, "k", options="-DN=1"), TypeError, "tuple of strings"),
        (lambda: RawKernel(PLAIN, "k").attributes, AttributeError, "devices differ"),
        (lambda: RawKernel(PLAIN, "k").num_regs, AttributeError, "devices differ"),
        (lambda: RawKernel(PLAIN, "k").grid, AttributeError, "no 'grid'"),
        (lambda: RawKernel(PLAIN, "k")((1,), (1,), (xp.zeros(1),), stream=3), TypeError, "stream"),
        (lambda: RawKernel(PLAIN, "k")((1,), (1,), cast("Any", xp.zeros(1))), TypeError, "are a tuple"),
        (lambda: RawModule(path="k.cubin"), ProgramInvalid, "programs carry source only"),
        (lambda: RawModule(), TypeError, "needs code="),
        (lambda: RawModule(code=PLAIN).get_function("k<int>"), ProgramInvalid, "not among the module"),
        (lambda: RawModule(code=PLAIN).get_function("k()"), ProgramInvalid, "name_expressions"),
        (lambda: RawModule(code=PLAIN).get_global("n"), ProgramInvalid, "declares no __device__"),
        (lambda: RawModule(code=CODE).get_global("n[0]"), ProgramInvalid, "cannot name"),
        (lambda: xp.ndarray(3, "float32", memptr=cast("Any", 17)), TypeError, "get_global"),
    ],
)
def test_what_cannot_be_had_is_refused_with_the_reason(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_keywords_that_change_nothing_are_taken():
    kernel = RawKernel(PLAIN, "k", (), "nvrtc", translate_cucomplex=True, jitify=False)
    kernel.max_dynamic_shared_size_bytes = 60_000
    kernel.compile(log_stream=None)
    assert kernel.__name__ == "k"
    assert xp.ndarray((2, 2), np.float32).shape == (2, 2)
