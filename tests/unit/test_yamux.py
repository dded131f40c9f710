"""The stream multiplexer against a peer that writes frames by hand."""

import random
import socket
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from coppermesh.p2p import libp2p_yamux_frames, libp2p_yamux_stream
from coppermesh.p2p.errors import Unreachable
from coppermesh.p2p.libp2p_noise import RecordError, RecordReader, RecordWriter
from coppermesh.p2p.libp2p_yamux import MAX_WORK, BufferBudget, YamuxConnection
from coppermesh.p2p.libp2p_yamux_frames import (
    ACK,
    BULK_WINDOW,
    DATA,
    FIN,
    GO_AWAY,
    HEADER,
    INITIAL_WINDOW,
    MAX_BULK,
    MAX_FRAME,
    PING,
    RST,
    SHARED_BYTES,
    SHARED_WINDOW,
    SYN,
    WINDOW_UPDATE,
)
from coppermesh.p2p.libp2p_yamux_stream import YamuxStream
from coppermesh.p2p.record_ciphers import AesCipher, NoiseCipher
from coppermesh.p2p.signing import PeerKey
from coppermesh.p2p.transport import MAX_STREAMS

PEER = PeerKey.generate().peer
THERE, HERE = bytes(32), bytes([1]) * 32
BUDGET = 1 << 30


class Attacker:
    """The other end: sends and reads frames one by one. It dialled, so its streams have odd ids."""

    def __init__(self, stream: trio.SocketStream, form: type[NoiseCipher] | type[AesCipher]) -> None:
        self._writer = RecordWriter(stream, form(THERE))
        self._reader = RecordReader(stream, form(HERE))
        self._received = b""

    async def send(self, *frames: bytes, cut: int | None = None) -> None:
        data = b"".join(frames)
        step = cut or max(1, len(data))
        for start in range(0, len(data), step):
            piece = memoryview(data)[start : start + step]
            for begin in range(0, len(piece), 200_000):
                self._writer.seal(piece[begin : begin + 200_000])
                await self._writer.flush()

    async def next_frame(self) -> tuple[int, int, int, bytes | int]:
        """(type, flags, stream id, payload or value)."""
        _, kind, flags, stream_id, length = HEADER.unpack(await self._take(HEADER.size))
        return kind, flags, stream_id, await self._take(length) if kind == DATA else length

    async def _take(self, count: int) -> bytes:
        while len(self._received) < count:
            if self._reader.next_size() is not None:
                self._received += self._reader.open()
            elif not await self._reader.fill():
                raise EOFError
        data, self._received = self._received[:count], self._received[count:]
        return data


class Victim:
    """A connection under attack, its accepted streams and its budget."""

    def __init__(
        self, connection: YamuxConnection, budget: BufferBudget, accepted: list[YamuxStream]
    ) -> None:
        self.connection = connection
        self.budget = budget
        self.accepted = accepted
        self.ended = trio.Event()

    async def run(self) -> None:
        await self.connection.run()
        self.ended.set()

    async def accept(self, attacker: Attacker, stream_id: int = 1) -> YamuxStream:
        await attacker.send(frame(WINDOW_UPDATE, SYN, stream_id, 0))
        assert await attacker.next_frame() == (WINDOW_UPDATE, ACK, stream_id, 0)
        return self.accepted[-1]


@asynccontextmanager
async def under_attack(
    *, budget: int = BUDGET, form: type[NoiseCipher] | type[AesCipher] = AesCipher, near: bool = False
) -> AsyncIterator[tuple[Victim, Attacker]]:
    mine, theirs = (trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in socket.socketpair())
    shared = BufferBudget(budget)
    accepted: list[YamuxStream] = []
    connection = YamuxConnection(
        PEER,
        mine,
        RecordReader(mine, form(THERE)),
        RecordWriter(mine, form(HERE)),
        initiator=False,
        budget=shared,
        on_stream=accepted.append,
        near=near,
    )
    victim = Victim(connection, shared, accepted)
    async with theirs, trio.open_nursery() as nursery:
        nursery.start_soon(victim.run)
        yield victim, Attacker(theirs, form)
        nursery.cancel_scope.cancel()
    assert shared._left == budget, "memory that was received into was not given back"


def frame(kind: int, flags: int, stream_id: int, value: int, *, version: int = 0) -> bytes:
    return HEADER.pack(version, kind, flags, stream_id, value)


def data(stream_id: int, payload: bytes, flags: int = 0) -> bytes:
    return frame(DATA, flags, stream_id, len(payload)) + payload


async def ended(victim: Victim) -> str:
    with trio.fail_after(10):
        await victim.ended.wait()
    return victim.connection.ended or ""


async def check_alive(attacker: Attacker) -> None:
    await attacker.send(frame(PING, SYN, 0, 4711))
    while True:
        received = await attacker.next_frame()
        if received[0] == PING:
            assert received == (PING, ACK, 0, 4711)
            return


BREACHES = {
    "another version": [frame(DATA, 0, 1, 0, version=1)],
    "an unknown type": [frame(4, 0, 1, 0)],
    "an unknown flag": [frame(DATA, 16, 1, 0)],
    "data for a stream that never was": [data(1, b"x")],
    "a window for a stream that never was": [frame(WINDOW_UPDATE, 0, 1, 9)],
    "a reset of a stream that never was": [frame(WINDOW_UPDATE, RST, 7, 0)],
    "data for a stream that we never opened": [data(2, b"x")],
    "data for stream 0": [data(0, b"x")],
    "opening stream 0": [frame(WINDOW_UPDATE, SYN, 0, 0)],
    "opening one of our ids": [frame(WINDOW_UPDATE, SYN, 2, 0)],
    "opening a stream twice": [frame(WINDOW_UPDATE, SYN, 1, 0)] * 2,
    "more than the window": [frame(WINDOW_UPDATE, SYN, 1, 0), data(1, bytes(INITIAL_WINDOW)), data(1, b"x")],
    "a frame of 4 GiB": [frame(WINDOW_UPDATE, SYN, 1, 0), frame(DATA, 0, 1, 2**32 - 1)],
    "data after the end": [frame(DATA, SYN | FIN, 1, 0), data(1, b"x")],
}


@pytest.mark.parametrize("name", BREACHES)
async def test_a_breach_ends_the_connection(name):
    async with under_attack() as (victim, attacker):
        await attacker.send(*BREACHES[name])
        assert "broke the stream protocol" in await ended(victim)
        for stream in victim.accepted:
            with pytest.raises(Unreachable):
                await stream.send_all(b"x")


@pytest.mark.parametrize("cut", [1, 5, 13, None])
async def test_frames_are_read_however_records_cut_them(cut):
    async with under_attack() as (victim, attacker):
        frames = [frame(DATA, SYN, 1, 3) + b"abc", frame(DATA, SYN, 3, 0)]
        frames += [data(3, b"third "), data(1, b"def"), data(3, b"stream", FIN), data(1, b"", FIN)]
        await attacker.send(*frames, cut=cut)
        await check_alive(attacker)
        one, three = victim.accepted
        buffer = bytearray(6)
        await one.receive_into(memoryview(buffer))
        assert buffer == b"abcdef"
        assert await one.receive_some() == b""
        assert await three.receive_some() == b"third stream"
        assert await three.receive_some() == b""


async def test_late_data_for_a_stream_that_we_reset_is_dropped():
    async with under_attack() as (victim, attacker):
        stream = await victim.accept(attacker)
        await stream.reset()
        assert await attacker.next_frame() == (WINDOW_UPDATE, RST, 1, 0)
        await attacker.send(data(1, bytes(100_000)), frame(WINDOW_UPDATE, FIN, 1, 5), data(1, b"x", RST))
        await check_alive(attacker)


async def test_data_for_a_stream_that_we_closed_is_answered_by_a_reset():
    async with under_attack() as (victim, attacker):
        stream = await victim.accept(attacker)
        await stream.aclose()
        assert await attacker.next_frame() == (WINDOW_UPDATE, FIN, 1, 0)
        await attacker.send(data(1, b"anybody?"))
        assert await attacker.next_frame() == (WINDOW_UPDATE, RST, 1, 0)
        await check_alive(attacker)


async def test_a_peer_opens_no_more_streams_than_allowed():
    async with under_attack() as (victim, attacker):
        ids = range(1, 2 * MAX_STREAMS + 3, 2)
        await attacker.send(*[frame(WINDOW_UPDATE, SYN, stream_id, 0) for stream_id in ids])
        flags = [(await attacker.next_frame())[1] for _ in ids]
        assert flags == [ACK] * MAX_STREAMS + [RST]
        assert len(victim.accepted) == MAX_STREAMS
        await victim.accepted[0].reset()
        await attacker.next_frame()
        await victim.accept(attacker, ids[-1] + 2)


async def test_we_wait_for_a_free_stream_and_give_up_in_time(monkeypatch):
    monkeypatch.setattr("coppermesh.p2p.libp2p_yamux.DIAL_SECONDS", 0.05)
    async with under_attack() as (victim, attacker):
        streams = [await victim.connection.open_stream() for _ in range(MAX_STREAMS)]
        with pytest.raises(Unreachable, match="open already"):
            await victim.connection.open_stream()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(victim.connection.open_stream)
            await streams[5].reset()
        await check_alive(attacker)


async def test_a_sender_uses_its_window_and_waits_for_more():
    async with under_attack() as (victim, attacker):
        stream = await victim.accept(attacker)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, bytes(INITIAL_WINDOW + 30_000))
            received = 0
            while received < INITIAL_WINDOW:
                received += len((await attacker.next_frame())[3])
            await trio.testing.wait_all_tasks_blocked(0.01)
            # A window of nothing is legal and wakes nobody.
            await attacker.send(frame(WINDOW_UPDATE, 0, 1, 0))
            await check_alive(attacker)
            await attacker.send(frame(WINDOW_UPDATE, 0, 1, 10_000))
            assert await attacker.next_frame() == (DATA, 0, 1, bytes(10_000))
            await attacker.send(frame(WINDOW_UPDATE, 0, 1, 2**32 - 1), frame(WINDOW_UPDATE, 0, 1, 2**32 - 1))
            assert await attacker.next_frame() == (DATA, 0, 1, bytes(20_000))


async def test_a_window_that_never_opens_breaks_the_stream_in_time(monkeypatch):
    monkeypatch.setattr(libp2p_yamux_stream, "STALL_SECONDS", 0.05)
    async with under_attack() as (victim, attacker):
        stream = await victim.accept(attacker)
        async with trio.open_nursery() as nursery:
            with pytest.raises(Unreachable, match="read nothing"):
                await stream.send_all(bytes(INITIAL_WINDOW + 1))
            nursery.start_soon(check_alive, attacker)


async def test_a_socket_that_takes_nothing_ends_the_connection_in_time(monkeypatch):
    monkeypatch.setattr(libp2p_yamux_frames, "STALL_SECONDS", 0.1)
    async with under_attack() as (victim, attacker):
        stream = await victim.accept(attacker)
        await attacker.send(frame(WINDOW_UPDATE, 0, 1, 1 << 30))
        with pytest.raises(Unreachable, match="took nothing"):
            await stream.send_all(bytes(64 << 20))
        assert "took nothing" in await ended(victim)


async def test_a_peer_that_asks_without_reading_is_cut_off():
    async with under_attack() as (victim, attacker):
        pings = frame(PING, SYN, 0, 1) * 16_000
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def flood() -> None:
                with suppress(RecordError):
                    while True:
                        await attacker.send(pings)

            assert "does not read" in await ended(victim)
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("form", [NoiseCipher, AesCipher])
async def test_a_cancelled_send_ends_between_frames(form):
    async with under_attack(form=form) as (victim, attacker):
        stream = await victim.accept(attacker)
        other = await victim.accept(attacker, 3)
        await attacker.send(frame(WINDOW_UPDATE, 0, 1, 1 << 30))
        memory = bytearray(16 << 20)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, memory)
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.cancel_scope.cancel()
        memory.clear()  # nobody holds on to a cancelled sender's memory
        await other.send_all(b"in step")
        kinds = []
        while True:
            kind, flags, stream_id, payload = await attacker.next_frame()
            if stream_id == 3:
                assert (kind, payload) == (DATA, b"in step")
                break
            kinds.append((kind, flags))
        assert kinds[-1] == (WINDOW_UPDATE, RST)
        assert set(kinds[:-1]) <= {(DATA, 0)}


async def test_go_away_ends_the_connection_but_not_what_was_complete():
    async with under_attack() as (victim, attacker):
        complete = await victim.accept(attacker, 1)
        half = await victim.accept(attacker, 3)
        await attacker.send(data(1, b"all of it", FIN), data(3, b"half of"), frame(GO_AWAY, 0, 0, 0))
        assert await ended(victim) == "it went away"
        assert await complete.receive_some() == b"all of it"
        assert await complete.receive_some() == b""
        with pytest.raises(Unreachable):
            await complete.send_all(b"x")
        with pytest.raises(Unreachable):
            await half.receive_some()
        with pytest.raises(Unreachable):
            await victim.connection.open_stream()


async def test_a_reset_after_the_end_leaves_the_end_readable():
    async with under_attack() as (victim, attacker):
        stream = await victim.accept(attacker)
        await attacker.send(data(1, b"done", FIN), frame(WINDOW_UPDATE, RST, 1, 0))
        await check_alive(attacker)
        assert await stream.receive_some() == b"done"
        assert await stream.receive_some() == b""
        with pytest.raises(Unreachable, match="reset"):
            await stream.send_all(b"x")


async def test_without_memory_a_stream_is_reset_and_the_connection_goes_on():
    async with under_attack(budget=10_000) as (victim, attacker):
        stream = await victim.accept(attacker)
        await attacker.send(data(1, bytes(9_000)), data(1, bytes(2_000)))
        assert await attacker.next_frame() == (WINDOW_UPDATE, RST, 1, 0)
        with pytest.raises(Unreachable, match="memory"):
            await stream.receive_some()
        other = await victim.accept(attacker, 3)
        await attacker.send(data(3, bytes(9_000)))
        assert len(await other.receive_some()) == 9_000


async def test_windows_grow_for_bulk_only_as_far_as_allowed(monkeypatch):
    monkeypatch.setattr("coppermesh.p2p.libp2p_yamux.MAX_WINDOWS", 5 << 20)
    async with under_attack() as (victim, attacker):
        granted = []
        for stream_id in (1, 3):
            stream = await victim.accept(attacker, stream_id)
            await attacker.send(data(stream_id, bytes(200_000)))
            await stream.receive_into(memoryview(bytearray(200_000)))
            kind, _, _, credit = await attacker.next_frame()
            assert kind == WINDOW_UPDATE
            granted.append(credit)
        assert granted[0] > 4_000_000 - INITIAL_WINDOW
        assert granted[1] <= INITIAL_WINDOW


@pytest.mark.parametrize("near", [True, False])
async def test_a_near_peer_may_send_less_ahead_while_messages_travel_beside_bulk(near):
    """And as much as ever once there were none for a while; a far one always, since its line would stand still."""
    piece = 64 * 1024
    async with under_attack(near=near) as (victim, attacker):
        bulk, messages = await victim.accept(attacker, 1), await victim.accept(attacker, 3)
        ahead, most, buffer = INITIAL_WINDOW, [], memoryview(bytearray(piece))
        with trio.fail_after(60):
            for number in range(2 * SHARED_BYTES // piece):
                assert ahead >= piece, "the sender has to wait although everything was read"
                if number == 32:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(messages.receive_some)
                        await trio.testing.wait_all_tasks_blocked(0.01)
                        await attacker.send(data(3, b"a message"))
                await attacker.send(data(1, bytes(piece)))
                await bulk.receive_into(buffer)
                ahead -= piece
                # The answer comes behind every window update that there is.
                await attacker.send(frame(PING, SYN, 0, number))
                while (received := await attacker.next_frame())[0] != PING:
                    kind, _, stream_id, credit = received
                    assert (kind, stream_id) == (WINDOW_UPDATE, 1)
                    ahead += int(credit)
                most.append(ahead)
        assert max(most[:32]) > 7 * SHARED_WINDOW
        beside = most[32 + BULK_WINDOW // piece : 32 + SHARED_BYTES // piece - 1]
        assert (max(beside) <= SHARED_WINDOW) is near
        assert max(most[-64:]) > 7 * SHARED_WINDOW


@pytest.mark.parametrize("form", [NoiseCipher, AesCipher])
async def test_a_forged_record_leaves_zeros_and_a_broken_stream(form):
    async with under_attack(form=form) as (victim, attacker):
        stream = await victim.accept(attacker)
        memory = bytearray(b"?" * 3000)
        await attacker.send(frame(DATA, 0, 1, 3000))
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def receive() -> None:
                with pytest.raises(Unreachable):
                    await stream.receive_into(memoryview(memory))

            await attacker.send(b"a" * 1000)
            await trio.testing.wait_all_tasks_blocked(0.01)
            attacker._writer.seal(memoryview(b"b" * 1000))
            attacker._writer._buffer[500] ^= 1
            await attacker._writer.flush()
            assert "authenticate" in await ended(victim)
        assert memory == b"a" * 1000 + bytes(1000) + b"?" * 1000


async def test_a_receive_into_that_is_cancelled_half_way_breaks_its_stream():
    async with under_attack() as (victim, attacker):
        stream = await victim.accept(attacker)
        await attacker.send(data(1, b"some"))
        await check_alive(attacker)
        with trio.move_on_after(0.01) as scope:
            await stream.receive_into(memoryview(bytearray(10)))
        assert scope.cancelled_caught
        with pytest.raises(Unreachable, match="cancelled half-way"):
            await stream.receive_some()
        assert await attacker.next_frame() == (WINDOW_UPDATE, RST, 1, 0)


async def test_closing_wakes_a_task_that_waits_to_receive():
    async with under_attack() as (victim, attacker):
        stream = await victim.accept(attacker)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def receive() -> None:
                with pytest.raises(Unreachable, match="closed here"):
                    await stream.receive_some()

            await trio.testing.wait_all_tasks_blocked(0.01)
            await stream.aclose()


@pytest.mark.parametrize("form", [NoiseCipher, AesCipher])
async def test_small_frames_pass_bulk(form):
    async with under_attack(form=form) as (victim, attacker):
        bulk = await victim.accept(attacker)
        small = await victim.accept(attacker, 3)
        await attacker.send(frame(WINDOW_UPDATE, 0, 1, 1 << 30))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bulk.send_all, bytes(64 << 20))
            await trio.testing.wait_all_tasks_blocked(0.01)
            await small.send_all(b"urgent")
            before = 0
            while (received := await attacker.next_frame())[2] != 3:
                before += len(received[3])
            # What lay in the socket's buffers, the frame being sent, and one more at most.
            assert before < 4 << 20
            nursery.cancel_scope.cancel()


async def test_streams_with_bulk_take_turns():
    async with under_attack() as (victim, attacker):
        streams = [await victim.accept(attacker, stream_id) for stream_id in (1, 3, 5)]
        await attacker.send(*[frame(WINDOW_UPDATE, 0, stream.stream_id, 1 << 30) for stream in streams])
        async with trio.open_nursery() as nursery:
            for stream in streams:
                nursery.start_soon(stream.send_all, bytes(3 * MAX_BULK))
            order = []
            while len(order) < 30:
                kind, _, stream_id, payload = await attacker.next_frame()
                assert (kind, len(payload)) == (DATA, MAX_FRAME)
                order.append(stream_id)
            nursery.cancel_scope.cancel()
        # One frame each, though each had handed over many; the first may have begun before the others came.
        assert set(order[-3:]) == set(order[-6:-3]) == {1, 3, 5}


async def test_what_was_complete_survives_a_failed_send():
    async with under_attack() as (victim, attacker):
        stream = await victim.accept(attacker)
        other = await victim.accept(attacker, 3)
        await attacker.send(data(1, b"the last word", FIN))
        await attacker._writer._stream.aclose()
        await other.send_all(b"into the void")
        assert await stream.receive_some() == b"the last word"
        assert await stream.receive_some() == b""
        await ended(victim)


async def test_a_bare_end_of_the_connection_breaks_every_stream():
    async with under_attack() as (victim, attacker):
        stream = await victim.accept(attacker)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def receive() -> None:
                with pytest.raises(Unreachable):
                    await stream.receive_some()

            @nursery.start_soon
            async def send() -> None:
                with pytest.raises(Unreachable):
                    await stream.send_all(bytes(1 << 20))

            await trio.testing.wait_all_tasks_blocked(0.01)
            await attacker._writer._stream.aclose()
            await ended(victim)


FRAMES = st.builds(
    lambda kind, flags, stream_id, value, payload: frame(kind, flags, stream_id, value) + payload,
    st.integers(0, 4),
    st.integers(0, 16),
    st.integers(0, 6),
    st.integers(0, 40) | st.sampled_from([INITIAL_WINDOW, 2**31, 2**32 - 1]),
    st.binary(max_size=40),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(FRAMES | st.binary(max_size=30), max_size=30), st.sampled_from([None, 1, 7]))
async def test_any_bytes_at_all_end_one_connection_at_most(frames, cut):
    async with under_attack() as (victim, attacker):
        opened = await victim.connection.open_stream()
        with suppress(RecordError):
            await attacker.send(*frames, cut=cut)
        for stream in [opened, *victim.accepted]:
            with suppress(Unreachable):
                await stream.send_all(b"x")
                await stream.aclose()
        # `under_attack` checks that `run` raised nothing and all memory came back.


async def test_random_cancelling_and_closing_mixes_up_no_bytes():  # noqa: C901, PLR0915
    """Many streams between two of ours: each receives a prefix of what was sent to it, or all of it."""
    rng = random.Random(11)
    first, second = (trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in socket.socketpair())
    budget = BufferBudget(BUDGET)
    finished = 0

    def pattern(stream_id: int, size: int) -> bytes:
        return random.Random(stream_id).randbytes(1_500_000)[:size]

    async def receive(stream: YamuxStream, patience: float) -> None:
        nonlocal finished
        received = bytearray()
        with trio.move_on_after(patience):
            try:
                while True:
                    if rng.random() < 0.5:
                        piece = await stream.receive_some(rng.randrange(1, 100_000))
                        if not piece:
                            finished += 1
                            break
                        received += piece
                    else:
                        block = bytearray(rng.randrange(1, 50_000))
                        await stream.receive_into(memoryview(block))
                        received += block
            except Unreachable as error:
                finished += "short" in str(error)
        assert received == pattern(stream.stream_id, len(received))
        await (stream.reset() if rng.random() < 0.5 else stream.aclose())

    async def send(connection: YamuxConnection, patience: float) -> None:
        stream = await connection.open_stream()
        content = memoryview(pattern(stream.stream_id, rng.randrange(1_500_000)))
        with suppress(Unreachable), trio.move_on_after(patience):
            while content:
                size = rng.randrange(1, 400_000)
                await stream.send_all(content[:size])
                content = content[size:]
            await stream.send_eof()
            await stream.receive_some()
        await stream.aclose()

    async with trio.open_nursery() as nursery:

        def connection(
            mine: trio.SocketStream, keys: tuple[bytes, bytes], *, initiator: bool
        ) -> YamuxConnection:
            def serve(stream: YamuxStream) -> None:
                nursery.start_soon(receive, stream, rng.choice([0.01, 0.1, 10]))

            made = YamuxConnection(
                PEER,
                mine,
                RecordReader(mine, NoiseCipher(keys[0])),
                RecordWriter(mine, NoiseCipher(keys[1])),
                initiator=initiator,
                budget=budget,
                on_stream=serve,
                near=initiator,
            )
            nursery.start_soon(made.run)
            return made

        ends = [
            connection(first, (THERE, HERE), initiator=True),
            connection(second, (HERE, THERE), initiator=False),
        ]
        async with trio.open_nursery() as senders:
            for number in range(120):
                senders.start_soon(send, ends[number % 2], rng.choice([0.005, 0.05, 10]))
        assert [end.ended for end in ends] == [None, None]
        assert [len(end._streams) for end in ends] == [0, 0]
        assert [end._sender._bulk for end in ends] == [deque(), deque()]
        for end in ends:
            end.close("done")
    # Patient sender meets patient receiver in a ninth of 120 streams; which ones is up to the order of trio's tasks.
    assert finished > 3
    assert budget._left == BUDGET


async def test_empty_records_do_not_keep_others_from_running() -> None:
    class Empty:
        left = 10 * MAX_WORK

        def next_size(self) -> int:
            return 0

        def open(self) -> bytes:
            self.left -= 1
            if self.left < 0:
                raise RecordError("over")
            return b""

    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    nothing: Any = None
    reader: Any = Empty()
    connection = YamuxConnection(
        PEER, nothing, reader, nothing, initiator=False, budget=BufferBudget(BUDGET), on_stream=print
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        assert await connection._read_until_end() == "over"
        nursery.cancel_scope.cancel()
    assert turns >= 5


class Script:
    """A reader whose next record is always there already."""

    def __init__(self, records: list[bytes]) -> None:
        self._records = deque(records)

    def next_size(self) -> int:
        if not self._records:
            raise RecordError("over")
        return len(self._records[0])

    def open(self) -> bytes:
        return self._records.popleft()

    def open_into(self, destination: memoryview) -> None:
        destination[:] = self._records.popleft()


async def test_a_message_between_bulk_is_answered_before_megabytes_of_it_are_read() -> None:
    full = bytes(MAX_FRAME)
    bulk_frame = [frame(DATA, 0, 1, MAX_FRAME), full]
    script: Any = Script(bulk_frame * 4 + [data(3, b"question")] + bulk_frame * 40)
    nothing: Any = None
    accepted: list[YamuxStream] = []
    connection = YamuxConnection(
        PEER,
        nothing,
        script,
        nothing,
        initiator=False,
        budget=BufferBudget(BUDGET),
        on_stream=accepted.append,
    )
    connection._parse(memoryview(frame(WINDOW_UPDATE, SYN, 1, 0) + frame(WINDOW_UPDATE, SYN, 3, 0)))
    bulk, small = accepted
    bulk._receive_window = 1 << 30
    arrived: list[int] = []

    async def receive() -> None:
        with suppress(Unreachable):
            await bulk.receive_into(memoryview(bytearray(100 * MAX_FRAME)))

    async def answer() -> None:
        assert await small.receive_some() == b"question"
        arrived.append(bulk._filled)
        await trio.lowlevel.checkpoint()  # the handler's turn
        await trio.lowlevel.checkpoint()  # the writer's
        arrived.append(bulk._filled)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        nursery.start_soon(answer)
        await trio.testing.wait_all_tasks_blocked()
        assert await connection._read_until_end() == "over"
        connection.close("over")
    before = 4 * MAX_FRAME
    assert arrived[0] - before <= 2 * MAX_FRAME
    assert arrived[1] - before <= 5 * MAX_FRAME


async def test_a_window_opened_byte_by_byte_gets_one_byte_frames_and_starves_nobody() -> None:
    async with under_attack() as (victim, attacker):
        stream = await victim.accept(attacker)
        other = await victim.accept(attacker, 3)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, bytes(INITIAL_WINDOW) + b"abcdef")
            got = 0
            while got < INITIAL_WINDOW:
                got += len((await attacker.next_frame())[3])  # type: ignore[arg-type]
            for letter in b"abc":
                await attacker.send(frame(WINDOW_UPDATE, 0, 1, 0))  # opens nothing
                await attacker.send(frame(WINDOW_UPDATE, 0, 1, 1))
                assert await attacker.next_frame() == (DATA, 0, 1, bytes([letter]))
                await other.send_all(b"me too")
                assert await attacker.next_frame() == (DATA, 0, 3, b"me too")
            nursery.cancel_scope.cancel()
