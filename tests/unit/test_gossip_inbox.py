import pytest
import trio

from coppermesh.p2p.gossip_inbox import INBOX_MESSAGES, GossipInbox, SeenMessages
from coppermesh.p2p.gossip_outcome import Outcome
from coppermesh.p2p.ids import PeerId
from coppermesh.p2p.transport import Gossip, TransportCounts

PEER = PeerId(bytes(32))


def gossip(number: int) -> Gossip:
    return Gossip("topic", PEER, PEER, str(number).encode())


def test_a_reader_that_lags_loses_the_oldest():
    counts = TransportCounts()
    inbox = GossipInbox(lambda source, data: True, counts)
    for number in range(INBOX_MESSAGES + 10):
        assert inbox.offer(gossip(number)) is Outcome.FORWARD
    assert inbox.receiver.receive_nowait().data == b"10"
    assert counts.gossip_delivered == INBOX_MESSAGES + 10


def test_what_is_refused_is_counted_and_not_delivered():
    counts = TransportCounts()
    inbox = GossipInbox(lambda source, data: False, counts)
    assert inbox.offer(gossip(1)) is Outcome.DROP
    assert (counts.gossip_refused, counts.gossip_delivered) == (1, 0)
    with pytest.raises(trio.WouldBlock):
        inbox.receiver.receive_nowait()


def test_a_reader_that_left_stops_nothing():
    inbox = GossipInbox(lambda source, data: True, TransportCounts())
    inbox.receiver.close()
    for number in range(INBOX_MESSAGES + 10):
        assert inbox.offer(gossip(number)) is Outcome.FORWARD
    inbox.close()
    inbox.deliver(gossip(1))


def test_seen_messages_forgets_the_oldest():
    seen = SeenMessages(3)
    assert [seen.add(number) for number in (1, 2, 3, 1, 4, 1)] == [True, True, True, False, True, True]
