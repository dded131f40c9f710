"""A model of the network: connections, and gossipsub's forwarding over them (pure).

What is modelled, and how far. Each connection has one latency, drawn when it opens. For each topic a peer keeps a mesh
of connected subscribers as gossipsub does: a newcomer takes `DEGREE`, whoever has taken it already; below `DEGREE_LOW`
a peer takes more until it has `DEGREE`, above `DEGREE_HIGH` it drops down to `DEGREE`; both sides always agree. A
published message goes to the publisher's mesh (where it has none, to `DEGREE` subscribers); whoever gets it first
judges it with its real `AnnouncementBook`, and forwards it to its mesh, without the peer that it came from and its
author, where the verdict allows that. The copies that one peer sends of a message leave together and arrive after the
latency of their connections' sender: one event a peer and message; a repeated copy is only counted. Each second a peer
names the messages of the last `WINDOW_BEATS` seconds to `LAZY` subscribers outside of its mesh; one that lacks a
message asks for it. A copy is lost with probability `loss`.

What is not modelled: bandwidth and queues, CPU time, partial failures of a connection, and gossipsub's own back-off
after a prune. tests/processes compares messages per peer with real agents.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from coppermesh.agent.simulation import EventHeap

if TYPE_CHECKING:
    from random import Random

DEGREE = 6
DEGREE_LOW = 4
DEGREE_HIGH = 12
LAZY = 6
WINDOW_BEATS = 3
ENVELOPE_BYTES = 266
"""What a gossip message takes besides its data: author, number, topic, key, signature, framing, Noise and yamux."""
ID_BYTES = 50
CONTROL_BYTES = 120
"""A control message without ids: topic and framing."""


@dataclass(eq=False, slots=True)
class Message:
    """One published message, shared by all who see it."""

    topic: str
    author: int
    size: int
    body: Any
    """What the receivers judge."""
    seen: bytearray
    """By peer index: 1 once it got the message."""
    reached: int = 0


@dataclass(slots=True)
class Traffic:
    """What each peer received, by its index."""

    copies: list[int] = field(default_factory=list)
    """Gossip messages, repeated ones included."""
    gossip_bytes: list[int] = field(default_factory=list)
    control: list[int] = field(default_factory=list)
    control_bytes: list[int] = field(default_factory=list)
    direct: list[int] = field(default_factory=list)
    direct_bytes: list[int] = field(default_factory=list)

    def add_peer(self) -> None:
        """One more."""
        for name in self.__slots__:
            getattr(self, name).append(0)


@dataclass(slots=True)
class _Topic:
    members: dict[int, None] = field(default_factory=dict)
    mesh: dict[int, dict[int, None]] = field(default_factory=dict)
    onward: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """`mesh` again, as what is sent along; dropped where the mesh changes."""
    fresh: dict[int, int] = field(default_factory=dict)
    """How many each newcomer has still to choose."""
    recent: list[list[Message]] = field(default_factory=lambda: [[] for _ in range(WINDOW_BEATS)])
    """Published within the last beats, newest beat first."""


Judge = Callable[[int, int, Message], bool]
"""(receiver, forwarder, message) -> forward it?"""


class GossipNetwork:
    """Connections between peers named by index, and the topics gossiped over them."""

    def __init__(self, heap: EventHeap, rng: "Random", judge: Judge, *, loss: float = 0.0) -> None:
        self._heap = heap
        self._rng = rng
        self._judge = judge
        self._loss = loss
        self._topics: dict[str, _Topic] = {}
        self.links: list[dict[int, float]] = []
        """By peer: the peers connected to it, and the latency in seconds, one way."""
        self.traffic = Traffic()
        self._topics_of: list[dict[str, None]] = []
        self._delay: list[float] = []

    def add_peer(self) -> int:
        """A new peer without connections; returns its index."""
        self.links.append({})
        self.traffic.add_peer()
        self._topics_of.append({})
        self._delay.append(0.002 + 0.06 * self._rng.random())
        return len(self.links) - 1

    # Connections

    def connect(self, first: int, second: int) -> None:
        """Open a connection; nothing where there is one."""
        if second not in self.links[first]:
            latency = self._delay[first] + self._delay[second]
            self.links[first][second] = self.links[second][first] = latency

    def disconnect(self, first: int, second: int) -> None:
        """Close the connection; each is dropped from the other's meshes."""
        if self.links[first].pop(second, None) is None:
            return
        del self.links[second][first]
        for name in self._topics_of[first]:
            self._prune(self._topics[name], first, second)

    @staticmethod
    def _graft(topic: _Topic, first: int, second: int) -> None:
        topic.mesh[first][second] = topic.mesh[second][first] = None
        topic.onward.pop(first, None)
        topic.onward.pop(second, None)

    @staticmethod
    def _prune(topic: _Topic, first: int, second: int) -> None:
        if topic.mesh[first].pop(second, 0) is None:
            topic.mesh[second].pop(first, None)
            topic.onward.pop(first, None)
            topic.onward.pop(second, None)

    # Topics

    def topics_of(self, peer: int) -> list[str]:
        """What the peer is subscribed to."""
        return list(self._topics_of[peer])

    def subscribers(self, topic: str) -> list[int]:
        """Who is subscribed."""
        found = self._topics.get(topic)
        return list(found.members) if found is not None else []

    def subscribe(self, peer: int, name: str) -> None:
        """Join a topic; nothing where it is joined already."""
        topic = self._topics.setdefault(name, _Topic())
        if peer not in topic.members:
            topic.members[peer] = None
            topic.mesh[peer] = {}
            topic.fresh[peer] = DEGREE
            self._topics_of[peer][name] = None

    def unsubscribe(self, peer: int, name: str) -> None:
        """Leave a topic; nothing where it is not joined."""
        if self._topics_of[peer].pop(name, 0) is None:
            topic = self._topics[name]
            del topic.members[peer]
            topic.fresh.pop(peer, None)
            for other in list(topic.mesh[peer]):
                self._prune(topic, peer, other)
            del topic.mesh[peer]

    def publish(self, peer: int, name: str, size: int, body: Any) -> Message:
        """Hand a message to gossip."""
        message = Message(name, peer, size, body, bytearray(len(self.links)))
        message.seen[peer] = 1
        topic = self._topics.setdefault(name, _Topic())
        topic.recent[0].append(message)
        targets: Sequence[int] = tuple(topic.mesh.get(peer, ()))
        if not targets:
            connected = [other for other in self.links[peer] if other in topic.members]
            targets = self._some(connected, DEGREE)
        self._send(peer, targets, message, peer)
        return message

    def _send(self, sender: int, targets: Sequence[int], message: Message, source: int) -> None:
        """To all `targets` but its author and `source`, whom the sender has it from."""
        if targets:
            delay = 2 * self._delay[sender] * (0.8 + 0.4 * self._rng.random())
            self._heap.after(delay, self._arrive, sender, targets, message, source)

    def _arrive(self, sender: int, targets: Sequence[int], message: Message, source: int) -> None:
        seen, links, loss, author = message.seen, self.links[sender], self._loss, message.author
        copies, received = self.traffic.copies, self.traffic.gossip_bytes
        size = message.size + ENVELOPE_BYTES
        for peer in targets:
            if peer in (source, author) or peer not in links or (loss and self._rng.random() < loss):
                continue
            copies[peer] += 1
            received[peer] += size
            if not seen[peer]:
                self._received(peer, sender, message)

    def _received(self, peer: int, sender: int, message: Message) -> None:
        """The first copy: judge it, and hand it on."""
        topic = self._topics[message.topic]
        if peer not in topic.members:
            return
        message.seen[peer] = 1
        message.reached += 1
        if not self._judge(peer, sender, message):
            message.seen[peer] = 2
            return
        onward = topic.onward.get(peer)
        if onward is None:
            # Judging may have ended the subscription.
            onward = topic.onward[peer] = tuple(topic.mesh.get(peer, ()))
        self._send(peer, onward, message, sender)

    # Each second

    def beat(self) -> None:
        """What every peer's gossipsub does each second: mend its meshes, and name recent messages to others."""
        for topic in self._topics.values():
            for peer in topic.members:
                mesh = topic.mesh[peer]
                if peer in topic.fresh or not DEGREE_LOW <= len(mesh) <= DEGREE_HIGH:
                    self._mend(topic, peer, mesh)
            self._name_recent(topic)
            topic.recent.insert(0, [])
            topic.recent.pop()

    def _mend(self, topic: _Topic, peer: int, mesh: dict[int, None]) -> None:
        if peer in topic.fresh or len(mesh) < DEGREE_LOW:
            others = [
                other
                for other in self.links[peer]
                if other in topic.members and other not in mesh and len(topic.mesh[other]) < DEGREE_HIGH
            ]
            wanted = min(topic.fresh.pop(peer, DEGREE - len(mesh)), DEGREE_HIGH - len(mesh))
            chosen = self._some(others, max(0, wanted))
            if len(chosen) < wanted:
                topic.fresh[peer] = wanted - len(chosen)
            for other in chosen:
                self._graft(topic, peer, other)
                self._control(other, 1, 0)
        else:
            for other in self._some(list(mesh), len(mesh) - DEGREE):
                self._prune(topic, peer, other)
                self._control(other, 1, 0)

    def _name_recent(self, topic: _Topic) -> None:
        """IHAVE and IWANT. Where all have a message, naming it costs its bytes and changes nothing.

        Its author and those who passed it on (`seen` of 1) keep it in their cache; 2 marks who refused it.
        """
        recent = [message for beat in topic.recent for message in beat]
        if not recent:
            return
        seen = (
            np.frombuffer(b"".join(message.seen for message in recent), np.uint8).reshape(len(recent), -1)
            == 1
        )
        held = seen.sum(axis=0).tolist()
        short = self._held_short(topic, recent, seen)
        members = topic.members
        for peer in members:
            if not held[peer]:
                continue
            others = self._outside(topic, peer)
            for other in others:
                self._control(other, 1, held[peer])
                for message in short.get(peer, ()):
                    if not message.seen[other]:
                        self._control(peer, 1, 1)
                        self._heap.after(
                            2 * self.links[peer][other], self._arrive, peer, (other,), message, peer
                        )

    def _held_short(self, topic: _Topic, recent: list[Message], seen: Any) -> dict[int, list[Message]]:
        """By peer, what it has of the messages that somebody lacks."""
        wanting = [
            number for number, message in enumerate(recent) if message.reached + 1 < len(topic.members)
        ]
        found: dict[int, list[Message]] = {}
        if wanting:
            for row, peer in zip(*(axis.tolist() for axis in np.nonzero(seen[wanting])), strict=True):
                found.setdefault(peer, []).append(recent[wanting[row]])
        return found

    def _outside(self, topic: _Topic, peer: int) -> list[int]:
        """`LAZY` connected subscribers outside of the peer's mesh, by chance; fewer where there are no more."""
        links, mesh = self.links[peer], topic.mesh[peer]
        if len(links) > 3 * LAZY:
            # Most are: a few drawn by chance save looking at all.
            drawn = self._rng.sample(list(links), 3 * LAZY)
            others = [other for other in drawn if other in topic.members and other not in mesh]
            if len(others) >= LAZY:
                return others[:LAZY]
        return self._some([other for other in links if other in topic.members and other not in mesh], LAZY)

    def _control(self, receiver: int, messages: int, ids: int) -> None:
        self.traffic.control[receiver] += messages
        self.traffic.control_bytes[receiver] += messages * CONTROL_BYTES + ids * ID_BYTES

    def _some(self, others: list[int], count: int) -> list[int]:
        return others if len(others) <= count else self._rng.sample(others, count)

    def direct(self, receiver: int, size: int) -> None:
        """Count a message on a control stream."""
        self.traffic.direct[receiver] += 1
        self.traffic.direct_bytes[receiver] += size
