"""What the agent's log does under a flood: each kind of line has its pace, and nothing in it draws on a terminal.

Most lines of the log are caused by other peers, and whoever floods an agent would otherwise fill its disk with the
complaints about it. A kind is a logger, a level and the sentence before its values are put in: a token bucket of
`BURST` lines that fills again at one line every `REFILL_SECONDS`. What is left out is counted and told with the next
line of that kind that is shown. Lines above warning are always shown: they are about this machine, and rare.
"""

import logging
from typing import TextIO

# A person who reads the log sees the first of a flood, then one line of it every few seconds.
BURST = 20
REFILL_SECONDS = 5.0
# Sentences are constants of the program's text, so their number is bounded anyhow; a library's may not be.
MAX_KINDS = 1000
MAX_LINE = 4000
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

_Kind = tuple[str, int, str]


class LogPace(logging.Filter):
    """Lets `BURST` lines of a kind pass, then one every `REFILL_SECONDS`; counts the rest. Time is the records'."""

    def __init__(self) -> None:
        super().__init__()
        self._buckets: dict[_Kind, _Bucket] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is shown; a line shown after others were left out says how many."""
        if record.levelno > logging.WARNING:
            return True
        kind = (record.name, record.levelno, str(record.msg))
        bucket = self._buckets.get(kind)
        if bucket is None:
            if len(self._buckets) >= MAX_KINDS:
                # The one that has been silent for longest; what it left out is lost from the count, not from the log.
                self._buckets.pop(min(self._buckets, key=lambda key: self._buckets[key].seen_at))
            bucket = self._buckets[kind] = _Bucket(record.created)
        if not bucket.take(record.created):
            return False
        if bucket.left_out:
            record.msg = f"{record.getMessage()} ({bucket.left_out} more lines like this one were left out)"
            record.args = None
            bucket.left_out = 0
        return True


class _Bucket:
    """The tokens of one kind of line."""

    def __init__(self, now: float) -> None:
        self.tokens = float(BURST)
        self.seen_at = now
        self.left_out = 0

    def take(self, now: float) -> bool:
        """One token at `now`, seconds; a clock that was set back fills nothing."""
        self.tokens = min(float(BURST), self.tokens + max(0.0, now - self.seen_at) / REFILL_SECONDS)
        self.seen_at = now
        if self.tokens < 1.0:
            self.left_out += 1
            return False
        self.tokens -= 1.0
        return True


class PlainFormatter(logging.Formatter):
    """One entry as text that a terminal shows as it is: no control characters but line ends, no line without an end.

    Sentences quote what peers sent. An escape sequence in one would move the cursor of whoever reads the log.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The entry; each of its lines at most `MAX_LINE` characters, control characters as their escapes."""
        lines = super().format(record).split("\n")
        return "\n".join(_plain(line) for line in lines)


def _plain(line: str) -> str:
    if len(line) > MAX_LINE:
        line = f"{line[:MAX_LINE]}... ({len(line) - MAX_LINE} characters more)"
    if line.isprintable():
        return line
    return "".join(each if each.isprintable() or each == "\t" else ascii(each)[1:-1] for each in line)


def set_up_logging(stream: TextIO, verbose: bool = False) -> None:
    """Log to `stream`: coppermesh's lines from INFO (DEBUG when `verbose`), those of libraries from WARNING."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(PlainFormatter(FORMAT))
    handler.addFilter(LogPace())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("coppermesh").setLevel(logging.DEBUG if verbose else logging.INFO)
