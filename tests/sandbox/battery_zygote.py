"""A real zygote whose children run one hostile act instead of a job, confined as a worker or builder is.

    python -I battery_zygote.py SOCKET PARENT confined|bare USER ABI

`confined`: what happens up to the act is production code alone: `zygote.main`, its fork, `take_descriptors`, and the
`confine` of `worker` or `builder`. `bare` is the control: the same process without `confine`, and with descriptors
and environment left as they are. USER other than 0 makes it an ordinary user's zygote when it was started by root.
ABI other than 0 is the edition of Landlock that is used, as on an older kernel.
"""

import importlib.util
import os
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

from coppermesh.exec import builder, linux, sockets, worker, zygote
from coppermesh.exec.blackbox import BlackBox
from coppermesh.exec.sandbox import apply, landlock

HERE = Path(__file__).parent
MODE, USER, ABI = sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
if ABI:
    changed: Any = landlock
    changed.abi = lambda: ABI


def load(name):
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


acts = load("acts")
SIBLING: list[int] = []


def act_main(sock, box, order, start, confine):
    """What replaces a worker's `main`: confine, then one act."""
    if MODE == "confined":
        confine(order, start)
    data, lent = sockets.receive(sock)
    name, _, rest = data.partition(b"\0")
    stage = acts.decode_stage(rest)
    stage.sibling, stage.confined = SIBLING[0], MODE == "confined"
    stage.lent, stage.input = lent
    act = acts.BY_NAME[name.decode()]
    try:
        found = act.run(stage)
        answer = f"succeeded: {found!r}" if found else "blocked: it had no effect"
    except BaseException as error:  # noqa: BLE001 - whatever stops an act has stopped it
        answer = f"blocked: {type(error).__name__}: {error}"
        if os.environ.get("BATTERY_TRACE"):
            answer += traceback.format_exc()
    sockets.send(sock, answer.encode("ascii", "replace")[:60_000])


def keep_descriptors(descriptors):
    """Instead of `take_descriptors`, in a control: nothing is closed."""
    os.dup2(descriptors[0], 200, inheritable=False)
    os.dup2(descriptors[1], 1)
    os.dup2(descriptors[1], 201)
    return socket.socket(fileno=200), BlackBox(201)


def become_ordinary():
    if USER and os.geteuid() == 0:
        parent = os.getppid()
        os.setgroups([])
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)
        linux.die_with_parent(parent)
    linux.prctl(4, 1)  # dumpable, as a process of that user would be


def start_sibling():
    """A process of the same user that any of its siblings may trace, as far as nothing else stops them."""
    pid = os.fork()
    if pid == 0:
        linux.die_with_parent(os.getppid())
        linux.prctl(4, 1)
        signal.pause()
        os._exit(0)
    SIBLING.append(pid)


original_prepare, original_seclude = apply.prepare, zygote._seclude


def prepare(compiler, family):
    original_prepare(compiler, family)
    become_ordinary()


def seclude(start):
    done = ((), None) if MODE == "bare" else original_seclude(start)
    linux.prctl(4, 1)
    start_sibling()
    return done


apply.prepare, zygote._seclude = prepare, seclude
worker_confine, builder_confine = worker.confine, builder.confine
worker.main = lambda sock, box, order, start: act_main(
    sock, box, order, start, lambda order, start: worker_confine(order, start.kind)
)
builder.main = lambda sock, box, order, start: act_main(sock, box, order, start, builder_confine)
if MODE == "bare":
    zygote.take_descriptors = keep_descriptors

if __name__ == "__main__":
    zygote.main()
