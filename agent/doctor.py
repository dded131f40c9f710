"""`coppermesh doctor sandbox`: each layer between a stranger's job and this machine, seen to hold or not, and why.

Needs no agent. What it says is what an agent here would announce; where there are GPUs it also tries whether they clear
their memory between jobs, and keeps the answer in the home, where the agent finds it.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from coppermesh.agent import layout
from coppermesh.agent.isolation import witness, witness_scrub
from coppermesh.exec.device import probe_gpus
from coppermesh.exec.sandbox.layers import FLOOR, LAYERS, SCRUB
from coppermesh.exec.sandbox.witness import Witnessed

EXIT_BELOW_FLOOR = 1


def run_doctor(home: Path, *, as_json: bool) -> int:
    """Print the layers. 0 where strangers' kernels are safe to take here, else 1."""
    seen = look(home)
    held = {entry.layer for entry in seen if entry.held}
    if as_json:
        print(json.dumps(describe(seen)))
    else:
        print("\n".join(layout.fold(tell(seen))))
    return 0 if held >= FLOOR else EXIT_BELOW_FLOOR


def look(home: Path) -> list[Witnessed]:
    """Each layer, tried now, and whether GPUs clear their memory."""
    return witness() + (
        witness_scrub(home, probe_gpus()) or [Witnessed(SCRUB, False, "", "there is no GPU here")]
    )


def describe(seen: Sequence[Witnessed]) -> dict[str, object]:
    """The same as data: `layers` in order, each with `witnessed`, and `strangers_kernels`."""
    stops = {layer.name: layer.stops for layer in LAYERS}
    held = {entry.layer for entry in seen if entry.held}
    return {
        "layers": [
            {
                "layer": entry.layer,
                "witnessed": entry.held,
                "keeps_from": stops[entry.layer],
                "act": entry.act,
                "why_not": entry.why,
                "remedy": entry.remedy,
                "lacks": entry.lacks,
            }
            for entry in seen
        ],
        "strangers_kernels": held >= FLOOR,
    }


def tell(seen: Sequence[Witnessed]) -> list[str]:
    """Lines for people."""
    if not seen:
        return ["no layer could be tried: the helper process that tries them does not start"]
    stops = {layer.name: layer.stops for layer in LAYERS}
    width = max(len(entry.layer) for entry in seen)
    lines = []
    for entry in seen:
        mark = "witnessed" if entry.held else "missing  "
        lines.append(f"{mark}  {entry.layer:<{width}}  keeps a job from {stops[entry.layer]}")
        if not entry.held:
            lines.append(f"{'':>{width + 13}}why: {entry.why}")
        if entry.lacks:
            lines.append(f"{'':>{width + 13}}but this kernel's does not deny: {entry.lacks}")
        if entry.remedy:
            lines.append(f"{'':>{width + 13}}to add it: {entry.remedy}")
    missing = sorted(FLOOR - {entry.layer for entry in seen if entry.held})
    if missing:
        lines.append(
            f"Without {' and '.join(missing)} strangers' kernels are not taken here, only array programs."
        )
    else:
        lines.append("Strangers' kernels are taken here: what counts for that was seen to hold.")
    return lines
