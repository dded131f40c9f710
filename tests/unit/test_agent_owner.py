"""The owner's hand on whole agents over the in-memory network: pauses, lists, hours, a card in use, the file."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from coppermesh.agent import device_gate
from coppermesh.agent import owner as owner_module
from coppermesh.agent.config import Config, Loaded
from coppermesh.agent.config_file import ConfigFile
from coppermesh.agent.hours import parse_window
from coppermesh.agent.ledger import LeaseAgreed
from coppermesh.agent.local_messages import JsonBody
from coppermesh.agent.node import Node
from coppermesh.agent.node_views import NodeViews
from coppermesh.agent.policy_case import decline
from coppermesh.agent.sharing import Sharing
from coppermesh.exec.conditions import Conditions, DeviceProcess
from coppermesh.p2p import announcements
from coppermesh.p2p.encoding import encode
from coppermesh.p2p.envelope import open_record
from coppermesh.p2p.ids import Digest, format_peer
from coppermesh.p2p.records import Announcement

_spec = importlib.util.spec_from_file_location("agent_world", Path(__file__).with_name("test_agent_world.py"))
assert _spec is not None
assert _spec.loader is not None
world_module = importlib.util.module_from_spec(_spec)
sys.modules["agent_world"] = world_module
_spec.loader.exec_module(world_module)
events_of, numbers, submit = world_module.events_of, world_module.numbers, world_module.submit
until, until_found = world_module.until, world_module.until_found

FREE = Conditions(processes=())
GAME = DeviceProcess(1234, "game", "x", "other", graphics=True, memory_bytes=4 << 30)
GPU = replace(
    world_module.CPU, device="gpu0", kind="cuda", uuid="GPU-1", compute_capability="9.0", total_bytes=1 << 30
)


class ScriptedReader:
    """Shows what a test says is going on."""

    def __init__(self) -> None:
        self.now = FREE
        self.looks = 0

    def read(self) -> Conditions:
        self.looks += 1
        return self.now

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(owner_module, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(owner_module, "FILE_SECONDS", 0.02)
    monkeypatch.setattr(
        announcements, "MIN_INTERVAL_US", 50_000
    )  # 10 s: that each change is heard of at once


async def call(node: Node, method: str, **arguments: Any) -> Any:
    """What a local client gets."""
    answer = await NodeViews(node).methods()[method](encode(JsonBody(json.dumps(arguments))))
    assert isinstance(answer, JsonBody)
    return json.loads(answer.text)


def announced(node: Node) -> Announcement:
    newest = node.announcer.newest
    assert newest is not None
    return open_record(Announcement, newest).record


async def outcome(node: Node, **options: Any) -> tuple[str, dict[str, Any]]:
    """How a job ended: the kind of its last event, and what that says."""
    (*_, last) = await events_of(node, await submit(node, numbers(1.0), **options))
    return last.kind, json.loads(last.text)


async def pair(world: Any, sharing: Sharing, **options: Any) -> tuple[Node, Node]:
    provider = await world.add("provider", provide=True, sharing=sharing, **options)
    requester = await world.add("requester", provide=False, bootstrap=provider)
    await until_found(requester, 1)
    return provider, requester


async def test_who_is_denied_gets_the_reason_and_others_are_served(tmp_path):
    async with world_module.open_world(tmp_path) as world:
        provider, requester = await pair(world, Sharing())
        friend = await world.add("friend", provide=False, bootstrap=provider)
        await until_found(friend, 1)
        offers = {offer.device: offer for offer in provider.provider.offers}
        provider.provider.adopt(offers, frozenset(), Sharing(deny=(requester.key.peer,)))
        kind, said = await outcome(requester, deadline_s=2.5)
        assert kind == "failed"
        assert "denied: the owner of this provider takes no work from this requester" in said["sentence"]
        job = next(iter(requester.requester.jobs._jobs))
        assert "takes no work from this requester" in await world_module.story_of(requester, job)
        assert (await outcome(friend))[0] == "finished"
        provider.provider.adopt(offers, frozenset(), Sharing(allow=(requester.key.peer,)))
        assert (await outcome(requester))[0] == "finished"
        kind, said = await outcome(friend, deadline_s=2.5)
        assert (kind, "not-listed" in said["sentence"]) == ("failed", True)


async def test_hours_begin_without_a_restart(tmp_path, monkeypatch):
    clock = {"us": 1_700_000_000_000_000}  # 22:13 UTC
    monkeypatch.setattr("coppermesh.agent.node.now_us", lambda: clock["us"])
    night = Sharing(hours=(parse_window("22:30-06:00"),), time_zone="UTC")
    async with world_module.open_world(tmp_path) as world:
        provider = await world.add("provider", provide=True, sharing=night)
        assert announced(provider).paused
        (reason,) = (await call(provider, "status"))["not_lending"]
        assert reason == {"device": None, "code": "out-of-hours", "sentence": "out of hours until 22:30"}
        before = announced(provider).sequence
        clock["us"] += 17 * 60 * 1_000_000
        await until(lambda: not announced(provider).paused)
        assert announced(provider).sequence > before
        assert (await call(provider, "status"))["not_lending"] == []


async def test_pausing_lets_what_was_accepted_end_and_takes_no_more(tmp_path):
    started, release = trio.Event(), trio.Event()

    async def slow(inputs):
        started.set()
        await release.wait()
        return world_module.add_one(inputs)

    async with world_module.open_world(tmp_path) as world:
        provider, requester = await pair(world, Sharing(), script=slow)
        job = await submit(requester, numbers(1.0), wall_limit_s=10.0)
        await started.wait()
        said = await call(provider, "pause")
        assert said["sentence"] == "paused: no new leases or tasks; 1 accepted task to the end"
        assert provider.home.paused_path.exists()
        await until(lambda: announced(provider).paused)
        assert provider.provider.leases
        release.set()
        assert (await events_of(requester, job))[-1].kind == "finished"
        await until(lambda: not provider.provider.leases)
        kind, _ = await outcome(requester, deadline_s=0.5)
        assert kind == "failed"
        assert (await call(provider, "resume"))["sentence"] == "resumed: taking leases"
        assert not provider.home.paused_path.exists()
        assert (await outcome(requester))[0] == "finished"


async def test_a_pause_outlives_the_agent(tmp_path):
    async with world_module.open_world(tmp_path) as world:
        provider = await world.add("provider", provide=True)
        await call(provider, "pause")
    async with world_module.open_world(tmp_path) as world:
        provider = await world.add("provider", provide=True)
        assert announced(provider).paused
        (reason,) = (await call(provider, "status"))["not_lending"]
        assert "coppermesh resume" in reason["sentence"]


async def test_pause_now_ends_leases_and_their_tasks_run_elsewhere_unpaid(tmp_path):
    async with world_module.open_world(tmp_path) as world:
        first = await world.add("first", provide=True, script=None)
        requester = await world.add("requester", provide=False, bootstrap=first)
        await until_found(requester, 1)
        job = await submit(requester, numbers(1.0), wall_limit_s=10.0)
        await until(lambda: first.provider.tasks_accepted)
        second = await world.add("second", provide=True, bootstrap=first)
        await until_found(requester, 2)
        assert (await call(first, "pause", now=True))["sentence"] == "paused: no new leases; 1 lease ended"
        done = [event for event in await events_of(requester, job) if event.kind == "task"]
        assert json.loads(done[0].text)["receipt"]["provider"] == format_peer(second.key.peer)
        assert "ended-paused: the owner of the provider has paused it" in await world_module.story_of(
            requester, job
        )
        assert not await requester.ledger.evidence()
        balances = {balance.peer: balance for balance in await requester.ledger.balances()}
        assert first.key.peer not in balances or balances[first.key.peer].owed_by_me == 0


async def test_a_pause_while_a_lease_is_recorded_ends_it_before_a_task_comes(tmp_path, monkeypatch):
    async with world_module.open_world(tmp_path) as world:
        first = await world.add("first", provide=True)
        requester = await world.add("requester", provide=False, bootstrap=first)
        await until_found(requester, 1)
        commit = first.ledger.commit

        async def pausing(*entries: Any) -> None:
            if any(isinstance(entry, LeaseAgreed) for entry in entries):
                first.provider.paused = True
            await commit(*entries)

        monkeypatch.setattr(first.provider._ledger, "commit", pausing)
        job = await submit(requester, numbers(1.0), wall_limit_s=10.0)
        await until(lambda: first.provider.paused and not first.provider.leases)
        second = await world.add("second", provide=True, bootstrap=first)
        done = [event for event in await events_of(requester, job) if event.kind == "task"]
        assert json.loads(done[0].text)["receipt"]["provider"] == format_peer(second.key.peer)
        assert await first.ledger.receipts() == []


async def test_the_time_of_a_task_that_is_ended_at_its_quota_is_counted_once(tmp_path):
    counted = []
    async with world_module.open_world(tmp_path) as world:
        first = await world.add("first", provide=True)
        quotas = SimpleNamespace(
            against=lambda *_: decline("quota", "used up"), stopped=lambda *what: counted.append(what)
        )
        first.provider.hold_to(quotas)
        record = SimpleNamespace(device_kind="cpu", device="none")
        server = SimpleNamespace(
            requester=first.key.peer,
            lease=SimpleNamespace(record=record),
            is_ending=False,
            running_us=lambda _: 5,
            drain=lambda _: None,
            tasks_accepted=1,
        )
        server.stop = lambda *_: setattr(server, "is_ending", True)
        first.provider.leases[Digest(bytes(32))] = server
        first.provider.tidy()
        first.provider.tidy()  # its worker is not gone yet
        del first.provider.leases[Digest(bytes(32))]
    assert counted == [(first.key.peer, "cpu", 5)]


async def test_a_card_that_its_owner_needs_is_given_back_and_lent_again(tmp_path, monkeypatch):
    monkeypatch.setattr(device_gate, "CLEAR_US", 100_000)
    reader = ScriptedReader()
    async with world_module.open_world(tmp_path) as world:
        provider, requester = await pair(
            world, Sharing(), device=GPU, script=None, conditions=lambda kind, uuid: reader
        )
        assert reader.looks, "looked at before it was offered"
        job = await submit(requester, numbers(1.0), device="cuda", wall_limit_s=10.0, deadline_s=30.0)
        await until(lambda: provider.provider.tasks_accepted)
        reader.now = Conditions(processes=(GAME,))
        await until(lambda: not provider.provider.leases)
        (reason,) = (await call(provider, "status"))["not_lending"]
        assert reason["sentence"] == "gpu0 is busy with pid 1234 (game) of user x"
        await until(lambda: announced(provider).busy_slots == 1)
        assert not announced(provider).paused, "who asks is told why"
        told = await world_module.story_of(requester, job)
        assert "gpu0 is in use by its owner's own programs" in told
        assert "1234" not in told
        friend = await world.add("friend", provide=False, bootstrap=provider)
        await until_found(friend, 1)
        kind, said = await outcome(friend, device="cuda", deadline_s=2.5)
        assert (kind, "device-busy: gpu0 is in use" in said["sentence"]) == ("failed", True)
        reader.now = FREE
        await until(lambda: announced(provider).busy_slots == 0)


async def test_a_card_at_its_limit_finishes_its_tasks_and_opens_when_it_is_cooler(tmp_path):
    reader = ScriptedReader()
    async with world_module.open_world(tmp_path) as world:
        wishes = Sharing(max_temperature=80)
        provider, requester = await pair(world, wishes, device=GPU, conditions=lambda kind, uuid: reader)
        assert (await outcome(requester, device="cuda"))[0] == "finished"
        reader.now = Conditions(processes=(), temperature_c=84)
        await until(lambda: provider.provider.not_lending() and not provider.provider.leases)
        await until(lambda: announced(provider).busy_slots == 1)
        kind, said = await outcome(requester, device="cuda", deadline_s=2.5)
        assert (kind, "too-hot: gpu0 is at 84 C" in said["sentence"]) == ("failed", True), said
        reader.now = Conditions(processes=(), temperature_c=75)
        assert (await outcome(requester, device="cuda"))[0] == "finished"


async def test_the_file_is_followed_and_what_is_wrong_in_it_is_told(tmp_path):
    path = tmp_path / "provider" / "config.toml"
    path.parent.mkdir(mode=0o700)
    path.write_text('mesh = "test"\n')
    async with world_module.open_world(tmp_path) as world:
        provider, requester = await pair(world, Sharing(), file=ConfigFile(path, {"slots": 2}))
        assert (await outcome(requester))[0] == "finished"
        path.write_text('mesh = "test"\nrate = 123\nslots = 5\n[sharing]\npaused = true\n')
        await until(lambda: announced(provider).paused)
        assert (announced(provider).devices[0].rate, announced(provider).devices[0].slots) == (123, 2)
        path.write_text("mesh = \n")
        await until(lambda: provider.machine.owner.settings.error)
        status = await call(provider, "status")
        assert "line 1" in status["settings_error"]
        assert announced(provider).paused, "the settings before stay"
        path.write_text('mesh = "other"\n[sharing]\nmemory_share = 0.5\n')
        await until(lambda: not announced(provider).paused)
        status = await call(provider, "status")
        assert (status["settings_error"], status["settings_waiting"]) == (None, ["mesh"])
        assert announced(provider).devices[0].memory_bytes == 1 << 29
        shown = await call(provider, "config")
        assert shown["settings"]["slots"] == {"value": 2, "from": "command line"}
        assert shown["settings"]["sharing.memory_share"] == {"value": 0.5, "from": "line 3"}
        assert shown["settings"]["mesh"]["value"] == "test", "what holds, not what is written"
        assert (await outcome(requester))[0] == "finished"


async def test_fewer_slots_leave_running_leases_alone(tmp_path):
    async with world_module.open_world(tmp_path) as world:
        provider, requester = await pair(world, Sharing(), script=None, slots=2)
        jobs = [await submit(requester, numbers(float(n)), wall_limit_s=5.0 + n) for n in range(2)]
        await until(lambda: len(provider.provider.leases) == 2)
        assert len(jobs) == 2
        one = replace(provider.config, slots=1)
        provider.machine.owner._adopt(one)
        provider.provider.reservations.validate()
        assert provider.provider.reservations.free("cpu") == 0
        assert len(provider.provider.leases) == 2
        for job in jobs:
            requester.requester.cancel(job)


def test_settings_given_as_they_are_have_no_origin():
    assert Loaded(Config(), {}).origins == {}
