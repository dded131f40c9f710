"""How much device time a member has used, over all providers: what a quota is held against (pure).

A provider knows its own receipts to the microsecond, and of other providers what they last said in totals, one for each
requester, kind of device and hour. Totals only rise, so the highest one heard counts, in whatever order they come.

A total is signed by its provider, and by the requester too where that agrees (`leased_time`). What only the provider
says counts up to `UNSIGNED_US` for each provider, so that nobody's word starves a member. And a member that signs not
what it uses gets no more than that from each provider, which knows what it has not signed: refusing pays nobody.

A quota of N over a span is used up when the hours that lie in the span by more than nothing sum up to N: a whole
hour counts until it has left the span, which errs on the owner's side by less than an hour of use.

What runs right now is told by the caller and counts from its first microsecond. So a requester's overrun is bounded by
what others use between two of their totals (`INTERVAL_US`), for each provider.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from coppermesh.p2p.certificates import SKEW_US
from coppermesh.p2p.ids import PeerId
from coppermesh.p2p.membership_records import Quota, Usage

HOUR_US = 3_600_000_000
INTERVAL_US = 10_000_000
"""Totals that have changed are told this often: the accounting interval."""
UNSIGNED_US = 2 * INTERVAL_US
"""Device time that counts without the requester's signature, of one provider."""
KEPT_HOURS = 31 * 24
MAX_TOTALS = 65_536
MAX_BY_PROVIDER = MAX_TOTALS // 4
MAX_HOUR_US = 1024 * HOUR_US
"""More than any machine could have given in one hour: a total above it is made up."""


@dataclass(frozen=True, slots=True)
class _Place:
    provider: PeerId
    requester: PeerId
    kind: str
    hour: int


class UsageBook:
    """Totals of one mesh: this provider's own and those it has heard of."""

    def __init__(self, me: PeerId) -> None:
        self._me = me
        self._totals: dict[_Place, int] = {}
        self._told: dict[_Place, int] = {}
        self._signed: dict[_Place, int] = {}
        """Of these, what the requester has signed; of own ones also what nobody asks it for any more."""
        self._heard: Counter[PeerId] = Counter()
        """Totals by other provider."""
        self._of: dict[PeerId, set[_Place]] = {}
        """Places of `_totals` and `_signed` by requester: a member's quota is asked for at each of its orders."""

    def add_own(self, requester: PeerId, kind: str, ended_us: int, device_us: int) -> None:
        """A receipt of this provider's."""
        for hour, part_us in _by_hour(ended_us, device_us):
            place = _Place(self._me, requester, kind, hour)
            self._totals[place] = self._totals.get(place, 0) + part_us
            self._of.setdefault(requester, set()).add(place)

    def excuse(self) -> None:
        """Own totals so far need no signature for the requester to be served on: they are of an earlier run."""
        self._signed |= {place: us for place, us in self._totals.items() if place.provider == self._me}

    def signed(self, requester: PeerId, kind: str, hour: int, device_us: int) -> None:
        """The requester has signed that total of ours."""
        place = _Place(self._me, requester, kind, hour)
        self._signed[place] = max(self._signed.get(place, 0), device_us)
        self._of.setdefault(requester, set()).add(place)

    def unsigned_us(self, requester: PeerId, running_us: int) -> int:
        """Device time that `requester` has used here and not signed, `running_us` of it right now."""
        own = [place for place in self._of.get(requester, ()) if place.provider == self._me]
        known_us = sum(self._totals.get(place, 0) for place in own) + running_us
        return max(0, known_us - sum(self._signed.get(place, 0) for place in own))

    def hear(self, usage: Usage, now_us: int, *, signed: bool) -> bool:
        """A total of another provider, `signed` by its requester too. False where it is of no use, or made up."""
        hour = now_us // HOUR_US
        if usage.provider == self._me or not hour - KEPT_HOURS <= usage.hour <= (now_us + SKEW_US) // HOUR_US:
            return False
        place = _Place(PeerId(usage.provider), PeerId(usage.requester), usage.kind, usage.hour)
        if usage.device_us > MAX_HOUR_US:
            return False
        if place not in self._totals:
            if len(self._totals) >= MAX_TOTALS or self._heard[place.provider] >= MAX_BY_PROVIDER:
                return False
            self._heard[place.provider] += 1
        self._totals[place] = max(self._totals.get(place, 0), usage.device_us)
        self._of.setdefault(place.requester, set()).add(place)
        if signed:
            self._signed[place] = max(self._signed.get(place, 0), usage.device_us)
        return True

    def used_us(self, requester: PeerId, quota: Quota, now_us: int) -> int:
        """Device time of `requester` that counts against `quota` now, without what runs."""
        first = (now_us - quota.period_us) // HOUR_US
        used_us, words = 0, Counter[PeerId]()
        for place in self._of.get(requester, ()):
            device_us = self._totals.get(place, 0)
            if place.hour >= first and quota.kind in ("any", place.kind):
                known_us = device_us if place.provider == self._me else self._signed.get(place, 0)
                used_us += known_us
                words[place.provider] += device_us - known_us
        return used_us + sum(min(us, UNSIGNED_US) for us in words.values())

    def news(
        self, running: Mapping[tuple[PeerId, str], Sequence[int]], now_us: int
    ) -> list[tuple[PeerId, str, int, int]]:
        """Own totals that have risen since the last call: (requester, kind, hour, device time).

        `running`: how long each task has run that runs now, by requester and kind. It is in a receipt afterwards, which
        counts for the same hours.
        """
        totals = {place: us for place, us in self._totals.items() if place.provider == self._me}
        for (requester, kind), tasks in running.items():
            for hour, part_us in (part for device_us in tasks for part in _by_hour(now_us, device_us)):
                place = _Place(self._me, requester, kind, hour)
                totals[place] = totals.get(place, 0) + part_us
        risen = {place: us for place, us in totals.items() if us > self._told.get(place, 0)}
        self._told |= risen
        return [(place.requester, place.kind, place.hour, us) for place, us in risen.items()]

    def untell(self, requester: PeerId, kind: str, hour: int) -> None:
        """The member has not signed this total: `news` names it again."""
        self._told.pop(_Place(self._me, requester, kind, hour), None)

    def repeat(self) -> None:
        """Tell everything again at the next `news`: a member that has joined since has heard nothing of it."""
        self._told.clear()

    def forget_old(self, now_us: int) -> None:
        """Drop what is in no quota's span any more."""
        oldest = now_us // HOUR_US - KEPT_HOURS
        for table in (self._totals, self._told, self._signed):
            for place in [place for place in table if place.hour < oldest]:
                del table[place]
        self._of = {}
        for place in self._totals.keys() | self._signed.keys():
            self._of.setdefault(place.requester, set()).add(place)
        self._heard = Counter(place.provider for place in self._totals if place.provider != self._me)


def _by_hour(ended_us: int, device_us: int) -> Iterator[tuple[int, int]]:
    """Device time up to a moment, by the hours in which it passed: what ran over a full hour counts once."""
    while device_us > 0:
        hour = (ended_us - 1) // HOUR_US
        part_us = min(device_us, ended_us - hour * HOUR_US)
        yield hour, part_us
        ended_us, device_us = ended_us - part_us, device_us - part_us
