# ruff: noqa: T201  # a program that prints its figures
"""Gossip among many processes: is everything delivered, how late, and what does a delivery cost?

    python tests/bench/bench_gossip.py --processes 30 --rate 5 --seconds 30

Each process runs the real libp2p transport over loopback and has dialled a few others; all publish by turns, `--rate`
messages of 500 bytes a second together. CPU is that of each process from the first message to the last, divided by
what was delivered to it; what an idle process takes is measured before and left out. Processes are forked from one
that has imported everything.
"""

import argparse
import json
import os
import random
import struct
import sys
import time
import traceback
from typing import Any

import trio
from blake3 import blake3

from coppermesh.p2p.ids import PeerId, mesh_id
from coppermesh.p2p.libp2p_transport import open_libp2p_transport
from coppermesh.p2p.signing import PeerKey

MESH, TOPIC, SIZE = mesh_id("bench"), "bench", 500
WARM_SECONDS, IDLE_SECONDS, LAST_SECONDS = 6.0, 5.0, 5.0
DIALS = 8


async def sleep_until(when: float) -> None:
    await trio.sleep(max(0.0, when - time.time()))


async def live(number: int, options: argparse.Namespace, known: list[str], start: float, write: int) -> None:
    """One process: join, be idle, publish in turn, and say what came."""
    key = PeerKey(blake3(b"bench %d" % number).digest())
    late: list[float] = []

    def take(_source: PeerId, data: bytes) -> bool:
        late.append(1000 * (time.time() - struct.unpack_from("d", data)[0]))
        return True

    async with open_libp2p_transport(key, MESH) as transport, transport.subscribe(TOPIC, take) as messages:
        os.write(write, json.dumps({"address": transport.addresses[0]}).encode() + b"\n")
        for address in random.Random(number).sample(known, min(DIALS, len(known))):
            await transport.dial(address)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def drain() -> None:
                async for _ in messages:
                    pass

            begin = start + WARM_SECONDS
            await sleep_until(begin)
            cpu = time.process_time()
            await trio.sleep(IDLE_SECONDS)
            idle = (time.process_time() - cpu) / IDLE_SECONDS
            begin, cpu = begin + IDLE_SECONDS, time.process_time()
            period = options.processes / options.rate
            count = int(options.seconds / period)
            for turn in range(count):
                await sleep_until(begin + (turn + number / options.processes) * period)
                await transport.publish(TOPIC, struct.pack("d", time.time()) + os.urandom(SIZE - 8))
            await sleep_until(begin + options.seconds + LAST_SECONDS)
            cpu = time.process_time() - cpu - idle * (options.seconds + LAST_SECONDS)
            nursery.cancel_scope.cancel()
        facts = {"sent": count, "late": late, "cpu_ms": 1000 * cpu, "idle_ms_a_second": 1000 * idle}
        os.write(write, json.dumps(facts).encode() + b"\n")


def run(options: argparse.Namespace) -> dict[str, Any]:
    addresses: list[str] = []
    readers = []
    # All wait for one moment, late enough for the last to have started.
    start = time.time() + 0.5 * options.processes
    for number in range(options.processes):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                trio.run(live, number, options, addresses, start, write)
            except BaseException:  # noqa: BLE001 - a child must never run the parent's code
                traceback.print_exc()
            finally:
                os._exit(0)
        os.close(write)
        reader = os.fdopen(read)
        addresses.append(json.loads(reader.readline())["address"])
        readers.append((pid, reader))
    found = []
    for pid, reader in readers:
        line = reader.readline()
        os.waitpid(pid, 0)
        found.append(json.loads(line))
    late = sorted(value for facts in found for value in facts["late"])
    sent = sum(facts["sent"] for facts in found)
    return {
        "processes": options.processes,
        "sent": sent,
        "delivered": len(late),
        "of": sent * (options.processes - 1),
        "p50_ms": round(late[len(late) // 2], 1),
        "p99_ms": round(late[int(0.99 * len(late))], 1),
        "cpu_ms_a_delivery": round(sum(facts["cpu_ms"] for facts in found) / max(1, len(late)), 2),
        "idle_cpu_ms_a_second": round(sum(facts["idle_ms_a_second"] for facts in found) / len(found), 1),
        "load_average": os.getloadavg()[0],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--processes", type=int, default=30)
    parser.add_argument("--rate", type=float, default=5.0, help="messages a second of all together")
    parser.add_argument("--seconds", type=float, default=30.0)
    print(json.dumps(run(parser.parse_args())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
