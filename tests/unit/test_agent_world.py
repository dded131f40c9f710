"""Whole agents in one process, over the in-memory network: honest ones, and bad actors as first-class nodes.

Ledger, store, control channels, negotiation and receipts are the real ones. Only the wire is in memory, and the worker
is scripted where a test is about the protocol and not about execution.
"""

import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

import coppermesh.exec.xp as xp  # noqa: PLR0402 - a namespace module, as users import it
from coppermesh.agent import node_views, result_outbox, task_driver
from coppermesh.agent import requester as requester_module
from coppermesh.agent.config import Config, Loaded
from coppermesh.agent.config_file import ConfigFile
from coppermesh.agent.dispatch import Dispatcher
from coppermesh.agent.dispatch_state import DispatchLimits
from coppermesh.agent.home import Home
from coppermesh.agent.job_options import JobOptions
from coppermesh.agent.jobs import JobState
from coppermesh.agent.ledger_reader import read_ledger
from coppermesh.agent.local_messages import (
    Blob,
    JobEvent,
    JsonBody,
    SubmitCall,
    TaskSpec,
    WaitAnswer,
    WaitCall,
)
from coppermesh.agent.matching import Requirement
from coppermesh.agent.node import Node, Parts, open_node
from coppermesh.agent.node_views import NodeViews
from coppermesh.agent.owner import OpenReader
from coppermesh.agent.quote_text import quote_lines
from coppermesh.agent.result_outbox import PendingResult
from coppermesh.exec.conditions import open_conditions
from coppermesh.exec.device import DeviceInfo
from coppermesh.exec.recorder import Array, trace
from coppermesh.exec.supervisor import InputBuffer, OutputBuffer, RunOutcome, WorkerLimits
from coppermesh.p2p.blobs import digest_of
from coppermesh.p2p.encoding import decode, encode
from coppermesh.p2p.envelope import open_record, sign_record
from coppermesh.p2p.errors import Refused, RemoteProtocolError
from coppermesh.p2p.ids import format_peer, short_peer
from coppermesh.p2p.memory_transport import MemoryNetwork
from coppermesh.p2p.messages import BlobInfo
from coppermesh.p2p.records import Receipt
from coppermesh.p2p.signing import PeerKey

CPU = DeviceInfo(
    device="cpu",
    kind="cpu",
    name="scripted processor",
    memory_bytes=1 << 30,
    total_bytes=None,
    compute_capability=None,
    uuid=None,
    driver=None,
    meter="none",
    features=("array-programs",),
    cores=2,
)
Script = Callable[[Sequence[InputBuffer]], bytes | Awaitable[bytes]]


class HeapOutput(OutputBuffer):
    """An output in ordinary memory."""

    def close(self) -> None:
        self.view.release()


class ScriptedWorker:
    """Answers each run with `script(inputs)`; hangs where that is None."""

    def __init__(self, script: Script | None) -> None:
        self._script = script

    async def run(
        self, program: bytes, inputs: Sequence[InputBuffer], wall_limit_s: float, *, digests: bool = False
    ) -> RunOutcome:
        if self._script is None:
            await trio.sleep_forever()
        given = self._script(inputs)
        data = given if isinstance(given, bytes) else await given
        return RunOutcome(
            status="ok",
            code="ok",
            sentence="",
            detail="",
            outputs=[HeapOutput(len(data), memoryview(data))],
            started_us=0,
            wall_us=1000,
            device_us=None,
            energy_mj=None,
            meter="none",
            peak_bytes=0,
            determinism="test",
        )


class ScriptedSupervisor:
    layers: tuple[str, ...] = ()
    unfit = ""

    def __init__(self, script: Script | None) -> None:
        self._script = script

    @asynccontextmanager
    async def worker(self, limits: WorkerLimits, *, kernels: bool = True) -> AsyncIterator[ScriptedWorker]:
        yield ScriptedWorker(self._script)


def add_one(inputs: Sequence[InputBuffer]) -> bytes:
    data = inputs[0].data
    assert data is not None
    return (np.frombuffer(data, np.float32) + 1).tobytes()


@dataclass
class World:
    """A network and the nodes on it."""

    network: MemoryNetwork
    base: Path
    stack: AsyncExitStack

    async def add(
        self,
        name: str,
        *,
        provide: bool,
        script: Script | None = add_one,
        bootstrap: Node | None = None,
        device: DeviceInfo = CPU,
        conditions: OpenReader = open_conditions,
        file: ConfigFile | None = None,
        **settings: Any,
    ) -> Node:
        @asynccontextmanager
        async def transport(key, mesh, listen):
            async with self.network.transport(key) as attached:
                yield attached

        @asynccontextmanager
        async def supervisor(info, scratch):
            yield ScriptedSupervisor(script)

        parts = Parts(
            transport=transport, supervisor=supervisor, probe=lambda: [device], conditions=conditions
        )
        home = Home(self.base / name)
        home.prepare()
        known = () if bootstrap is None else tuple(bootstrap.transport.addresses)
        config = Config(mesh="test", provide=provide, bootstrap=known, **settings)
        loaded = Loaded(config, {}) if file is None else file.load()
        return await self.stack.enter_async_context(open_node(home, loaded, parts, file))


@asynccontextmanager
async def open_world(base: Path) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        yield World(MemoryNetwork(random.Random(1)), base, stack)


async def submit(node: Node, *arrays: Array, **options: Any) -> bytes:
    recordings = [trace(array) for array in arrays]
    tasks, blobs = [], {}
    for recording in recordings:
        data = [recording.program, *(array.tobytes() for array in recording.inputs)]
        infos = [BlobInfo(digest_of(item), len(item)) for item in data]
        blobs.update({info.root: Blob(info.root, item) for info, item in zip(infos, data, strict=True)})
        tasks.append(TaskSpec(infos[0].root, infos[1:]))
    chosen = replace(JobOptions(deadline_s=20.0, wall_limit_s=1.0), **options)
    text = json.dumps({name: getattr(chosen, name) for name in JobOptions.__dataclass_fields__})
    return (await node.requester.submit(SubmitCall(tasks, list(blobs.values()), text))).job


async def events_of(node: Node, job: bytes) -> list[JobEvent]:
    """Every event of a job, once it has ended."""
    seen: list[JobEvent] = []
    while not seen or seen[-1].kind not in ("finished", "failed"):
        seen += (await node.requester.wait(WaitCall(job, len(seen)))).events
    return seen


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - several real parts have no common event
        await trio.sleep(0.01)


async def until_found(node: Node, count: int) -> None:
    await until(lambda: len([peer for peer in node.hub.peers() if node.book.get(peer) is not None]) >= count)


async def story_of(node: Node, job: bytes) -> str:
    await trio.sleep(0.4)  # notes are written within 200 ms
    return "\n".join(line.kind + " " + line.text for line in await node.ledger.story(job))


def numbers(*values: float) -> Array:
    return xp.asarray(np.array(values, dtype=np.float32)) + 1


async def test_two_honest_agents_agree_to_the_unit(tmp_path):
    async with open_world(tmp_path) as world:
        provider = await world.add("provider", provide=True)
        requester = await world.add("requester", provide=False, bootstrap=provider)
        await until_found(requester, 1)
        job = await submit(requester, *(numbers(value, 2.0) for value in range(20)))
        events = await events_of(requester, job)
        assert events[-1].kind == "finished", events[-1].text
        results = {
            event.index: np.frombuffer(event.inline[0].data, np.float32)[0]
            for event in events
            if event.kind == "task"
        }
        assert results == {index: index + 1 for index in range(20)}
        await until(lambda: provider.outbox.under_way == 0)
        (owed,) = await requester.ledger.balances()
        (due,) = await provider.ledger.balances()
        assert owed.owed_by_me == due.owed_to_me > 0
        assert due.pending == due.disputed == 0


async def two_providers(world: World, bad_script: Script | None) -> tuple[Node, Node, Node]:
    """A bad provider that is cheaper by peer order or not, a good one, and a requester that knows both."""
    good = await world.add("good", provide=True)
    bad = await world.add("bad", provide=True, script=bad_script, bootstrap=good)
    requester = await world.add("requester", provide=False, bootstrap=good)
    await until_found(requester, 2)
    return good, bad, requester


async def run_with_a_bad_one(
    world: World, bad_script: Script | None, spoil: Callable[[Node], None]
) -> tuple[str, Node, Node]:
    """Tasks over both providers: all results must be right, and the story is returned."""
    _, bad, requester = await two_providers(world, bad_script)
    spoil(bad)
    job = await submit(requester, *(numbers(value, 0.5) for value in range(6)), providers=2)
    events = await events_of(requester, job)
    assert events[-1].kind == "finished", events[-1].text
    for event in events:
        if event.kind == "task":
            assert event.index is not None
            assert np.frombuffer(event.inline[0].data, np.float32)[0] == event.index + 1
            assert json.loads(event.text)["receipt"]["provider"] != format_peer(bad.key.peer)
    return await story_of(requester, job), requester, bad


def leave_it(node: Node) -> None:
    """Its worker is bad enough."""


async def test_an_output_of_wrong_length_is_caught_and_the_task_goes_elsewhere(tmp_path):
    async with open_world(tmp_path) as world:
        story, requester, bad = await run_with_a_bad_one(world, lambda inputs: b"short", leave_it)
        assert "outputs-mismatch" in story
        assert "output 0 has 5 bytes, the program gives 8" in story
        assert any(found.peer == bad.key.peer for found in await requester.ledger.evidence())
        balances = {balance.peer: balance for balance in await requester.ledger.balances()}
        assert bad.key.peer not in balances or balances[bad.key.peer].owed_by_me == 0


async def test_a_forged_receipt_is_caught_and_named(tmp_path, monkeypatch):
    """Signed by a key that is not the provider's."""
    monkeypatch.setattr(task_driver, "GRACE_SECONDS", 0.5)
    monkeypatch.setattr(result_outbox, "RETRY_SECONDS", ())
    stranger = PeerKey.generate()

    def forge(node: Node) -> None:
        deliver = node.outbox.send

        def send(pending: PendingResult) -> None:
            record = replace_record(pending.receipt.record, provider=stranger.peer)
            deliver(replace(pending, receipt=open_record(Receipt, sign_record(stranger, record))))

        node.outbox.send = send  # type: ignore[method-assign]

    async with open_world(tmp_path) as world:
        story, _, _ = await run_with_a_bad_one(world, add_one, forge)
        assert "evidence" in story or "failed" in story


async def test_an_inflated_bill_is_disputed(tmp_path):
    """Billed for longer than the requester waited: not paid, task done elsewhere."""

    def inflate(node: Node) -> None:
        deliver = node.outbox.send

        def send(pending: PendingResult) -> None:
            record = pending.receipt.record
            dear = replace_record(record, billed_us=record.billed_us + 3_600_000_000)
            deliver(replace(pending, receipt=open_record(Receipt, sign_record(node.key, dear))))

        node.outbox.send = send  # type: ignore[method-assign]

    async with open_world(tmp_path) as world:
        story, requester, bad = await run_with_a_bad_one(world, add_one, inflate)
        assert "disputed" in story
        owed = {balance.peer: balance.owed_by_me for balance in await requester.ledger.balances()}
        assert owed.get(bad.key.peer, 0) == 0


async def test_a_provider_that_returns_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(task_driver, "GRACE_SECONDS", 0.2)
    async with open_world(tmp_path) as world:
        story, _, _ = await run_with_a_bad_one(world, None, leave_it)
        assert "no-result" in story or "done by another attempt first" in story


async def test_a_flood_of_orders_is_declined(tmp_path):
    async with open_world(tmp_path) as world:
        provider = await world.add("provider", provide=True)
        requester = await world.add("requester", provide=False, bootstrap=provider)
        await until_found(requester, 1)
        for _ in range(3):
            await events_of(requester, await submit(requester, numbers(1.0), max_rate=0, deadline_s=0.5))
        assert provider.provider is not None
        assert not provider.provider.reservations.holds()


async def test_a_job_that_costs_too_much_says_so(tmp_path):
    async with open_world(tmp_path) as world:
        provider = await world.add("provider", provide=True)
        requester = await world.add("requester", provide=False, bootstrap=provider)
        await until_found(requester, 1)
        events = await events_of(requester, await submit(requester, numbers(1.0), max_rate=1, deadline_s=0.5))
        failure = json.loads(events[-1].text)
        assert failure["code"] == "no-provider"
        who = short_peer(provider.key.peer)
        assert f"\n  {who}: rate: cpu asks " in failure["sentence"]
        told = [json.loads(event.text)["text"] for event in events if event.kind == "progress"]
        assert len(told) == 1, "once for each provider and reason, however often it is asked"
        assert told[0].startswith(f"{who}: rate: cpu asks ")
        assert "the maximum is" in await story_of(requester, next(iter(requester.requester.jobs._jobs)))


async def test_a_job_that_everybody_refuses_for_good_ends_before_its_deadline(tmp_path, monkeypatch):
    at_once = DispatchLimits(hopeless_us=0)
    monkeypatch.setattr(
        requester_module, "Dispatcher", lambda now_us, _limits, near: Dispatcher(now_us, at_once, near)
    )
    async with open_world(tmp_path) as world:
        provider = await world.add("provider", provide=True)
        requester = await world.add("requester", provide=False, bootstrap=provider)
        await until_found(requester, 1)
        job = await submit(requester, numbers(1.0), device="cuda", deadline_s=600.0)
        failure = json.loads((await events_of(requester, job))[-1].text)
        assert failure["code"] == "no-provider"
        assert "is a cpu device, wanted cuda" in failure["sentence"]


async def test_a_paused_provider_is_waited_for(tmp_path, monkeypatch):
    at_once = DispatchLimits(hopeless_us=0)
    monkeypatch.setattr(
        requester_module, "Dispatcher", lambda now_us, _limits, near: Dispatcher(now_us, at_once, near)
    )
    async with open_world(tmp_path) as world:
        provider = await world.add("provider", provide=True)
        requester = await world.add("requester", provide=False, bootstrap=provider)
        await until_found(requester, 1)
        assert provider.provider is not None
        provider.provider.paused = True
        job = await submit(requester, numbers(1.0), deadline_s=20.0)
        first = (await requester.requester.wait(WaitCall(job, 0, 20_000))).events[0]
        assert "paused" in json.loads(first.text)["text"]
        provider.provider.paused = False
        assert (await events_of(requester, job))[-1].kind == "finished"


async def test_a_device_that_is_out_of_order_is_not_announced_and_gets_no_bid_until_it_is_fit(
    tmp_path, monkeypatch
):
    at_once = DispatchLimits(hopeless_us=0)
    monkeypatch.setattr(
        requester_module, "Dispatcher", lambda now_us, _limits, near: Dispatcher(now_us, at_once, near)
    )
    async with open_world(tmp_path) as world:
        provider = await world.add("provider", provide=True)
        requester = await world.add("requester", provide=False, bootstrap=provider)
        await until_found(requester, 1)
        assert provider.provider is not None
        (offer,) = provider.provider.offers
        supervisor = provider.provider._devices[offer.device].supervisor
        supervisor.unfit = "worker process 7 was killed and had not ended 10 s later"
        provider.provider.set_obstacles(offer.device, ())
        assert provider.provider.offers == []
        (reason,) = provider.provider.not_lending()
        assert (reason["code"], "process 7" in (reason["sentence"] or "")) == ("unfit", True)
        job = await submit(requester, numbers(1.0), deadline_s=20.0)
        first = (await requester.requester.wait(WaitCall(job, 0, 20_000))).events[0]
        assert "process 7" not in first.text, "strangers need not know"
        supervisor.unfit = ""
        provider.provider.set_obstacles(offer.device, ())
        assert provider.provider.offers == [offer]
        assert (await events_of(requester, job))[-1].kind == "finished"


async def test_what_no_device_could_end_in_time_is_refused_at_once(tmp_path):
    async with open_world(tmp_path) as world:
        lonely = await world.add("lonely", provide=False)
        x = xp.zeros((4000, 4000)) + 1
        forever = xp.scan(lambda c, _: (c @ c, None), x, length=10**4)[0]
        with pytest.raises(
            Refused, match=r"node 2 \(scan, giving float64\[4000, 4000\]\) needs about"
        ) as caught:
            await submit(lonely, forever, device="cpu")
        assert caught.value.code == "over-operations"
        assert await submit(lonely, forever, device="cuda", wall_limit_s=60.0)
        with pytest.raises(Refused, match="operations"):
            await submit(lonely, forever, device="cpu")


async def test_where_nobody_is_known_the_failure_says_what_to_set(tmp_path):
    async with open_world(tmp_path) as world:
        lonely = await world.add("lonely", provide=False)
        events = await events_of(lonely, await submit(lonely, numbers(1.0), deadline_s=0.3))
        sentence = json.loads(events[-1].text)["sentence"]
        assert f"set `bootstrap` in {lonely.home.config_path}, or give --bootstrap" in sentence


async def test_jobs_are_listed_and_taken_back_by_their_first_digits(tmp_path):
    async with open_world(tmp_path) as world:
        lonely = await world.add("lonely", provide=False)
        views = NodeViews(lonely)

        async def ask(method: str, **arguments: object) -> Any:
            answer = await views.methods()[method](encode(JsonBody(json.dumps(arguments))))
            assert isinstance(answer, JsonBody)
            return json.loads(answer.text)

        job = (await submit(lonely, numbers(1.0), numbers(2.0))).hex()
        (row,) = await ask("jobs")
        assert (row["job"], row["tasks"], row["done"], row["state"]) == (job, 2, 0, "running")
        answer = await ask("cancel", job=job[:8])
        assert answer["cancelled"]
        assert answer["sentence"] == f"job {job[:8]} cancelled; finished tasks stay paid"
        assert not (await ask("cancel", job=job))["cancelled"]
        with pytest.raises(Refused, match="runs no job"):
            await ask("cancel", job="f" * 32 if job[0] != "f" else "0" * 32)
        (row,) = await ask("jobs")
        assert (row["state"], row["code"]) == ("failed", "cancelled")


def replace_record(record: Receipt, **changes: object) -> Receipt:
    fields = {name: getattr(record, name) for name in Receipt.__struct_fields__}
    return Receipt(**{**fields, **changes})


@pytest.mark.parametrize("cut", [True])
async def test_a_lost_connection_moves_the_task_and_the_late_receipt_is_disputed(tmp_path, cut):
    """The provider finishes while cut off; its receipt comes after the task was done elsewhere."""
    async with open_world(tmp_path) as world:
        good = await world.add("good", provide=True)
        requester = await world.add("requester", provide=False, bootstrap=good)
        await until_found(requester, 1)
        first = await events_of(requester, await submit(requester, numbers(1.0)))
        assert first[-1].kind == "finished"
        world.network.partition({good.key.peer}, {requester.key.peer})
        await until(lambda: not requester.hub.peers())
        await until(lambda: not requester.requester.leases)
        world.network.heal()
        await until_found(requester, 1)
        again = await events_of(requester, await submit(requester, numbers(4.0)))
        assert again[-1].kind == "finished"


async def test_a_cancelled_job_stays_cancelled_whatever_its_attempts_come_to(tmp_path):
    async with open_world(tmp_path) as world:
        provider = await world.add("provider", provide=True, script=None)
        requester = await world.add("requester", provide=False, bootstrap=provider)
        await until_found(requester, 1)
        job = await submit(requester, numbers(1.0))
        await until(lambda: requester.requester.leases)
        assert requester.requester.cancel(job)
        await until(lambda: not any(held.outstanding for held in requester.requester.leases.values()))
        kinds = [event.kind for event in await events_of(requester, job)]
        assert kinds[-1] == "failed"
        assert requester.requester.jobs.get(job).events[-1].kind == "failed"


def add_two(inputs: Sequence[InputBuffer]) -> bytes:
    """A worker whose results are wrong."""
    data = inputs[0].data
    assert data is not None
    return (np.frombuffer(data, np.float32) + 2).tobytes()


async def run_copies(world: World, scripts: Sequence[Script]) -> tuple[Node, list[JobEvent], bytes]:
    """A job of two tasks, each run at as many providers as there are scripts."""
    first = await world.add("p0", provide=True, script=scripts[0])
    for number, script in enumerate(scripts[1:], 1):
        await world.add(f"p{number}", provide=True, script=script, bootstrap=first)
    requester = await world.add("requester", provide=False, bootstrap=first)
    await until_found(requester, len(scripts))
    job = await submit(requester, numbers(1.0), numbers(5.0), redundancy=len(scripts))
    return requester, await events_of(requester, job), job


async def test_copies_that_agree_give_one_result_and_two_receipts(tmp_path):
    async with open_world(tmp_path) as world:
        requester, events, _ = await run_copies(world, [add_one, add_one])
        assert events[-1].kind == "finished", events[-1].text
        done = {event.index: event for event in events if event.kind == "task"}
        assert sorted(done) == [0, 1]
        for index, event in done.items():
            receipt = json.loads(event.text)["receipt"]
            assert np.frombuffer(event.inline[0].data, np.float32)[0] == [2.0, 6.0][index]
            assert receipt["agreement"] == "bitwise"
            assert len({copy["provider"] for copy in receipt["copies"]}) == 2
        balances = await requester.ledger.balances()
        assert len([balance for balance in balances if balance.owed_by_me]) == 2, "both are paid"


async def test_one_provider_for_two_copies_is_said_while_waiting_and_no_lease_is_wasted(tmp_path):
    async with open_world(tmp_path) as world:
        provider = await world.add("p0", provide=True, script=add_one)
        requester = await world.add("requester", provide=False, bootstrap=provider)
        await until_found(requester, 1)
        job = await submit(requester, numbers(1.0), redundancy=2, deadline_s=3.0)
        events = await events_of(requester, job)
        told = [json.loads(event.text).get("text") for event in events]
        assert told.count("redundancy 2 needs 2 providers, 1 heard") == 1
        assert json.loads(events[-1].text)["sentence"].endswith("redundancy 2 needs 2 providers, 1 heard")
        story = await story_of(requester, job)
        assert story.count("signed by both") == 1
        assert story.count("left-out") <= 1


async def test_who_waits_for_nobody_is_told_once_and_of_his_own_device(tmp_path, monkeypatch):
    monkeypatch.setattr("coppermesh.agent.requester.SILENT_US", 0)
    async with open_world(tmp_path) as world:
        alone = await world.add("alone", provide=True, script=add_one)
        job = await submit(alone, numbers(1.0), deadline_s=1.5)
        events = await events_of(alone, job)
        (told,) = [json.loads(event.text)["text"] for event in events if event.kind == "progress"]
        assert told.startswith("no provider is known yet: 0 peers connected")
        for text in (told, json.loads(events[-1].text)["sentence"]):
            assert "set `bootstrap` in" in text
            assert "an agent does not run its own jobs" in text
            assert "coppermesh agent --home OTHER" in text


async def test_two_copies_that_differ_are_named_and_none_is_taken(tmp_path):
    async with open_world(tmp_path) as world:
        requester, events, job = await run_copies(world, [add_one, add_two])
        failure = json.loads(events[-1].text)
        assert failure["code"] == "disagreement"
        assert not [event for event in events if event.kind == "task"]
        for node in requester.hub.peers():
            assert short_peer(node) in failure["sentence"]
        assert "disagree" in await story_of(requester, job)


async def test_of_three_copies_two_that_agree_are_taken_and_the_third_is_named(tmp_path):
    async with open_world(tmp_path) as world:
        requester, events, job = await run_copies(world, [add_two, add_one, add_one])
        assert events[-1].kind == "finished", events[-1].text
        for event in events:
            if event.kind == "task":
                assert np.frombuffer(event.inline[0].data, np.float32)[0] == [2.0, 6.0][event.index or 0]
                assert " gave " in json.loads(event.text)["receipt"]["disagreement"]
        assert "disagree" in await story_of(requester, job)


async def test_a_straggler_does_not_hold_up_a_job_and_only_one_copy_is_paid(tmp_path):
    """One provider never answers the task that it runs: a copy of it runs elsewhere, and the job ends."""
    stuck = {"left": 1}

    async def sometimes(inputs: Sequence[InputBuffer]) -> bytes:
        await trio.lowlevel.checkpoint()
        if (
            stuck["left"]
            and inputs[0].data is not None
            and inputs[0].data.startswith(np.float32(9.0).tobytes())
        ):
            stuck["left"] -= 1
            await trio.sleep_forever()
        return add_one(inputs)

    async with open_world(tmp_path) as world:
        first = await world.add("p0", provide=True, script=sometimes)
        await world.add("p1", provide=True, script=sometimes, bootstrap=first)
        requester = await world.add("requester", provide=False, bootstrap=first)
        await until_found(requester, 2)
        arrays = [numbers(float(value), 0.0) for value in (1, 2, 3, 4, 5, 6, 7, 8, 9)]
        job = await submit(requester, *arrays, providers=2, wall_limit_s=30.0, deadline_s=60.0)
        events = await events_of(requester, job)
        assert events[-1].kind == "finished", events[-1].text
        assert not stuck["left"]
        receipts = await requester.ledger.receipts(job=job)
        assert len([row for row in receipts if row.verdict == "accepted"]) == 9


async def quote(node: Node, *arrays: Array, **options: Any) -> dict[str, Any]:
    recordings = [trace(array) for array in arrays]
    blobs = [data for one in recordings for data in (one.program, *(array.tobytes() for array in one.inputs))]
    infos = [BlobInfo(digest_of(data), len(data)) for data in blobs]
    tasks = [TaskSpec(infos[2 * number].root, [infos[2 * number + 1]]) for number in range(len(recordings))]
    chosen = replace(JobOptions(deadline_s=20.0, wall_limit_s=1.0), **options)
    text = json.dumps({name: getattr(chosen, name) for name in JobOptions.__dataclass_fields__})
    inline = [Blob(info.root, data) for info, data in zip(infos, blobs, strict=True)]
    return await node.requester.quote(SubmitCall(tasks, inline, text))


async def test_a_dry_run_ranks_the_bids_and_leases_nothing(tmp_path):
    async with open_world(tmp_path) as world:
        cheap = await world.add("cheap", provide=True, rate=1000, slots=2)
        dear = await world.add("dear", provide=True, rate=90_000, slots=2, bootstrap=cheap)
        requester = await world.add("requester", provide=False, bootstrap=cheap)
        await until_found(requester, 2)
        facts = await quote(requester, numbers(1.0))
        assert [place["peer"] for place in facts["places"]] == [
            format_peer(cheap.key.peer),
            format_peer(dear.key.peer),
        ]
        assert [place["expected"] for place in facts["places"]] == [None, None]
        assert "costs more there" in facts["places"][1]["reason"]
        for node in (cheap, dear):
            assert node.provider is not None
            assert not node.provider.reservations.holds(), "no slot is held for a question"
            assert not node.provider.leases
        assert not requester.requester.jobs.all()
        for value in range(4):
            await events_of(requester, await submit(requester, numbers(float(value))))
        (first, _) = (await quote(requester, numbers(1.0), max_rate=95_000))["places"]
        assert first["basis"] == "measured there"
        assert first["expected"] <= first["most"]
        facts = await quote(requester, numbers(1.0), max_rate=10_000)
        assert len(facts["places"]) == 1
        assert facts["histogram"] == "1 of 1 asks more than your maximum of 0.01 usd/h"


async def test_a_job_that_waits_when_its_agent_is_stopped_keeps_its_reason(tmp_path):
    async with open_world(tmp_path) as world:
        dear = await world.add("dear", provide=True, rate=90_000)
        requester = await world.add("requester", provide=False, bootstrap=dear)
        await until_found(requester, 1)
        cheap = await submit(requester, numbers(1.0), max_rate=10_000)
        await until(lambda: requester.requester.jobs.get(cheap).refusals)
        path = requester.home.ledger_path(requester.mesh)
    with read_ledger(path) as ledger:
        last = ledger.story(cheap)[-1]
    assert last.kind == "gave-up"
    assert last.text == (
        "stopping: the agent was stopped with 0 of 1 task done; 1 of 1 asks more than your maximum of 0.01 usd/h"
    )


async def test_a_dry_run_says_that_a_provider_is_busy_with_ones_own_lease(tmp_path):
    async with open_world(tmp_path) as world:
        provider = await world.add("provider", provide=True, slots=1, script=None)
        requester = await world.add("requester", provide=False, bootstrap=provider)
        await until_found(requester, 1)
        job = await submit(requester, numbers(1.0), wall_limit_s=30.0)
        await until(lambda: any(held.outstanding for held in requester.requester.leases.values()))
        facts = await quote(requester, numbers(2.0), max_rate=90_000)
        (own,) = facts["own_leases"]
        assert (own["peer"], own["tasks"]) == (format_peer(provider.key.peer), 1)
        assert 0 < own["left_s"] <= 120
        text = "\n".join(quote_lines(facts))
        assert "is busy with a lease of your own: 1 task under way; it ends in" in text
        assert "nobody would take it;" not in text
        stranger = await world.add("stranger", provide=False, bootstrap=provider)
        await until_found(stranger, 1)
        facts = await quote(stranger, numbers(2.0))
        assert facts["own_leases"] == []
        assert "nobody would take it; 1 heard" in "\n".join(quote_lines(facts))
        idle = {**facts, "own_leases": [{**own, "tasks": 0}]}
        assert "nothing runs under it" in "\n".join(quote_lines(idle))
        requester.requester.cancel(job)


async def test_of_two_that_want_the_one_slot_one_wins_and_the_other_hears_why(tmp_path):
    async with open_world(tmp_path) as world:
        provider = await world.add("provider", provide=True, slots=1, script=None)
        rivals = [await world.add(f"r{number}", provide=False, bootstrap=provider) for number in range(2)]
        for rival in rivals:
            await until_found(rival, 1)
        jobs = [await submit(rival, numbers(1.0), deadline_s=1.5, wall_limit_s=30.0) for rival in rivals]
        failures = [json.loads((await events_of(*pair))[-1].text) for pair in zip(rivals, jobs, strict=True)]
        assert sorted(failure["code"] for failure in failures) == ["deadline", "no-provider"]
        (loser,) = [failure for failure in failures if failure["code"] == "no-provider"]
        assert "1 of 1 is busy" in loser["sentence"]
        assert loser["refusals"] == {"busy": 1}


async def test_a_provider_that_serves_nobody_but_us_is_no_trouble_to_tell_of(tmp_path):
    async with open_world(tmp_path) as world:
        provider = await world.add("provider", provide=True, slots=1, script=None)
        requester = await world.add("requester", provide=False, bootstrap=provider)
        await until_found(requester, 1)
        job = await submit(
            requester, *map(numbers, map(float, range(12))), deadline_s=2.5, wall_limit_s=30.0, providers=2
        )
        events = await events_of(requester, job)
        assert not [event.text for event in events if "busy" in event.text]
        story = await story_of(requester, job)
        assert "busy: cpu serves 1 at once and is busy; ask again later; a lease of ours is among" in story


async def test_a_least_speed_is_measured_when_it_is_asked_for(tmp_path):
    async with open_world(tmp_path) as world:
        provider = await world.add("provider", provide=True, script=lambda inputs: bytes(4 << 20))
        requester = await world.add("requester", provide=False, bootstrap=provider)
        await until_found(requester, 1)
        assert provider.provider is not None
        first = await quote(requester, numbers(1.0), min_speed=1000)
        assert first["refusals"][0]["code"] == "measuring"
        await until(lambda: provider.provider is not None and provider.provider.speeds.get("cpu"))
        (place,) = (await quote(requester, numbers(1.0), min_speed=1000))["places"]
        assert place["claimed_speed"] == 8_589_934, "the reference program took the worker a millisecond"
        refused = await quote(requester, numbers(1.0), min_speed=10**9)
        assert refused["histogram"] == "1 of 1 is slower than 1000000000 Mop/s"


async def test_an_order_is_explained_by_its_own_id(tmp_path):
    async with open_world(tmp_path) as world:
        provider = await world.add("provider", provide=True)
        requester = await world.add("requester", provide=False, bootstrap=provider)
        await until_found(requester, 1)
        job = await submit(requester, numbers(1.0), isolation=["seccomp"], deadline_s=0.5)
        await events_of(requester, job)
        await submit(requester, numbers(1.0), deadline_s=5.0)
        await story_of(requester, job)
        lines = await requester.ledger.story(job)
        assert any("has not witnessed" in line.text for line in lines), [line.text for line in lines]
        cause = next(line.cause for line in lines if line.cause.startswith("order "))
        explained = await requester.ledger.story(cause.removeprefix("order "))
        assert {line.cause for line in explained} == {cause}


async def test_a_job_of_many_tasks_is_read_from_the_socket_and_told_of_in_parts():
    spec = TaskSpec(bytes(32), [BlobInfo(bytes(32), 8)])
    call = SubmitCall([spec] * 5000, [], "{}")
    with pytest.raises(RemoteProtocolError, match="1024"):
        decode(SubmitCall, encode(call), max_bytes=1 << 24)
    assert (await node_views._decode_submit(encode(call))).tasks == call.tasks
    job = JobState(bytes(16), [spec], Requirement(max_rate=1), 0, 0, 0, {})
    for _ in range(1500):
        job.tell("progress", {})
    first = await job.wait_after(0, 1.0)
    assert len(first) == 1000
    decode(WaitAnswer, encode(WaitAnswer(first)), max_bytes=1 << 24)
    assert len(await job.wait_after(1000, 1.0)) == 500
