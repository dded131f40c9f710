"""A mesh of simulated agents: starting, finding each other, announcing, leaving, lying (pure).

Each peer is made of the same cores as a real agent: `AnnouncementBook` and `AnnouncementScreen` judge what it hears,
`AnnouncementPacer` says when it announces, `ShardPlan` where, `DialPlan` whom it dials, `GossipConduct` whom it cuts
off, `Liveness` when a silent neighbour is dead. Announcements are signed for real, once each; each is examined once
and shared by all who hear it. The network between them is `simulation_gossip`'s model.

Peers start within the first `START_SECONDS`, each knowing `CONTACTS` addresses out of a fixed list of seeds. With
churn they leave at the given rate: most stop or are killed, which their neighbours' machines see at once; `SILENT` of
them vanish without a word. They come back after a minute on average, on the same key. Liars take part like others,
and once they are in they publish forgeries, old announcements again, and too many of their own; what they offer they
do not keep.

Reading. A view is *stale* where it lacks an agent that it should know (an honest one that has announced for
`GRACE_SECONDS` in a topic that the viewer listens to), holds what that agent said before its last change, or lists
one that has been gone for `GONE_SECONDS`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blake3 import blake3

from coppermesh.agent.simulation import EPOCH_US, SECOND, EventHeap
from coppermesh.agent.simulation_gossip import GossipNetwork, Message
from coppermesh.p2p.announcement_screen import AnnouncementScreen
from coppermesh.p2p.announcements import (
    FIRST_WORD_SECONDS,
    LIFETIME_US,
    REPEAT_SECONDS,
    SETTLE_SECONDS,
    SHORT_ID_BYTES,
    AnnouncementBook,
    AnnouncementPacer,
    Examined,
    Verdict,
    examine,
)
from coppermesh.p2p.dial_plan import DialPlan, Kind
from coppermesh.p2p.envelope import sign_record, to_bytes
from coppermesh.p2p.exchange import MORE_SECONDS, ExchangePacer
from coppermesh.p2p.gossip_conduct import Deed, GossipConduct
from coppermesh.p2p.gossip_outcome import Outcome
from coppermesh.p2p.health import Liveness, Step
from coppermesh.p2p.ids import PeerId, format_peer, mesh_id
from coppermesh.p2p.messages import MAX_OTHERS
from coppermesh.p2p.records import Announcement, DeviceOffer
from coppermesh.p2p.shards import LIMIT, Place, ShardPlan, place_of, reader_topics, topic_of
from coppermesh.p2p.signing import PeerKey

if TYPE_CHECKING:
    from random import Random

START_SECONDS = 10.0
CONTACTS = 3
SEED_SHARE = 50
"""One of so many peers is on the list of seeds."""
MAX_CONNECTIONS = 256
MAX_JUDGED = 4096
"""Fewer than a real agent remembers, and more than pass here in the minutes in which one comes again."""
POLL_SECONDS = 0.2
DOWN_SECONDS = 60.0
SILENT = 0.2
LIES_A_SECOND = 5
GRACE_SECONDS = 10.0
GONE_SECONDS = 20.0
REQUEST_BYTES = 60
MESH = mesh_id("simulated")
FEATURES = ("array-programs", "cuda-source")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What is simulated. Shares are between 0 and 1."""

    peers: int = 100
    seed: int = 1
    minutes: float = 10.0
    churn: float = 0.0
    """Share of the peers that leaves in a minute."""
    liars: float = 0.0
    requesters: float = 0.25
    """Share of the peers that offers nothing and places orders."""
    gpus: float = 0.7
    """Share of the providers that offers a GPU, the others a CPU."""
    loss: float = 0.0
    """Probability that a copy of a gossip message is lost."""
    limit: int = LIMIT
    """Announcers of one topic from which on it splits."""
    start_seconds: float = START_SECONDS
    """All start within so long."""


class SimPeer:
    """One simulated agent. What a restart forgets is made anew by `begin`."""

    def __init__(
        self, index: int, key: PeerKey, offer: DeviceOffer | None, *, liar: bool, limit: int
    ) -> None:
        self.index = index
        self.key = key
        self.peer = key.peer
        high, low = divmod(index, 250)
        self.address = f"/ip4/45.{high // 250}.{high % 250}.{low + 1}/tcp/4001/p2p/{format_peer(key.peer)}"
        self.offer = offer
        self.kind = offer.kind if offer is not None else "cpu"
        self.liar = liar
        self.limit = limit
        self.up = False
        self.hung = False
        self.since = 0.0
        """When it came up or went away."""
        self.life = 0
        """Counts starts, so that what an earlier life had planned is dropped."""
        self.sequence = 0
        self.busy = 0
        self.paused = False
        self.said: Examined | None = None
        self.said_bytes = b""
        self.said_since = 0.0
        """When it first announced in this life."""
        self.content_sequence = 0
        self.content_since = 0.0
        """When the content of its newest announcement was new."""
        self.leaves_wanted = 1
        self.book: AnnouncementBook
        self.screen: AnnouncementScreen
        self.plan: DialPlan
        self.shards: ShardPlan
        self.pacer: AnnouncementPacer
        self.conduct: GossipConduct
        self.polling = False
        self.announce_due_us = 0
        self.exchange: ExchangePacer

    def begin(self, rng: "Random", now: float) -> None:
        """A new process: nothing is known but the key and the contacts."""
        self.up, self.hung, self.since = True, False, now
        self.life += 1
        self.busy = 0
        self.book = AnnouncementBook(MESH, max_judged=MAX_JUDGED)
        self.screen = AnnouncementScreen(self.book, max_forwarded=MAX_JUDGED)
        self.plan = DialPlan(self.peer, rng)
        self.plan.out_of_reach = self.book.lost
        self.shards = ShardPlan(self.peer, limit=self.limit)
        self.pacer = AnnouncementPacer(rng)
        self.conduct = GossipConduct()
        self.exchange = ExchangePacer(rng)
        self.said, self.polling, self.announce_due_us = None, False, 0

    @property
    def announces(self) -> bool:
        """It offers something, and so announces."""
        return self.offer is not None


class MeshSimulation:
    """Everything that happens in one run. `on_up` is told of each peer that came up."""

    def __init__(self, scenario: Scenario, rng: "Random") -> None:
        self.scenario = scenario
        self.rng = rng
        self.heap = EventHeap()
        self.network = GossipNetwork(self.heap, rng, self._judge, loss=scenario.loss)
        self.peers: list[SimPeer] = []
        self.by_address: dict[str, SimPeer] = {}
        self.by_id: dict[PeerId, SimPeer] = {}
        self.published = 0
        self.forged = 0
        self.honest_cut = 0
        self.liars_cut = 0
        self.splits = 0
        self.on_up: Callable[[SimPeer], None] = lambda _: None
        self.on_down: Callable[[SimPeer], None] = lambda _: None
        self._lies = 0
        self._forgery: Examined | None = None
        self._places: dict[bytes, Place] = {}
        self._examined: dict[bytes, Examined] = {}
        """Each announcement once, by the id of its record."""
        for index in range(scenario.peers):
            self._add(index)
        self._seeds = list(range(max(CONTACTS, scenario.peers // SEED_SHARE)))

    def _add(self, index: int) -> None:
        scenario, rng = self.scenario, self.rng
        key = PeerKey(blake3(b"simulated peer %d of seed %d" % (index, scenario.seed)).digest())
        liar = index >= CONTACTS and rng.random() < scenario.liars
        offer = None if rng.random() < scenario.requesters else _offer(rng, scenario.gpus)
        peer = SimPeer(self.network.add_peer(), key, offer, liar=liar, limit=scenario.limit)
        self.peers.append(peer)
        self.by_address[peer.address] = self.by_id[peer.peer] = peer

    def begin(self) -> None:
        """Plan everybody's start and what happens by itself."""
        for peer in self.peers:
            self.heap.after(self.scenario.start_seconds * self.rng.random(), self.start, peer)
        self.heap.after(1.0, self._beat)
        if self.scenario.churn:
            self.heap.after(60.0, self._plan_churn)

    def run_for(self, seconds: float) -> None:
        """Let so much virtual time pass."""
        self.heap.run_until(self.heap.now_us + int(seconds * SECOND))

    def _beat(self) -> None:
        self.network.beat()
        self.heap.after(1.0, self._beat)

    # Coming and going

    def start(self, peer: SimPeer) -> None:
        """The agent's process starts."""
        peer.begin(self.rng, self.heap.now)
        for seed in self.rng.sample(self._seeds, min(CONTACTS, len(self._seeds))):
            if seed != peer.index:
                peer.plan.add(self.peers[seed].address, Kind.PERMANENT)
        self.follow_shards(peer)
        self._poll_soon(peer)
        self.heap.after(FIRST_WORD_SECONDS, self._first_word, peer, peer.life)
        self.heap.after(SETTLE_SECONDS * (0.5 + self.rng.random()), self._settle, peer, peer.life)
        self.heap.after(peer.exchange.next_wait(), self._exchange_again, peer, peer.life)
        if peer.liar:
            self.heap.after(20.0, self._lie, peer, peer.life)
        self.on_up(peer)

    def stop(self, peer: SimPeer, *, silently: bool = False) -> None:
        """The agent goes: its connections close at once, or, `silently`, as under a pulled cable, nobody hears of
        it.
        """
        if not peer.up:
            return
        peer.up, peer.since = False, self.heap.now
        self.on_down(peer)
        for topic in self.network.topics_of(peer.index):
            self.network.unsubscribe(peer.index, topic)
        for other in list(self.network.links[peer.index]):
            if silently:
                self._watch(self.peers[other], peer, Liveness(self.heap.now))
            else:
                self._disconnect(peer.index, other)
        peer.hung = silently

    def _watch(self, watcher: SimPeer, gone: SimPeer, liveness: Liveness) -> None:
        """One neighbour's channel to an agent that answers nothing any more."""
        if not watcher.up or gone.index not in self.network.links[watcher.index] or gone.up:
            return
        if liveness.poll(self.heap.now) is Step.DEAD:
            self._disconnect(watcher.index, gone.index)
        else:
            due_us = EPOCH_US + int(liveness.next_poll() * SECOND) + 1
            self.heap.at(due_us, self._watch, watcher, gone, liveness)

    def _plan_churn(self) -> None:
        rate = self.scenario.churn * self.scenario.peers / 60.0
        self.heap.after(self.rng.expovariate(rate), self._churn)

    def _churn(self) -> None:
        peer = self.peers[self.rng.randrange(len(self.peers))]
        if peer.up and peer.index not in self._seeds[:CONTACTS]:
            self.stop(peer, silently=self.rng.random() < SILENT)
            self.heap.after(5.0 + self.rng.expovariate(1 / DOWN_SECONDS), self._come_back, peer)
        self._plan_churn()

    def _come_back(self, peer: SimPeer) -> None:
        for other in list(self.network.links[peer.index]):  # connections that nobody has given up yet
            self._disconnect(peer.index, other)
        self.start(peer)

    # Connections

    def _poll_soon(self, peer: SimPeer) -> None:
        if not peer.polling and peer.up:
            peer.polling = True
            self.heap.after(POLL_SECONDS, self._poll, peer, peer.life)

    def _poll(self, peer: SimPeer, life: int) -> None:
        if not peer.up or peer.life != life:
            return
        peer.polling = False
        peer.plan.observe(self._connected(peer), self.heap.now)
        for address in peer.plan.due(self.heap.now):
            target = self.by_address[address]
            answers = target.up or not target.hung
            self.heap.after(0.2 if answers else 10.0, self._dialled, peer, life, target, address)
        wait = peer.plan.next_due(self.heap.now)
        if wait is not None:
            peer.polling = True
            self.heap.after(max(POLL_SECONDS, wait - self.heap.now), self._poll, peer, life)

    def _connected(self, peer: SimPeer) -> list[PeerId]:
        return [self.peers[other].peer for other in self.network.links[peer.index]]

    def _dialled(self, peer: SimPeer, life: int, target: SimPeer, address: str) -> None:
        if not peer.up or peer.life != life:
            return
        links, now = self.network.links, self.heap.now
        full = max(len(links[peer.index]), len(links[target.index])) >= MAX_CONNECTIONS
        cut = target.up and (target.conduct.is_cut(peer.peer, now) or peer.conduct.is_cut(target.peer, now))
        if not target.up or full or cut:
            peer.plan.failed(address, now, nobody=not target.up)
        else:
            fresh = target.index not in links[peer.index]
            self.network.connect(peer.index, target.index)
            peer.plan.succeeded(address, now)
            for one, other in ((peer, target), (target, peer)):
                one.plan.observe(self._connected(one), now)
                if fresh:
                    self._exchange(one, other, full=one.exchange.wants(now) > 0)
        self._poll_soon(peer)

    def _disconnect(self, first: int, second: int) -> None:
        self.network.disconnect(first, second)
        for one, other in ((first, second), (second, first)):
            peer = self.peers[one]
            if peer.up:
                peer.book.lost(self.peers[other].peer)
                self._poll_soon(peer)

    # Announcing

    def _first_word(self, peer: SimPeer, life: int) -> None:
        if peer.up and peer.life == life:
            peer.shards.settle(peer.kind, self._heard(peer), self.heap.now)
            self.follow_shards(peer)
            peer.said_since = self.heap.now
            self.announce(peer, life)
            for wait in REPEAT_SECONDS:
                self.heap.after(wait, self._repeat, peer, life)

    def _repeat(self, peer: SimPeer, life: int) -> None:
        """The first announcement again: gossip's meshes were still forming."""
        if peer.up and peer.life == life and peer.said is not None:
            self._publish(peer)

    def announce(self, peer: SimPeer, life: int) -> None:
        """Announce what is due, and come back when the next is. Also called when something has changed."""
        if not peer.up or peer.life != life or not peer.announces:
            return
        now_us = self.heap.now_us
        content = f"{peer.busy} {peer.paused} {peer.shards.leaf}".encode()
        wait_us = peer.pacer.wait_us(content, now_us)
        if wait_us == 0:
            self._say(peer, fresh=peer.said is None or peer.pacer.content != content)
            peer.pacer.announced(content, now_us)
            wait_us = peer.pacer.wait_us(content, now_us)
        due_us = now_us + wait_us
        if peer.announce_due_us <= now_us or due_us < peer.announce_due_us:
            peer.announce_due_us = due_us
            self.heap.at(due_us, self._announce_due, peer, life, due_us)

    def _announce_due(self, peer: SimPeer, life: int, due_us: int) -> None:
        if peer.announce_due_us == due_us:
            peer.announce_due_us = 0
            self.announce(peer, life)

    def _say(self, peer: SimPeer, *, fresh: bool) -> None:
        now_us = self.heap.now_us
        peer.sequence = max(peer.sequence + 1, now_us)
        peer.said, peer.said_bytes = self._sign(peer, peer.sequence)
        if fresh:
            peer.content_sequence, peer.content_since = peer.sequence, self.heap.now
        self._publish(peer)

    def _publish(self, peer: SimPeer) -> None:
        for path in peer.shards.publishes(self.heap.now):
            self.published += 1
            self.network.publish(peer.index, topic_of(MESH, path), len(peer.said_bytes), peer.said)

    def _sign(self, peer: SimPeer, sequence: int) -> tuple[Examined, bytes]:
        assert peer.offer is not None
        now_us = self.heap.now_us
        record = Announcement(
            version=1,
            mesh=MESH,
            peer=peer.peer,
            sequence=sequence,
            issued_us=now_us,
            expires_us=now_us + LIFETIME_US,
            software="coppermesh simulated",
            addresses=[peer.address],
            devices=[peer.offer],
            isolation=["landlock", "seccomp"],
            busy_slots=peer.busy,
            paused=peer.paused,
            shard=peer.shards.leaf,
        )
        data = to_bytes(sign_record(peer.key, record))
        examined = examine(data)
        assert examined.opened is not None
        self._examined[examined.opened.id] = examined
        return examined, data

    # Hearing

    def _judge(self, receiver: int, forwarder: int, message: Message) -> bool:
        peer = self.peers[receiver]
        if not peer.up:
            return False
        verdict, outcome = peer.screen.judge(message.topic, message.body, self.heap.now_us)
        if verdict is Verdict.ACCEPTED:
            self._learn(peer, message.body)
        if outcome is Outcome.FORWARD:
            return True
        deed = Deed.BLAMED if outcome is Outcome.BLAME else Deed.UNWANTED
        neighbour = self.peers[forwarder]
        if peer.conduct.note(neighbour.peer, deed, self.heap.now):
            self.honest_cut += not neighbour.liar
            self.liars_cut += neighbour.liar
            self._disconnect(receiver, forwarder)
        # A liar hands on everything.
        return peer.liar

    def _learn(self, peer: SimPeer, body: Examined) -> None:
        assert body.opened is not None
        record = body.opened.record
        author = PeerId(record.peer)
        if author not in peer.plan:
            peer.plan.learn(author, record.addresses, [peer.address], self.heap.now)
            if peer.plan.wants_more(author):
                self._poll_soon(peer)

    def _exchange(self, asking: SimPeer, asked: SimPeer, *, full: bool) -> None:
        """One anti-entropy exchange: names of what is known, then the other's own and what is missing."""
        latency = self.network.links[asking.index].get(asked.index)
        if latency is not None:
            known = asking.book.known_ids(self.heap.now_us) if full else None
            self.network.direct(asked.index, REQUEST_BYTES + SHORT_ID_BYTES * len(known or ()))
            self.heap.after(2 * latency, self._exchanged, asking, asking.life, asked, known)

    def _exchanged(self, asking: SimPeer, life: int, asked: SimPeer, known: set[bytes] | None) -> None:
        if not (asking.up and asked.up) or asking.life != life:
            return
        now_us = self.heap.now_us
        missing = [] if known is None else asked.book.missing(known, now_us, MAX_OTHERS)
        size = REQUEST_BYTES
        if asked.said is not None:
            size += len(asked.said_bytes)
            if asking.book.take(asked.said, now_us, source=asked.peer) is Verdict.ACCEPTED:
                self._learn(asking, asked.said)
        news = 0
        for opened in missing:
            size += len(opened.signed.body) + 100
            if opened.signer != asking.peer:
                body = self._examined[opened.id]
                if asking.book.take(body, now_us) is Verdict.ACCEPTED:
                    news += 1
                    self._learn(asking, body)
        self.network.direct(asking.index, size)
        if news and ExchangePacer.is_full(len(missing)):
            self.heap.after(MORE_SECONDS, self._exchange_more, asking, life)

    def _exchange_more(self, peer: SimPeer, life: int) -> None:
        others = list(self.network.links[peer.index])
        if peer.up and peer.life == life and others:
            self._exchange(peer, self.peers[self.rng.choice(others)], full=True)

    def _exchange_again(self, peer: SimPeer, life: int) -> None:
        if peer.up and peer.life == life:
            peer.book.forget_expired(self.heap.now_us)
            others = list(self.network.links[peer.index])
            if others:
                self._exchange(peer, self.peers[self.rng.choice(others)], full=True)
            self.heap.after(peer.exchange.next_wait(), self._exchange_again, peer, life)

    # Shards

    def _heard(self, peer: SimPeer) -> list[Place]:
        """Where those announce that it knows. What one announcement says is worked out once for all who hold it."""
        places, found = self._places, []
        for opened in peer.book.alive(self.heap.now_us):
            place = places.get(opened.id)
            if place is None:
                place = places[opened.id] = place_of(opened.record)
            found.append(place)
        return found

    def _settle(self, peer: SimPeer, life: int) -> None:
        if peer.up and peer.life == life:
            heard = self._heard(peer)
            if peer.announces and peer.shards.settle(peer.kind, heard, self.heap.now):
                self.splits += 1
                self.announce(peer, life)
            self.follow_shards(peer, heard)
            self.heap.after(SETTLE_SECONDS * (0.9 + 0.2 * self.rng.random()), self._settle, peer, life)

    def follow_shards(self, peer: SimPeer, heard: Sequence[Place] | None = None) -> None:
        """Subscribe to the topics that the peer should be in now."""
        heard = self._heard(peer) if heard is None else heard
        wanted = dict.fromkeys(peer.shards.subscribes() if peer.announces else ())
        if not peer.announces:
            wanted.update(dict.fromkeys(reader_topics(peer.peer, heard, ("cuda", "cpu"), peer.leaves_wanted)))
        topics = {topic_of(MESH, path): None for path in wanted}
        for topic in self.network.topics_of(peer.index):
            if topic not in topics:
                self.network.unsubscribe(peer.index, topic)
        for topic in topics:
            self.network.subscribe(peer.index, topic)
        near = frozenset(place.peer for place in heard if place.leaf in wanted)
        peer.plan.near = near
        self._poll_soon(peer)

    # Lying

    def _lie(self, peer: SimPeer, life: int) -> None:
        if not peer.up or peer.life != life:
            return
        topics = self.network.topics_of(peer.index)
        for _ in range(LIES_A_SECOND):
            self._lies += 1
            topic = self.rng.choice(topics)
            draw = self.rng.random()
            if draw < 0.5 or not peer.announces:
                self._publish_lie(peer, topic, self._forged())
            elif draw < 0.75 and peer.said is not None:
                self._publish_lie(peer, topic, peer.said)
            else:
                peer.sequence += 1
                self._publish_lie(peer, topic, self._sign(peer, peer.sequence)[0])
        self.heap.after(1.0, self._lie, peer, life)

    def _publish_lie(self, peer: SimPeer, topic: str, body: Examined) -> None:
        self.forged += 1
        self.network.publish(peer.index, topic, 600, body)

    def _forged(self) -> Examined:
        """An announcement in somebody's name with a signature that does not hold, other bytes each time."""
        if self._forgery is None:
            victim = next(peer for peer in self.peers if peer.announces)
            data = self._sign(victim, victim.sequence + 1)[1] if victim.up else b"\x90"
            self._forgery = examine(data[:-1] + bytes([data[-1] ^ 1]))
        return Examined(b"lie%013d" % self._lies, None, self._forgery.fault)


def _offer(rng: "Random", gpus: float) -> DeviceOffer:
    gpu = rng.random() < gpus
    memory = rng.choice((8, 12, 16, 24, 48, 80)) if gpu else rng.choice((4, 8, 16))
    return DeviceOffer(
        device="gpu0" if gpu else "cpu",
        kind="cuda" if gpu else "cpu",
        name="simulated GPU" if gpu else "simulated CPU",
        rate=rng.randrange(100_000, 900_000) if gpu else rng.randrange(20_000, 90_000),
        unit="usd",
        memory_bytes=memory << 30,
        slots=1,
        features=list(FEATURES),
        meter="simulated",
        compute_capability="8.9" if gpu else None,
        uuid=f"GPU-{rng.getrandbits(64):016x}" if gpu else None,
        driver="570.00" if gpu else None,
        total_bytes=memory << 30 if gpu else None,
    )
