"""What becomes of an announcement that gossip brought: passed on, dropped, or held against the neighbour. Pure.

Every agent forwards a message only where that helps somebody: when it was news to itself, or when it knew it but
hears it on this topic for the first time (an agent that is in a shard and in the one above it must not block the
second). So a neighbour that publishes old bytes again and again is heard by its own neighbours and by nobody else.
"""

from coppermesh.p2p.announcements import AnnouncementBook, Examined, Verdict
from coppermesh.p2p.gossip_outcome import Outcome
from coppermesh.p2p.recent import RecentSet

MAX_FORWARDED = 16384


class AnnouncementScreen:
    """Judges what arrives on the announcement topics for one book."""

    def __init__(self, book: AnnouncementBook, *, max_forwarded: int = MAX_FORWARDED) -> None:
        self._book = book
        self._forwarded: RecentSet[tuple[str, bytes]] = RecentSet(max_forwarded)

    def judge(self, topic: str, examined: Examined, now_us: int) -> tuple[Verdict, Outcome]:
        """Put the message into the book, and say whether to pass it on."""
        verdict = self._book.take(examined, now_us)
        if verdict is not Verdict.ACCEPTED and verdict is not Verdict.REPLAYED:
            return verdict, Outcome.BLAME if verdict.is_misbehaviour else Outcome.IGNORE
        is_first = self._forwarded.add((topic, examined.fingerprint))
        return verdict, Outcome.FORWARD if is_first else Outcome.IGNORE
