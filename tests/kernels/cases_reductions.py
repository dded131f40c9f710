"""Cases that combine many values: reductions, scans, votes, histograms, compaction."""

from pathlib import Path

import numpy as np

EXACT = (0.0, 0.0, "integers: one answer in any order")

f4, i4, i8, u4, u8 = np.float32, np.int32, np.int64, np.uint32, np.uint64


def kernel(cm, file, name, **options):
    return cm.RawKernel((Path(__file__).parent / f"{file}.cu").read_text(), name, **options)


def padded(array, size, fill=0):
    return np.concatenate([array, np.full(-array.size % size, fill, array.dtype)]).reshape(-1, size)


# --- sums


def record_reduce_shared(cm, xp, rng):
    inputs = {"values": rng.random(5000, f4)}
    values, small, large = xp.asarray(inputs["values"]), xp.zeros(40, dtype=f4), xp.zeros(10, dtype=f4)
    kernel(cm, "reduce_shared", "reduce_64")((40,), (64,), (values, small, i4(5000)))
    kernel(cm, "reduce_shared", "reduce_256")((10,), (256,), (values, large, i4(5000)))
    return inputs, [small, large]


def reduce_shared(inputs):
    values = inputs["values"].astype(np.float64)
    return [padded(values, 128).sum(1), padded(values, 512).sum(1)]


def record_reduce_shuffle(cm, xp, rng):
    inputs = {"values": rng.integers(-(10**8), 10**8, 1003).astype(i4)}
    sums, most = xp.zeros(126, dtype=i4), xp.asarray(np.array([-(2**31)], i4))
    kernel(cm, "reduce_shuffle", "reduce_eights")(
        (8,), (128,), (xp.asarray(inputs["values"]), sums, most, i4(1003))
    )
    return inputs, [sums, most]


def reduce_shuffle(inputs):
    return [padded(inputs["values"], 8).sum(1), inputs["values"].max()]


def record_warp_sync(cm, xp, rng):
    inputs = {"values": rng.integers(0, 2**32, 256, u8).astype(u4) | u4(0x00F00000)}
    out = xp.zeros((8, 3), dtype=u4)
    kernel(cm, "reduce_warp_sync", "per_warp")((4,), (64,), (xp.asarray(inputs["values"]), out))
    return inputs, [out]


def warp_sync(inputs):
    warps = inputs["values"].reshape(8, 32)
    sums = warps.astype(u8).sum(1) % 2**32
    return [np.stack([sums, warps.max(1), np.bitwise_and.reduce(warps, 1)], 1)]


def record_last_block(cm, xp, rng):
    inputs = {"values": rng.integers(-1000, 1000, 20_000).astype(i4)}
    parts, result = xp.zeros(24, dtype=i4), xp.zeros(1, dtype=i4)
    kernel(cm, "last_block", "sum")((24,), (128,), (xp.asarray(inputs["values"]), parts, result, i4(20_000)))
    return inputs, [result]


def record_block_of_1024(cm, xp, rng):
    inputs = {"values": rng.integers(-(2**50), 2**50, 5001)}
    result = xp.zeros(3, dtype=i8)
    kernel(cm, "block_of_1024", "extremes")((1,), (32, 32), (xp.asarray(inputs["values"]), result, i4(5001)))
    return inputs, [result]


def extremes(inputs):
    values = inputs["values"]
    return [[values.min(), values.max(), values.sum()]]


# --- atomics


def record_atomics(cm, xp, rng):
    n = 9_700
    inputs = {"values": rng.integers(0, 10_000, n).astype(i4)}
    ints = xp.asarray(np.array([0, 0, 2**31 - 1, -(2**31)], i4))
    words = xp.asarray(np.array([0xFFFFFFFF, 0, 0, 0, 0], u4))
    longs, wide = xp.zeros(2, dtype=u8), xp.asarray(np.array([2**62, -(2**62)]))
    arguments = (xp.asarray(inputs["values"]), ints, words, longs, wide, i4(n))
    kernel(cm, "reduce_atomics", "gather")((38,), (256,), arguments)
    return inputs, [ints, words, longs, wide]


def atomics(inputs):
    values = inputs["values"].astype(i8)
    xored = np.bitwise_xor.reduce(values * 2654435761 % 2**32)
    words = [
        0xFFFFFFFF & ~np.bitwise_or.reduce(1 << (values & 15)),
        np.bitwise_or.reduce(1 << (values & 31)),
        xored,
        values.size % 97,  # atomicInc to 96 and on to 0
        -values.size % 97,
    ]
    longs = [values.sum(), np.bitwise_xor.reduce(values) << 20]
    return [
        [values.sum(), -values.sum(), values.min(), values.max()],
        words,
        longs,
        [values.min() << 33, values.max() << 33],
    ]


def record_max_double(cm, xp, rng):
    inputs = {"values": rng.standard_normal(3000)}
    values = xp.asarray(inputs["values"])
    most, place = xp.asarray(np.array([-1e300])), xp.asarray(np.array([2**31 - 1], i4))
    kernel(cm, "atomic_max_double", "largest")((5,), (64,), (values, most, i4(3000)))
    kernel(cm, "atomic_max_double", "first_place")((5,), (64,), (values, most, place, i4(3000)))
    return inputs, [most, place]


def max_double(inputs):
    return [inputs["values"].max(), inputs["values"].argmax()]


def record_counter(cm, xp, rng):
    inputs = {"values": rng.standard_normal(2000).astype(f4)}
    kept, count = xp.zeros(2000, dtype=f4), xp.zeros(1, dtype=u4)
    kernel(cm, "device_counter", "gather_negative")(
        (8,), (256,), (xp.asarray(inputs["values"]), kept, count, i4(2000))
    )
    return inputs, [xp.sort(kept), count]


def counter(inputs):
    negative = inputs["values"] < 0
    return [np.sort(np.where(negative, inputs["values"], 0)), np.count_nonzero(negative)]


def record_histogram(cm, xp, rng):
    inputs = {"bytes": (rng.standard_normal(40_000) * 40 + 128).astype(np.uint8)}
    words, counts = xp.asarray(inputs["bytes"].view(u4)), xp.zeros(256, dtype=u4)
    kernel(cm, "histogram", "histogram")((6,), (128,), (words, counts, i4(10_000)))
    return inputs, [counts]


def histogram(inputs):
    return [np.bincount(inputs["bytes"], minlength=256)]


# --- scans


def record_hillis_steele(cm, xp, rng):
    inputs = {"values": rng.integers(-50, 50, 1000).astype(i4)}
    out = xp.zeros(1000, dtype=i4)
    kernel(cm, "scan_hillis_steele", "inclusive_scan")(
        (10,), (100,), (xp.asarray(inputs["values"]), out, i4(1000)), shared_mem=2 * 100 * 4
    )
    return inputs, [out]


def hillis_steele(inputs):
    return [np.cumsum(inputs["values"].reshape(10, 100), 1)]


def record_blelloch(cm, xp, rng):
    n = 10_001
    inputs = {"values": rng.integers(0, 2**20, n).astype(u4)}
    scanned, sums = xp.zeros(n, dtype=u4), xp.zeros(40, dtype=u4)
    starts, total = xp.zeros(40, dtype=u4), xp.zeros(1, dtype=u4)
    scan = kernel(cm, "scan_blelloch", "scan_blocks")
    scan((40,), (128,), (xp.asarray(inputs["values"]), scanned, sums, i4(n)))
    scan((1,), (128,), (sums, starts, total, i4(40)))
    kernel(cm, "scan_blelloch", "add_sums")((40,), (128,), (scanned, starts, i4(n)))
    return inputs, [scanned, total]


def blelloch(inputs):
    sums = np.cumsum(inputs["values"], dtype=u8) % 2**32
    return [np.concatenate([[0], sums[:-1]]), sums[-1]]


def record_scan_warp(cm, xp, rng):
    inputs = {"values": rng.random(1000)}
    out = xp.zeros(1000)
    kernel(cm, "scan_warp", "block_scan")((4,), (256,), (xp.asarray(inputs["values"]), out, i4(1000)))
    return inputs, [out]


def scan_warp(inputs):
    return [np.cumsum(padded(inputs["values"], 256), 1).ravel()[:1000]]


# --- votes


def record_votes(cm, xp, rng):
    n = 310
    inputs = {"values": rng.integers(0, 100, n).astype(i4) // 2 * 2 + (np.arange(n) > 200)}
    inputs["values"] = inputs["values"].astype(i4)
    ballots, some, every = xp.zeros(10, dtype=u4), xp.zeros(10, dtype=i4), xp.zeros(10, dtype=i4)
    rank = xp.zeros(n, dtype=i4)
    arguments = (xp.asarray(inputs["values"]), ballots, some, every, rank, i4(n), i4(93))
    kernel(cm, "warp_votes", "votes")((5,), (64,), arguments)
    return inputs, [ballots, some, every, rank]


def votes(inputs):
    warps = padded(inputs["values"], 32)
    above = warps > 93
    ballots = (above * (1 << np.arange(32, dtype=u8))).sum(1)
    rank = np.cumsum(above, 1) - above
    return [ballots, above.any(1), (warps % 2 == 0).all(1), rank.ravel()[:310]]


def record_match_any(cm, xp, rng):
    n = 500
    inputs = {"keys": rng.integers(0, 6, n).astype(i4)}
    counts, peers = xp.zeros(6, dtype=i4), xp.zeros(n, dtype=u4)
    kernel(cm, "match_any", "count_keys")((4,), (128,), (xp.asarray(inputs["keys"]), counts, peers, i4(n)))
    return inputs, [counts, peers]


def match_any(inputs):
    warps = padded(inputs["keys"], 32, fill=-1)
    same = warps[:, :, None] == warps[:, None, :]
    peers = (same * (1 << np.arange(32, dtype=u8))).sum(2)
    return [np.bincount(inputs["keys"]), peers.ravel()[:500]]


def record_barrier_votes(cm, xp, rng):
    inputs = {"values": np.concatenate([rng.integers(1, 80, 120), rng.integers(-50, 100, 200)]).astype(i4)}
    results = xp.zeros((8, 3), dtype=i4)
    kernel(cm, "barrier_votes", "barrier_votes")(
        (8,), (40,), (xp.asarray(inputs["values"]), results, i4(310))
    )
    return inputs, [results]


def barrier_votes(inputs):
    groups = np.where(np.arange(320) < 310, inputs["values"], 1).reshape(8, 40)
    return [np.stack([(groups > 0).sum(1), (groups > 0).all(1), (groups > 90).any(1)], 1)]


def record_tiles(cm, xp, rng):
    n = 500
    inputs = {"values": rng.integers(-2, 60, n).astype(i4)}
    outputs = [xp.zeros(n, dtype=i4) for _ in range(4)]
    kernel(cm, "cooperative_tiles", "tile_sums")(
        (4,), (128,), (xp.asarray(inputs["values"]), *outputs, i4(n))
    )
    return inputs, outputs


def tiles(inputs):
    def spread(rows, width):
        return np.repeat(rows, width)[:500]

    sixteens = padded(inputs["values"], 16)
    marks = (sixteens < 0).any(1) + 2 * (sixteens >= 0).all(1)
    odd = (sixteens % 2 != 0).sum(1)
    warps = np.arange(500) // 32 % 4
    return [
        spread(padded(inputs["values"], 4).sum(1), 4),
        spread(sixteens.sum(1) + marks, 16),
        spread(padded(inputs["values"], 32).sum(1), 32),
        warps * 100 + spread(odd, 16),
    ]


def record_compact(cm, xp, rng):
    n = 2000
    inputs = {"values": rng.integers(0, 1000, n).astype(i4)}
    values, counts, out = xp.asarray(inputs["values"]), xp.zeros(16, dtype=i4), xp.zeros(n, dtype=i4)
    kernel(cm, "compact_ballot", "count_wanted")((16,), (128,), (values, counts, i4(n)))
    starts = (xp.cumsum(counts) - counts).astype(i4)
    kernel(cm, "compact_ballot", "compact")((16,), (128,), (values, starts, out, i4(n)))
    return inputs, [out]


def compact(inputs):
    kept = inputs["values"][inputs["values"] % 3 == 0]
    return [np.pad(kept, (0, 2000 - kept.size))]


def record_half_warps(cm, xp, rng):
    inputs = {"values": rng.integers(-1000, 1000, 128).astype(i4)}
    out = xp.zeros(128, dtype=i4)
    kernel(cm, "half_warps", "halves")((2,), (64,), (xp.asarray(inputs["values"]), out))
    return inputs, [out]


def half_warps(inputs):
    halves = inputs["values"].reshape(4, 2, 16)
    return [np.stack([halves[:, 0].sum(1), halves[:, 1].max(1)], 1).repeat(16)]


def record_butterfly(cm, xp, rng):
    inputs = {"values": rng.integers(-100, 100, 192).astype(i4)}
    out = xp.zeros(192, dtype=i4)
    kernel(cm, "warp_butterfly", "butterflies")((3,), (64,), (xp.asarray(inputs["values"]), out))
    return inputs, [out]


def butterfly(inputs):
    hadamard = np.ones((1, 1), int)
    for _ in range(5):
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    turned = inputs["values"].reshape(6, 32) @ hadamard
    return [turned + np.roll(turned, -1, 1)]


CASES = [
    (
        "reduce_shared",
        ("shared tree", "template size"),
        record_reduce_shared,
        reduce_shared,
        (1e-5, 0.0, "float sums in another order"),
    ),
    (
        "reduce_shuffle",
        ("shfl_down", "sub-warp width", "atomicMax"),
        record_reduce_shuffle,
        reduce_shuffle,
        EXACT,
    ),
    ("reduce_warp_sync", ("__reduce_*_sync", "__CUDA_ARCH__"), record_warp_sync, warp_sync, EXACT),
    (
        "last_block",
        ("__threadfence", "atomicInc", "__device__ counter"),
        record_last_block,
        lambda inputs: [inputs["values"].sum()],
        EXACT,
    ),
    ("block_of_1024", ("1024 threads", "int64 shuffles"), record_block_of_1024, extremes, EXACT),
    ("reduce_atomics", ("all integer atomics",), record_atomics, atomics, EXACT),
    ("atomic_max_double", ("atomicCAS loop", "double"), record_max_double, max_double, EXACT),
    ("device_counter", ("__device__ variable", "atomicAdd"), record_counter, counter, EXACT),
    ("histogram", ("shared atomics",), record_histogram, histogram, EXACT),
    (
        "scan_hillis_steele",
        ("dynamic shared memory", "odd block"),
        record_hillis_steele,
        hillis_steele,
        EXACT,
    ),
    ("scan_blelloch", ("sweeps", "three launches"), record_blelloch, blelloch, EXACT),
    ("scan_warp", ("shfl_up", "double"), record_scan_warp, scan_warp, (1e-13, 0.0, "sums in another order")),
    ("warp_votes", ("ballot", "any", "all", "popc"), record_votes, votes, EXACT),
    ("match_any", ("match_any", "ffs"), record_match_any, match_any, EXACT),
    (
        "barrier_votes",
        ("__syncthreads_count/and/or", "partial warp"),
        record_barrier_votes,
        barrier_votes,
        EXACT,
    ),
    ("cooperative_tiles", ("cooperative groups", "tiled_partition"), record_tiles, tiles, EXACT),
    ("compact_ballot", ("compaction", "__syncthreads_count", "ballot"), record_compact, compact, EXACT),
    ("half_warps", ("partial masks",), record_half_warps, half_warps, EXACT),
    ("warp_butterfly", ("__syncwarp", "volatile shared"), record_butterfly, butterfly, EXACT),
]
