"""Swarm keys and membership gates: the same tests on the in-memory network and on libp2p."""

import importlib.util
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from coppermesh.p2p.errors import MeshError, Unreachable
from coppermesh.p2p.gate import MAX_WAITING, Doorkeeper, _Held
from coppermesh.p2p.membership_gate import MembershipGate, membership_protocol
from coppermesh.p2p.memory_transport import MemoryNetwork
from coppermesh.p2p.transport import PeerDown, PeerUp, Stream, Transport

_path = Path(__file__).parents[1] / "unit" / "lab_keys.py"
_spec = importlib.util.spec_from_file_location("lab_keys", _path)
assert _spec is not None
assert _spec.loader is not None
lab: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(lab)
NOW, ROOT, MESH, key = lab.NOW, lab.ROOT, lab.MESH, lab.key

ECHO, TOPIC = "/coppermesh-test/echo/1", "coppermesh-test/1"
SWARM, OTHER = bytes([7]) * 32, bytes([8]) * 32


class Peers:
    """Opens members by number, each with a card and a swarm key."""

    def __init__(self, kind: str, stack: AsyncExitStack) -> None:
        self._kind, self._stack = kind, stack
        self._network = MemoryNetwork(random.Random(7))
        self.books: dict[int, Any] = {}

    async def open(self, number: int, chain=None, swarm: bytes = SWARM) -> Transport:
        shown = [lab.certificate(ROOT, key(number).peer)] if chain is None else chain
        book = self.books[number] = lab.book()
        gate = MembershipGate(MESH, book, lambda: shown, lambda: NOW)
        opened = self._opener(number, swarm, gate)
        transport: Transport = await self._stack.enter_async_context(opened)
        transport.handle(ECHO, echo)
        return transport

    def _opener(self, number, swarm, gate):
        if self._kind == "memory":
            return self._network.transport(key(number), swarm_key=swarm, gate=gate)
        from coppermesh.p2p.libp2p_transport import open_libp2p_transport

        return open_libp2p_transport(
            key(number), MESH, listen="/ip4/127.0.0.1/tcp/0", swarm_key=swarm, gate=gate
        )


@pytest.fixture(params=["memory", pytest.param("libp2p", marks=pytest.mark.net)])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@asynccontextmanager
async def peers(kind: str) -> AsyncIterator[Peers]:
    async with AsyncExitStack() as stack:
        yield Peers(kind, stack)


async def echo(stream: Stream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


async def check_echo(transport: Transport, peer) -> None:
    stream = await transport.open_stream(peer, ECHO)
    await stream.send_all(b"let in")
    buffer = bytearray(6)
    await stream.receive_into(memoryview(buffer))
    assert bytes(buffer) == b"let in"
    await stream.aclose()


@pytest.mark.parametrize(("dialler", "dialled"), [(2, 3), (3, 2)])
async def test_members_meet_whoever_dials(kind, dialler, dialled):
    async with peers(kind) as at:
        a, b = await at.open(dialler), await at.open(dialled)
        assert await a.dial(b.addresses[0]) == b.peer
        assert a.connected() == [b.peer]
        await check_echo(a, b.peer)
        up = await b.events().receive()
        assert isinstance(up, PeerUp)
        assert up.peer == a.peer
        await check_echo(b, a.peer)
        assert at.books[dialler].member(b.peer, NOW) is not None
        assert at.books[dialled].member(a.peer, NOW) is not None


async def test_both_may_dial_at_once(kind):
    async with peers(kind) as at:
        a, b = await at.open(2), await at.open(3)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.dial, b.addresses[0])
            nursery.start_soon(b.dial, a.addresses[0])
        await check_echo(a, b.peer)
        await check_echo(b, a.peer)


@pytest.mark.parametrize(("member", "stranger"), [(2, 3), (3, 2)])
@pytest.mark.parametrize("dials", ["member", "stranger"])
async def test_who_has_no_valid_card_is_turned_away_with_the_reason(kind, member, stranger, dials):
    async with peers(kind) as at:
        a = await at.open(member)
        b = await at.open(stranger, [lab.certificate(key(9), key(stranger).peer)])
        one, other = (a, b) if dials == "member" else (b, a)
        with pytest.raises(Unreachable, match="not signed by the root key"):
            await one.dial(other.addresses[0])
        assert a.connected() == b.connected() == []
        with pytest.raises(Unreachable):
            await one.open_stream(other.peer, ECHO)
        with pytest.raises(trio.WouldBlock):
            a.events().receive_nowait()


async def test_another_swarm_key_reaches_nothing(kind):
    async with peers(kind) as at:
        a, b = await at.open(2), await at.open(3, swarm=OTHER)
        with pytest.raises(MeshError):
            await b.dial(a.addresses[0])
        assert a.connected() == []
        assert at.books[2].members(NOW) == []


async def test_a_silent_peer_gets_no_stream(kind, monkeypatch):
    monkeypatch.setattr("coppermesh.p2p.gate.ADMISSION_SECONDS", 0.5)
    async with peers(kind) as at:
        a = await at.open(3)
        # A peer with the swarm key that never shows a card, and opens what it likes.
        silent = await at._stack.enter_async_context(at._opener(2, SWARM, None))
        await silent.dial(a.addresses[0])
        with pytest.raises(MeshError):
            await check_echo(silent, a.peer)
        assert a.connected() == []
        with pytest.raises(trio.WouldBlock):
            a.events().receive_nowait()


async def test_gossip_passes_between_members_only(kind, monkeypatch):
    monkeypatch.setattr("coppermesh.p2p.gate.ADMISSION_SECONDS", 3.0)
    async with peers(kind) as at:
        a, b = await at.open(2), await at.open(3)
        stranger = await at._stack.enter_async_context(at._opener(4, SWARM, None))
        async with (
            a.subscribe(TOPIC, lambda _source, _data: True) as at_a,
            b.subscribe(TOPIC, lambda _source, _data: True) as at_b,
            stranger.subscribe(TOPIC, lambda _source, _data: True) as at_stranger,
        ):
            with trio.move_on_after(10):
                await stranger.dial(a.addresses[0])
                await a.dial(b.addresses[0])
            while True:
                await stranger.publish(TOPIC, b"from outside")
                await b.publish(TOPIC, b"from a member")
                with trio.move_on_after(0.3):
                    assert (await at_a.receive()).data == b"from a member"
                    break
            with pytest.raises(trio.WouldBlock):
                at_stranger.receive_nowait()
            assert at_b.statistics().current_buffer_used == 0


async def test_a_new_swarm_key_keeps_connections_and_moves_topics(kind):
    async with peers(kind) as at:
        a, b = await at.open(2), await at.open(3)
        await a.dial(b.addresses[0])
        async with (
            a.subscribe(TOPIC, lambda _source, _data: True),
            b.subscribe(TOPIC, lambda _source, _data: True) as at_b,
        ):
            await a.rekey(OTHER)
            await b.rekey(OTHER)
            await check_echo(a, b.peer)
            received = None
            while received is None:
                await a.publish(TOPIC, b"under the new key")
                with trio.move_on_after(0.3):
                    received = await at_b.receive()
            assert received.data == b"under the new key"
        late = await at.open(4, swarm=OTHER)
        await late.dial(a.addresses[0])
        old = await at.open(5)
        with pytest.raises(MeshError):
            await old.dial(a.addresses[0])


async def test_a_member_that_was_revoked_is_down_and_stays_out(kind):
    async with peers(kind) as at:
        a, b = await at.open(2), await at.open(3)
        await b.dial(a.addresses[0])
        assert isinstance(await a.events().receive(), PeerUp)
        at.books[2].offer(lab.revocation(ROOT, b.peer, []), NOW)
        await a.disconnect(b.peer)
        assert isinstance(await a.events().receive(), PeerDown)
        while a.peer in b.connected():
            await b.events().receive()
        with pytest.raises(MeshError, match="revoked"):
            await b.dial(a.addresses[0])
        assert a.connected() == []


def test_the_protocol_names_its_mesh():
    assert membership_protocol(MESH) == f"/coppermesh/membership/1/{MESH.hex()}"


async def test_who_is_not_let_in_yet_takes_few_places() -> None:
    nothing: Any = None
    gate = MembershipGate(MESH, lab.book(), list, lambda: NOW)
    waiting = 0

    async def stream() -> None:
        nonlocal waiting
        waiting += 1
        assert not await doorkeeper.wait_in(key(2).peer, ECHO)
        waiting -= 1

    async with trio.open_nursery() as nursery:
        doorkeeper = Doorkeeper(key(9).peer, gate, nursery, tell=print, drop=nothing, open_stream=nothing)
        doorkeeper._held[key(2).peer] = _Held(PeerUp(key(2).peer, "", outbound=False))
        for _ in range(3 * MAX_WAITING):
            nursery.start_soon(stream)
        await trio.testing.wait_all_tasks_blocked()
        assert waiting == MAX_WAITING
        doorkeeper.on_event(PeerDown(key(2).peer, "gone"))
