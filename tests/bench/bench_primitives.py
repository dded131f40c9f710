# ruff: noqa: T201  # a program that prints its figures
"""How fast an encrypted, hashed transfer between two processes of this machine can be at best.

    python tests/bench/bench_primitives.py [--mib N] [--rounds N]

CPU seconds per GiB of what cannot be left out: the kernel's part of a TCP transfer (both ends, blocking sockets, 1 MiB
a call), AES-256-GCM on either end, BLAKE3 of every 1 MiB leaf on either end. From their sum and the number of
processors follows the least wall time, and its ratio to plain TCP in the same run: whatever Python, trio and yamux cost
comes on top. Least of the rounds, so that another load on the machine counts little.
"""

import argparse
import multiprocessing
import os
import resource
import socket
import time
from collections.abc import Callable

from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from coppermesh.p2p.blobs import LEAF_BYTES, leaf_digest
from coppermesh.p2p.record_ciphers import AesCipher

GIB = 1 << 30
RECORD = AesCipher.max_plaintext
NONCE, HEADER = bytes(12), bytes(4)


def cpu_of(work: Callable[[], object], size: int, rounds: int) -> float:
    """CPU seconds per GiB, the least of the rounds."""
    least = float("inf")
    for _ in range(rounds):
        began = time.process_time()
        work()
        least = min(least, time.process_time() - began)
    return least * GIB / size


def primitives(data: memoryview, rounds: int) -> dict[str, float]:
    """The parts that run in this process's own code, each over all of `data`."""
    size = len(data)
    there = memoryview(bytearray(size))
    there[:] = data
    record = memoryview(bytearray(RECORD + 16))
    aead = AESGCM(os.urandom(32))
    leaves = [data[at : at + LEAF_BYTES] for at in range(0, size, LEAF_BYTES)]

    def seal() -> None:
        for at in range(0, size, RECORD):
            aead.encrypt_into(NONCE, data[at : at + RECORD], HEADER, record)

    def open_records() -> None:
        for at in range(0, size, RECORD):
            aead.decrypt_into(NONCE, record, HEADER, there[at : at + RECORD])

    def open_and_hash() -> None:
        # As it would be at best: each piece is hashed while it is in the cache.
        for at in range(0, size, LEAF_BYTES):
            hasher = blake3(derive_key_context="any")
            for piece in range(at, at + LEAF_BYTES, RECORD):
                aead.decrypt_into(NONCE, record, HEADER, there[piece : piece + RECORD])
                hasher.update(there[piece : piece + RECORD])
            hasher.digest()

    aead.encrypt_into(NONCE, data[:RECORD], HEADER, record)
    return {
        "hash": cpu_of(lambda: [leaf_digest(leaf) for leaf in leaves], size, rounds),
        "seal": cpu_of(seal, size, rounds),
        "open": cpu_of(open_records, size, rounds),
        "open and hash": cpu_of(open_and_hash, size, rounds),
    }


def plain_tcp(data: memoryview, rounds: int) -> tuple[float, float]:
    """(CPU seconds of both ends, wall seconds) per GiB over loopback, the least of the rounds."""
    best = (float("inf"), float("inf"))
    for _ in range(rounds + 1):
        listener = socket.create_server(("127.0.0.1", 0))
        receiver = multiprocessing.get_context("fork").Process(target=_receive, args=(listener, len(data)))
        before = _cpu()
        receiver.start()
        with socket.create_connection(listener.getsockname()) as sender:
            sender.recv(1)  # its memory is ready
            began = time.perf_counter()
            for at in range(0, len(data), LEAF_BYTES):
                sender.sendall(data[at : at + LEAF_BYTES])
            cpu_there = float(sender.recv(64))
            taken = time.perf_counter() - began
        receiver.join()
        listener.close()
        scale = GIB / len(data)
        best = min(best[0], (_cpu() - before + cpu_there) * scale), min(best[1], taken * scale)
    return best


def _receive(listener: socket.socket, size: int) -> None:
    memory = memoryview(bytearray(size))
    for page in range(0, size, 4096):
        memory[page] = 1
    connection, _ = listener.accept()
    before = _cpu()
    connection.sendall(b"r")
    filled = 0
    while filled < size:
        filled += connection.recv_into(memory[filled : filled + LEAF_BYTES])
    connection.sendall(f"{_cpu() - before:.6f}".encode())


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Print the parts and what follows from them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    data = memoryview(bytearray(os.urandom(LEAF_BYTES)) * arguments.mib)
    tcp, wall = plain_tcp(data, arguments.rounds)
    parts = primitives(data, arguments.rounds)
    cores = min(2, os.cpu_count() or 1)  # one for each end
    print(f"CPU s/GiB: plain TCP, both ends {tcp:.3f} ({wall:.3f} s wall)")
    for name, seconds in parts.items():
        print(f"CPU s/GiB: {name} {seconds:.3f}")
    sealed = tcp + parts["seal"] + parts["open"]
    hashed = tcp + parts["hash"] + parts["seal"] + parts["open and hash"]
    for name, total in (("encrypted", sealed), ("encrypted, hashed by both", hashed)):
        least = max(total / cores, wall)
        print(
            f"{name}: {total:.2f} CPU s/GiB, at best {GIB / least / 1e6:.0f} MB/s, {wall / least:.2f} of plain TCP"
        )


if __name__ == "__main__":
    main()
