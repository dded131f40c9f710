"""Cases of integers and bits: generators, hashes, wide numbers, intrinsics. All exact."""

import hashlib
from pathlib import Path

import numpy as np

EXACT = (0.0, 0.0, "integers, or correctly rounded operations")

f4, f8, i4, i8, u4, u8 = np.float32, np.float64, np.int32, np.int64, np.uint32, np.uint64
MASK = 2**32 - 1


def kernel(cm, file, name, **options):
    return cm.RawKernel((Path(__file__).parent / f"{file}.cu").read_text(), name, **options)


def words(rng, *shape):
    """Random words, some of them the extremes."""
    values = rng.integers(0, 2**32, shape, u8).astype(u4)
    values.ravel()[:6] = [0, 1, MASK, 1 << 31, (1 << 31) - 1, 0x80FF7F01]
    return values


# --- generators


def record_random(cm, xp, rng):
    xorshift, pcg, blocks = xp.zeros(300, dtype=u4), xp.zeros(300, dtype=u4), xp.zeros((300, 4), dtype=u4)
    kernel(cm, "random_numbers", "generate")((3,), (128,), (xorshift, pcg, blocks, i4(300)))
    return {}, [xorshift, pcg, blocks]


def random_numbers(inputs):
    return [
        [xorshift(2463534242 + i) for i in range(300)],
        [pcg(42 + i, 54) for i in range(300)],
        philox(300),
    ]


def xorshift(x):
    for _ in range(5):
        for shift in (13, -17, 5):
            x ^= (x << shift if shift > 0 else x >> -shift) & MASK
    return x


def pcg(seed, stream):
    wide, increment = 2**64 - 1, 2 * stream + 1

    def following(state):
        return (state * 6364136223846793005 + increment) & wide

    state = following((following(0) + seed) & wide)
    for _ in range(3):
        state = following(state)
    shifted, turn = ((state >> 18) ^ state) >> 27 & MASK, state >> 59
    return (shifted * (2**32 + 1) >> turn) & MASK


def philox(n):
    # Salmon et al. 2011, on 64-bit products.
    x = [np.arange(n, dtype=u8), np.zeros(n, u8), np.zeros(n, u8), np.full(n, 7, u8)]
    key = [0xDEADBEEF, 2]
    for _ in range(10):
        a, b = x[0] * u8(0xD2511F53), x[2] * u8(0xCD9E8D57)
        low = [a & u8(MASK), b & u8(MASK)]
        x = [(b >> u8(32)) ^ x[1] ^ u8(key[0]), low[1], (a >> u8(32)) ^ x[3] ^ u8(key[1]), low[0]]
        key = [(key[0] + 0x9E3779B9) & MASK, (key[1] + 0xBB67AE85) & MASK]
    return np.stack(x, 1)


# --- hashes


def record_sha(cm, xp, rng):
    inputs = {"messages": rng.integers(0, 256, (70, 64)).astype(np.uint8)}
    digests = xp.zeros((70, 8), dtype=u4)
    messages = xp.asarray(inputs["messages"].view(u4))
    kernel(cm, "sha256", "sha256")((3,), (32,), (messages, digests, i4(70)))
    return inputs, [digests]


def sha(inputs):
    digests = b"".join(hashlib.sha256(message.tobytes()).digest() for message in inputs["messages"])
    return [np.frombuffer(digests, u4)]


def record_int64(cm, xp, rng):
    n = 260
    inputs = {"keys": rng.integers(-(2**62), 2**62, n)}
    hashes, bucket, zeros, folded = (xp.zeros(n, dtype=kind) for kind in (u8, u8, i4, i8))
    arguments = (xp.asarray(inputs["keys"]), hashes, bucket, zeros, folded, u8(1000003), i4(n))
    kernel(cm, "int64_hash", "hashes")((3,), (96,), arguments)
    return inputs, [hashes, bucket, zeros, folded]


def int64_hash(inputs):
    wide = 2**64 - 1
    hashes = []
    for key in inputs["keys"].tolist():
        x = (key + 0x9E3779B97F4A7C15) & wide
        x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & wide
        x = ((x ^ x >> 27) * 0x94D049BB133111EB) & wide
        hashes.append(x ^ x >> 31)
    keys = inputs["keys"]
    return [
        np.array(hashes, u8),
        [x * 1000003 >> 64 for x in hashes],
        [64 - x.bit_length() for x in hashes],
        keys // 128 + np.fmod(keys, 1000),
    ]


# --- wide numbers


def record_big(cm, xp, rng):
    n = 90
    inputs = {"a": words(rng, n, 8), "b": words(rng, n, 8)}
    inputs["b"][3] = ~inputs["a"][3]
    inputs["b"][3, 0] += u4(1)  # a carry through every word
    sums, carries, products = xp.zeros((n, 8), dtype=u4), xp.zeros(n, dtype=u4), xp.zeros((n, 8), dtype=u4)
    arguments = (xp.asarray(inputs["a"]), xp.asarray(inputs["b"]), sums, carries, products, i4(n))
    kernel(cm, "big_integers", "big_arithmetic")((3,), (32,), arguments)
    return inputs, [sums, carries, products]


def big_integers(inputs):
    a, b = ([int.from_bytes(row.tobytes(), "little") for row in inputs[name]] for name in ("a", "b"))

    def cut(values):
        return np.frombuffer(b"".join((v % 2**256).to_bytes(32, "little") for v in values), u4)

    pairs = list(zip(a, b, strict=True))
    return [cut([x + y for x, y in pairs]), [x + y >> 256 for x, y in pairs], cut([x * y for x, y in pairs])]


# --- intrinsics


def record_bits(cm, xp, rng):
    n = 200
    inputs = {"a": words(rng, n), "b": words(rng, n)[::-1].copy()}
    counts, results = xp.zeros((n, 6), dtype=i4), xp.zeros((n, 9), dtype=u4)
    longs = xp.zeros((n, 2), dtype=u8)
    arguments = (xp.asarray(inputs["a"]), xp.asarray(inputs["b"]), counts, results, longs, i4(n))
    kernel(cm, "bit_tricks", "bits")((4,), (64,), arguments)
    return inputs, [counts, results, longs]


def bits(inputs):
    def signed(x, width=32):
        return x - (1 << width) if x >> (width - 1) else x

    def first(x):
        return (x & -x).bit_length()

    counts, results, longs = [], [], []
    for x, y in zip(inputs["a"].tolist(), inputs["b"].tolist(), strict=True):
        both = x << 32 | y
        counts.append([x.bit_count(), 32 - x.bit_length(), first(x)])
        counts[-1] += [both.bit_count(), 64 - (both >> 7).bit_length(), first(both << 9 & 2**64 - 1)]
        average, product24 = signed(x) + signed(y) >> 1, signed(x & 0xFFFFFF, 24) * signed(y & 0xFFFFFF, 24)
        turned = (y << 32 | x) << 11 >> 32
        row = [int(f"{x:032b}"[::-1], 2), turned, y, (x & 0xFFFFFF) * (y & 0xFFFFFF), x * y >> 32]
        row += [abs(x - y) + 5, average, product24, x + y >> 1]
        results.append([value & MASK for value in row])
        longs.append([int(f"{both:064b}"[::-1], 2), both * 0x123456789ABCDEF >> 64])
    return [counts, results, np.array(longs, u8)]


def record_simd(cm, xp, rng):
    n = 150
    inputs = {"a": words(rng, n), "b": words(rng, n)[::-1].copy()}
    inputs["b"][20:40] = inputs["a"][20:40] ^ u4(0x00FF0000)
    packed, dots = xp.zeros((12, n), dtype=u4), xp.zeros(n, dtype=i4)
    a, b = xp.asarray(inputs["a"]), xp.asarray(inputs["b"])
    kernel(cm, "simd_in_word", "packed")((3,), (64,), (a, b, packed, i4(n)))
    signed = xp.asarray(inputs["a"].view(i4)), xp.asarray(inputs["b"].view(i4))
    kernel(cm, "simd_in_word", "dots")((3,), (64,), (*signed, dots, i4(n)))
    return inputs, [packed, dots]


def simd(inputs):
    def parts(kind):
        return (inputs[name].view(kind).reshape(150, -1).astype(int) for name in ("a", "b"))

    def word(values, kind):
        return np.ascontiguousarray(values.astype(kind)).view(u4).ravel()

    (x, y), (p, q) = parts(np.uint8), parts(np.int8)
    (s, t), (u, v) = parts(np.int16), parts(np.uint16)
    rows = [
        word(x + y, np.uint8),
        word(np.clip(p + q, -128, 127), np.int8),
        word(np.maximum(x - y, 0), np.uint8),
        word((x + y + 1) // 2, np.uint8),
        word(np.maximum(p, q), np.int8),
        word(np.minimum(u, v), np.uint16),
        word(np.abs(x - y), np.uint8),
        np.abs(x - y).sum(1),
        word(np.where(s > t, -1, 0), np.int16),
        word(x == y, np.uint8),
        word(np.clip(s - t, -32768, 32767), np.int16),
        word(np.minimum(np.abs(s), 32767), np.int16),
    ]
    return [rows, (p * q).sum(1) + (x * y).sum(1) + np.arange(150)]


def record_conversions(cm, xp, rng):
    n = 300
    x = (rng.standard_normal(n) * 10.0 ** rng.integers(-3, 12, n)).astype(f4)
    x[:8] = [np.nan, np.inf, -np.inf, 0.5, -1.5, 2.5, 2**31, -0.25]
    inputs = {"x": x}
    ints, directed = xp.zeros((n, 6), dtype=i4), xp.zeros((n, 6), dtype=f4)
    kernel(cm, "conversions", "convert")((3,), (128,), (xp.asarray(x), ints, directed, i4(n)))
    return inputs, [ints, directed]


def conversions(inputs):
    x = inputs["x"]
    wide = x.astype(f8)

    def saturated(values, low, high):
        return np.clip(np.nan_to_num(values, nan=0.0), low, high).astype(i8)

    def directed(exact, up):
        """`exact` is right to far more than single precision: the float on the wanted side of it."""
        with np.errstate(all="ignore"):
            near = exact.astype(f4)
            off = near < exact if up else near > exact
            return np.where(off, np.nextafter(near, f4(np.inf if up else -np.inf)), near)

    top = 2**31 - 1
    rounded = [np.rint(wide), np.trunc(wide), np.ceil(wide), np.floor(wide)]
    unsigned = saturated(np.rint(wide), 0, MASK).astype(u4).view(i4)
    raw = x.view(i4)
    ints = [*(saturated(values, -top - 1, top) for values in rounded), unsigned, raw]
    tiny = f8(f4(1e-9))
    product = wide * f8(f4(1.1))
    with np.errstate(all="ignore"):
        # A sum of far exponents does not fit a double; its direction is plain.
        above = np.where(wide + tiny == wide, np.nextafter(wide, np.inf), wide + tiny)
        below = np.where(wide - tiny == wide, np.nextafter(wide, -np.inf), wide - tiny)
        above, below = (np.where(np.isfinite(wide), edge, wide) for edge in (above, below))
        towards_zero = np.where(product > 0, directed(product, up=False), directed(product, up=True))
        third = directed(wide / 3, up=True)
    floats = [directed(above, up=True), directed(below, up=False), towards_zero, third]
    floats += [directed(raw.astype(f8), up=False), np.clip(np.nan_to_num(x, nan=0.0), 0, 1)]
    return [np.stack(ints, 1), np.stack(floats, 1)]


CASES = [
    ("random_numbers", ("__umulhi", "64-bit state", "uint4"), record_random, random_numbers, EXACT),
    ("sha256", ("__funnelshift_r", "__byte_perm", "references to arrays"), record_sha, sha, EXACT),
    ("int64_hash", ("int64", "__umul64hi", "__clzll"), record_int64, int64_hash, EXACT),
    ("big_integers", ("structures of arrays", "carry"), record_big, big_integers, EXACT),
    ("bit_tricks", ("integer intrinsics",), record_bits, bits, EXACT),
    ("simd_in_word", ("SIMD in a word", "__dp4a"), record_simd, simd, EXACT),
    ("conversions", ("conversions", "directed rounding"), record_conversions, conversions, EXACT),
]
