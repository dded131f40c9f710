"""When a lease may end later than it says: the rules that both sides check before they sign (pure).

Theory of operation. A lease is short, so that others have their turn, and a job may outlast it. Instead of negotiating
anew, with a new worker and a new lane, the requester offers an `Extension` of the same lease while tasks are under way;
the provider signs the same bytes, or declines with a reason, and then the end that was agreed before still holds. What
can be wrong with one:

- it is not the next in number, or does not end later than what holds: the other side lies or has lost count;
- it adds less than a second, or is the thousand and first: each is two signatures and a row of the ledger for good;
- it would end later than a new lease might (`lease_life_us` from now), or more than `MAX_LEASE_US` after the lease
  began: a rate that was agreed an hour ago is not today's price;
- the lease is over already: an extension never brings one back.

Nobody owes the other an extension. A provider declines where the owner wants the device back, where somebody waits for
the slot, where receipts wait for an answer, and where the lease's rate is under what lending costs by now.
"""

from coppermesh.agent.leases import CLOCK_SKEW_US, lease_id, lease_life_us
from coppermesh.p2p.errors import Refused, RemoteProtocolError
from coppermesh.p2p.lease_records import Extension
from coppermesh.p2p.records import Lease

MAX_LEASE_US = 3_660_000_000
"""From its beginning to its last end, whatever extensions it has."""
MAX_EXTENSIONS = 1000
MIN_STEP_US = 1_000_000
"""The least that one extension adds."""


def build_extension(lease: Lease, number: int, until_us: int, now_us: int) -> Extension:
    """Extension `number` of a lease that ends at `until_us` so far, as far as it goes.

    Raises Refused (`lease-length`) where nothing can be added.
    """
    latest_us = min(now_us + lease_life_us(lease.wall_limit_us), lease.issued_us + MAX_LEASE_US)
    if latest_us < until_us + MIN_STEP_US or number > MAX_EXTENSIONS:
        raise Refused("lease-length", "the lease lasts as long as a lease may: order again when it ends")
    return Extension(
        version=1,
        mesh=lease.mesh,
        requester=lease.requester,
        provider=lease.provider,
        lease=lease_id(lease),
        number=number,
        issued_us=now_us,
        expires_us=latest_us,
    )


def check_extension(lease: Lease, number: int, until_us: int, extension: Extension, now_us: int) -> None:
    """May `extension` follow the last one, `number` (0: none yet), of a lease that ends at `until_us` so far?

    Raises RemoteProtocolError where it contradicts the lease or its number, Refused (`lease-expired`, `clock`,
    `lease-length`) where its time is wrong.
    """
    parties = (extension.mesh, extension.requester, extension.provider, extension.lease)
    if parties != (lease.mesh, lease.requester, lease.provider, lease_id(lease)):
        raise RemoteProtocolError("the extension is of another lease")
    if extension.number != number + 1:
        raise RemoteProtocolError(f"extension {extension.number} of a lease that has {number}")
    if extension.expires_us <= until_us:
        raise RemoteProtocolError("an extension that does not prolong its lease")
    if now_us >= until_us:
        raise Refused("lease-expired", f"the lease ended {(now_us - until_us) / 1e6:.1f} s ago: order again")
    if extension.issued_us > now_us + CLOCK_SKEW_US:
        ahead = f"{(extension.issued_us - now_us) / 1e6:.1f} s"
        raise Refused("clock", f"the extension was issued {ahead} in the future by this clock")
    check_length(lease, extension)
    if extension.expires_us < until_us + MIN_STEP_US:
        raise Refused(
            "lease-length", "the extension adds less than a second: order again when the lease ends"
        )
    if extension.expires_us > now_us + lease_life_us(lease.wall_limit_us) + CLOCK_SKEW_US:
        raise Refused("lease-length", "the extension is longer than a new lease would be: ask for less")


def check_length(lease: Lease, extension: Extension) -> None:
    """Raises Refused (`lease-length`) where the lease would last longer, or be extended more often, than any may."""
    if extension.number > MAX_EXTENSIONS:
        raise Refused(
            "lease-length", f"the lease was extended {MAX_EXTENSIONS} times: order again when it ends"
        )
    if extension.expires_us > lease.issued_us + MAX_LEASE_US:
        most = MAX_LEASE_US // 1_000_000
        raise Refused("lease-length", f"the lease would last more than {most} s in all: order again")
