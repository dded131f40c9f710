"""What a subscriber says of a message that gossip brought it. Pure."""

from enum import Enum


class Outcome(Enum):
    """Delivered and passed on or not, and what it says of the neighbour that handed it to us."""

    FORWARD = "forward"
    DROP = "drop"
    """Not for us, and nobody's fault."""
    IGNORE = "ignore"
    """Of no use here; honest neighbours hand on such messages too, when messages cross."""
    BLAME = "blame"
    """No honest agent makes or forwards it."""
