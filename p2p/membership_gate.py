"""The gate of a private mesh: each side shows its chain, and both must hold.

Three cards: the opener's, the other's, and the opener's word that it found that one good. So neither side takes the
other for a peer before both have looked.
"""

from collections.abc import Callable, Sequence

from coppermesh.p2p.certificates import Right
from coppermesh.p2p.errors import Refused
from coppermesh.p2p.frame_io import receive_frame, send_frame
from coppermesh.p2p.ids import MeshId, PeerId
from coppermesh.p2p.membership import MembershipBook
from coppermesh.p2p.membership_messages import MAX_CARD_BYTES, Card
from coppermesh.p2p.records import SignedRecord
from coppermesh.p2p.transport import Stream

_OPEN_TOPICS = ("coppermesh/members/", "coppermesh/revocations/")
_OFFERS = ("coppermesh/announcements/", "coppermesh/usage/")


def membership_protocol(mesh: MeshId) -> str:
    """The protocol id of the stream on which cards are shown."""
    return f"/coppermesh/membership/1/{mesh.hex()}"


def members_topic(mesh: MeshId) -> str:
    """Where members show their chains."""
    return f"coppermesh/members/1/{mesh.hex()}"


def revocations_topic(mesh: MeshId) -> str:
    """Where revocations are told."""
    return f"coppermesh/revocations/1/{mesh.hex()}"


def usage_topic(mesh: MeshId) -> str:
    """Where providers tell how much of quotas was used."""
    return f"coppermesh/usage/1/{mesh.hex()}"


class MembershipGate:
    """See `gate.Gate`. What it learns of the other side is in `book`."""

    def __init__(
        self,
        mesh: MeshId,
        book: MembershipBook,
        own_chain: Callable[[], Sequence[SignedRecord]],
        now_us: Callable[[], int],
    ) -> None:
        self.protocol = membership_protocol(mesh)
        self._book = book
        self._own_chain = own_chain
        self._now_us = now_us

    async def show(self, stream: Stream) -> None:
        """See `gate.Gate`."""
        await send_frame(stream, self._card())
        await self._look_at(stream, await receive_frame(stream, Card, MAX_CARD_BYTES))
        await send_frame(stream, Card([], "ok", ""))

    async def answer(self, stream: Stream) -> None:
        """See `gate.Gate`."""
        await self._look_at(stream, await receive_frame(stream, Card, MAX_CARD_BYTES))
        await send_frame(stream, self._card())
        _require_ok(await receive_frame(stream, Card, MAX_CARD_BYTES))

    def hears(self, topic: str, source: PeerId) -> bool:
        """See `gate.Gate`. A chain that is shown speaks for itself, and a revocation is signed."""
        if topic.startswith(_OPEN_TOPICS):
            return True
        member = self._book.member(source, self._now_us())
        return member is not None and (not topic.startswith(_OFFERS) or member.may(Right.PROVIDE))

    async def _look_at(self, stream: Stream, card: Card) -> None:
        _require_ok(card)
        try:
            self._book.learn(card.chain, stream.peer, self._now_us())
        except Refused as error:
            await send_frame(stream, Card([], error.code, error.sentence))
            await stream.send_eof()
            raise

    def _card(self) -> Card:
        return Card(list(self._own_chain()), "ok", "")


def _require_ok(card: Card) -> None:
    if card.code != "ok":
        raise Refused(card.code, f"we are not let in: {card.sentence}")
