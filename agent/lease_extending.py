"""From the wish for a later end of a lease to an extension that both sides signed: the requester's side."""

from collections.abc import Callable

from coppermesh.agent.held_leases import HeldLease
from coppermesh.agent.lease_extension import build_extension
from coppermesh.agent.ledger import LeaseExtended
from coppermesh.agent.ledger_store import LedgerStore
from coppermesh.p2p.control import ControlHub
from coppermesh.p2p.envelope import Opened, open_record, seal_record
from coppermesh.p2p.errors import Refused, RemoteProtocolError
from coppermesh.p2p.lease_records import Extension
from coppermesh.p2p.messages import ExtendReply, ExtendRequest
from coppermesh.p2p.records import Decline
from coppermesh.p2p.signing import PeerKey

EXTEND_SECONDS = 10.0
"""How long a provider has to answer."""


class LeaseExtender:
    """Asks for extensions. An answer that is lost changes nothing here: the end that was agreed before holds."""

    def __init__(
        self, key: PeerKey, hub: ControlHub, ledger: LedgerStore, *, now_us: Callable[[], int]
    ) -> None:
        self._key = key
        self._hub = hub
        self._ledger = ledger
        self._now_us = now_us

    async def extend(self, held: HeldLease) -> int:
        """Returns when the lease ends now. Raises Refused with the provider's reason, or another MeshError."""
        offered = self._offer(held)
        reply = await self._hub.request(
            held.provider, "extend", ExtendRequest(offered.signed), ExtendReply, deadline_s=EXTEND_SECONDS
        )
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

    def _offer(self, held: HeldLease) -> Opened[Extension]:
        """The next extension, signed. One that got no answer is not offered again: the lease is asked for once more."""
        record = build_extension(held.record, held.extensions + 1, held.until_us, self._now_us())
        return seal_record(self._key, record)
