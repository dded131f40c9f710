#!/usr/bin/env python3
# ruff: noqa: T201  # a program that prints what it found
"""Many agents' meshing as real processes on one machine: do all know all, how soon, and what do bad ones change?

    python tests/soak/run_thirty.py --peers 30 --bad 5 --watch 120 --json

Each process runs the real transport, control hub, discovery and announcer of an agent over loopback, with a made-up
device in place of a provider (no ledger, no worker). The parent imports everything and forks, so that a start costs
milliseconds instead of seconds; what is measured begins after the fork. `--bad`: processes that forge announcements
in others' names, publish old ones again and sign too many of their own, `--rate` messages a second each in all.

Each process reports five times a second whom it lists; the parent compares that with who is alive. Phases: all start;
watch; kill -9 of a third; wait until nobody lists the dead.
"""

import argparse
import json
import os
import random
import selectors
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import trio
from blake3 import blake3

from coppermesh.agent.clock import now_us
from coppermesh.p2p.announcements import LIFETIME_US, AnnouncementBook
from coppermesh.p2p.announcer import Announcer
from coppermesh.p2p.control import ChannelUp, ControlHub, open_control_hub
from coppermesh.p2p.discovery import DialPlan, run_discovery
from coppermesh.p2p.envelope import sign_record, to_bytes
from coppermesh.p2p.errors import MeshError
from coppermesh.p2p.ids import PeerId, mesh_id
from coppermesh.p2p.libp2p_transport import open_libp2p_transport
from coppermesh.p2p.messages import AnnouncementRequest
from coppermesh.p2p.records import Announcement, DeviceOffer
from coppermesh.p2p.shards import topic_of
from coppermesh.p2p.signing import PeerKey
from coppermesh.p2p.transport import Transport

MESH = mesh_id("many peers")
REPORT_SECONDS = 0.2
GIVE_UP_SECONDS = 240.0
OFFER = DeviceOffer(
    device="cpu",
    kind="cpu",
    name="made up",
    rate=100_000,
    unit="usd",
    memory_bytes=1 << 30,
    slots=1,
    features=["array-programs"],
    meter="none",
    compute_capability=None,
    uuid=None,
    driver=None,
    total_bytes=None,
)


class MadeUp:
    """What the announcer needs of a provider."""

    isolation: tuple[str, ...] = ()
    busy_slots = 0
    closed = False

    @property
    def offers(self) -> list[DeviceOffer]:
        return [OFFER]


def key_of(number: int) -> PeerKey:
    return PeerKey(blake3(b"peer %d" % number).digest())


class Peer:
    """One process's part of the mesh."""

    def __init__(self, number: int, transport: Transport, hub_to_be: list[ControlHub]) -> None:
        self.number = number
        self.key = key_of(number)
        self.transport = transport
        self.book = AnnouncementBook(MESH)
        self.plan = DialPlan(self.key.peer, random.Random())
        self._hub = hub_to_be
        self.announcer: Announcer

    async def answer(self, peer: PeerId, request: AnnouncementRequest) -> Any:
        return self.announcer.reply_to(peer, request)

    async def follow(self) -> None:
        async with trio.open_nursery() as nursery:
            async for event in self._hub[0].events():
                if isinstance(event, ChannelUp):
                    nursery.start_soon(self.announcer.fetch, event.peer)
                else:
                    self.book.lost(event.peer)

    def report(self) -> dict[str, Any]:
        listed = [opened.signer.hex()[:16] for opened in self.book.current(now_us())]
        counts = self.transport.counts
        return {
            "number": self.number,
            "lists": listed,
            "copies": counts.gossip_copies,
            "cut": counts.gossip_cut,
            "cpu": time.process_time(),
            "at": time.monotonic(),
        }


async def live(number: int, seed: str | None, bad: bool, rate: float, write: int) -> None:
    """Be peer `number` until killed."""
    key = key_of(number)
    async with open_libp2p_transport(key, MESH) as transport:
        hubs: list[ControlHub] = []
        peer = Peer(number, transport, hubs)
        handlers = {"announcement": (AnnouncementRequest, peer.answer)}
        async with open_control_hub(transport, MESH, key.peer, handlers=handlers, clock=now_us) as hub:
            hubs.append(hub)
            peer.announcer = Announcer(
                key, MESH, transport, hub, peer.book, MadeUp(), software="many peers", now_us=now_us,
                rng=random.Random(), heard=lambda: None,
            )  # fmt: skip
            peer.announcer.plan = peer.plan
            say(write, {"number": number, "address": transport.addresses[0], "pid": os.getpid()})
            async with trio.open_nursery() as nursery:
                nursery.start_soon(peer.follow)
                await nursery.start(peer.announcer.run)
                known = [] if seed is None else [seed]
                nursery.start_soon(partial(run_discovery, transport, peer.plan, bootstrap=known))
                if bad:
                    nursery.start_soon(misbehave, peer, rate)
                while True:
                    say(write, peer.report())
                    await trio.sleep(REPORT_SECONDS)


def say(write: int, facts: dict[str, Any]) -> None:
    os.write(write, json.dumps(facts).encode() + b"\n")  # below PIPE_BUF: whole or not at all


async def misbehave(peer: Peer, rate: float) -> None:
    """Forge, repeat and flood, once the others are known."""
    await trio.sleep(3)
    topic, sequence = topic_of(MESH, ""), 0
    rng = random.Random(peer.number)
    while True:
        sequence += 1
        kind = sequence % 3
        signer = peer.key if kind else PeerKey.generate()
        record = Announcement(
            1, MESH, signer.peer, now_us() + sequence, now_us(), now_us() + LIFETIME_US, "bad", [], [OFFER], [], 0,
            False, "",
        )  # fmt: skip
        data = to_bytes(sign_record(signer, record))
        if kind == 0:
            data = data[:-1] + bytes([data[-1] ^ 1])
        newest = peer.announcer.newest
        if kind == 1 and newest is not None:
            data = to_bytes(newest)
        with suppress(MeshError):
            await peer.transport.publish(topic, data)
        await trio.sleep(rng.uniform(0.5, 1.5) / rate)


# The parent


class Lab:
    """The processes and the newest report of each."""

    def __init__(self) -> None:
        self.pids: dict[int, int] = {}
        self.newest: dict[int, dict[str, Any]] = {}
        self.addresses: dict[int, str] = {}
        self.selector = selectors.DefaultSelector()
        self._rest: dict[int, bytes] = {}
        self.right = self.total = self.ended = self.killed = 0

    def start(self, number: int, seed: str | None, bad: bool, rate: float) -> None:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            os.setsid()
            try:
                trio.run(live, number, seed, bad, rate, write)
            except BaseException as error:  # noqa: BLE001 - a child must never run the parent's code
                print(f"peer {number}: {error!r}", file=sys.stderr)
            finally:
                os._exit(1)
        os.close(write)
        os.set_blocking(read, False)
        self.pids[number] = pid
        self._rest[read] = b""
        self.selector.register(read, selectors.EVENT_READ)

    def listen(self, seconds: float, honest: Sequence[int] = (), alive: frozenset[str] = frozenset()) -> None:
        """Take reports for so long; with `alive`, count listed pairs of `honest` that are as they should be."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            for key, _ in self.selector.select(left):
                self._take(key.fd, set(honest), alive)

    def _take(self, read: int, honest: set[int], alive: frozenset[str]) -> None:
        data = os.read(read, 1 << 16)
        if not data:
            self.selector.unregister(read)
            os.close(read)
            self.ended += 1
            return
        *lines, self._rest[read] = (self._rest[read] + data).split(b"\n")
        for line in lines:
            facts = json.loads(line)
            if "address" in facts:
                self.addresses[facts["number"]] = facts["address"]
                continue
            self.newest[facts["number"]] = facts
            if facts["number"] in honest and alive:
                listed = set(facts["lists"]) | {name_of(facts["number"])}
                self.right += len(alive & listed)
                self.total += len(alive)

    def wait(self, what: str, true: Any) -> float:
        """Seconds until `true()`; ends the script where that does not come."""
        began = time.monotonic()
        while not true():
            self.listen(0.1)
            if self.ended > self.killed:
                raise SystemExit(f"{what}: a process ended by itself")
            if time.monotonic() - began > GIVE_UP_SECONDS:
                raise SystemExit(f"{what}: not within {GIVE_UP_SECONDS:.0f} s")
        return time.monotonic() - began

    def close(self) -> None:
        for pid in self.pids.values():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for pid in self.pids.values():
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                continue


def name_of(number: int) -> str:
    return key_of(number).peer.hex()[:16]


def run(peers: int, bad: int, rate: float, watch: float) -> dict[str, Any]:
    lab = Lab()
    try:
        return measure(lab, peers, bad, rate, watch)
    finally:
        lab.close()


def measure(lab: Lab, peers: int, bad: int, rate: float, watch: float) -> dict[str, Any]:
    honest = list(range(peers))
    names = frozenset(name_of(number) for number in honest)
    lab.start(0, None, bad=False, rate=rate)
    lab.wait("the first peer's address", lambda: 0 in lab.addresses)
    for number in range(1, peers + bad):
        lab.start(number, lab.addresses[0], number >= peers, rate)
    lab.wait("all started", lambda: len(lab.addresses) == peers + bad)

    def lists(number: int) -> set[str]:
        return set(lab.newest.get(number, {}).get("lists", ())) | {name_of(number)}

    all_know_all = lab.wait("all know all", lambda: all(names <= lists(number) for number in honest))
    # What came meanwhile is over; bad ones begin 3 s after their start and have to be cut off.
    bad_cut = lab.wait(
        "bad ones cut off",
        lambda: not bad or sum(lab.newest[number]["cut"] for number in honest) >= bad * (peers // 4),
    )
    first = {number: dict(lab.newest[number]) for number in honest}
    lab.listen(watch, honest, names)
    last = {number: dict(lab.newest[number]) for number in honest}
    span = {number: last[number]["at"] - first[number]["at"] for number in honest}
    doomed = honest[1 : 1 + peers // 3]
    left = [number for number in honest if number not in doomed]
    dead = {name_of(number) for number in doomed}
    lab.killed = len(doomed)
    for number in doomed:
        os.kill(lab.pids[number], signal.SIGKILL)
    forgotten = lab.wait("the dead forgotten", lambda: not any(dead & lists(number) for number in left))
    stopped = left[-1]
    os.kill(lab.pids[stopped], signal.SIGSTOP)
    others = [number for number in left if number != stopped]
    noticed = lab.wait(
        "a stopped process noticed", lambda: not any(name_of(stopped) in lists(number) for number in others)
    )
    os.kill(lab.pids[stopped], signal.SIGCONT)
    returned = lab.wait(
        "a stopped process back", lambda: all(name_of(stopped) in lists(number) for number in others)
    )

    def per_minute(what: str) -> float:
        total: float = sum((last[n][what] - first[n][what]) / span[n] * 60 for n in honest)
        return total / len(honest)

    return {
        "peers": peers,
        "bad": bad,
        "all_know_all_s": round(all_know_all, 1),
        "bad_cut_off_s": round(bad_cut, 1),
        "view_right_share": round(lab.right / max(1, lab.total), 6),
        "killed": len(doomed),
        "killed_forgotten_s": round(forgotten, 1),
        "stopped_noticed_s": round(noticed, 1),
        "stopped_back_s": round(returned, 1),
        "gossip_messages_a_peer_and_minute": round(per_minute("copies"), 1),
        "cpu_ms_a_peer_and_second": round(1000 * per_minute("cpu") / 60, 1),
        "load_average": os.getloadavg()[0],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--peers", type=int, default=30)
    parser.add_argument("--bad", type=int, default=0)
    parser.add_argument("--rate", type=float, default=200.0, help="messages a second of each bad one")
    parser.add_argument("--watch", type=float, default=120.0, help="seconds")
    options = parser.parse_args()
    print(json.dumps(run(options.peers, options.bad, options.rate, options.watch)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
