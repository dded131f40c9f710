"""`coppermesh ledger`: what stands between this home and others, and whether the books are right."""

import argparse
import json

from coppermesh.agent import option_types, screens
from coppermesh.agent.verbs import (
    EXIT_FAILED,
    EXIT_OK,
    JSON_HELP,
    Verbs,
    add_action,
    add_verb,
    home_of,
    show,
)


def add(verbs: Verbs) -> None:
    """Add the verb."""
    ledger = add_verb(verbs, "ledger", "balances with every peer, and the books behind them", _balances)
    ledger.add_argument("--json", action="store_true", help=JSON_HELP)
    _add_mesh(ledger, None)
    actions = ledger.add_subparsers(metavar="ACTION")
    text = "what stands between this home and each peer (what `ledger` alone does)"
    _add_mesh(add_action(actions, "balances", text, _balances))
    text = "check every signature, chain and sum again; needs no agent"
    _add_mesh(add_action(actions, "audit", text, _audit))


def _add_mesh(parser: argparse.ArgumentParser, default: str | None = argparse.SUPPRESS) -> None:
    parser.add_argument(
        "--mesh",
        type=option_types.text_setting("mesh"),
        metavar="NAME",
        default=default,
        help="the ledger of one mesh (default: all in this home)",
    )


def _balances(options: argparse.Namespace) -> int:
    from coppermesh.agent import ledger_commands as commands

    facts = commands.balances(home_of(options), options.mesh)
    if options.json:
        print(json.dumps(facts))
    else:
        show(commands.balance_lines(facts), "nothing was accepted or billed yet")
    return EXIT_OK


def _audit(options: argparse.Namespace) -> int:
    from coppermesh.agent import ledger_commands as commands

    facts = commands.audit(home_of(options), options.mesh)
    if options.json:
        print(json.dumps(facts))
    else:
        print("\n".join(screens.printable(line) for line in commands.audit_lines(facts)))
    return EXIT_OK if facts["ok"] else EXIT_FAILED
