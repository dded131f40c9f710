"""Measures the libp2p transport beside raw trio TCP on loopback, two processes each: medians and the ratio.

    python tests/bench/bench_transport.py [--rounds N] [--mib N]

Rounds of both are interleaved, so that a busy machine slows both. MB are 10^6 bytes.
"""

# ruff: noqa: T201

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio

from coppermesh.p2p.ids import mesh_id
from coppermesh.p2p.libp2p_transport import open_libp2p_transport
from coppermesh.p2p.signing import PeerKey

SINK, ECHO = "/coppermesh-bench/sink/1", "/coppermesh-bench/echo/1"
REQUEST_BYTES = 1024
MiB = 1024 * 1024


async def serve() -> None:
    """The other process: swallows bulk into memory of its own, echoes requests."""
    memory = bytearray(256 * MiB)

    async def sink(stream) -> None:
        while size := int.from_bytes(await receive_exactly(stream, 8), "big"):
            await stream.receive_into(memoryview(memory)[:size])
            await stream.send_all(b"k")

    async def echo(stream) -> None:
        while data := await stream.receive_some(65536):
            await stream.send_all(data)

    async def raw(tcp: trio.SocketStream) -> None:
        stream = RawStream(tcp)
        with suppress(EOFError):
            await (sink if await receive_exactly(stream, 1) == b"s" else echo)(stream)

    async with open_libp2p_transport(PeerKey.generate(), mesh_id("bench")) as transport:
        transport.handle(SINK, sink)
        transport.handle(ECHO, echo)
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(trio.serve_tcp, raw, 0)
            port = listeners[0].socket.getsockname()[1]
            print(json.dumps({"address": transport.addresses[0], "port": port}), flush=True)
            await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
            nursery.cancel_scope.cancel()


class RawStream:
    """Plain TCP with the two calls that the measurements use."""

    def __init__(self, tcp: trio.SocketStream) -> None:
        self._tcp = tcp
        self.aclose = tcp.aclose
        self.send_all = tcp.send_all
        self.receive_some = tcp.receive_some

    async def receive_into(self, buffer: memoryview) -> None:
        filled = 0
        while filled < len(buffer):
            count = await self._tcp.socket.recv_into(buffer[filled:])
            if not count:
                raise EOFError
            filled += count


async def receive_exactly(stream, count: int) -> bytes:
    data = bytearray(count)
    await stream.receive_into(memoryview(data))
    return bytes(data)


async def bulk(stream, size: int) -> float:
    """MB/s one way, until the other side says that it has everything."""
    content = memoryview(bytearray(os.urandom(MiB)) * (size // MiB))
    began = time.perf_counter()
    await stream.send_all(size.to_bytes(8, "big"))
    await stream.send_all(content)
    await receive_exactly(stream, 1)
    return size / (time.perf_counter() - began) / 1e6


async def requests(stream, count: int, depth: int) -> float:
    """Requests per second with `depth` under way."""
    request = bytes(REQUEST_BYTES)
    room = trio.Semaphore(depth)
    began = time.perf_counter()

    async def send() -> None:
        for _ in range(count):
            await room.acquire()
            await stream.send_all(request)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        answered = 0
        while answered < count * REQUEST_BYTES:
            before = answered // REQUEST_BYTES
            answered += len(await stream.receive_some(65536))
            for _ in range(answered // REQUEST_BYTES - before):
                room.release()
    return count / (time.perf_counter() - began)


@asynccontextmanager
async def other_process() -> AsyncIterator[dict[str, Any]]:
    command = [sys.executable, __file__, "--serve"]
    process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = b""
        while not line.endswith(b"\n"):
            line += await process.stdout.receive_some()
        yield json.loads(line)
    finally:
        await process.stdin.aclose()
        await process.stdout.aclose()
        with trio.move_on_after(5):
            await process.wait()
        if process.returncode is None:
            process.kill()


async def measure(rounds: int, size: int) -> None:
    figures: dict[str, dict[str, list[float]]] = {}

    def note(what: str, who: str, value: float) -> None:
        figures.setdefault(what, {}).setdefault(who, []).append(value)

    async with other_process() as there, open_libp2p_transport(PeerKey.generate(), mesh_id("bench")) as mine:
        peer = await mine.dial(there["address"])

        async def raw(kind: bytes) -> RawStream:
            stream = RawStream(await trio.open_tcp_stream("127.0.0.1", there["port"]))
            await stream.send_all(kind)
            return stream

        sinks: dict[str, Any] = {"mesh": await mine.open_stream(peer, SINK), "raw": await raw(b"s")}
        echoes = {"mesh": await mine.open_stream(peer, ECHO), "raw": await raw(b"e")}
        for number in range(rounds + 1):
            for who in ("raw", "mesh"):
                results = {
                    f"{size // MiB} MiB one way, MB/s": await bulk(sinks[who], size),
                    "1 KiB requests/s, one at a time": await requests(echoes[who], 2000, 1),
                    "1 KiB requests/s, 32 under way": await requests(echoes[who], 20_000, 32),
                    "1 KiB requests/s, 256 under way": await requests(echoes[who], 20_000, 256),
                }
                if number:  # the first round warms memory up
                    for what, value in results.items():
                        note(what, who, value)
        for stream in (*sinks.values(), *echoes.values()):
            await stream.aclose()
    print(f"{'':34}{'mesh':>9} {'(min - max)':>17}{'raw TCP':>10}{'ratio':>7}")
    for what, by_who in figures.items():
        mesh, raw_tcp = (statistics.median(by_who[who]) for who in ("mesh", "raw"))
        span = f"({min(by_who['mesh']):.0f} - {max(by_who['mesh']):.0f})"
        print(f"{what:34}{mesh:9.0f} {span:>17}{raw_tcp:10.0f}{mesh / raw_tcp:7.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        trio.run(serve)
    else:
        trio.run(measure, arguments.rounds, arguments.mib * MiB)


if __name__ == "__main__":
    main()
