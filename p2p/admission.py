"""Who is let into a private mesh at its door: invitations and their uses (pure).

An issuer keeps of each invitation the hash of its token, so that its own files hold none, what it gives, and who used
it. A use is counted once for each subject: whoever asks again because the reply was lost gets the same certificate.
"""

import ipaddress
from typing import Annotated

import msgspec
from blake3 import blake3
from msgspec import Meta

from coppermesh.p2p.errors import Refused
from coppermesh.p2p.ids import Digest, PeerId
from coppermesh.p2p.membership_records import Chain, Depth, Quota, RoleName
from coppermesh.p2p.records import Count, Hash, Key, Micros

MAX_INVITATIONS = 512
MAX_USES = 256
KEPT_US = 30 * 86_400_000_000
"""How long a spent or expired invitation is remembered, so that its refusal can say which of the two it is."""

ADMISSION_CODES = {
    "unknown-invitation": "there is no such invitation here (any more): ask for a new one",
    "expired-invitation": "the invitation has expired: ask for a new one",
    "used-invitation": "the invitation was used already: ask for a new one",
    "too-many": "too many requests at this door: try again in a minute",
    "clock": "the two clocks are more than 120 s apart: set both by NTP",
    "not-for-us": "the request is for another mesh or door",
    "door-closed": "who answers here may not admit anybody now",
}
"""Refusals at the door, besides those of a chain."""


class Use(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Who used an invitation, and the chain that it was given."""

    subject: Key
    chain: Chain


class Issued(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An invitation as its issuer keeps it."""

    token_hash: Hash
    role: RoleName
    quota: Quota | None
    depth: Depth
    expires_us: Micros
    uses: Annotated[int, Meta(ge=1, le=MAX_USES)]
    used: Annotated[list[Use], Meta(max_length=MAX_USES)]
    created_us: Count


def token_hash(token: bytes) -> Digest:
    """What is kept of a token."""
    return Digest(blake3(token, derive_key_context="coppermesh 2026 invitation token v1").digest())


def refusal(code: str) -> Refused:
    """A refusal at the door, with its sentence."""
    return Refused(code, ADMISSION_CODES[code])


class Invitations:
    """The invitations of one issuer. `to_list` is what goes to disk."""

    def __init__(self, issued: list[Issued] | None = None) -> None:
        self._issued = {Digest(one.token_hash): one for one in issued or ()}

    def to_list(self) -> list[Issued]:
        """Everything, oldest first."""
        return list(self._issued.values())

    def open(self, now_us: int) -> list[Issued]:
        """Those that still admit somebody."""
        return [one for one in self._issued.values() if one.expires_us > now_us and len(one.used) < one.uses]

    def add(self, issued: Issued, now_us: int) -> None:
        """Keep a new one. Raises Refused where there are too many."""
        self.forget_old(now_us)
        if len(self._issued) >= MAX_INVITATIONS:
            raise Refused("too-many", f"{MAX_INVITATIONS} invitations are open: wait until some have expired")
        self._issued[Digest(issued.token_hash)] = issued

    def look(self, token: bytes, subject: PeerId, now_us: int) -> Issued | Use:
        """What the token gives `subject`: an invitation to use up, or its own earlier use of it. Raises Refused."""
        found = self._issued.get(token_hash(token))
        if found is None:
            raise refusal("unknown-invitation")
        for use in found.used:
            if use.subject == subject:
                return use
        if found.expires_us <= now_us:
            raise refusal("expired-invitation")
        if len(found.used) >= found.uses:
            raise refusal("used-invitation")
        return found

    def use(self, issued: Issued, use: Use) -> None:
        """Count a use. The caller puts it on disk before it hands anything over."""
        used = msgspec.structs.replace(issued, used=[*issued.used, use])
        self._issued[Digest(issued.token_hash)] = used

    def put_back(self, issued: Issued) -> None:
        """Undo a use that could not be put on disk."""
        self._issued[Digest(issued.token_hash)] = issued

    def forget_old(self, now_us: int) -> None:
        """Drop those that ended long ago."""
        for key, one in list(self._issued.items()):
            if one.expires_us + KEPT_US <= now_us:
                del self._issued[key]


class DoorPace:
    """How many requests a door answers: a bucket for each visitor, one for its neighbourhood, and one for all.

    One customer of a provider has a whole /64 of IPv6 addresses, and often a /48: those count as one visitor and as one
    neighbourhood; of IPv4 one address and a /24. So whoever floods the door from one network shuts out that network.
    """

    def __init__(
        self, *, each: int = 8, nearby: int = 32, together: int = 120, window_us: int = 60_000_000
    ) -> None:
        self._each, self._nearby, self._together, self._window_us = each, nearby, together, window_us
        self._times: list[tuple[int, str, str]] = []

    def admit(self, visitor: str, now_us: int) -> None:
        """Count a request of `visitor` (where it comes from, `/ip4/HOST`). Raises Refused with `too-many`."""
        who, near = networks_of(visitor)
        self._times = [one for one in self._times if one[0] > now_us - self._window_us]
        own = sum(one[1] == who for one in self._times)
        neighbours = sum(one[2] == near for one in self._times)
        if own >= self._each or neighbours >= self._nearby or len(self._times) >= self._together:
            raise refusal("too-many")
        self._times.append((now_us, who, near))


def networks_of(place: str) -> tuple[str, str]:
    """The two networks that a visitor at `/ip4/HOST` or `/ip6/HOST` belongs to; any other text stands for itself."""
    host = place.rpartition("/")[2].partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return place, place
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    narrow, wide = (32, 24) if address.version == 4 else (64, 48)
    own, near = (ipaddress.ip_network((address, bits), strict=False) for bits in (narrow, wide))
    return str(own), str(near)
