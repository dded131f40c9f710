"""The dial plan (pure) and the loop around it, over the in-memory network in virtual time."""

import json
import logging
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from coppermesh.p2p import discovery
from coppermesh.p2p.dial_plan import GIVE_UP_AFTER, MAX_DIALS, MAX_TARGETS, DialPlan, Kind, may_be_dialled
from coppermesh.p2p.discovery import load_remembered, run_discovery, save_remembered
from coppermesh.p2p.errors import Unreachable
from coppermesh.p2p.ids import PeerId, format_peer
from coppermesh.p2p.memory_transport import MemoryNetwork
from coppermesh.p2p.signing import PeerKey

LOW, MIDDLE, HIGH = (PeerId(bytes([first]) * 32) for first in (1, 5, 9))
OWN = ["/ip4/127.0.0.1/tcp/4000/p2p/" + format_peer(MIDDLE)]


def address(peer: PeerId, host: str = "/ip4/127.0.0.1", port: int = 4001) -> str:
    return f"{host}/tcp/{port}/p2p/{format_peer(peer)}"


def plan(goal: int = 32) -> DialPlan:
    return DialPlan(MIDDLE, random.Random(1), goal=goal)


def test_who_an_order_needs_is_dialled_although_there_are_enough_connections() -> None:
    low = [PeerId(bytes([number]) * 32) for number in range(1, 5)]
    it = DialPlan(MIDDLE, random.Random(1), goal=1, near_goal=1)
    for peer in low:
        it.learn(peer, [address(peer)], OWN, 0.0)
    it.observe([low[0]], 10.0)
    assert it.due(10.0) == []
    it.seek([low[2]], 10.0)
    assert it.due(10.0) == [address(low[2])]
    it.near = frozenset({low[3]})
    assert it.due(10.0) == [address(low[3])]
    it.failed(address(low[2]), 10.0)
    assert it.due(1000.0) == []  # the order is long over


def test_a_bootstrap_address_is_due_at_once_and_for_ever() -> None:
    it = plan()
    it.add(address(LOW), Kind.PERMANENT)
    now, waits = 0.0, []
    assert it.due(now) == [address(LOW)]
    for _ in range(40):
        assert it.due(now) == []
        it.failed(address(LOW), now)
        start = now
        while not it.due(now):
            now += 0.01
        waits.append(now - start)
    assert 0.1 <= waits[0] <= 0.21
    assert 0.2 <= waits[1] <= 0.41
    assert all(15 <= wait <= 30.02 for wait in waits[8:])
    assert len({round(wait, 2) for wait in waits[8:]}) > 10


def test_strangers_are_given_up_and_bootstrap_is_not() -> None:
    it = plan()
    it.add(address(LOW), Kind.REMEMBERED)
    it.add(address(HIGH), Kind.PERMANENT)
    for step in range(3 * GIVE_UP_AFTER):
        for due in it.due(100.0 * step):
            it.failed(due, 100.0 * step)
    assert it.due(1e6) == [address(HIGH)]


def test_the_addresses_of_a_peer_take_turns() -> None:
    it = plan()
    it.add(address(LOW, port=1), Kind.PERMANENT)
    it.add(address(LOW, port=2), Kind.PERMANENT)
    tried = []
    for step in range(4):
        (due,) = it.due(100.0 * step)
        tried.append(due)
        it.failed(due, 100.0 * step)
    assert tried == 2 * [address(LOW, port=1), address(LOW, port=2)]


def test_a_connected_peer_is_not_dialled_until_it_is_lost() -> None:
    it = plan()
    it.add(address(LOW), Kind.PERMANENT)
    it.observe([LOW], 0.0)
    assert it.due(50.0) == []
    it.observe([], 50.0)
    assert it.due(50.0) == []
    assert it.due(50.21) == [address(LOW)]


def test_a_connection_that_flaps_backs_off() -> None:
    it = plan()
    it.add(address(LOW), Kind.PERMANENT)
    now, dials = 0.0, 0
    while now < 60:
        for due in it.due(now):
            dials += 1
            it.succeeded(due, now)
            it.observe([LOW], now)
            it.observe([], now)
        now += 0.1
    assert dials < 15


def test_a_peer_that_lets_us_in_is_dialled_at_once_however_often_the_line_breaks() -> None:
    it = plan()
    it.add(address(LOW), Kind.PERMANENT)
    now = 0.0
    for _ in range(100):
        (due,) = it.due(now)
        it.succeeded(due, now)
        it.observe([LOW], now)
        now += 4.0
        it.observe([], now)
        now += 0.21


def test_a_line_that_breaks_at_once_for_a_while_is_tried_every_two_seconds() -> None:
    it = plan()
    it.add(address(LOW), Kind.PERMANENT)
    it.observe([LOW], 0.0)
    it.observe([], 5.0)
    now = 5.21
    for _ in range(30):
        (due,) = it.due(now)
        it.succeeded(due, now)
        it.observe([LOW], now)
        it.observe([], now + 0.05)
        now += 2.1


def test_of_two_that_learn_of_each_other_the_larger_id_waits() -> None:
    smaller, larger = DialPlan(LOW, random.Random(1)), DialPlan(HIGH, random.Random(1))
    smaller.learn(HIGH, [address(HIGH)], OWN, 10.0)
    larger.learn(LOW, [address(LOW)], OWN, 10.0)
    assert smaller.due(10.0) == [address(HIGH)]
    assert larger.due(12.9) == []
    assert larger.due(13.0) == [address(LOW)]


def test_enough_connections_leave_only_bootstrap_to_dial() -> None:
    it = plan(goal=1)
    it.learn(HIGH, [address(HIGH)], OWN, 0.0)
    it.observe([LOW], 0.0)
    assert it.due(100.0) == []
    it.observe([], 100.0)
    assert it.due(100.0) == [address(HIGH)]


def test_few_dials_at_once_and_a_bounded_number_of_targets() -> None:
    it = plan()
    it.add(address(HIGH), Kind.PERMANENT)
    for number in range(2 * MAX_TARGETS):
        stranger = PeerId(number.to_bytes(32, "big"))
        it.learn(stranger, [address(stranger)], OWN, 0.0)
    assert len(it) == MAX_TARGETS
    assert len(it.due(1e6)) == MAX_DIALS
    it.add(address(LOW), Kind.REMEMBERED)
    assert len(it) == MAX_TARGETS


def test_a_newer_announcement_replaces_where_a_learned_peer_is() -> None:
    it = plan()
    it.learn(HIGH, [address(HIGH, port=1)], OWN, 0.0)
    it.learn(HIGH, [address(HIGH, port=2)], OWN, 0.0)
    assert it.due(1.0) == [address(HIGH, port=2)]


def test_an_announcement_does_not_push_out_a_bootstrap_address() -> None:
    it = plan()
    it.add(address(HIGH, port=1), Kind.PERMANENT)
    it.learn(HIGH, [address(HIGH, port=port) for port in range(2, 9)], OWN, 0.0)
    assert it.due(1.0) == [address(HIGH, port=1)]


def test_oneself_is_never_dialled() -> None:
    it = plan()
    it.add(address(MIDDLE), Kind.PERMANENT)
    it.learn(MIDDLE, [address(MIDDLE)], OWN, 0.0)
    assert it.due(1e6) == []


PUBLIC_OWN = [address(MIDDLE, "/ip4/203.0.114.9")]
PRIVATE_OWN = [address(MIDDLE, "/ip4/192.168.1.2")]


@pytest.mark.parametrize(
    ("host", "own", "want"),
    [
        ("/ip4/8.8.8.8", PUBLIC_OWN, True),
        ("/ip6/2606:4700::1111", PUBLIC_OWN, True),
        ("/dns/node.example.org", PUBLIC_OWN, True),
        ("/ip4/127.0.0.1", OWN, True),
        ("/ip4/127.0.0.1", PUBLIC_OWN, False),
        ("/ip4/127.0.0.1", PRIVATE_OWN, False),
        ("/ip6/::1", PUBLIC_OWN, False),
        ("/ip6/::ffff:127.0.0.1", PUBLIC_OWN, False),
        ("/ip4/192.168.1.1", PUBLIC_OWN, False),
        ("/ip4/192.168.1.1", PRIVATE_OWN, True),
        ("/ip4/10.0.0.1", OWN, True),
        ("/ip4/169.254.169.254", OWN, False),
        ("/ip4/0.0.0.0", OWN, False),
        ("/ip4/224.0.0.1", OWN, False),
        ("/dns/localhost", OWN, False),
        ("/dns/printer.local", OWN, False),
        ("/dns/router", OWN, False),
    ],
)
def test_where_a_stranger_may_send_us(host: str, own: list[str], want: bool) -> None:
    assert may_be_dialled(address(HIGH, host), HIGH, own) is want


def test_an_address_of_another_peer_is_not_taken_from_an_announcement() -> None:
    assert not may_be_dialled(address(LOW), HIGH, OWN)


@given(st.text(max_size=200))
def test_any_text_is_just_not_an_address(text: str) -> None:
    assert not may_be_dialled(text, HIGH, OWN)
    it = plan()
    it.learn(HIGH, [text], OWN, 0.0)
    assert len(it) == 0


async def test_three_agents_find_each_other_and_come_back_after_a_partition(
    autojump_clock: MockClock,
) -> None:
    network = MemoryNetwork(random.Random(1), latency_s=0.01)
    keys = [PeerKey.generate() for _ in range(3)]
    async with (
        network.transport(keys[0]) as first,
        network.transport(keys[1]) as second,
        network.transport(keys[2]) as third,
        trio.open_nursery() as nursery,
    ):
        transports = [first, second, third]
        for transport in transports:
            it = DialPlan(transport.peer, random.Random(2))
            for other in transports:
                it.learn(other.peer, other.addresses, transport.addresses, 0.0)
            bootstrap = [] if transport is first else first.addresses
            nursery.start_soon(partial(run_discovery, transport, it, bootstrap=bootstrap))
        await trio.sleep(5)
        assert all(len(transport.connected()) == 2 for transport in transports)
        assert sum(transport.counts.dials for transport in transports) <= 5
        network.partition([keys[0].peer], [keys[1].peer, keys[2].peer])
        await trio.sleep(100)
        assert first.connected() == []
        network.heal()
        await trio.sleep(35)
        assert all(len(transport.connected()) == 2 for transport in transports)
        nursery.cancel_scope.cancel()


async def test_who_answered_is_remembered_and_dialled_in_the_next_run(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    network = MemoryNetwork(random.Random(1))
    mine, other = PeerKey.generate(), PeerKey.generate()
    async with network.transport(other) as there:
        for bootstrap in ([there.addresses[0]], []):
            async with network.transport(mine) as here, trio.open_nursery() as nursery:
                it = DialPlan(mine.peer, random.Random(2))
                nursery.start_soon(partial(run_discovery, here, it, bootstrap=bootstrap, remembered=path))
                await here.events().receive()
                assert here.connected() == [other.peer]
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            assert load_remembered(path) == there.addresses
            assert path.stat().st_mode & 0o777 == 0o600
            await there.events().receive()
            await there.events().receive()


async def test_a_bootstrap_that_is_no_address_is_said_at_once() -> None:
    async with MemoryNetwork(random.Random(1)).transport(PeerKey.generate()) as transport:
        with pytest.raises(Unreachable, match="want"):
            await run_discovery(transport, plan(), bootstrap=["localhost:4001"])


async def test_a_bootstrap_out_of_reach_is_said_once_and_remembered(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    network = MemoryNetwork(random.Random(1))
    async with network.transport(PeerKey.generate()) as transport, trio.open_nursery() as nursery:
        it = DialPlan(transport.peer, random.Random(2))
        away = address(HIGH)
        nursery.start_soon(partial(run_discovery, transport, it, bootstrap=[away]))
        await trio.sleep(100)
        said = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert [record.getMessage().startswith(f"cannot reach {away}: ") for record in said] == [True]
        assert it.troubles[away]
        it.succeeded(away, trio.current_time())
        assert it.troubles == {}
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"addresses": 3}', b'{"addresses": [1, "x", null]}', b"[" * 60_000, b" " * 70_000],
)
def test_a_damaged_file_of_peers_is_ignored(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "peers.json"
    path.write_bytes(content)
    assert load_remembered(path) == []
    assert load_remembered(tmp_path / "missing") == []


def test_saving_replaces_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    save_remembered(path, [address(LOW)])
    save_remembered(path, [address(HIGH)] * 1000)
    assert len(json.loads(path.read_text())["addresses"]) == 256
    assert [file.name for file in tmp_path.iterdir()] == ["peers.json"]


async def test_an_address_that_breaks_the_dialler_costs_one_dial(caplog: pytest.LogCaptureFixture) -> None:
    class Breaking:
        async def dial(self, address: str) -> None:
            raise UnicodeError("a bug")

    transport: Any = Breaking()
    keeper: Any = None
    plan = DialPlan(PeerId(bytes(32)), random.Random(1))
    address = f"/ip4/127.0.0.1/tcp/1/p2p/{format_peer(PeerId(bytes([7]) * 32))}"
    plan.add(address, Kind.PERMANENT)
    assert plan.due(trio.current_time()) == [address]
    await discovery._dial(transport, plan, address, keeper)
    assert plan.troubles[address] == "a bug"
    assert plan.due(trio.current_time() + 60) == [address]
