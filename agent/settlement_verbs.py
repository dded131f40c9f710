"""`coppermesh statement`, `payout` and `reputation`: what settles, where to, and what a peer's history is worth."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from coppermesh.agent import option_types, screens
from coppermesh.agent.peer_names import named_peer
from coppermesh.agent.verbs import (
    EXIT_OK,
    JSON_HELP,
    Verbs,
    add_action,
    add_mesh,
    add_verb,
    home_of,
    show,
    write_bytes,
)
from coppermesh.p2p.errors import MeshError

LONG_CALL_SECONDS = 300.0
_PEER = "its peer id, or the last characters that tables show"


def add(verbs: Verbs) -> None:
    """Add the verbs."""
    _add_statement(verbs)
    _add_payout(verbs)
    reputation = add_verb(verbs, "reputation", "what peers' histories are worth here, and why", _reputation)
    reputation.add_argument(
        "peer", type=option_types.peer_id, nargs="?", help=f"{_PEER}; default: all that were dealt with"
    )
    add_mesh(reputation)
    reputation.add_argument("--json", action="store_true", help=JSON_HELP)
    reputation.add_argument("--unit", type=option_types.text_setting("unit"), metavar="UNIT")


def _add_statement(verbs: Verbs) -> None:
    text = "settle receipts with a peer as one number that both sign"
    statement = add_verb(verbs, "statement", text, _show)
    add_mesh(statement)
    statement.add_argument("--json", action="store_true", help=JSON_HELP)
    statement.set_defaults(statement=None)
    actions = statement.add_subparsers(metavar="ACTION")
    text = "net what was accepted on both sides since the last one, and have the peer sign it"
    propose = add_action(actions, "propose", text, _propose)
    add_mesh(propose)
    propose.add_argument("peer", type=option_types.peer_id, help=_PEER)
    propose.add_argument(
        "--unit", type=option_types.text_setting("unit"), metavar="UNIT", help="default: the home's"
    )
    _add_output(propose, "write a proposal to this file instead, for a peer that is not connected")
    sign = add_action(
        actions, "sign", "check and sign a proposal in a file, or take one that came back", _sign
    )
    add_mesh(sign)
    sign.add_argument("file", type=Path)
    _add_output(sign, "where the signed statement goes; send it back to who proposed it")
    shown = add_action(actions, "show", "statements, and how far their settling has come", _show)
    add_mesh(shown)
    shown.add_argument("statement", type=option_types.id_prefix, nargs="?", help="id, or its first digits")
    prove = add_action(actions, "prove", "write a receipt's place under its statement to a file", _prove)
    add_mesh(prove)
    prove.add_argument("receipt", type=option_types.id_prefix, help="receipt id, or its first digits")
    _add_output(prove, "default: standard output")
    settle = add_action(
        actions, "settle", "say that a statement was paid to you, and tell its payer", _settle
    )
    add_mesh(settle)
    settle.add_argument("statement", type=option_types.id_prefix, help="id, or its first digits")
    settle.add_argument(
        "--reference", default="", metavar="TEXT", help="what the payment is called where it was made"
    )


def _add_output(action: argparse.ArgumentParser, text: str) -> None:
    action.add_argument("-o", "--output", type=Path, metavar="FILE", help=text)
    action.add_argument("--force", action="store_true", help="replace the file where there is one")


def _add_payout(verbs: Verbs) -> None:
    payout = add_verb(verbs, "payout", "where this agent is paid, and others are", _payout_show)
    add_mesh(payout)
    payout.add_argument("--json", action="store_true", help=JSON_HELP)
    payout.set_defaults(peer=None)
    actions = payout.add_subparsers(metavar="ACTION")
    text = "bind a payout account to this agent's key, which is never a wallet itself"
    bind = add_action(actions, "bind", text, _payout_bind)
    add_mesh(bind)
    bind.add_argument(
        "scheme",
        type=option_types.code,
        help="solana, ed25519, evm, bitcoin or iban, each checked; other-NAME for any other; none takes it back",
    )
    bind.add_argument("address", nargs="?", help="with --key it may be left out")
    bind.add_argument(
        "--key",
        type=Path,
        metavar="FILE",
        help="the account's Ed25519 key, which signs too: a coppermesh key file or a Solana keypair (JSON)",
    )
    bind.add_argument("--days", type=option_types.whole(1, 400), default=365, metavar="N", help="default 365")
    shown = add_action(actions, "show", "one's own account, or that of a connected peer", _payout_show)
    add_mesh(shown)
    shown.add_argument("peer", type=option_types.peer_id, nargs="?", help=_PEER)


def _call(options: argparse.Namespace, method: str, **arguments: object) -> dict[str, Any]:
    from coppermesh.agent.local_link import LocalLink

    with LocalLink(home_of(options).socket_path, timeout_s=LONG_CALL_SECONDS) as link:
        return dict(json.loads(link.call_json(method, json.dumps(arguments))))


def _propose(options: argparse.Namespace) -> int:
    from coppermesh.agent.config import load_config

    unit = options.unit or load_config(home_of(options)).unit
    peer = named_peer(home_of(options), options.peer)
    facts = _call(options, "statement-propose", peer=peer, unit=unit, file=options.output is not None)
    return _told(options, facts)


def _sign(options: argparse.Namespace) -> int:
    data = _read(options.file)
    return _told(options, _call(options, "statement-sign", file=data.hex()))


def _told(options: argparse.Namespace, facts: dict[str, Any]) -> int:
    from coppermesh.agent.settlement_views import told_statement

    data = bytes.fromhex(facts.pop("file"))
    if options.output is not None:
        write_bytes(options.output, data, force=options.force)
    print(f"coppermesh: {told_statement(facts)}", file=sys.stderr)
    if options.json:
        print(json.dumps(facts))
    return EXIT_OK


def _show(options: argparse.Namespace) -> int:
    from coppermesh.agent import settlement_commands as commands
    from coppermesh.agent.settlement_views import statement_lines

    rows = commands.statements(home_of(options), options.statement)
    if options.json:
        print(json.dumps(rows))
    else:
        show(statement_lines(rows), "no statement yet")
    return EXIT_OK


def _prove(options: argparse.Namespace) -> int:
    from coppermesh.agent.proof_commands import place_file

    write_bytes(options.output, place_file(home_of(options), options.receipt, None), force=options.force)
    return EXIT_OK


def _settle(options: argparse.Namespace) -> int:
    from coppermesh.agent import settlement_commands as commands

    (row,) = commands.statements(home_of(options), options.statement)
    facts = _call(options, "statement-settle", statement=row["id"], reference=options.reference)
    said = (
        "its payer knows" if not facts["undelivered"] else f"its payer was not told: {facts['undelivered']}"
    )
    print(f"coppermesh: statement {row['id'][:12]} is paid; {screens.printable(said)}", file=sys.stderr)
    if options.json:
        print(json.dumps(facts))
    return EXIT_OK


def _payout_bind(options: argparse.Namespace) -> int:
    from coppermesh.agent.settlement_commands import read_account_key
    from coppermesh.agent.settlement_views import payout_lines
    from coppermesh.p2p.settlement_records import Payout

    arguments = {"scheme": options.scheme, "address": options.address, "days": options.days}
    if options.key is None:
        facts = _call(options, "payout-bind", **arguments)
    else:
        key, address = read_account_key(options.key, options.scheme)
        arguments |= {"key": key.peer.hex(), "address": options.address or address}
        asked = _call(options, "payout-bind", **arguments)
        # The secret stays in this process: the agent sees the signature only.
        signature = key.sign(Payout.DOMAIN, bytes.fromhex(asked["sign"]))
        facts = _call(options, "payout-bind", signature=signature.hex())
    if options.json:
        print(json.dumps(facts))
    else:
        show(payout_lines(facts))
    return EXIT_OK


def _payout_show(options: argparse.Namespace) -> int:
    from coppermesh.agent import settlement_commands as commands
    from coppermesh.agent.settlement_views import payout_lines

    if options.peer is not None:
        facts = _call(options, "payout-ask", peer=named_peer(home_of(options), options.peer))
    else:
        facts = commands.own_payout(home_of(options))
    if options.json:
        print(json.dumps(facts))
    else:
        show(list(map(screens.printable, payout_lines(facts))))
    return EXIT_OK


def _reputation(options: argparse.Namespace) -> int:
    from coppermesh.agent import settlement_commands as commands
    from coppermesh.agent.settlement_views import reputation_lines

    peer = None if options.peer is None else named_peer(home_of(options), options.peer)
    rows = commands.reputations(home_of(options), peer, options.unit)
    if options.json:
        print(json.dumps(rows))
    else:
        show(reputation_lines(rows), "nobody was dealt with yet")
    return EXIT_OK


def _read(path: Path) -> bytes:
    from coppermesh.p2p.proof_files import MAX_STATEMENT_BYTES

    try:
        with path.open("rb") as file:
            return file.read(MAX_STATEMENT_BYTES + 1)
    except OSError as error:
        raise MeshError(f"{path}: {error.strerror}") from error
