"""What private meshes cost, and how fast a revocation works, on this machine.

    python tests/bench/bench_private_mesh.py [--agents 4] [--rounds 3]

Three things in one run, each beside what it is to be held against: bytes a second through one stream with and without a
swarm key; checking a chain of three certificates beside checking three signatures alone; and, with real agents, the
time from the revoking command to the last agent that has cut the member off.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import trio

from coppermesh.agent.home import Home
from coppermesh.agent.local_link import LocalLink, socket_alive
from coppermesh.p2p.certificates import DAY_US, private_mesh_id
from coppermesh.p2p.envelope import has_valid_signature, sign_record
from coppermesh.p2p.ids import MeshId, PeerId
from coppermesh.p2p.libp2p_transport import open_libp2p_transport
from coppermesh.p2p.membership import MembershipBook
from coppermesh.p2p.membership_records import Certificate
from coppermesh.p2p.records import SignedRecord
from coppermesh.p2p.signing import PeerKey

COMMAND = [sys.executable, "-m", "coppermesh.agent.cli"]
SETTINGS = 'listen = "/ip4/127.0.0.1/tcp/0"\n[network]\nmdns = false\n'
BYTES = 256 << 20
PIECE = 1 << 20
NOW = 1_800_000_000_000_000


async def megabytes_a_second(swarm_key: bytes | None) -> float:
    """One way through one stream."""
    mesh = MeshId(bytes(16))
    done = trio.Event()

    async def take(stream) -> None:
        buffer = bytearray(PIECE)
        for _ in range(BYTES // PIECE):
            await stream.receive_into(memoryview(buffer))
        done.set()

    listen = "/ip4/127.0.0.1/tcp/0"
    async with (
        open_libp2p_transport(PeerKey.generate(), mesh, listen=listen, swarm_key=swarm_key) as a,
        open_libp2p_transport(PeerKey.generate(), mesh, listen=listen, swarm_key=swarm_key) as b,
    ):
        b.handle("/bench/1", take)
        await a.dial(b.addresses[0])
        stream = await a.open_stream(b.peer, "/bench/1")
        piece, started = bytes(PIECE), time.perf_counter()
        for _ in range(BYTES // PIECE):
            await stream.send_all(piece)
        await done.wait()
        return BYTES / 1e6 / (time.perf_counter() - started)


def link(issuer: PeerKey, subject: PeerId, mesh: MeshId, depth: int) -> SignedRecord:
    role = "admin" if depth else "member"
    certificate = Certificate(1, mesh, issuer.peer, subject, 1, role, None, depth, "", NOW - 1, NOW + DAY_US)
    return sign_record(issuer, certificate)


def microseconds_a_check() -> tuple[float, float]:
    """A chain of three links, and its three signatures alone."""
    keys = [PeerKey.generate() for _ in range(4)]
    mesh = private_mesh_id(keys[0].peer, "bench")
    chain = [link(keys[n], keys[n + 1].peer, mesh, 2 - n) for n in range(3)]
    book, count = MembershipBook(keys[0].peer, mesh), 500

    def spent(run) -> float:
        started = time.perf_counter()
        for _ in range(count):
            run()
        return (time.perf_counter() - started) / count * 1e6

    whole = spent(lambda: book.check(chain, keys[3].peer, NOW))
    return whole, spent(lambda: [has_valid_signature(Certificate, signed) for signed in chain])


def seconds_to_cut_off(base: Path, agents: int) -> float:
    """From starting `mesh revoke` to the moment when no agent is connected to the member, nor the member to any."""
    homes, running = [Home(base / f"agent{n}") for n in range(agents)], []
    try:
        for home in homes:
            home.prepare()
            home.config_path.write_text(SETTINGS)
            with home.log_path.open("ab") as log:
                command = [*COMMAND, "agent", "--home", str(home.path), "--until-eof"]
                running.append(subprocess.Popen(command, stdin=subprocess.PIPE, stderr=log))
        until(lambda: all(socket_alive(home.socket_path) for home in homes))
        run(homes[0], "mesh", "create", "lab")
        for n, home in enumerate(homes[1:], 1):
            invitation = json.loads(run(homes[0], "mesh", "invite", "--mesh", "lab", "--json"))["invitation"]
            run(home, "mesh", "join", invitation, "--name", f"agent{n}")
        until(lambda: all(connected(home) == agents - 1 for home in homes))
        started = time.perf_counter()
        run(homes[0], "mesh", "revoke", f"agent{agents - 1}", "--mesh", "lab")
        until(lambda: connected(homes[-1]) == 0 and all(connected(home) == agents - 2 for home in homes[:-1]))
        return time.perf_counter() - started
    finally:
        for process in running:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(30)


def run(home: Home, *arguments: str) -> str:
    done = subprocess.run(
        [*COMMAND, *arguments, "--home", str(home.path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


def connected(home: Home) -> int:
    with LocalLink(home.socket_path) as local:
        rows = json.loads(local.call_json("mesh-list"))["meshes"]
    return int(next((row["connected"] for row in rows if row["mesh"] == "lab"), 0))


def until(condition, seconds: float = 180.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("not in time")
        time.sleep(0.02)


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description="measure private meshes")
    parser.add_argument("--agents", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    plain, inside = [], []
    for _ in range(options.rounds):  # in turn, so that both see the same machine
        plain.append(trio.run(megabytes_a_second, None))
        inside.append(trio.run(megabytes_a_second, bytes(range(32))))
    without, within = statistics.median(plain), statistics.median(inside)
    say(f"stream: {without:.0f} MB/s without, {within:.0f} MB/s with a swarm key: {within / without:.2f}")
    whole, alone = microseconds_a_check()
    say(f"chain of 3: {whole:.0f} us, its signatures alone {alone:.0f} us: {whole / alone:.2f}")
    spent = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            spent.append(seconds_to_cut_off(Path(folder), options.agents))
    say(
        f"revoked in a lab of {options.agents}: cut off by all after {statistics.median(spent):.2f} s "
        f"(max {max(spent):.2f}), starting the command included"
    )


if __name__ == "__main__":
    main()
