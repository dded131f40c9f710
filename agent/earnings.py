"""What lending has brought after its costs: income of receipts, electricity and wear, net, by any grouping (pure).

A receipt that the requester accepted is income; one without an answer yet is pending, a disputed one is neither. Its
electricity is the energy it names where a meter measured it, else its time at the power that its owner or the model
gives, and is charged the tariff of the hour in which it ended. Wear is charged by time. A sum says how much of its
electricity was measured, so that nobody takes a model for a meter. Amounts of different units are never added.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from coppermesh.agent.costs import Costs, modelled_mw
from coppermesh.agent.tariff_history import Period, costs_at

EXACT = 3_600_000_000
"""Microseconds in an hour, and millijoules in a kilowatt-hour."""
MEASURED = frozenset({"nvml", "nvml-power", "rapl"})
"""Meters whose energy counts as measured; `simulated` does not."""
GROUPINGS = ("job", "day", "device", "peer", "receipt")


@dataclass(frozen=True, slots=True)
class Earned:
    """One receipt of ours as provider, with what is needed to account for it. Times in microseconds."""

    id: str
    job: str
    peer: str
    """Who paid, as text."""
    device: str
    device_kind: str
    started_us: int
    ended_us: int
    energy_mj: int | None
    meter: str
    unit: str
    amount: int
    verdict: str
    """`accepted`, `open` or `disputed`."""


@dataclass(slots=True)
class Line:
    """The sum of a group: money in millionths of `unit`, energy in millijoules, time in microseconds."""

    group: str
    unit: str
    tasks: int = 0
    income: int = 0
    pending: int = 0
    disputed: int = 0
    work_us: int = 0
    energy_mj: int = 0
    measured_mj: int = 0
    electricity_exact: int = 0
    wear_exact: int = 0
    """Both in 1 / 3.6e9 of a millionth: a task of milliseconds costs less than money can say, a thousand do not."""
    unknown_tariff: int = 0
    """Receipts whose electricity costs nothing here because no tariff in their unit was set."""

    @property
    def electricity(self) -> int:
        """To the nearest millionth."""
        return _nearest(self.electricity_exact)

    @property
    def wear(self) -> int:
        """To the nearest millionth."""
        return _nearest(self.wear_exact)

    @property
    def net(self) -> int:
        """What is left: income less electricity and wear. What is pending is not in it."""
        return self.income - self.electricity - self.wear

    @property
    def loses(self) -> bool:
        """Costs are above everything that was or may still be paid."""
        return self.electricity + self.wear > self.income + self.pending

    def as_dict(self) -> dict[str, object]:
        """The line by the names of its fields, with `net` and `loses`."""
        shown = [name for name in self.__slots__ if not name.endswith("_exact")]
        return {name: getattr(self, name) for name in (*shown, "electricity", "wear", "net", "loses")}


@dataclass(frozen=True, slots=True)
class Accounts:
    """How receipts are charged."""

    history: Sequence[Period]
    today: Period
    cores: Mapping[str, int | None] = field(default_factory=dict)
    """Cores of a CPU by device, for the model."""

    def charge(self, receipt: Earned) -> tuple[int, bool, int, int, bool]:
        """(millijoules, whether measured, electricity, wear, whether a tariff is known) of one receipt; costs exact."""
        period = costs_at(self.history, receipt.ended_us, self.today)
        work_us = max(0, receipt.ended_us - receipt.started_us)
        measured = receipt.energy_mj is not None and receipt.meter in MEASURED
        energy_mj = receipt.energy_mj if measured and receipt.energy_mj is not None else 0
        if not measured:
            energy_mj = self._modelled_mj(period.costs, receipt, work_us)
        tariff = period.costs.tariff_at(receipt.ended_us) if period.unit == receipt.unit else None
        wear = period.costs.wear * work_us if period.unit == receipt.unit else 0
        electricity = energy_mj * tariff if tariff is not None else 0
        return energy_mj, measured, electricity, wear, tariff is not None

    def _modelled_mj(self, costs: Costs, receipt: Earned, work_us: int) -> int:
        if costs.loaded_watts is not None:
            idle = 0.0 if costs.count_idle else costs.idle_watts or 0.0
            milliwatts = round(1000 * max(0.0, costs.loaded_watts - idle))
        else:
            milliwatts = modelled_mw(receipt.device_kind, self.cores.get(receipt.device))
        return milliwatts * work_us // 1_000_000


def summed(
    receipts: Iterable[Earned], accounts: Accounts, by: str, day_of: Callable[[int], str]
) -> tuple[list[Line], list[Line]]:
    """(a line for each group and unit in the order of their last receipts, a total for each unit).

    `by`: one of `GROUPINGS`; `day_of` names the local day of a time in microseconds.
    """
    lines: dict[tuple[str, str], Line] = {}
    totals: dict[str, Line] = {}
    for receipt in receipts:
        group = _group(receipt, by, day_of)
        line = lines.setdefault((group, receipt.unit), Line(group, receipt.unit))
        total = totals.setdefault(receipt.unit, Line("all", receipt.unit))
        charged = accounts.charge(receipt)
        for each in (line, total):
            _add(each, receipt, *charged)
    return list(lines.values()), list(totals.values())


def local_day(at_us: int) -> str:
    """The day on this machine's wall: `2026-11-30`."""
    return datetime.fromtimestamp(at_us // 1_000_000).astimezone().strftime("%Y-%m-%d")


def _nearest(exact: int) -> int:
    return (2 * exact + EXACT) // (2 * EXACT)


def _group(receipt: Earned, by: str, day_of: Callable[[int], str]) -> str:
    if by == "day":
        return day_of(receipt.ended_us)
    if by == "receipt":
        return receipt.id
    return {"job": receipt.job, "device": receipt.device, "peer": receipt.peer}[by]


def _add(
    line: Line, receipt: Earned, energy_mj: int, measured: bool, electricity: int, wear: int, known: bool
) -> None:
    line.tasks += 1
    if receipt.verdict == "accepted":
        line.income += receipt.amount
    elif receipt.verdict == "open":
        line.pending += receipt.amount
    else:
        line.disputed += receipt.amount
    line.work_us += max(0, receipt.ended_us - receipt.started_us)
    line.energy_mj += energy_mj
    line.measured_mj += energy_mj if measured else 0
    line.electricity_exact += electricity
    line.wear_exact += wear
    line.unknown_tariff += 0 if known else 1
