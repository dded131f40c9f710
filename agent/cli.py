"""The command line. Talk goes to stderr, data to stdout; exit codes are listed in `--help` and stay as they are.

Each verb imports what it needs when it runs: `coppermesh receipts verify` loads no network, `coppermesh submit` no key.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from coppermesh.agent import (
    bootstrap_verbs,
    doctor_verbs,
    economy_verbs,
    layout,
    ledger_verbs,
    mesh_verbs,
    option_types,
    receipt_verbs,
    screens,
    settlement_verbs,
    simulate_verbs,
    submit_verbs,
)
from coppermesh.agent.config import ConfigError
from coppermesh.agent.home import HomeError, HomeLocked
from coppermesh.agent.option_types import WrongOption
from coppermesh.agent.verbs import (
    EXIT_CONFIG,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_LOCKED,
    EXIT_NO_AGENT,
    EXIT_NO_VERDICT,
    EXIT_OK,
    EXIT_USAGE,
    JOB_HELP,
    JSON_HELP,
    Verbs,
    add_limit,
    add_mesh,
    add_verb,
    home_of,
    say,
    show,
)
from coppermesh.p2p.errors import IdentityError, MeshError, Unreachable

_EPILOG = """\
exit codes: 0 done; 1 the job, the check or the request failed; 2 wrong usage; 3 no agent answers;
            4 the home is in use by another agent; 5 settings, key or home cannot be used;
            6 a challenge was not decided;
            7 check: some devices take the file, others do not;
            130 interrupted (the agent, which is meant to be ended so: 0)

COPPERMESH_HOME moves everything an agent keeps (keys, config, ledger, store, socket).
COPPERMESH_LISTEN is where an agent accepts connections when --listen does not say: it comes before config.toml.

example: coppermesh demo
         coppermesh agent --home A --listen /ip4/0.0.0.0/tcp/4001
         COPPERMESH_HOME=A coppermesh submit photo.py
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parsed(_joined(sys.argv[1:] if arguments is None else arguments))
    columns = shutil.get_terminal_size((layout.USUAL, 24)).columns
    layout.fit_to(columns, folding=sys.stdout.isatty())
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left (`coppermesh receipts | head`): not an error; keep the exit quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except WrongOption as error:
        return say(error, EXIT_USAGE)
    except HomeLocked as error:
        return say(error, EXIT_LOCKED)
    except (HomeError, ConfigError, IdentityError) as error:
        return say(error, EXIT_CONFIG)
    except Unreachable as error:
        return say(error, EXIT_NO_AGENT)
    except MeshError as error:
        return say(error, EXIT_FAILED)


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; what nobody asked for is told with the usage of the command it was given to, not of all."""
    parser = _build_parser()
    options, rest = parser.parse_known_args(arguments)
    if rest:
        _parser_of(parser, arguments).error(f"unrecognized arguments: {' '.join(rest)}")
    return options


def _parser_of(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of the command, or the command's command, that the arguments name."""
    for word in arguments:
        for action in parser._actions:  # noqa: SLF001 - argparse tells nobody which of its parsers it chose
            if isinstance(action, argparse._SubParsersAction) and word in action.choices:  # noqa: SLF001
                return _parser_of(action.choices[word], arguments[arguments.index(word) + 1 :])
    return parser


def _joined(arguments: Sequence[str]) -> list[str]:
    """`--option -DN=4` as one word: argparse takes a value that begins with a dash for another option."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[0] == "check" and joined[-1] == "--option" and argument.startswith("-"):
            joined[-1] = f"--option={argument}"
        else:
            joined.append(argument)
    return joined


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
    bootstrap_verbs.add(verbs)
    for verb, text in _READING.items():
        reading = add_verb(verbs, verb, text, _read)
        add_mesh(reading)
        reading.add_argument("--json", action="store_true", help=JSON_HELP)
        reading.set_defaults(verb=verb)
    pause = _add_control(verbs, "pause", "take no new work; what was accepted is finished")
    pause.add_argument("--now", action="store_true", help="end running tasks too; they run elsewhere")
    _add_control(verbs, "resume", "take leases again")
    _add_config(verbs)
    _add_control(verbs, "stop", "end this home's agent")
    identity = add_verb(verbs, "id", "print this home's peer id on its mesh (made when missing)", _id)
    _add_mesh(identity, "another mesh than the configured one")
    identity.add_argument("--json", action="store_true", help=JSON_HELP)
    submit_verbs.add(verbs)
    economy_verbs.add(verbs)
    _add_jobs(verbs)
    receipt_verbs.add(verbs)
    ledger_verbs.add(verbs)
    settlement_verbs.add(verbs)
    simulate_verbs.add(verbs)
    explain = add_verb(
        verbs, "explain", "tell the story of a job or order, and count why others refused", _explain
    )
    add_mesh(explain)
    explain.add_argument("job", type=option_types.id_prefix, help="job or order id, or its first digits")
    explain.add_argument("--json", action="store_true", help=JSON_HELP)
    _add_challenge(verbs)
    _add_check(verbs)
    mesh_verbs.add(verbs)
    _add_demo(verbs)
    doctor_verbs.add(verbs)
    bench = add_verb(verbs, "bench", "measure this machine with agents on loopback", _bench, home=False)
    bench.add_argument(
        "--peers",
        action="store_true",
        help="the same small work on dask.distributed and Ray too, where they are installed",
    )
    bench.add_argument("--json", action="store_true", help="print one line of JSON on stdout")
    return parser


_CHECK_EPILOG = """\
exit codes: 0 every device takes it (what could not be tried is not counted, unless --arch asked for it)
            1 none does; 2 wrong usage, or the file cannot be read; 7 some do

Compiling for CUDA needs no GPU, but NVIDIA's NVRTC: bootstrap/setup --check installs it.

example: coppermesh check blur.cu --arch sm_90 --name 'blur<float>'
"""
_CONFIG_EPILOG = """\
The settings are in config.toml in the home; an agent's first start leaves one with every setting, its default and
what it does. A running agent takes changes within two seconds. A wrong change leaves the settings as they were:
`config check` and `status` say what is wrong, and in which line.
"""
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


def _add_agent(verbs: Verbs) -> None:
    agent = add_verb(verbs, "agent", "run this home's agent in the foreground", _agent)
    text, whole = option_types.text_setting, option_types.whole_setting
    _add_mesh(agent, "the mesh to join (default: open)")
    agent.add_argument(
        "--listen",
        type=text("listen"),
        metavar="ADDRESS",
        help="where to accept connections (default: /ip4/0.0.0.0/tcp/0, every network; $COPPERMESH_LISTEN)",
    )
    agent.add_argument(
        "--bootstrap",
        type=text("bootstrap"),
        action="append",
        metavar="ADDRESS",
        help="an agent to find others through",
    )
    agent.add_argument(
        "--allow",
        type=text("trust"),
        action="append",
        metavar="PEER",
        help="a peer whose kernels may run here",
    )
    agent.add_argument("--rate", type=whole("rate"), metavar="N", help="price in 10^-6 usd per device-hour")
    agent.add_argument("--slots", type=whole("slots"), metavar="N", help="leases served at once per device")
    agent.add_argument("--requester-only", action="store_true", help="submit jobs, offer no device")
    agent.add_argument(
        "--idle-exit",
        type=whole("idle_exit_seconds"),
        metavar="SECONDS",
        help="end after so long without work",
    )
    agent.add_argument("--until-eof", action="store_true", help="end when standard input closes")
    agent.add_argument("--json", action="store_true", help="print one line of JSON on stdout once ready")
    agent.add_argument("--verbose", action="store_true", help="log more to stderr")


def _add_mesh(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--mesh", type=option_types.text_setting("mesh"), metavar="NAME", help=text)


def _add_control(verbs: Verbs, verb: str, text: str) -> argparse.ArgumentParser:
    control = add_verb(verbs, verb, text, _control)
    control.add_argument("--json", action="store_true", help=JSON_HELP)
    control.set_defaults(verb=verb)
    return control


def _add_config(verbs: Verbs) -> None:
    text = "show the settings that hold and where each came from, or check the file"
    config = add_verb(verbs, "config", text, _config)
    config.formatter_class = argparse.RawDescriptionHelpFormatter
    config.epilog = _CONFIG_EPILOG
    config.add_argument("action", nargs="?", choices=("show", "check"), default="show")
    config.add_argument("--json", action="store_true", help=JSON_HELP)


def _add_jobs(verbs: Verbs) -> None:
    jobs = add_verb(verbs, "jobs", "jobs submitted from this home, newest first", _jobs)
    add_mesh(jobs)
    jobs.add_argument("--json", action="store_true", help=JSON_HELP)
    add_limit(jobs, 20)
    cancel = add_verb(verbs, "cancel", "take a running job back; what is done already is paid", _control)
    add_mesh(cancel)
    cancel.add_argument("job", type=option_types.id_prefix, help=JOB_HELP)
    cancel.add_argument("--json", action="store_true", help=JSON_HELP)
    cancel.set_defaults(verb="cancel")


def _add_challenge(verbs: Verbs) -> None:
    text = "have a finished task's provider show what every node gave, and find where two runs part"
    parser = add_verb(verbs, "challenge", text, _challenge)
    add_mesh(parser)
    parser.add_argument("job", type=option_types.id_prefix, help=JOB_HELP)
    parser.add_argument(
        "task",
        type=option_types.whole(0, 99_999),
        nargs="?",
        default=0,
        help="which of its tasks (default 0)",
    )
    parser.add_argument("--local", action="store_true", help="run it on this machine too, and compare")
    parser.add_argument(
        "--timeout",
        type=option_types.deadline,
        default=120.0,
        metavar="SECONDS",
        help="how long to wait for providers, which let paid work go first (default 120)",
    )
    parser.add_argument("--json", action="store_true", help=JSON_HELP)


def _add_check(verbs: Verbs) -> None:
    check = add_verb(
        verbs, "check", "does a CUDA source file compile, and on which devices", _check, home=False
    )
    check.formatter_class = argparse.RawDescriptionHelpFormatter
    check.epilog = _CHECK_EPILOG
    check.add_argument("file", type=Path, help="CUDA C++ source, such as kernel.cu")
    check.add_argument(
        "--arch",
        type=option_types.architecture,
        action="append",
        default=[],
        metavar="sm_N",
        help="compile for this one (repeat for several; default: the oldest and the newest that NVRTC knows)",
    )
    check.add_argument(
        "--name",
        action="append",
        default=[],
        metavar="EXPRESSION",
        help="compile this instance of a template, such as 'scale<float>' (repeatable)",
    )
    check.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="OPTION",
        help="compiler option as given to RawKernel, such as -DN=4 (repeatable)",
    )
    check.add_argument("--json", action="store_true", help="print one line of JSON on stdout")


def _add_demo(verbs: Verbs) -> None:
    demo = add_verb(verbs, "demo", "three agents on this machine compute a picture", _demo, home=False)
    demo.add_argument("--keep", type=Path, metavar="DIR", help="leave each process's home under DIR")
    demo.add_argument(
        "--output", type=Path, metavar="FILE", default=Path("demo.png"), help="default: demo.png"
    )
    demo.add_argument(
        "--tiles",
        type=option_types.whole(1, 400),
        default=16,
        metavar="N",
        help="how many tiles, 1 to 400 (default 16)",
    )
    demo.add_argument("--json", action="store_true", help="end with one line of JSON on stdout")


def _agent(options: argparse.Namespace) -> int:
    from coppermesh.agent.config import environment
    from coppermesh.agent.daemon import run_agent

    overrides = {
        "mesh": options.mesh,
        "listen": options.listen or environment().get("listen"),
        "bootstrap": options.bootstrap,
        "trust": options.allow,
        "rate": options.rate,
        "slots": options.slots,
        "provide": False if options.requester_only else None,
        "idle_exit_seconds": options.idle_exit,
    }
    return run_agent(
        home_of(options),
        overrides,
        json_ready=options.json,
        until_eof=options.until_eof,
        verbose=options.verbose,
    )


def _read(options: argparse.Namespace) -> int:
    from coppermesh.agent.local_link import LocalLink

    with LocalLink(home_of(options).socket_path) as link:
        text = link.call_json(options.verb)
    if options.json:
        print(text)
    else:
        show(screens.READING[options.verb](json.loads(text)), screens.NOTHING.get(options.verb, ""))
    return EXIT_OK


def _control(options: argparse.Namespace) -> int:
    from coppermesh.agent.local_link import LocalLink

    home = home_of(options)
    if options.verb == "stop" and home.lock_holder() is None:
        raise Unreachable(f"no agent runs in {home.path}: there is nothing to stop")
    with LocalLink(home.socket_path) as link:
        given = {"cancel": "job", "pause": "now"}.get(options.verb)
        arguments = json.dumps({given: getattr(options, given)} if given is not None else {})
        facts = json.loads(link.call_json(options.verb, arguments))
    print(f"coppermesh: {facts['sentence']}", file=sys.stderr)
    if options.json:
        print(json.dumps(facts))
    return EXIT_OK


def _config(options: argparse.Namespace) -> int:
    from coppermesh.agent import config_view

    home = home_of(options)
    facts = config_view.check(home) if options.action == "check" else config_view.show(home)
    if options.json:
        print(json.dumps(facts))
    elif options.action == "check":
        print(f"coppermesh: {facts['sentence']}", file=sys.stderr)
    else:
        show(screens.config(facts))
    return EXIT_CONFIG if facts.get("error") else EXIT_OK


def _id(options: argparse.Namespace) -> int:
    from coppermesh.agent.config import load_config
    from coppermesh.agent.mesh_state import id_of
    from coppermesh.p2p.ids import format_peer
    from coppermesh.p2p.signing import PeerKey

    home = home_of(options)
    home.prepare()
    mesh = load_config(home, mesh=options.mesh).mesh
    peer = format_peer(PeerKey.load_or_create(home.key_path(id_of(home, mesh))).peer)
    print(json.dumps({"peer": peer, "mesh": mesh}) if options.json else peer)
    return EXIT_OK


def _jobs(options: argparse.Namespace) -> int:
    from coppermesh.agent import receipt_commands as commands

    rows = commands.jobs(home_of(options), options.limit)
    if options.json:
        print(json.dumps(rows))
    else:
        show(screens.jobs(rows), commands.nothing(home_of(options), "jobs"))
    return EXIT_OK


def _explain(options: argparse.Namespace) -> int:
    from coppermesh.agent import receipt_commands as commands

    story = commands.explain(home_of(options), options.job)
    if options.json:
        print(json.dumps(story))
    else:
        show([screens.printable(line) for line in story["text"]])
    return EXIT_OK


def _challenge(options: argparse.Namespace) -> int:
    from coppermesh.agent.challenge_report import NoVerdict, challenge
    from coppermesh.agent.local_link import LocalLink
    from coppermesh.exec.errors import ExecError
    from coppermesh.p2p.errors import Refused

    path = home_of(options).socket_path
    try:
        report = challenge(
            lambda seconds: LocalLink(path, timeout_s=seconds),
            options.job,
            options.task,
            local=options.local,
            timeout=options.timeout,
        )
    except (NoVerdict, Refused, ExecError) as error:
        return say(error, EXIT_NO_VERDICT)
    print(json.dumps(report.as_dict()) if options.json else screens.printable(str(report)))
    return EXIT_FAILED if report.fault else EXIT_OK


def _check(options: argparse.Namespace) -> int:
    from coppermesh.agent.check_command import run_check
    from coppermesh.exec.kernel_check import CheckRequest

    request = CheckRequest(tuple(options.arch), tuple(options.name), tuple(options.option))
    return run_check(options.file, request, as_json=options.json)


def _demo(options: argparse.Namespace) -> int:
    from coppermesh.agent.demo import run_demo

    return run_demo(keep=options.keep, output=options.output, tiles=options.tiles, as_json=options.json)


def _bench(options: argparse.Namespace) -> int:
    from coppermesh.agent.bench import run_bench, run_peers

    return run_peers(as_json=options.json) if options.peers else run_bench(as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
