"""What every verb of the command line shares: exit codes, how a verb is added, where its words go.

A group of verbs may live in a module of its own, `NAME_verbs`, with a function that adds them; `cli` calls it. Verbs
import what they need when they run, so that a light one stays light.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from coppermesh.agent import layout, option_types, screens
from coppermesh.agent.home import Home, default_home
from coppermesh.p2p.errors import MeshError

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NO_AGENT = 3
EXIT_LOCKED = 4
EXIT_CONFIG = 5
EXIT_NO_VERDICT = 6
EXIT_INTERRUPTED = 130
MAX_ROWS = 10_000
"""Most that a list prints; the agent's own limit."""

JSON_HELP = "print JSON on stdout"
JOB_HELP = "job id, or its first digits"

Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - argparse names it nowhere else
"""What `add_subparsers` gives; verbs are added to it."""


def add_verb(
    verbs: Verbs,
    name: str,
    text: str,
    command: Callable[[argparse.Namespace], int],
    *,
    home: bool = True,
) -> argparse.ArgumentParser:
    """Add the verb `name`, which runs `command`; `home`: it takes --home."""
    parser = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    if home:
        parser.add_argument(
            "--home",
            type=option_types.home_directory,
            metavar="DIR",
            help="the agent's directory ($COPPERMESH_HOME)",
        )
    parser.set_defaults(command=command)
    return parser


def add_limit(parser: argparse.ArgumentParser, default: int, *, repeated: bool = False) -> None:
    """Add --limit; `repeated`: a sub-command has it too, and only one of them sets it."""
    parser.add_argument(
        "--limit",
        type=option_types.whole(1, MAX_ROWS),
        default=argparse.SUPPRESS if repeated else default,
        metavar="N",
        help=f"newest N (default {default})",
    )


def add_action(
    actions: Verbs, name: str, text: str, command: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    """Add what a verb can do, such as `list` of `receipts list`; it takes --home and --json, before or after."""
    action = actions.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    action.add_argument("--home", type=option_types.home_directory, metavar="DIR", default=argparse.SUPPRESS)
    action.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=JSON_HELP)
    action.set_defaults(command=command)
    return action


class _ChooseMesh(argparse.Action):
    """Every call to the agent is about that mesh, also those of a script that the command runs."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        if not isinstance(values, str) or not 0 < len(values) <= 64:
            raise argparse.ArgumentError(self, "want a name of 1 to 64 characters")
        os.environ["COPPERMESH_MESH"] = values


def add_mesh(parser: argparse.ArgumentParser) -> None:
    """The verb is about one of the agent's meshes: the default one, or what --mesh names."""
    text = "one of this home's meshes, by its name or the first digits of its id (default: the home's own)"
    parser.add_argument("--mesh", action=_ChooseMesh, metavar="NAME", default=argparse.SUPPRESS, help=text)


def home_of(options: argparse.Namespace) -> Home:
    """The home that --home or COPPERMESH_HOME names."""
    return Home(options.home) if options.home is not None else default_home()


def show(lines: Sequence[str], nothing: str = "") -> None:
    """Data to stdout; where there is none, the sentence that says so is talk."""
    if lines:
        print("\n".join(layout.fold(lines)))
    else:
        print(f"coppermesh: {nothing}", file=sys.stderr)


def write_bytes(output: Path | None, data: bytes, *, force: bool) -> None:
    """A file's bytes to a new file (or in place of one, with `force`), or to standard output. Raises MeshError."""
    if output is None and sys.stdout.isatty():
        raise option_types.WrongOption(
            "this is no text, and standard output is a terminal: name a file with -o FILE"
        )
    if output is None or str(output) == "-":
        sys.stdout.buffer.write(data)
        return
    option_types.check_output("--output", output)
    if output.exists() and not force:
        raise MeshError(f"{output} exists: name another file, or add --force")
    try:
        output.write_bytes(data)
    except OSError as error:
        raise MeshError(f"{output} cannot be written: {error.strerror}") from error
    print(f"coppermesh: wrote {output}", file=sys.stderr)


def say(error: BaseException, code: int) -> int:
    """Tell an error on stderr; gives back `code`."""
    print(f"coppermesh: {screens.printable(str(error))}", file=sys.stderr)
    return code
