"""What a challenge must not do: run for nothing, hold others up, lose evidence, or call an honest provider a liar."""

import importlib.util
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import trio

import coppermesh.exec.xp as xp  # noqa: PLR0402 - a namespace module, as users import it
from coppermesh.agent import challenge_server
from coppermesh.agent.challenge_report import NoVerdict
from coppermesh.agent.ledger import EvidenceFound, LedgerError
from coppermesh.agent.traces import same_class
from coppermesh.exec.numpy_runtime import NumpyRuntime
from coppermesh.exec.trace_digests import TraceDigests
from coppermesh.p2p.blobs import digest_of
from coppermesh.p2p.errors import Refused

_path = Path(__file__).parent / "test_agent_challenges.py"
_spec = importlib.util.spec_from_file_location("coppermesh_challenge_world", _path)
assert _spec is not None
assert _spec.loader is not None
world: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(world)
agents = world.agents
Machine, wave, ask, add, open_pair = world.Machine, world.wave, world.ask, world.add, world.open_pair


def lie(pair: Any, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """From now on the provider's Traces say this instead."""
    server = pair.provider.provider.challenges
    honest = server.on_challenge

    async def lying(peer: Any, request: Any) -> Any:
        reply = await honest(peer, request)
        if reply.state != "recorded":
            return reply
        chain = changes.get("inline", reply.chain)
        fields = {name: value for name, value in changes.items() if name != "inline"}
        spoilt = world.resigned(pair.provider.key, reply, **fields)
        return msgspec.structs.replace(spoilt, chain=chain)

    monkeypatch.setattr(server, "on_challenge", lying)


# What it costs the provider


async def test_a_run_whose_requester_left_is_counted_and_its_answer_kept(tmp_path, monkeypatch):
    """Else a requester that drops its connection in time has as many runs as it likes."""
    monkeypatch.setattr(challenge_server, "MAX_RUNS", 1)
    async with open_pair(tmp_path) as pair:
        server = pair.provider.provider.challenges
        other = await agents.submit(pair.requester, wave([7.0]))
        await agents.events_of(pair.requester, other)
        pair.machine.hold = trio.Event()
        with pytest.raises(NoVerdict):
            await pair.challenge(seconds=1.0)
        server.peer_lost(pair.requester.key.peer)
        pair.machine.hold.set()
        await agents.until(lambda: not server._running)
        with pytest.raises(NoVerdict, match="1 challenges of yours were run"):
            await ask(pair.requester, other, seconds=1.0)
        assert not (await pair.challenge()).fault
        assert pair.machine.recorded == 1


async def test_a_run_that_made_way_for_work_is_not_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(challenge_server, "MAX_RUNS", 1)
    async with open_pair(tmp_path) as pair:
        server = pair.provider.provider.challenges
        pair.machine.hold = trio.Event()
        with pytest.raises(NoVerdict):
            await pair.challenge(seconds=1.0)
        again = await agents.submit(pair.requester, wave([7.0]))
        assert (await agents.events_of(pair.requester, again))[-1].kind == "finished"
        await agents.until(lambda: not server._running)
        pair.machine.hold.set()
        assert not (await pair.challenge()).fault


# Who waits for whom


async def test_a_time_limit_is_kept_while_the_provider_is_silent(tmp_path):
    async with open_pair(tmp_path) as pair:
        pair.machine.hold = trio.Event()
        began = time.monotonic()
        with pytest.raises(NoVerdict, match="no answer within 1 s: it is running the task again"):
            await pair.challenge(seconds=1.0)
        assert time.monotonic() - began < challenge_server.ANSWER_SECONDS / 2


async def test_asking_again_and_again_is_one_line_of_the_story(tmp_path, monkeypatch):
    monkeypatch.setattr(challenge_server, "ANSWER_SECONDS", 0.05)
    async with open_pair(tmp_path) as pair:
        pair.machine.hold = trio.Event()
        with pytest.raises(NoVerdict):
            await pair.challenge(seconds=2.0)
        story = await agents.story_of(pair.requester, pair.job)
        assert story.count("asked for the digests") == 1


async def test_another_provider_of_the_same_work_holds_nothing_up(tmp_path):
    machines = [Machine(NumpyRuntime()), Machine(NumpyRuntime())]
    async with agents.open_world(tmp_path) as mesh:
        nodes = [await add(mesh, "one", machines[0])]
        nodes.append(await add(mesh, "two", machines[1], nodes[0]))
        requester = await add(mesh, "requester", None, nodes[0])
        await agents.until_found(requester, 2)
        job = await agents.submit(requester, *(wave() for _ in range(8)), providers=2)
        await agents.events_of(requester, job)
        (own,) = await requester.ledger.receipts(job=job, index=0)
        for node, machine in zip(nodes, machines, strict=True):
            if node.key.peer != own.peer:
                machine.hold = trio.Event()
        report = await ask(requester, job, seconds=2.0)
        assert not report.fault
        assert [finding.kind for finding in report.findings] == ["agree", "refusal", "alone"]
        assert "ran the same task, but: no answer within 2 s" in str(report)


async def test_challenges_of_other_jobs_do_not_wait(tmp_path):
    machines = [Machine(NumpyRuntime()), Machine(NumpyRuntime())]
    async with agents.open_world(tmp_path) as mesh:
        nodes = [await add(mesh, "one", machines[0])]
        nodes.append(await add(mesh, "two", machines[1], nodes[0]))
        requester = await add(mesh, "requester", None, nodes[0])
        await agents.until_found(requester, 2)
        jobs = []
        for first in (0.0, 100.0):
            job = await agents.submit(requester, *(wave([first + n]) for n in range(8)), providers=2)
            await agents.events_of(requester, job)
            jobs.append(await requester.ledger.receipts(job=job))
        slow = next(row for row in jobs[0] if row.peer == nodes[0].key.peer)
        quick = next(row for row in jobs[1] if row.peer == nodes[1].key.peer)
        machines[0].hold = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(requester.challenger.challenge, slow.job.hex(), slow.index)
            await agents.until(lambda: machines[0].recorded == 1)
            with trio.fail_after(10):
                facts = await requester.challenger.challenge(quick.job.hex(), quick.index)
            assert facts["state"] == "recorded"
            nursery.cancel_scope.cancel()
        assert not requester.challenger._turns


# What counts as proof


async def test_evidence_that_a_full_disk_refused_is_kept_next_time(tmp_path, monkeypatch):
    async with open_pair(tmp_path, Machine(world.bent_runtime())) as pair:
        pair.machine.runtime = NumpyRuntime()
        ledger = pair.requester.ledger
        commit, failures = ledger.commit, []

        async def fail_once(change: Any) -> None:
            if isinstance(change, EvidenceFound) and not failures:
                failures.append(change)
                raise LedgerError("disk full")
            await commit(change)

        monkeypatch.setattr(ledger, "commit", fail_once)
        with pytest.raises(Refused, match="disk full"):
            await pair.challenge()
        assert (await pair.challenge()).fault
        assert await pair.evidence() == ["trace-contradiction"]


async def test_a_chain_of_no_nodes_is_no_answer_and_no_evidence(tmp_path, monkeypatch):
    """Under the right program and inputs, properly signed, with the receipt's outputs."""
    async with open_pair(tmp_path) as pair:
        receipt = (await pair.receipt()).receipt
        root = TraceDigests(()).root(receipt.program, receipt.inputs)
        lie(pair, monkeypatch, nodes=0, root=root, chain=digest_of(b""), inline=b"")
        with pytest.raises(Refused, match="0 nodes where the program has 3"):
            await pair.challenge()
        assert await pair.evidence() == []


async def test_who_claims_the_first_run_must_have_signed_its_root(tmp_path, monkeypatch):
    async with open_pair(tmp_path) as pair:
        lie(pair, monkeypatch, first_run=True)
        report = await pair.challenge()
        assert report.fault
        assert "its receipt that nothing was recorded" in str(report)
        assert await pair.evidence() == ["trace-contradiction"]


async def test_who_claims_the_first_run_must_name_its_class(tmp_path, monkeypatch):
    """Another class would excuse everything else."""
    async with open_pair(tmp_path, trace=True) as pair:
        lie(pair, monkeypatch, determinism="another class")
        report = await pair.challenge()
        assert report.fault
        assert "names another class than its receipt" in str(report)


async def test_what_varies_from_run_to_run_convicts_nobody(tmp_path, monkeypatch):
    """A GPU adds floats in any order: other bits in the next run, and an honest provider."""
    monkeypatch.setattr(agents, "CPU", replace(agents.CPU, device="gpu0", kind="cuda", name="a GPU"))
    x = xp.add_at(xp.zeros(2), xp.asarray([0, 0]), xp.asarray(np.array([0.1, 0.2])))
    async with agents.open_world(tmp_path) as mesh:
        machine = Machine(world.bent_runtime())
        provider = await add(mesh, "provider", machine)
        requester = await add(mesh, "requester", None, provider)
        await agents.until_found(requester, 1)
        job = await agents.submit(requester, xp.sin(x))
        await agents.events_of(requester, job)
        machine.runtime = NumpyRuntime()
        report = await ask(requester, job)
        assert not report.fault
        assert "it proves nothing" in str(report)
        assert await requester.ledger.evidence() == []


async def test_a_program_that_is_gone_makes_no_proof(tmp_path):
    """Whether its bits may vary is not known then. The provider still has it, so the challenge goes on."""
    async with open_pair(tmp_path, Machine(world.bent_runtime())) as pair:
        pair.machine.runtime = NumpyRuntime()
        pair.requester.store._drop((await pair.receipt()).receipt.program)
        report = await pair.challenge()
        assert not report.fault
        assert "the program is gone here" in str(report)
        assert await pair.evidence() == []


def test_a_device_that_names_no_class_is_in_none():
    assert same_class("numpy", "numpy")
    assert not same_class("", "")
    assert not same_class("numpy", "cupy")
