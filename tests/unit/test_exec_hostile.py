"""Hostile programs: each is refused, by name and with its code, before anything runs."""

import msgpack
import numpy as np
import pytest

from coppermesh.exec import xp
from coppermesh.exec.budget import RunLimits, check_budget, estimate
from coppermesh.exec.dtypes import DTYPE_NAMES
from coppermesh.exec.errors import ExecError, OverBudget, ProgramInvalid
from coppermesh.exec.program import MAX_NODES, decode_program
from coppermesh.exec.schema import check_program
from coppermesh.exec.tracing import trace

F8 = ["float64", [4, 4]]
ONE = ["float64", np.float64(1).tobytes()]
KERNEL = ["raw", "k", [], ['extern "C" __global__ void k(float* x) { x[0] = 1; }']]
LAUNCH = {"block": [32, 1, 1], "grid": [1, 1, 1], "kernel": 0, "shared_mem": 0}
LOOP = ["elementwise", "loop", [], ["T x", "T y", "y = x", ""]]


def program(*nodes, inputs=(F8, ["int32", [4]]), kernels=(), outputs=(0,)):
    return [1, list(inputs), list(kernels), [list(node) for node in nodes], list(outputs)]


def kernel_program(source=None, name="k", options=(), args=(0,), **launch):
    texts = [KERNEL[3][0] if source is None else source]
    return program(
        ("raw_kernel", list(args), {**LAUNCH, **launch}),
        kernels=[["raw", name, list(options), texts]],
        outputs=[2],
    )


def loop_program(texts, args=(0,), size=None):
    node = ("elementwise_kernel", list(args), {"kernel": 0, "size": size})
    return program(node, kernels=[["elementwise", "loop", [], texts]], outputs=[2])


HOSTILE = {
    "unknown operation": (program(("os.system", [0], {})), "unknown-operation"),
    "dunder operation": (program(("__class__", [0], {})), "unknown-operation"),
    "operation of a submodule": (program(("linalg.__builtins__", [0], {})), "unknown-operation"),
    "numpy function off the list": (program(("load", [0], {})), "unknown-operation"),
    "out keyword": (program(("add", [0, 0], {"out": 0})), "bad-attribute"),
    "where keyword": (program(("add", [0, 0], {"where": True})), "bad-attribute"),
    "missing attribute": (program(("sum", [0], {"axes": [0]})), "bad-attribute"),
    "object dtype": (program(("astype", [0], {"dtype": "O"})), "bad-attribute"),
    "string dtype": (program(("astype", [0], {"dtype": "S10"})), "bad-attribute"),
    "path as a dtype": (program(("astype", [0], {"dtype": "../../etc/passwd"})), "bad-attribute"),
    "path as a mode": (
        program(("pad", [0, ONE], {"mode": "/etc/passwd", "widths": [[1, 1], [1, 1]]})),
        "bad-attribute",
    ),
    "object input": (program(inputs=[["object", [2]]]), "bad-dtype"),
    "half input": (program(inputs=[["float16", [2]]]), "bad-dtype"),
    "structured input": (program(inputs=[["f8,f8", [2]]]), "bad-dtype"),
    "forward reference": (program(("add", [0, 5], {})), "bad-reference"),
    "reference to itself": (program(("add", [0, 2], {})), "bad-reference"),
    "cycle of two": (program(("abs", [3], {}), ("abs", [2], {}), outputs=[3]), "bad-reference"),
    "negative reference": (program(("abs", [-1], {})), "program-malformed"),
    "output that is no value": (program(outputs=[9]), "bad-reference"),
    "no outputs": (program(outputs=[]), "program-malformed"),
    "too many outputs": (program(outputs=[0] * 65), "program-malformed"),
    "too many inputs": (program(inputs=[F8] * 129), "program-malformed"),
    "negative shape": (program(("full", [ONE], {"shape": [-1]})), "bad-shape"),
    "negative input shape": (program(inputs=[["int8", [-3]]]), "program-malformed"),
    "shape beyond 64 bits": (program(inputs=[["int8", [2**63]]]), "program-malformed"),
    "overflowing product": (program(inputs=[["int8", [2**32, 2**32]]]), "bad-shape"),
    "overflowing product of an empty array": (program(inputs=[["int8", [2**40, 2**40, 0]]]), "bad-shape"),
    "broadcast to the absurd": (
        program(("broadcast_to", [0], {"shape": [2**30, 2**30, 4, 4]})),
        "bad-shape",
    ),
    "33 dimensions": (program(("full", [ONE], {"shape": [1] * 33})), "bad-shape"),
    "boolean as a length": (program(("full", [ONE], {"shape": [True]})), "program-malformed"),
    "shape of lists": (program(("full", [ONE], {"shape": [[1], [2]]})), "bad-attribute"),
    "string where a number belongs": (
        program(("eye", [], {"columns": "4", "diagonal": 0, "dtype": "int8", "rows": 4})),
        "bad-attribute",
    ),
    "float attribute": (program(("full", [ONE], {"shape": [1.5]})), "program-malformed"),
    "repeated axes": (
        program(("sum", [0], {"axes": [0, 0], "dtype": "float64", "keepdims": False})),
        "bad-axis",
    ),
    "axis out of range": (
        program(("sum", [0], {"axes": [7], "dtype": "float64", "keepdims": False})),
        "bad-axis",
    ),
    "negative axis": (program(("flip", [0], {"axes": [-1]})), "bad-axis"),
    "permutation with a hole": (program(("permute_dims", [0], {"axes": [0, 0]})), "bad-axis"),
    "index outside": (program(("getitem", [0], {"index": [[0, 4], [1, 0, 4, 1]]})), "bad-index"),
    "slice past the end": (program(("getitem", [0], {"index": [[1, 0, 5, 1], [1, 0, 4, 1]]})), "bad-index"),
    "backwards slice below the start": (
        program(("getitem", [0], {"index": [[1, 1, 3, -1], [1, 0, 4, 1]]})),
        "bad-index",
    ),
    "slice with step 0": (program(("getitem", [0], {"index": [[1, 0, 2, 0], [1, 0, 4, 1]]})), "bad-index"),
    "overflowing slice": (
        program(("getitem", [0], {"index": [[1, 0, 2**61, 2**61], [1, 0, 4, 1]]})),
        "bad-index",
    ),
    "index with too few items": (program(("getitem", [0], {"index": [[0, 0]]})), "bad-index"),
    "index of an unknown kind": (program(("getitem", [0], {"index": [[9, 0], [1, 0, 4, 1]]})), "bad-index"),
    "mixed dtypes": (program(("add", [0, 1], {})), "bad-dtype"),
    "NaN bytes in an integer of a wrong size": (
        program(("add", [1, ["int32", b"\0" * 7]], {})),
        "bad-constant",
    ),
    "boolean that is neither": (program(("logical_not", [["bool", b"\2"]], {})), "bad-constant"),
    "constant of an unknown dtype": (program(("abs", [["object", b"\0" * 8]], {})), "bad-dtype"),
    "huge constant": (program(("abs", [["float64", b"\0" * 4096]], {})), "program-malformed"),
    "integer given to sin": (program(("sin", [1], {})), "bad-dtype"),
    "reshape that changes the size": (program(("reshape", [0], {"shape": [5, 5]})), "shape-mismatch"),
    "matmul that does not fit": (program(("matmul", [0, ["float64", b"\0" * 8]], {})), "bad-shape"),
    "reduction of nothing": (
        program(("max", [0], {"axes": [0], "keepdims": False}), inputs=[["float64", [0]]]),
        "empty-reduction",
    ),
    "too many arguments": (program(("add", [0] * 3, {})), "bad-argument"),
    "far too many arguments": (program(("concat", [0] * 129, {"axis": 0})), "program-malformed"),
    "transform of length 0": (
        program(("rfft", [0], {"axis": 0, "length": 0, "norm": "ortho"})),
        "bad-argument",
    ),
    "reflection wider than the array": (
        program(("pad", [0, ONE], {"mode": "reflect", "widths": [[9, 0], [0, 0]]})),
        "bad-argument",
    ),
    "padding to the absurd": (
        program(("pad", [0, ONE], {"mode": "constant", "widths": [[2**61, 2**61], [0, 0]]})),
        "bad-shape",
    ),
    "kernel that is not there": (program(("raw_kernel", [0], {**LAUNCH, "kernel": 3})), "bad-reference"),
    "kernel named by a word": (program(("raw_kernel", [0], {**LAUNCH, "kernel": "k"})), "bad-attribute"),
    "kernel that nobody uses": (program(kernels=[KERNEL]), "unused-kernel"),
    "kernel of an unknown kind": (program(kernels=[["ptx", "k", [], ["x"]]]), "kernel-kind"),
    "elementwise kernel launched raw": (program(("raw_kernel", [0], LAUNCH), kernels=[LOOP]), "kernel-kind"),
    "kernel name with code": (kernel_program(name="k(){}; int x"), "kernel-name"),
    "kernel name that is a path": (kernel_program(name="../k"), "kernel-name"),
    "block too large": (kernel_program(block=[2048, 1, 1]), "launch-limits"),
    "block too large in all": (kernel_program(block=[512, 4, 1]), "launch-limits"),
    "grid of nothing": (kernel_program(grid=[0, 1, 1]), "launch-limits"),
    "grid beyond CUDA": (kernel_program(grid=[1, 65_536, 1]), "launch-limits"),
    "gigantic shared memory": (kernel_program(shared_mem=2**40), "launch-limits"),
    "negative shared memory": (kernel_program(shared_mem=-1), "launch-limits"),
    "wrong number of kernel arguments": (kernel_program(args=[0, 1]), "kernel-call"),
    "kernel that writes nothing": (
        kernel_program(source="__global__ void k(const float* x) {}"),
        "kernel-call",
    ),
    "option that names a directory": (kernel_program(options=["-I/etc"]), "kernel-option"),
    "option that names a file": (kernel_program(options=["--include=/etc/passwd"]), "kernel-option"),
    "option with a command": (kernel_program(options=["-DX=$(id)"]), "kernel-option"),
    "absolute include": (kernel_program(source='#include "/etc/passwd"\n' + KERNEL[3][0]), "kernel-include"),
    "include from above": (kernel_program(source="#include <../../x.h>\n" + KERNEL[3][0]), "kernel-include"),
    "spliced include": (
        kernel_program(source='#in\\\nclude "/etc/passwd"\n' + KERNEL[3][0]),
        "kernel-include",
    ),
    "computed include": (
        kernel_program(source='#define F "/etc/passwd"\n#include F\n' + KERNEL[3][0]),
        "kernel-include",
    ),
    "digraph include": (kernel_program(source='%:include "/etc/passwd"\n' + KERNEL[3][0]), "kernel-include"),
    "include after a comment": (
        kernel_program(source='/* */ # /* */ include "/etc/passwd"\n' + KERNEL[3][0]),
        "kernel-include",
    ),
    "embedded file": (kernel_program(source='#embed "/etc/passwd"\n' + KERNEL[3][0]), "kernel-include"),
    "asking whether a file exists": (
        kernel_program(source='#if __has_include("/etc/passwd")\n#endif\n' + KERNEL[3][0]),
        "kernel-include",
    ),
    "NUL in the source": (kernel_program(source="\0" + KERNEL[3][0]), "kernel-source"),
    "parameter that is code": (loop_program(["T x){} int y(T z", "T y", "y = x", ""]), "kernel-parameters"),
    "parameter that shadows the index": (loop_program(["T i", "T y", "y = 1", ""]), "kernel-parameters"),
    "parameter of an object dtype": (loop_program(["object x", "T y", "y = x", ""]), "kernel-parameters"),
    "two parameters of one name": (loop_program(["T x", "T x", "x = x", ""]), "kernel-parameters"),
    "negative loop size": (loop_program(["raw T x", "T y", "y = 1", ""], size=-5), "bad-shape"),
    "undecided loop size": (loop_program(["raw T x", "T y", "y = 1", ""]), "kernel-call"),
    "loop over a constant alone": (loop_program(["T x", "T y", "y = x", ""], args=[ONE]), "kernel-call"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_refused(name):
    document, code = HOSTILE[name]
    with pytest.raises(ProgramInvalid) as caught:
        check_program(decode_program(msgpack.packb(document)))
    assert caught.value.code == code, caught.value.sentence
    assert caught.value.sentence.isascii()


def test_there_are_many():
    assert len(HOSTILE) >= 50


def test_the_sentence_names_operation_and_node():
    document = program(("abs", [0], {}), ("frobnicate", [2], {}))
    with pytest.raises(ProgramInvalid, match=r"node 1 \(frobnicate\).*not known") as caught:
        check_program(decode_program(msgpack.packb(document)))
    assert caught.value.node == 1


def test_a_node_too_many():
    document = program(*[("abs", [0], {})] * (MAX_NODES + 1))
    with pytest.raises(ProgramInvalid):
        decode_program(msgpack.packb(document))


def test_deep_nesting():
    nested = 1
    for _ in range(1_000):
        nested = [nested]
    with pytest.raises(ProgramInvalid):
        decode_program(msgpack.packb([1, [], [], nested, [0]]))
    with pytest.raises(ProgramInvalid):
        decode_program(b"\x91" * 100_000 + b"\0")


def limits_of(lazy, **limits):
    checked = trace(lazy).checked
    check_budget(estimate(checked), RunLimits(**limits), checked)


def test_100_tebibytes_are_refused_before_anything_runs():
    huge = xp.zeros((100 * 2**40,), dtype="int8")
    with pytest.raises(OverBudget, match=r"node 0 \(full.*100 TiB.*the limit is 4 GiB") as caught:
        limits_of(huge)
    assert caught.value.code == "over-memory"
    assert caught.value.node == 0
    with pytest.raises(OverBudget, match="TiB"):
        limits_of(xp.sum(xp.zeros((2**20, 1)) + xp.zeros((1, 2**26))))


def test_cheap_text_that_costs_too_much_work():
    x = xp.zeros((2_000, 2_000))
    for _ in range(60):
        x = x @ x
    with pytest.raises(OverBudget, match="operations"):
        limits_of(x, flops=1e11)


def test_doubling_again_and_again():
    x = xp.zeros((1_000,))
    for _ in range(40):
        x = xp.concat([x, x])
    with pytest.raises(OverBudget):
        limits_of(x)


def test_outputs_and_nodes_have_their_own_limits():
    with pytest.raises(OverBudget, match="outputs") as caught:
        limits_of(xp.zeros(1_000), output_bytes=100)
    assert caught.value.code == "over-output"
    with pytest.raises(OverBudget, match="nodes"):
        limits_of(xp.zeros(1) + 1 + 2, nodes=2)


def test_every_error_has_code_and_sentence():
    for error in (
        ProgramInvalid("x-y", "what \x07 happened\n\u00e9", 3),
        OverBudget("x", "y" * 900),
        ExecError("a", "b", detail="c"),
    ):
        assert error.sentence.isascii()
        assert error.sentence.isprintable()
        assert len(error.sentence) <= 400


def test_the_dtypes_are_the_standards():
    assert len(DTYPE_NAMES) == 13
