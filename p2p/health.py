"""Is the peer still there? Decided from when it was last heard, with no clock of its own.

A connection to a stopped process or an unplugged machine looks open for many minutes. So a channel that heard nothing
for `PING_SECONDS` sends a ping, another after each further `PING_SECONDS`, and gives up `PONG_SECONDS` after the third
unanswered one: 13.5 seconds after the last sign of life. Anything received counts as a sign of life.

All times are seconds on any clock that never goes back.
"""

from enum import Enum

PING_SECONDS = 3.5
PONG_SECONDS = 3.0
MAX_MISSED = 3


class Step(Enum):
    """What to do now."""

    WAIT = "wait"
    PING = "ping"
    DEAD = "dead"


class Liveness:
    """Counts pings that nothing answered.

    Deadlines run from when the last ping was really sent, not from when it was due: a process that was itself
    stopped for a minute asks again before it calls everybody else dead.
    """

    def __init__(self, now: float) -> None:
        self._since = now
        """The last sign of life or the last ping, whichever came later."""
        self._unanswered = 0
        self._dead = False

    @property
    def unanswered(self) -> int:
        """Pings sent since the last sign of life."""
        return self._unanswered

    def heard(self, now: float) -> None:
        """Something came from the peer. Too late once it was declared dead: that is final."""
        if not self._dead:
            self._since = now
            self._unanswered = 0

    def poll(self, now: float) -> Step:
        """The step that is due at `now`. PING is returned once per ping: the caller sends it."""
        if self._dead:
            return Step.DEAD
        if now < self.next_poll():
            return Step.WAIT
        if self._unanswered == MAX_MISSED:
            self._dead = True
            return Step.DEAD
        self._unanswered += 1
        self._since = now
        return Step.PING

    def next_poll(self) -> float:
        """When `poll` will next have something to do, unless something is heard before."""
        return self._since + (PONG_SECONDS if self._unanswered == MAX_MISSED else PING_SECONDS)
