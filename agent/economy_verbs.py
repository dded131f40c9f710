"""The verbs of an owner who wants to know what lending is worth, and to have a device back."""

import argparse
import json
import re
import sys

from coppermesh.agent import economy_screens
from coppermesh.agent.earnings import GROUPINGS
from coppermesh.agent.verbs import EXIT_FAILED, EXIT_OK, JSON_HELP, Verbs, add_verb, home_of, show

_SPAN = re.compile(r"([0-9]{1,6})([mhdw])")
_SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_PRICE_EPILOG = """\
The floor is what an hour costs: what a device draws under load above what it draws idle, at the tariff of the hour,
and wear, and the margin you want on top. Nothing is lent for less: a rate below it is raised to it, and orders that
pay less are declined. Set tariff, tariffs, wear, margin and watts below [costs] in config.toml; changes count at once.
"""
_EARNINGS_EPILOG = """\
Income is what requesters have accepted; pending is what they have not answered yet. Energy is the receipts' own where
a meter measured it, else a model's, and is charged the tariff of its hour.

example: coppermesh earnings --since 7d --by device
"""


def add(verbs: Verbs) -> None:
    """Adds them."""
    price = add_verb(verbs, "price", "what is asked for the devices, and the sum behind it", _price)
    price.formatter_class = argparse.RawDescriptionHelpFormatter
    price.epilog = _PRICE_EPILOG
    price.add_argument("--json", action="store_true", help=JSON_HELP)
    reclaim = add_verb(
        verbs, "reclaim", "take devices back now: running tasks end, what is done is paid", _reclaim
    )
    reclaim.add_argument("device", nargs="*", help="such as gpu0 (default: every device)")
    reclaim.add_argument("--json", action="store_true", help=JSON_HELP)
    earnings = add_verb(verbs, "earnings", "what lending has brought after electricity", _earnings)
    earnings.formatter_class = argparse.RawDescriptionHelpFormatter
    earnings.epilog = _EARNINGS_EPILOG
    earnings.add_argument(
        "--since", type=span_us, metavar="SPAN", help="only the last 90m, 12h, 7d, 4w (default: all)"
    )
    earnings.add_argument("--by", choices=GROUPINGS, default="day", help="one line each (default day)")
    earnings.add_argument("--json", action="store_true", help=JSON_HELP)


def span_us(text: str) -> int:
    """`7d` in microseconds."""
    found = _SPAN.fullmatch(text)
    if found is None or not int(found[1]):
        raise argparse.ArgumentTypeError(f"want a number and m, h, d or w, such as 7d, got {text!r}")
    return int(found[1]) * _SECONDS[found[2]] * 1_000_000


def _price(options: argparse.Namespace) -> int:
    from coppermesh.agent import economy_views

    facts = economy_views.price(home_of(options))
    if options.json:
        print(json.dumps(facts))
    else:
        show(economy_screens.price(facts), "no device is offered here")
    return EXIT_OK


def _reclaim(options: argparse.Namespace) -> int:
    from coppermesh.agent.local_link import LocalLink

    with LocalLink(home_of(options).socket_path) as link:
        facts = json.loads(link.call_json("reclaim", json.dumps({"devices": options.device})))
    print(f"coppermesh: {facts['sentence']}", file=sys.stderr)
    if options.json:
        print(json.dumps(facts))
    return EXIT_OK if facts["gone"] else EXIT_FAILED


def _earnings(options: argparse.Namespace) -> int:
    from coppermesh.agent import economy_views
    from coppermesh.agent.clock import now_us

    since_us = 0 if options.since is None else max(0, now_us() - options.since)
    facts = economy_views.earnings(home_of(options), since_us, options.by)
    if options.json:
        print(json.dumps(facts))
    else:
        show(economy_screens.earnings(facts), "nothing was earned here in that time")
    return EXIT_OK
