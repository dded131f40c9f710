"""The command line on a machine that differs from this one: its clock, its version, or what its provider tells.

    python shifted_agent.py SECONDS SOFTWARE [HONESTY] agent --home ...

SECONDS is what its clock is ahead (0: not at all), SOFTWARE what it calls itself (`-`: what it is). With HONESTY the
accounting interval is 2 s; it is `honest`, or `liar`: it claims an hour for each second that a member used, and ten
hours that nobody used.
"""

import sys
import time
from types import SimpleNamespace
from typing import Any

from coppermesh.agent import clock, software


def main() -> None:
    seconds, name = float(sys.argv[1]), sys.argv[2]
    clock.time = SimpleNamespace(time_ns=lambda: time.time_ns() + int(seconds * 1e9))  # type: ignore[attr-defined, assignment]
    if name != "-":
        software.SOFTWARE = name
    words = sys.argv[3:]
    if words[0] in ("honest", "liar"):
        account(words.pop(0))
    # Only now: others take names as they are when they are imported.
    from coppermesh.agent import cli

    sys.exit(cli.main(words))


def account(honesty: str) -> None:
    from coppermesh.p2p import usage

    usage.INTERVAL_US, usage.UNSIGNED_US = 2_000_000, 4_000_000
    if honesty == "liar":
        news = usage.UsageBook.news

        def lies(book: usage.UsageBook, running: Any, now_us: int) -> Any:
            told = news(book, running, now_us)
            made_up = [
                (who, kind, hour - back, 36_000_000_000) for who, kind, hour, _ in told for back in range(5)
            ]
            return [(who, kind, hour, 3600 * us) for who, kind, hour, us in told] + made_up

        usage.UsageBook.news = lies  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    main()
