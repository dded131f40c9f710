"""A receipt that the disk took late is delivered all the same: what is durable is claimed, and paid."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import trio

from coppermesh.agent import lease_server
from coppermesh.agent.ledger import ReceiptIssued

_spec = importlib.util.spec_from_file_location("agent_world", Path(__file__).with_name("test_agent_world.py"))
assert _spec is not None
assert _spec.loader is not None
agents: Any = importlib.util.module_from_spec(_spec)
sys.modules["agent_world"] = agents
_spec.loader.exec_module(agents)
events_of = agents.events_of
numbers = agents.numbers
open_world = agents.open_world
submit = agents.submit
until_found = agents.until_found


async def test_a_receipt_whose_commit_outlasts_its_deadline_is_sent_and_paid(tmp_path, monkeypatch):
    monkeypatch.setattr(lease_server, "ISSUE_SECONDS", 0.05)
    async with open_world(tmp_path) as world:
        provider = await world.add("provider", provide=True)
        requester = await world.add("requester", provide=False, bootstrap=provider)
        await until_found(requester, 1)
        commit = provider.ledger.commit

        async def slow(*entries: Any) -> None:
            with trio.CancelScope(shield=True):  # as the store does once a commit is queued
                if any(isinstance(entry, ReceiptIssued) for entry in entries):
                    await trio.sleep(0.3)
                await commit(*entries)

        monkeypatch.setattr(provider.ledger, "commit", slow)
        job = await submit(requester, numbers(1.0), numbers(2.0))
        assert (await events_of(requester, job))[-1].kind == "finished"
        assert [row.verdict for row in await requester.ledger.receipts(job=job)] == ["accepted"] * 2
