"""`coppermesh ledger`: what stands between this home and others, and whether the books are right."""

import argparse
import json
import sys
from pathlib import Path

from coppermesh.agent import option_types, screens
from coppermesh.agent.peer_names import named_peer
from coppermesh.agent.verbs import (
    EXIT_FAILED,
    EXIT_OK,
    JSON_HELP,
    Verbs,
    add_action,
    add_mesh,
    add_verb,
    home_of,
    show,
)

LONG_CALL_SECONDS = 300.0
"""A comparison or a statement over many receipts takes its time."""


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

    text = "find the first receipt that this ledger and a connected peer's do not have alike"
    compare = add_action(actions, "compare", text, _compare)
    add_mesh(compare)
    compare.add_argument(
        "peer", type=option_types.peer_id, help="its peer id, or the last characters that tables show"
    )
    text = "copy the ledger as of now to a file, and check the copy; an agent may be running"
    backup = add_action(actions, "backup", text, _backup)
    backup.add_argument("file", type=Path)
    backup.add_argument("--force", action="store_true", help="replace the file where there is one")
    _add_mesh(backup)
    text = "put a backup in the place of the ledger; no agent may run. All later work is done on new lanes"
    restore = add_action(actions, "restore", text, _restore)
    restore.add_argument("file", type=Path)
    _add_mesh(restore)
    _add_mesh(add_action(actions, "migrate", "bring ledgers of an older version up to date", _migrate))


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
        show([screens.printable(line) for line in commands.audit_lines(facts)])
    return EXIT_OK if facts["ok"] else EXIT_FAILED


def _compare(options: argparse.Namespace) -> int:
    from coppermesh.agent.local_link import LocalLink
    from coppermesh.agent.settlement_views import comparison_lines

    peer = named_peer(home_of(options), options.peer)
    with LocalLink(home_of(options).socket_path, timeout_s=LONG_CALL_SECONDS) as link:
        facts = json.loads(link.call_json("ledger-compare", json.dumps({"peer": peer})))
    if options.json:
        print(json.dumps(facts))
    else:
        show(comparison_lines(facts))
    return EXIT_OK if facts["same"] else EXIT_FAILED


def _backup(options: argparse.Namespace) -> int:
    from coppermesh.agent import ledger_commands as commands

    option_types.check_output("FILE", options.file)
    return _done(options, commands.backup(home_of(options), options.file, options.mesh, force=options.force))


def _restore(options: argparse.Namespace) -> int:
    from coppermesh.agent import ledger_commands as commands

    return _done(options, commands.restore(home_of(options), options.file, options.mesh))


def _migrate(options: argparse.Namespace) -> int:
    from coppermesh.agent import ledger_commands as commands

    return _done(options, commands.migrate(home_of(options), options.mesh))


def _done(options: argparse.Namespace, facts: dict[str, object]) -> int:
    print(f"coppermesh: {screens.printable(str(facts['sentence']))}", file=sys.stderr)
    if options.json:
        print(json.dumps(facts))
    return EXIT_OK
