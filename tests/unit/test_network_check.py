"""`coppermesh doctor network`: each cause by its name, and what to do about it."""

from typing import Any

import pytest

from coppermesh.agent.network_check import Finding, diagnose, tell

SEED = "/ip4/203.0.114.1/tcp/4001/p2p/12D3KooWSeed"
MINE = "/ip4/192.168.1.4/tcp/4001/p2p/12D3KooWMine"


def facts(**changes: Any) -> dict[str, Any]:
    """An agent on a public address with one seed and nothing wrong."""
    sound: dict[str, Any] = {
        "mesh": "open",
        "private": False,
        "peer": "12D3KooWMine",
        "software": "coppermesh/0.1.0",
        "listens_on": [MINE],
        "loopback_only": False,
        "announced": [MINE],
        "mdns": {"on": True, "trouble": None, "heard": 2},
        "seeds": [seed()],
        "peers": [peer("12D3KooWSeed")],
        "tried": [tried("reached")],
        "nat": "none",
        "relay_mode": "auto",
        "wants_relay": False,
        "relays": [],
        "membership": None,
    }
    return sound | changes


def seed(**changes: Any) -> dict[str, Any]:
    return {"address": SEED, "self": False, "connected": True, "in_mesh": True, "error": None} | changes


def peer(name: str, **changes: Any) -> dict[str, Any]:
    sound = {
        "peer": name,
        "path": "direct",
        "in_mesh": True,
        "software": "coppermesh/0.1.0",
        "clock_ahead_s": 0.1,
    }
    return sound | changes


def tried(state: str | None, seen_at: str = "/ip4/203.0.114.9/tcp/4001", **changes: Any) -> dict[str, Any]:
    return {"peer": "12D3KooWSeed", "state": state, "seen_at": seen_at, "refused": None} | changes


RELAY = [{"peer": "12D3KooWSeed", "address": SEED, "expires_in_s": 3000.0}]
LOST = seed(connected=False, in_mesh=False, error=f"{SEED}: Connection refused")


def found(given: dict[str, Any]) -> dict[str, Finding]:
    findings = diagnose(given)
    names = [finding.name for finding in findings]
    assert len(names) == len(set(names)) or "peer-clock-wrong" in names or "seed-out-of-reach" in names
    return {finding.name: finding for finding in findings}


def test_a_sound_agent_has_nothing_to_do() -> None:
    findings = diagnose(facts())
    assert {finding.level for finding in findings} == {"good"}
    assert {"listening", "seeds", "peers", "clock", "version", "reachable", "mdns"} <= {
        it.name for it in findings
    }


@pytest.mark.parametrize(
    ("changes", "name", "says", "remedy"),
    [
        ({"seeds": [LOST]}, "no-seed-answered", "none of 1 bootstrap peer answered", "seed running"),
        (
            {"seeds": [seed(in_mesh=False)]},
            "wrong-mesh",
            "takes no part in this mesh",
            "name of the mesh differs",
        ),
        (
            {"seeds": [LOST | {"error": "its swarm key is another one: it is not in this private mesh"}]},
            "wrong-mesh-key",
            "swarm key",
            "invitation",
        ),
        (
            {"seeds": [LOST | {"error": "another key answered than the one that was dialled"}]},
            "wrong-mesh-key",
            "another key answered",
            "new identity",
        ),
        (
            {"seeds": [LOST | {"error": "we are not let in: the certificate has expired"}]},
            "not-admitted",
            "expired",
            "new invitation",
        ),
        ({"peers": []}, "no-peers", "nobody of mesh 'open' is connected", "start another agent"),
        (
            {"membership": {"expires_in_s": -7200.0, "trouble": ""}},
            "certificate-expired",
            "expired 2 h ago",
            "new invitation",
        ),
        (
            {"membership": {"expires_in_s": 1e6, "trouble": "this member was revoked"}},
            "membership",
            "revoked",
            "new invitation",
        ),
        (
            {"peers": [peer("a", clock_ahead_s=3600.0), peer("b", clock_ahead_s=3601.0)]},
            "clock-wrong",
            "60 min behind that of most of 2 peers",
            "NTP",
        ),
        (
            {"peers": [peer("a", software="coppermesh/0.3.1"), peer("b", software="coppermesh/0.3.0")]},
            "version-too-old",
            "2 of 2 peers run version 0.3",
            "update",
        ),
        (
            {"tried": [tried("silent")], "nat": "steady"},
            "port-closed",
            "could not dial back to /ip4/203.0.114.9/tcp/4001: nothing answered",
            "open TCP port 4001",
        ),
        ({"tried": [tried("closed")]}, "port-closed", "it was refused", "firewall"),
        ({"tried": [tried("other")]}, "other-answers", "somebody else answers", "forward TCP port 4001"),
        ({"tried": [tried("silent")]}, "no-relay", "no relay carries for it", "seeds are relays"),
        ({"tried": [tried("silent")], "relay_mode": "never"}, "relay-off", "switched off", 'relay = "auto"'),
    ],
)
def test_what_is_bad_is_named_with_what_to_do(
    changes: dict[str, Any], name: str, says: str, remedy: str
) -> None:
    finding = found(facts(**changes))[name]
    assert finding.level == "bad"
    assert says in finding.sentence
    assert remedy in finding.remedy


@pytest.mark.parametrize(
    ("changes", "name", "says"),
    [
        ({"seeds": []}, "no-seed-configured", "no bootstrap peer"),
        ({"seeds": [seed(), LOST]}, "seed-out-of-reach", "Connection refused"),
        ({"loopback_only": True}, "loopback-only", "nobody else reaches it"),
        (
            {"peers": [peer("a"), peer("b", in_mesh=False, software=None)]},
            "strangers",
            "1 connected peer takes",
        ),
        (
            {"tried": [tried("silent")], "nat": "shifting", "relays": RELAY},
            "nat-symmetric",
            "cannot be punched",
        ),
        ({"tried": [tried("silent")], "nat": "steady", "relays": RELAY}, "nat", "hole punching"),
        ({"tried": [tried("silent")], "relays": RELAY}, "port-closed", "nothing answered"),
        ({"tried": []}, "not-tried", "no peer could dial back"),
        ({"tried": [tried(None, refused="ask again later")]}, "not-tried", "ask again later"),
        ({"mdns": {"on": False, "trouble": None, "heard": 0}}, "mdns-off", "switched off"),
        ({"mdns": {"on": True, "trouble": "No such device", "heard": 0}}, "mdns-failed", "No such device"),
        ({"membership": {"expires_in_s": 3600.0, "trouble": ""}}, "certificate-expires", "expires in 60 min"),
        (
            {"peers": [peer("a"), peer("b"), peer("12D3KooWabcdefgh", clock_ahead_s=-900.0)]},
            "peer-clock-wrong",
            "the clock of abcdefgh is 15 min off",
        ),
    ],
)
def test_what_is_worth_knowing_is_a_note(changes: dict[str, Any], name: str, says: str) -> None:
    finding = found(facts(**changes))[name]
    assert finding.level == "note"
    assert says in finding.sentence


def test_with_a_relay_a_closed_port_is_no_more_than_a_note() -> None:
    given = facts(tried=[tried("silent")], relays=RELAY)
    assert {finding.level for finding in diagnose(given)} == {"good", "note"}
    assert found(given)["relay"].sentence == "others reach it through the relay at /ip4/203.0.114.1/tcp/4001"


def test_it_is_told_in_lines_with_what_to_do_below() -> None:
    lines = tell(diagnose(facts(seeds=[LOST])))
    (at,) = [number for number, line in enumerate(lines) if "no-seed-answered" in line]
    assert lines[at].startswith("BAD   no-seed-answered")
    assert lines[at + 1].strip().startswith("to do: ")
    assert sum(line.count(SEED) for line in lines) == 1, "an address once, also where the error names it"
