"""A seed's knowledge of who is where, in the words of other libp2p implementations: Kademlia and rendezvous.

Our own agents ask for announcements, which are signed and expire. A js or go peer without that can still find members:

- *Kademlia* (libp2p kad-dht specification), as a server, under a protocol id of the mesh's own: PING and FIND_NODE,
  ADD_PROVIDER of oneself and GET_PROVIDERS within limits (`provider_records`), GET_VALUE, which finds no value but who
  is closer. PUT_VALUE ends the stream, which is how the protocol refuses: a value counts where a validator of its
  namespace says so, and this mesh's DHT has no namespace.
- *rendezvous* (libp2p rendezvous specification): a peer registers itself, and nobody else, under the mesh's id as the
  only namespace, for at most two hours; discovering gives those and the peers that announce.

Everything is bounded: one registration a peer, `MAX_REGISTERED` in all, `MAX_ADDRESSES` each, and a stream ends after
`MAX_REQUESTS` questions or `IDLE_SECONDS` without one. Addresses are the peers' own words; a dial proves the key.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import trio
from libp2p.discovery.rendezvous.pb.rendezvous_pb2 import Message as RendezvousMessage
from libp2p.kad_dht.pb.kademlia_pb2 import Message as KadMessage

from coppermesh.p2p.errors import RemoteProtocolError, Unreachable
from coppermesh.p2p.ids import MeshId, PeerId, format_peer
from coppermesh.p2p.libp2p_circuit import address_bytes, address_text, id_bytes, read_message, write_message
from coppermesh.p2p.provider_records import ProviderRecords
from coppermesh.p2p.transport import Stream, Transport

RENDEZVOUS = "/rendezvous/1.0.0"
CLOSEST = 20
"""Kademlia's k."""
MAX_REGISTERED = 1024
MAX_ADDRESSES = 8
MAX_TTL = 7200
MAX_DISCOVERED = 100
MAX_REQUESTS = 64
IDLE_SECONDS = 30.0
OK, BAD_NAMESPACE, BAD_PEER, BAD_TTL, BAD_COOKIE, NOT_ALLOWED, FULL = 0, 100, 101, 102, 103, 200, 400


def kad_protocol(mesh: MeshId) -> str:
    """The mesh's own Kademlia: the public one is nobody's business here."""
    return f"/coppermesh/{mesh.hex()}/kad/1.0.0"


@dataclass(frozen=True, slots=True)
class Registered:
    """What a peer said of itself."""

    addresses: tuple[str, ...]
    expires: float


class Directory:
    """Answers both protocols on `transport`. `announced`: full addresses of the peers that announce, by peer."""

    def __init__(
        self,
        transport: Transport,
        mesh: MeshId,
        announced: Callable[[], Mapping[PeerId, Sequence[str]]],
    ) -> None:
        self._mesh = mesh
        self._announced = announced
        self._registered: OrderedDict[PeerId, Registered] = OrderedDict()
        self._provided = ProviderRecords()
        transport.handle(kad_protocol(mesh), self._serve_kad)
        transport.handle(RENDEZVOUS, self._serve_rendezvous)

    def known(self, now: float) -> dict[PeerId, list[str]]:
        """Everybody's addresses, without peer id; those that announce come first."""
        for peer, entry in list(self._registered.items()):
            if entry.expires <= now:
                del self._registered[peer]
        found = {
            peer: [address.rpartition("/p2p/")[0] for address in addresses if "/p2p-circuit" not in address]
            for peer, addresses in self._announced().items()
        }
        for peer, entry in self._registered.items():
            found.setdefault(peer, list(entry.addresses))
        return found

    @property
    def registered(self) -> int:
        """Peers that have registered themselves here."""
        return len(self._registered)

    # Kademlia

    async def _serve_kad(self, stream: Stream) -> None:
        for _ in range(MAX_REQUESTS):
            request = await _next(stream, KadMessage)
            if request is None:
                return
            now = trio.current_time()
            if request.type == KadMessage.ADD_PROVIDER:
                # Without an answer, by the specification; what is not taken is not said either.
                self._add_provider(stream.peer, request, now)
                continue
            if request.type not in _ANSWERED:
                raise RemoteProtocolError("kad: no values are kept here")
            answer = KadMessage(type=request.type, key=request.key)
            if request.type == KadMessage.GET_PROVIDERS:
                for peer, addresses in self._provided.of(request.key, now).items():
                    _name(answer.providerPeers.add(), peer, addresses)
            if request.type != KadMessage.PING:
                known = self.known(now)
                for peer in closest(request.key, [peer for peer in known if peer != stream.peer]):
                    _name(answer.closerPeers.add(), peer, known[peer])
            await write_message(stream, answer)

    def _add_provider(self, peer: PeerId, request: Any, now: float) -> None:
        for said in request.providerPeers:
            if said.id == id_bytes(peer):
                try:
                    texts = [address_text(data) for data in said.addrs[:MAX_ADDRESSES]]
                except Unreachable:
                    continue
                self._provided.add(
                    request.key, peer, [text.removesuffix(f"/p2p/{format_peer(peer)}") for text in texts], now
                )

    # Rendezvous

    async def _serve_rendezvous(self, stream: Stream) -> None:
        for _ in range(MAX_REQUESTS):
            request = await _next(stream, RendezvousMessage)
            if request is None:
                return
            now = trio.current_time()
            answer: Any = None
            if request.type == RendezvousMessage.REGISTER:
                answer = self._register(stream.peer, request.register, now)
            elif request.type == RendezvousMessage.UNREGISTER:
                self._registered.pop(stream.peer, None)
            elif request.type == RendezvousMessage.DISCOVER:
                answer = self._discover(request.discover, now)
            else:
                raise RemoteProtocolError("rendezvous: a message that is no question")
            if answer is not None:
                await write_message(stream, answer)

    def _register(self, peer: PeerId, asked: Any, now: float) -> RendezvousMessage:
        answer = RendezvousMessage(type=RendezvousMessage.REGISTER_RESPONSE)
        response: Any = answer.registerResponse
        status, addresses = self._judge(peer, asked)
        ttl = asked.ttl or MAX_TTL
        if status == OK and peer not in self._registered and len(self.known(now)) >= MAX_REGISTERED:
            status = FULL
        if status == OK:
            self._registered[peer] = Registered(tuple(addresses), now + ttl)
            response.ttl = ttl
        response.status = status
        return answer

    def _judge(self, peer: PeerId, asked: Any) -> tuple[Any, list[str]]:
        if asked.ns != self._mesh.hex():
            return BAD_NAMESPACE, []
        if not 0 <= asked.ttl <= MAX_TTL:
            return BAD_TTL, []
        if asked.peer.id != id_bytes(peer):
            return NOT_ALLOWED, []
        if not 0 < len(asked.peer.addrs) <= MAX_ADDRESSES:
            return BAD_PEER, []
        try:
            texts = [
                address_text(data).removesuffix(f"/p2p/{format_peer(peer)}") for data in asked.peer.addrs
            ]
        except Unreachable:
            return BAD_PEER, []
        return OK, texts

    def _discover(self, asked: Any, now: float) -> RendezvousMessage:
        answer = RendezvousMessage(type=RendezvousMessage.DISCOVER_RESPONSE)
        response: Any = answer.discoverResponse
        if asked.ns != self._mesh.hex():
            response.status = BAD_NAMESPACE
            return answer
        if len(asked.cookie) > 4:
            response.status = BAD_COOKIE
            return answer
        known = self.known(now)
        start = int.from_bytes(asked.cookie, "big")
        most = min(asked.limit or MAX_DISCOVERED, MAX_DISCOVERED)
        peers = sorted(known)[start : start + most]
        for peer in peers:
            entry = response.registrations.add()
            entry.ns = asked.ns
            entry.peer.id = id_bytes(peer)
            entry.peer.addrs.extend(address_bytes(text) for text in known[peer][:MAX_ADDRESSES])
            registered = self._registered.get(peer)
            entry.ttl = MAX_TTL if registered is None else max(1, int(registered.expires - now))
        if start + most < len(known):
            response.cookie = (start + most).to_bytes(4, "big")
        response.status = OK
        return answer


_ANSWERED = (KadMessage.PING, KadMessage.FIND_NODE, KadMessage.GET_PROVIDERS, KadMessage.GET_VALUE)


def _name(entry: Any, peer: PeerId, addresses: Sequence[str]) -> None:
    entry.id = id_bytes(peer)
    entry.addrs.extend(address_bytes(text) for text in addresses[:MAX_ADDRESSES])


def closest(key: bytes, peers: Sequence[PeerId]) -> list[PeerId]:
    """The `CLOSEST` peers by Kademlia's distance: XOR of the SHA-256 of both ids."""
    wanted = int.from_bytes(hashlib.sha256(key).digest(), "big")

    def distance(peer: PeerId) -> int:
        return wanted ^ int.from_bytes(hashlib.sha256(id_bytes(peer)).digest(), "big")

    return sorted(peers, key=distance)[:CLOSEST]


async def _next(stream: Stream, kind: Any) -> Any:
    """The next question; None when the other side has no more, or takes too long."""
    with trio.move_on_after(IDLE_SECONDS):
        try:
            return await read_message(stream, kind)
        except Unreachable:
            return None
    return None
