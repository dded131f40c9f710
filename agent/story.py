"""The story of a job: one line per thing that happened, and how `coppermesh explain` tells them (pure).

Lines are for people. Nothing is decided from them, nothing in them is evidence (signed records are), and a line may be
lost in a crash. Text in a line may come from a stranger, so it is cut and made printable when the line is made.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from coppermesh.agent.histogram import histogram
from coppermesh.p2p.ids import PeerId, short_peer

MAX_TEXT = 400
MAX_CAUSE = 64

KINDS = {
    "submitted": "submitted",
    "order": "asked",
    "bid": "bid",
    "decline": "declined",
    "silent": "no answer",
    "award": "chosen",
    "lease": "lease",
    "extended": "lease extended",
    "unextended": "not extended",
    "paused": "lease paused",
    "resumed": "lease goes on",
    "lease-ended": "lease ended",
    "task": "task sent",
    "need": "needs blobs",
    "retry": "task moved",
    "result": "result",
    "failed": "task failed",
    "accepted": "receipt accepted",
    "disputed": "receipt disputed",
    "evidence": "caught",
    "disagree": "results differ",
    "challenge": "challenge",
    "trace": "node digests",
    "progress": "progress",
    "done": "job done",
    "gave-up": "job failed",
    "note": "note",
}
"""Kind of a line and the words for it. An unknown kind is told by its own name."""


def printable(text: str, limit: int = MAX_TEXT) -> str:
    """`text` on one line, with everything that a terminal would act on escaped, cut to `limit` characters."""
    if len(text) <= limit and text.isprintable():
        return text
    flat = "".join(
        character if character.isprintable() else _escape(character) for character in text[: limit + 1]
    )
    return flat if len(flat) <= limit else flat[: limit - 3] + "..."


def _escape(character: str) -> str:
    return " " if character in "\n\t" else character.encode("unicode_escape").decode("ascii")


@dataclass(frozen=True, slots=True)
class StoryLine:
    """One thing that happened to a job."""

    job: bytes
    """The job's 16 random bytes."""
    at_us: int
    """When, in microseconds since the epoch by this machine's clock."""
    cause: str
    """What it follows from, for example `order 91c0ffee` or `task 3`; empty where nothing led to it."""
    kind: str
    """A key of `KINDS`."""
    peer: PeerId | None
    """Which other agent took part."""
    task: int | None
    """Index of the task in the job."""
    text: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", printable(self.text))
        object.__setattr__(self, "cause", printable(self.cause, MAX_CAUSE))


def tell(lines: Sequence[StoryLine]) -> list[str]:
    """The story as text, oldest line first, with a summary of each provider at the end.

    Times count from the first line. Lines of one microsecond keep the order in which they were written.
    """
    if not lines:
        return []
    ordered = sorted(lines, key=lambda line: line.at_us)
    start = ordered[0].at_us
    told = [_tell_line(line, start) for line in ordered]
    summary = _summaries(ordered)
    refusals = refusal_codes(ordered)
    paid = {line.peer for line in ordered if line.kind == "accepted"}
    refusals = {peer: code for peer, code in refusals.items() if peer not in paid}  # busy with this very job
    bidders = {line.peer for line in ordered if line.kind in ("bid", "lease")} - refusals.keys()
    refused = histogram(refusals, bids=len(bidders))
    return [*told, "", *([f"in short: {refused}"] if refused else []), *summary] if summary else told


def _tell_line(line: StoryLine, start_us: int) -> str:
    who = short_peer(line.peer) if line.peer is not None else "-"
    what = KINDS.get(line.kind, line.kind)
    task = f"task {line.task}: " if line.task is not None else ""
    cause = f" ({line.cause})" if line.cause else ""
    return f"{(line.at_us - start_us) / 1e6:9.3f} s  {who:8}  {what:16}  {task}{line.text}{cause}".rstrip()


_CODE = re.compile(r"(?:not asked: )?([a-z][a-z0-9-]{0,39}): ")


def refusal_codes(lines: Iterable[StoryLine]) -> dict[PeerId, str]:
    """Why each provider that refused last did so, as a code to count by; who bid since is not among them."""
    codes: dict[PeerId, str] = {}
    for line in lines:
        if line.peer is None:
            continue
        if line.kind in ("bid", "lease"):
            codes.pop(line.peer, None)
        elif line.kind in ("decline", "silent", "evidence", "note") and (found := _CODE.match(line.text)):
            codes[line.peer] = found[1]
    return codes


def _summaries(lines: Iterable[StoryLine]) -> list[str]:
    """One line per provider that took part: what it was asked, answered, ran and was paid for or caught at."""
    by_peer: dict[PeerId, Counter[str]] = {}
    reasons: dict[PeerId, str] = {}
    for line in lines:
        if line.peer is None:
            continue
        by_peer.setdefault(line.peer, Counter())[line.kind] += 1
        if line.kind in ("decline", "silent", "evidence", "disputed"):
            reasons[line.peer] = line.text
    return [_summary(peer, kinds, reasons.get(peer)) for peer, kinds in by_peer.items()]


def _summary(peer: PeerId, kinds: Counter[str], reason: str | None) -> str:
    counted = ("task", "result", "accepted", "failed", "retry", "disputed", "trace", "evidence")
    if kinds["decline"]:
        first = "declined"
    elif kinds["bid"]:
        first = "bid"
    else:
        first = "no answer" if kinds["order"] or kinds["silent"] else "took part"
    parts = [first, *(f"{KINDS[kind]} {kinds[kind]}" for kind in counted if kinds[kind])]
    text = f"{short_peer(peer)}: {', '.join(parts)}"
    return f"{text} - {reason}" if reason else text
