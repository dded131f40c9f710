"""The agent's answers to its local clients: jobs, and the facts behind every reading command."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from coppermesh.agent import ledger_views
from coppermesh.agent.challenge_facts import ROUND_SECONDS
from coppermesh.agent.clock import now_us
from coppermesh.agent.config import described, values_of
from coppermesh.agent.earnings import GROUPINGS
from coppermesh.agent.economy_views import earnings_facts
from coppermesh.agent.jobs import JobState
from coppermesh.agent.local_api import Method
from coppermesh.agent.local_messages import (
    MAX_LOCAL_FRAME_BYTES,
    MAX_TASKS,
    JsonBody,
    LocalMessage,
    SubmitCall,
    WaitCall,
)
from coppermesh.agent.mesh_state import doubt_of
from coppermesh.agent.network_facts import network_facts
from coppermesh.agent.peer_views import peer_rows
from coppermesh.agent.screens import counted
from coppermesh.agent.sharing import Obstacle
from coppermesh.agent.software import SOFTWARE
from coppermesh.p2p.addresses import parse_address
from coppermesh.p2p.certificates import Right
from coppermesh.p2p.encoding import decode
from coppermesh.p2p.envelope import open_record
from coppermesh.p2p.errors import Refused
from coppermesh.p2p.ids import PeerId, format_peer
from coppermesh.p2p.records import Announcement

if TYPE_CHECKING:
    from coppermesh.agent.node import Node

MAX_ROWS = 10_000

THREAD_BYTES = 64 * 1024
"""A submit call above this is read in a thread."""


class NodeViews:
    """Methods of the local API. Each takes a call's body and returns the answer's."""

    def __init__(self, node: "Node") -> None:
        self._node = node

    def methods(self) -> Mapping[str, Method]:
        """Everything a client may call."""
        return {
            "submit": self._submit,
            "quote": self._quote,
            "wait": self._wait,
            "cancel": self._cancel,
            "jobs": self._jobs,
            "status": self._status,
            "peers": self._peers,
            "network": self._network,
            "devices": self._devices,
            "pause": self._pause,
            "resume": self._resume,
            "reclaim": self._reclaim,
            "config": self._config,
            "stop": self._stop,
            "receipts": self._receipts,
            "receipt": self._receipt,
            "receipt-file": self._receipt_file,
            "explain": self._explain,
            "price": self._price,
            "earnings": self._earnings,
            "challenge": self._challenge,
            "challenge-note": self._challenge_note,
            **self._node.desk.methods(),
        }

    async def _submit(self, body: bytes) -> LocalMessage:
        self._node.machine.touch()
        if self._node.keeper is not None:
            self._node.keeper.private.book.require(self._node.key.peer, Right.SUBMIT, now_us())
        return await self._node.requester.submit(await _decode_submit(body))

    async def _quote(self, body: bytes) -> LocalMessage:
        self._node.machine.touch()
        return _json(await self._node.requester.quote(await _decode_submit(body)))

    async def _wait(self, body: bytes) -> LocalMessage:
        self._node.machine.touch()
        return await self._node.requester.wait(decode(WaitCall, body, max_bytes=1024))

    async def _cancel(self, body: bytes) -> LocalMessage:
        requester = self._node.requester
        job = requester.jobs.find_prefix(_text_argument(_arguments(body), "job"))
        cancelled = requester.cancel(job.job)
        what = "cancelled; finished tasks stay paid" if cancelled else "had ended already"
        return _json(
            {"job": job.job.hex(), "cancelled": cancelled, "sentence": f"job {job.job.hex()[:8]} {what}"}
        )

    async def _jobs(self, body: bytes) -> LocalMessage:
        limit = _limit_argument(_arguments(body))
        rows = ledger_views.job_rows(await self._node.ledger.submitted(limit))
        kept = {job.job.hex(): job for job in self._node.requester.jobs.all()}
        written = {row["job"] for row in rows}
        # What it remembers itself is newer than what is written, which lags behind a little.
        rows = [_job_facts(job) for known, job in reversed(kept.items()) if known not in written] + rows
        for row in rows:
            job = kept.get(row["job"])
            if job is not None:
                row["done"] = job.done
                row["state"], row["code"] = _state_of(job)
        rows.sort(key=lambda row: int(row["submitted_us"]), reverse=True)
        return _json(rows[:limit])

    async def _status(self, body: bytes) -> LocalMessage:
        node = self._node
        provider = node.provider
        return _json(
            {
                "peer": format_peer(node.key.peer),
                "mesh": node.config.mesh,
                "private": node.keeper is not None,
                "mesh_doubt": _doubt(node),
                "home": str(node.home.path),
                "addresses": node.transport.addresses,
                "uptime_s": (now_us() - node.machine.started_us) / 1e6,
                "started_us": node.machine.started_us,
                "first_announcement_us": node.announcer.first_heard_us,
                "provide": provider is not None,
                "simulated": node.machine.simulated,
                "paused": provider is not None and provider.closed,
                "not_lending": [] if provider is None else provider.not_lending(),
                "settings_error": node.machine.owner.settings.error,
                "settings_waiting": list(node.machine.owner.settings.waiting),
                "bootstrap": self._bootstrap(),
                "connected": len(node.transport.connected()),
                "announced": len(node.book.current(now_us())),
                "leases_serving": len(provider.leases) if provider is not None else 0,
                "leases_held": len(node.requester.leases),
                "jobs_open": len(node.requester.jobs.running()),
                "results_waiting": node.outbox.under_way,
                "store": asdict(node.store.statistics()),
                "transfers": asdict(node.blobs.counts),
                "gossip": {str(verdict): count for verdict, count in node.book.counts.items()},
                "notes_lost": node.ledger.notes_lost,
                "trio_tasks": trio.lowlevel.current_statistics().tasks_living,
            }
        )

    async def _peers(self, body: bytes) -> LocalMessage:
        return _json({"peers": await peer_rows(self._node), "bootstrap": self._bootstrap()})

    def _bootstrap(self) -> list[dict[str, Any]]:
        """The configured first peers, and why the last dial failed where none is connected."""
        connected = set(self._node.transport.connected())
        facts = []
        for address in self._node.config.bootstrap:
            peer = parse_address(address).peer
            if peer != self._node.key.peer:
                here = peer in connected
                error = None if here else self._node.plan.troubles.get(address)
                facts.append({"address": address, "connected": here, "error": error})
        return facts

    async def _network(self, body: bytes) -> LocalMessage:
        """For `coppermesh doctor`: asks peers to dial back, which takes some seconds."""
        return _json(await network_facts(self._node, SOFTWARE))

    async def _devices(self, body: bytes) -> LocalMessage:
        node = self._node
        records = [
            opened.record for opened in node.book.current(now_us()) if opened.record.peer != node.key.peer
        ]
        connected = set(node.transport.connected())
        rows = [
            row
            for record in records
            for row in _device_facts(record, own=False, connected=PeerId(record.peer) in connected)
        ]
        newest = node.announcer.newest
        if newest is not None:
            own = open_record(Announcement, newest).record
            rows = [*_device_facts(own, own=True, connected=True), *rows]
        return _json({"devices": rows})

    async def _pause(self, body: bytes) -> LocalMessage:
        """`now` true: leases end as well; their tasks cost nothing and run elsewhere."""
        return self._set_paused(paused=True, now=_arguments(body).get("now") is True)

    async def _resume(self, body: bytes) -> LocalMessage:
        return self._set_paused(paused=False)

    async def _reclaim(self, body: bytes) -> LocalMessage:
        """Give devices back now: those named in `devices`, or all."""
        machine, arguments = self._node.machine, _arguments(body)
        group = machine.providers
        if group is None:
            raise Refused("no-provider", "this agent offers no device: there is nothing to take back")
        known = [device.offer.device for device in machine.devices]
        wanted = arguments.get("devices") or known
        if not isinstance(wanted, list) or any(device not in known for device in wanted):
            raise Refused("bad-argument", f"no such device is offered here, only {', '.join(known)}")
        began = trio.current_time()
        # First of all: whoever asks may go away, or this agent end, while workers are waited for.
        kept = machine.home.keep_reclaimed(group.reclaimed | set(wanted))
        ended, gone = await group.reclaim(wanted)
        facts = {
            "devices": wanted,
            "leases_ended": ended,
            "gone": gone,
            "seconds": trio.current_time() - began,
        }
        return _json(facts | {"sentence": _reclaimed(facts, kept)})

    async def _config(self, body: bytes) -> LocalMessage:
        """Every setting that holds, and where it came from."""
        settings = self._node.machine.owner.settings
        facts = described(settings.origins, values_of(settings.config))
        return _json(
            {
                "path": str(self._node.home.config_path),
                "running": True,
                "error": settings.error,
                "waiting": list(settings.waiting),
                "settings": facts,
            }
        )

    def _set_paused(self, *, paused: bool, now: bool = False) -> LocalMessage:
        provider, group = self._node.provider, self._node.machine.providers
        if provider is None or group is None:
            raise Refused("no-provider", "this agent offers no device: there is nothing to pause")
        kept = self._node.home.keep_paused(paused)
        ended = 0
        if paused and now:
            reason = "the owner of the provider has paused it and ended its leases; run the tasks elsewhere"
            ended = group.stop_leases(Obstacle("paused", reason))
        group.paused = paused
        if not paused:
            group.give_back()
            kept = self._node.home.keep_reclaimed(()) and kept
        group.changed()
        if not paused:
            reasons = [reason["sentence"] for reason in provider.not_lending()]
            sentence = f"resumed, but {'; '.join(map(str, reasons))}" if reasons else "resumed: taking leases"
        elif now:
            sentence = f"paused: no new leases; {counted(ended, 'lease')} ended"
        else:
            running = counted(group.tasks_accepted, "accepted task")
            sentence = f"paused: no new leases or tasks; {running} to the end"
        if not kept:
            sentence += "; not kept over a restart, for the home cannot be written"
        return _json({"paused": paused, "sentence": sentence})

    async def _stop(self, body: bytes) -> LocalMessage:
        self._node.machine.stopping.set()
        return _json({"sentence": "the agent is stopping"})

    async def _receipts(self, body: bytes) -> LocalMessage:
        limit = _limit_argument(_arguments(body))
        return _json(ledger_views.list_rows(await self._node.ledger.receipts(limit=limit)))

    async def _receipt(self, body: bytes) -> LocalMessage:
        row = await self._node.ledger.find_receipt(_text_argument(_arguments(body), "receipt"))
        return _json(ledger_views.full_receipt(row))

    async def _receipt_file(self, body: bytes) -> LocalMessage:
        row = await self._node.ledger.find_receipt(_text_argument(_arguments(body), "receipt"))
        return _json({"file": (await self._node.ledger.receipt_file(row.id)).hex()})

    async def _explain(self, body: bytes) -> LocalMessage:
        job = _text_argument(_arguments(body), "job")
        return _json(ledger_views.story(await self._node.ledger.story(job)))

    async def _price(self, body: bytes) -> LocalMessage:
        machine = self._node.machine
        return _json({"running": True, **machine.prices.facts(machine.owner.settings.config, now_us())})

    async def _earnings(self, body: bytes) -> LocalMessage:
        arguments = _arguments(body)
        since_us, by = arguments.get("since_us", 0), _text_argument(arguments, "by")
        if not isinstance(since_us, int) or by not in GROUPINGS:
            raise Refused(
                "bad-argument", "want `since_us` in microseconds and `by`, one of " + ", ".join(GROUPINGS)
            )
        machine = self._node.machine
        cores = {device.info.device: device.info.cores for device in machine.devices}
        rows = await self._node.ledger.earned(since_us)
        config = machine.owner.settings.config
        return _json(await trio.to_thread.run_sync(earnings_facts, rows, machine.home, config, cores, by))

    async def _challenge(self, body: bytes) -> LocalMessage:
        """One round of a challenge; a client asks again until its `state` is `recorded`."""
        self._node.machine.touch()
        arguments = _arguments(body)
        job, index = _text_argument(arguments, "job"), _index_argument(arguments)
        return _json(await self._node.challenger.challenge(job, index, _wait_argument(arguments)))

    async def _challenge_note(self, body: bytes) -> LocalMessage:
        """What a client's own run of a challenged task came to, for the job's story."""
        arguments = _arguments(body)
        job = await self._node.ledger.find_job(_text_argument(arguments, "job"))
        self._node.challenger.note_local(job, _index_argument(arguments), _text_argument(arguments, "text"))
        return _json({})


async def _decode_submit(body: bytes) -> SubmitCall:
    """In a thread where it is large: a hundred thousand tasks take a moment to read."""
    read = partial(decode, SubmitCall, body, max_bytes=MAX_LOCAL_FRAME_BYTES, max_items=MAX_TASKS)
    return await trio.to_thread.run_sync(read) if len(body) > THREAD_BYTES else read()


def _doubt(node: "Node") -> str | None:
    if node.keeper is not None:
        return None
    keepers = [other.keeper for other in node.meshes.nodes if other.keeper is not None]
    return doubt_of(node.config.mesh, [keeper.private.state for keeper in keepers])


def _json(facts: Any) -> JsonBody:
    return JsonBody(json.dumps(facts))


def _reclaimed(facts: Mapping[str, Any], kept: bool) -> str:
    names = " and ".join(facts["devices"])
    if not facts["gone"]:
        return f"{names}: no more work, but a worker is not gone after {facts['seconds']:.1f} s (`coppermesh status`)"
    ended = counted(facts["leases_ended"], "lease")
    sentence = f"{names}: yours again after {facts['seconds']:.2f} s, {ended} ended; `coppermesh resume` lends it again"
    return sentence if kept else f"{sentence}; not kept over a restart, for the home cannot be written"


def _arguments(body: bytes) -> dict[str, Any]:
    try:
        arguments = json.loads(decode(JsonBody, body, max_bytes=64 * 1024).text)
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise Refused("bad-argument", "want a JSON object")
    return arguments


def _text_argument(arguments: Mapping[str, Any], name: str) -> str:
    value = arguments.get(name)
    if not isinstance(value, str) or not value:
        raise Refused("bad-argument", f"{name}: want text")
    return value


def _index_argument(arguments: Mapping[str, Any]) -> int:
    index = arguments.get("task", 0)
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < MAX_TASKS:
        raise Refused("bad-argument", f"task: want a number from 0 to {MAX_TASKS - 1}")
    return index


def _wait_argument(arguments: Mapping[str, Any]) -> float:
    seconds = arguments.get("wait_s")
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 < seconds <= ROUND_SECONDS:
        raise Refused("bad-argument", f"wait_s: want seconds, above 0 and at most {ROUND_SECONDS:.0f}")
    return float(seconds)


def _limit_argument(arguments: Mapping[str, Any]) -> int:
    limit = arguments.get("limit", 50)
    if not isinstance(limit, int) or isinstance(limit, bool) or not 0 < limit <= MAX_ROWS:
        raise Refused("bad-argument", f"limit: want a number from 1 to {MAX_ROWS}")
    return limit


def _job_facts(job: JobState) -> dict[str, Any]:
    """A job of which nothing is written yet. Keys as in `ledger_views.job_rows`."""
    return {
        "job": job.job.hex(),
        "submitted_us": job.submitted_us,
        "tasks": len(job.tasks),
        "done": job.done,
        "state": "running",
        "code": "",
        "cost": 0,
        "unit": job.requirement.unit,
    }


def _state_of(job: JobState) -> tuple[str, str]:
    """`running`, `done` or `failed`, and why it failed."""
    if job.ended_us is None:
        return "running", ""
    last = job.events[-1]
    return ("failed", json.loads(last.text)["code"]) if last.kind == "failed" else ("done", "")


def _device_facts(record: Announcement, *, own: bool, connected: bool) -> list[dict[str, Any]]:
    return [
        {
            "peer": format_peer(PeerId(record.peer)),
            "own": own,
            "connected": connected,
            "device": device.device,
            "kind": device.kind,
            "name": device.name,
            "memory_bytes": device.memory_bytes,
            "rate": device.rate,
            "unit": device.unit,
            "slots": device.slots,
            "busy_slots": record.busy_slots,
            "features": list(device.features),
            "meter": device.meter,
            "compute_capability": device.compute_capability,
            "uuid": device.uuid,
            "driver": device.driver,
            "total_bytes": device.total_bytes,
            "paused": record.paused,
        }
        for device in record.devices
    ]
