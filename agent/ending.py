"""How a process of ours ends: by a signal, by whoever started it, or by an error that a person can read."""

import os
import sys
from typing import Any

import trio

from coppermesh.p2p.errors import MeshError


async def cancel_on_signal(signals: Any, scope: trio.CancelScope) -> None:
    """End the scope when one of `open_signal_receiver`'s signals comes."""
    async for _ in signals:
        scope.cancel()


async def cancel_on_eof(scope: trio.CancelScope) -> None:
    """The process that started us holds the other end of stdin: when it is gone, so are we."""
    async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as stream:
        while await stream.receive_some(4096):
            pass
    scope.cancel()


def mesh_error_in(group: BaseExceptionGroup) -> MeshError | None:
    """The first error of ours in a group of nothing else: nurseries wrap what their tasks raise."""
    ours, others = group.split(MeshError)
    if ours is None or others is not None:
        return None
    found: BaseException = ours
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, MeshError)
    return found
