"""Comparing two ledgers: which receipt between two peers is the first that they do not have alike.

Theory of operation
-------------------
A lane's places become leaves (`statements.receipt_leaf`: the ids of receipt and countersignature), and a Merkle root
over them stands for the lane. The one who asks gets the other's lanes with their lengths and roots, and only where a
root differs asks on: the common part of the lane is cut into 16 parts, the first part whose root differs into 16
again, until one place is left. A lane of a million receipts takes five questions. Then each side's records for that
place are looked at: where the two receipts carry the provider's signature and differ, they are a proof against it,
and are kept.

Everything is bounded: what one answer carries, how much a peer may make us hash in a minute, and how many questions a
comparison asks. A peer is told about lanes that it is a side of, and of no others.
"""

from collections.abc import Callable
from dataclasses import dataclass

import trio

from coppermesh.agent.ledger import EvidenceFound
from coppermesh.agent.ledger_settling import LaneFacts, SettlingTables
from coppermesh.agent.ledger_store import LedgerStore
from coppermesh.agent.receipts import is_equivocation
from coppermesh.p2p.control import ControlHub
from coppermesh.p2p.envelope import Opened, open_record
from coppermesh.p2p.errors import Refused, RemoteProtocolError, Unreachable
from coppermesh.p2p.ids import PeerId, short_peer
from coppermesh.p2p.ledger_messages import (
    LANE_FACT_BYTES,
    PARTS,
    LaneEntryReply,
    LaneEntryRequest,
    LaneListReply,
    LaneListRequest,
    LanePartReply,
    LanePartRequest,
)
from coppermesh.p2p.merkle import merkle_root
from coppermesh.p2p.receipt_file import open_countersignature
from coppermesh.p2p.records import Countersignature, Receipt, SignedRecord

MAX_LANES = 65_536
"""Lanes of one comparison."""
LEAVES_A_MINUTE = 1_000_000
"""How many places a peer may have us hash in a minute."""
LEAVES_AN_ANSWER = 100_000
LIST_SECONDS = 30.0
LISTING_SECONDS = 120.0
"""For the whole list: a peer that answers each page at the last moment with one lane would take weeks."""
_WINDOW_US = 60_000_000
_BEFORE_ALL = bytes(16)


@dataclass(frozen=True, slots=True)
class Entry:
    """What one side has at a place."""

    receipt: Opened[Receipt] | None
    countersignature: Opened[Countersignature] | None


@dataclass(frozen=True, slots=True)
class Difference:
    """The first place that the two ledgers do not have alike."""

    lane: bytes
    sequence: int
    what: str
    """`only-here`, `only-there`, `other-receipt`, `not-answered-here`, `not-answered-there`, `other-answer`."""
    here: Entry
    there: Entry


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came of comparing with a peer."""

    lanes: int
    """Lanes that either side has."""
    receipts: int
    """Receipts here."""
    differing: int
    """Lanes that are not the same."""
    first: Difference | None


class _Allowance:
    """How many leaves each peer has had hashed in this minute."""

    def __init__(self) -> None:
        self._begun_us = 0
        self._used: dict[PeerId, int] = {}

    def spend(self, peer: PeerId, leaves: int, now_us: int) -> None:
        """Raises Refused (`busy`) where it would be too many."""
        if not self._begun_us <= now_us < self._begun_us + _WINDOW_US:
            self._begun_us, self._used = now_us, {}
        used = self._used.get(peer, 0) + leaves + 1000
        if used > LEAVES_A_MINUTE:
            raise Refused("busy", "enough compared for now: ask again in a minute")
        self._used[peer] = used


class LaneAnswers:
    """Answers other peers' questions about common lanes, and asks them."""

    def __init__(
        self, hub: Callable[[], ControlHub], ledger: LedgerStore, *, now_us: Callable[[], int]
    ) -> None:
        self._hub = hub
        self._ledger = ledger
        self._now_us = now_us
        self._allowance = _Allowance()

    def spend(self, peer: PeerId, leaves: int) -> None:
        """Count what a peer makes us hash. Raises Refused (`busy`) where it is too much."""
        self._allowance.spend(peer, leaves, self._now_us())

    async def on_list(self, peer: PeerId, request: LaneListRequest) -> LaneListReply:
        """One page of the common lanes."""
        self._allowance.spend(peer, 0, self._now_us())
        facts, more = await self._ledger.look(
            lambda tables: tables.lane_facts(peer, request.after, LEAVES_AN_ANSWER)
        )
        self._allowance.spend(peer, sum(lane.receipts for lane in facts), self._now_us())
        return LaneListReply(b"".join(map(_pack, facts)), more)

    async def on_part(self, peer: PeerId, request: LanePartRequest) -> LanePartReply:
        """Roots over the parts of a span."""
        size = request.end - request.start
        if size <= 0:
            raise RemoteProtocolError("a span of a lane that ends before it begins")
        self._allowance.spend(peer, min(size, LEAVES_A_MINUTE), self._now_us())
        return LanePartReply(await self._parts(peer, request.lane, request.start, request.end))

    async def on_entry(self, peer: PeerId, request: LaneEntryRequest) -> LaneEntryReply:
        """The records at one place."""
        self._allowance.spend(peer, 0, self._now_us())

        def read(tables: SettlingTables) -> tuple[SignedRecord | None, SignedRecord | None]:
            if tables.peer_of(request.lane) != peer:
                return None, None
            return tables.entry(request.lane, request.sequence)

        return LaneEntryReply(*await self._ledger.look(read))

    async def lanes_of(self, peer: PeerId) -> list[LaneFacts]:
        """The peer's common lanes, within `LISTING_SECONDS`. Raises RemoteProtocolError, Refused, Unreachable."""
        with trio.move_on_after(LISTING_SECONDS):
            return await self._list_lanes(peer)
        raise Unreachable(
            f"{short_peer(peer)} did not list its lanes within {LISTING_SECONDS:g} s: try again later"
        )

    async def _list_lanes(self, peer: PeerId) -> list[LaneFacts]:
        found: list[LaneFacts] = []
        after, more = _BEFORE_ALL, True
        while more and len(found) < MAX_LANES:
            reply = await self._hub().request(
                peer, "lane-list", LaneListRequest(after), LaneListReply, deadline_s=LIST_SECONDS
            )
            page = _unpack(reply.lanes)
            if any(lane.lane <= after for lane in page[:1]) or (reply.more and not page):
                raise RemoteProtocolError("a list of lanes that does not go on")
            found += page
            more = reply.more
            after = page[-1].lane if page else after
        return found

    async def compare(self, peer: PeerId) -> Comparison:
        """Find the first difference. Raises RemoteProtocolError, Refused, Unreachable, LedgerError."""
        theirs = {lane.lane: lane for lane in await self.lanes_of(peer)}
        mine = {lane.lane: lane for lane in await self._own_lanes(peer)}
        differing = [
            lane
            for lane in sorted(theirs.keys() | mine.keys())
            if not _same(mine.get(lane), theirs.get(lane))
        ]
        first = None
        if differing:
            first = await self._first_in(peer, differing[0], mine.get(differing[0]), theirs.get(differing[0]))
        receipts = sum(lane.receipts for lane in mine.values())
        return Comparison(len(theirs.keys() | mine.keys()), receipts, len(differing), first)

    async def _own_lanes(self, peer: PeerId) -> list[LaneFacts]:
        found: list[LaneFacts] = []
        after, more = _BEFORE_ALL, True
        while more:
            page, more = await self._ledger.look(
                lambda tables, after=after: tables.lane_facts(peer, after, LEAVES_AN_ANSWER)  # type: ignore[misc]
            )
            found += page
            after = page[-1].lane if page else after
        return found

    async def _first_in(
        self, peer: PeerId, lane: bytes, mine: LaneFacts | None, theirs: LaneFacts | None
    ) -> Difference:
        start, end = 0, min(mine.receipts if mine else 0, theirs.receipts if theirs else 0)
        if end and await self._roots(peer, lane, 0, end, whole=True):
            start = end  # alike as far as both go
        while end - start > 1:
            size = part_size(end - start)
            unequal = await self._roots(peer, lane, start, end)
            if unequal is None:
                raise RemoteProtocolError("its roots over the parts of a lane do not lead to the whole's")
            start, end = start + unequal * size, min(end, start + (unequal + 1) * size)
        return await self._look_at(peer, lane, start)

    async def _roots(
        self, peer: PeerId, lane: bytes, start: int, end: int, *, whole: bool = False
    ) -> int | None:
        """Which part differs first; None where none does. `whole`: 1 where all parts are alike, None where not."""
        request = LanePartRequest(lane, start, end)
        reply = await self._hub().request(peer, "lane-part", request, LanePartReply, deadline_s=LIST_SECONDS)
        here = await self._parts(peer, lane, start, end)
        if len(reply.roots) != len(here):
            raise RemoteProtocolError("another number of parts than asked for")
        unequal = next(
            (at for at, pair in enumerate(zip(here, reply.roots, strict=True)) if pair[0] != pair[1]), None
        )
        if whole:
            return 1 if unequal is None else None
        return unequal

    async def _parts(self, peer: PeerId, lane: bytes, start: int, end: int) -> list[bytes]:
        def read(tables: SettlingTables) -> list[bytes]:
            if tables.peer_of(lane) != peer:
                raise Refused("unknown-lane", "that lane is not between us")
            leaves = tables.leaves(lane, start, end)
            if len(leaves) != end - start:
                raise Refused("unknown-lane", "that lane is not so long here")
            size = part_size(end - start)
            return [merkle_root(leaves[at : at + size]) for at in range(0, len(leaves), size)]

        return await self._ledger.look(read)

    async def _look_at(self, peer: PeerId, lane: bytes, sequence: int) -> Difference:
        reply = await self._hub().request(
            peer, "lane-entry", LaneEntryRequest(lane, sequence), LaneEntryReply
        )
        here = _open(*await self._ledger.look(lambda tables: tables.entry(lane, sequence)), lane, sequence)
        there = _open(reply.receipt, reply.countersignature, lane, sequence)
        found = Difference(lane, sequence, _what(here, there), here, there)
        await self._keep_proof(found)
        return found

    async def _keep_proof(self, found: Difference) -> None:
        """Two different signed records for one place prove that their signer lied."""
        records: tuple[Opened[Receipt] | Opened[Countersignature], ...] = ()
        kind = ""
        one, other = found.here.receipt, found.there.receipt
        if one is not None and other is not None and is_equivocation(one, other):
            kind, records = "equivocation", (one, other)
        elif found.what == "other-answer":
            answers = found.here.countersignature, found.there.countersignature
            assert answers[0] is not None
            assert answers[1] is not None
            kind, records = "double-countersignature", (answers[0], answers[1])
        if records:
            signed = tuple(record.signed for record in records)
            text = f"found by comparing, place {found.sequence} of lane {found.lane.hex()[:8]}"
            await self._ledger.commit(EvidenceFound(kind, records[0].signer, signed, self._now_us(), text))


def part_size(size: int) -> int:
    """How long the parts of a span are: at most `PARTS` of them."""
    return -(-size // PARTS)


def _same(mine: LaneFacts | None, theirs: LaneFacts | None) -> bool:
    return (
        mine is not None
        and theirs is not None
        and (mine.receipts, mine.root) == (theirs.receipts, theirs.root)
    )


def _pack(facts: LaneFacts) -> bytes:
    return (
        facts.lane + facts.receipts.to_bytes(8, "big") + facts.countersigned.to_bytes(8, "big") + facts.root
    )


def _unpack(data: bytes) -> list[LaneFacts]:
    if len(data) % LANE_FACT_BYTES:
        raise RemoteProtocolError("a list of lanes that is cut")
    found = [
        LaneFacts(
            data[at : at + 16],
            int.from_bytes(data[at + 16 : at + 24], "big"),
            int.from_bytes(data[at + 24 : at + 32], "big"),
            data[at + 32 : at + 64],
        )
        for at in range(0, len(data), LANE_FACT_BYTES)
    ]
    lanes = [facts.lane for facts in found]
    if lanes != sorted(set(lanes)):
        raise RemoteProtocolError("a list of lanes that is out of order")
    return found


def _open(receipt: SignedRecord | None, answer: SignedRecord | None, lane: bytes, sequence: int) -> Entry:
    """The records of a place, signatures checked. Raises RemoteProtocolError where they are of another place."""
    if receipt is None:
        return Entry(None, None)
    opened = open_record(Receipt, receipt)
    if (opened.record.lane, opened.record.sequence) != (lane, sequence):
        raise RemoteProtocolError("a receipt of another place than asked for")
    return Entry(opened, None if answer is None else open_countersignature(opened, answer))


def _what(here: Entry, there: Entry) -> str:
    if here.receipt is None or there.receipt is None:
        return "only-there" if here.receipt is None else "only-here"
    if here.receipt.id != there.receipt.id:
        return "other-receipt"
    if here.countersignature is None or there.countersignature is None:
        return "not-answered-here" if here.countersignature is None else "not-answered-there"
    return "other-answer"
