"""What a device draws with and without work, learned from its own meter while it is lent (pure).

Samples come about once a second, each with whether a task of ours ran meanwhile. The two medians of the last minutes
are the device's idle and loaded power: a median is not moved by the second in which a task began, or by a short burst
of the owner's own. Samples taken while another program was on the device count for neither.
"""

from collections import deque
from statistics import median

from coppermesh.agent.costs import Costs, Power, modelled_mw

KEPT = 300
"""Samples of each kind that are kept: five minutes of either."""
ENOUGH = 5
"""So many make a measurement."""


class PowerLog:
    """The power of one device. Memory is bounded by twice `KEPT` numbers."""

    def __init__(self, kind: str, cores: int | None) -> None:
        """`kind` and `cores`: for the model, until enough was measured."""
        self._model_mw = modelled_mw(kind, cores)
        self._idle: deque[int] = deque(maxlen=KEPT)
        self._loaded: deque[int] = deque(maxlen=KEPT)

    def add(self, milliwatts: int, *, working: bool, disturbed: bool = False) -> None:
        """One sample. `working`: a task of ours ran; `disturbed`: somebody else's program did."""
        if not disturbed and milliwatts >= 0:
            (self._loaded if working else self._idle).append(milliwatts)

    def power(self, costs: Costs) -> Power:
        """What it draws: what the owner says, else what was measured, else the model."""
        idle = int(median(self._idle)) if len(self._idle) >= ENOUGH else None
        loaded = int(median(self._loaded)) if len(self._loaded) >= ENOUGH else None
        if costs.loaded_watts is not None:
            said = costs.idle_watts if costs.idle_watts is not None else (idle or 0) / 1000
            return Power(round(said * 1000), round(costs.loaded_watts * 1000), "owner")
        if costs.idle_watts is not None:
            idle = round(costs.idle_watts * 1000)
        if loaded is not None:
            return Power(min(idle or 0, loaded), loaded, "meter" if idle is not None else "load-meter")
        if idle is not None:
            return Power(idle, idle + self._model_mw, "idle-meter")
        return Power(0, self._model_mw, "model")
