"""From a bid that is taken to a lease that both sides signed, at the requester; or to its end, which frees the slot."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import trio

from coppermesh.agent.leases import build_lease
from coppermesh.agent.ledger import LeaseAgreed, LeaseEnded, LeaseOffered
from coppermesh.agent.ledger_store import LedgerStore
from coppermesh.agent.matching import Requirement
from coppermesh.agent.negotiation import Move, Negotiation, Role
from coppermesh.p2p.control import ControlHub
from coppermesh.p2p.envelope import Opened, open_record, seal_record
from coppermesh.p2p.errors import MeshError, Refused, RemoteProtocolError
from coppermesh.p2p.ids import PeerId
from coppermesh.p2p.messages import CancelRequest, LeaseReply, LeaseRequest, Nothing
from coppermesh.p2p.records import Bid, Decline, Lease, Order
from coppermesh.p2p.signing import PeerKey

LEASE_SECONDS = 10.0
"""How long a provider has to sign a lease."""
CANCEL_SECONDS = 2.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GrantedLease:
    """A lease that both sides signed."""

    lease: Opened[Lease]
    provider: PeerId
    requirement: Requirement
    device_name: str
    negotiation: Negotiation


class LeaseSigner:
    """Signs leases. One is in the ledger before its signature leaves."""

    def __init__(
        self,
        key: PeerKey,
        hub: ControlHub,
        ledger: LedgerStore,
        *,
        now_us: Callable[[], int],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._key = key
        self._hub = hub
        self._ledger = ledger
        self._now_us = now_us
        self._random_bytes = random_bytes

    async def sign(
        self, order: Opened[Order], bid: Opened[Bid], requirement: Requirement, talk: Negotiation
    ) -> GrantedLease:
        """A lease on the bid, signed by both. Raises MeshError; the lease is ended then, and when cancelled."""
        peer = PeerId(bid.record.provider)
        cause = f"bid {bid.id.hex()[:8]}"
        lane, nonce = self._random_bytes(16), self._random_bytes(16)
        lease = build_lease(order, bid, lane, nonce, self._now_us(), fresh=requirement.fresh)
        opened = seal_record(self._key, lease)
        try:
            await self._ledger.commit(LeaseOffered(opened.signed, order.signed, bid.signed))
            talk.step(Move.LEASE_OFFER, Role.REQUESTER, self._now_us(), cause)
            reply = await self._hub.request(
                peer, "lease", LeaseRequest(opened.signed), LeaseReply, deadline_s=LEASE_SECONDS
            )
            signed = _agreed(opened, reply, peer)
            await self._ledger.commit(LeaseAgreed(opened.id, signed.signed))
            talk.step(Move.LEASE_ACCEPT, Role.PROVIDER, self._now_us(), cause)
        except (MeshError, trio.Cancelled):
            with trio.CancelScope(shield=True):
                await self._end_quietly(opened, peer)
            raise
        return GrantedLease(opened, peer, requirement, bid.record.device_name, talk)

    async def _end_quietly(self, opened: Opened[Lease], peer: PeerId) -> None:
        """Close a lease that came to nothing here. The provider may have signed it: its slot must come free."""
        request = CancelRequest(opened.id, None, "not-agreed", "the lease was not agreed in time", None)
        try:
            await self._ledger.commit(LeaseEnded(opened.id, "not-agreed"))
            await self._hub.request(peer, "cancel", request, Nothing, deadline_s=CANCEL_SECONDS)
        except MeshError as error:
            _log.debug("ending lease %s: %s", opened.id.hex()[:12], error)


def _agreed(opened: Opened[Lease], reply: LeaseReply, peer: PeerId) -> Opened[Lease]:
    """The lease with the provider's signature. Raises Refused with its decline, RemoteProtocolError otherwise."""
    if reply.lease is None:
        if reply.decline is None:
            raise RemoteProtocolError("answered a lease with neither signature nor decline")
        decline = open_record(Decline, reply.decline, signer=peer).record
        raise Refused(decline.code, decline.sentence)
    signed = open_record(Lease, reply.lease, signer=peer)
    if signed.signed.body != opened.signed.body:
        raise RemoteProtocolError("signed another lease than the one offered")
    return signed
