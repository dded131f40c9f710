"""Cases that order, route and search: sorts, graphs, text."""

import zlib
from pathlib import Path

import numpy as np

EXACT = (0.0, 0.0, "integers, or values that are only moved")

f4, i4, u1, u4 = np.float32, np.int32, np.uint8, np.uint32


def kernel(cm, file, name, **options):
    return cm.RawKernel((Path(__file__).parent / f"{file}.cu").read_text(), name, **options)


# --- sorts


def record_bitonic(cm, xp, rng):
    inputs = {"keys": rng.permutation(1024).astype(f4).reshape(4, 256)}
    inputs["values"] = np.arange(1024, dtype=i4).reshape(4, 256)
    outputs = []
    for name in ("sort_up", "sort_down"):
        keys, values = xp.asarray(inputs["keys"]), xp.asarray(inputs["values"])
        kernel(cm, "bitonic_sort", name)((4,), (256,), (keys, values, i4(256)), shared_mem=256 * 8)
        outputs += [keys, values]
    return inputs, outputs


def bitonic(inputs):
    keys, values = inputs["keys"], inputs["values"]
    up = np.argsort(keys, 1)
    down = up[:, ::-1]
    return [np.take_along_axis(a, order, 1) for order in (up, down) for a in (keys, values)]


def record_radix(cm, xp, rng):
    inputs = {"keys": rng.integers(0, 2**16, (3, 512)).astype(u4)}
    out = xp.zeros((3, 512), dtype=u4)
    kernel(cm, "radix_sort", "radix_sort")((3,), (512,), (xp.asarray(inputs["keys"]), out))
    return inputs, [out]


def record_rank(cm, xp, rng):
    inputs = {"values": rng.integers(0, 40, (5, 77)).astype(float)}
    ordered, order = xp.zeros((5, 77)), xp.zeros((5, 77), dtype=i4)
    kernel(cm, "two_shared_arrays", "rank_values")(
        (5,), (64,), (xp.asarray(inputs["values"]), ordered, order, i4(77)), shared_mem=77 * 12
    )
    return inputs, [ordered, order]


def rank(inputs):
    order = np.argsort(inputs["values"], 1, kind="stable")
    return [np.take_along_axis(inputs["values"], order, 1), order]


def record_early_return(cm, xp, rng):
    inputs = {
        "rows": rng.integers(0, 100, (6, 256)).astype(i4),
        "lengths": np.array([0, 1, 31, 64, 200, 256], i4),
    }
    out = xp.zeros((6, 256), dtype=i4)
    arguments = (xp.asarray(inputs["rows"]), out, xp.asarray(inputs["lengths"]), i4(256))
    kernel(cm, "early_return", "reverse_rows")((6,), (64,), arguments)
    return inputs, [out]


def early_return(inputs):
    out = np.zeros((6, 256), i4)
    for row, values, length in zip(out, inputs["rows"], inputs["lengths"], strict=True):
        row[:length] = values[:length][::-1]
    return [out]


# --- graphs


def adjacency(rng, n, p):
    links = rng.random((n, n)) < p
    np.fill_diagonal(links, val=False)
    return links | links.T


def record_bfs(cm, xp, rng):
    n = 200
    links = adjacency(rng, n, 0.02)
    starts = np.concatenate([[0], np.cumsum(links.sum(1))]).astype(i4)
    inputs = {"links": links, "starts": starts, "neighbours": np.nonzero(links)[1].astype(i4)}
    level = xp.asarray(np.where(np.arange(n) == 0, 0, -1).astype(i4))
    found = xp.zeros(1, dtype=i4)
    step = kernel(cm, "bfs_step", "bfs_step")
    for depth in range(8):
        arguments = (xp.asarray(starts), xp.asarray(inputs["neighbours"]), level, found, i4(n), i4(depth))
        step((4,), (64,), arguments)
    return inputs, [level, found]


def bfs(inputs):
    links = inputs["links"]
    reached = np.arange(links.shape[0]) == 0
    level = np.where(reached, 0, -1)
    for depth in range(8):
        fresh = links[reached].any(0) & ~reached
        level[fresh] = depth + 1
        reached |= fresh
    return [level, np.count_nonzero(reached) - 1]


def record_floyd(cm, xp, rng):
    n = 24
    weights = np.where(adjacency(rng, n, 0.12), rng.integers(1, 50, (n, n)), 10**6)
    np.fill_diagonal(weights, 0)
    inputs = {"weights": weights.astype(i4)}
    distance = xp.asarray(inputs["weights"])
    relax = kernel(cm, "floyd_warshall", "relax")
    for through in range(n):
        relax((1, n), (32, 1), (distance, i4(n), i4(through)))
    return inputs, [distance]


def floyd(inputs):
    paths = inputs["weights"].astype(int)
    for _ in range(5):  # squaring in the (min, +) ring: paths of up to 32 edges
        paths = np.minimum(paths, (paths[:, :, None] + paths[None]).min(1))
    return [paths]


def record_edit(cm, xp, rng):
    letters = rng.integers(97, 101, (5, 40)).astype(np.int8)
    other = np.where(rng.random((5, 40)) < 0.3, rng.integers(97, 101, (5, 40)), letters)
    inputs = {"left": letters, "right": np.roll(other, 2, 1).astype(np.int8)}
    result = xp.zeros(5, dtype=i4)
    kernel(cm, "edit_distance", "distances")(
        (5,), (64,), (xp.asarray(inputs["left"]), xp.asarray(inputs["right"]), result, i4(40))
    )
    return inputs, [result]


def edit(inputs):
    def distance(a, b):
        line = np.arange(b.size + 1)
        for count, letter in enumerate(a, 1):
            least = np.minimum(line[1:] + 1, line[:-1] + (b != letter))
            line = np.concatenate([[count], least])
            # Insertions run along the line: a running minimum once the slope is taken out.
            line = np.minimum.accumulate(line - np.arange(line.size)) + np.arange(line.size)
        return line[-1]

    return [[distance(a, b) for a, b in zip(inputs["left"], inputs["right"], strict=True)]]


# --- bytes


def record_text(cm, xp, rng):
    words = [
        bytes(rng.choice(list(b"abcxyzQR.,")) for _ in range(length)) for length in rng.integers(1, 9, 120)
    ]
    text = b" \n\t"[:1].join(words) + b"\n\t tail  "
    text += b" " * (-len(text) % 4)
    inputs = {"text": np.frombuffer(text, u1)}
    out, count = xp.zeros(len(text), dtype=u1), xp.zeros(1, dtype=i4)
    kernel(cm, "text_bytes", "capitals")(
        (2,), (128,), (xp.asarray(inputs["text"]), out, count, i4(len(text)))
    )
    return inputs, [out, count]


def text(inputs):
    whole = inputs["text"].tobytes()
    return [np.frombuffer(whole.upper(), u1), len(whole.split())]


def record_crc(cm, xp, rng):
    lengths = rng.integers(0, 90, 100)
    inputs = {"bytes": rng.integers(0, 256, lengths.sum()).astype(u1), "ends": np.cumsum(lengths).astype(i4)}
    sums = xp.zeros(100, dtype=u4)
    arguments = (xp.asarray(inputs["bytes"]), xp.asarray(inputs["ends"]), sums, i4(100))
    kernel(cm, "crc32", "crc32")((2,), (64,), arguments)
    return inputs, [sums]


def crc(inputs):
    return [[zlib.crc32(part.tobytes()) for part in np.split(inputs["bytes"], inputs["ends"])[:-1]]]


CASES = [
    (
        "bitonic_sort",
        ("shared sort", "template bool", "dynamic shared memory"),
        record_bitonic,
        bitonic,
        EXACT,
    ),
    (
        "radix_sort",
        ("ballot rank", "512 threads"),
        record_radix,
        lambda inputs: [np.sort(inputs["keys"], 1)],
        EXACT,
    ),
    ("two_shared_arrays", ("two arrays in dynamic shared memory",), record_rank, rank, EXACT),
    ("early_return", ("return before a barrier",), record_early_return, early_return, EXACT),
    ("bfs_step", ("atomicCAS", "many launches"), record_bfs, bfs, EXACT),
    ("floyd_warshall", ("many launches", "2-d grid"), record_floyd, floyd, EXACT),
    ("edit_distance", ("wavefront", "char"), record_edit, edit, EXACT),
    ("text_bytes", ("uchar4", "reinterpret_cast"), record_text, text, EXACT),
    ("crc32", ("shared table", "byte pointers"), record_crc, crc, EXACT),
]
