"""Finding and keeping peers: whom to dial, when again, and whom to remember."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from coppermesh.p2p.ids import PeerId
from coppermesh.p2p.transport import Transport


class Rng(Protocol):
    """What `random.Random` gives."""

    def random(self) -> float:
        """Uniform in [0, 1)."""


class DialPlan:
    """Which addresses are due. Pure; `now` in seconds on a clock that never goes back."""

    def __init__(self, me: PeerId, rng: Rng, *, target: int = 32) -> None: ...
    def add(self, address: str, *, permanent: bool) -> None: ...
    def learn(self, peer: PeerId, addresses: Sequence[str], own: Sequence[str], now: float) -> None: ...
    def observe(self, connected: Sequence[PeerId], now: float) -> None: ...
    def due(self, now: float) -> list[str]: ...
    def succeeded(self, address: str, now: float) -> None: ...
    def failed(self, address: str, now: float) -> None: ...
    def lost(self, peer: PeerId, now: float) -> None: ...


async def run_discovery(
    transport: Transport, plan: DialPlan, *, bootstrap: Sequence[str], remembered: Path | None = None
) -> None:
    """Dial and redial until cancelled. `remembered`: the file of peers that answered once, read and kept up to date."""
