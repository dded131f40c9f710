"""Measures the mesh's transport beside raw trio TCP and trio's own TLS on loopback, two processes: medians and ratios.

    python tests/bench/bench_transport.py [--rounds N] [--mib N] [--only WORD]

Every round measures all of them one after the other, so that a busy machine slows all. MB are 10^6 bytes. The columns:

- `raw TCP`: trio, nothing encrypted, received into memory that is kept
- `TLS`: trio.SSLStream, TLS 1.3 with AES-256-GCM
- `/noise`: our transport as it speaks with stock libp2p
- `ours`: our transport as agents speak with each other

and the rows: bulk one way; the same hashed by the sender, before it sends, and verified leaf by leaf; the same as a
blob, written to a store in memory besides (/dev/shm where there is one: a disk would be measured otherwise); there and
back; requests on one kept stream; requests through the control channel (encoding, ids, handler and all), and how long
one takes while bulk flows beside it.
"""

# ruff: noqa: T201

import argparse
import json
import os
import resource
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from coppermesh.p2p import libp2p_upgrade
from coppermesh.p2p.blob_hashing import hash_leaves
from coppermesh.p2p.blob_store import open_blob_store
from coppermesh.p2p.blobs import DIGEST_BYTES, LEAF_BYTES, blob_root, leaf_count, leaf_digests
from coppermesh.p2p.control import open_control_hub
from coppermesh.p2p.ids import PeerId, mesh_id
from coppermesh.p2p.libp2p_transport import open_libp2p_transport
from coppermesh.p2p.messages import Message
from coppermesh.p2p.signing import PeerKey
from coppermesh.p2p.transfer import BlobService, send_blob

MESH = mesh_id("bench")
SINK, ECHO = "/coppermesh-bench/sink/1", "/coppermesh-bench/echo/1"
HASHED = "/coppermesh-bench/hashed/1"
REQUEST_BYTES = 1024
DEPTHS = (1, 64)
BACK_BYTES = 64 * 1024 * 1024
MiB = 1024 * 1024


class Echo(Message, frozen=True):
    """Comes back."""

    data: bytes


async def echo_request(peer: PeerId, request: Echo) -> Message:
    return request


# The other process


async def serve(  # noqa: C901 - a list of small handlers
    certificate: str, size: int, folder: str
) -> None:
    """Swallows bulk into memory of its own, sends it back, echoes requests, keeps blobs."""
    memory = memoryview(bytearray(max(size, BACK_BYTES)))
    # Touched once, as memory that is in use is.
    for start in range(0, len(memory), 4096):
        memory[start] = 1

    async def sink(stream: Any) -> None:
        while head := int.from_bytes(await receive_exactly(stream, 8), "big"):
            size, back = head & (1 << 62) - 1, head >> 62
            await stream.receive_into(memory[:size])
            await stream.send_all(memory[:size] if back else b"k")

    async def echo(stream: Any) -> None:
        while data := await stream.receive_some(65536):
            await stream.send_all(data)

    async def hashed(stream: Any) -> None:
        while size := int.from_bytes(await receive_exactly(stream, 8), "big"):
            await receive_verified(stream, memory[:size])
            await stream.send_all(b"k")

    async def plain(stream: "RawStream | TlsStream") -> None:
        with suppress(EOFError, trio.BrokenResourceError):
            await (sink if await receive_exactly(stream, 1) == b"s" else echo)(stream)

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    key = PeerKey.generate()
    async with (
        open_libp2p_transport(key, MESH) as transport,
        open_blob_store(Path(folder), quota_bytes=8 * size, owner=key.peer) as store,
        open_control_hub(transport, MESH, key.peer, handlers={"echo": (Echo, echo_request)}, clock=now_us),
        trio.open_nursery() as nursery,
    ):
        BlobService(transport, MESH, store)
        transport.handle(SINK, sink)
        transport.handle(ECHO, echo)
        transport.handle(HASHED, hashed)

        async def secure(tcp: trio.SocketStream) -> None:
            await plain(TlsStream(trio.SSLStream(tcp, context, server_side=True)))

        async def raw(tcp: trio.SocketStream) -> None:
            await plain(RawStream(tcp))

        ports = []
        for serve_one in (raw, secure):
            listeners = await nursery.start(trio.serve_tcp, serve_one, 0)
            ports.append(listeners[0].socket.getsockname()[1])
        print(json.dumps({"address": transport.addresses[0], "ports": ports}), flush=True)
        while await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            print(json.dumps(cpu_seconds()), flush=True)
        nursery.cancel_scope.cancel()


async def receive_verified(stream: Any, memory: memoryview) -> None:
    """Leaf digests, then leaves into memory, each compared in a thread while the next ones arrive."""
    count = leaf_count(len(memory))
    manifest = await receive_exactly(stream, DIGEST_BYTES * count)
    arrived = trio.Semaphore(0)

    async def check() -> None:
        done = 0
        while done < count:
            await arrived.acquire()
            end = done + 1
            while arrived.value:
                arrived.acquire_nowait()
                end += 1
            leaves = memory[done * LEAF_BYTES : end * LEAF_BYTES]
            digests = await trio.to_thread.run_sync(leaf_digests, leaves)
            assert manifest[done * DIGEST_BYTES : end * DIGEST_BYTES] == b"".join(digests)
            done = end

    async with trio.open_nursery() as nursery:
        nursery.start_soon(check)
        for start in range(0, len(memory), LEAF_BYTES):
            await stream.receive_into(memory[start : start + LEAF_BYTES])
            arrived.release()


class RawStream:
    """Plain TCP with the calls that the measurements use."""

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


class TlsStream:
    """trio's TLS stream, likewise. It has no way to receive into memory."""

    def __init__(self, tls: "trio.SSLStream[trio.SocketStream]") -> None:
        self._tls = tls
        self._rest = b""
        self.aclose = tls.aclose

    async def send_all(self, data: bytes | memoryview) -> None:
        # It encrypts all that it is given before it sends the first byte: without another task having a turn.
        for start in range(0, len(data), MiB):
            await self._tls.send_all(data[start : start + MiB])

    async def receive_some(self, count: int) -> bytes:
        data, self._rest = self._rest, b""
        return data or bytes(await self._tls.receive_some(count))

    async def receive_into(self, buffer: memoryview) -> None:
        filled = 0
        while filled < len(buffer):
            data = await self.receive_some(256 * 1024)
            if not data:
                raise EOFError
            count = min(len(data), len(buffer) - filled)
            buffer[filled : filled + count] = data[:count]
            self._rest = data[count:]
            filled += count


async def receive_exactly(stream: Any, count: int) -> bytes:
    data = bytearray(count)
    await stream.receive_into(memoryview(data))
    return bytes(data)


# This process


async def bulk(stream: Any, content: memoryview) -> float:
    """MB/s one way, until the other side says that it has everything."""
    began = time.perf_counter()
    await stream.send_all(len(content).to_bytes(8, "big"))
    await stream.send_all(content)
    await receive_exactly(stream, 1)
    return len(content) / (time.perf_counter() - began) / 1e6


async def there_and_back(stream: Any, content: memoryview, back: memoryview) -> float:
    """MB/s, both ways counted."""
    began = time.perf_counter()
    await stream.send_all((len(content) | 1 << 62).to_bytes(8, "big"))
    await stream.send_all(content)
    await stream.receive_into(back)
    return 2 * len(content) / (time.perf_counter() - began) / 1e6


async def requests(stream: Any, count: int, depth: int) -> float:
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


async def control_requests(hub: Any, peer: PeerId, count: int, depth: int) -> float:
    """Requests per second through the control channel, from `depth` tasks."""
    request = Echo(bytes(REQUEST_BYTES))

    async def ask() -> None:
        for _ in range(count // depth):
            await hub.request(peer, "echo", request, Echo)

    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(depth):
            nursery.start_soon(ask)
    return count // depth * depth / (time.perf_counter() - began)


async def latency(hub: Any, peer: PeerId, flowing: Any = None) -> float:
    """Milliseconds that the median 1 KiB control request takes, while `flowing` runs or 300 times."""
    request = Echo(bytes(REQUEST_BYTES))
    taken: list[float] = []
    over = trio.Event()

    async def flow() -> None:
        await flowing()
        over.set()

    async with trio.open_nursery() as nursery:
        if flowing is not None:
            nursery.start_soon(flow)
        while not over.is_set() and (flowing is not None or len(taken) < 300):
            began = time.perf_counter()
            await hub.request(peer, "echo", request, Echo)
            taken.append((time.perf_counter() - began) * 1e3)
    return statistics.median(taken)


async def verified(transport: Any, peer: PeerId, content: memoryview) -> float:
    """MB/s, hashed here first, and each leaf verified in the other side's memory."""
    stream = await transport.open_stream(peer, HASHED)
    began = time.perf_counter()
    leaves = await hash_leaves(content)
    await stream.send_all(len(content).to_bytes(8, "big") + b"".join(leaves))
    await stream.send_all(content)
    await receive_exactly(stream, 1)
    taken = time.perf_counter() - began
    await stream.send_all(bytes(8))
    await stream.aclose()
    return len(content) / taken / 1e6


async def blob(transport: Any, peer: PeerId, content: memoryview) -> float:
    """MB/s of a blob: hashed here, sent, verified per leaf and stored there."""
    content[:16] = os.urandom(16)
    began = time.perf_counter()
    leaves = await hash_leaves(content)
    await send_blob(transport, MESH, peer, blob_root(len(content), leaves), leaves, content)
    return len(content) / (time.perf_counter() - began) / 1e6


@asynccontextmanager
async def other_process(*arguments: str) -> AsyncIterator[Callable[[], Any]]:
    command = [sys.executable, __file__, "--serve", *arguments]
    process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    async def line() -> Any:
        text = b""
        while not text.endswith(b"\n"):
            text += await stdout.receive_some()
        return json.loads(text)

    first: list[Any] = [await line()]

    async def ask() -> Any:
        if first:
            return first.pop()
        await stdin.send_all(b"\n")
        return await line()

    try:
        yield ask
    finally:
        await stdin.aclose()
        await stdout.aclose()
        with trio.move_on_after(5):
            await process.wait()
        if process.returncode is None:
            process.kill()


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def now_us() -> int:
    return time.time_ns() // 1000


def make_certificate(path: Path) -> None:
    """A key and a certificate for loopback, good for a day."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("bench")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(pem + certificate.public_bytes(serialization.Encoding.PEM))


@asynccontextmanager
async def a_client(ask: Any, there: Any, security: tuple[str, ...]) -> AsyncIterator[Any]:
    """(transport, hub, peer, sink, echo) over this security protocol."""
    key = PeerKey.generate()
    async with open_libp2p_transport(key, MESH) as transport:
        async with open_control_hub(transport, MESH, key.peer, handlers={}, clock=now_us) as hub:
            usual = libp2p_upgrade.security_protocols
            libp2p_upgrade.security_protocols = lambda: security
            try:
                peer = await transport.dial(there["address"])
            finally:
                libp2p_upgrade.security_protocols = usual
            sink = await transport.open_stream(peer, SINK)
            yield transport, hub, peer, sink, await transport.open_stream(peer, ECHO)


class Figures:
    """What was measured: by row and column, one value per round, with the CPU of both processes where it is bulk."""

    def __init__(self, ask: Any, only: str) -> None:
        self._ask = ask
        self._only = only
        self.warm = False
        self.values: dict[str, dict[str, list[float]]] = {}
        self.cpu: dict[tuple[str, str], list[float]] = {}

    async def note(self, row: str, column: str, measured: Any, *, gib: float = 0.0) -> None:
        """Run one measurement; the first round only warms memory up."""
        if self._only not in f"{row} {column}":
            measured.close()
            return
        before = cpu_seconds() + await self._ask() if gib else 0.0
        value = await measured
        if gib and self.warm:
            spent = cpu_seconds() + await self._ask() - before
            self.cpu.setdefault((row, column), []).append(spent / gib)
        if self.warm:
            self.values.setdefault(row, {}).setdefault(column, []).append(value)


IN_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
COLUMNS = ("raw TCP", "TLS", "/noise", "ours")


async def measure(rounds: int, size: int, only: str) -> None:
    content = memoryview(bytearray(os.urandom(MiB)) * (size // MiB))
    back = memoryview(bytearray(BACK_BYTES))
    with tempfile.TemporaryDirectory(prefix="coppermesh-bench-", dir=IN_MEMORY) as folder:
        certificate = Path(folder) / "certificate.pem"
        make_certificate(certificate)
        async with other_process(str(certificate), str(size), f"{folder}/store") as ask:
            there = await ask()
            figures = Figures(ask, only)
            async with (
                a_client(ask, there, (libp2p_upgrade.NOISE,)) as noise,
                a_client(ask, there, libp2p_upgrade.security_protocols()) as ours,
            ):
                plain = await plain_streams(there["ports"], certificate)
                for number in range(rounds + 1):
                    figures.warm = number > 0
                    await one_round(figures, plain, {"/noise": noise, "ours": ours}, content, back)
                for pair in plain.values():
                    for stream in pair:
                        with suppress(trio.BrokenResourceError):
                            await stream.aclose()
    show(figures)


async def plain_streams(ports: list[int], certificate: Path) -> dict[str, tuple[Any, Any]]:
    """Sink and echo over TCP and over TLS."""
    context = ssl.create_default_context(cafile=str(certificate))
    streams: dict[str, list[Any]] = {"raw TCP": [], "TLS": []}
    for kind in (b"s", b"e"):
        raw = RawStream(await trio.open_tcp_stream("127.0.0.1", ports[0]))
        tcp = await trio.open_tcp_stream("127.0.0.1", ports[1])
        tls = TlsStream(trio.SSLStream(tcp, context, server_hostname="bench"))
        for name, stream in (("raw TCP", raw), ("TLS", tls)):
            await stream.send_all(kind)
            streams[name].append(stream)
    return {name: (pair[0], pair[1]) for name, pair in streams.items()}


async def one_round(
    figures: Figures, plain: dict[str, Any], meshes: dict[str, Any], content: memoryview, back: memoryview
) -> None:
    gib = len(content) / 1024**3
    streams = plain | {name: mesh[3:] for name, mesh in meshes.items()}
    for name in COLUMNS:
        await figures.note(
            f"{len(content) // MiB} MiB one way, MB/s", name, bulk(streams[name][0], content), gib=gib
        )
    for name, mesh in meshes.items():
        row = f"{len(content) // MiB} MiB, every leaf verified, MB/s"
        await figures.note(row, name, verified(mesh[0], mesh[2], content), gib=gib)
    for name, mesh in meshes.items():
        row = f"{len(content) // MiB} MiB as a stored blob, MB/s"
        await figures.note(row, name, blob(mesh[0], mesh[2], content), gib=gib)
    for name in COLUMNS:
        row = "64 MiB there and back, MB/s"
        await figures.note(
            row, name, there_and_back(streams[name][0], content[:BACK_BYTES], back[: len(content)])
        )
    for name, (_, hub, peer, sink, _) in meshes.items():
        await figures.note("1 KiB control request, quiet, ms", name, latency(hub, peer))
        flowing = latency(hub, peer, partial(bulk, sink, content))
        await figures.note("1 KiB control request, while bulk flows, ms", name, flowing)
    for depth in DEPTHS:
        for name in COLUMNS:
            row = f"1 KiB on a kept stream, {depth} under way, /s"
            await figures.note(row, name, requests(streams[name][1], 2000 * min(depth, 10), depth))
        for name, (_, hub, peer, _, _) in meshes.items():
            row = f"1 KiB control requests, {depth} under way, /s"
            await figures.note(row, name, control_requests(hub, peer, 1000 * min(depth, 8), depth))


def show(figures: Figures) -> None:
    print(f"{'':44}" + "".join(f"{name:>20}" for name in COLUMNS))
    for row, by_column in figures.values.items():
        medians = {name: statistics.median(values) for name, values in by_column.items()}
        raw = medians.get("raw TCP")
        if raw is None and "blob" in row:
            raw = statistics.median(
                figures.values.get(row.replace("as a stored blob", "one way"), {}).get("raw TCP", [0])
            )
        cells = []
        for name in COLUMNS:
            ratio = f" ({medians[name] / raw:.2f})" if name in medians and raw else ""
            digits = 2 if row.endswith("ms") else 0
            cells.append(f"{medians[name]:.{digits}f}{ratio}" if name in medians else "-")
        print(f"{row:44}" + "".join(f"{cell:>20}" for cell in cells))
    for (row, name), values in figures.cpu.items():
        print(f"CPU of both processes, s/GiB: {statistics.median(values):5.2f}  {name}, {row}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--only", default="", help="rows and columns that contain this")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        certificate, size, folder = arguments.serve
        trio.run(serve, certificate, int(size), folder)
    else:
        trio.run(measure, arguments.rounds, arguments.mib * MiB, arguments.only)


if __name__ == "__main__":
    main()
