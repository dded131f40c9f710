"""What a submitter may ask for: the options of a job, by keyword or by the command line's environment."""

import json
import os
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

OPTIONS = "COPPERMESH_OPTIONS"
"""Environment variable: options of jobs as JSON, where the script names none."""


@dataclass(frozen=True)
class JobOptions:
    """What a submitter may ask for, as `Mesh.submit` explains. Times are seconds; money is 10^-6 usd."""

    device: str = "any"
    model: str = ""
    memory: int = 0
    features: tuple[str, ...] = ()
    isolation: tuple[str, ...] = ()
    min_speed: int = 0
    max_rate: int = 100_000_000
    budget: int = 10_000_000
    wall_limit_s: float = 60.0
    deadline_s: float = 300.0
    providers: int = 1
    redundancy: int = 1
    fresh: bool = False
    trace: bool = False


def chosen_options(options: dict[str, Any]) -> JobOptions:
    """The options. Raises TypeError naming one that there is not."""
    known = [field.name for field in fields(JobOptions)]
    for name in options:
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise TypeError(f"there is no option {name!r}; {hint}the options are {', '.join(known)}")
    return JobOptions(**options)


def options_from_environment() -> dict[str, Any]:
    """What the options of `coppermesh submit` asked for."""
    try:
        options = json.loads(os.environ.get(OPTIONS) or "{}")
        return {name: tuple(given) if isinstance(given, list) else given for name, given in options.items()}
    except (ValueError, AttributeError):
        raise ValueError(f"{OPTIONS} is not a JSON object of options: unset it") from None
