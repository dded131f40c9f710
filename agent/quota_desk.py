"""Holds members to their quotas on this provider: before a bid, before a task, and while one runs."""

from collections.abc import Callable

from coppermesh.agent.policy_case import DeclineReason, decline
from coppermesh.p2p.ids import PeerId
from coppermesh.p2p.membership_records import Quota
from coppermesh.p2p.records import Receipt
from coppermesh.p2p.usage import HOUR_US, INTERVAL_US, UNSIGNED_US, UsageBook

Running = Callable[[], dict[tuple[PeerId, str], list[int]]]
"""Device time of each task that runs now, in microseconds, by requester and kind of device."""


class QuotaDesk:
    """Of one private mesh. `running` is this provider's own."""

    def __init__(
        self, usage: UsageBook, quota_of: Callable[[PeerId], Quota | None], now_us: Callable[[], int]
    ) -> None:
        self.usage = usage
        self._quota_of = quota_of
        self._now_us = now_us
        self.running: Running = dict

    def issued(self, receipt: Receipt) -> None:
        """A receipt of this provider's."""
        self.usage.add_own(
            PeerId(receipt.requester), receipt.device_kind, receipt.ended_us, receipt.billed_us
        )

    def stopped(self, requester: PeerId, kind: str, device_us: int) -> None:
        """A task was ended at the limit. It costs nothing, but its time was used: else it could be begun for ever."""
        self.usage.add_own(requester, kind, self._now_us(), device_us)

    def against(self, requester: PeerId, kind: str) -> DeclineReason | None:
        """Why `requester` gets no (more) time of a device of that kind."""
        quota = self._quota_of(requester)
        if quota is None or quota.kind not in ("any", kind):
            return None
        running_us = sum(
            sum(tasks)
            for (who, running_kind), tasks in self.running().items()
            if who == requester and quota.kind in ("any", running_kind)
        )
        used_us = self.usage.used_us(requester, quota, self._now_us()) + running_us
        if used_us < quota.device_us:
            return self._unsigned(requester)
        text = (
            f"the requester's quota on this mesh is used up: {_time(used_us)} of {_time(quota.device_us)} device time "
            f"within {_time(quota.period_us)}; wait, or ask an admin for a larger one"
        )
        return decline("quota", text)

    def _unsigned(self, requester: PeerId) -> DeclineReason | None:
        """A member with a quota signs what it has used, or others would not know of it."""
        running_us = sum(sum(tasks) for (who, _), tasks in self.running().items() if who == requester)
        unsigned_us = self.usage.unsigned_us(requester, running_us)
        if unsigned_us < UNSIGNED_US:
            return None
        text = (
            f"the requester has used {unsigned_us / 1e6:.0f} s here that it has not signed for: its agent is asked "
            f"every {INTERVAL_US / 1e6:.0f} s, and with a quota gets no more until it has"
        )
        return decline("quota", text)


def _time(span_us: int) -> str:
    return f"{span_us / 1e6:.0f} s" if span_us < HOUR_US else f"{span_us / HOUR_US:.4g} hours"
