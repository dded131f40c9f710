"""Looking for what a killed process left in device memory, on a model of a device that clears it or does not."""

from types import SimpleNamespace

import numpy as np
import pytest

from coppermesh.exec.sandbox import scrub
from coppermesh.exec.sandbox.scrub import Filled, Scanned, fill, judge, scan

WORDS = 1 << 12


class Card:
    """Device memory as words. Blocks are given from the end that was freed last, as drivers like to."""

    def __init__(self, clears, taken=0):
        self.memory = np.zeros(WORDS, np.uint64)
        self.clears, self.taken = clears, taken

    def kill(self, process):
        if self.clears:
            self.memory[self.taken : process.top] = 0


class Process:
    """One process's view of it: the few calls of CuPy that the trial makes."""

    def __init__(self, card, pool_clears=False):
        self.card, self.top, self.pool, self.pool_clears = card, card.taken, [], pool_clears
        free = 8 * (WORDS - card.taken)
        self.cuda = SimpleNamespace(
            memory=SimpleNamespace(OutOfMemoryError=MemoryError),
            runtime=SimpleNamespace(memGetInfo=lambda: (free, 8 * WORDS), deviceSynchronize=lambda: None),
        )
        self.count_nonzero = np.count_nonzero

    def empty(self, size, dtype):
        assert dtype == "uint64"
        if self.pool:
            room = self.pool.pop()
            if self.pool_clears:
                room[...] = 0
        else:
            if self.top + size > WORDS:
                raise self.cuda.memory.OutOfMemoryError
            room = self.card.memory[self.top : self.top + size]
            self.top += size
        return Block(room, self.pool)


class Block:
    def __init__(self, room, pool):
        self.room, self.pool = room, pool
        self.size, self.nbytes = room.size, room.nbytes

    def fill(self, value):
        self.room[...] = value

    def __eq__(self, value):
        return self.room == np.uint64(value)

    def __hash__(self):
        return id(self)

    def __del__(self):
        self.pool.append(self.room)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(scrub, "CHUNK_BYTES", 2048)


def trial(card, **options):
    first = Process(card, **options)
    filled, held = fill(first)
    card.kill(first)
    seen = scan(Process(card))
    del held
    return filled, seen


def test_a_device_that_clears_memory_passes():
    filled, seen = trial(Card(clears=True))
    assert filled.filled >= 0.75 * filled.free
    assert filled.control > 0
    assert seen.scanned >= 0.75 * seen.free
    assert judge(filled, seen) == ""


def test_a_device_that_does_not_is_found_out():
    filled, seen = trial(Card(clears=False))
    assert seen.found > WORDS // 2
    assert "were found" in judge(filled, seen)


def test_a_scan_that_finds_nothing_anywhere_shows_nothing():
    filled, seen = trial(Card(clears=True), pool_clears=True)
    assert filled.control == 0
    assert "does not find what is there" in judge(filled, seen)


def test_memory_that_others_hold_is_neither_written_nor_counted():
    card = Card(clears=True, taken=WORDS // 4)
    card.memory[: WORDS // 4] = scrub.PATTERN
    filled, seen = trial(card)
    assert seen.found == 0
    assert (card.memory[: WORDS // 4] == np.uint64(scrub.PATTERN)).all()
    assert judge(filled, seen) == ""


@pytest.mark.parametrize(
    ("filled", "scanned", "fine"), [(800, 800, True), (800, 450, True), (800, 440, False)]
)
def test_both_must_have_seen_enough_of_the_same_memory(filled, scanned, fine):
    said = judge(Filled(1000, filled, 1), Scanned(900, scanned, 0))
    assert (said == "") is fine
    assert fine or "too little" in said


def test_a_full_device_shows_nothing():
    filled, seen = trial(Card(clears=True, taken=WORDS - 1))
    assert judge(filled, seen) != ""
