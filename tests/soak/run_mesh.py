# ruff: noqa: T201  # a program that prints what it found
"""Agents that talk without end while their connections are dropped at random; every byte right, nothing left behind.

    MALLOC_ARENA_MAX=2 python tests/soak/run_mesh.py [--minutes 120] [--agents 3] [--seed 1]

Each agent is a process with the real transport, control hub, blob store and discovery. All the time blobs of up to
16 MiB are sent, checked on the other side, fetched back and compared; requests and gossip travel too. Every few seconds
each agent drops one connection: half of the times as a cable would be cut, without goodbye. Afterwards everything comes
to rest, and then: no transfer gave wrong bytes or took over 30 s, streams, descriptors, threads and tasks are as many
as before, and resident memory in the last third is at most 10 % and 24 MiB above that of the second. Exits with 1 and
says what is not so.
"""

import argparse
import gc
import json
import os
import random
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio
from blake3 import blake3

from coppermesh.p2p.blob_store import BlobMissing, BlobStore, StoreFull, open_blob_store
from coppermesh.p2p.blobs import digest_of, leaf_digests
from coppermesh.p2p.control import ControlHub, Handler, open_control_hub
from coppermesh.p2p.dial_plan import DialPlan
from coppermesh.p2p.discovery import run_discovery
from coppermesh.p2p.errors import Refused, RemoteProtocolError, Unreachable
from coppermesh.p2p.ids import Digest, PeerId, mesh_id
from coppermesh.p2p.libp2p_transport import Libp2pTransport, open_libp2p_transport
from coppermesh.p2p.messages import Message
from coppermesh.p2p.records import Hash
from coppermesh.p2p.signing import PeerKey
from coppermesh.p2p.transfer import BlobService, fetch_blob, send_blob

MESH = mesh_id("soak")
TOPIC = "coppermesh-soak/1"
MEBIBYTE = 1 << 20
LARGEST = 16 * MEBIBYTE
QUOTA = 256 * MEBIBYTE
PATIENCE = 30.0
TRANSFER_SECONDS = 30.0
"""For one blob there and back, with every break on its way: seconds, even on a busy machine."""
DROP_SECONDS = (2.0, 6.0)
SAMPLE_SECONDS = 5.0
QUIET_SECONDS = 120.0
GROWTH, SLACK = 1.10, 24 * MEBIBYTE
"""What a transfer of three large blobs at once takes comes and goes."""
PAUSE_SECONDS = 0.3


class Look(Message, frozen=True):
    """Which blob to read."""

    root: Hash


class Seen(Message, frozen=True):
    """Plain BLAKE3 of its bytes."""

    digest: Hash


class Echo(Message, frozen=True):
    """Comes back."""

    data: bytes


class Agent:
    """One process's part, and what it counted."""

    def __init__(self, transport: Libp2pTransport, hub: ControlHub, store: BlobStore, seed: str) -> None:
        self.transport = transport
        self.hub = hub
        self.store = store
        self.rng = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self.samples: list[dict[str, int]] = []
        self.slowest_s = 0.0

    async def transfer_forever(self) -> None:
        while True:
            await trio.sleep(PAUSE_SECONDS)
            peer = await self._some_peer()
            size = int(LARGEST ** self.rng.random())
            data = blake3(self.rng.randbytes(16)).digest(length=size)
            began = trio.current_time()
            try:
                with trio.fail_after(TRANSFER_SECONDS):
                    await self._there_and_back(peer, data)
                self.slowest_s = max(self.slowest_s, trio.current_time() - began)
            except (Unreachable, StoreFull, BlobMissing) as error:
                self.counts[type(error).__name__] += 1
            except Refused as refused:
                self.counts[refused.code] += 1
            except trio.TooSlowError:
                state = "connected" if peer in self.transport.connected() else "not connected"
                self.faults.append(
                    f"a transfer of {size} bytes took over {TRANSFER_SECONDS:g} s; {state} then"
                )
            except RemoteProtocolError as error:
                self.faults.append(f"protocol: {error}")

    async def _there_and_back(self, peer: PeerId, data: bytes) -> None:
        root = digest_of(data)
        await send_blob(self.transport, MESH, peer, root, leaf_digests(data), data, patience_s=PATIENCE)
        self.counts["sent"] += 1
        self.counts["sent bytes"] += len(data)
        seen = await self.hub.request(peer, "look", Look(root), Seen, deadline_s=60)
        self.counts["looked at"] += 1
        if seen.digest != blake3(data).digest():
            self.faults.append(f"{len(data)} bytes arrived as other bytes")
        scope = (MESH, self.transport.peer)
        await fetch_blob(self.transport, MESH, peer, root, len(data), self.store, scope, patience_s=PATIENCE)
        if await self.store.read(scope, root) != data:
            self.faults.append(f"{len(data)} bytes came back as other bytes")
        self.counts["fetched"] += 1

    async def ask_forever(self) -> None:
        while True:
            peer = await self._some_peer()
            data = self.rng.randbytes(self.rng.choice([1, 1000, 10_000]))
            await trio.sleep(0.02)
            try:
                answer = await self.hub.request(peer, "echo", Echo(data), Echo)
            except Unreachable:
                self.counts["requests broken off"] += 1
                continue
            self.counts["requests"] += 1
            if answer.data != data:
                self.faults.append("a request's answer is not what was asked")

    async def drop_forever(self) -> None:
        while True:
            await trio.sleep(self.rng.uniform(*DROP_SECONDS))
            peer = await self._some_peer()
            self.counts["connections dropped"] += 1
            if self.rng.random() < 0.5:
                await self.transport.disconnect(peer)
            else:
                cut(self.transport, peer)

    async def gossip_forever(self) -> None:
        async with self.transport.subscribe(
            TOPIC, lambda source, data: data == blake3(source).digest()
        ) as heard:
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def count() -> None:
                    async for _ in heard:
                        self.counts["gossip heard"] += 1

                while True:
                    await trio.sleep(0.5)
                    await self.transport.publish(TOPIC, blake3(self.transport.peer).digest())

    async def _some_peer(self) -> PeerId:
        while True:
            peers = self.hub.peers()
            if peers:
                return self.rng.choice(sorted(peers))
            await trio.sleep(0.1)

    async def sample_forever(self) -> None:
        while True:
            self.samples.append(stock(self.transport))
            await trio.sleep(SAMPLE_SECONDS)


def cut(transport: Libp2pTransport, peer: PeerId) -> None:
    """Reset the TCP connections to a peer under everybody's feet."""
    for connection in transport._connections._peers.get(peer, []):
        stream: Any = connection.mux._stream
        if stream.socket.fileno() < 0:
            continue  # it broke just now
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stream.socket.close()


def stock(transport: Libp2pTransport) -> dict[str, int]:
    connections = [each.mux for group in transport._connections._peers.values() for each in group]
    return {
        "rss": int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "tasks": trio.lowlevel.current_statistics().tasks_living,
        "connections": len(connections),
        "streams": sum(len(mux._streams) for mux in connections),
    }


AT_REST = ("connections", "streams", "tasks")
POOLED, SPARE = ("threads", "descriptors"), 4


async def at_rest(transport: Libp2pTransport, peers: int, like: dict[str, int] | None) -> dict[str, int]:
    """The stock, once every peer is connected once and, if given, it is `like` that; as it is after QUIET_SECONDS."""
    now = stock(transport)
    with trio.move_on_after(QUIET_SECONDS):
        calm = 0
        while calm < 5:
            await trio.sleep(0.5)
            before, now = now, stock(transport)
            steady = now["connections"] == peers and all(now[name] == before[name] for name in AT_REST)
            # trio keeps a worker thread for 10 s after its last work; each has two descriptors.
            steady = steady and (like is None or all(now[name] <= like[name] + SPARE for name in POOLED))
            calm = calm + 1 if steady and (like is None or all(now[n] == like[n] for n in AT_REST)) else 0
    return now


@asynccontextmanager
async def open_agent(folder: Path, bootstrap: list[str], seed: str) -> AsyncIterator[Agent]:
    key = PeerKey.generate()
    async with (
        open_libp2p_transport(key, MESH) as transport,
        open_blob_store(folder, quota_bytes=QUOTA, owner=key.peer) as store,
    ):
        assert isinstance(transport, Libp2pTransport)

        async def look(peer: PeerId, request: Look) -> Message:
            try:
                data = await store.read((MESH, peer), Digest(request.root))
            except BlobMissing as missing:
                raise Refused("evicted", str(missing)) from missing
            return Seen(blake3(data).digest())

        async def echo(peer: PeerId, request: Echo) -> Message:
            return request

        handlers: dict[str, Handler] = {"look": (Look, look), "echo": (Echo, echo)}
        async with (
            open_control_hub(
                transport, MESH, key.peer, handlers=handlers, clock=lambda: time.time_ns() // 1000
            ) as hub,
            trio.open_nursery() as nursery,
        ):
            BlobService(transport, MESH, store)
            plan = DialPlan(key.peer, random.Random(seed))
            nursery.start_soon(partial(run_discovery, transport, plan, bootstrap=bootstrap))

            @nursery.start_soon
            async def drain() -> None:
                async for _ in hub.events():
                    pass

            yield Agent(transport, hub, store, seed)
            nursery.cancel_scope.cancel()


async def agent_process(peers: int, seed: str, bootstrap: list[str]) -> None:
    """Commands on stdin: `load`, `rest`, `end`. Answers on stdout, one line of JSON each."""
    with tempfile.TemporaryDirectory(prefix="coppermesh-soak-") as folder:
        async with open_agent(Path(folder), bootstrap, seed) as agent:
            tell({"address": agent.transport.addresses[0]})
            await command("load")
            before = await at_rest(agent.transport, peers, None)
            tell({})
            async with trio.open_nursery() as load:
                parts = [agent.transfer_forever] * 3 + [agent.ask_forever] * 4
                for part in [*parts, agent.drop_forever, agent.gossip_forever, agent.sample_forever]:
                    load.start_soon(part)
                await command("rest")
                load.cancel_scope.cancel()
            gc.collect()
            after = await at_rest(agent.transport, peers, before)
            judge(agent, before, after)
            report = {
                "before": before,
                "after": after,
                "counts": dict(agent.counts),
                "faults": agent.faults,
                "slowest transfer s": round(agent.slowest_s, 1),
                "rss MiB": memory_curve(agent.samples),
                "store": repr(agent.store.statistics()),
            }
            tell(report)
            await command("end")


def judge(agent: Agent, before: dict[str, int], after: dict[str, int]) -> None:
    for name in ("connections", "streams", "tasks"):
        if after[name] != before[name]:
            agent.faults.append(f"{name}: {before[name]} before, {after[name]} after")
    for name in POOLED:
        if after[name] > before[name] + SPARE:
            agent.faults.append(f"{name}: {before[name]} before, {after[name]} after")
    third = max(1, len(agent.samples) // 3)
    middle, last = agent.samples[third : 2 * third], agent.samples[2 * third :]
    if middle and last:
        early, late = (statistics.median(each["rss"] for each in part) for part in (middle, last))
        if late > early * GROWTH + SLACK:
            agent.faults.append(f"memory grew from {early / MEBIBYTE:.0f} to {late / MEBIBYTE:.0f} MiB")


def memory_curve(samples: list[dict[str, int]]) -> list[int]:
    """Resident memory in twelve places of the run, in MiB."""
    step = max(1, len(samples) // 12)
    return [round(each["rss"] / MEBIBYTE) for each in samples[::step]]


def tell(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


async def command(wanted: str) -> None:
    line = await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)
    if line.strip() != wanted:
        # The parent is gone.
        raise SystemExit(1)


def run(minutes: float, agents: int, seed: int) -> dict[str, Any]:
    """Start the agents, let them go on for that long, and collect what they found."""
    processes: list[subprocess.Popen[str]] = []
    addresses: list[str] = []

    def ask(what: str) -> list[dict[str, Any]]:
        for process in processes:
            assert process.stdin is not None
            print(what, file=process.stdin, flush=True)
        return [answer(process) for process in processes]

    try:
        for number in range(agents):
            arguments = [__file__, "--agent", f"{seed}/{number}", "--agents", str(agents), *addresses]
            processes.append(
                subprocess.Popen(
                    [sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            )
            addresses.append(answer(processes[-1])["address"])
        ask("load")
        began = time.monotonic()
        time.sleep(minutes * 60)
        loaded = time.monotonic() - began
        found = ask("rest")
        for process in processes:
            process.communicate("end\n", timeout=60)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate()
    counts: Counter[str] = Counter()
    for each in found:
        counts.update(each["counts"])
    faults = [f"agent {number}: {text}" for number, each in enumerate(found) for text in each["faults"]]
    if not counts["fetched"] or not counts["requests"] or not counts["connections dropped"]:
        faults.append("hardly anything happened")
    return {"seconds": round(loaded), "counts": dict(counts), "faults": faults, "agents": found}


def answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit("an agent of the soak ended early; its error is above")
    found: dict[str, Any] = json.loads(line)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--agents", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--agent", help=argparse.SUPPRESS)
    parser.add_argument("addresses", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.agent is not None:
        trio.run(agent_process, arguments.agents - 1, arguments.agent, arguments.addresses)
        return
    report = run(arguments.minutes, arguments.agents, arguments.seed)
    print(json.dumps(report, indent=1))
    sys.exit(1 if report["faults"] else 0)


if __name__ == "__main__":
    main()
