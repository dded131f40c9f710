"""Why nobody took an order, counted: "7 of 9 lack 24 GiB, 2 ask more than your maximum" (pure).

Counted are the codes of signed declines, and of announcements that do not fit, the last of each provider.
"""

from collections import Counter
from collections.abc import Mapping

from coppermesh.agent.matching import Requirement
from coppermesh.agent.pricing import format_rate
from coppermesh.exec.budget import format_bytes
from coppermesh.p2p.ids import PeerId

_WORDS = {
    "device-kind": "have another kind of device than {kind}",
    "model": "have another model than {model}",
    "features": "lack {features}",
    "memory": "lack {memory}",
    "isolation": "have not witnessed {isolation}",
    "not-contained": "have too little isolation for their owner",
    "rate": "ask more than your maximum{rate}",
    "below-cost": "would lose money at your maximum{rate}",
    "unit": "do not take {unit}",
    "budget": "would cost more than your budget for one task",
    "speed": "are slower than {speed}",
    "measuring": "are still measuring their speed",
    "quota": "say that your quota is used up",
    "busy": "are busy",
    "paused": "are paused",
    "out-of-hours": "are closed at this hour",
    "denied": "take nothing from you",
    "not-listed": "take work only from peers on a list",
    "reputation": "want a better history of you",
    "unpaid": "wait for your countersignatures",
    "not-allowed": "take kernels only from peers that they know",
    "clock-skew": "have another time on their clock",
    "disk-full": "have no room on disk",
    "silent": "did not answer",
    "unconnected": "are announced and not connected",
    "left-out": "are left out for now (failed a moment ago, or enough given)",
    "no-device": "offer no device",
    "protocol": "broke the protocol",
}


_SINGULAR = {"are": "is", "have": "has", "do": "does"}
_UNCHANGED = {"would", "did", "broke"}


def histogram(refusals: Mapping[PeerId, str], need: Requirement | None = None, bids: int = 0) -> str:
    """One clause for each code, the most frequent first; empty where nobody refused.

    `refusals`: code by provider. `bids`: so many others did bid, which is told first.
    """
    counts = Counter(refusals.values())
    if not counts:
        return ""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    clauses = [(number, _agreeing(_words(code, need), number)) for code, number in ordered]
    if bids:
        clauses.insert(0, (bids, "bid"))
    total = sum(number for number, _ in clauses)
    (first, what), *rest = clauses
    return ", ".join([f"{first} of {total} {what}", *(f"{number} {words}" for number, words in rest)])


def _agreeing(words: str, number: int) -> str:
    """The words for so many: "are busy", of one "is busy"."""
    verb, _, rest = words.partition(" ")
    if number > 1 or verb in _UNCHANGED:
        return words
    return f"{_SINGULAR.get(verb, verb + 's')} {rest}"


def _words(code: str, need: Requirement | None) -> str:
    text = _WORDS.get(code, f"say {code}")
    if need is None:
        return text.format_map(_Plain())
    facts = {
        "kind": need.device_kind,
        "model": need.model,
        "features": ", ".join(sorted(need.features)),
        "memory": format_bytes(need.memory_bytes),
        "unit": need.unit,
        "isolation": ", ".join(need.isolation),
        "rate": f" of {format_rate(need.max_rate, need.unit)}",
        "speed": f"{need.min_speed} Mop/s",
    }
    return text.format_map(facts)


class _Plain(dict[str, str]):
    """Words where the order's own numbers are not at hand."""

    def __missing__(self, name: str) -> str:
        return "" if name == "rate" else f"the {name} you asked for"
