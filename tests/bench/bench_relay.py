"""Bytes through a relay: called, relay and caller are a process each, on loopback, beside the direct connection.

    python tests/bench/bench_relay.py [MIB]          default 256

Three rounds of both, in turn; medians.
"""

# ruff: noqa: T201

import json
import statistics
import subprocess
import sys
import time
from typing import cast

import trio

from coppermesh.p2p.ids import mesh_id
from coppermesh.p2p.libp2p_relay import RelayServer, through
from coppermesh.p2p.libp2p_transport import Libp2pTransport, open_libp2p_transport
from coppermesh.p2p.relay_book import RelayLimits
from coppermesh.p2p.signing import PeerKey
from coppermesh.p2p.transport import Stream

SINK = "/coppermesh-bench/sink/1"
MESH = mesh_id("bench")
ROUNDS = 3


def open_transport():
    return open_libp2p_transport(PeerKey.generate(), MESH)


async def relay() -> None:
    async with open_transport() as transport:
        RelayServer(transport, RelayLimits(), admits=lambda peer: True, addresses=lambda: transport.addresses)
        print(json.dumps(transport.addresses[0]), flush=True)
        await trio.sleep_forever()


async def called(relay_address: str) -> None:
    async def sink(stream: Stream) -> None:
        size = int.from_bytes(await stream.receive_some(8), "big")
        buffer = memoryview(bytearray(1 << 20))
        for _ in range(size >> 20):
            await stream.receive_into(buffer)
        await stream.send_all(b"!")

    async with open_transport() as transport:
        transport.handle(SINK, sink)
        await transport.dial(relay_address)
        await cast("Libp2pTransport", transport).reach.reserve_at((await transport.events().receive()).peer)
        print(json.dumps(transport.addresses[0]), flush=True)
        await trio.sleep_forever()


async def send(address: str, mib: int) -> float:
    """MB/s of one transfer over a connection of its own."""
    async with open_transport() as transport:
        peer = await transport.dial(address)
        stream = await transport.open_stream(peer, SINK)
        piece = bytes(1 << 20)
        await stream.send_all((mib << 20).to_bytes(8, "big"))
        start = time.perf_counter()
        for _ in range(mib):
            await stream.send_all(piece)
        assert await stream.receive_some(1) == b"!"
        return mib * (1 << 20) / 1e6 / (time.perf_counter() - start)


def child(*arguments: str) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())


def main(mib: int) -> None:
    carrier, relay_address = child("relay")
    sink, direct = child("called", relay_address)
    try:
        from coppermesh.p2p.addresses import parse_address

        ways = {"direct": direct, "relayed": through(relay_address, parse_address(direct).peer)}
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(ROUNDS):
            for way, address in ways.items():
                rates[way].append(trio.run(send, address, mib))
        for way, found in rates.items():
            print(f"{way:8} {statistics.median(found):7.1f} MB/s   ({min(found):.1f} to {max(found):.1f})")
        print(f"ratio    {statistics.median(rates['relayed']) / statistics.median(rates['direct']):7.2f}")
    finally:
        for process in (sink, carrier):
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["relay"]:
            trio.run(relay)
        case ["called", address]:
            trio.run(called, address)
        case rest:
            main(int(rest[0]) if rest else 256)
