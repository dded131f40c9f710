"""Whether this provider lends its devices now: its owner's settings and pause, and each device's state (pure).

`Provider` asks before it bids, signs or takes a task; `owner` keeps this up to date.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from coppermesh.agent.sharing import Obstacle, Sharing
from coppermesh.p2p.ids import PeerId

DISK_FULL = Obstacle(
    "disk-full",
    "the provider's disk is full; its owner has to free some space. Ask again later",
    "the disk is full: free some space, or move COPPERMESH_HOME",
)


@dataclass(slots=True)
class Lending:
    """What the owner allows at this moment."""

    sharing: Sharing = field(default_factory=Sharing)
    paused: bool = False
    """By `coppermesh pause`."""
    trusted: frozenset[PeerId] = frozenset()
    """Peers named by `--allow` or `trust`, whose kernels run even below the sandbox's floor."""
    obstacles: dict[str, tuple[Obstacle, ...]] = field(default_factory=dict)
    """By device: why it is not lent just now."""

    disk_full: bool = False
    """The disk has no room for a task's blobs and receipts."""

    def closed(self, now_us: int) -> Obstacle | None:
        """Why the whole machine takes no work."""
        return self.sharing.closed(self.paused, now_us)

    def against(self, requester: PeerId, device: str, now_us: int) -> Obstacle | None:
        """Why this requester gets no more work done on this device."""
        found = self.sharing.refuses(requester) or self.closed(now_us)
        if found is None and self.obstacles.get(device):
            found = self.obstacles[device][0]
        return found or (DISK_FULL if self.disk_full else None)

    def is_lent(self, device: str, now_us: int) -> bool:
        """Whether somebody may get it."""
        return not self.obstacles.get(device) and self.closed(now_us) is None

    def reasons(self, devices: Iterable[str], now_us: int) -> list[dict[str, str | None]]:
        """Everything that keeps devices from being lent, in words for their owner."""
        closed = self.closed(now_us)
        found: list[tuple[str | None, Obstacle]] = [] if closed is None else [(None, closed)]
        if self.disk_full:
            found.append((None, DISK_FULL))
        found += [(device, obstacle) for device in devices for obstacle in self.obstacles.get(device, ())]
        return [
            {"device": device, "code": obstacle.code, "sentence": obstacle.for_owner}
            for device, obstacle in found
        ]
