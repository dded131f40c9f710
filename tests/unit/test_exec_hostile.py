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
MODULE = ["module", "module", [], ["__device__ int n;", "k", "", ""]]
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


STEP = msgpack.packb([1, [F8], [], [["square", [0], {}]], [1]])
GROWING = msgpack.packb([1, [F8], [], [["concat", [0, 0], {"axis": 0}]], [1]])
COUNT = {"carries": 1, "length": 3, "scanned": 0}
CONV = {"dilation": [1], "groups": 1, "padding": [[0, 0]], "strides": [1]}
POOL = {"dilation": [1], "kind": "max", "padding": [[0, 0]], "strides": [1], "window": [2]}
BITS = {"shape": [4], "stream": 0}


def loop(body, args=(0,), **attrs):
    return program(("scan", [body, *args], {**COUNT, **attrs}))


def nested(depth):
    """A loop in a loop in a loop."""
    body = STEP
    for _ in range(depth):
        body = msgpack.packb([1, [F8], [], [["scan", [body, 0], COUNT]], [1]])
    return loop(body)


def conv_program(x=(1, 2, 8), w=(2, 2, 3), **attrs):
    specs = (["float64", list(x)], ["float64", list(w)])
    return program(("conv", [0, 1], {**CONV, **attrs}), inputs=specs)


def pool_program(x=(1, 2, 8), **attrs):
    return program(("pool", [0], {**POOL, **attrs}), inputs=(["float64", list(x)],))


def bits_program(key=("uint32", [2]), **attrs):
    return program(("philox", [0], {**BITS, **attrs}), inputs=(list(key),))


HOSTILE = {
    "loop whose carry grows": (loop(GROWING), "scan-growth"),
    "loop whose carry changes its dtype": (
        loop(msgpack.packb([1, [F8], [], [["astype", [0], {"dtype": "float32"}]], [1]])),
        "scan-growth",
    ),
    "loops nested too deep": (nested(4), "scan-depth"),
    "loops nested very deep": (nested(60), "scan-depth"),
    "loop that starts below zero": (loop(STEP, length=-1), "bad-argument"),
    "loop without end": (loop(STEP, length=2**50), "bad-argument"),
    "loop with a negative number of carries": (loop(STEP, carries=-1), "bad-argument"),
    "loop with more carries than arguments": (loop(STEP, carries=2), "bad-argument"),
    "loop over an array of another length": (
        loop(msgpack.packb([1, [["float64", [4]]], [], [], [0]]), carries=0, scanned=1),
        "shape-mismatch",
    ),
    "loop whose body takes something else": (loop(STEP, args=(1,)), "shape-mismatch"),
    "loop with too many arguments": (loop(STEP, args=(0, 0)), "bad-argument"),
    "loop without a body": (program(("scan", [0], COUNT)), "bad-argument"),
    "body in the second place": (program(("scan", [0, STEP], COUNT)), "bad-argument"),
    "body given to addition": (program(("add", [STEP, 0, 0], {})), "bad-argument"),
    "body that is no program": (loop(b"\xc1"), "program-malformed"),
    "body that is empty": (loop(b""), "program-malformed"),
    "body with two encodings": (loop(b"\x95\xd0\x01" + STEP[2:]), "program-not-canonical"),
    "body of another version": (loop(b"\x95\x02" + STEP[2:]), "program-version"),
    "body that uses a value from outside": (
        loop(msgpack.packb([1, [F8], [], [["add", [0, 9], {}]], [1]])),
        "bad-reference",
    ),
    "body with an unknown operation": (
        loop(msgpack.packb([1, [F8], [], [["eval", [0], {}]], [1]])),
        "unknown-operation",
    ),
    "body with a module's state": (
        loop(msgpack.packb([1, [F8], [MODULE], [["module_state", [], {"kernel": 0}]], [0]])),
        "scan-kernel",
    ),
    "body too large": (loop(b"\0" * (2**20 + 1)), "program-malformed"),
    "random words beyond any memory": (bits_program(shape=[2**40, 2**30]), "bad-shape"),
    "random words of a negative shape": (bits_program(shape=[-4]), "bad-shape"),
    "negative stream of random numbers": (bits_program(stream=-1), "bad-argument"),
    "stream beyond its counter": (bits_program(stream=2**62), "bad-attribute"),
    "key of random numbers too short": (bits_program(key=("uint32", [1])), "bad-argument"),
    "key of another dtype": (bits_program(key=("uint64", [2])), "bad-argument"),
    "convolution with stride 0": (conv_program(strides=[0]), "bad-argument"),
    "convolution with a negative stride": (conv_program(strides=[-1]), "bad-argument"),
    "convolution with a stride that overflows": (conv_program(strides=[2**61]), "bad-argument"),
    "convolution with a dilation that overflows": (conv_program(dilation=[2**61]), "bad-argument"),
    "convolution with padding that overflows": (conv_program(padding=[[2**61, 2**61]]), "bad-argument"),
    "convolution with padding beyond any memory": (
        conv_program(x=(2**20, 2**20, 8), w=(2**20, 2**20, 3), padding=[[2**31 - 1, 2**31 - 1]]),
        "bad-shape",
    ),
    "convolution with negative padding": (conv_program(padding=[[-1, 1]]), "bad-argument"),
    "convolution with one width of padding": (conv_program(padding=[[1]]), "bad-argument"),
    "convolution in no group": (conv_program(groups=0), "bad-argument"),
    "convolution in groups that do not divide": (conv_program(groups=3), "bad-argument"),
    "convolution of other channels": (conv_program(w=(2, 1, 3)), "shape-mismatch"),
    "convolution with a window of nothing": (conv_program(w=(2, 2, 0)), "bad-argument"),
    "convolution wider than its input": (conv_program(w=(2, 2, 9)), "bad-shape"),
    "convolution in four dimensions": (conv_program(x=(1, 2, 4, 4, 4, 4), w=(2, 2, 1, 1, 1, 1)), "bad-shape"),
    "pooling all of it padding": (pool_program(padding=[[2, 0]]), "bad-argument"),
    "pooling by an unknown word": (pool_program(kind="median"), "bad-attribute"),
    "pooling with a window that overflows": (pool_program(window=[2**61]), "bad-argument"),
    "put that does not fit": (
        program(("put", [0, 1, 0], {"axis": 0}), inputs=(F8, ["int32", [3]])),
        "shape-mismatch",
    ),
    "put at floating positions": (program(("put", [0, 0, 0], {"axis": 0})), "bad-dtype"),
    "adding to booleans": (
        program(("add_at", [0, 1, 0], {"axis": 0}), inputs=(["bool", [4]], ["int32", [4]])),
        "bad-dtype",
    ),
    "determinant of no square": (program(("det", [0], {}), inputs=(["float64", [2, 3]],)), "bad-shape"),
    "eigenvalues of integers": (program(("eigh", [0], {}), inputs=(["int32", [2, 2]],)), "bad-dtype"),
    "decomposition in an unknown mode": (program(("qr", [0], {"mode": "r"})), "bad-attribute"),
    "singular vectors beyond any memory": (
        program(("svd", [0], {"full_matrices": True}), inputs=(["float64", [2**40, 1]],)),
        "bad-shape",
    ),
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
    "half added": (program(("add", [0, 0], {}), inputs=[["float16", [2]]]), "bad-dtype"),
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
    "boolean as an argument": (program(("abs", [True], {})), "program-malformed"),
    "text as an argument": (program(("abs", ["0"], {})), "program-malformed"),
    "bytes spelled as text": (program(("scan", ["AAAA", 0], COUNT)), "program-not-canonical"),
    "map as an argument": (program(("abs", [{}], {})), "program-malformed"),
    "boolean as a version": ([True, [F8], [], [], [0]], "program-malformed"),
    "boolean as an output": (program(outputs=[True]), "program-malformed"),
    "float as an output": (program(outputs=[0.0]), "program-malformed"),
    "boolean as an input's length": (program(inputs=[["int8", [True]]]), "program-malformed"),
    "timestamp for a kernel": ([1, [F8], [msgpack.Timestamp(5)], [], [0]], "program-malformed"),
    "extension type for a node": ([1, [F8], [], [msgpack.ExtType(1, b"x")], [0]], "program-malformed"),
    "dtype with a NUL behind it": (program(inputs=[["float64\0", [2]]]), "bad-dtype"),
    "operation in Cyrillic letters": (program(("\u0430bs", [0], {})), "unknown-operation"),
    "operation without a name": (program(("", [0], {})), "unknown-operation"),
    "attribute with a dunder name": (program(("abs", [0], {"__class__": 1})), "bad-attribute"),
    "big-endian dtype": (program(("astype", [0], {"dtype": ">f8"})), "bad-attribute"),
    "dtype of the platform": (program(("astype", [0], {"dtype": "longdouble"})), "bad-attribute"),
    "word with a command behind it": (
        program(("rfft", [0], {"axis": 0, "length": 4, "norm": "ortho; rm"})),
        "bad-attribute",
    ),
    "value assigned from a forged node": (
        program(("setitem", [0, 7], {"index": [[0, 0], [0, 0]]})),
        "bad-reference",
    ),
    "transform of a giant length": (
        program(("rfft", [0], {"axis": 0, "length": 2**55, "norm": "ortho"})),
        "bad-shape",
    ),
    "forty new axes": (
        program(("getitem", [0], {"index": [[2]] * 40 + [[1, 0, 4, 1]] * 2})),
        "bad-shape",
    ),
    "more axes than a list may have": (
        program(("sum", [0], {"axes": [0] * 65, "dtype": "float64", "keepdims": False})),
        "program-malformed",
    ),
    "product of empty stacks beyond any size": (
        program(("matmul", [0, 1], {}), inputs=[["int8", [2**40, 1, 0, 1]], ["int8", [2**40, 1, 0]]]),
        "bad-shape",
    ),
    "loop over a constant alone": (loop_program(["T x", "T y", "y = x", ""], args=[ONE]), "kernel-call"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_refused(name):
    document, code = HOSTILE[name]
    with pytest.raises(ProgramInvalid) as caught:
        check_program(decode_program(msgpack.packb(document)))
    assert caught.value.code == code, caught.value.sentence
    assert caught.value.sentence.isascii()


STACK = ["float64", [2**40, 0, 0]]
"""Empty, and yet a million million matrices to call a routine for."""
INTEGER = ["int64", np.int64(1).tobytes()]
OVER = {
    **{
        f"{name} of endless empty matrices": (
            program((name, [0], {}), inputs=[STACK], outputs=[1]),
            "over-operations",
        )
        for name in ("inv", "eigh", "eigvalsh", "svdvals")
    },
    "cholesky of endless empty matrices": (
        program(("cholesky", [0], {"upper": False}), inputs=[STACK], outputs=[1]),
        "over-operations",
    ),
    "svd of endless empty matrices": (
        program(("svd", [0], {"full_matrices": False}), inputs=[STACK], outputs=[1]),
        "over-operations",
    ),
    "qr of endless empty matrices": (
        program(("qr", [0], {"mode": "reduced"}), inputs=[STACK], outputs=[1]),
        "over-operations",
    ),
    "equations of endless empty matrices": (
        program(("solve", [0, 0], {}), inputs=[STACK], outputs=[1]),
        "over-operations",
    ),
    "determinants of endless empty matrices": (
        program(("det", [0], {}), inputs=[STACK], outputs=[1]),
        "over-memory",
    ),
    "products of endless empty matrices": (
        program(("matmul", [0, 0], {}), inputs=[STACK], outputs=[1]),
        "over-operations",
    ),
    "convolution of endless empty images": (
        program(("conv", [0, 1], CONV), inputs=[["int8", [2**40, 0, 4]], ["int8", [0, 0, 2]]], outputs=[2]),
        "over-operations",
    ),
    "convolution in endless empty groups": (
        program(
            ("conv", [0, 1], {**CONV, "groups": 2**30}),
            inputs=[["int8", [2**20, 0, 4]], ["int8", [0, 0, 2]]],
            outputs=[2],
        ),
        "over-operations",
    ),
    "indices along a long axis of nothing": (
        program(
            ("take_along_axis", [0, 1], {"axis": 1}),
            inputs=[["int8", [2**40, 0]], ["int64", [2**40, 0]]],
            outputs=[2],
        ),
        "over-memory",
    ),
    "a loop over nothing, for ever": (
        loop(msgpack.packb([1, [F8], [], [], [0]]), length=2**40),
        "over-operations",
    ),
    "a loop that stacks nothing, for ever": (
        program(
            ("scan", [msgpack.packb([1, [["int8", [0]]], [], [], [0, 0]]), 0], {**COUNT, "length": 2**40}),
            inputs=[["int8", [0]]],
        ),
        "over-operations",
    ),
    "one array given out again and again": (
        program(inputs=[["int8", [2**22]]], outputs=[0] * 64),
        "over-output",
    ),
    "thirty-two axes of two": (program(inputs=[["int8", [2] * 32]]), "over-blob-bytes"),
    "evenly spaced, without end": (
        program(("linspace", [ONE, ONE], {"endpoint": True, "num": 2**50})),
        "over-memory",
    ),
    "counting without end": (program(("arange", [INTEGER, INTEGER], {"length": 2**50})), "over-memory"),
    "broadcast to what does not fit": (
        program(("add", [0, 1], {}), inputs=[["int8", [2**20, 1]], ["int8", [1, 2**20]]], outputs=[2]),
        "over-memory",
    ),
    "windows as wide as a street": (
        pool_program(window=[2], dilation=[2**30], padding=[[2**30, 2**30]]),
        "over-memory",
    ),
}
LIMITS = RunLimits(memory_bytes=1 << 28, output_bytes=1 << 26, blob_bytes=1 << 28, flops=1e12)


@pytest.mark.parametrize("name", OVER)
def test_over_the_limits_before_anything_runs(name):
    document, code = OVER[name]
    checked = check_program(decode_program(msgpack.packb(document)))
    with pytest.raises(OverBudget) as caught:
        check_budget(estimate(checked), LIMITS, checked)
    assert caught.value.code == code, caught.value.sentence


RAW = {
    "an attribute twice": (
        (
            b"\x95\x01\x91\x92\xa7float64\x91\x04\x90\x91\x93\xa3sum\x91\x00\x84\xa4axes\x90\xa5dtype\xa7float64"
            b"\xa8keepdims\xc2\xa8keepdims\xc3\x91\x01"
        ),
        "program-not-canonical",
    ),
    "bytes behind the end": (msgpack.packb(program()) + b"\0", "program-malformed"),
    "the end missing": (msgpack.packb(program())[:-1], "program-malformed"),
    "a number too long": (b"\x95\x01\x90\x90\x90\x91\xcf" + b"\xff" * 8, "program-malformed"),
    "a length that lies": (b"\x95\x01\xdd\xff\xff\xff\xff", "program-malformed"),
    "text that is not UTF-8": (b"\x95\x01\x91\x92\xa2\xff\xfe\x90\x90\x90\x91\x00", "program-malformed"),
    "nothing": (b"", "program-malformed"),
}


@pytest.mark.parametrize("name", RAW)
def test_bytes_that_are_no_program(name):
    data, code = RAW[name]
    with pytest.raises(ProgramInvalid) as caught:
        decode_program(data)
    assert caught.value.code == code, caught.value.sentence


def test_there_are_many():
    """Fifty are promised; each is another act, and another document."""
    assert len(HOSTILE) + len(OVER) + len(RAW) >= 190
    documents = [repr(document) for document, _ in (*HOSTILE.values(), *OVER.values(), *RAW.values())]
    assert len(set(documents)) == len(documents)


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


def test_a_loop_costs_as_often_as_it_runs():
    step = xp.scan(lambda c, _: (c @ c, None), xp.ones((100, 100)), length=10**9)[0]
    with pytest.raises(OverBudget, match="operations"):
        limits_of(step, flops=1e12)
    idle = xp.scan(lambda c, _: (c + 1, None), xp.zeros(()), length=10**12)[0]
    with pytest.raises(OverBudget, match="operations"):
        limits_of(idle, flops=1e14)
    deep = xp.zeros(())
    for _ in range(3):
        start = deep
        deep = xp.scan(
            lambda c, _: (xp.scan(lambda d, _: (d + 1, None), c, length=10**6)[0], None), start, length=10**6
        )[0]
    with pytest.raises(OverBudget, match="operations"):
        limits_of(deep, flops=1e14)


def test_a_loop_that_stacks_too_much():
    stacked = xp.scan(lambda c, _: (c, c), xp.zeros(1_000), length=10**9)[1]
    with pytest.raises(OverBudget, match="TiB"):
        limits_of(stacked)
    inside, _ = xp.scan(
        lambda c, _: (c + xp.sum(c * 0 + xp.reshape(c, (-1, 1))), None), xp.zeros(2**20), length=1
    )
    with pytest.raises(OverBudget, match="TiB"):
        limits_of(inside)


def test_a_convolution_counts_its_windows():
    x, w = xp.zeros((1, 64, 1024, 1024), dtype="float32"), xp.zeros((64, 64, 7, 7), dtype="float32")
    with pytest.raises(OverBudget, match="GiB"):
        limits_of(xp.conv(x, w, padding="same"))


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
