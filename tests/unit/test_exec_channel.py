"""The agent's end of a worker's socket: what counts as said unasked."""

import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import trio

from coppermesh.exec.channel import Channel, channel_pair
from coppermesh.exec.lent_files import LentFiles
from coppermesh.exec.watchdog import Watchdog


@contextmanager
def talk() -> Iterator[tuple[Channel, socket.socket]]:
    """A channel and the other end of it, which answers at once."""
    channel, descriptor = channel_pair()
    other = socket.socket(fileno=descriptor)
    try:
        yield channel, other
    finally:
        channel.close()
        other.close()


async def test_an_answer_that_came_before_anybody_read_was_asked_for():
    with talk() as (channel, other):
        for _ in range(2):
            await channel.send(b"a question")
            other.send(b"an answer")
            assert not channel.unasked
            await channel.receive()
            assert not channel.unasked


async def test_a_second_answer_is_unasked_and_so_is_a_word_before_the_first_question():
    with talk() as (channel, other):
        other.send(b"hello")
        assert channel.unasked
        await channel.receive()
        await channel.send(b"a question")
        other.send(b"an answer")
        other.send(b"and another")
        await channel.receive()
        assert channel.unasked


async def test_a_question_that_could_not_be_sent_asks_nothing():
    with talk() as (channel, other):
        with trio.move_on_after(0.2) as scope:
            while True:
                await channel.send(b"x" * 65536)
        assert scope.cancelled_caught
        while select.select([other], [], [], 0)[0]:
            other.recv(65536)
        other.send(b"an answer")
        await channel.receive()
        other.send(b"more")
        assert channel.unasked
        channel.close()
        assert not channel.unasked


async def test_the_other_end_closing_shows_as_the_end():
    with talk() as (channel, other):
        await channel.send(b"a question")
        other.close()
        assert await channel.receive() == (b"", [])
        with pytest.raises(OSError, match="pipe"):
            await channel.send(b"another")


async def test_no_look_between_a_question_and_the_reading_of_its_answer_ends_a_worker():
    with talk() as (channel, other):
        killed: list[bool] = []
        child = SimpleNamespace(pid=1, ended=trio.Event(), is_over=False, kill=lambda: killed.append(True))
        process = SimpleNamespace(
            child=child, channel=channel, box=None, allowance=None, sent=frozenset(), lent=LentFiles(),
            verdict=None, spoiled=False,
        )  # fmt: skip
        dog = Watchdog()
        dog.add(process)
        for _ in range(2):
            await channel.send(b"a question")
            other.send(b"an answer")
            dog.look()
            await channel.receive()
        assert not killed
        other.send(b"more")
        dog.look()
        dog.look()
        assert killed
        assert process.verdict.code == "worker-misbehaved"
