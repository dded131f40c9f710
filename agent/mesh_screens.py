"""How `coppermesh mesh list` and `mesh members` look."""

import time
from typing import Any

from coppermesh.agent.screens import duration, printable, table

Facts = dict[str, Any]


def meshes(facts: Facts) -> list[str]:
    """`coppermesh mesh list`, in the order of priority."""
    rows = [
        (
            mesh["mesh"] + (" *" if mesh["default"] else ""),
            mesh["id"][:8],
            (mesh["role"] or "-") if mesh["private"] else "open",
            "served" if mesh["served"] else "not served",
            str(mesh["connected"]),
            _left(mesh["expires_us"]),
            printable(mesh["trouble"]) or "-",
        )
        for mesh in facts["meshes"]
    ]
    headings = ("MESH", "ID", "ROLE", "STATE", "PEERS", "EXPIRES IN", "TROUBLE")
    return table(headings, rows, right=(4,)) if rows else []


def members(facts: Facts) -> list[str]:
    """`coppermesh mesh members`."""
    rows = [
        (
            member["peer"][-8:],
            printable(member["name"]) or "-",
            member["role"],
            member["quota"] or "-",
            "this agent" if member["self"] else "connected" if member["connected"] else "away",
            _left(member["expires_us"]),
            "root key" if member["issuer"] is None else member["issuer"][-8:],
            str(member["serial"]),
        )
        for member in facts["members"]
    ]
    headings = ("PEER", "NAME", "ROLE", "QUOTA", "STATE", "EXPIRES IN", "ISSUED BY", "SERIAL")
    return table(headings, rows, right=(7,)) if rows else []


def _left(expires_us: int | None) -> str:
    if expires_us is None:
        return "-"
    return duration(max(0.0, expires_us / 1e6 - time.time()))
