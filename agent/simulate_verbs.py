"""`coppermesh simulate`: thousands of agents on one machine, in virtual time. Needs no agent and no network."""

import argparse
import gc
import json
import random
import re
import sys
import time
from typing import Any

from coppermesh.agent import option_types
from coppermesh.agent.verbs import EXIT_OK, Verbs, add_verb

_EPILOG = """\
Each simulated peer runs the decisions of a real agent; how gossip forwards is a model (agent/simulation_gossip.py says
which). The same options give the same result, to the byte.

example: coppermesh simulate --peers 1000 --seed 5 --minutes 10 --churn 10%/min --liars 5%
"""
_SHARE = re.compile(r"([0-9]+(?:\.[0-9]+)?)(%?)")


def add(verbs: Verbs) -> None:
    """Add the verb."""
    parser = add_verb(
        verbs, "simulate", "run a mesh of simulated agents in virtual time", _simulate, home=False
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument(
        "--peers", type=option_types.whole(2, 20_000), default=100, metavar="N", help="default 100"
    )
    parser.add_argument(
        "--seed", type=option_types.whole(0, 2**63 - 1), default=1, metavar="N", help="default 1"
    )
    parser.add_argument(
        "--minutes", type=_minutes, default=10.0, metavar="N", help="virtual minutes (default 10)"
    )
    parser.add_argument(
        "--churn",
        type=_churn,
        default=0.0,
        metavar="P%/min",
        help="share of the peers that leaves each minute",
    )
    parser.add_argument(
        "--liars", type=_share, default=0.0, metavar="P%", help="share that forges, floods and bids falsely"
    )
    parser.add_argument(
        "--loss", type=_share, default=0.0, metavar="P%", help="share of gossip copies that are lost"
    )
    parser.add_argument(
        "--shard-limit",
        type=option_types.whole(2, 4096),
        default=256,
        metavar="N",
        help="announcers from which on a topic splits (default 256)",
    )
    parser.add_argument(
        "--market",
        action="store_true",
        help="jobs and money instead of the mesh: N/5 requesters, 4N/5 providers, some that cheat",
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON on stdout")


def _simulate(options: argparse.Namespace) -> int:
    # Millions of small objects that live as long as the run: looking for cycles among them is half of the time.
    gc.disable()
    began = time.monotonic()
    facts, told = (_market if options.market else _mesh)(options)
    print(f"coppermesh: {facts['events']} events in {time.monotonic() - began:.1f} s", file=sys.stderr)
    print(json.dumps(facts) if options.json else "\n".join(told))
    return EXIT_OK


def _market(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    from coppermesh.agent.simulation_market import MarketScenario
    from coppermesh.agent.simulation_market_report import market_lines, simulate_market

    requesters = max(1, options.peers // 5)
    scenario = MarketScenario(
        providers=options.peers - requesters,
        requesters=requesters,
        seed=options.seed,
        minutes=options.minutes,
        churn=options.churn,
    )
    rng = random.Random(scenario.seed)
    facts = simulate_market(scenario, rng, _Progress(60 * scenario.minutes))
    return facts, market_lines(facts)


def _mesh(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    from coppermesh.agent.simulation_mesh import Scenario
    from coppermesh.agent.simulation_report import lines, simulate

    scenario = Scenario(
        peers=options.peers,
        seed=options.seed,
        minutes=options.minutes,
        churn=options.churn,
        liars=options.liars,
        loss=options.loss,
        limit=options.shard_limit,
    )
    facts = simulate(scenario, random.Random(scenario.seed), _Progress(60 * scenario.minutes))
    return facts, lines(facts)


class _Progress:
    """Tells on a terminal how far the run is."""

    def __init__(self, end_s: float) -> None:
        self._end_s = end_s
        self._told = 0.0

    def __call__(self, now_s: float) -> None:
        """It is `now_s` in virtual time."""
        if sys.stderr.isatty() and (now_s - self._told >= 10 or now_s >= self._end_s):
            self._told = now_s
            end = "\n" if now_s >= self._end_s else ""
            print(f"\rcoppermesh: {now_s:.0f} of {self._end_s:.0f} virtual seconds", end=end, file=sys.stderr)


def _share(text: str) -> float:
    """`5%` or `0.05`."""
    found = _SHARE.fullmatch(text)
    share = -1.0 if found is None else float(found[1]) / (100 if found[2] else 1)
    if not 0 <= share < 1:
        raise argparse.ArgumentTypeError(f"want a share such as 5% or 0.05, below 100%, got {text!r}")
    return share


def _churn(text: str) -> float:
    """`10%/min`; the unit may be left out."""
    return _share(text.removesuffix("/min"))


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = -1.0
    if not 0.1 <= minutes <= 10_000:
        raise argparse.ArgumentTypeError(f"want virtual minutes from 0.1 to 10000, got {text!r}")
    return minutes
