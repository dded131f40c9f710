"""What a peer says of where it sees us is a stranger's word; so is where it wants a hole punched."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from coppermesh.agent.networking import Network
from coppermesh.agent.reach import Reacher
from coppermesh.p2p.errors import Unreachable
from coppermesh.p2p.ids import PeerId, format_peer
from coppermesh.p2p.libp2p_circuit import address_bytes
from coppermesh.p2p.libp2p_reach import PUNCH_ROUNDS, PUNCH_WINDOW_SECONDS, Reach
from coppermesh.p2p.messages import DialBackReply
from coppermesh.p2p.signing import PeerKey

ME, LIAR, OTHER = (PeerKey(bytes([n]) * 32).peer for n in (1, 2, 3))


def reacher(seen_at: str) -> Reacher:
    async def request(*_: object, **__: object) -> DialBackReply:
        return DialBackReply("reached", seen_at)

    transport: Any = SimpleNamespace(peer=ME, addresses=[f"/ip4/10.0.0.7/tcp/4001/p2p/{format_peer(ME)}"])
    hub: Any = SimpleNamespace(request=request)
    plan: Any = None
    return Reacher(transport, hub, plan, Network(), (), now_us=lambda: 0, changed=lambda: None)


@pytest.mark.parametrize(
    "seen_at",
    [
        f"/ip4/{'x' * 240}/tcp/1",
        "/ip4/nowhere/tcp/4001",
        "/ip4/192.0.2.1/tcp/70000",
        "/ip4/192.0.2.1/tcp/0",
        "/ip6/2001:db8::1%" + "z" * 200 + "/tcp/4001",
        "/dns/example.org/tcp/4001",
        "",
    ],
)
async def test_what_is_no_address_is_neither_announced_nor_punched_from(seen_at: str) -> None:
    it = reacher(seen_at)
    with pytest.raises(Unreachable, match="no address"):
        await it.ask(LIAR)
    assert it.addresses() == it._transport.addresses
    assert it.state.seen_at() == []


async def test_an_address_counts_when_two_say_it() -> None:
    it = reacher("/ip4/192.0.2.1/tcp/4003")
    await it.ask(LIAR)
    await it.ask(OTHER)
    assert it.addresses()[0] == f"/ip4/192.0.2.1/tcp/4001/p2p/{format_peer(ME)}"


def test_what_cannot_be_said_in_a_hole_punch_is_a_mesh_error() -> None:
    with pytest.raises(Unreachable):
        address_bytes("/ip4/nowhere/tcp/1")


async def test_a_peer_gets_only_so_many_hole_punches(autojump_clock: trio.testing.MockClock) -> None:
    reach = Reach(ME, cast("Any", None), cast("Any", None), open_stream=cast("Any", None), own=list)

    def rounds(peer: PeerId, times: int) -> int:
        done = 0
        for _ in range(times):
            try:
                with reach._punch_round(peer, begins=False):
                    done += 1
            except Unreachable:
                pass
        return done

    assert rounds(LIAR, 50) == PUNCH_ROUNDS
    assert rounds(OTHER, 1) == 1
    await trio.sleep(PUNCH_WINDOW_SECONDS)
    with reach._punch_round(LIAR, begins=False):
        assert rounds(LIAR, 1) == 0  # one at a time
