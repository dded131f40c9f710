"""A seed names no peer that has left: else it sends newcomers to the dead."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from coppermesh.agent.config import Config
from coppermesh.bootstrap.seed import Place, SeedNode, open_seed
from coppermesh.p2p.announcements import LIFETIME_US
from coppermesh.p2p.control import ControlHub, Handler, open_control_hub
from coppermesh.p2p.envelope import sign_record
from coppermesh.p2p.ids import PeerId, mesh_id
from coppermesh.p2p.libp2p_transport import open_libp2p_transport
from coppermesh.p2p.messages import AnnouncementReply, AnnouncementRequest, Message
from coppermesh.p2p.records import Announcement
from coppermesh.p2p.signing import PeerKey

pytestmark = pytest.mark.net
CONFIG = Config(mesh="seed test", listen="/ip4/127.0.0.1/tcp/0")
MESH = mesh_id(CONFIG.mesh)


def now_us() -> int:
    return time.time_ns() // 1000


@asynccontextmanager
async def visitor(key: PeerKey, seed: SeedNode) -> AsyncIterator[ControlHub]:
    """A peer that is connected to the seed and announces itself when it is asked."""
    now = now_us()
    record = Announcement(
        version=1,
        mesh=MESH,
        peer=key.peer,
        sequence=now,
        issued_us=now,
        expires_us=now + LIFETIME_US,
        software="test",
        addresses=[],
        devices=[],
        isolation=[],
        busy_slots=0,
        paused=False,
        shard="",
    )

    async def tell(peer: PeerId, request: AnnouncementRequest) -> Message:
        return AnnouncementReply(sign_record(key, record), [])

    handlers: dict[str, Handler] = {"announcement": (AnnouncementRequest, tell)}
    async with (
        open_libp2p_transport(key, MESH) as transport,
        open_control_hub(transport, MESH, key.peer, handlers=handlers, clock=now_us) as hub,
    ):
        await transport.dial(seed.transport.addresses[0])
        yield hub


async def told(hub: ControlHub, seed: SeedNode) -> set[bytes]:
    """Whom the seed names to a peer that asks who is here."""
    reply = await hub.request(
        seed.key.peer, "announcement", AnnouncementRequest(b"", 8), AnnouncementReply, deadline_s=60
    )
    return {bytes(signed.signer) for signed in reply.others}


async def test_a_peer_that_left_is_named_to_nobody_until_it_is_back(tmp_path: Path) -> None:
    place = Place(tmp_path / "key", tmp_path / "peers.json", now_us)
    stays, leaves = PeerKey.generate(), PeerKey.generate()
    async with open_seed(CONFIG, place) as seed, visitor(stays, seed) as hub:

        async def until_named(wanted: bool) -> None:
            with trio.fail_after(60):
                while (leaves.peer in await told(hub, seed)) is not wanted:  # noqa: ASYNC110 - it tells nobody
                    await trio.sleep(0.05)

        for _ in range(2):
            async with visitor(leaves, seed):
                await until_named(True)
                assert seed.facts()["registered"] == 2
            await until_named(False)
            assert seed.facts()["registered"] == 1
