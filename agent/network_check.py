"""What is wrong with an agent's network, and what to do: each cause by its name (pure).

`diagnose` turns the facts of `network_facts` into findings. A finding is `good`, `note` (worth knowing), or `bad`
(others do not find or reach this agent, or its word does not count). Every `bad` one says what to do.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

Facts = Mapping[str, Any]
SKEW_SECONDS = 30.0
"""Orders are refused from 60 s on."""
EXPIRES_SOON_SECONDS = 86_400.0
_VERSION = re.compile(r"/([0-9]{1,6})\.([0-9]{1,6})")
_WRONG_KEY = re.compile(r"swarm key|another key answered", re.IGNORECASE)
_CERTIFICATE = re.compile(r"certificate|not let in|revoked|expired", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Finding:
    """One cause. `name` is stable, for programs."""

    name: str
    level: str
    sentence: str
    remedy: str = ""


def diagnose(facts: Facts) -> list[Finding]:
    """Every finding, in the order in which a person would look."""
    return [
        *_listening(facts),
        *_seeds(facts),
        *_company(facts),
        *_membership(facts),
        *_clock(facts),
        *_versions(facts),
        *_reachable(facts),
        *_mdns(facts),
    ]


def _listening(facts: Facts) -> list[Finding]:
    where = ", ".join(address.rpartition("/p2p/")[0] for address in facts["listens_on"])
    if facts["loopback_only"]:
        return [
            Finding(
                "loopback-only",
                "note",
                f"it listens on this machine only ({where}): nobody else reaches it",
                'set listen = "/ip4/0.0.0.0/tcp/0" in config.toml to be found by others',
            )
        ]
    return [Finding("listening", "good", f"it listens on {where}")]


def _seeds(facts: Facts) -> list[Finding]:
    seeds = [seed for seed in facts["seeds"] if not seed["self"]]
    if not seeds:
        remedy = "name one with `bootstrap` in config.toml, or run one: coppermesh bootstrap"
        return [Finding("no-seed-configured", "note", "no bootstrap peer is configured", remedy)]
    answered = [seed for seed in seeds if seed["connected"]]
    findings = [_seed_trouble(seed) for seed in seeds if not seed["in_mesh"]]
    if not answered:
        said = f"none of {_counted(len(seeds), 'bootstrap peer')} answered"
        remedy = "check the addresses and this machine's way out; is a seed running there?"
        findings.insert(0, Finding("no-seed-answered", "bad", said, remedy))
    elif len(answered) == len(seeds) and not findings:
        findings.append(Finding("seeds", "good", f"{_counted(len(seeds), 'bootstrap peer')} answered"))
    return findings


def _seed_trouble(seed: Facts) -> Finding:
    address, error = seed["address"], seed["error"] or "no answer yet"
    if seed["connected"]:
        return Finding(
            "wrong-mesh",
            "bad",
            f"{address} answers, but takes no part in this mesh",
            "the name of the mesh differs there, or its version of coppermesh: compare `coppermesh status`",
        )
    if _WRONG_KEY.search(error):
        return Finding(
            "wrong-mesh-key",
            "bad",
            f"{address}: {error}",
            "the key differs: the seed has a new identity, or it is in another private mesh; ask its owner for the"
            " address, or join again with a new invitation",
        )
    if _CERTIFICATE.search(error):
        remedy = "ask an admin of the mesh for a new invitation"
        return Finding("not-admitted", "bad", f"{address}: {error}", remedy)
    said = error if address in error else f"{address}: {error}"
    return Finding("seed-out-of-reach", "note", said, "is it running, and is its port open?")


def _company(facts: Facts) -> list[Finding]:
    strangers = [peer for peer in facts["peers"] if not peer["in_mesh"]]
    here = len(facts["peers"]) - len(strangers)
    findings = []
    if here:
        relayed = sum(peer["path"] == "relayed" for peer in facts["peers"])
        through = f", {relayed} of them through a relay" if relayed else ""
        findings.append(
            Finding("peers", "good", f"{_counted(here, 'peer')} of mesh {facts['mesh']!r} connected{through}")
        )
    else:
        remedy = "start another agent on this network, or name a bootstrap peer"
        findings.append(Finding("no-peers", "bad", f"nobody of mesh {facts['mesh']!r} is connected", remedy))
    if strangers:
        said = f"{_counted(len(strangers), 'connected peer')} takes no part in this mesh"
        findings.append(Finding("strangers", "note", said, "another mesh, or another version of coppermesh"))
    return findings


def _membership(facts: Facts) -> list[Finding]:
    membership = facts["membership"]
    if membership is None:
        return []
    left = membership["expires_in_s"]
    again = "ask an admin of the mesh for a new invitation, then `coppermesh mesh join`"
    if left <= 0:
        said = f"this agent's certificate expired {_span(-left)} ago: members do not let it in"
        return [Finding("certificate-expired", "bad", said, again)]
    if membership["trouble"]:
        return [Finding("membership", "bad", membership["trouble"], again)]
    if left < EXPIRES_SOON_SECONDS:
        said = f"this agent's certificate expires in {_span(left)} and has not been renewed"
        return [
            Finding(
                "certificate-expires", "note", said, "an admin of the mesh has to be reachable to renew it"
            )
        ]
    return [Finding("certificate", "good", f"this agent's certificate is valid for {_span(left)}")]


def _clock(facts: Facts) -> list[Finding]:
    ahead = [peer["clock_ahead_s"] for peer in facts["peers"] if peer["clock_ahead_s"] is not None]
    if not ahead:
        return []
    off = median(ahead)
    if abs(off) > SKEW_SECONDS:
        direction = "behind" if off > 0 else "ahead of"
        said = f"this machine's clock is {_span(abs(off))} {direction} that of {_most_of(len(ahead))}"
        remedy = "set it by NTP: what this agent signs counts as expired or as from the future"
        return [Finding("clock-wrong", "bad", said, remedy)]
    others = [
        Finding(
            "peer-clock-wrong",
            "note",
            f"the clock of {peer['peer'][-8:]} is {_span(abs(peer['clock_ahead_s'] - off))} off",
            "its owner should set it by NTP",
        )
        for peer in facts["peers"]
        if peer["clock_ahead_s"] is not None and abs(peer["clock_ahead_s"] - off) > SKEW_SECONDS
    ]
    return others or [Finding("clock", "good", f"the clock agrees with {_counted(len(ahead), 'peer')}")]


def _versions(facts: Facts) -> list[Finding]:
    mine = _version(facts["software"])
    theirs = [_version(peer["software"] or "") for peer in facts["peers"]]
    known = [version for version in theirs if version is not None]
    newer = [version for version in known if mine is not None and version > mine]
    if newer:
        newest = ".".join(map(str, max(newer)))
        said = f"{len(newer)} of {_counted(len(known), 'peer')} run version {newest}; this is {facts['software']}"
        level = "bad" if 2 * len(newer) > len(known) else "note"
        return [
            Finding(
                "version-too-old",
                level,
                said,
                "update: agents of different versions need not understand each other",
            )
        ]
    return [Finding("version", "good", f"{facts['software']}, no peer has a newer one")] if known else []


def _reachable(facts: Facts) -> list[Finding]:
    tried = [result for result in facts["tried"] if result["state"] is not None]
    if not tried:
        why = "; ".join(dict.fromkeys(result["refused"] for result in facts["tried"] if result["refused"]))
        said = f"no peer could dial back{': ' + why if why else ''}"
        return [Finding("not-tried", "note", said, "connect to a peer outside this network, such as a seed")]
    findings = _nat(facts)
    failed = [result for result in tried if result["state"] != "reached"]
    if not failed:
        where = " on this machine" if facts["loopback_only"] else ""
        said = f"{_counted(len(tried), 'peer')}{where} dialled back and got through"
        return [*findings, Finding("reachable", "good", said)]
    helped = bool(facts["relays"])
    states = {result["state"] for result in failed}
    level = "note" if helped else "bad"
    seen = failed[0]["seen_at"]
    port = facts["listens_on"][0].split("/")[4] if facts["listens_on"] else "?"
    if "other" in states:
        said = f"somebody else answers at {seen}: the port is forwarded to another machine, or taken by another program"
        findings.append(Finding("other-answers", level, said, f"forward TCP port {port} to this machine"))
    else:
        how = "it was refused" if "closed" in states else "nothing answered"
        said = f"{len(failed)} of {_counted(len(tried), 'peer')} could not dial back to {seen}: {how}"
        remedy = f"open TCP port {port} in this machine's firewall"
        if facts["nat"] != "none":
            remedy += " and forward it on the router, with a fixed `listen` port"
        findings.append(Finding("port-closed", level, said, remedy))
    findings.append(_relay_finding(facts))
    return findings


def _nat(facts: Facts) -> list[Finding]:
    words = {
        "none": (
            "no-nat",
            "good",
            "no router translates addresses between this machine and those who see it",
            "",
        ),
        "steady": (
            "nat",
            "note",
            "behind a router that shows one port to all: direct connections by hole punching",
            "",
        ),
        "shifting": (
            "nat-symmetric",
            "note",
            "behind a router that shows another port to each: holes cannot be punched",
            "forward a port on the router, or go on through a relay",
        ),
        "unknown": ("nat-unknown", "note", "behind a router; one peer alone cannot tell of which kind", ""),
    }
    return [Finding(*words[facts["nat"]])]


def _relay_finding(facts: Facts) -> Finding:
    if facts["relays"]:
        names = ", ".join(relay["address"].rpartition("/p2p/")[0] for relay in facts["relays"])
        return Finding("relay", "good", f"others reach it through the relay at {names}")
    if facts["relay_mode"] == "never":
        return Finding("relay-off", "bad", "relays are switched off", 'set relay = "auto" below [network]')
    remedy = "name a relay with `relays` below [network], or a seed with `bootstrap`: seeds are relays"
    return Finding("no-relay", "bad", "no relay carries for it", remedy)


def _mdns(facts: Facts) -> list[Finding]:
    mdns = facts["mdns"]
    if not mdns["on"]:
        return [
            Finding(
                "mdns-off",
                "note",
                "mDNS is switched off: agents on this network do not find it by themselves",
            )
        ]
    if facts["loopback_only"]:
        return []
    if mdns["trouble"]:
        remedy = "allow multicast (UDP port 5353), or name peers with `bootstrap`"
        return [Finding("mdns-failed", "note", f"mDNS does not work here: {mdns['trouble']}", remedy)]
    return [Finding("mdns", "good", f"mDNS works; {_counted(mdns['heard'], 'record')} of this mesh heard")]


def tell(findings: Sequence[Finding]) -> list[str]:
    """Lines for people."""
    marks = {"good": "good", "note": "note", "bad": "BAD "}
    width = max((len(finding.name) for finding in findings), default=0)
    lines = []
    for finding in findings:
        lines.append(f"{marks[finding.level]}  {finding.name:<{width}}  {finding.sentence}")
        if finding.remedy:
            lines.append(f"{'':>{width + 8}}to do: {finding.remedy}")
    return lines


def _version(software: str) -> tuple[int, int] | None:
    """Major and minor of `coppermesh/0.1.0`."""
    found = _VERSION.search(software)
    return (int(found[1]), int(found[2])) if found and software.startswith("coppermesh") else None


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _most_of(count: int) -> str:
    return "the one peer connected" if count == 1 else f"most of {count} peers"


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"
