"""`coppermesh agent`: one process, one home, from start to an orderly end."""

import gc
import json
import logging
import os
import signal
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

import trio

from coppermesh.agent.config import Loaded
from coppermesh.agent.config_file import ConfigFile, write_template
from coppermesh.agent.ending import cancel_on_eof, cancel_on_signal, mesh_error_in
from coppermesh.agent.home import Home
from coppermesh.agent.log_pace import set_up_logging
from coppermesh.agent.node import Node, Parts, open_node
from coppermesh.exec.cgroups import Cgroups, NoCgroups
from coppermesh.exec.supervisor import open_supervisor
from coppermesh.p2p.ids import format_peer

SWITCH_SECONDS = 0.0005
"""How long a thread that computes keeps the others waiting. Each statement of the ledger's thread waits so long where
the main one is busy; the usual 5 ms add up over the statements of a commit, and over the commits of a task."""
GARBAGE_OBJECTS = 10_000
"""After so many new objects cycles among them are looked for; a task makes some hundreds, and leaves few cycles."""


def run_agent(
    home: Home, overrides: Mapping[str, Any], *, json_ready: bool, until_eof: bool, verbose: bool
) -> int:
    """Run the home's agent until a signal, `coppermesh stop`, its idle limit or (with `until_eof`) the end of stdin.

    Returns the exit code. Raises HomeLocked, HomeError, ConfigError, IdentityError.
    """
    set_up_logging(sys.stderr, verbose)
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.freeze()  # what is imported stays: not looked through again and again
    gc.set_threshold(GARBAGE_OBJECTS)
    file = ConfigFile(home.config_path, overrides)
    loaded = file.load()
    with home.lock():
        if sys.stderr.isatty():  # a person waits; in a log its last words count
            print(f"coppermesh: starting an agent in {home.path}", file=sys.stderr, flush=True)
        if write_template(home.config_path):
            loaded = file.load()
        try:
            trio.run(_main, home, loaded, file, json_ready, until_eof)
        except BaseExceptionGroup as group:
            # Nurseries wrap what their tasks raise; a person is told the sentence inside.
            error = mesh_error_in(group)
            if error is None:
                raise
            raise error from None
    return 0


async def _main(home: Home, loaded: Loaded, file: ConfigFile, json_ready: bool, until_eof: bool) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_on_signal, signals, nursery.cancel_scope)
            if until_eof:
                nursery.start_soon(cancel_on_eof, nursery.cancel_scope)
            parts = Parts(supervisor=partial(open_supervisor, cgroups=_find_cgroups()))
            async with open_node(home, loaded, parts, file=file) as node:
                _say_ready(node, json_ready)
                await node.machine.stopping.wait()
            nursery.cancel_scope.cancel()


def _find_cgroups() -> Cgroups | None:
    """The subtree that was delegated to this agent, for its workers' limits; None where there is none."""
    try:
        found = Cgroups.find()
    except NoCgroups as error:
        logging.getLogger(__name__).debug("workers get no cgroups of their own: %s", error)
        return None
    logging.getLogger(__name__).info("workers get cgroups of their own under %s", found.root)
    return found


def _say_ready(node: Node, json_ready: bool) -> None:
    facts = {
        "ready": True,
        "peer": format_peer(node.key.peer),
        "mesh": node.config.mesh,
        "home": str(node.home.path),
        "addresses": node.transport.addresses,
        "pid": os.getpid(),
    }
    if json_ready:
        print(json.dumps(facts), flush=True)
        return
    print(
        f"coppermesh: agent {facts['peer']} on mesh {facts['mesh']!r}, home {facts['home']}", file=sys.stderr
    )
    for address in node.transport.addresses:
        print(f"coppermesh: listening on {address}", file=sys.stderr)
    for other in node.meshes.nodes:
        if other is not node:
            print(f"coppermesh: serves private mesh {other.config.mesh!r}, too", file=sys.stderr)
    if node.provider is None:
        print("coppermesh: submits jobs, offers no device", file=sys.stderr)
    else:
        for offer in node.provider.offers:
            takes = ", ".join(offer.features)
            print(f"coppermesh: offers {offer.device}: {offer.name} ({takes})", file=sys.stderr)
