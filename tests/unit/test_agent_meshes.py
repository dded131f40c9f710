"""Agents in an open and a private mesh at once, in one process over the in-memory network."""

import importlib.util
import json
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from coppermesh.agent import mesh_keeper, private_mesh, screens
from coppermesh.agent.clock import now_us
from coppermesh.agent.config import Config, Loaded
from coppermesh.agent.home import Home
from coppermesh.agent.local_messages import JsonBody
from coppermesh.agent.mesh_join import redeem
from coppermesh.agent.mesh_keeper import MeshKeeper
from coppermesh.agent.mesh_making import adopt_admission, create_private_mesh
from coppermesh.agent.mesh_set import MeshSet, default_config
from coppermesh.agent.mesh_state import StateError, private_meshes
from coppermesh.agent.mesh_terms import parse_quota
from coppermesh.agent.mesh_views import MeshViews
from coppermesh.agent.node import Node, Parts, open_node
from coppermesh.agent.private_mesh import Terms
from coppermesh.p2p import announcements
from coppermesh.p2p.certificates import DAY_US
from coppermesh.p2p.encoding import encode
from coppermesh.p2p.errors import Refused
from coppermesh.p2p.invitation import read_invitation
from coppermesh.p2p.memory_transport import MemoryNetwork
from coppermesh.p2p.signing import PeerKey

_path = Path(__file__).with_name("test_agent_world.py")
_spec = importlib.util.spec_from_file_location("agent_world_of_meshes", _path)
assert _spec is not None
assert _spec.loader is not None
world: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(world)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(announcements, "MIN_INTERVAL_US", 50_000)  # 10 s: each change is heard of at once


class Lab:
    """Machines on one network, with a second one for doors."""

    def __init__(self, base: Path, stack: AsyncExitStack) -> None:
        self._base, self._stack = base, stack
        self._network = MemoryNetwork(random.Random(3))
        self._doors = MemoryNetwork(random.Random(4))
        self.listens: list[str] = []
        self.calls = 0
        self.hang_on: set[int] = set()

    async def script(self, inputs):
        self.calls += 1
        if self.calls in self.hang_on:
            await trio.sleep_forever()
        return world.add_one(inputs)

    async def add(self, name: str, *, provide: bool, bootstrap: Node | None = None, **settings) -> Node:
        @asynccontextmanager
        async def transport(key, mesh, listen, swarm_key=None, gate=None):
            self.listens.append(listen)
            async with self._network.transport(key, swarm_key=swarm_key, gate=gate) as attached:
                yield attached

        @asynccontextmanager
        async def door(key, mesh, listen):
            async with self._doors.transport(key) as attached:
                yield attached

        @asynccontextmanager
        async def supervisor(info, scratch):
            yield world.ScriptedSupervisor(self.script)

        parts = Parts(transport=transport, door=door, supervisor=supervisor, probe=lambda: [world.CPU])
        home = self.home(name)
        known = () if bootstrap is None else tuple(bootstrap.transport.addresses)
        config = Config(**{"mesh": "test", "provide": provide, "bootstrap": known, **settings})
        loaded = Loaded(config, dict.fromkeys(settings, "command line"))
        return await self._stack.enter_async_context(open_node(home, loaded, parts))

    def home(self, name: str) -> Home:
        home = Home(self._base / name)
        home.prepare()
        return home

    async def create(self, node: Node) -> Node:
        private = create_private_mesh(node.home, "lab", "maker", "", "", now_us())
        await node.meshes.open_private(private.state)
        return node.meshes.find("lab")

    async def join(self, host: Node, node: Node, **terms) -> Node:
        assert host.keeper is not None
        text = await host.keeper.invite(Terms(**{"expires_us": now_us() + DAY_US, **terms}))
        invitation = read_invitation(text)
        key = PeerKey.load_or_create(node.home.key_path(invitation.mesh))
        async with self._doors.transport(key) as visitor:
            reply = await redeem(visitor, invitation, key, node.home.path.name)
        private = adopt_admission(node.home, invitation, key, reply, "", "", now_us())
        await node.meshes.open_private(private.state)
        return node.meshes.find("lab")


@asynccontextmanager
async def laboratory(base: Path) -> AsyncIterator[Lab]:
    async with AsyncExitStack() as stack:
        yield Lab(base, stack)


async def test_a_job_inside_stays_inside(tmp_path):
    async with laboratory(tmp_path) as lab:
        alice = await lab.add("alice", provide=True)
        bob = await lab.add("bob", provide=False)
        eve = await lab.add("eve", provide=True, bootstrap=alice)
        at_alice = await lab.create(alice)
        at_bob = await lab.join(at_alice, bob)
        assert at_bob.key.peer != bob.key.peer
        await world.until_found(at_bob, 1)
        job = await world.submit(at_bob, world.numbers(1, 2))
        assert (await world.events_of(at_bob, job))[-1].kind == "finished"
        assert len(await at_bob.ledger.receipts()) == 1
        assert await bob.ledger.receipts() == []
        assert eve.key.peer not in at_bob.transport.connected()
        assert {node.config.mesh for node in alice.meshes.nodes} == {"lab", "test"}
        assert alice.meshes.nodes[0] is at_alice  # the private one comes first


async def test_an_order_of_the_lab_has_an_open_lease_give_way(tmp_path):
    async with laboratory(tmp_path) as lab:
        alice = await lab.add("alice", provide=True)
        bob = await lab.add("bob", provide=False)
        eve = await lab.add("eve", provide=False, bootstrap=alice)
        at_bob = await lab.join(await lab.create(alice), bob)
        await world.until_found(eve, 1)
        await world.until_found(at_bob, 1)
        lab.hang_on = {1}
        hanging = await world.submit(eve, world.numbers(1))
        await world.until(lambda: alice.provider.leases and lab.calls)
        job = await world.submit(at_bob, world.numbers(2), wall_limit_s=5.0)
        assert (await world.events_of(at_bob, job))[-1].kind == "finished"
        assert "other-mesh" in await world.story_of(eve, hanging)
        # The slot is one and the same for both meshes.
        provider = alice.meshes.find("lab").provider
        assert provider is not None
        assert provider.reservations is alice.provider.reservations


async def test_the_open_mesh_does_not_push_out_the_lab(tmp_path):
    async with laboratory(tmp_path) as lab:
        alice = await lab.add("alice", provide=True)
        bob = await lab.add("bob", provide=False)
        eve = await lab.add("eve", provide=False, bootstrap=alice)
        at_alice = await lab.create(alice)
        at_bob = await lab.join(at_alice, bob)
        await world.until_found(eve, 1)
        await world.until_found(at_bob, 1)
        lab.hang_on = {1}
        await world.submit(at_bob, world.numbers(1), wall_limit_s=30.0)
        await world.until(lambda: lab.calls)
        job = await world.submit(eve, world.numbers(2), deadline_s=3.0)
        assert (await world.events_of(eve, job))[-1].kind == "failed"
        assert at_alice.provider.leases


async def test_a_member_that_is_revoked_is_cut_off_and_its_requests_with_it(tmp_path):
    async with laboratory(tmp_path) as lab:
        alice = await lab.add("alice", provide=True)
        bob = await lab.add("bob", provide=True)
        carol = await lab.add("carol", provide=True)
        at_alice = await lab.create(alice)
        at_bob, at_carol = await lab.join(at_alice, bob), await lab.join(at_alice, carol)
        await world.until(lambda: len(at_carol.hub.peers()) == len(at_bob.hub.peers()) == 2)
        with trio.fail_after(10):  # as long as it may take, from the command to the last peer
            await at_alice.keeper.revoke(at_bob.key.peer, 0)
            await world.until(lambda: not at_bob.transport.connected())
        await world.until(lambda: at_carol.keeper.private.state.epoch == 1)
        assert at_carol.transport.connected() == [at_alice.key.peer]
        await world.until(lambda: "revoked" in (at_bob.keeper._look_at_oneself() or at_bob.keeper.trouble))
        assert not at_bob.transport.connected()
        # It gossips on: who joins later knows of it, too.
        dave = await lab.join(at_alice, await lab.add("dave", provide=False))
        assert dave.keeper.private.book.is_revoked(at_bob.key.peer)


async def test_roles_and_quotas_hold_at_the_provider(tmp_path):
    async with laboratory(tmp_path) as lab:
        alice = await lab.add("alice", provide=True)
        bob = await lab.add("bob", provide=True)
        at_alice = await lab.create(alice)
        at_bob = await lab.join(at_alice, bob, role="submit-only", quota=parse_quota("1cpu-hours/day"))
        assert at_bob.provider is None
        await world.until_found(at_bob, 1)
        job = await world.submit(at_bob, world.numbers(1))
        assert (await world.events_of(at_bob, job))[-1].kind == "finished"
        at_alice.keeper.quotas.usage.add_own(at_bob.key.peer, "cpu", now_us(), 3_600_000_000)
        job = await world.submit(at_bob, world.numbers(2), deadline_s=2.0)
        assert (await world.events_of(at_bob, job))[-1].kind == "failed"
        assert "quota on this mesh is used up" in await world.story_of(at_bob, job)


async def test_a_mesh_is_left_while_the_agent_runs_and_the_others_go_on(tmp_path):
    async with laboratory(tmp_path) as lab:
        alice = await lab.add("alice", provide=True)
        bob = await lab.add("bob", provide=False, bootstrap=alice)
        at_alice = await lab.create(alice)
        at_bob = await lab.join(at_alice, bob)
        await world.until(lambda: at_bob.hub.peers())
        await at_bob.keeper.leave()
        await world.until(lambda: at_alice.keeper.private.book.is_revoked(at_bob.key.peer))
        await bob.meshes.close_private(at_bob.mesh)
        at_bob.keeper.private.forget()
        assert private_meshes(bob.home) == []
        with pytest.raises(Refused, match="serves no mesh 'lab'"):
            bob.meshes.find("lab")
        await world.until_found(bob, 1)
        job = await world.submit(bob, world.numbers(1))
        assert (await world.events_of(bob, job))[-1].kind == "finished"


async def test_certificates_renew_by_themselves_while_an_admin_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(private_mesh, "RENEW_PART", 1)  # in the first third already
    monkeypatch.setattr(private_mesh, "RENEWAL_GAIN_US", 1)
    monkeypatch.setattr(mesh_keeper, "RENEW_SECONDS", 0.05)
    async with laboratory(tmp_path) as lab:
        alice = await lab.add("alice", provide=True)
        bob = await lab.add("bob", provide=False)
        at_bob = await lab.join(await lab.create(alice), bob)
        first = at_bob.keeper.private.member(now_us()).expires_us
        await world.until(lambda: at_bob.keeper.private.member(now_us()).expires_us > first)
        assert at_bob.keeper.private.certificate.role == "member"
        assert at_bob.keeper.private.state.chain == private_meshes(bob.home)[0].chain


async def test_an_expired_member_is_cut_off_by_the_sweep(tmp_path):
    async with laboratory(tmp_path) as lab:
        alice = await lab.add("alice", provide=True)
        bob = await lab.add("bob", provide=False)
        at_alice = await lab.create(alice)
        at_bob = await lab.join(at_alice, bob)
        await world.until(lambda: at_alice.hub.peers())
        at_alice.keeper._now_us = lambda: now_us() + 40 * DAY_US
        await world.until(lambda: not at_alice.transport.connected())
        assert at_alice.keeper.private.book.member(at_bob.key.peer, now_us()) is None


async def test_nobody_stays_at_the_door_and_a_full_disk_ends_no_mesh(tmp_path, monkeypatch):
    monkeypatch.setattr(mesh_keeper, "DOOR_SECONDS", 0.05)
    monkeypatch.setattr(mesh_keeper, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(private_mesh, "RENEW_PART", 1)
    async with laboratory(tmp_path) as lab:
        alice = await lab.add("alice", provide=False)
        at_alice = await lab.create(alice)
        tries = []

        def full(_now):
            tries.append(1)
            raise StateError("the disk is full")

        monkeypatch.setattr(at_alice.keeper.private, "renew_by_root", full)
        async with lab._doors.transport(PeerKey.generate()) as idler:
            await idler.dial(at_alice.keeper._door.addresses[0])
            await world.until(lambda: not idler.connected() and len(tries) > 1)
        assert alice.meshes.find("lab") is at_alice


async def test_a_mesh_that_breaks_ends_alone(tmp_path):
    home = Home(tmp_path / "alice")
    home.prepare()
    state = create_private_mesh(home, "lab", "alice", "", "", now_us()).state
    begins = trio.Event()

    @asynccontextmanager
    async def opened(*_plan):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(breaks)
            yield

    async def breaks():
        await begins.wait()
        raise KeyError("a bug")

    async with trio.open_nursery() as nursery:
        meshes = MeshSet(Config(), opened, nursery)
        await meshes.open_private(state)
        assert meshes.troubles == {}
        begins.set()
        await world.until(lambda: meshes.troubles)
        assert meshes.troubles[state.mesh] == "'a bug'"


async def call(node: Node, method: str) -> Any:
    body = encode(JsonBody("{}"))
    reply: Any = await MeshViews(node.meshes, node.machine).door_to("").methods[method](body)
    return json.loads(reply.text)


async def test_a_private_default_mesh_listens_where_it_was_told_and_no_open_mesh_is_served(tmp_path):
    async with laboratory(tmp_path) as lab:
        create_private_mesh(lab.home("alice"), "lab", "alice", "", "", now_us())
        alice = await lab.add("alice", provide=False, mesh="lab", listen="/ip4/127.0.0.1/tcp/4567")
        assert alice.keeper is not None
        assert lab.listens == ["/ip4/127.0.0.1/tcp/4567"]
        rows = {row["mesh"]: row for row in (await call(alice, "mesh-list"))["meshes"]}
        assert rows["lab"]["default"]
        assert not rows["open"]["served"]
        assert "default mesh is 'lab'" in rows["open"]["trouble"]
        assert (await call(alice, "status"))["mesh_doubt"] is None


async def test_a_mesh_that_is_not_private_here_is_said_to_be_open(tmp_path, caplog):
    async with laboratory(tmp_path) as lab:
        alice = await lab.add("alice", provide=False, mesh="nolab")
        said = "no private mesh of this home is called 'nolab': this is an open mesh of that name"
        assert said in caplog.text
        facts = await call(alice, "status")
        assert said in facts["mesh_doubt"]
        [row] = (await call(alice, "mesh-list"))["meshes"]
        assert said in row["trouble"]
        assert any(said in line for line in screens.status(facts))


def test_where_a_default_mesh_listens(tmp_path):
    home = Home(tmp_path / "alice")
    home.prepare()
    state = create_private_mesh(home, "lab", "alice", "/ip4/127.0.0.1/tcp/1", "", now_us()).state
    config = Config(listen="/ip4/127.0.0.1/tcp/2")
    assert default_config(config, {"listen": "command line"}, state).listen.endswith("/2")
    assert default_config(config, {"listen": "line 3"}, state).listen.endswith("/1")
    nowhere = msgspec.structs.replace(state, listen="")
    assert default_config(config, {"listen": "line 3"}, nowhere).listen.endswith("/2")
    assert default_config(config, {}, nowhere).listen.endswith("/0")


def test_a_private_default_mesh_dials_the_peers_it_was_told_to(tmp_path):
    home = Home(tmp_path / "alice")
    home.prepare()
    state = create_private_mesh(home, "lab", "alice", "", "", now_us()).state
    state = msgspec.structs.replace(state, addresses=["door's"])
    config = Config(bootstrap=("told",))
    assert default_config(config, {"bootstrap": "command line"}, state).bootstrap == ("told", "door's")
    assert default_config(config, {"bootstrap": "line 2"}, state).bootstrap == ("told", "door's")
    # Those that come with coppermesh for the open mesh are none of a lab's.
    assert default_config(config, {}, state).bootstrap == ("door's",)


async def test_a_new_swarm_key_never_overtakes_the_revocation(tmp_path, monkeypatch):
    """Carol hears the key directly and no gossip at all: she must not hand it on to Bob, who was revoked."""
    monkeypatch.setattr(MeshKeeper, "_hear_revocation", lambda *_: False)
    async with laboratory(tmp_path) as lab:
        alice = await lab.add("alice", provide=False)
        at_alice = await lab.create(alice)
        at_bob = await lab.join(at_alice, await lab.add("bob", provide=True))
        at_carol = await lab.join(at_alice, await lab.add("carol", provide=True))
        others = (at_alice, at_bob, at_carol)
        await world.until(lambda: all(len(node.hub.peers()) == 2 for node in others))
        old = at_bob.keeper.private.state.swarm_key
        await at_alice.keeper.revoke(at_bob.key.peer, 0)
        await world.until(lambda: at_carol.keeper.private.state.swarm_key != old)
        await world.until(lambda: not at_bob.hub.peers())
        assert at_carol.keeper.private.book.is_revoked(at_bob.key.peer)
        assert at_bob.keeper.private.state.swarm_key == old
