"""The peer that a person means where a command takes one: its whole id, or the last characters, as tables show them."""

import json
from typing import Any

from coppermesh.agent.home import Home
from coppermesh.p2p.errors import MeshError, Refused
from coppermesh.p2p.ids import format_peer, parse_peer


def named_peer(home: Home, text: str) -> str:
    """The whole id. Raises Refused where none of the peers known here ends so, or several do."""
    try:
        return format_peer(parse_peer(text))
    except ValueError:
        return choose_peer(text, _known(home))


def choose_peer(text: str, known: set[str]) -> str:
    """The one of `known` that ends in `text`. Raises Refused."""
    found = sorted(peer for peer in known if peer.endswith(text))
    if len(found) == 1:
        return found[0]
    if found:
        raise Refused("ambiguous-peer", f"several peers end in {text!r}: {', '.join(found)}")
    raise Refused(
        "unknown-peer",
        f"no peer known here ends in {text!r}: want a peer id like 12D3KooW..., or the last characters that tables "
        "show (`coppermesh peers`, `coppermesh ledger`)",
    )


def _known(home: Home) -> set[str]:
    """Those the agent knows, where it runs, and those that stand in this home's ledgers."""
    from coppermesh.agent.ledger_reader import read_ledger
    from coppermesh.agent.ledger_scan import find_ledgers
    from coppermesh.agent.local_link import LocalLink

    known: set[str] = set()
    try:
        with LocalLink(home.socket_path) as link:
            facts: dict[str, Any] = json.loads(link.call_json("peers"))
            known |= {str(peer["peer"]) for peer in facts["peers"]}
    except MeshError:
        pass  # no agent: the ledgers are read without one
    try:
        for place in find_ledgers(home):
            with read_ledger(place.path) as reader:
                known |= {format_peer(peer) for peer, _ in reader.peers()}
    except MeshError:
        pass  # no ledger yet, or one that another command has to complain about
    return known
