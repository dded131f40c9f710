"""The command line with one fault: the agent kills itself (SIGKILL) at a chosen step of the protocol.

    python crashing_agent.py WHEN STEP NUMBER agent --home ...

WHEN is `before` or `after`, NUMBER counts from 1. STEP is the class of a ledger entry (`TaskIssued`, ...): at its
commit; or `result`: where a provider asks (before sending, after the reply), or where a requester answers (before the
handler, after its answer was handed to the network). Each of several in one commit or message counts.
"""

import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from coppermesh.agent import cli
from coppermesh.agent.ledger_store import LedgerStore
from coppermesh.p2p.channel import Channel
from coppermesh.p2p.control import ControlHub
from coppermesh.p2p.encoding import decode
from coppermesh.p2p.messages import MAX_FRAME_BYTES, ResultsRequest


class Fault:
    """Counts how often the step was reached."""

    def __init__(self, when: str, number: int) -> None:
        self._when = when
        self._left = number

    async def around(self, step: Callable[[], Awaitable[Any]], count: int = 1) -> Any:
        """Take the step, which is `count` of them at once, and die before or after it when it is the one."""
        chosen = 0 < self._left <= count
        self._left -= count
        if chosen and self._when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        outcome = await step()
        if chosen:
            os.kill(os.getpid(), signal.SIGKILL)
        return outcome


def die_at_commit(fault: Fault, kind: str) -> None:
    commit = LedgerStore.commit

    async def faulty(self: LedgerStore, *entries: Any) -> None:
        count = sum(type(entry).__name__ == kind for entry in entries)
        if count:
            await fault.around(lambda: commit(self, *entries), count)
        else:
            await commit(self, *entries)

    LedgerStore.commit = faulty  # type: ignore[method-assign]


def die_at_result(fault: Fault) -> None:
    request, handle = ControlHub.request, Channel._handle

    async def faulty_request(self: ControlHub, peer: Any, method: str, *rest: Any, **options: Any) -> Any:
        if method not in ("result", "results"):
            return await request(self, peer, method, *rest, **options)
        count = len(rest[0].results) if method == "results" else 1
        return await fault.around(lambda: request(self, peer, method, *rest, **options), count)

    async def faulty_handle(self: Channel, frame: Any) -> None:
        if frame.method not in ("result", "results"):
            await handle(self, frame)
            return
        count = 1
        if frame.method == "results":
            count = len(decode(ResultsRequest, frame.body, max_bytes=MAX_FRAME_BYTES).results)

        async def answer() -> None:
            await handle(self, frame)
            while self._outgoing or self._sending:
                await self._drained.wait()  # set whenever something was sent

        await fault.around(answer, count)

    ControlHub.request = faulty_request  # type: ignore[method-assign]
    Channel._handle = faulty_handle  # type: ignore[method-assign]


if __name__ == "__main__":
    when, step, number = sys.argv[1:4]
    if step == "result":
        die_at_result(Fault(when, int(number)))
    else:
        die_at_commit(Fault(when, int(number)), step)
    sys.exit(cli.main(sys.argv[4:]))
