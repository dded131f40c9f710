"""`coppermesh receipts`: list, show, save, export and verify receipts."""

import argparse
import json
import sys
from pathlib import Path

from coppermesh.agent import option_types, screens
from coppermesh.agent.verbs import (
    EXIT_FAILED,
    EXIT_OK,
    JSON_HELP,
    Verbs,
    add_action,
    add_limit,
    add_mesh,
    add_verb,
    home_of,
    show,
    write_bytes,
)

_EXPORT_EPILOG = """\
formats: jsonl    one object a line, with both records as they were signed: `receipts verify FILE` checks them all
         csv      the same columns; text that a sheet would take for a formula gets an apostrophe
         parquet  the same columns, typed; needs pyarrow (pip install 'coppermesh[parquet]')
         focus    CSV of what was paid, with the column names of FOCUS 1.0, for cost tools

example: coppermesh receipts export --format focus --since 2026-11-01 -o november.csv
"""


def add(verbs: Verbs) -> None:
    """Add the verb."""
    text = "list, show, save, export or verify receipts"
    receipts = add_verb(verbs, "receipts", text, _list)
    add_mesh(receipts)
    receipts.add_argument("--json", action="store_true", help=JSON_HELP)
    add_limit(receipts, 50)
    actions = receipts.add_subparsers(metavar="ACTION")
    listing = add_action(actions, "list", "the newest receipts (what `receipts` alone does)", _list)
    add_limit(listing, 50, repeated=True)
    _add_receipt(add_action(actions, "show", "every field of one receipt", _show))
    save = add_action(actions, "save", "write one receipt to a file that `receipts verify` reads", _save)
    _add_receipt(save)
    save.add_argument("output", type=Path, metavar="FILE", help="`-`: standard output")
    save.add_argument("--force", action="store_true", help="replace the file where there is one")
    _add_export(actions)
    proof = add_action(
        actions, "proof", "what is kept against other peers; with a number, write it to a file", _proof
    )
    proof.add_argument(
        "number", type=option_types.whole(1, 10_000_000), nargs="?", help="as the list gives it"
    )
    proof.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: standard output")
    proof.add_argument("--force", action="store_true", help="replace the file where there is one")
    proof.add_argument(
        "--mesh", type=option_types.text_setting("mesh"), metavar="NAME", help="default: the home's"
    )
    text = "check a file of receipts: no network, no database, no agent"
    verify = add_action(actions, "verify", text, _verify)
    verify.add_argument(
        "file", type=Path, help="from `receipts save`, `export` (JSON lines), `proof`, or `statement prove`"
    )


def _add_receipt(action: argparse.ArgumentParser) -> None:
    action.add_argument("receipt", type=option_types.id_prefix, help="receipt id, or its first digits")


def _add_export(actions: Verbs) -> None:
    export = add_action(actions, "export", "write all receipts for other programs", _export)
    export.formatter_class = argparse.RawDescriptionHelpFormatter
    export.epilog = _EXPORT_EPILOG
    export.add_argument(
        "--format", choices=("jsonl", "csv", "parquet", "focus"), default="jsonl", help="default: jsonl"
    )
    export.add_argument(
        "--since",
        type=option_types.since,
        default=0,
        metavar="WHEN",
        help="runs that ended then or later: 2026-11-01, 2026-11-01T08:00, 7d or 24h (UTC)",
    )
    export.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="default: standard output (not for parquet)"
    )
    export.add_argument("--force", action="store_true", help="replace the file where there is one")
    export.add_argument(
        "--mesh", type=option_types.text_setting("mesh"), metavar="NAME", help="of one mesh (default: all)"
    )


def _list(options: argparse.Namespace) -> int:
    from coppermesh.agent import receipt_commands as commands

    rows = commands.list_newest(home_of(options), options.limit)
    if options.json:
        print(json.dumps(rows))
    else:
        show(screens.receipts(rows), commands.nothing(home_of(options), "receipts"))
    return EXIT_OK


def _show(options: argparse.Namespace) -> int:
    from coppermesh.agent import receipt_commands as commands

    facts = commands.show(home_of(options), options.receipt)
    if options.json:
        print(json.dumps(facts))
    else:
        show(screens.receipt(facts))
    return EXIT_OK


def _save(options: argparse.Namespace) -> int:
    from coppermesh.agent import receipt_commands as commands

    home = home_of(options)
    if str(options.output) == "-":
        sys.stdout.buffer.write(commands.receipt_file(home, options.receipt))
    else:
        commands.save(home, options.receipt, options.output, force=options.force)
        print(f"coppermesh: wrote {options.output}", file=sys.stderr)
    return EXIT_OK


def _export(options: argparse.Namespace) -> int:
    from coppermesh.agent.ledger_export import export_to, write_export
    from coppermesh.agent.ledger_scan import find_ledgers

    places = find_ledgers(home_of(options), options.mesh)
    if options.output is None and options.format == "parquet":
        raise option_types.WrongOption("--format parquet is not text: name a file with -o FILE")
    if options.output is None:
        count = write_export(options.format, places, sys.stdout.buffer, options.since)
    else:
        option_types.check_output("--output", options.output)
        count = export_to(
            options.output,
            lambda output: write_export(options.format, places, output, options.since),
            force=options.force,
        )
    where = "" if options.output is None else f" to {options.output}"
    print(f"coppermesh: wrote {screens.counted(count, 'receipt')}{where}", file=sys.stderr)
    return EXIT_OK


def _proof(options: argparse.Namespace) -> int:
    from coppermesh.agent import proof_commands as commands

    if options.number is None:
        rows = commands.list_proofs(home_of(options), options.mesh)
        if options.json:
            print(json.dumps(rows))
        else:
            show(commands.proof_lines(rows), "nothing is kept against anybody")
        return EXIT_OK
    data = commands.proof_file(home_of(options), options.number, options.mesh)
    write_bytes(options.output, data, force=options.force)
    return EXIT_OK


def _verify(options: argparse.Namespace) -> int:
    from coppermesh.agent import receipt_commands as commands

    facts = commands.verify_file(options.file)
    if options.json:
        print(json.dumps(facts))
    else:
        show(screens.verified_receipt(facts))
    return EXIT_OK if facts["ok"] else EXIT_FAILED
