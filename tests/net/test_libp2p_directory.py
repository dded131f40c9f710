"""A seed's directory, asked with the library's own messages and its own rendezvous client."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.discovery.rendezvous.client import RendezvousClient
from libp2p.discovery.rendezvous.pb.rendezvous_pb2 import Message as RendezvousMessage
from libp2p.kad_dht import provider_store
from libp2p.kad_dht.pb.kademlia_pb2 import Message as KadMessage
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_PROTOCOL_ID
from libp2p.security.noise.transport import Transport as NoiseTransport
from multiaddr import Multiaddr

from coppermesh.p2p.errors import MeshError
from coppermesh.p2p.ids import PeerId, format_peer, mesh_id
from coppermesh.p2p.libp2p_circuit import address_bytes, address_text, id_bytes, read_message, write_message
from coppermesh.p2p.libp2p_directory import (
    BAD_COOKIE,
    BAD_NAMESPACE,
    BAD_PEER,
    BAD_TTL,
    CLOSEST,
    MAX_TTL,
    NOT_ALLOWED,
    OK,
    RENDEZVOUS,
    Directory,
    closest,
    kad_protocol,
)
from coppermesh.p2p.libp2p_transport import open_libp2p_transport
from coppermesh.p2p.provider_records import LIFE_SECONDS, ProviderRecords
from coppermesh.p2p.signing import PeerKey
from coppermesh.p2p.transport import Transport

pytestmark = pytest.mark.net
MESH = mesh_id("directory test")
MEMBERS = [PeerKey.generate().peer for _ in range(30)]


def place(peer: PeerId, number: int) -> str:
    return f"/ip4/203.0.114.{number + 1}/tcp/4001/p2p/{format_peer(peer)}"


ANNOUNCED = {peer: [place(peer, number)] for number, peer in enumerate(MEMBERS)}


@asynccontextmanager
async def seed_and_asker(mesh=MESH) -> AsyncIterator[tuple[Transport, Transport]]:
    async with (
        open_libp2p_transport(PeerKey.generate(), MESH) as seed,
        open_libp2p_transport(PeerKey.generate(), MESH) as asker,
    ):
        Directory(seed, MESH, lambda: ANNOUNCED)
        await asker.dial(seed.addresses[0])
        yield seed, asker


async def test_find_node_gives_the_twenty_closest_with_their_addresses() -> None:
    async with seed_and_asker() as (seed, asker):
        stream = await asker.open_stream(seed.peer, kad_protocol(MESH))
        wanted = MEMBERS[7]
        await write_message(stream, KadMessage(type=KadMessage.FIND_NODE, key=id_bytes(wanted)))
        answer = await read_message(stream, KadMessage)
        assert [entry.id for entry in answer.closerPeers] == [
            id_bytes(peer) for peer in closest(id_bytes(wanted), MEMBERS)
        ]
        assert len(answer.closerPeers) == CLOSEST
        assert answer.closerPeers[0].id == id_bytes(wanted), "a peer is closest to itself"
        assert address_text(answer.closerPeers[0].addrs[0]) == "/ip4/203.0.114.8/tcp/4001"
        await write_message(stream, KadMessage(type=KadMessage.PING))
        assert (await read_message(stream, KadMessage)).type == KadMessage.PING


async def test_values_are_refused_and_none_is_found() -> None:
    async with seed_and_asker() as (seed, asker):
        stream = await asker.open_stream(seed.peer, kad_protocol(MESH))
        await write_message(stream, KadMessage(type=KadMessage.GET_VALUE, key=b"/v/x"))
        answer = await read_message(stream, KadMessage)
        assert (answer.type, answer.record.value, len(answer.closerPeers)) == (
            KadMessage.GET_VALUE,
            b"",
            CLOSEST,
        )
        put = KadMessage(type=KadMessage.PUT_VALUE, key=b"/v/x")
        put.record.key, put.record.value = b"/v/x", b"a stranger's"
        await write_message(stream, put)
        with pytest.raises(MeshError):
            await read_message(stream, KadMessage)
        assert asker.connected() == [seed.peer]


def adding(key: bytes, *peers: PeerId) -> KadMessage:
    message = KadMessage(type=KadMessage.ADD_PROVIDER, key=key)
    for peer in peers:
        entry = message.providerPeers.add()
        entry.id = id_bytes(peer)
        entry.addrs.append(address_bytes("/ip4/203.0.114.99/tcp/1"))
    return message


async def providers(asker: Transport, seed: Transport, key: bytes) -> list[tuple[bytes, list[bytes]]]:
    stream = await asker.open_stream(seed.peer, kad_protocol(MESH))
    await write_message(stream, KadMessage(type=KadMessage.GET_PROVIDERS, key=key))
    answer = await read_message(stream, KadMessage)
    await stream.aclose()
    assert answer.key == key
    assert len(answer.closerPeers) == CLOSEST
    return [(entry.id, list(entry.addrs)) for entry in answer.providerPeers]


async def test_a_peer_adds_itself_as_provider_and_nobody_else() -> None:
    async with seed_and_asker() as (seed, asker):
        stream = await asker.open_stream(seed.peer, kad_protocol(MESH))
        await write_message(stream, adding(b"mine", asker.peer, MEMBERS[0]))
        await write_message(stream, adding(b"theirs", MEMBERS[0]))
        await write_message(stream, adding(b"k" * 81, asker.peer))
        await write_message(stream, KadMessage(type=KadMessage.PING))
        await read_message(stream, KadMessage)
        mine = (id_bytes(asker.peer), [address_bytes("/ip4/203.0.114.99/tcp/1")])
        assert await providers(asker, seed, b"mine") == [mine]
        assert await providers(asker, seed, b"theirs") == []
        assert await providers(asker, seed, b"k" * 81) == []


async def test_the_librarys_own_dht_finds_and_adds_providers(monkeypatch) -> None:
    """py-libp2p's, as it is but for the protocol's name, on a stock host."""
    monkeypatch.setattr(provider_store, "PROTOCOL_ID", kad_protocol(MESH))
    keys = create_new_key_pair()
    noise = NoiseTransport(keys, noise_privkey=create_noise_key_pair().private_key)
    listen = [Multiaddr("/ip4/127.0.0.1/tcp/0")]
    host = new_host(key_pair=keys, sec_opt={NOISE_PROTOCOL_ID: noise}, listen_addrs=listen)
    async with open_libp2p_transport(PeerKey.generate(), MESH) as seed, host.run(listen_addrs=listen):
        Directory(seed, MESH, lambda: ANNOUNCED)
        info = info_from_p2p_addr(Multiaddr(seed.addresses[0]))
        with trio.fail_after(20):
            await host.connect(info)
            store = provider_store.ProviderStore(host)
            assert await store._send_add_provider(info.peer_id, b"content")
            ask = partial(store._get_providers_from_peer_with_closers, info.peer_id, b"content")
            while not (found := (await ask())[0]):  # noqa: ASYNC110 - adding has no answer
                await trio.sleep(0.05)
            assert len((await ask())[1]) == CLOSEST
        assert [one.peer_id for one in found] == [host.get_id()]
        await host.close()


def test_provider_records_are_bounded_and_expire(monkeypatch) -> None:
    monkeypatch.setattr("coppermesh.p2p.provider_records.MAX_KEYS", 3)
    monkeypatch.setattr("coppermesh.p2p.provider_records.MAX_RECORDS", 4)
    records = ProviderRecords()
    one, two, three = MEMBERS[:3]
    assert [records.add(b"%d" % key, one, [], 0) for key in range(4)] == [True, True, True, False]
    assert records.add(b"0", one, ["/ip4/203.0.114.1/tcp/1"], 1)  # repeated: not one more
    assert len(records) == 3
    assert records.of(b"0", 1) == {one: ("/ip4/203.0.114.1/tcp/1",)}
    assert records.add(b"0", two, [], 2)
    assert records.add(b"0", three, [], 3)
    assert len(records) == 4
    assert records.of(b"1", 3) == {}  # the oldest has made room
    assert list(records.of(b"0", 3)) == [three, two, one]
    assert list(records.of(b"0", LIFE_SECONDS + 1.5)) == [three, two]
    assert not records.of(b"0", LIFE_SECONDS + 4)
    assert len(records) == 0
    assert not records.add(b"", one, [], 0)


def registration(
    peer: PeerId, *, ns: str = MESH.hex(), ttl: int = 60, addresses=("/ip4/203.0.114.99/tcp/1",)
):
    message = RendezvousMessage(type=RendezvousMessage.REGISTER)
    message.register.ns, message.register.ttl = ns, ttl
    message.register.peer.id = id_bytes(peer)
    message.register.peer.addrs.extend(address_bytes(text) for text in addresses)
    return message


async def ask(asker: Transport, seed: Transport, message: RendezvousMessage) -> RendezvousMessage:
    stream = await asker.open_stream(seed.peer, RENDEZVOUS)
    await write_message(stream, message)
    answer = await read_message(stream, RendezvousMessage)
    await stream.aclose()
    return answer


def discovery(**given) -> RendezvousMessage:
    message = RendezvousMessage(type=RendezvousMessage.DISCOVER)
    message.discover.ns = given.get("ns", MESH.hex())
    message.discover.limit = given.get("limit", 0)
    message.discover.cookie = given.get("cookie", b"")
    return message


async def test_a_peer_registers_itself_and_is_discovered_with_those_that_announce() -> None:
    async with seed_and_asker() as (seed, asker):
        answer = await ask(asker, seed, registration(asker.peer))
        assert (answer.registerResponse.status, answer.registerResponse.ttl) == (OK, 60)
        found: dict[bytes, int] = {}
        cookie = b""
        while True:
            page = (await ask(asker, seed, discovery(limit=8, cookie=cookie))).discoverResponse
            assert page.status == OK
            assert len(page.registrations) <= 8
            found |= {entry.peer.id: entry.ttl for entry in page.registrations}
            cookie = page.cookie
            if not cookie:
                break
        assert set(found) == {id_bytes(peer) for peer in [*MEMBERS, asker.peer]}
        assert 0 < found[id_bytes(asker.peer)] <= 60


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"ns": "another"}, BAD_NAMESPACE),
        ({"ttl": MAX_TTL + 1}, BAD_TTL),
        ({"addresses": ()}, BAD_PEER),
        ({"addresses": ["/ip4/203.0.114.99/tcp/1"] * 9}, BAD_PEER),
    ],
)
async def test_what_cannot_be_registered_is_refused_with_its_code(changes, status) -> None:
    async with seed_and_asker() as (seed, asker):
        answer = await ask(asker, seed, registration(asker.peer, **changes))
        assert answer.registerResponse.status == status


async def test_nobody_registers_another_and_a_wrong_page_is_refused() -> None:
    async with seed_and_asker() as (seed, asker):
        answer = await ask(asker, seed, registration(MEMBERS[0]))
        assert answer.registerResponse.status == NOT_ALLOWED
        assert (await ask(asker, seed, discovery(cookie=b"12345"))).discoverResponse.status == BAD_COOKIE
        assert (await ask(asker, seed, discovery(ns="x"))).discoverResponse.status == BAD_NAMESPACE


async def test_a_registration_expires(autojump_clock: trio.testing.MockClock) -> None:
    class Nowhere:
        def handle(self, protocol: str, handler: object) -> None:
            return None

    directory = Directory(Nowhere(), MESH, dict)  # type: ignore[arg-type]
    directory._register(MEMBERS[0], registration(MEMBERS[0]).register, 0.0)
    assert list(directory.known(59.9)) == [MEMBERS[0]]
    assert directory.known(60.0) == {}


async def test_the_librarys_own_client_registers_and_discovers() -> None:
    keys = create_new_key_pair()
    noise = NoiseTransport(keys, noise_privkey=create_noise_key_pair().private_key)
    listen = [Multiaddr("/ip4/127.0.0.1/tcp/0")]
    host = new_host(key_pair=keys, sec_opt={NOISE_PROTOCOL_ID: noise}, listen_addrs=listen)
    async with open_libp2p_transport(PeerKey.generate(), MESH) as seed, host.run(listen_addrs=listen):
        Directory(seed, MESH, lambda: ANNOUNCED)
        there = info_from_p2p_addr(Multiaddr(seed.addresses[0]))
        await host.connect(there)
        client = RendezvousClient(host, there.peer_id)
        assert await client.register(MESH.hex(), 600) == 600
        found, _ = await client.discover(MESH.hex(), 100)
        peers = {entry.peer_id.to_bytes() for entry in found}
        assert peers == {*(id_bytes(peer) for peer in MEMBERS), host.get_id().to_bytes()}
        await client.close()
        await host.close()
