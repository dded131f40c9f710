"""How a quote reads."""

from collections.abc import Sequence
from typing import Any

from coppermesh.agent.pricing import format_money
from coppermesh.agent.screens import counted


def quote_lines(facts: dict[str, Any]) -> Sequence[str]:
    """A quote for a person."""
    copies = f", each at {facts['redundancy']} providers" if facts["redundancy"] > 1 else ""
    lines = [f"dry run: {counted(facts['tasks'], 'task')}{copies}; no lease was made, nothing was run"]
    for place in facts["places"]:
        lines.append(f"{place['place']:3}. {place['peer'][-8:]}  {place['device']}: {place['reason']}")
        most = format_money(place["most"], place["unit"])
        if place["expected"] is None:
            lines.append(f"     expected cost not known ({place['basis']}), at most {most}")
        else:
            expected = format_money(place["expected"], place["unit"])
            lines.append(f"     expected cost {expected} ({place['basis']}), at most {most}")
    if not facts["places"] and not facts["own_leases"]:
        lines.append(f"nobody would take it; {facts['heard']} heard")
    elif not facts["places"]:
        lines.append(f"nobody else would take it now; {facts['heard']} heard")
    lines += [
        f"{lease['peer'][-8:]} is busy with a lease of your own: {_of_own(lease)}"
        for lease in facts["own_leases"]
    ]
    if facts["histogram"]:
        lines.append(f"not in the ranking: {facts['histogram']}")
        lines += [f"  {refusal['peer'][-8:]}: {refusal['sentence']}" for refusal in facts["refusals"]]
    return lines


def _of_own(lease: dict[str, Any]) -> str:
    """When that provider is free again."""
    if lease["tasks"]:
        under_way = counted(lease["tasks"], "task")
        return f"{under_way} under way; it ends in {lease['left_s']} s at the latest, if it is not extended"
    return "nothing runs under it; a job would be given it, or take its place, and it ends within seconds"
