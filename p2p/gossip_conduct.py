"""How a gossip neighbour behaves, and when it is cut off. Pure: times are seconds on a clock that never goes back.

Whoever hands us a message answers for it a little. An honest neighbour forwards only what it accepted itself, so a
message that nobody could have accepted (forged, malformed, oversized, for another mesh: `Deed.BLAMED`) was made or let
through by that neighbour; a few are forgiven, since versions differ and bits break. What is merely of no use to us
(`Deed.UNWANTED`: old, repeated, too many of one author) happens to honest neighbours too, when messages cross; only a
stream of it is somebody's doing.

Both are buckets that drain with time. One that overflows cuts the neighbour off: `is_cut` is true for
`FIRST_CUT_SECONDS`, twice as long each further time, at most `LAST_CUT_SECONDS`. What a neighbour forwards that is
wanted costs nothing and earns nothing: good deeds buy no right to forge.
"""

from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum

from coppermesh.p2p.gossip_outcome import Outcome
from coppermesh.p2p.ids import PeerId

BLAMED_BURST = 3.0
BLAMED_PER_SECOND = 1 / 30
UNWANTED_BURST = 200.0
UNWANTED_PER_SECOND = 10.0
FIRST_CUT_SECONDS = 600.0
LAST_CUT_SECONDS = 3600.0
MAX_WATCHED = 4096
"""Neighbours remembered; the one not heard of for longest is forgotten first."""


class Deed(Enum):
    """What one message says of the neighbour that handed it to us."""

    REPEATED = "repeated"
    """The gossip message itself came before; so do most, in a mesh. Counts a tenth of an unwanted one."""
    UNWANTED = "unwanted"
    BLAMED = "blamed"

    @classmethod
    def of(cls, outcome: Outcome) -> "Deed | None":
        """What a subscriber's verdict says of who forwarded the message; None: nothing."""
        return {Outcome.IGNORE: cls.UNWANTED, Outcome.BLAME: cls.BLAMED}.get(outcome)


@dataclass(slots=True)
class _Record:
    then: float
    unwanted: float = 0.0
    blamed: float = 0.0
    cuts: int = 0
    cut_until: float = 0.0


class GossipConduct:
    """The conduct of all neighbours of one agent."""

    def __init__(self, *, max_watched: int = MAX_WATCHED) -> None:
        self._max_watched = max_watched
        self._records: OrderedDict[PeerId, _Record] = OrderedDict()

    def note(self, peer: PeerId, deed: Deed, now: float) -> bool:
        """Count one message against `peer`. True exactly when this is the one that cuts it off."""
        record = self._records.get(peer)
        if record is None:
            record = self._records[peer] = _Record(now)
            if len(self._records) > self._max_watched:
                self._records.popitem(last=False)
        else:
            self._records.move_to_end(peer)
        if record.cut_until > now:
            return False
        since, record.then = max(0.0, now - record.then), now
        record.unwanted = max(0.0, record.unwanted - since * UNWANTED_PER_SECOND)
        record.blamed = max(0.0, record.blamed - since * BLAMED_PER_SECOND)
        if deed is Deed.BLAMED:
            record.blamed += 1
        else:
            record.unwanted += 1 if deed is Deed.UNWANTED else 0.1
        if record.unwanted <= UNWANTED_BURST and record.blamed <= BLAMED_BURST:
            return False
        record.cut_until = now + min(FIRST_CUT_SECONDS * 2.0 ** min(record.cuts, 16), LAST_CUT_SECONDS)
        record.cuts += 1
        record.unwanted = record.blamed = 0.0
        return True

    def is_cut(self, peer: PeerId, now: float) -> bool:
        """Nothing is taken from `peer` and nothing sent to it now."""
        record = self._records.get(peer)
        return record is not None and record.cut_until > now

    def cut_peers(self, now: float) -> list[PeerId]:
        """Everybody who is cut off now."""
        return [peer for peer, record in self._records.items() if record.cut_until > now]
