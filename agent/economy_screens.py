"""What `coppermesh price` and `earnings` show a person: lines from the facts that `--json` prints. Pure."""

from coppermesh.agent.screens import Facts, counted, duration, money, number, printable, table

_SOURCES = {
    "owner": "by config.toml",
    "meter": "measured here",
    "load-meter": "load measured here, idle unknown and taken as 0",
    "idle-meter": "idle measured here, what load adds is a model's",
    "model": "a model's: no meter here; set loaded_watts and idle_watts below [costs] where you have measured",
}


def price(facts: Facts) -> list[str]:
    """`coppermesh price`: the sum for each device."""
    unit = facts["unit"]
    lines: list[str] = []
    for device in facts["devices"]:
        if lines:
            lines.append("")
        lines += _device(device, unit, facts["tariff"])
    if facts["devices"] and facts["tariff_changes"] is not None:
        then = "no tariff" if facts["tariff_then"] is None else f"{money(facts['tariff_then'], unit)} per kWh"
        lines += ["", f"the tariff changes at {facts['tariff_changes']} to {then}"]
    return lines


def _device(device: Facts, unit: str, tariff: int | None) -> list[str]:
    per_kwh = "no tariff set" if tariff is None else f"{money(tariff, unit)} per kWh"
    rows = [
        ("power", f"{_watts(device['idle_mw'])} idle, {_watts(device['loaded_mw'])} under load"),
        ("", _SOURCES[device["power_source"]]),
        (
            "electricity",
            f"{money(device['electricity'], unit)}  ({_watts(device['counted_mw'])} at {per_kwh})",
        ),
        ("wear", money(device["wear"], unit)),
        ("margin", money(device["margin"], unit)),
        ("floor", f"{money(device['floor'], unit)}  an hour; nothing is lent for less"),
        ("your rate", money(device["rate"], unit)),
        ("asked", money(device["asked"], unit)),
    ]
    width = max(len(name) for name, _ in rows)
    head = f"{device['device']}  {printable(device['name'])}"
    return [head, *(f"  {name.ljust(width)}  {text}" for name, text in rows), f"  {device['sentence']}"]


def _watts(milliwatts: int) -> str:
    return f"{milliwatts / 1000:.1f} W"


def earnings(facts: Facts) -> list[str]:
    """`coppermesh earnings`: a line for each group, the totals, and where money is lost."""
    if not facts["lines"]:
        return []
    headings = (
        facts["by"].upper(),
        "TASKS",
        "TIME",
        "INCOME",
        "PENDING",
        "ELECTRICITY",
        "WEAR",
        "NET",
        "UNIT",
        "ENERGY",
    )
    rows = [_row(line, facts["by"]) for line in (*facts["lines"], *facts["totals"])]
    lines = table(headings, rows, right=[*range(1, 8), 9])
    lines += _notes(facts)
    return lines


def _row(line: Facts, by: str) -> tuple[str, ...]:
    group = line["group"][:16] if by in ("job", "receipt") else line["group"]
    group = group[-8:] if by == "peer" else group
    return (
        group,
        str(line["tasks"]),
        duration(line["work_us"] / 1e6),
        *(number(line[name]) for name in ("income", "pending", "electricity", "wear", "net")),
        line["unit"],
        _energy(line),
    )


def _energy(line: Facts) -> str:
    """Watt-hours; `~` where some of it is a model's."""
    mark = "" if line["measured_mj"] == line["energy_mj"] else "~"
    return f"{mark}{line['energy_mj'] / 3_600_000:.3f} Wh"


def _notes(facts: Facts) -> list[str]:
    notes = []
    for line in facts["lines"]:
        if line["loses"]:
            loss = money(line["electricity"] + line["wear"] - line["income"] - line["pending"], line["unit"])
            notes.append(
                f"you are losing money on {line['group']}: {loss} (`coppermesh price` shows the floor)"
            )
    for total in facts["totals"]:
        unit = total["unit"]
        if total["disputed"]:
            notes.append(f"{money(total['disputed'], unit)} were disputed and are not owed to you")
        if total["unknown_tariff"]:
            receipts = counted(total["unknown_tariff"], "receipt")
            notes.append(f"no tariff in {unit} was set for {receipts}: their electricity counts as free")
        if total["measured_mj"] != total["energy_mj"]:
            notes.append("~: some energy is a model's, not a meter's")
    return ["", *dict.fromkeys(notes)] if notes else []
