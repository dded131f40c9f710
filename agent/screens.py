"""What a person sees: plain text from the same facts that `--json` prints. Pure; returns lines.

Whatever comes from another peer or a job passes through `printable`, so that no stranger's bytes steer a terminal.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Facts = Mapping[str, Any]


def printable(text: str) -> str:
    """`text` with every control character except newline and tab made visible."""
    return "".join(
        character if character.isprintable() or character in "\n\t" else repr(character)[1:-1]
        for character in text
    )


def table(
    headings: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[int] = ()
) -> list[str]:
    """Columns padded to their widest cell; those numbered in `right` are aligned right."""
    cells = [[printable(str(cell)).replace("\n", " ") for cell in row] for row in [headings, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    lines = []
    for row in cells:
        padded = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    return lines


def money(amount: int, unit: str) -> str:
    """An amount of 10^-6 units, exactly: `0.000123 usd`."""
    return f"{amount // 1_000_000}.{amount % 1_000_000:06d} {unit}"


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
    lines += [f"address    {address}" for address in facts["addresses"]]
    lines.append(f"peers      {facts['connected']} connected, {facts['announced']} announced")
    lines.append(
        f"provider   {facts['leases_serving']} leases served now" if facts["provide"] else "provider   no"
    )
    lines.append(f"requester  {facts['jobs_open']} jobs open, {facts['leases_held']} leases held")
    return lines


def peers(facts: Facts) -> list[str]:
    """`coppermesh peers`."""
    if not facts["peers"]:
        return ["no peer known: give an address with --bootstrap, or wait for others to call"]
    rows = [
        (
            peer["peer"][-8:],
            "connected" if peer["connected"] else "announced",
            "-" if peer["since_s"] is None else duration(peer["since_s"]),
            ", ".join(device["name"] for device in peer["devices"]) or "-",
            "paused" if peer["paused"] else "",
            peer["address"] or "-",
        )
        for peer in facts["peers"]
    ]
    return table(("PEER", "STATE", "SINCE", "DEVICES", "", "ADDRESS"), rows)


def devices(facts: Facts) -> list[str]:
    """`coppermesh devices`."""
    if not facts["devices"]:
        return ["no device on offer: no agent with `provide` has been heard"]
    rows = [
        (
            device["peer"][-8:] + (" (this)" if device["own"] else ""),
            device["device"],
            device["kind"],
            device["name"],
            size(device["memory_bytes"]),
            money(device["rate"], device["unit"]) + "/h",
            ", ".join(device["features"]),
            "paused" if device["paused"] else f"{device['busy_slots']} busy",
        )
        for device in facts["devices"]
    ]
    return table(("PEER", "DEVICE", "KIND", "NAME", "MEMORY", "PRICE", "TAKES", "LOAD"), rows)


READING: Mapping[str, Callable[[Facts], list[str]]] = {"status": status, "peers": peers, "devices": devices}


def receipts(rows: Sequence[Facts]) -> list[str]:
    """`coppermesh receipts`."""
    if not rows:
        return ["no receipts yet"]
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
    """`coppermesh receipts show`: every field."""
    width = max(len(name) for name in facts)
    return [f"{name.ljust(width)}  {printable(str(value))}" for name, value in facts.items()]


def verified_receipt(facts: Facts) -> list[str]:
    """`coppermesh receipts verify`."""
    if not facts["ok"]:
        return [f"NOT VALID: {printable(facts['sentence'])}"]
    return [f"valid: {printable(facts['sentence'])}", *receipt(facts["receipt"])]


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
