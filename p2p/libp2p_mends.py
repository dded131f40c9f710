"""py-libp2p's gossipsub, made safe and cheap for this mesh by overriding methods; nothing in the library is patched.

What is mended, and why:

- **Reading.** The library reads lengths byte by byte through locks, starts a task per message without limit, and an
  exception in one ends the whole service. Here one task per peer reads, decodes and handles messages one after the
  other, at most `MESSAGES_PER_SECOND` of them, so that a flooding peer is slowed by its own stream's window.
- **Validation.** A message needs exactly one topic, an Ed25519 author, an 8-byte sequence number, a true signature and
  the subscriber's consent, in this order of cost. The library remembers verdicts per message id for longer than the
  id itself, so that an author could send another text under a validated id; here a verdict is never remembered.
  What it says of the forwarder is `gossip_conduct`'s: one that forges, or floods, is cut off.
- **Bursts.** The library keeps 32 messages for a neighbour that is slow for a moment, drops the rest without a word,
  and counts our own publishing against its spam limit of 10 a second. Here 256 wait, and there is no such limit on us.
- **Timing.** The library's heartbeat is every 120 s; here every second, as libp2p's specification says.
- **Memory.** Seen ids, the message cache, topics and control messages are bounded; the library's seen cache also needs
  a thread each, which is stopped.
- **Traffic.** No signed address record on each message (we keep addresses ourselves), no IDONTWANT (our messages are
  hardly larger), no peer exchange: a peer cannot make this agent dial.

The library is pinned, since the overridden methods are not a promised interface. `tests/unit/test_libp2p_stock.py`
holds each behaviour of the pinned version that is mended here or around here (`libp2p_connections`, `libp2p_upgrade`);
a test there fails when the library no longer has it, and then the mend can go. Upstream, in libp2p/py-libp2p: issue 572
and pull request 1426 on exhaustion, issue 1269 on yamux, issue 1002 on swarm keys; for the 250 ms of a dial, the queue
of 32 and the spam limit on one's own messages we know of no issue.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio
from google.protobuf.message import DecodeError
from libp2p.network.stream.exceptions import StreamClosed, StreamEOF, StreamError
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, PROTOCOL_ID_V12, GossipSub
from libp2p.pubsub.mcache import MessageCache
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.rpc_queue import RpcQueue
from libp2p.pubsub.validators import signature_validator

from coppermesh.p2p.errors import RemoteProtocolError
from coppermesh.p2p.gossip_conduct import Deed, GossipConduct
from coppermesh.p2p.gossip_inbox import GossipInbox, SeenMessages
from coppermesh.p2p.gossip_outcome import Outcome
from coppermesh.p2p.ids import PeerId, short_peer
from coppermesh.p2p.libp2p_host import GossipHost, HostStream, encode_varint
from coppermesh.p2p.libp2p_upgrade import peer_of
from coppermesh.p2p.transport import MAX_GOSSIP_BYTES, Gossip, TransportCounts

MAX_RPC_BYTES = 1024 * 1024
MESSAGES_PER_SECOND = 200
MESSAGE_BURST = 400
MAX_CONTROL_ENTRIES = 64
MAX_CONTROL_IDS = 1000
MAX_TOPIC_CHARS = 256
MAX_TOPICS_PER_PEER = 64
MAX_CACHE_BYTES = 16 * 1024 * 1024
MAX_BACK_OFF_SECONDS = 600
SEQUENCE_BYTES = 8
MAX_SEEN_IDS = 16384
MAX_OUTBOUND = 256
"""Messages, of at most 16 KiB, that wait for a neighbour."""
_log = logging.getLogger(__name__)


class SeenIds(SeenMessages):
    """`SeenMessages` with the method that GossipSub asks by."""

    def has(self, message_id: bytes) -> bool:
        """Whether the id was added and not yet forgotten."""
        return message_id in self._ids


class BoundedMessageCache(MessageCache):
    """The messages of the last heartbeats, for peers that ask by id; full means not kept."""

    def put(self, msg: rpc_pb2.Message) -> None:
        """Keep the message while there is room."""
        if sum(len(kept.data) for kept in self.msgs.values()) < MAX_CACHE_BYTES:
            super().put(msg)


class OutboundQueues(dict[ID, RpcQueue]):
    """The library's queues by peer, made longer as they are put in: it makes them of a fixed length itself."""

    def __setitem__(self, peer_id: ID, queue: RpcQueue) -> None:
        queue._queue.max_size = MAX_OUTBOUND  # noqa: SLF001
        super().__setitem__(peer_id, queue)


class MeshPubsub(Pubsub):
    """Reads, screens and delivers gossip. `inboxes` holds one inbox per subscribed topic."""

    def __init__(
        self,
        host: GossipHost,
        router: "MeshGossipSub",
        me: PeerId,
        cut_off: Callable[[PeerId], None],
        counts: TransportCounts,
    ) -> None:
        super().__init__(
            host,  # type: ignore[arg-type]
            router,
            strict_signing=True,
            max_subscriptions_per_peer=MAX_TOPICS_PER_PEER,
            max_subscriptions_per_rpc=MAX_TOPICS_PER_PEER,
            max_inbound_rpc_size=MAX_RPC_BYTES,
        )
        self.inboxes: dict[str, GossipInbox] = {}
        self._me = me
        self._cut_off = cut_off
        self._counts = counts
        self.conduct = GossipConduct()
        self.peer_queues = OutboundQueues()
        self._joining: set[ID] = set()
        # Sequence numbers must not go back when an agent restarts soon after publishing a lot.
        self.counter = time.time_ns()
        self.seen_messages.stop()
        self.seen_messages = SeenIds(MAX_SEEN_IDS)  # type: ignore[assignment]

    def get_hello_packet(self) -> rpc_pb2.RPC:
        """Our subscriptions, without an address record."""
        packet = rpc_pb2.RPC()
        for topic in self.topic_ids:
            packet.subscriptions.append(rpc_pb2.RPC.SubOpts(subscribe=True, topicid=topic))
        return packet

    async def _handle_new_peer_with_retry(  # the library's signature
        self,
        peer_id: ID,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> None:
        if peer_id in self._joining:
            return
        self._joining.add(peer_id)
        try:
            await super()._handle_new_peer_with_retry(peer_id, timeout)
        finally:
            self._joining.discard(peer_id)

    def peer_up(self, peer_id: ID) -> None:
        """A first connection to the peer is open."""
        self.manager.run_task(self._handle_new_peer_with_retry, peer_id)

    def peer_down(self, peer_id: ID) -> None:
        """The last connection to the peer is gone."""
        self._handle_dead_peer(peer_id)

    async def continuously_read_stream(self, stream: HostStream) -> None:  # type: ignore[override]
        """Read and handle messages until the stream ends. A breach resets it; the peer may open another."""
        peer_id = stream.muxed_conn.peer_id
        pace = Pace(MESSAGES_PER_SECOND, MESSAGE_BURST)
        try:
            while True:
                rpc = await _read_rpc(stream)
                await pace.spend(1 + len(rpc.publish))
                await self._handle_rpc(peer_id, rpc)
        except (StreamEOF, StreamError):
            return
        except (DecodeError, RemoteProtocolError) as error:
            _log.info("gossip from %s: %s", peer_id, error)
            self._hold_against(peer_id, Deed.BLAMED)
            await stream.reset()

    def _hold_against(self, peer_id: ID, deed: Deed) -> None:
        peer = peer_of(peer_id.to_bytes())
        if self.conduct.note(peer, deed, trio.current_time()):
            _log.warning("%s is cut off for what it gossiped", short_peer(peer))
            self._cut_off(peer)

    async def _handle_rpc(self, peer_id: ID, rpc: rpc_pb2.RPC) -> None:
        self._counts.gossip_copies += len(rpc.publish)
        for message in rpc.publish:
            await self.push_msg(peer_id, message)
        if len(rpc.subscriptions) <= self.max_subscriptions_per_rpc:
            for subscription in rpc.subscriptions:
                if len(subscription.topicid) <= MAX_TOPIC_CHARS:
                    self.handle_subscription(peer_id, subscription)
        if rpc.HasField("control"):
            await self.router.handle_rpc(rpc, peer_id)

    async def push_msg(self, msg_forwarder: ID, msg: rpc_pb2.Message) -> None:
        """Screen a message, deliver it and pass it on; our own skip the screening and are not delivered."""
        message_id = self.get_message_id(msg)
        if msg_forwarder == self.my_id:
            self.seen_messages.add(message_id)
        else:
            inbox = self._inbox_of(msg)
            if inbox is None or self.seen_messages.has(message_id):
                # A message for a topic that was just left, or one that came by another way too: nobody's fault.
                self._hold_against(msg_forwarder, Deed.REPEATED)
                return
            if not signature_validator(msg):
                self._hold_against(msg_forwarder, Deed.BLAMED)
                return
            # From here on the author answers for this id: another text under it is not looked at.
            self.seen_messages.add(message_id)
            source, forwarder = peer_of(msg.from_id), peer_of(msg_forwarder.to_bytes())
            outcome = inbox.offer(Gossip(msg.topicIDs[0], source, forwarder, msg.data))
            deed = Deed.of(outcome)
            if deed is not None:
                self._hold_against(msg_forwarder, deed)
            if outcome is not Outcome.FORWARD:
                return
        await self.router.publish(msg_forwarder, msg)

    def _inbox_of(self, msg: rpc_pb2.Message) -> GossipInbox | None:
        """The inbox the message is for, None where it is malformed or not for us. No cryptography here."""
        if len(msg.topicIDs) != 1 or len(msg.data) > MAX_GOSSIP_BYTES or len(msg.seqno) != SEQUENCE_BYTES:
            return None
        inbox = self.inboxes.get(msg.topicIDs[0])
        if inbox is None:
            return None
        try:
            source = peer_of(msg.from_id)
        except RemoteProtocolError:
            return None
        return None if source == self._me else inbox

    async def write_msg(self, stream: HostStream, rpc_msg: rpc_pb2.RPC) -> bool:  # type: ignore[override]
        """Send one message; False when the stream is gone."""
        rpc_msg.ClearField("senderRecord")
        body = rpc_msg.SerializeToString()
        if not body:
            return True
        try:
            await stream.write(encode_varint(len(body)) + body)
        except StreamClosed:
            self._handle_dead_peer(stream.muxed_conn.peer_id)
            return False
        return True


class MeshGossipSub(GossipSub):
    """The router: protocol versions 1.2 and 1.1, a heartbeat each second, no spam limit on our own messages."""

    def __init__(self) -> None:
        super().__init__(
            protocols=[PROTOCOL_ID_V12, PROTOCOL_ID_V11],
            degree=6,
            degree_low=4,
            degree_high=12,
            heartbeat_initial_delay=0.1,
            heartbeat_interval=1,
            do_px=False,
            adaptive_gossip_enabled=False,
            spam_protection_enabled=False,
            eclipse_protection_enabled=False,
        )
        self.mcache = BoundedMessageCache(self.mcache.window_size, self.mcache.history_size)

    async def heartbeat(self) -> None:
        """The library's endless loop, started again should an exception end it: gossip must outlive one bad beat."""
        while True:
            try:
                await super().heartbeat()
            except Exception:  # noqa: BLE001
                _log.exception("gossip heartbeat failed")
                await trio.sleep(self.heartbeat_interval)

    async def handle_rpc(self, rpc: rpc_pb2.RPC, sender_peer_id: ID) -> None:
        """Handle control messages about topics we are in; the rest, and what is too much, is left out."""
        rpc.ClearField("senderRecord")
        control = rpc.control
        for field in ("extensions", "observe", "unobserve"):
            control.ClearField(field)
        entries = (control.graft, control.prune, control.ihave, control.iwant, control.idontwant)
        if any(len(entry) > MAX_CONTROL_ENTRIES for entry in entries):
            raise RemoteProtocolError("too many control messages at once")
        for field in ("ihave", "iwant", "idontwant"):
            for named in getattr(control, field):
                del named.messageIDs[MAX_CONTROL_IDS:]
        for field in ("graft", "prune", "ihave"):
            entry = getattr(control, field)
            kept = [one for one in entry if one.topicID in self.mesh]
            del entry[:]
            entry.extend(kept)
        for prune in control.prune:
            del prune.peers[:]
            prune.backoff = min(prune.backoff, MAX_BACK_OFF_SECONDS)
        await super().handle_rpc(rpc, sender_peer_id)

    async def publish(self, msg_forwarder: ID, pubsub_msg: rpc_pb2.Message) -> None:
        """Pass a screened message on."""
        await super().publish(msg_forwarder, pubsub_msg)
        # Only read where adaptive gossip is on, and only emptied there.
        self.recent_message_deliveries.clear()

    async def flush_pending_messages(self, peer_id: ID) -> None:
        """Send what waited for the peer. Runs in a task of the service, which an exception would end."""
        with _survived("sending waiting gossip"):
            await super().flush_pending_messages(peer_id)

    async def on_peer_subscribed(self, peer_id: ID, topic: str) -> None:
        """Take the peer into the topic's mesh where there is room. In a task of the service, too."""
        with _survived("taking a peer into a topic"):
            await super().on_peer_subscribed(peer_id, topic)

    def send_rpc(self, peer_id: ID, rpc: rpc_pb2.RPC, priority: bool = False) -> None:
        """Queue a message for a peer, without an address record."""
        rpc.ClearField("senderRecord")
        super().send_rpc(peer_id, rpc, priority)

    async def _emit_idontwant_for_message(self, msg_id: bytes, topic_ids: object) -> None:
        """Not for messages of a few hundred bytes."""


@contextmanager
def _survived(doing: str) -> Iterator[None]:
    try:
        yield
    except Exception:  # noqa: BLE001
        # A bug of the library that a peer may be able to reach: gossip goes on.
        _log.exception("%s failed", doing)


class Pace:
    """A token bucket that makes the spender wait."""

    def __init__(self, per_second: float, burst: float) -> None:
        self._per_second = per_second
        self._burst = burst
        self._tokens = burst
        self._then = trio.current_time()

    async def spend(self, count: int) -> None:
        """Take `count` tokens, waiting until the debt, if any, is paid."""
        now = trio.current_time()
        self._tokens = min(self._burst, self._tokens + (now - self._then) * self._per_second)
        self._then = now
        self._tokens -= count
        if self._tokens < 0:
            await trio.sleep(-self._tokens / self._per_second)


async def _read_rpc(stream: HostStream) -> rpc_pb2.RPC:
    size, shift = 0, 0
    while True:
        byte = (await stream.read_exactly(1))[0]
        size |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            break
        if shift > 28:
            raise RemoteProtocolError("malformed message length")
    if size > MAX_RPC_BYTES:
        raise RemoteProtocolError(f"a message of {size} bytes; at most {MAX_RPC_BYTES} are read")
    rpc = rpc_pb2.RPC()
    rpc.ParseFromString(await stream.read_exactly(size))
    return rpc
