"""Keeping an agent connected: dials what `DialPlan` says is due, and remembers who answered.

`run_discovery` reads no transport event, since the control hub is their one reader: it looks at who is connected a few
times a second, which also cannot miss one.
"""

import json
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import trio

from coppermesh.p2p.addresses import parse_address
from coppermesh.p2p.dial_plan import DialPlan, Kind, Rng
from coppermesh.p2p.errors import MeshError, Unreachable
from coppermesh.p2p.transport import Transport

__all__ = ["DialPlan", "Kind", "Rng", "load_remembered", "run_discovery", "save_remembered"]

LOOK_SECONDS = 0.2
SAVE_SECONDS = 60.0
MAX_REMEMBERED = 256
_MAX_FILE_BYTES = 256 * 1024
HOW_FOUND = {
    Kind.PERMANENT: "bootstrap",
    Kind.REMEMBERED: "remembered",
    Kind.NEARBY: "mdns",
    Kind.LEARNED: "announced",
}
"""In a word, how an agent came to dial a peer."""
Details: TypeAlias = dict[str, Any]

_log = logging.getLogger(__name__)


async def run_discovery(
    transport: Transport,
    plan: DialPlan,
    *,
    bootstrap: Sequence[str],
    remembered: Path | None = None,
    now_us: Callable[[], int] = lambda: 0,
) -> None:
    """Dial and redial until cancelled.

    `bootstrap`: full addresses that are dialled for as long as this runs; one that is not an address raises
    Unreachable at once. `remembered`: the file of addresses that answered, read first and kept up to date; a damaged
    one is ignored. What `plan.learn` adds meanwhile is dialled too. `now_us`: microseconds since the epoch, kept beside
    each remembered address for whoever reads the file.
    """
    for address in bootstrap:
        plan.add(address, Kind.PERMANENT)
    answered: OrderedDict[str, Details] = OrderedDict()
    if remembered is not None:
        kept = await trio.to_thread.run_sync(load_details, remembered)
        for address in reversed(kept):
            plan.add(address, Kind.REMEMBERED)
            answered[address] = kept[address]
    keeper = _Keeper(remembered, answered, now_us)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keeper.keep)
            while True:
                _observe(transport, plan)
                for address in plan.due(trio.current_time()):
                    nursery.start_soon(_dial, transport, plan, address, keeper)
                await trio.sleep(LOOK_SECONDS)
    finally:
        keeper.finish()


def _observe(transport: Transport, plan: DialPlan) -> None:
    connected = transport.connected()
    paths = {peer: transport.path_to(peer) for peer in connected}
    relayed = [peer for peer, path in paths.items() if path is not None and path.relay is not None]
    plan.observe(connected, trio.current_time(), relayed)


async def _dial(transport: Transport, plan: DialPlan, address: str, keeper: "_Keeper") -> None:
    try:
        await transport.dial(address)
    except MeshError as error:
        known = address in plan.troubles
        nobody = isinstance(error.__cause__, OSError)
        plan.failed(address, trio.current_time(), str(error), nobody=nobody)
        if address in plan.troubles and not known:
            said = str(error).removeprefix(f"{address}: ")
            _log.warning("cannot reach %s: %s; trying again", address, said)
        else:
            _log.debug("dial: %s", error)
    except Exception as error:  # noqa: BLE001
        # Whatever a stranger's address brings about ends that dial, never the agent.
        _log.exception("dialling %s failed", address)
        plan.failed(address, trio.current_time(), str(error) or type(error).__name__)
    else:
        plan.succeeded(address, trio.current_time())
        _observe(transport, plan)
        keeper.answered(address, plan.kind_of(parse_address(address).peer))


class _Keeper:
    """The addresses that answered, oldest first, and the file that keeps them."""

    def __init__(
        self, path: Path | None, addresses: OrderedDict[str, "Details"], now_us: Callable[[], int]
    ) -> None:
        self._path = path
        self._addresses = addresses
        self._now_us = now_us
        self._changed = False

    def answered(self, address: str, kind: Kind | None) -> None:
        """Remember an address; only the newest one of a peer. What led to it at first stays its story."""
        found = "called" if kind is None else HOW_FOUND[kind]
        peer = parse_address(address).peer
        for known in list(self._addresses):
            if parse_address(known).peer == peer:
                found = self._addresses.pop(known).get("found") or found
        self._addresses[address] = {"found": found, "seen_us": self._now_us()}
        while len(self._addresses) > MAX_REMEMBERED:
            self._addresses.popitem(last=False)
        self._changed = True

    async def keep(self) -> None:
        """Save what changed, once in a while."""
        while True:
            await trio.sleep(SAVE_SECONDS)
            if self._path is not None and self._changed:
                self._changed = False
                newest_first = OrderedDict(reversed(self._addresses.items()))
                await trio.to_thread.run_sync(_save_or_warn, self._path, newest_first)

    def finish(self) -> None:
        """Save what changed, now."""
        if self._path is not None and self._changed:
            self._changed = False
            _save_or_warn(self._path, OrderedDict(reversed(self._addresses.items())))


def _save_or_warn(path: Path, addresses: "OrderedDict[str, Details]") -> None:
    # A disk that is full costs only the memory of peers.
    try:
        save_remembered(path, list(addresses), addresses)
    except OSError as error:
        _log.warning("cannot save the remembered peers to %s: %s", path, error)


def load_remembered(path: Path) -> list[str]:
    """The addresses in the file, newest first; none where it is missing, too large or not ours."""
    return list(load_details(path))


def load_details(path: Path) -> dict[str, Details]:
    """As `load_remembered`, with how each was found and when it last answered, as far as the file tells."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
        content = json.loads(data) if len(data) <= _MAX_FILE_BYTES else None
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        _log.warning("remembered peers in %s are ignored: %s", path, error)
        return {}
    listed = content.get("addresses") if isinstance(content, dict) else None
    if not isinstance(listed, list):
        _log.warning("remembered peers in %s are ignored: not a list of addresses", path)
        return {}
    details = content.get("details") if isinstance(content, dict) else None
    told = details if isinstance(details, dict) else {}
    return {
        address: _details(told.get(address)) for address in listed[:MAX_REMEMBERED] if _is_address(address)
    }


def _details(value: object) -> Details:
    """What of a file's details can be used."""
    found = value.get("found") if isinstance(value, dict) else None
    seen_us = value.get("seen_us") if isinstance(value, dict) else None
    kept: Details = {"found": found} if found in HOW_FOUND.values() else {}
    return {**kept, "seen_us": seen_us} if isinstance(seen_us, int) and 0 < seen_us < 1 << 62 else kept


def save_remembered(
    path: Path, addresses: Sequence[str], details: Mapping[str, Details] | None = None
) -> None:
    """Replace the file in one step. Raises OSError, leaving the old one.

    `details`: how each was found and when it last answered, for people; nothing is decided by it.
    """
    kept = list(addresses[:MAX_REMEMBERED])
    told = {address: (details or {}).get(address, {}) for address in kept}
    text = json.dumps({"version": 1, "addresses": kept, "details": told}, indent=1)
    fresh = path.with_name(path.name + ".new")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "w", encoding="ascii") as file:
            file.write(text + "\n")
        fresh.replace(path)
    except OSError:
        with suppress(FileNotFoundError):
            fresh.unlink()
        raise


def _is_address(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        parse_address(value)
    except Unreachable:
        return False
    return True
