"""Latency of an agent's honest peer while strangers attack the agent: quiet, under each attack, quiet again.

    python tests/bench/bench_under_attack.py [--seconds N] [--rounds N]

Three processes: the agent (transport, control hub, gossip), its honest peer (this one: 1 KiB control requests, 50 a
second, their round trip), and the attackers, at low priority since on one machine they take the agent's processor, not
only its attention. Every round measures quiet, then each attack, so that a busy machine slows all; ratios are to the
quiet of the same round. Attacks:

- garbage on the port, 50 connections a second
- 300 handshakes begun and left, and 1,000 idle connections, each opened again when it is closed
- frames over the limit on yamux, control and gossip streams, a connection each time
- ten peers that have bulk sent to them and read one byte a second
- all of these at once
"""

# ruff: noqa: T201

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio

from coppermesh.p2p.addresses import parse_address
from coppermesh.p2p.control import control_protocol, open_control_hub
from coppermesh.p2p.errors import MeshError
from coppermesh.p2p.ids import PeerId, mesh_id
from coppermesh.p2p.libp2p_multistream import HEADER, encode_message
from coppermesh.p2p.libp2p_transport import open_libp2p_transport
from coppermesh.p2p.libp2p_upgrade import NOISE_AES, Identity, upgrade
from coppermesh.p2p.libp2p_yamux_frames import DATA, SYN, WINDOW_UPDATE
from coppermesh.p2p.libp2p_yamux_frames import HEADER as FRAME
from coppermesh.p2p.messages import Message
from coppermesh.p2p.signing import PeerKey
from coppermesh.p2p.transport import Stream, Transport

MESH = mesh_id("attacked")
POUR = "/coppermesh-bench/pour/1"
TOPIC = "coppermesh-bench/1"
GOSSIP = "/meshsub/1.2.0"
MiB = 1 << 20


class Echo(Message, frozen=True):
    """Comes back."""

    data: bytes


async def echo(peer: PeerId, request: Echo) -> Message:
    return request


@asynccontextmanager
async def an_agent() -> AsyncIterator[tuple[Transport, Any]]:
    key = PeerKey.generate()
    async with (
        open_libp2p_transport(key, MESH) as transport,
        open_control_hub(
            transport,
            MESH,
            key.peer,
            handlers={"echo": (Echo, echo)},
            clock=lambda: time.time_ns() // 1000,
        ) as hub,
        transport.subscribe(TOPIC, lambda source, data: True),
    ):
        yield transport, hub


async def serve() -> None:
    """The agent. It pours bulk at whoever asks for it."""
    async with an_agent() as (transport, _):

        async def pour(stream: Stream) -> None:
            block = bytes(MiB)
            while True:
                await stream.send_all(block)

        transport.handle(POUR, pour)
        print(transport.addresses[0], flush=True)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)


# The attackers


async def garbage(address: str) -> None:
    while True:
        with suppress(OSError, trio.BrokenResourceError):
            async with await connect(address) as stream:
                await stream.send_all(os.urandom(4000))
        await trio.sleep(0.02)


async def half_open(address: str) -> None:
    """Handshakes up to the first message of Noise, as many as there may be and more."""
    await hold(
        address, 300, encode_message(HEADER) + encode_message(NOISE_AES) + b"\x00\x20" + os.urandom(32)
    )


async def idle(address: str) -> None:
    await hold(address, 1000, b"")


async def hold(address: str, count: int, first: bytes) -> None:
    """Keep so many connections open; one that is closed is opened again, not faster than 100 a second."""

    async def one() -> None:
        while True:
            with suppress(OSError, trio.BrokenResourceError):
                async with await connect(address) as stream:
                    await stream.send_all(first)
                    while await stream.receive_some():
                        pass
            await trio.sleep(count / 100)

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(one)
            await trio.sleep(0.01)


async def oversized(address: str) -> None:
    """A frame over each limit, by turns."""
    while True:
        for attack in (_yamux_frame, _control_frame, _gossip_frame):
            with suppress(MeshError, OSError, trio.BrokenResourceError, trio.TooSlowError):
                with trio.fail_after(5):
                    await attack(address)
            await trio.sleep(0.05)


async def _yamux_frame(address: str) -> None:
    target = parse_address(address)
    async with await connect(address) as stream:
        secured = await upgrade(stream, Identity.of(PeerKey.generate()), target.peer)
        frames = FRAME.pack(0, WINDOW_UPDATE, SYN, 1, 0) + FRAME.pack(0, DATA, 0, 1, 2**32 - 1)
        secured.writer.seal(memoryview(frames))
        await secured.writer.flush()
        while await stream.receive_some():
            pass


async def _control_frame(address: str) -> None:
    await _on_stream(address, control_protocol(MESH), b"\xff\xff\xff\xff" + bytes(200_000))


async def _gossip_frame(address: str) -> None:
    await _on_stream(address, GOSSIP, b"\xff\xff\xff\x7f" + bytes(200_000))


async def _on_stream(address: str, protocol: str, data: bytes) -> None:
    async with open_libp2p_transport(PeerKey.generate(), MESH) as transport:
        stream = await transport.open_stream(await transport.dial(address), protocol)
        await stream.send_all(data)
        await stream.receive_some()


async def slow_reader(address: str) -> None:
    """Ten peers that ask for bulk and read one byte a second, from the socket itself."""
    target = parse_address(address)

    async def one() -> None:
        while True:
            with suppress(MeshError, OSError, trio.BrokenResourceError):
                async with await connect(address) as stream:
                    secured = await upgrade(stream, Identity.of(PeerKey.generate()), target.peer)
                    ask = encode_message(HEADER) + encode_message(POUR)
                    frames = (
                        FRAME.pack(0, WINDOW_UPDATE, SYN, 1, 2**31)
                        + FRAME.pack(0, DATA, 0, 1, len(ask))
                        + ask
                    )
                    secured.writer.seal(memoryview(frames))
                    await secured.writer.flush()
                    async for _ in _drops(stream):
                        await trio.sleep(1)
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(one)


async def _drops(stream: trio.SocketStream) -> AsyncIterator[bytes]:
    while byte := await stream.receive_some(1):
        yield byte


ATTACKS: dict[str, Callable[[str], Awaitable[None]]] = {
    "garbage": garbage,
    "half-open": half_open,
    "idle": idle,
    "oversized": oversized,
    "slow-reader": slow_reader,
}


async def connect(address: str) -> trio.SocketStream:
    target = parse_address(address)
    return await trio.open_tcp_stream(target.host, target.port)


async def attack(address: str, names: list[str]) -> None:
    os.nice(19)
    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(ATTACKS[name], address)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


# The honest peer


async def latencies(hub: Any, peer: PeerId, seconds: float) -> list[float]:
    """Milliseconds of each request; the first second does not count."""
    request = Echo(bytes(1024))
    began = trio.current_time()
    found = []
    while trio.current_time() < began + seconds:
        then = time.perf_counter()
        await hub.request(peer, "echo", request, Echo, deadline_s=60)
        if trio.current_time() > began + 1:
            found.append((time.perf_counter() - then) * 1e3)
        await trio.sleep(0.02)
    return found


@asynccontextmanager
async def process(*arguments: str) -> AsyncIterator[trio.Process]:
    started = await trio.lowlevel.open_process(
        [sys.executable, __file__, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert started.stdin is not None
    assert started.stdout is not None
    async with started.stdout:
        try:
            async with started.stdin:
                yield started
        finally:
            with trio.CancelScope(shield=True):
                with trio.move_on_after(10):
                    await started.wait()
                if started.returncode is None:
                    started.kill()


async def measure(seconds: float, rounds: int, wanted: list[str]) -> None:
    sets: dict[str, list[str]] = (
        {"quiet": []} | {name: [name] for name in wanted} | {"all at once": wanted, "quiet again": []}
    )
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in sets}
    async with process("--serve") as server, an_agent() as (transport, hub):
        assert server.stdout is not None
        address = (await server.stdout.receive_some()).decode().strip()
        peer = await transport.dial(address)
        await latencies(hub, peer, 2)
        for _ in range(rounds):
            for name, names in sets.items():
                found = await under(address, names, hub, peer, seconds)
                figures[name].append((statistics.median(found), statistics.quantiles(found, n=100)[98]))
    print(
        f"{'':14}{'p50 ms':>9}{'p99 ms':>9}{'p50 ratio':>11}{'p99 ratio':>11}   (medians of {rounds} rounds)"
    )
    report = {}
    for name, pairs in figures.items():
        quiet = figures["quiet"]
        row = [
            statistics.median(pair[0] for pair in pairs),
            statistics.median(pair[1] for pair in pairs),
            statistics.median(pair[0] / still[0] for pair, still in zip(pairs, quiet, strict=True)),
            statistics.median(pair[1] / still[1] for pair, still in zip(pairs, quiet, strict=True)),
        ]
        report[name] = [round(value, 3) for value in row]
        print(f"{name:14}{row[0]:9.2f}{row[1]:9.2f}{row[2]:11.2f}{row[3]:11.2f}")
    print(json.dumps(report))


async def under(address: str, names: list[str], hub: Any, peer: PeerId, seconds: float) -> list[float]:
    if not names:
        return await latencies(hub, peer, seconds)
    async with process("--attack", address, *names):
        # Until it has begun: a Python with libp2p takes seconds to start, and 1,000 connections ten more.
        await trio.sleep(5 + 10 * ("idle" in names))
        return await latencies(hub, peer, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--attacks", nargs="*", choices=list(ATTACKS), default=list(ATTACKS))
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--attack", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        trio.run(serve)
    elif arguments.attack:
        trio.run(attack, arguments.attack[0], arguments.attack[1:])
    else:
        trio.run(measure, arguments.seconds, arguments.rounds, arguments.attacks)


if __name__ == "__main__":
    main()
