"""For how long a member has held leases of others: what it takes for true of their totals (pure).

In a private mesh every provider tells how much device time each member has used there, and a total counts in full only
where the member has signed it too (`usage`). A member signs no more than it can have used: all totals of one provider
and kind of device together stay within the time for which it has held leases there, as it measured itself. So a
provider cannot use up a member's quota with made-up totals; at most with a lease that the member gave it, and keeps.

What an earlier run of this agent held is not known to the second: its receipts count, leases that it did not end count
in full, and `FORGIVEN_US` for each provider stand for tasks that were ended without a receipt.
"""

from collections import Counter

from coppermesh.p2p.certificates import SKEW_US
from coppermesh.p2p.ids import PeerId
from coppermesh.p2p.membership_records import Usage
from coppermesh.p2p.usage import HOUR_US, INTERVAL_US, KEPT_HOURS

SLACK_US = INTERVAL_US
"""Two machines do not see a lease begin and end in the same moment."""
FORGIVEN_US = 60_000_000

_At = tuple[PeerId, str]
"""A provider, and a kind of device."""


class LeasedTime:
    """Of one member, at all its providers."""

    def __init__(self) -> None:
        self._open: dict[bytes, tuple[_At, int]] = {}
        self._past: Counter[_At] = Counter()
        self._earlier: set[_At] = set()
        self._signed: dict[_At, dict[int, int]] = {}

    def begun(self, lease: bytes, provider: PeerId, kind: str, now_us: int) -> None:
        """A lease is held from now on."""
        self._open[lease] = (provider, kind), now_us

    def ended(self, lease: bytes, now_us: int) -> None:
        """It is not held any more; nothing where that is known."""
        found = self._open.pop(lease, None)
        if found is not None:
            self._past[found[0]] += max(0, now_us - found[1])

    def held_before(self, provider: PeerId, kind: str, device_us: int) -> None:
        """A receipt of an earlier run, or a lease that it did not end."""
        self._past[provider, kind] += device_us
        self._earlier.add((provider, kind))

    def sign(self, usage: Usage, now_us: int) -> bool:
        """Whether that total can be: it is remembered as signed then."""
        hour = now_us // HOUR_US
        if not hour - KEPT_HOURS <= usage.hour <= (now_us + SKEW_US) // HOUR_US:
            return False
        at = PeerId(usage.provider), usage.kind
        signed = {then: us for then, us in self._signed.get(at, {}).items() if then >= hour - KEPT_HOURS}
        signed[usage.hour] = max(signed.get(usage.hour, 0), usage.device_us)
        if sum(signed.values()) > self._held_us(at, now_us):
            return False
        self._signed[at] = signed
        return True

    def _held_us(self, at: _At, now_us: int) -> int:
        held_us = self._past[at] + sum(
            max(0, now_us - since) for where, since in self._open.values() if where == at
        )
        return held_us + (SLACK_US if held_us else 0) + (FORGIVEN_US if at in self._earlier else 0)
