"""Which security protocol two ends agree on, and what an attacker between them can make of that."""

import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
import trio
import trio.testing

from coppermesh.p2p import libp2p_upgrade
from coppermesh.p2p.errors import MeshError
from coppermesh.p2p.libp2p_multistream import HEADER, encode_message, read_message
from coppermesh.p2p.libp2p_upgrade import NOISE, NOISE_AES, Identity, Secured, _TcpChannel, upgrade
from coppermesh.p2p.signing import PeerKey

pytestmark = pytest.mark.net

DIALLER, ACCEPTOR = (Identity.of(PeerKey.generate()) for _ in range(2))


def wire() -> tuple[trio.SocketStream, trio.SocketStream]:
    first, second = (trio.socket.from_stdlib_socket(end) for end in socket.socketpair())
    return trio.SocketStream(first), trio.SocketStream(second)


@pytest.fixture(autouse=True)
def _with_aes(monkeypatch):
    monkeypatch.setattr(libp2p_upgrade, "has_aes_instructions", lambda: True)


async def both(
    dialling: trio.SocketStream, accepting: trio.SocketStream, offers: tuple[tuple[str, ...], tuple[str, ...]]
) -> list[Secured | MeshError]:
    """What each end makes of it; each offers its own list. An end that fails closes its stream."""
    results: list[Secured | MeshError] = [MeshError(), MeshError()]

    async def end(index: int, stream: trio.SocketStream, *arguments) -> None:
        try:
            results[index] = await upgrade(stream, *arguments)
        except MeshError as error:
            results[index] = error
            await stream.aclose()

    # Both ends live in this process: what the first asks for is taken before it waits for the first time.
    current = [offers[0]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(libp2p_upgrade, "security_protocols", lambda: current[0])
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(end, 0, dialling, DIALLER, ACCEPTOR.peer)
                await trio.testing.wait_all_tasks_blocked()
                current[0] = offers[1]
                nursery.start_soon(end, 1, accepting, ACCEPTOR, None)
    return results


OURS, STOCK = (NOISE_AES, NOISE), (NOISE,)


@pytest.mark.parametrize(
    ("offers", "expected"),
    [
        ((OURS, OURS), NOISE_AES),
        ((OURS, STOCK), NOISE),
        ((STOCK, OURS), NOISE),
        ((STOCK, STOCK), NOISE),
    ],
)
async def test_the_faster_protocol_is_taken_where_both_speak_it(offers, expected):
    ends = wire()
    results = await both(*ends, offers)
    one, two = results
    assert isinstance(one, Secured)
    assert isinstance(two, Secured)
    assert (one.security, two.security) == (expected, expected)
    assert (one.peer, two.peer) == (ACCEPTOR.peer, DIALLER.peer)
    for sender, receiver in ((one, two), (two, one)):
        sender.writer.seal(memoryview(b"through"))
        await sender.writer.flush()
        await receiver.reader.fill()
        assert receiver.reader.next_size() == 7
        assert receiver.reader.open() == b"through"
    for stream in ends:
        await stream.aclose()


def test_a_processor_without_aes_offers_only_noise(monkeypatch):
    assert libp2p_upgrade.security_protocols() == OURS
    monkeypatch.setattr(libp2p_upgrade, "has_aes_instructions", lambda: False)
    assert libp2p_upgrade.security_protocols() == STOCK


async def pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        async for data in source:
            await sink.send_all(data)
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await sink.send_eof()


async def between(
    negotiate: Callable[[trio.SocketStream, trio.SocketStream], Awaitable[None]],
) -> list[Secured | MeshError]:
    """Two ends of ours with an attacker in the middle, who negotiates as he likes and then passes bytes on."""
    dialling, left = wire()
    right, accepting = wire()
    results: list[Secured | MeshError] = []
    async with dialling, left, right, accepting, trio.open_nursery() as nursery:

        @nursery.start_soon
        async def attack() -> None:
            await negotiate(left, right)
            nursery.start_soon(pump, left, right)
            nursery.start_soon(pump, right, left)

        results += await both(dialling, accepting, (OURS, OURS))
        nursery.cancel_scope.cancel()
    return results


async def test_an_attacker_can_force_noise_and_nothing_weaker():
    async def strike_ours(left: trio.SocketStream, right: trio.SocketStream) -> None:
        dialler = _TcpChannel(left, initiator=False)
        assert await read_message(dialler) == HEADER
        assert await read_message(dialler) == NOISE_AES
        await left.send_all(encode_message(HEADER) + encode_message("na"))
        assert await read_message(dialler) == NOISE
        await right.send_all(encode_message(HEADER) + encode_message(NOISE))
        acceptor = _TcpChannel(right, initiator=True)
        assert [await read_message(acceptor), await read_message(acceptor)] == [HEADER, NOISE]
        await left.send_all(encode_message(NOISE))

    results = await between(strike_ours)
    assert [end.security for end in results if isinstance(end, Secured)] == [NOISE, NOISE]


@pytest.mark.parametrize("answer", ["/plaintext/2.0.0", "/tls/1.0.0", "na"])
async def test_a_dialler_takes_no_answer_but_what_it_offered(answer):
    async def answer_all(left: trio.SocketStream, right: trio.SocketStream) -> None:
        await left.send_all(encode_message(HEADER) + encode_message(answer) * 2)
        await right.send_all(encode_message(HEADER) + encode_message(answer) * 20)

    results = await between(answer_all)
    assert all(isinstance(end, MeshError) for end in results)


@pytest.mark.parametrize("asked", [NOISE, NOISE_AES])
async def test_two_ends_that_were_told_different_protocols_do_not_meet(asked):
    """The handshake itself notices: the protocol's id is its prologue."""
    other = NOISE if asked == NOISE_AES else NOISE_AES

    async def tell_differently(left: trio.SocketStream, right: trio.SocketStream) -> None:
        dialler, acceptor = _TcpChannel(left, initiator=False), _TcpChannel(right, initiator=True)
        assert [await read_message(dialler), await read_message(dialler)] == [HEADER, NOISE_AES]
        answer = encode_message(HEADER) + encode_message(NOISE_AES if asked == NOISE_AES else "na")
        await left.send_all(answer)
        if asked == NOISE:
            assert await read_message(dialler) == NOISE
            await left.send_all(encode_message(NOISE))
        await right.send_all(encode_message(HEADER) + encode_message(other))
        assert [await read_message(acceptor), await read_message(acceptor)] == [HEADER, other]

    results = await between(tell_differently)
    assert all(isinstance(end, MeshError) for end in results)


async def test_a_handshake_cut_at_any_message_fails_on_both_sides():
    def cutting_after(count: int):
        async def cut(left: trio.SocketStream, right: trio.SocketStream) -> None:
            passed = 0
            async with trio.open_nursery() as nursery:

                async def relay(source: trio.SocketStream, sink: trio.SocketStream) -> None:
                    nonlocal passed
                    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                        async for data in source:
                            allowed = data[: max(0, count - passed)]
                            passed += len(data)
                            await sink.send_all(allowed)
                            if passed >= count:
                                break
                    nursery.cancel_scope.cancel()

                nursery.start_soon(relay, left, right)
                nursery.start_soon(relay, right, left)
            await left.aclose()
            await right.aclose()

        return cut

    for count in (1, 30, 70, 110, 180, 300, 420):
        results = await between(cutting_after(count))
        assert any(isinstance(end, MeshError) for end in results), count
