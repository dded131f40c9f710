"""`coppermesh submit`: run a Python script whose jobs go to the mesh, with options for those that name none."""

import argparse
import json
import os
import runpy
import sys
import traceback
from pathlib import Path
from typing import Any

from coppermesh.agent import option_types
from coppermesh.agent.verbs import EXIT_FAILED, EXIT_OK, EXIT_USAGE, Verbs, add_mesh, add_verb, home_of
from coppermesh.p2p.errors import MeshError

_EPILOG = """\
Each option is the default for jobs whose script names none; see `help(coppermesh.Mesh.submit)`.
Money is in 10^-6 usd; a speed in Mop/s, millions of operations per second.

example: coppermesh submit --device cuda --model h100 --max-rate 2500000 train.py
"""
_BYTES = 1 << 60
_MONEY = "10^-6 usd (0.01 usd is 10000)"
_RATE = "10^-6 usd per device-hour (0.01 usd is 10000)"


def add(verbs: Verbs) -> None:
    """Add the verb."""
    submit = add_verb(verbs, "submit", "run a Python script whose jobs go to the mesh", _submit)
    add_mesh(submit)
    submit.formatter_class = argparse.RawDescriptionHelpFormatter
    submit.epilog = _EPILOG
    submit.add_argument(
        "--deadline",
        type=option_types.deadline,
        metavar="SECONDS",
        dest="deadline_s",
        help="give a job up after so long, where the script names no time (default 300)",
    )
    submit.add_argument(
        "--isolation",
        type=option_types.isolation,
        metavar="LAYERS",
        help="only providers that witnessed these layers of the sandbox, such as landlock,seccomp,netns, where the"
        " script names none (`coppermesh doctor sandbox` lists them)",
    )
    _add_market(submit)
    submit.add_argument(
        "--dry-run",
        action="store_true",
        help="show who bids for the script's first job, in which order and why, and what it would cost; lease nothing"
        " and end there",
    )
    submit.add_argument("--json", action="store_true", help="with --dry-run: one line of JSON on stdout")
    submit.add_argument("--quiet", action="store_true", help="show no progress")
    submit.add_argument("script", type=Path)
    submit.add_argument("arguments", nargs=argparse.REMAINDER, help="handed to the script")


def _add_market(submit: argparse.ArgumentParser) -> None:
    whole = option_types.whole
    submit.add_argument("--device", choices=("any", "cpu", "cuda"), help="the kind of device")
    submit.add_argument("--model", metavar="TEXT", help="part of the device's name, such as h100")
    submit.add_argument(
        "--memory", type=whole(0, _BYTES, "bytes"), metavar="BYTES", help="least memory for a task"
    )
    submit.add_argument(
        "--min-speed",
        type=whole(0, _BYTES, "Mop/s"),
        metavar="N",
        help="least measured speed of the device in Mop/s",
    )
    submit.add_argument(
        "--max-rate",
        type=whole(0, _BYTES, _RATE),
        metavar="N",
        help="most to pay per device-hour, in 10^-6 usd",
    )
    submit.add_argument(
        "--budget",
        type=whole(0, _BYTES, _MONEY),
        metavar="N",
        help="most that one job may cost, in 10^-6 usd",
    )
    submit.add_argument(
        "--redundancy", type=whole(1, 8), metavar="N", help="run each task at N providers and compare"
    )


_OPTIONS = (
    "deadline_s", "isolation", "device", "model", "memory", "min_speed", "max_rate", "budget", "redundancy",
)  # fmt: skip


def _submit(options: argparse.Namespace) -> int:
    if not options.script.is_file():
        print(f"coppermesh: no such script: {options.script}", file=sys.stderr)
        return EXIT_USAGE
    os.environ["COPPERMESH_HOME"] = str(home_of(options).path)
    if not options.quiet:
        os.environ["COPPERMESH_PROGRESS"] = "1"
    if options.dry_run:
        os.environ["COPPERMESH_DRY_RUN"] = "json" if options.json else "text"
    elif options.json:
        print("coppermesh: submit --json goes with --dry-run", file=sys.stderr)
        return EXIT_USAGE
    given: dict[str, Any] = {name: getattr(options, name) for name in _OPTIONS}
    os.environ["COPPERMESH_OPTIONS"] = json.dumps({name: it for name, it in given.items() if it is not None})
    sys.argv = [str(options.script), *options.arguments]
    # As `python script.py` would: the script's own folder first.
    sys.path.insert(0, str(options.script.resolve().parent))
    try:
        runpy.run_path(str(options.script), run_name="__main__")
    except KeyboardInterrupt:
        _cancel_open_jobs()
        raise
    except (MeshError, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - the script's own: shown as Python shows it, and our exit code is 1
        _show_script_error(error, options.script)
        _tell_open_jobs()
        return EXIT_FAILED
    return EXIT_OK


def _show_script_error(error: BaseException, script: Path) -> None:
    """The traceback from the script's first frame on: what led to it is this command and no business of the user's."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename != str(script):
        frames = frames.tb_next
    traceback.print_exception(type(error), error, frames)


def _tell_open_jobs() -> None:
    """The script ended by itself, and what it submitted goes on: the last chance to say so."""
    from coppermesh.agent.job_handle import open_jobs

    for job in open_jobs():
        short = job[:8]
        print(f"coppermesh: job {short} goes on; to take it back: coppermesh cancel {short}", file=sys.stderr)


def _cancel_open_jobs() -> None:
    """The script was interrupted: nobody waits for its jobs any more, so nobody should pay for them."""
    from coppermesh.agent.job_handle import cancel_open_jobs

    for job in cancel_open_jobs():
        print(f"coppermesh: job {job[:8]} cancelled; finished tasks stay paid", file=sys.stderr)
