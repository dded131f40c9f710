"""Challenges between whole agents over the in-memory network: honest providers, and those that lie about digests.

Workers run NumPy in this process, with one operation bent where a provider errs; whatever else a liar does, it does to
the honest answer on its way out.
"""

import importlib.util
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import trio

import coppermesh.exec.xp as xp  # noqa: PLR0402 - a namespace module, as users import it
from coppermesh.agent import challenge_server
from coppermesh.agent.challenge_report import ChallengeReport, NoVerdict, challenge
from coppermesh.agent.clock import now_us
from coppermesh.agent.config import Config
from coppermesh.agent.home import Home
from coppermesh.agent.local_link import LocalLink
from coppermesh.agent.node import Node, Parts, open_node
from coppermesh.agent.traces import NODE_DIGESTS
from coppermesh.exec.numpy_runtime import NumpyRuntime
from coppermesh.exec.program import decode_program
from coppermesh.exec.recorder import Array
from coppermesh.exec.runs import InputBuffer, RunOutcome, WorkerLimits
from coppermesh.exec.runtime import RunLimits
from coppermesh.exec.schema import check_program
from coppermesh.exec.trace_digests import NOT_RECORDED, run_with_digests
from coppermesh.p2p.envelope import sign_record
from coppermesh.p2p.errors import Refused, Unreachable
from coppermesh.p2p.ids import Digest, PeerId
from coppermesh.p2p.messages import BlobInfo, ChallengeReply, ChallengeRequest
from coppermesh.p2p.records import SignedRecord, Trace
from coppermesh.p2p.signing import PeerKey

_path = Path(__file__).parent / "test_agent_world.py"
_spec = importlib.util.spec_from_file_location("coppermesh_agent_world", _path)
assert _spec is not None
assert _spec.loader is not None
agents: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(agents)

SINE_NODE = 0
"""Place of the sine in `wave`'s program."""


@dataclass
class Machine:
    """A provider's machine: what it computes with, and how it fares. Its own supervisor and worker."""

    runtime: NumpyRuntime
    determinism: str = "one class"
    hold: trio.Event | None = None
    """A run that records waits for this."""
    runs: int = 0
    recorded: int = 0
    layers: tuple[str, ...] = ()
    unfit = ""

    @asynccontextmanager
    async def worker(self, limits: WorkerLimits, *, kernels: bool = True) -> AsyncIterator["Machine"]:
        yield self

    async def run(
        self, program: bytes, inputs: Sequence[InputBuffer], wall_limit_s: float, *, digests: bool = False
    ) -> RunOutcome:
        self.runs += 1
        self.recorded += digests
        if digests and self.hold is not None:
            await self.hold.wait()
        checked = check_program(decode_program(program))
        pairs = zip(inputs, checked.input_specs, strict=True)
        arrays = [
            np.frombuffer(buffer.data or b"", spec.numpy_dtype).reshape(spec.shape) for buffer, spec in pairs
        ]
        result, chain = run_with_digests(self.runtime, checked, arrays, RunLimits())
        outputs = [array.tobytes() for array in result.outputs]
        return RunOutcome(
            status="ok",
            code="ok",
            sentence="",
            detail="",
            outputs=[agents.HeapOutput(len(data), memoryview(data)) for data in outputs],
            started_us=now_us(),
            wall_us=1000,
            device_us=None,
            energy_mj=None,
            meter="none",
            peak_bytes=0,
            determinism=self.determinism,
            digests=chain if digests else None,
        )


def bent_runtime() -> NumpyRuntime:
    """A runtime whose sine is a little too large."""
    runtime = NumpyRuntime()
    table = dict(runtime._interpreter._table)
    sine = table["sin"]
    table["sin"] = lambda arrays, attrs: sine(arrays, attrs) + np.float32(2**-16)
    runtime._interpreter._table = table
    return runtime


async def add(world: Any, name: str, machine: Machine | None, bootstrap: Node | None = None) -> Node:
    """An agent on that machine; one that only submits where there is none."""

    @asynccontextmanager
    async def transport(key, mesh, listen):
        async with world.network.transport(key) as attached:
            yield attached

    @asynccontextmanager
    async def supervisor(info, scratch):
        yield machine

    parts = Parts(transport=transport, supervisor=supervisor, probe=lambda: [agents.CPU])
    home = Home(world.base / name)
    home.prepare()
    known = () if bootstrap is None else tuple(bootstrap.transport.addresses)
    config = Config(mesh="test", provide=machine is not None, bootstrap=known)
    node: Node = await world.stack.enter_async_context(open_node(home, config, parts))
    return node


def wave(values: Sequence[float] = (0.5, 1.5)) -> Array:
    return xp.sum(xp.sin(xp.asarray(np.array(values, np.float32))) * 2)


@dataclass
class Pair:
    """A provider, its machine, a requester, and a job that was done."""

    provider: Node
    machine: Machine
    requester: Node
    job: bytes

    async def challenge(self, seconds: float = 5.0) -> ChallengeReport:
        return await ask(self.requester, self.job, seconds)

    async def receipt(self) -> Any:
        return (await self.requester.ledger.receipts(job=self.job))[0]

    async def evidence(self) -> list[str]:
        return [found.kind for found in await self.requester.ledger.evidence()]


async def ask(node: Node, job: bytes, seconds: float = 5.0) -> ChallengeReport:
    """As a client does, over the agent's socket."""
    link = partial(_link, node.home.socket_path)
    return await trio.to_thread.run_sync(
        partial(challenge, link, job.hex(), 0, local=False, timeout=seconds), abandon_on_cancel=True
    )


def _link(path: Path, seconds: float) -> LocalLink:
    return LocalLink(path, timeout_s=seconds)


@asynccontextmanager
async def open_pair(base: Path, machine: Machine | None = None, **options: Any) -> AsyncIterator[Pair]:
    machine = machine or Machine(NumpyRuntime())
    async with agents.open_world(base) as world:
        provider = await add(world, "provider", machine)
        requester = await add(world, "requester", None, provider)
        await agents.until_found(requester, 1)
        job = await agents.submit(requester, wave(), **options)
        assert (await agents.events_of(requester, job))[-1].kind == "finished"
        await agents.until(lambda: provider.outbox.under_way == 0)
        yield Pair(provider, machine, requester, job)


async def test_an_honest_provider_shows_its_digests(tmp_path):
    async with open_pair(tmp_path) as pair:
        assert pair.machine.recorded == 0
        report = await pair.challenge()
        assert not report.fault
        assert report.node is None
        (trace,) = report.traces
        assert trace["nodes"] == 3
        assert not trace["first_run"]
        assert [finding.kind for finding in report.findings] == ["agree", "alone"]
        assert pair.machine.recorded == 1
        assert await pair.challenge() == report
        assert pair.machine.recorded == 1, "an answer is remembered on both sides"
        story = await agents.story_of(pair.requester, pair.job)
        assert "challenge asked for the digests of receipt" in story
        assert "trace 3 digests" in story
        assert await pair.evidence() == []


async def test_a_task_may_be_recorded_while_it_runs(tmp_path):
    async with open_pair(tmp_path, trace=True) as pair:
        row = await pair.receipt()
        assert row.receipt.trace != NOT_RECORDED
        report = await pair.challenge()
        assert report.traces[0]["first_run"]
        assert report.traces[0]["root"] == row.receipt.trace.hex()
        assert pair.machine.runs == 1, "nothing is run again for it"


async def test_nothing_is_recorded_where_nobody_asked(tmp_path):
    async with open_pair(tmp_path) as pair:
        assert (await pair.receipt()).receipt.trace == NOT_RECORDED
        assert pair.machine.recorded == 0


async def test_a_receipt_without_the_digests_that_were_asked_for_is_disputed(tmp_path, monkeypatch):
    machine = Machine(NumpyRuntime())
    async with agents.open_world(tmp_path) as world:
        provider = await add(world, "provider", machine)
        run = machine.run
        monkeypatch.setattr(machine, "run", lambda *given, digests: run(*given))
        requester = await add(world, "requester", None, provider)
        await agents.until_found(requester, 1)
        job = await agents.submit(requester, wave(), trace=True, deadline_s=1.0)
        assert (await agents.events_of(requester, job))[-1].kind == "failed"
        assert "no-trace" in await agents.story_of(requester, job)
        assert all(balance.owed_by_me == 0 for balance in await requester.ledger.balances())


async def test_where_two_providers_part_the_node_is_named(tmp_path):
    async with agents.open_world(tmp_path) as world:
        good = await add(world, "good", Machine(NumpyRuntime()))
        await add(world, "bad", Machine(bent_runtime()), good)
        requester = await add(world, "requester", None, good)
        await agents.until_found(requester, 2)
        job = await agents.submit(requester, *(wave() for _ in range(8)), providers=2)
        assert (await agents.events_of(requester, job))[-1].kind == "finished"
        assert len({row.peer for row in await requester.ledger.receipts(job=job)}) == 2
        report = await ask(requester, job)
        assert report.fault
        assert report.node == SINE_NODE
        (part,) = [finding for finding in report.findings if finding.kind == "part"]
        assert (part.operation, part.shapes) == ("sin", ("float32[2]",))
        assert part.classes == ("one class", "one class")
        assert {found.kind for found in await requester.ledger.evidence()} == {"traces-part"}
        assert "they part at node 0" in await agents.story_of(requester, job)


async def test_across_classes_bits_may_differ(tmp_path):
    async with agents.open_world(tmp_path) as world:
        good = await add(world, "good", Machine(NumpyRuntime()))
        await add(world, "other", Machine(bent_runtime(), "another class"), good)
        requester = await add(world, "requester", None, good)
        await agents.until_found(requester, 2)
        job = await agents.submit(requester, *(wave() for _ in range(8)), providers=2)
        await agents.events_of(requester, job)
        report = await ask(requester, job)
        assert not report.fault
        assert report.node == SINE_NODE
        assert "bits may differ" in str(report)
        assert await requester.ledger.evidence() == []


async def test_a_provider_that_computed_something_else_before_contradicts_itself(tmp_path):
    """It cheated when it was paid and is honest when it is looked at: its own two signatures show it."""
    async with open_pair(tmp_path, Machine(bent_runtime())) as pair:
        pair.machine.runtime = NumpyRuntime()
        report = await pair.challenge()
        assert report.fault
        assert "other outputs than the run" in str(report)
        assert await pair.evidence() == ["trace-contradiction"]
        (found,) = await pair.requester.ledger.evidence()
        assert found.peer == pair.provider.key.peer
        assert "evidence its receipt has other outputs" in await agents.story_of(pair.requester, pair.job)


async def test_a_root_that_is_not_the_receipts_is_a_contradiction(tmp_path):
    async with open_pair(tmp_path, Machine(bent_runtime()), trace=True) as pair:
        assert pair.provider.provider is not None
        pair.provider.provider.challenges._ended.clear()  # as after a restart: it has to run the task again
        pair.machine.runtime = NumpyRuntime()
        report = await pair.challenge()
        assert report.fault
        assert "another root" in str(report)


async def test_another_class_than_at_the_receipt_is_told_and_no_fault(tmp_path):
    async with open_pair(tmp_path, Machine(bent_runtime())) as pair:
        pair.machine.runtime, pair.machine.determinism = NumpyRuntime(), "a newer library"
        report = await pair.challenge()
        assert not report.fault
        assert "its class has changed since the receipt" in str(report)


# Providers that lie on the wire


def body_of(reply: ChallengeReply) -> bytes:
    assert reply.trace is not None
    return reply.trace.body


def resigned(key: PeerKey, reply: ChallengeReply, **changes: Any) -> ChallengeReply:
    """The answer with a Trace of other values, signed by `key`."""
    trace = msgspec.msgpack.decode(body_of(reply), type=Trace)
    signed = sign_record(key, msgspec.structs.replace(trace, **changes))
    return msgspec.structs.replace(reply, trace=signed)


STRANGER = PeerKey(bytes([9]) * 32)
LIES: dict[str, tuple[str, Callable[[Node, ChallengeReply], ChallengeReply]]] = {
    "another receipt": (
        "another receipt",
        lambda node, reply: resigned(node.key, reply, receipt=bytes(32)),
    ),
    "another task": ("another task_id", lambda node, reply: resigned(node.key, reply, task_id=bytes(32))),
    "forged signer": (
        "signed by",
        lambda node, reply: resigned(STRANGER, reply, provider=STRANGER.peer),
    ),
    "forged signature": (
        "signature is not valid",
        lambda node, reply: msgspec.structs.replace(
            reply,
            trace=SignedRecord(body_of(reply), node.key.peer, bytes(64)),
        ),
    ),
    "too many links": (
        "bytes for 3 nodes",
        lambda node, reply: msgspec.structs.replace(reply, chain=(reply.chain or b"") + bytes(32)),
    ),
    "root not of the chain": (
        "does not lead to its root",
        lambda node, reply: resigned(node.key, reply, root=bytes(32)),
    ),
    "chain of another run": (
        "not the blob that it names",
        lambda node, reply: msgspec.structs.replace(reply, chain=bytes(96)),
    ),
    "nothing recorded": ("there is none", lambda node, reply: msgspec.structs.replace(reply, trace=None)),
    "needs what nobody has": (
        "needs blobs that were not offered",
        lambda node, reply: ChallengeReply("need", [bytes(32)], 0, None, None, ""),
    ),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_lying_answer_is_caught(tmp_path, lie, monkeypatch):
    says, spoil = LIES[lie]
    async with open_pair(tmp_path) as pair:
        provider = pair.provider.provider
        assert provider is not None
        honest = provider.challenges.on_challenge

        async def lying(peer: PeerId, request: ChallengeRequest) -> ChallengeReply:
            reply: ChallengeReply = await honest(peer, request)
            if reply.state != "recorded":  # the countersignature may still be on its way
                return reply
            spoilt: ChallengeReply = spoil(pair.provider, reply)
            return spoilt

        monkeypatch.setattr(provider.challenges, "on_challenge", lying)
        with pytest.raises(Refused, match=says):
            await pair.challenge()
        assert says in await agents.story_of(pair.requester, pair.job)
        assert (await agents.events_of(pair.requester, pair.job))[-1].kind == "finished"


async def test_a_provider_that_never_answers_costs_patience_only(tmp_path, monkeypatch):
    monkeypatch.setattr(challenge_server, "ANSWER_SECONDS", 0.05)
    async with open_pair(tmp_path) as pair:
        pair.machine.hold = trio.Event()
        with pytest.raises(NoVerdict, match="running the task again"):
            await pair.challenge(seconds=1.0)
        pair.machine.hold.set()
        assert not (await pair.challenge()).fault
        assert pair.machine.recorded == 1, "the run went on and its answer waited"


# Requesters that ask too much


async def test_work_goes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(challenge_server, "ANSWER_SECONDS", 0.05)
    async with open_pair(tmp_path) as pair:
        pair.machine.hold = trio.Event()
        provider = pair.provider.provider
        assert provider is not None
        with pytest.raises(NoVerdict, match="running the task again"):
            await pair.challenge(seconds=0.3)
        again = await agents.submit(pair.requester, wave([7.0]))
        assert (await agents.events_of(pair.requester, again))[-1].kind == "finished"
        await agents.until(lambda: not provider.challenges._running)
        provider.paused = True
        with pytest.raises(NoVerdict, match="work that is paid goes first; ask again in 5 s"):
            await pair.challenge(seconds=0.3)
        provider.paused = False
        pair.machine.hold.set()
        assert not (await pair.challenge()).fault


async def test_runs_for_one_requester_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(challenge_server, "MAX_RUNS", 1)
    async with open_pair(tmp_path) as pair:
        await pair.challenge()
        other = await agents.submit(pair.requester, wave([7.0]))
        await agents.events_of(pair.requester, other)
        with pytest.raises(NoVerdict, match="1 challenges of yours were run within 10 min"):
            await ask(pair.requester, other, seconds=1.0)


async def test_a_stranger_learns_nothing(tmp_path):
    async with open_pair(tmp_path) as pair:
        await pair.challenge()
        stranger = PeerId(STRANGER.peer)
        provider = pair.provider.provider
        assert provider is not None
        request = ChallengeRequest((await pair.receipt()).id, [], [])
        for receipt in (request.receipt, bytes(32)):
            with pytest.raises(Refused) as refusal:
                await provider.on_challenge(stranger, ChallengeRequest(receipt, [], []))
            assert refusal.value.code == "unknown-receipt"


async def test_old_receipts_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(challenge_server, "CHALLENGE_FOR_US", -1)
    async with open_pair(tmp_path) as pair:
        with pytest.raises(Refused, match="can be challenged for") as refusal:
            await pair.challenge()
        assert refusal.value.code == "too-old"


async def test_blobs_that_are_gone_are_sent_again_and_only_those(tmp_path):
    async with open_pair(tmp_path) as pair:
        store, provider = pair.provider.store, pair.provider.provider
        assert provider is not None
        task = await pair.requester.ledger.task(Digest((await pair.receipt()).receipt.task_id))
        assert task is not None
        for root in (task.record.program, *task.record.inputs):
            store._drop(Digest(root))
        await agents.until(lambda: not provider.leases or all(not s._tasks for s in provider.leases.values()))
        assert not (await pair.challenge()).fault
        peer = pair.requester.key.peer
        assert not provider.challenges.awaits(peer, Digest(bytes(32)), 8)


async def test_blobs_gone_on_both_sides_are_named(tmp_path):
    async with open_pair(tmp_path) as pair:
        task = await pair.requester.ledger.task(Digest((await pair.receipt()).receipt.task_id))
        assert task is not None
        for node in (pair.provider, pair.requester):
            node.store._drop(Digest(task.record.program))
        with pytest.raises(Refused, match=task.record.program.hex()[:12]) as refusal:
            await pair.challenge()
        assert refusal.value.code == "blobs-gone"


async def test_a_blob_is_admitted_where_it_was_asked_for(tmp_path):
    async with open_pair(tmp_path) as pair:
        provider, peer = pair.provider.provider, pair.requester.key.peer
        assert provider is not None
        row = await pair.receipt()
        task = await pair.requester.ledger.task(Digest(row.receipt.task_id))
        assert task is not None
        root = Digest(task.record.program)
        pair.provider.store._drop(root)
        size = pair.requester.store.size_of((pair.requester.mesh, peer), root)
        reply = await provider.on_challenge(peer, ChallengeRequest(row.id, [BlobInfo(root, size)], []))
        assert reply.state == "need"
        assert reply.need == [root]
        assert provider.challenges.awaits(peer, root, size)
        assert not provider.challenges.awaits(peer, root, size + 1)
        assert not provider.challenges.awaits(PeerId(STRANGER.peer), root, size)


async def test_a_job_without_receipts_cannot_be_challenged(tmp_path):
    async with open_pair(tmp_path) as pair:
        with pytest.raises(Refused, match="numbered from 0: there is no task 5"):
            await trio.to_thread.run_sync(
                partial(
                    challenge,
                    partial(_link, pair.requester.home.socket_path),
                    pair.job.hex(),
                    5,
                    local=False,
                    timeout=1.0,
                )
            )


async def test_a_provider_that_has_left_is_out_of_reach(tmp_path):
    async with agents.open_world(tmp_path) as world:
        provider = await add(world, "provider", Machine(NumpyRuntime()))
        requester = await add(world, "requester", None, provider)
        await agents.until_found(requester, 1)
        job = await agents.submit(requester, wave())
        await agents.events_of(requester, job)
        world.network.partition({provider.key.peer}, {requester.key.peer})
        await agents.until(lambda: not requester.hub.peers())
        with pytest.raises(Unreachable, match=r"cannot be reached .* ask again when it is back"):
            await requester.challenger.challenge(job.hex(), 0)
        assert "no digests" in await agents.story_of(requester, job)


async def test_the_feature_is_announced(tmp_path):
    async with open_pair(tmp_path) as pair:
        announced = pair.requester.book.get(pair.provider.key.peer)
        assert announced is not None
        assert NODE_DIGESTS in announced.record.devices[0].features
        report = await pair.challenge()
        assert json.loads(json.dumps(report.as_dict()))["fault"] is False
