"""A js-libp2p peer joins an open mesh, and a private one with its swarm key: pings both ways, gossip both ways, and the
signature of an announcement checked by JavaScript that knows of coppermesh what PROTOCOL.md says.

    (cd tests/interop && npm ci) && .venv/bin/pytest -m "" tests/interop
"""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from coppermesh.p2p.certificates import DAY_US, private_mesh_id
from coppermesh.p2p.encoding import encode
from coppermesh.p2p.envelope import sign_record
from coppermesh.p2p.ids import MeshId, PeerId, format_peer, mesh_id, parse_peer
from coppermesh.p2p.libp2p_host import PING
from coppermesh.p2p.libp2p_pnet import swarm_key_text, topic_tag
from coppermesh.p2p.libp2p_transport import open_libp2p_transport
from coppermesh.p2p.membership import MembershipBook
from coppermesh.p2p.membership_gate import MembershipGate, membership_protocol
from coppermesh.p2p.membership_records import Certificate
from coppermesh.p2p.records import Announcement, SignedRecord
from coppermesh.p2p.shards import topic_of
from coppermesh.p2p.signing import PeerKey
from coppermesh.p2p.transport import Transport

pytestmark = [pytest.mark.net, pytest.mark.slow]

HERE = Path(__file__).parent
FOLDER = Path(os.environ.get("COPPERMESH_INTEROP", HERE))
"""Where `npm ci` was run."""
MESH = mesh_id("interop")
TOPIC = topic_of(MESH, "")
PATIENCE = 60


@pytest.fixture(scope="module", autouse=True)
def _node_is_there() -> None:
    missing = None
    if shutil.which("node") is None:
        missing = "node is not installed"
    elif not (FOLDER / "node_modules" / "libp2p").is_dir():
        missing = f"js-libp2p is not installed: run `npm ci` in {FOLDER}"
    if missing is not None:
        if os.environ.get("COPPERMESH_REQUIRE_INTEROP"):
            pytest.fail(missing)
        pytest.skip(missing)


class JsPeer:
    """The other program, by its lines."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._buffer = b""

    async def tell(self, **command: Any) -> None:
        assert self._process.stdin is not None
        await self._process.stdin.send_all(json.dumps(command).encode() + b"\n")

    async def hear(self, word: str) -> dict[str, Any]:
        """The next line that has `word`; others are passed over."""
        return await self.hear_one_of(word)

    async def hear_one_of(self, *words: str) -> dict[str, Any]:
        """The next line that has one of the words."""
        assert self._process.stdout is not None
        with trio.fail_after(PATIENCE):
            while True:
                line, newline, rest = self._buffer.partition(b"\n")
                if newline:
                    self._buffer = rest
                    said: dict[str, Any] = json.loads(line)
                    assert "failed" not in said, said
                    assert "unreadable" not in said, said
                    if any(word in said for word in words):
                        return said
                    continue
                piece = await self._process.stdout.receive_some()
                assert piece, "the js peer ended"
                self._buffer += piece


@asynccontextmanager
async def js_peer(swarm_key: bytes | None, topic: str = TOPIC) -> AsyncIterator[JsPeer]:
    script = FOLDER / "peer.mjs"
    arguments = [topic]
    if swarm_key is not None:
        # A private mesh's topics change with its swarm key.
        arguments = [f"{topic}/{topic_tag(swarm_key)}"]
        arguments.append(base64.b64encode(swarm_key_text(swarm_key).encode()).decode())
    process = await trio.lowlevel.open_process(
        ["node", str(script), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    async with process.stdin, process.stdout:
        try:
            yield JsPeer(process)
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()


def announcement(key: PeerKey, transport: Transport, mesh: MeshId, sequence: int) -> bytes:
    now_us = time.time_ns() // 1000
    record = Announcement(
        version=1,
        mesh=mesh,
        peer=key.peer,
        sequence=sequence,
        issued_us=now_us,
        expires_us=now_us + 300_000_000,
        software="coppermesh interop",
        addresses=transport.addresses,
        devices=[],
        isolation=[],
        busy_slots=0,
        paused=False,
        shard="",
    )
    return encode(sign_record(key, record))


async def ping_from_here(transport: Transport, peer: PeerId) -> None:
    question = os.urandom(32)
    stream = await transport.open_stream(peer, PING)
    await stream.send_all(question)
    answer = bytearray(32)
    await stream.receive_into(memoryview(answer))
    assert answer == question
    await stream.aclose()


@pytest.mark.parametrize("swarm_key", [None, bytes(range(32))], ids=["open", "private"])
@pytest.mark.parametrize("who_dials", ["js", "we"])
async def test_a_js_peer_joins_reads_announcements_and_pings_both_ways(swarm_key, who_dials):
    key = PeerKey.generate()
    async with (
        open_libp2p_transport(key, MESH, swarm_key=swarm_key) as transport,
        transport.subscribe(TOPIC, lambda source, data: True) as heard,
        js_peer(swarm_key) as js,
    ):
        address = (await js.hear("address"))["address"]
        peer = parse_peer(address.rpartition("/")[2])
        if who_dials == "we":
            with trio.fail_after(PATIENCE):
                assert await transport.dial(address) == peer
        # It dials in any case: over the connection that is there, if there is one.
        await js.tell(dial=transport.addresses[0])
        dialled = await js.hear("dialled")
        assert (dialled["dialled"], dialled["security"]) == (format_peer(key.peer), "/noise")
        with trio.fail_after(PATIENCE):
            await ping_from_here(transport, peer)

        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def announce() -> None:
                for sequence in range(1, 1000):
                    await transport.publish(TOPIC, announcement(key, transport, MESH, sequence))
                    await trio.sleep(0.5)

            said = await js.hear("announcement")
            nursery.cancel_scope.cancel()
        assert said["announcement"] == "coppermesh interop"
        assert said["peer"] == key.peer.hex()
        assert said["mesh"] == MESH.hex()
        assert said["author"] == format_peer(key.peer)
        assert (said["holds"], said["holds_altered"], said["holds_as_receipt"]) == (True, False, False)

        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def have_it_published() -> None:
                while True:
                    await js.tell(publish=base64.b64encode(b"from js").decode())
                    await trio.sleep(0.5)

            with trio.fail_after(PATIENCE):
                message = await heard.receive()
            nursery.cancel_scope.cancel()
        assert (message.source, message.data) == (peer, b"from js")


async def test_a_js_peer_with_another_swarm_key_stays_outside():
    key = PeerKey.generate()
    async with (
        open_libp2p_transport(key, MESH, swarm_key=bytes(32)) as transport,
        js_peer(bytes(range(32))) as js,
    ):
        await js.hear("address")
        await js.tell(dial=transport.addresses[0])
        with pytest.raises(AssertionError, match="failed"):
            await js.hear("dialled")
        assert transport.connected() == []


LAB_ROOT = PeerKey(bytes([1]) * 32)
LAB = private_mesh_id(LAB_ROOT.peer, "lab")
SWARM_KEY = bytes(range(32))


def certificate(subject: PeerId, role: str = "member", life_us: int = 2 * DAY_US) -> SignedRecord:
    now_us = time.time_ns() // 1000
    record = Certificate(
        1, LAB, LAB_ROOT.peer, subject, 1, role, None, 0, "js", now_us - DAY_US, now_us - DAY_US + life_us
    )
    return sign_record(LAB_ROOT, record)


@asynccontextmanager
async def lab_member() -> AsyncIterator[tuple[PeerKey, Transport]]:
    """A member of a private mesh, which lets in who shows a card."""
    key = PeerKey.generate()
    chain = [certificate(key.peer)]
    book = MembershipBook(LAB_ROOT.peer, LAB)
    gate = MembershipGate(LAB, book, lambda: chain, lambda: time.time_ns() // 1000)
    async with open_libp2p_transport(key, LAB, swarm_key=SWARM_KEY, gate=gate) as transport:
        yield key, transport


async def show(js: JsPeer, *chain: SignedRecord) -> None:
    links = [base64.b64encode(encode(link)).decode() for link in chain]
    await js.tell(chain=links, membership=membership_protocol(LAB))
    await js.hear("ready")


async def test_a_js_peer_without_a_card_is_turned_away_and_hears_nothing():
    topic = topic_of(LAB, "")
    async with lab_member() as (key, transport), js_peer(SWARM_KEY, topic) as js:
        async with transport.subscribe(topic, lambda source, data: True) as heard:
            await js.hear("address")
            await js.tell(enter=transport.addresses[0])
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def announce_and_be_spoken_to() -> None:
                    for sequence in range(1, 1000):
                        await transport.publish(topic, announcement(key, transport, LAB, sequence))
                        await js.tell(publish=base64.b64encode(b"a stranger").decode())
                        await trio.sleep(0.5)

                # The swarm key alone is not the right to be here: cut off when it has shown nothing for 10 s.
                said = await js.hear_one_of("closed", "announcement")
                nursery.cancel_scope.cancel()
            assert said == {"closed": True}
            assert transport.connected() == []
            with trio.move_on_after(0) as waiting:
                await heard.receive()
            assert waiting.cancelled_caught


@pytest.mark.parametrize("trouble", ["expired", "another"])
async def test_a_js_peer_with_a_card_that_does_not_hold_is_told_why(trouble):
    async with lab_member() as (_, transport), js_peer(SWARM_KEY, topic_of(LAB, "")) as js:
        address = (await js.hear("address"))["address"]
        peer = parse_peer(address.rpartition("/")[2])
        chain = certificate(peer, life_us=1) if trouble == "expired" else certificate(PeerKey.generate().peer)
        await show(js, chain)
        await js.tell(enter=transport.addresses[0])
        card = (await js.hear("card"))["card"]
        assert card["code"] == {"expired": "expired", "another": "wrong-subject"}[trouble]
        assert card["sentence"]
        await js.hear("closed")
        assert transport.connected() == []


async def test_a_js_peer_with_a_card_is_a_member():
    topic = topic_of(LAB, "")
    async with (
        lab_member() as (key, transport),
        transport.subscribe(topic, lambda source, data: True) as heard,
        js_peer(SWARM_KEY, topic) as js,
    ):
        address = (await js.hear("address"))["address"]
        peer = parse_peer(address.rpartition("/")[2])
        await show(js, certificate(peer))
        await js.tell(enter=transport.addresses[0])
        card = (await js.hear("card"))["card"]
        assert (card["code"], card["links"]) == ("ok", 1)
        with trio.fail_after(PATIENCE):
            while transport.connected() != [peer]:  # noqa: ASYNC110 - its own events are not ours
                await trio.sleep(0.05)
            await ping_from_here(transport, peer)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def speak() -> None:
                for sequence in range(1, 1000):
                    await transport.publish(topic, announcement(key, transport, LAB, sequence))
                    await js.tell(publish=base64.b64encode(b"a member").decode())
                    await trio.sleep(0.5)

            assert (await js.hear("announcement"))["holds"]
            with trio.fail_after(PATIENCE):
                message = await heard.receive()
            nursery.cancel_scope.cancel()
        assert (message.source, message.data) == (peer, b"a member")
