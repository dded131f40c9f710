"""`coppermesh bootstrap`: run a seed. It lives in a home as an agent does, with the same lock and the same settings.

bootstrap/ stands above this folder and is found by its name, as a plug-in would be; it gets plain values.
"""

import argparse
import importlib
import json
import os
import signal
import sys
from dataclasses import replace
from typing import Any

from coppermesh.agent import option_types
from coppermesh.agent.clock import now_us
from coppermesh.agent.config import Config, ConfigError, environment, load_settings
from coppermesh.agent.config_file import write_template
from coppermesh.agent.home import Home
from coppermesh.agent.log_pace import set_up_logging
from coppermesh.agent.mesh_state import find_mesh, private_meshes
from coppermesh.agent.verbs import EXIT_OK, Verbs, add_verb, home_of
from coppermesh.p2p.errors import Unreachable
from coppermesh.p2p.ids import format_peer, mesh_id

_EPILOG = """\
A seed needs no GPU and runs no jobs: it tells newcomers who is there, whether they can be reached, and carries
connections for those who cannot. Others name the address it prints: --bootstrap, or `bootstrap` in config.toml. Its
limits are in the table [seed] of config.toml. Run one per home.

example: coppermesh bootstrap --home seed --listen /ip4/0.0.0.0/tcp/4001
"""


def add(verbs: Verbs) -> None:
    """Add the verb."""
    parser = add_verb(
        verbs, "bootstrap", "run a seed: the peer that newcomers ask first, and a relay", _bootstrap
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    text = option_types.text_setting
    parser.add_argument("--mesh", type=text("mesh"), metavar="NAME", help="the mesh to serve (default: open)")
    parser.add_argument(
        "--listen", type=text("listen"), metavar="ADDRESS", help="default: /ip4/0.0.0.0/tcp/4001"
    )
    parser.add_argument(
        "--bootstrap",
        type=text("bootstrap"),
        action="append",
        metavar="ADDRESS",
        help="another seed (repeatable)",
    )
    parser.add_argument(
        "--status-port",
        type=option_types.whole(0, 65535),
        metavar="PORT",
        help="the status page on 127.0.0.1 (default 4180; 0: none)",
    )
    parser.add_argument("--until-eof", action="store_true", help="end when standard input closes")
    parser.add_argument("--json", action="store_true", help="print one line of JSON on stdout once ready")
    parser.add_argument("--verbose", action="store_true", help="log more to stderr")


def _bootstrap(options: argparse.Namespace) -> int:
    home = home_of(options)
    overrides = {
        "mesh": options.mesh,
        "listen": options.listen or environment().get("listen"),
        "bootstrap": options.bootstrap,
    }
    set_up_logging(sys.stderr, options.verbose)
    with home.lock(seed=True):
        write_template(home.config_path)
        loaded = load_settings(home.config_path, overrides)
        config, origins = loaded.config, loaded.origins
        if find_mesh(private_meshes(home), config.mesh) is not None:
            raise option_types.WrongOption(
                f"--mesh: {config.mesh!r} is a private mesh, whose first peer has to be a member: set provide = false, "
                "and serve_relay = true below [network], and run `coppermesh agent` in this home"
            )
        if options.status_port is not None:
            config = replace(config, seed=replace(config.seed, status_port=options.status_port))
        seed = importlib.import_module("coppermesh.bootstrap.seed")
        if "listen" not in origins:
            config = replace(config, listen=seed.LISTEN)
        try:
            _run(home, config, options)
        except Unreachable as error:
            # A port that is taken, not a peer that is away.
            raise ConfigError(str(error)) from error
    return EXIT_OK


def _run(home: Home, config: Config, options: argparse.Namespace) -> None:
    import trio

    from coppermesh.agent.ending import mesh_error_in

    try:
        trio.run(_main, home, config, options)
    except BaseExceptionGroup as group:
        error = mesh_error_in(group)
        if error is None:
            raise
        raise error from None


async def _main(home: Home, config: Config, options: argparse.Namespace) -> None:
    import trio

    from coppermesh.agent.ending import cancel_on_eof, cancel_on_signal

    seed = importlib.import_module("coppermesh.bootstrap.seed")
    status = importlib.import_module("coppermesh.bootstrap.status")
    mesh = mesh_id(config.mesh)
    place = seed.Place(home.key_path(mesh), home.peers_path(mesh), now_us)
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_on_signal, signals, nursery.cancel_scope)
            if options.until_eof:
                nursery.start_soon(cancel_on_eof, nursery.cancel_scope)
            async with seed.open_seed(config, place) as node:
                if config.seed.status_port:
                    async with status.serve_status(config.seed.status_port, node.facts) as port:
                        _say_ready(node, home, port, as_json=options.json)
                        await trio.sleep_forever()
                _say_ready(node, home, None, as_json=options.json)
                await trio.sleep_forever()


def _say_ready(node: Any, home: Home, port: int | None, *, as_json: bool) -> None:
    facts = {
        "ready": True,
        "peer": format_peer(node.key.peer),
        "mesh": node.config.mesh,
        "home": str(home.path),
        "addresses": node.transport.addresses,
        "status": None if port is None else f"http://127.0.0.1:{port}/",
        "pid": os.getpid(),
    }
    if as_json:
        print(json.dumps(facts), flush=True)
        return
    print(
        f"coppermesh: seed {facts['peer']} of mesh {facts['mesh']!r}, home {facts['home']}", file=sys.stderr
    )
    for address in node.transport.addresses:
        print(f"coppermesh: others name it with --bootstrap {address}", file=sys.stderr)
    if port is not None:
        print(f"coppermesh: its status is at {facts['status']}", file=sys.stderr)
