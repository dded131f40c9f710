"""What an owner allows others to do with his devices, and when: the table `[sharing]` of `config.toml` (pure).

`closed` answers for the whole machine, `refuses` for one requester; what the devices' own state says (somebody uses
them, they are hot) is `device_gate`'s. Each answer is a code of the market's declines and a sentence, which goes to
strangers: it tells of no program, user or file of this machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import tzinfo
from zoneinfo import ZoneInfo

from coppermesh.agent.hours import Window, is_open, next_change_us, wall_clock
from coppermesh.p2p.ids import PeerId

DESKTOP = (
    "Xorg", "Xwayland", "gnome-shell", "kwin_x11", "kwin_wayland", "plasmashell", "sway", "Hyprland",
    "cosmic-comp", "xfwm4", "cinnamon", "mutter", "weston",
)  # fmt: skip
"""Programs that are on a desktop's card all the time and need little of it."""


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why there is no bid. `sentence` is for strangers, `detail` (which may be more exact) for the owner."""

    code: str
    sentence: str
    detail: str = ""

    @property
    def for_owner(self) -> str:
        """What the owner is told."""
        return self.detail or self.sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """The owner's wishes. The defaults lend the devices whenever nobody else uses them."""

    paused: bool = False
    allow: tuple[PeerId, ...] = ()
    """Not empty: only these may send work."""
    deny: tuple[PeerId, ...] = ()
    """These may not, whatever `allow` says."""
    min_reputation: int = 0
    """Of 1000: requesters whose history here is worth less get nothing; a stranger's is 500."""
    need_isolation: tuple[str, ...] = ()
    """Layers of the sandbox that must have been witnessed here before anybody but `trust` gets anything."""
    hours: tuple[Window, ...] = ()
    """Empty: always."""
    time_zone: str = ""
    """Name of the zone that `hours` are in; empty: this machine's."""
    busy: str = "no-bids"
    """`no-bids` while another program is on the card, or `ignore` it."""
    busy_utilisation: float = 0.2
    """Use of a card above which it is busy where no program is seen, 0 to 1; only looked at while no lease is on it."""
    busy_graphics_bytes: int = 1 << 30
    """Device memory from which on a program that draws, such as a game, counts as well."""
    busy_ignore: tuple[str, ...] = DESKTOP
    """Names of programs that do not count."""
    on_busy: str = "stop"
    """What becomes of leases when the owner's program appears: `stop` them, or let accepted tasks `finish`."""
    max_temperature: int | None = None
    """Degrees Celsius."""
    max_power: int | None = None
    """Watts drawn by the device."""
    max_load: float | None = None
    """On a CPU: the share of its cores that other programs use, 0 to 1."""
    on_limit: str = "finish"
    """As `on_busy`, for temperature, power and load."""
    strict: bool = False
    """What is asked for and cannot be read stops bids too."""
    memory_share: float = 1.0
    """The part of a device's memory that a task may use."""
    keep_free_bytes: int = 0
    """Memory of a device (a CPU's: of the machine) that is left to the owner's own programs."""

    @property
    def zone(self) -> tzinfo | None:
        """The zone of `hours`; None: this machine's."""
        return ZoneInfo(self.time_zone) if self.time_zone else None

    def closed(self, paused_by_command: bool, now_us: int) -> Obstacle | None:
        """Why the whole machine takes no work now."""
        if self.paused or paused_by_command:
            detail = (
                "paused in config.toml" if self.paused else "paused by its owner; `coppermesh resume` ends it"
            )
            sentence = (
                "the owner has paused this provider; it takes work again after `coppermesh resume` there"
            )
            return Obstacle("paused", sentence, detail)
        if is_open(self.hours, now_us, self.zone):
            return None
        change_us = next_change_us(self.hours, now_us, self.zone)
        until = "" if change_us is None else f" until {wall_clock(change_us, now_us, self.zone)}"
        sentence = f"this provider's owner lends it at certain hours only; it is closed{until} by its clock"
        return Obstacle("out-of-hours", sentence, f"out of hours{until}")

    def refuses(self, peer: PeerId) -> Obstacle | None:
        """Why this requester gets nothing here at any time."""
        if peer in self.deny:
            return Obstacle("denied", "the owner of this provider takes no work from this requester")
        if self.allow and peer not in self.allow:
            return Obstacle("not-listed", "the owner of this provider takes work only from peers on a list")
        return None


def in_words(obstacles: Sequence[Obstacle]) -> str:
    """All of them, for a log."""
    return "; ".join(obstacle.for_owner for obstacle in obstacles) or "none"
