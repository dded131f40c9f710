"""What both transports share about gossip: validation, a bounded inbox per topic, and a bounded memory of messages."""

import logging
from collections import OrderedDict
from collections.abc import Hashable

import trio

from coppermesh.p2p.gossip_outcome import Outcome
from coppermesh.p2p.ids import short_peer
from coppermesh.p2p.transport import Gossip, TransportCounts, Validate

INBOX_MESSAGES = 256
SEEN_MESSAGES = 4096
_log = logging.getLogger(__name__)


class GossipInbox:
    """The messages of one subscription that its reader has not taken yet; the oldest go when it lags."""

    def __init__(self, validate: Validate, counts: TransportCounts) -> None:
        self._validate = validate
        self._counts = counts
        self._sender, self.receiver = trio.open_memory_channel[Gossip](INBOX_MESSAGES)
        # The reader may close its end; this clone lets the oldest message be taken out all the same.
        self._oldest = self.receiver.clone()

    def judge(self, message: Gossip) -> Outcome:
        """What the subscriber says of this message; counts a refusal."""
        try:
            said = self._validate(message.source, message.data)
        except Exception:  # noqa: BLE001
            # A validator must not raise; one that does refuses, rather than take the network down.
            _log.exception("gossip validator failed on a message of %s", short_peer(message.source))
            said = False
        outcome = said if isinstance(said, Outcome) else Outcome.FORWARD if said else Outcome.DROP
        if outcome is not Outcome.FORWARD:
            self._counts.gossip_refused += 1
        return outcome

    def deliver(self, message: Gossip) -> None:
        """Put an accepted message into the inbox."""
        try:
            self._sender.send_nowait(message)
        except trio.WouldBlock:
            self._oldest.receive_nowait()
            self._sender.send_nowait(message)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return
        self._counts.gossip_delivered += 1

    def offer(self, message: Gossip) -> Outcome:
        """Validate, and deliver what may be forwarded."""
        outcome = self.judge(message)
        if outcome is Outcome.FORWARD:
            self.deliver(message)
        return outcome

    def close(self) -> None:
        """End the subscription: the reader gets EndOfChannel after what is left."""
        self._sender.close()
        self._oldest.close()


class SeenMessages:
    """The last `limit` message ids."""

    def __init__(self, limit: int = SEEN_MESSAGES) -> None:
        self._limit = limit
        self._ids: OrderedDict[Hashable, None] = OrderedDict()

    def add(self, message_id: Hashable) -> bool:
        """Remember an id; False when it was known."""
        if message_id in self._ids:
            return False
        self._ids[message_id] = None
        if len(self._ids) > self._limit:
            self._ids.popitem(last=False)
        return True
