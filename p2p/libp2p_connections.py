"""Which peers are connected, and how they came to be: dialling, accepting, replacing, dropping.

A peer has usually one connection. When both sides dial at the same moment there are two, and both are kept: neither
side can know which one the other is using already. New streams go on the newest. A second connection *in the same
direction* means that the peer gave up the first (a restart, a changed network), so it replaces the first; so does one
that comes later from another host. When one of a peer's connections ends, all are closed: the peer is down, once, and
dialled again by whoever wants it.

A connection may also run through a relay (`libp2p_circuit`), where the peer itself cannot be reached. A direct one that
comes later replaces it, in either direction: the peer is down and up again, which is why it is tried at once, while
nobody has anything under way.
"""

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import trio

from coppermesh.p2p.addresses import Address, format_host, is_loopback
from coppermesh.p2p.dial_plan import hosts_worth_dialling
from coppermesh.p2p.errors import MeshError, Refused, Unreachable
from coppermesh.p2p.ids import PeerId, format_peer, short_peer
from coppermesh.p2p.libp2p_tcp import open_any, open_tcp, resolve
from coppermesh.p2p.libp2p_upgrade import Identity, Secured, is_near, prove, upgrade
from coppermesh.p2p.libp2p_yamux import BufferBudget, YamuxConnection
from coppermesh.p2p.libp2p_yamux_stream import YamuxStream
from coppermesh.p2p.reachability import Probe
from coppermesh.p2p.transport import DIAL_SECONDS, PeerDown, PeerPath, PeerUp, TransportCounts

PROBE_SECONDS = 3.0
MAX_CONNECTIONS = 256
"""Of which three quarters may be accepted ones; the rest is kept for peers we want to reach."""
MAX_HANDSHAKES = 64
"""Accepted connections that have not proven a peer yet; the oldest goes when one more comes."""
SIMULTANEOUS_SECONDS = 10.0
"""Two connections of which the second came within this time were dialled at the same moment."""
MAX_UNREAD_BYTES = 512 * 1024 * 1024
_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Connection:
    """One connection to a peer."""

    mux: YamuxConnection
    address: str
    outbound: bool
    local_host: str
    remote_host: str
    since: float
    relay: PeerId | None = None


class ConnectionTable:
    """Every connection of a transport. `on_stream` gets the streams peers open, `on_event` each coming and going."""

    def __init__(
        self,
        identity: Identity,
        nursery: trio.Nursery,
        counts: TransportCounts,
        *,
        swarm_key: bytes | None = None,
        max_connections: int = MAX_CONNECTIONS,
        on_stream: Callable[[YamuxStream], None],
        on_event: Callable[[PeerUp | PeerDown], None],
        open_circuit: Callable[[Address], Awaitable[trio.SocketStream]],
        own_addresses: Callable[[], Sequence[str]],
    ) -> None:
        self._identity = identity
        self.swarm_key = swarm_key
        """Around connections that are made from now on."""
        self._most = max_connections
        self._most_inbound = max_connections * 3 // 4
        self._nursery = nursery
        self._counts = counts
        self._on_stream = on_stream
        self._on_event = on_event
        self._open_circuit = open_circuit
        self._own_addresses = own_addresses
        self.local_port = 0
        """The port this agent listens on, from which it dials as well; 0: any."""
        self._peers: dict[PeerId, list[Connection]] = {}
        self._accepted = 0
        self._handshakes: OrderedDict[int, trio.CancelScope] = OrderedDict()
        self._dialling: dict[PeerId, trio.Lock] = {}
        self._budget = BufferBudget(MAX_UNREAD_BYTES)
        self._closed = False
        self.is_cut: Callable[[PeerId], bool] = lambda _: False
        """Peers that are kept out for now."""

    def __contains__(self, peer: PeerId) -> bool:
        return peer in self._peers

    def peers(self) -> list[PeerId]:
        """Peers with an open connection."""
        return list(self._peers)

    def newest(self, peer: PeerId) -> YamuxConnection:
        """The connection that new streams go on. Raises Unreachable."""
        connections = self._peers.get(peer)
        if not connections:
            raise Unreachable(f"{short_peer(peer)} is not connected")
        return connections[-1].mux

    def path_to(self, peer: PeerId) -> PeerPath | None:
        """How the peer is reached by what would be sent now; None where it is not connected."""
        connections = self._peers.get(peer)
        if not connections:
            return None
        newest = connections[-1]
        return PeerPath(newest.address, newest.outbound, newest.relay)

    async def close(self) -> None:
        """Say goodbye to every peer, for at most a second, and close."""
        self._closed = True
        async with trio.open_nursery() as nursery:
            for connection in self._all():
                nursery.start_soon(connection.mux.say_goodbye)
        for peer in self.peers():
            self.drop(peer, "the transport was closed")

    # Dialling

    async def dial(self, target: Address) -> None:
        """Connect within DIAL_SECONDS. Raises Unreachable, or RemoteProtocolError when another key answers."""
        self._counts.dials += 1
        try:
            with trio.move_on_after(DIAL_SECONDS):
                # One dial per peer at a time: the second finds the first one's connection.
                async with self._dialling.setdefault(target.peer, trio.Lock()):
                    if self.worth_dialling(target):
                        await self._connect(target)
                    return
            raise Unreachable(f"{target}: no answer within {DIAL_SECONDS:g} s")
        except MeshError:
            self._counts.dials_failed += 1
            raise
        finally:
            lock = self._dialling.get(target.peer)
            if lock is not None and not lock.locked():
                del self._dialling[target.peer]

    def worth_dialling(self, target: Address) -> bool:
        """The peer is not connected; or only through a relay, and this address is a direct one."""
        return target.peer not in self._peers or (target.relay is None and not self._is_direct(target.peer))

    async def _connect(self, target: Address) -> None:
        if self.is_cut(target.peer):
            raise Unreachable(f"{short_peer(target.peer)} is cut off for what it gossiped")
        self._check_room()
        stream = await self._reach(target)
        try:
            secured = await upgrade(stream, self._identity, target.peer, self.swarm_key)
            self._check_room()
        except Refused as error:
            await trio.aclose_forcefully(stream)
            raise Unreachable(f"{target}: {error}") from error
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        connection = self._add(stream, secured, str(target), outbound=True, relay=target.relay)
        self._nursery.start_soon(self._serve, connection)

    async def _reach(self, target: Address) -> trio.SocketStream:
        """The bytes' way to the target, not yet secured. Raises Unreachable."""
        if target.relay is not None:
            try:
                return await self._open_circuit(target)
            except Refused as error:
                raise Unreachable(f"{target}: {error.sentence}") from error
        try:
            return await self._open_any(target)
        except OSError as error:
            raise Unreachable(f"{target}: {error.strerror or error}") from error

    async def _open_any(self, target: Address) -> trio.SocketStream:
        """Connect to the target's host, or to one of those that its name stands for. Raises OSError, Unreachable."""
        if target.kind in ("ip4", "ip6"):
            return await open_tcp(target.kind, target.host, target.port, self.local_port)
        found = await resolve(target.kind, target.host, target.port)
        hosts = hosts_worth_dialling(target, found, self._own_addresses())
        if not hosts:
            raise Unreachable(
                f"{target}: {target.host} stands for hosts of a network that this agent is not in"
            )
        return await open_any(hosts, target.port, self.local_port)

    async def probe(self, target: Address) -> Probe:
        """Reach the target, have it prove its key, and hang up: no connection comes of it, at either side.

        From a port of its own, so that no earlier connection has opened the way.
        """
        with trio.move_on_after(PROBE_SECONDS):
            try:
                stream = await trio.open_tcp_stream(target.host, target.port)
            except OSError as error:
                return Probe.CLOSED if _was_refused(error) else Probe.UNREACHABLE
            try:
                await prove(stream, self._identity, target.peer, self.swarm_key)
            except MeshError:
                return Probe.OTHER
            finally:
                await trio.aclose_forcefully(stream)
            return Probe.REACHED
        return Probe.SILENT

    async def add_punched(self, stream: trio.SocketStream, target: Address, *, initiator: bool) -> None:
        """A TCP connection that both sides opened at once: secure it in the given role and use it.

        Raises as `dial` does, and closes the stream then.
        """
        try:
            with trio.fail_after(DIAL_SECONDS):
                secured = await upgrade(
                    stream, self._identity, target.peer, self.swarm_key, initiator=initiator
                )
            self._check_room()
        except trio.TooSlowError:
            await trio.aclose_forcefully(stream)
            raise Unreachable(f"{target}: it opened the connection and said nothing") from None
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        connection = self._add(stream, secured, str(target), outbound=initiator)
        self._nursery.start_soon(self._serve, connection)

    def _check_room(self) -> None:
        if self._closed:
            raise Unreachable("this agent is closing")
        if len(self._all()) >= self._most:
            raise Unreachable(f"this agent has {self._most} connections already")

    # Accepting

    async def accept_forever(self, listeners: Sequence[trio.SocketListener]) -> None:
        """Serve the port; running out of descriptors pauses it."""
        await trio.serve_listeners(self._accept, list(listeners), handler_nursery=self._nursery)

    async def _accept(self, stream: trio.SocketStream) -> None:
        """Serve one accepted TCP connection until it ends; the caller closes it."""
        secured = await self._handshake(stream)
        if secured is None:
            return
        if self.is_cut(secured.peer):
            return
        if self._closed or self._accepted >= self._most_inbound or len(self._all()) >= self._most:
            _log.info("refused %s: too many connections", short_peer(secured.peer))
            return
        try:
            host, port = stream.socket.getpeername()[:2]
        except OSError:
            return
        await self._serve(self._add(stream, secured, format_host(host, port), outbound=False))

    async def accept_relayed(self, stream: trio.SocketStream, relay: PeerId, caller: PeerId) -> None:
        """Serve a connection that `relay` says is from `caller`, which it has to prove, until it ends."""
        secured = await self._handshake(stream)
        if secured is None:
            return
        if secured.peer != caller:
            _log.info("the relay %s named a caller that another one was", short_peer(relay))
            return
        full = self._accepted >= self._most_inbound or len(self._all()) >= self._most
        if self._closed or full or self._is_direct(caller) or self.is_cut(caller):
            return
        address = f"/p2p/{format_peer(relay)}/p2p-circuit"
        await self._serve(self._add(stream, secured, address, outbound=False, relay=relay))

    def _is_direct(self, peer: PeerId) -> bool:
        return any(it.relay is None for it in self._peers.get(peer, ()))

    async def _handshake(self, stream: trio.SocketStream) -> Secured | None:
        if len(self._handshakes) >= MAX_HANDSHAKES:
            self._handshakes.popitem(last=False)[1].cancel()
        scope = self._handshakes[id(stream)] = trio.CancelScope()
        scope.deadline = trio.current_time() + DIAL_SECONDS
        try:
            with scope:
                return await upgrade(stream, self._identity, None, self.swarm_key)
        except MeshError as error:
            _log.debug("an incoming connection failed: %s", error)
        except Exception:  # noqa: BLE001
            # Whatever a stranger's bytes bring about ends that connection, never the port.
            _log.exception("an incoming connection failed")
        finally:
            if self._handshakes.get(id(stream)) is scope:
                del self._handshakes[id(stream)]
        return None

    # Keeping

    def _add(
        self,
        stream: trio.SocketStream,
        secured: Secured,
        address: str,
        *,
        outbound: bool,
        relay: PeerId | None = None,
    ) -> Connection:
        peer = secured.peer
        local_host, remote_host = _hosts_of(stream)
        now = trio.current_time()
        for old in self._peers.get(peer, ()):
            moved = old.remote_host != remote_host and now - old.since > SIMULTANEOUS_SECONDS
            better = relay is None and old.relay is not None
            if old.outbound == outbound or moved or better:
                self.drop(peer, "a direct connection" if better else "replaced by a newer connection")
                break
        mux = YamuxConnection(
            peer,
            stream,
            secured.reader,
            secured.writer,
            initiator=outbound,
            budget=self._budget,
            on_stream=self._on_stream,
            early=secured.early,
            near=is_near(stream),
        )
        connection = Connection(mux, address, outbound, local_host, remote_host, now, relay)
        first = peer not in self._peers
        self._peers.setdefault(peer, []).append(connection)
        if first:
            self._on_event(PeerUp(peer, address, outbound))
        return connection

    async def _serve(self, connection: Connection) -> None:
        peer = connection.mux.peer
        self._accepted += not connection.outbound
        try:
            await connection.mux.run()
        except Exception:  # noqa: BLE001
            # A bug in the muxer that one peer can reach must not take the others down.
            _log.exception("the connection to %s failed", short_peer(peer))
        finally:
            self._accepted -= not connection.outbound
            if connection in self._peers.get(peer, ()):
                self.drop(peer, connection.mux.ended or "the transport was closed")

    def drop(self, peer: PeerId, reason: str) -> None:
        """Close every connection to the peer; nothing if there is none."""
        connections = self._peers.pop(peer, None)
        if connections is not None:
            for connection in connections:
                connection.mux.close(reason)
            self._on_event(PeerDown(peer, reason))

    def drop_from_other_hosts(self, hosts: Sequence[str]) -> None:
        """This machine's hosts are these now: what hangs on another one is dead, though nothing says so."""
        for peer, connections in list(self._peers.items()):
            gone = [it for it in connections if it.local_host and it.local_host not in hosts]
            if any(not is_loopback(it.local_host) for it in gone):
                self.drop(peer, "this machine's address has changed")

    def _all(self) -> list[Connection]:
        return [connection for connections in self._peers.values() for connection in connections]


def _was_refused(error: BaseException | None) -> bool:
    """Did somebody answer that nobody listens there? trio wraps what the kernel said, once or in a group."""
    if isinstance(error, BaseExceptionGroup):
        return any(_was_refused(inner) for inner in error.exceptions)
    return isinstance(error, ConnectionRefusedError) or (error is not None and _was_refused(error.__cause__))


def _hosts_of(stream: trio.SocketStream) -> tuple[str, str]:
    """This end's host and the other's; empty where the connection has none of its own, or is gone already."""
    if not isinstance(stream, trio.SocketStream):
        return "", ""
    try:
        local, remote = stream.socket.getsockname()[0], stream.socket.getpeername()[0]
    except OSError:
        return "", ""
    return _plain_host(str(local)), _plain_host(str(remote))


def _plain_host(host: str) -> str:
    return host.partition("%")[0].removeprefix("::ffff:")
