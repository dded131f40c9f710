"""Whether others can reach this agent: what follows from what they say, and telling others fairly."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from coppermesh.p2p.dial_back import PAUSE_SECONDS, PER_HOST, DialBack
from coppermesh.p2p.errors import Refused
from coppermesh.p2p.ids import PeerId
from coppermesh.p2p.memory_transport import MemoryNetwork
from coppermesh.p2p.messages import DialBackRequest
from coppermesh.p2p.reachability import VALID_SECONDS, Nat, Probe, Reachability
from coppermesh.p2p.signing import PeerKey
from coppermesh.p2p.transport import PeerPath, Transport

A, B, C, D = (PeerId(bytes([number]) * 32) for number in range(4))
OWN = {"192.168.1.4"}
OUTSIDE = "203.0.114.9"


def test_a_relay_is_wanted_when_somebody_fails_and_nobody_gets_through() -> None:
    it = Reachability()
    assert not it.wants_relay()
    it.said(A, "192.168.1.4", 4001, Probe.REACHED, 0.0)
    assert not it.wants_relay(), "neighbours get through; nobody outside has tried"
    it.said(B, OUTSIDE, 4001, Probe.SILENT, 0.0)
    assert it.wants_relay()
    it.said(C, OUTSIDE, 4001, Probe.REACHED, 0.0)
    assert not it.wants_relay()
    assert it.outside(OWN) == [], "one stranger's word is not enough to send others there"
    it.said(D, OUTSIDE, 4001, Probe.REACHED, 0.0)
    assert it.outside(OWN) == [OUTSIDE]


def test_the_words_of_those_whom_the_owner_named_come_first() -> None:
    it = Reachability(trusted={A})
    for liar in (B, C):
        it.said(liar, OUTSIDE, 4001, Probe.REACHED, 0.0)
    it.said(A, OUTSIDE, 4001, Probe.SILENT, 0.0)
    assert it.wants_relay()
    it.said(A, OUTSIDE, 4001, Probe.REACHED, 0.0)
    it.said(B, "198.51.101.7", 4001, Probe.REACHED, 0.0)
    it.said(C, OUTSIDE, 4001, Probe.SILENT, 0.0)
    assert not it.wants_relay()
    assert it.outside(OWN) == [OUTSIDE]


def test_always_and_never_are_the_owners_word() -> None:
    always, never = Reachability("always"), Reachability("never")
    never.said(A, OUTSIDE, 1, Probe.SILENT, 0.0)
    assert always.wants_relay()
    assert not never.wants_relay()


def test_an_address_that_nobody_got_through_to_is_not_announced() -> None:
    it = Reachability()
    for peer, probe in ((A, Probe.CLOSED), (B, Probe.SILENT), (C, Probe.OTHER), (D, Probe.UNREACHABLE)):
        it.said(peer, OUTSIDE, 4001, probe, 0.0)
    assert it.outside(OWN) == []


def test_what_was_said_ends_with_its_speaker_its_time_and_a_move() -> None:
    it = Reachability()
    it.said(A, OUTSIDE, 1, Probe.SILENT, 0.0)
    it.left(A)
    assert not it.wants_relay()
    it.said(A, OUTSIDE, 1, Probe.SILENT, 0.0)
    it.forget_old(VALID_SECONDS)
    assert it.wants_relay()
    it.forget_old(VALID_SECONDS + 1)
    assert not it.wants_relay()
    it.said(A, OUTSIDE, 1, Probe.SILENT, 0.0)
    it.moved()
    assert it.words == {}


def test_bootstrap_peers_are_always_asked_and_others_until_enough_have_said_something() -> None:
    it = Reachability()
    assert it.to_ask([A], [A, B, C, D]) == [A, B, C, D]
    for peer in (B, C, D):
        it.said(peer, "192.168.1.4", 1, Probe.REACHED, 0.0)
    assert it.to_ask([A], [A, B, C, D]) == [A]


@pytest.mark.parametrize(
    ("seen", "want"),
    [
        ([], Nat.UNKNOWN),
        ([("192.168.1.4", 4001)], Nat.NONE),
        ([(OUTSIDE, 4001)], Nat.UNKNOWN),
        ([(OUTSIDE, 4001), (OUTSIDE, 4001)], Nat.STEADY),
        ([(OUTSIDE, 4001), (OUTSIDE, 4002)], Nat.SHIFTING),
    ],
)
def test_the_kind_of_router_shows_in_the_ports_that_others_see(
    seen: list[tuple[str, int]], want: Nat
) -> None:
    it = Reachability()
    for peer, (host, port) in zip((A, B), seen, strict=False):
        it.said(peer, host, port, Probe.SILENT, 0.0)
    assert it.nat(OWN) is want


# Dialling back


@asynccontextmanager
async def two() -> AsyncIterator[tuple[Transport, Transport]]:
    """One that asks, connected to one that dials back."""
    network = MemoryNetwork(random.Random(1))
    async with (
        network.transport(PeerKey.generate()) as asker,
        network.transport(PeerKey.generate()) as helper,
    ):
        await asker.dial(helper.addresses[0])
        yield asker, helper


def port_of(transport: Transport) -> int:
    return int(transport.addresses[0].split("/")[4])


async def test_the_asker_learns_whether_it_is_reached_and_where_it_is_seen() -> None:
    async with two() as (asker, helper):
        reply = await DialBack(helper).answer(asker.peer, DialBackRequest(port_of(asker)))
        assert reply.state == "reached"
        assert asker.addresses[0].startswith(reply.seen_at)


async def test_another_peers_port_is_told_from_ones_own() -> None:
    async with two() as (asker, helper):
        reply = await DialBack(helper).answer(asker.peer, DialBackRequest(port_of(helper)))
        assert reply.state == "other"


async def test_a_peer_has_to_wait_between_two_attempts(autojump_clock: trio.testing.MockClock) -> None:
    async with two() as (asker, helper):
        it = DialBack(helper)
        request = DialBackRequest(port_of(asker))
        await it.answer(asker.peer, request)
        with pytest.raises(Refused, match="ask again later"):
            await it.answer(asker.peer, request)
        await trio.sleep(PAUSE_SECONDS)
        await it.answer(asker.peer, request)


class Seen:
    """Stands for a transport whose peers come from wherever the test says."""

    def __init__(self, path: PeerPath | None) -> None:
        self.path = path
        self.probed: list[str] = []

    def path_to(self, peer: PeerId) -> PeerPath | None:
        return self.path

    async def probe(self, address: str) -> Probe:
        self.probed.append(address)
        return Probe.SILENT


async def test_only_the_host_that_the_asker_comes_from_is_dialled() -> None:
    seen = Seen(PeerPath("/ip4/203.0.114.9/tcp/50000", outbound=False, relay=None))
    reply = await DialBack(seen).answer(A, DialBackRequest(4001))  # type: ignore[arg-type]
    assert [text.rpartition("/p2p/")[0] for text in seen.probed] == ["/ip4/203.0.114.9/tcp/4001"]
    assert reply.seen_at == "/ip4/203.0.114.9/tcp/50000"


async def test_many_keys_on_one_host_share_its_attempts() -> None:
    seen = Seen(PeerPath("/ip4/203.0.114.9/tcp/50000", outbound=False, relay=None))
    it = DialBack(seen)  # type: ignore[arg-type]
    for number in range(PER_HOST):
        await it.answer(PeerId(bytes([number]) * 32), DialBackRequest(22))
    with pytest.raises(Refused, match="ask again later"):
        await it.answer(PeerId(bytes([99]) * 32), DialBackRequest(22))
    assert len(seen.probed) == PER_HOST


@pytest.mark.parametrize(
    ("path", "code"),
    [
        (None, "relayed"),
        (PeerPath("/ip4/203.0.114.9/tcp/1", outbound=False, relay=B), "relayed"),
        (PeerPath("/dns/seed.example.org/tcp/4001/p2p/x", outbound=True, relay=None), "no-address"),
    ],
)
async def test_whoever_has_no_host_of_his_own_here_is_refused(path: PeerPath | None, code: str) -> None:
    seen = Seen(path)
    with pytest.raises(Refused) as caught:
        await DialBack(seen).answer(A, DialBackRequest(4001))  # type: ignore[arg-type]
    assert caught.value.code == code
    assert seen.probed == []
