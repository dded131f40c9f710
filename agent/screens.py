"""What a person sees: plain text from the same facts that `--json` prints. Pure; returns lines.

Whatever comes from another peer or a job passes through `printable`, so that no stranger's bytes steer a terminal.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from coppermesh.agent import layout

Facts = Mapping[str, Any]
MAX_CELL = 64
"""Characters of a setting's value; `--json` has all of it."""
MAX_NAME = 24
"""Characters of a device's name in a table; `--json` has all of it."""
_TAKES = {"array-programs": "arrays", "cuda-source": "kernels"}


def printable(text: str) -> str:
    """`text` with every control character except newline and tab made visible."""
    return "".join(
        character if character.isprintable() or character in "\n\t" else repr(character)[1:-1]
        for character in text
    )


def table(
    headings: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[int] = ()
) -> list[str]:
    """Columns padded to their widest cell, wide text wrapped to fit the screen; those in `right` are aligned right."""
    cells = [[printable(str(cell)).replace("\n", " ") for cell in row] for row in rows]
    return layout.lay_out(headings, cells, right)


def money(amount: int, unit: str) -> str:
    """An amount of 10^-6 units, exactly: `0.000123 usd`."""
    return f"{amount // 1_000_000}.{amount % 1_000_000:06d} {unit}"


def number(amount: int) -> str:
    """The same for a table with a column for the unit; it may be below zero: `-0.000123`."""
    return f"{'-' if amount < 0 else ''}{money(abs(amount), '')}".rstrip()


def counted(number: int, noun: str) -> str:
    """`1 job`, `2 jobs`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def size(count: int | None) -> str:
    """Bytes for reading: `2.0 GiB`."""
    if count is None:
        return "-"
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def duration(seconds: float) -> str:
    """`42 s`, `7 min`, `3 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def status(facts: Facts) -> list[str]:
    """`coppermesh status`."""
    state = "paused" if facts["paused"] else "running"
    lines = [
        f"agent      {facts['peer']}  ({state}, {duration(facts['uptime_s'])})",
        f"mesh       {facts['mesh']}",
        f"home       {facts['home']}",
    ]
    if facts.get("mesh_doubt"):
        lines.append(f"           {_one_line(facts['mesh_doubt'])}")
    lines += [f"address    {address}" for address in facts["addresses"]]
    lines.append(f"peers      {facts['connected']} connected, {facts['announced']} announced")
    lines += [f"bootstrap  {line}" for line in _bootstrap(facts)]
    serving = counted(facts["leases_serving"], "lease")
    lines.append(f"provider   {serving} served now" if facts["provide"] else "provider   no")
    lines += [f"not lent   {_one_line(reason['sentence'])}" for reason in facts.get("not_lending", ())]
    lines += [f"settings   {line}" for line in _settings_trouble(facts)]
    lines += [f"simulated  {name}: NVML is a stand-in here; not offered" for name in facts["simulated"]]
    jobs_open, held = counted(facts["jobs_open"], "job"), counted(facts["leases_held"], "lease")
    lines.append(f"requester  {jobs_open} open, {held} held")
    return lines


def _settings_trouble(facts: Facts) -> list[str]:
    """What of config.toml does not count, and why."""
    lines = []
    if facts.get("settings_error"):
        lines.append(f"those before stay: {_one_line(facts['settings_error'])}")
    if facts.get("settings_waiting"):
        lines.append(f"changed, and needing a restart: {', '.join(facts['settings_waiting'])}")
    return lines


def _cut(text: str, width: int = MAX_CELL) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def _one_line(text: str) -> str:
    return printable(text).replace("\n", " ")


def config(facts: Facts) -> list[str]:
    """`coppermesh config`: one line a setting, as config.toml would have it, and where it came from."""
    rows = [
        (key, "-" if entry["value"] is None else _cut(json.dumps(entry["value"])), entry["from"])
        for key, entry in facts["settings"].items()
    ]
    told = {"settings_error": facts["error"], "settings_waiting": facts["waiting"]}
    return [*table(("SETTING", "VALUE", "FROM"), rows), *_settings_trouble(told)]


def _bootstrap(facts: Facts) -> list[str]:
    """The configured first peers that are not connected, and why."""
    return [
        _of_address(known["address"], printable(known["error"] or "not connected"))
        for known in facts["bootstrap"]
        if not known["connected"]
    ]


def _of_address(address: str, error: str) -> str:
    """What is wrong with that address, which the error may name itself."""
    return error if address in error else f"{address}: {error}"


def peers(facts: Facts) -> list[str]:
    """`coppermesh peers`."""
    rows = [
        (
            peer["peer"][-8:],
            "connected" if peer["connected"] else "away",
            "-" if peer["since_s"] is None else duration(peer["since_s"]),
            peer["found"],
            peer["path"] or "-",
            "-" if peer["latency_ms"] is None else f"{peer['latency_ms']:.1f} ms",
            peer["trust"] or "-",
            (", ".join(device["name"] for device in peer["devices"]) or "-")
            + (" (paused)" if peer["paused"] else ""),
            peer["address"] or peer["reached_at"] or "-",
        )
        for peer in facts["peers"]
    ]
    headings = ("PEER", "STATE", "SINCE", "FOUND", "PATH", "LATENCY", "TRUST", "DEVICES", "ADDRESS")
    lines = table(headings, rows, right=(5,)) if rows else []
    return lines + [f"bootstrap {line}" for line in _bootstrap(facts)]


def devices(facts: Facts) -> list[str]:
    """`coppermesh devices`. No connection to a device's agent: `away`."""
    if not facts["devices"]:
        return []
    rows = [
        (
            device["peer"][-8:] + (" (this)" if device["own"] else ""),
            device["device"],
            _cut(device["name"], MAX_NAME),
            size(device["memory_bytes"]),
            _rate(device["rate"], device["unit"]),
            _takes(device["features"]),
            _load(device),
        )
        for device in facts["devices"]
    ]
    return table(("PEER", "DEVICE", "NAME", "MEMORY", "PRICE", "TAKES", "LOAD"), rows)


def _rate(rate: int, unit: str) -> str:
    """Exact, without zeros that say nothing: `0.03 usd/h`."""
    amount, _, of = money(rate, unit).partition(" ")
    whole, _, part = amount.partition(".")
    return f"{whole}.{part.rstrip('0').ljust(2, '0')} {of}/h"


def _takes(features: Sequence[str]) -> str:
    """What the device runs, so short that a row fits a terminal: the two great kinds, and how many features more."""
    named = [word for code, word in _TAKES.items() if code in features]
    more = len(set(features) - _TAKES.keys())
    return ", ".join(named) + (f" +{more}" if more else "") or "-"


def _load(device: Facts) -> str:
    if not device["connected"]:
        return "away"
    return "paused" if device["paused"] else f"{device['busy_slots']} busy"


def jobs(rows: Sequence[Facts]) -> list[str]:
    """`coppermesh jobs`."""
    if not rows:
        return []
    cells = [
        (
            row["job"][:8],
            moment(row["submitted_us"]),
            row["tasks"],
            row["done"],
            f"{row['state']} ({row['code']})" if row["code"] else row["state"],
            money(row["cost"], row["unit"]),
        )
        for row in rows
    ]
    return table(("JOB", "SUBMITTED", "TASKS", "DONE", "STATE", "COST"), cells, right=(2, 3, 5))


def moment(at_us: int) -> str:
    """Microseconds since the epoch as `2026-01-31 12:00:00`, UTC."""
    try:
        return str(datetime.fromtimestamp(at_us // 1_000_000, UTC).replace(tzinfo=None))
    except (ValueError, OverflowError, OSError):  # a stranger's record may say anything
        return "-"


NOTHING: Mapping[str, str] = {
    "peers": "no peer known: name one with `bootstrap` in config.toml or --bootstrap, or wait for others to call",
    "devices": "no device on offer: no agent with `provide` has been heard",
    "receipts": "no receipts yet",
    "jobs": "no jobs yet",
}
"""What is said where a list is empty."""
READING: Mapping[str, Callable[[Facts], list[str]]] = {"status": status, "peers": peers, "devices": devices}


def receipts(rows: Sequence[Facts]) -> list[str]:
    """`coppermesh receipts`."""
    if not rows:
        return []
    cells = [
        (
            row["id"][:12],
            row["role"],
            row["job"][:8] if row["job"] else "-",
            row["other"][-8:],
            row["device_name"],
            f"{row['billed_us'] / 1000:.1f}",
            money(row["amount"], row["unit"]),
            row["status"] if row["code"] == "ok" else f"{row['status']} ({row['code']})",
            row["verdict"] or "not countersigned",
        )
        for row in rows
    ]
    headings = ("RECEIPT", "ROLE", "JOB", "WITH", "DEVICE", "MS", "AMOUNT", "STATUS", "COUNTERSIGNED")
    return table(headings, cells, right=(5, 6))


def receipt(facts: Facts) -> list[str]:
    """`coppermesh receipts show`: every field, and what its number means where it is money or time."""
    width = max(len(name) for name in facts)
    unit = str(facts.get("unit", ""))
    lines = []
    for name, value in facts.items():
        words = _in_words(name, value, unit)
        text = printable(f"{value} ({words})" if words else str(value)).replace("\n", " ")
        lines.append(f"{name.ljust(width)}  {text}")
    return lines


def _in_words(name: str, value: object, unit: str) -> str:
    if not isinstance(value, int) or isinstance(value, bool):
        return ""
    if name == "rate":
        return f"{money(value, unit)} per device-hour"
    if name == "amount" or name.endswith("cumulative"):
        return money(value, unit)
    if name in ("billed_us", "device_us"):
        return f"{value / 1000:.3f} ms"
    return f"{moment(value)} UTC" if name.endswith("_us") else ""


def verified_receipt(facts: Facts) -> list[str]:
    """`coppermesh receipts verify`."""
    if facts.get("unread"):
        return [f"nothing was verified: {printable(facts['sentence'])}"]
    if not facts["ok"]:
        return [f"NOT VALID: {printable(facts['sentence'])}"]
    said = f"valid: {printable(facts['sentence'])}"
    return [said, *receipt(facts["receipt"])] if "receipt" in facts else [said]


def demo_table(rows: Sequence[Facts]) -> list[str]:
    """The demo's closing table, one line a tile."""
    cells = [
        (
            row["tile"],
            row["provider"][-8:],
            row["device"],
            f"{row['milliseconds']:.1f}",
            money(row["amount"], row["unit"]),
            row["receipt"][:12],
            "yes" if row["verified"] else "NO",
        )
        for row in rows
    ]
    return table(("TILE", "PROVIDER", "DEVICE", "MS", "PRICE", "RECEIPT", "VERIFIED"), cells, right=(0, 3, 4))
