"""From the wish for a later end of a lease to an extension that both sides signed: the requester's side.

Theory of operation. The provider may have signed an extension whose answer was lost: then it counts on the later end
and takes no other extension of that number. So what got no answer is offered again as the very same bytes, which a
provider answers as before, a few times and further apart, while the lease lasts. Its decline is an answer.
"""

from collections.abc import Callable

import trio

from coppermesh.agent.held_leases import HeldLease
from coppermesh.agent.lease_extension import build_extension
from coppermesh.agent.ledger import LeaseExtended
from coppermesh.agent.ledger_store import LedgerStore
from coppermesh.p2p.control import ControlHub
from coppermesh.p2p.envelope import Opened, open_record, seal_record
from coppermesh.p2p.errors import Refused, RemoteProtocolError, Unreachable
from coppermesh.p2p.lease_records import Extension
from coppermesh.p2p.messages import ExtendReply, ExtendRequest
from coppermesh.p2p.records import Decline
from coppermesh.p2p.signing import PeerKey

EXTEND_SECONDS = 4.0
"""How long a provider has to answer, each time."""
RETRY_SECONDS = (0.3, 1.0, 2.0, 4.0)
"""Between the offers of one extension; a quarter more or less by chance."""
PASSING_CODES = frozenset({"timeout", "internal", "busy", "provider-ledger"})
"""Refusals that are no decision about the lease."""


class LeaseExtender:
    """Asks for extensions. Without an answer the end that was agreed before holds. `rng`: a number from 0 to 1."""

    def __init__(
        self,
        key: PeerKey,
        hub: ControlHub,
        ledger: LedgerStore,
        *,
        now_us: Callable[[], int],
        rng: Callable[[], float],
    ) -> None:
        self._key = key
        self._hub = hub
        self._ledger = ledger
        self._now_us = now_us
        self._rng = rng

    async def extend(self, held: HeldLease) -> int:
        """Returns when the lease ends now. Raises Refused with the provider's reason, or another MeshError."""
        offered = self._offer(held)
        reply = await self._answer(held, ExtendRequest(offered.signed))
        if reply.extension is None:
            if reply.decline is None:
                raise RemoteProtocolError("answered an extension with neither signature nor decline")
            decline = open_record(Decline, reply.decline, signer=held.provider).record
            if decline.order != held.record.order:
                raise RemoteProtocolError("the decline is for another order")
            raise Refused(decline.code, decline.sentence)
        agreed = open_record(Extension, reply.extension, signer=held.provider)
        if agreed.signed.body != offered.signed.body:
            raise RemoteProtocolError("signed another extension than the one offered")
        await self._ledger.commit(LeaseExtended(offered.signed, agreed.signed))
        held.extended(offered.record)
        return held.until_us

    async def _answer(self, held: HeldLease, request: ExtendRequest) -> ExtendReply:
        """The provider's answer. Raises Unreachable or Refused where there is none in time."""
        pauses = iter(RETRY_SECONDS)
        while True:
            try:
                return await self._hub.request(
                    held.provider, "extend", request, ExtendReply, deadline_s=EXTEND_SECONDS
                )
            except (Unreachable, Refused) as error:
                if isinstance(error, Refused) and error.code not in PASSING_CODES:
                    raise
                pause = next(pauses, None)
                if pause is None or held.lost:
                    raise
                pause *= 0.75 + self._rng() / 2
                if self._now_us() + pause * 1e6 >= held.until_us:
                    raise
                await trio.sleep(pause)
                if held.lost:
                    raise

    def _offer(self, held: HeldLease) -> Opened[Extension]:
        record = build_extension(held.record, held.extensions + 1, held.until_us, self._now_us())
        return seal_record(self._key, record)
