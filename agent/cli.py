"""The command line. Talk goes to stderr, data to stdout; exit codes are listed in `--help` and stay as they are.

Each verb imports what it needs when it runs: `coppermesh receipts verify` loads no network, `coppermesh submit` no key.
"""

import argparse
import json
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from coppermesh.agent import screens
from coppermesh.agent.config import ConfigError
from coppermesh.agent.home import Home, HomeError, HomeLocked, default_home
from coppermesh.p2p.errors import IdentityError, MeshError, Unreachable

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NO_AGENT = 3
EXIT_LOCKED = 4
EXIT_CONFIG = 5
EXIT_INTERRUPTED = 130

_EPILOG = """\
exit codes: 0 done; 1 the job, the check or the request failed; 2 wrong usage; 3 no agent answers;
            4 the home is in use by another agent; 5 settings, key or home cannot be used; 130 interrupted

COPPERMESH_HOME moves everything an agent keeps (keys, config, ledger, store, socket).

example: coppermesh demo
         coppermesh agent --home A --listen /ip4/127.0.0.1/tcp/4001
         COPPERMESH_HOME=A coppermesh submit photo.py
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _build_parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left (`coppermesh receipts | head`): not an error; keep the exit quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except HomeLocked as error:
        return _say(error, EXIT_LOCKED)
    except (HomeError, ConfigError, IdentityError) as error:
        return _say(error, EXIT_CONFIG)
    except Unreachable as error:
        return _say(error, EXIT_NO_AGENT)
    except MeshError as error:
        return _say(error, EXIT_FAILED)


def _say(error: BaseException, code: int) -> int:
    print(f"coppermesh: {screens.printable(str(error))}", file=sys.stderr)
    return code


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="coppermesh",
        description="A peer-to-peer compute mesh for GPUs: no coordinator, no account, every result signed.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"coppermesh {_version()}")
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_agent(verbs)
    for verb, text in _READING.items():
        reading = _add_verb(verbs, verb, text, _read)
        reading.add_argument("--json", action="store_true", help="print JSON on stdout")
        reading.set_defaults(verb=verb)
    for verb, text in (("pause", "stop taking new leases"), ("resume", "take leases again")):
        _add_verb(verbs, verb, text, _control).set_defaults(verb=verb)
    _add_verb(verbs, "stop", "end this home's agent", _control).set_defaults(verb="stop")
    identity = _add_verb(verbs, "id", "print this home's peer id on its mesh (made when missing)", _id)
    identity.add_argument("--mesh", metavar="NAME", help="another mesh than the configured one")
    _add_submit(verbs)
    _add_receipts(verbs)
    explain = _add_verb(verbs, "explain", "tell the story of a job", _explain)
    explain.add_argument("job", help="job id, or its first digits")
    explain.add_argument("--json", action="store_true", help="print JSON on stdout")
    _add_demo(verbs)
    bench = _add_verb(verbs, "bench", "measure this machine with agents on loopback", _bench, home=False)
    bench.add_argument("--json", action="store_true", help="print one line of JSON on stdout")
    return parser


_READING = {
    "status": "what this home's agent is doing",
    "peers": "peers this agent knows",
    "devices": "devices on offer in the mesh",
}


def _version() -> str:
    try:
        return version("coppermesh")
    except PackageNotFoundError:
        return "(not installed)"


def _add_verb(
    verbs: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    text: str,
    command: Callable[[argparse.Namespace], int],
    *,
    home: bool = True,
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    if home:
        parser.add_argument(
            "--home", type=Path, metavar="DIR", help="the agent's directory ($COPPERMESH_HOME)"
        )
    parser.set_defaults(command=command)
    return parser


def _add_agent(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    agent = _add_verb(verbs, "agent", "run this home's agent in the foreground", _agent)
    agent.add_argument("--mesh", metavar="NAME", help="the mesh to join (default: open)")
    agent.add_argument("--listen", metavar="ADDRESS", help="default: /ip4/127.0.0.1/tcp/0, this machine only")
    agent.add_argument(
        "--bootstrap", action="append", metavar="ADDRESS", help="an agent to find others through"
    )
    agent.add_argument("--allow", action="append", metavar="PEER", help="a peer whose kernels may run here")
    agent.add_argument("--rate", type=int, metavar="N", help="price in 10^-6 usd per device-hour")
    agent.add_argument("--slots", type=int, metavar="N", help="leases served at once per device")
    agent.add_argument("--requester-only", action="store_true", help="submit jobs, offer no device")
    agent.add_argument("--idle-exit", type=int, metavar="SECONDS", help="end after so long without work")
    agent.add_argument("--until-eof", action="store_true", help="end when standard input closes")
    agent.add_argument("--json", action="store_true", help="print one line of JSON on stdout once ready")
    agent.add_argument("--verbose", action="store_true", help="log more to stderr")


def _add_submit(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    submit = _add_verb(verbs, "submit", "run a Python script whose jobs go to the mesh", _submit)
    submit.add_argument("--deadline", type=float, metavar="SECONDS", help="give a job up after so long")
    submit.add_argument("--quiet", action="store_true", help="show no progress")
    submit.add_argument("script", type=Path)
    submit.add_argument("arguments", nargs=argparse.REMAINDER, help="handed to the script")


def _add_receipts(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    receipts = _add_verb(verbs, "receipts", "list, show, save or verify receipts", _receipts)
    receipts.add_argument("--json", action="store_true", help="print JSON on stdout")
    receipts.add_argument("--limit", type=int, default=50, metavar="N", help="newest N (default 50)")
    actions = receipts.add_subparsers(metavar="ACTION")
    for name, argument, text in (
        ("show", "receipt", "every field of one receipt"),
        ("save", "receipt", "write one receipt to a file that `receipts verify` reads"),
        ("verify", "file", "check a receipt file: no network, no database, no agent"),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument(argument, type=Path if argument == "file" else str)
        if name == "save":
            action.add_argument("output", type=Path, metavar="FILE")
        action.add_argument("--home", type=Path, metavar="DIR", default=argparse.SUPPRESS)
        action.add_argument("--json", action="store_true", default=argparse.SUPPRESS)
        action.set_defaults(action=name)
    receipts.set_defaults(action="list")


def _add_demo(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    demo = _add_verb(verbs, "demo", "three agents on this machine compute a picture", _demo, home=False)
    demo.add_argument("--keep", type=Path, metavar="DIR", help="leave each process's home under DIR")
    demo.add_argument(
        "--output", type=Path, metavar="FILE", default=Path("demo.png"), help="default: demo.png"
    )
    demo.add_argument("--tiles", type=int, default=16, metavar="N", help="how many tiles (default 16)")
    demo.add_argument("--json", action="store_true", help="end with one line of JSON on stdout")


def _home(options: argparse.Namespace) -> Home:
    return Home(options.home) if options.home is not None else default_home()


def _agent(options: argparse.Namespace) -> int:
    from coppermesh.agent.daemon import run_agent

    overrides = {
        "mesh": options.mesh,
        "listen": options.listen,
        "bootstrap": options.bootstrap,
        "allow": options.allow,
        "rate": options.rate,
        "slots": options.slots,
        "provide": False if options.requester_only else None,
        "idle_exit_seconds": options.idle_exit,
    }
    return run_agent(
        _home(options),
        overrides,
        json_ready=options.json,
        until_eof=options.until_eof,
        verbose=options.verbose,
    )


def _read(options: argparse.Namespace) -> int:
    from coppermesh.agent.local_link import LocalLink

    with LocalLink(_home(options).socket_path) as link:
        text = link.call_json(options.verb)
    if options.json:
        print(text)
    else:
        print("\n".join(screens.READING[options.verb](json.loads(text))))
    return EXIT_OK


def _control(options: argparse.Namespace) -> int:
    from coppermesh.agent.local_link import LocalLink

    with LocalLink(_home(options).socket_path) as link:
        facts = json.loads(link.call_json(options.verb))
    print(f"coppermesh: {facts['sentence']}", file=sys.stderr)
    return EXIT_OK


def _id(options: argparse.Namespace) -> int:
    from coppermesh.agent.config import load_config
    from coppermesh.p2p.ids import format_peer, mesh_id
    from coppermesh.p2p.signing import PeerKey

    home = _home(options)
    home.prepare()
    mesh = mesh_id(load_config(home, mesh=options.mesh).mesh)
    print(format_peer(PeerKey.load_or_create(home.key_path(mesh)).peer))
    return EXIT_OK


def _submit(options: argparse.Namespace) -> int:
    if not options.script.is_file():
        print(f"coppermesh: no such script: {options.script}", file=sys.stderr)
        return EXIT_USAGE
    home = _home(options)
    os.environ["COPPERMESH_HOME"] = str(home.path)
    if not options.quiet:
        os.environ["COPPERMESH_PROGRESS"] = "1"
    if options.deadline is not None:
        os.environ["COPPERMESH_DEADLINE"] = str(options.deadline)
    sys.argv = [str(options.script), *options.arguments]
    # As `python script.py` would: the script's own folder first.
    sys.path.insert(0, str(options.script.resolve().parent))
    runpy.run_path(str(options.script), run_name="__main__")
    return EXIT_OK


def _receipts(options: argparse.Namespace) -> int:
    from coppermesh.agent import receipt_commands as commands

    if options.action == "verify":
        facts = commands.verify_file(options.file)
        print(json.dumps(facts) if options.json else "\n".join(screens.verified_receipt(facts)))
        return EXIT_OK if facts["ok"] else EXIT_FAILED
    home = _home(options)
    if options.action == "save":
        options.output.write_bytes(commands.receipt_file(home, options.receipt))
        print(f"coppermesh: wrote {options.output}", file=sys.stderr)
    elif options.action == "show":
        facts = commands.show(home, options.receipt)
        print(json.dumps(facts) if options.json else "\n".join(screens.receipt(facts)))
    else:
        rows = commands.list_newest(home, options.limit)
        print(json.dumps(rows) if options.json else "\n".join(screens.receipts(rows)))
    return EXIT_OK


def _explain(options: argparse.Namespace) -> int:
    from coppermesh.agent import receipt_commands as commands

    story = commands.explain(_home(options), options.job)
    print(json.dumps(story) if options.json else "\n".join(screens.printable(line) for line in story["text"]))
    return EXIT_OK


def _demo(options: argparse.Namespace) -> int:
    from coppermesh.agent.demo import run_demo

    return run_demo(keep=options.keep, output=options.output, tiles=options.tiles, as_json=options.json)


def _bench(options: argparse.Namespace) -> int:
    from coppermesh.agent.bench import run_bench

    return run_bench(as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
