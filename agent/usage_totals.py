"""Totals of device time between the members of one private mesh: telling own ones, signing and hearing others'.

Each accounting interval a provider tells what has risen. Where the requester has a quota it is asked first to sign the
same total (`leased_time` says whether it does), so that others may count all of it.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable

import trio

from coppermesh.agent.quota_desk import QuotaDesk
from coppermesh.p2p.control import ControlHub
from coppermesh.p2p.encoding import decode, encode
from coppermesh.p2p.envelope import open_record, sign_record
from coppermesh.p2p.errors import MeshError, Refused, RemoteProtocolError
from coppermesh.p2p.ids import MeshId, PeerId, short_peer
from coppermesh.p2p.leased_time import LeasedTime
from coppermesh.p2p.membership_gate import usage_topic
from coppermesh.p2p.membership_messages import UsageTotal
from coppermesh.p2p.membership_records import Quota, Usage, UsageNotice
from coppermesh.p2p.records import Lease, Receipt
from coppermesh.p2p.signing import PeerKey
from coppermesh.p2p.transport import MAX_GOSSIP_BYTES, Transport
from coppermesh.p2p.usage import HOUR_US, INTERVAL_US, KEPT_HOURS

ASK_SECONDS = 3.0
"""For a signature: well under an interval, so that an agent that hangs holds up nobody's total."""
MAX_ASKED = 32
"""At once."""

_log = logging.getLogger(__name__)
_Total = tuple[PeerId, str, int]
"""Requester, kind of device, hour."""


class UsageTotals:
    """Of one agent on one private mesh. `leased`: the leases that it holds itself."""

    def __init__(
        self,
        key: PeerKey,
        mesh: MeshId,
        quotas: QuotaDesk,
        quota_of: Callable[[PeerId], Quota | None],
        now_us: Callable[[], int],
    ) -> None:
        self._key = key
        self._mesh = mesh
        self._quotas = quotas
        self._usage = quotas.usage
        self._quota_of = quota_of
        self._now_us = now_us
        self.leased = LeasedTime()
        self._signed: dict[_Total, tuple[int, UsageNotice]] = {}
        """What requesters have signed of ours, to tell it again without asking again."""
        self._transport: Transport
        self._hub: ControlHub
        self._publish: Callable[[str, bytes], Awaitable[None]]

    def attach(
        self, transport: Transport, hub: ControlHub, publish: Callable[[str, bytes], Awaitable[None]]
    ) -> None:
        """Call before anything else."""
        self._transport, self._hub, self._publish = transport, hub, publish

    def count_earlier(self, receipts: Iterable[Receipt], leases: Iterable[tuple[Lease, int]]) -> None:
        """What an earlier run left: receipts on either side, and leases that it did not end, each with its last end."""
        me, now_us = self._key.peer, self._now_us()
        for receipt in receipts:
            if receipt.provider == me:
                self._quotas.issued(receipt)
            else:
                self.leased.held_before(PeerId(receipt.provider), receipt.device_kind, receipt.billed_us)
        for lease, until_us in leases:
            if lease.requester == me:
                held_us = max(0, min(now_us, until_us) - lease.issued_us)
                self.leased.held_before(PeerId(lease.provider), lease.device_kind, held_us)
        self._usage.forget_old(now_us)
        self._usage.excuse()

    async def run(self) -> None:
        """Tell totals that have risen, each accounting interval; all of them when somebody has joined."""
        while True:
            await trio.sleep(INTERVAL_US / 1e6)
            if not self._transport.connected():
                self._usage.repeat()
                continue
            limiter = trio.CapacityLimiter(MAX_ASKED)
            async with trio.open_nursery() as nursery:
                for total in self._usage.news(self._quotas.running(), self._now_us()):
                    nursery.start_soon(self._tell, *total, limiter)
            self._usage.forget_old(self._now_us())
            self._forget_old()

    async def _tell(
        self, requester: PeerId, kind: str, hour: int, device_us: int, limiter: trio.CapacityLimiter
    ) -> None:
        place = requester, kind, hour
        known = self._signed.get(place)
        if known is not None and known[0] >= device_us:
            notice = known[1]
        else:
            usage = Usage(1, self._mesh, self._key.peer, requester, kind, hour, device_us)
            async with limiter:
                notice = await self._signed_by_both(usage)
            if notice.by_requester is not None:
                self._signed[place] = device_us, notice
                self._usage.signed(requester, kind, hour, device_us)
            else:
                if self._quota_of(requester) is not None:
                    self._usage.untell(requester, kind, hour)  # asked again in the next interval
                if known is not None:
                    await self._publish(usage_topic(self._mesh), encode(known[1]))
        await self._publish(usage_topic(self._mesh), encode(notice))

    async def _signed_by_both(self, usage: Usage) -> UsageNotice:
        requester = PeerId(usage.requester)
        mine = sign_record(self._key, usage)
        if self._quota_of(requester) is None or requester not in self._hub.peers():
            return UsageNotice(mine, None)
        try:
            reply = await self._hub.request(
                requester, "usage", UsageTotal(mine), UsageTotal, deadline_s=ASK_SECONDS
            )
            theirs = reply.usage
            if open_record(Usage, theirs, signer=requester).record != usage:
                raise Refused("other-total", "it signed another total")
        except MeshError as error:
            _log.info("%s has not signed what it used here: %s", short_peer(requester), error)
            return UsageNotice(mine, None)
        return UsageNotice(mine, theirs)

    async def on_usage(self, peer: PeerId, request: UsageTotal) -> UsageTotal:
        """A provider asks this agent to sign what it has used there. Raises Refused."""
        try:
            usage = open_record(Usage, request.usage, signer=peer).record
        except RemoteProtocolError as error:
            raise Refused("forged", str(error)) from error
        if (usage.mesh, usage.provider, usage.requester) != (self._mesh, peer, self._key.peer):
            raise Refused("not-ours", "the total is not of this provider about this member")
        if not self.leased.sign(usage, self._now_us()):
            _log.warning(
                "%s claims %.0f s of %s time that this agent has not leased: not signed",
                short_peer(peer),
                usage.device_us / 1e6,
                usage.kind,
            )
            raise Refused("not-used", "that is more than this member has held leases there for")
        return UsageTotal(sign_record(self._key, usage))

    def hear(self, source: PeerId, data: bytes) -> bool:
        """A total from gossip. False where it is not to be passed on."""
        try:
            notice = decode(UsageNotice, data, max_bytes=MAX_GOSSIP_BYTES)
            usage = open_record(Usage, notice.by_provider, signer=source).record
            signed = notice.by_requester is not None
            if notice.by_requester is not None:
                open_record(Usage, notice.by_requester, signer=PeerId(usage.requester))
                if notice.by_requester.body != notice.by_provider.body:
                    return False
        except RemoteProtocolError:
            return False
        if usage.mesh != self._mesh or usage.provider != source:
            return False
        return self._usage.hear(usage, self._now_us(), signed=signed)

    def _forget_old(self) -> None:
        oldest = self._now_us() // HOUR_US - KEPT_HOURS
        for place in [place for place in self._signed if place[2] < oldest]:
            del self._signed[place]
