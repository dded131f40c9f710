"""`coppermesh mesh`: make a private mesh, invite into it, join one, see who is in it, revoke, leave.

What needs no network works on the home's files where no agent runs; a running agent is asked, and serves a mesh that
was made or joined at once. Joining goes to the door by itself, outside the agent, since it happens once.
"""

import argparse
import getpass
import json
import platform
import sys
from contextlib import nullcontext
from typing import Any

from coppermesh.agent import mesh_screens, option_types, screens
from coppermesh.agent.home import Home
from coppermesh.agent.verbs import EXIT_OK, JSON_HELP, Verbs, home_of, show

_EPILOG = """\
A lab in three commands:

  coppermesh mesh create lab                  here: this home is its first admin, and holds its root key
  coppermesh mesh invite --mesh lab           prints one string (the agent must run: its door is where it is redeemed)
  coppermesh mesh join coppermesh1...         on another machine; a running agent serves the mesh at once

Other commands take --mesh lab (`submit`, `status`, `peers`, `devices`, ...), or set mesh = "lab" in config.toml to
make it the default mesh. Roles: admin (invites and revokes), member, submit-only, provide-only.
"""
INVITE_EXPIRES = "7d"


def add(verbs: Verbs) -> None:
    """Add the verb `mesh` and its actions."""
    text = "private meshes: create, invite, join, list, members, revoke, leave"
    mesh = verbs.add_parser("mesh", help=text, description=text[0].upper() + text[1:] + ".", epilog=_EPILOG)
    mesh.formatter_class = argparse.RawDescriptionHelpFormatter
    actions = mesh.add_subparsers(required=True, metavar="ACTION")
    create = _action(actions, "create", "make a private mesh; this home is its first admin", _create)
    create.add_argument("name", type=option_types.text_setting("mesh"))
    _add_places(create)
    invite = _action(actions, "invite", "print an invitation: one string, and a QR code", _invite)
    _add_invite(invite)
    join = _action(actions, "join", "join the mesh that an invitation leads to", _join)
    join.add_argument("invitation", help="coppermesh1...; `-` reads it from standard input")
    _add_places(join)
    _action(actions, "list", "the meshes of this home", _list)
    members = _action(actions, "members", "who is a member, as far as is known here", _members)
    revoke = _action(
        actions, "revoke", "end a membership: cut off everywhere, and the swarm key changes", _revoke
    )
    revoke.add_argument("peer", help="peer id, its last 6 characters or more, or a member's name")
    revoke.add_argument(
        "--last-serial",
        type=option_types.whole(0, 10**15),
        default=0,
        metavar="N",
        help="of an admin: certificates that it issued up to this serial still count (default 0: none)",
    )
    leave = _action(actions, "leave", "leave a mesh: its keys here are removed, the ledger stays", _leave)
    for parser in (invite, members, revoke, leave):
        parser.add_argument(
            "--mesh", metavar="NAME", help="which mesh, where this home is in several private ones"
        )


def _action(actions: Any, name: str, text: str, command: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + "."
    )
    parser.add_argument(
        "--home",
        type=option_types.home_directory,
        metavar="DIR",
        help="the agent's directory ($COPPERMESH_HOME)",
    )
    parser.add_argument("--json", action="store_true", help=JSON_HELP)
    parser.set_defaults(command=command)
    return parser


def _add_places(parser: argparse.ArgumentParser) -> None:
    text = option_types.text_setting("listen")
    parser.add_argument(
        "--name", dest="who", metavar="WHO", help="what others see this member as (default user@host)"
    )
    parser.add_argument(
        "--listen",
        type=text,
        metavar="ADDRESS",
        help="where this mesh listens (default: a free port)",
    )
    parser.add_argument(
        "--door",
        type=text,
        metavar="ADDRESS",
        help="where invitations are redeemed (default: a free port)",
    )


def _add_invite(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--role",
        choices=("member", "admin", "submit-only", "provide-only"),
        default="member",
        help="default: member",
    )
    parser.add_argument(
        "--expires",
        type=_span,
        default=INVITE_EXPIRES,
        metavar="SPAN",
        help="how long it can be used: 30m, 12h, 7d (default 7d)",
    )
    parser.add_argument(
        "--quota", type=_quota, metavar="QUOTA", help="most device time, such as 20gpu-hours/day"
    )
    parser.add_argument(
        "--uses",
        type=option_types.whole(1, 256),
        default=1,
        metavar="N",
        help="how often it can be used (default 1)",
    )
    parser.add_argument(
        "--depth",
        type=option_types.whole(0, 2),
        metavar="N",
        help="of an admin: how many further links may hang below (default: as many as can be)",
    )
    parser.add_argument("--no-qr", action="store_true", help="print no QR code")


def _span(text: str) -> str:
    return _checked("parse_span", text)


def _quota(text: str) -> str:
    return _checked("parse_quota", text)


def _checked(how: str, text: str) -> str:
    """The text, if the agent will be able to read it: it is what is sent."""
    from coppermesh.agent import mesh_terms

    try:
        getattr(mesh_terms, how)(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}, got {text!r}") from None
    return text


def _create(options: argparse.Namespace) -> int:
    from coppermesh.agent.clock import now_us
    from coppermesh.agent.mesh_facts import mesh_facts
    from coppermesh.agent.mesh_making import check_name, create_private_mesh
    from coppermesh.agent.mesh_state import private_meshes

    check_name(options.name)
    home = home_of(options)
    home.prepare()
    if any(state.name == options.name for state in private_meshes(home)):
        raise option_types.WrongOption(
            f"this home is in a mesh {options.name!r} already: choose another name"
        )
    who = _who(options)
    if _agent_runs(home):
        given = {"name": options.name, "who": who, "listen": options.listen or "", "door": options.door or ""}
        facts = _ask(home, "", "mesh-create", given)
    else:
        with home.lock():
            private = create_private_mesh(
                home, options.name, who, options.listen or "", options.door or "", now_us()
            )
            facts = mesh_facts(private.state, home, now_us())
    _say(
        f"made mesh {options.name!r} (id {facts['id'][:8]}); invite with `coppermesh mesh invite --mesh {options.name}`"
    )
    _say_default(home, options.name)
    _say(f"its root key is {home.path}/meshes/{facts['id']}/root-key: keep a copy in a safe place")
    if options.json:
        print(json.dumps(facts))
    return EXIT_OK


def _invite(options: argparse.Namespace) -> int:
    given = {name: getattr(options, name) for name in ("role", "expires", "quota", "uses", "depth")}
    home = home_of(options)
    facts = _ask(home, _mesh_of(options, home), "mesh-invite", given)
    if options.json:
        print(json.dumps(facts))
        return EXIT_OK
    if not options.no_qr:
        _show_qr(facts["invitation"])
    times = "once" if facts["uses"] == 1 else f"{facts['uses']} times"
    _say(
        f"{facts['role']} of {facts['mesh']!r}, {times}, within {options.expires}; give this to whom you mean only:"
    )
    print(facts["invitation"])
    return EXIT_OK


def _show_qr(text: str) -> None:
    try:
        import segno
    except ImportError:
        return
    # Capitals and digits are packed more densely; `mesh join` reads both.
    segno.make_qr(text.upper(), error="l").terminal(out=sys.stderr, compact=True, border=2)


def _join(options: argparse.Namespace) -> int:
    from coppermesh.agent.mesh_join import join

    text = sys.stdin.read(4096) if options.invitation == "-" else options.invitation
    home = home_of(options)
    home.prepare()
    running = _agent_runs(home)
    # A running agent holds the lock, and keeps its hands off a mesh that it does not know yet.
    with nullcontext() if running else home.lock():
        facts = join(home, text, _who(options), options.listen or "", options.door or "")
    if running:
        facts = _ask(home, "", "mesh-joined", {"mesh": facts["id"]})
        _say(f"joined mesh {facts['mesh']!r} as {facts['role']}; the running agent serves it")
    else:
        _say(f"joined mesh {facts['mesh']!r} as {facts['role']}; `coppermesh agent` serves it")
    _say_default(home, facts["mesh"])
    if options.json:
        print(json.dumps(facts))
    return EXIT_OK


def _say_default(home: Home, name: str) -> None:
    """Where the settings name a mesh so already, what they mean has changed."""
    from coppermesh.agent.config import ConfigError, load_config
    from coppermesh.agent.mesh_state import private_meshes

    try:
        default = load_config(home).mesh
    except ConfigError:
        return  # the agent says what is wrong; here the mesh is made or joined already
    if default != name:
        return
    ids = [state.mesh.hex()[:8] for state in private_meshes(home) if state.name == name]
    if len(ids) > 1:
        _say(
            f"this home is in {len(ids)} meshes called {name!r}: in config.toml name the default one by its id "
            f"({', '.join(ids)}), or the agent does not start"
        )
    else:
        _say(f'mesh = "{name}" in config.toml means this private mesh from the next start of the agent on')


def _list(options: argparse.Namespace) -> int:
    from coppermesh.agent.clock import now_us
    from coppermesh.agent.mesh_facts import unserved_facts

    home = home_of(options)
    if _agent_runs(home):
        facts = _ask(home, "", "mesh-list", {})
    else:
        home.check()
        facts = {"meshes": unserved_facts(home, now_us())}
    if options.json:
        print(json.dumps(facts))
        return EXIT_OK
    show(mesh_screens.meshes(facts), "")
    if not any(row["private"] for row in facts["meshes"]):
        _say("this home is in no private mesh: `coppermesh mesh create` or `mesh join`")
    return EXIT_OK


def _members(options: argparse.Namespace) -> int:
    from coppermesh.agent.clock import now_us
    from coppermesh.agent.mesh_facts import member_facts
    from coppermesh.agent.mesh_making import open_private_mesh
    from coppermesh.p2p.ids import format_peer

    home = home_of(options)
    if _agent_runs(home):
        facts = _ask(home, _mesh_of(options, home), "mesh-members", {})
    else:
        state = _state_of(options, home)
        private = open_private_mesh(home, state.mesh, now_us())
        rows = [member_facts(member, now_us()) for member in private.book.members(now_us())]
        for row in rows:
            row |= {"connected": False, "self": row["peer"] == format_peer(private.key.peer)}
        facts = {"mesh": state.name, "id": state.mesh.hex(), "members": rows}
    if options.json:
        print(json.dumps(facts))
    else:
        show(mesh_screens.members(facts), "nobody is known")
    return EXIT_OK


def _revoke(options: argparse.Namespace) -> int:
    home = home_of(options)
    if _agent_runs(home):
        given = {"peer": options.peer, "last_serial": options.last_serial}
        facts = _ask(home, _mesh_of(options, home), "mesh-revoke", given)
    else:
        with home.lock():
            facts = _revoke_offline(options, home)
    _say(facts["sentence"])
    if options.json:
        print(json.dumps(facts))
    return EXIT_OK


def _revoke_offline(options: argparse.Namespace, home: Home) -> dict[str, Any]:
    from coppermesh.agent.clock import now_us
    from coppermesh.agent.mesh_facts import peer_named
    from coppermesh.agent.mesh_making import open_private_mesh
    from coppermesh.p2p.ids import format_peer, short_peer

    private = open_private_mesh(home, _state_of(options, home).mesh, now_us())
    peer = peer_named(private, options.peer, now_us())
    if peer == private.key.peer:
        raise option_types.WrongOption("that is this home itself: `coppermesh mesh leave`")
    private.end_membership(peer, options.last_serial, now_us())
    text = f"revoked ..{short_peer(peer)}; others are told, and get the new swarm key, once this home's agent runs"
    return {"mesh": private.name, "peer": format_peer(peer), "epoch": private.state.epoch, "sentence": text}


def _leave(options: argparse.Namespace) -> int:
    from coppermesh.agent.clock import now_us
    from coppermesh.agent.mesh_making import open_private_mesh

    home = home_of(options)
    if _agent_runs(home):
        facts = _ask(home, _mesh_of(options, home), "mesh-leave", {})
    else:
        with home.lock():
            state = _state_of(options, home)
            open_private_mesh(home, state.mesh, now_us()).forget()
        text = f"left mesh {state.name!r}; no agent runs, so the others are not told: the certificate ends by itself"
        facts = {"mesh": state.name, "id": state.mesh.hex(), "sentence": text}
    _say(facts["sentence"])
    if options.json:
        print(json.dumps(facts))
    return EXIT_OK


def _mesh_of(options: argparse.Namespace, home: Home) -> str:
    """The mesh that --mesh names; else the only private one; else the agent's default."""
    from coppermesh.agent.mesh_state import private_meshes

    if options.mesh is not None:
        return str(options.mesh)
    states = private_meshes(home)
    return states[0].mesh.hex() if len(states) == 1 else ""


def _state_of(options: argparse.Namespace, home: Home) -> Any:
    from coppermesh.agent.mesh_state import find_mesh, private_meshes

    home.check()
    states = private_meshes(home)
    if options.mesh is None and len(states) == 1:
        return states[0]
    if options.mesh is None:
        raise option_types.WrongOption(
            f"this home is in {len(states) or 'no'} private meshes: name one with --mesh"
        )
    found = find_mesh(states, options.mesh)
    if found is None:
        raise option_types.WrongOption(
            f"this home is in no private mesh {options.mesh!r}: see `coppermesh mesh list`"
        )
    return found


def _who(options: argparse.Namespace) -> str:
    if options.who is not None:
        return str(options.who)
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "user"
    return f"{user}@{platform.node()}".encode("ascii", "replace").decode()[:64]


def _agent_runs(home: Home) -> bool:
    from coppermesh.agent.local_link import socket_alive

    return socket_alive(home.socket_path)


def _ask(home: Home, mesh: str, method: str, given: dict[str, Any]) -> dict[str, Any]:
    from coppermesh.agent.local_link import LocalLink

    with LocalLink(home.socket_path, mesh=mesh) as link:
        return dict(json.loads(link.call_json(method, json.dumps(given))))


def _say(text: str) -> None:
    print(f"coppermesh: {screens.printable(text)}", file=sys.stderr)
