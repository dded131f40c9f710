"""`coppermesh doctor`: what keeps this agent from being found, reached and trusted, and what to do about it.

`doctor network` asks the home's agent, which asks its peers to dial back; `doctor sandbox` looks at this machine;
without a word both.
"""

import argparse
import json
from dataclasses import asdict
from typing import Any

from coppermesh.agent import screens
from coppermesh.agent.verbs import (
    EXIT_FAILED,
    EXIT_NO_AGENT,
    EXIT_OK,
    JSON_HELP,
    Verbs,
    add_mesh,
    add_verb,
    home_of,
    show,
)

_EPILOG = """\
exit codes: 0 nothing is wrong; 1 something is, or strangers' kernels are not safe to take here; 3 no agent answers

example: coppermesh doctor network
"""
DOCTOR_SECONDS = 30.0


def add(verbs: Verbs) -> None:
    """Add the verb."""
    text = "what keeps this agent from being found and reached, and what its sandbox stops"
    doctor = add_verb(verbs, "doctor", text, _doctor)
    doctor.formatter_class = argparse.RawDescriptionHelpFormatter
    doctor.epilog = _EPILOG
    doctor.add_argument(
        "part",
        nargs="?",
        choices=("network", "sandbox"),
        help="network: peers dial back, and what failed is named; sandbox: each layer around a stranger's job, tried"
        " now; neither: both",
    )
    add_mesh(doctor)
    doctor.add_argument("--json", action="store_true", help=JSON_HELP)


def _doctor(options: argparse.Namespace) -> int:
    if options.part == "sandbox":
        from coppermesh.agent.doctor import run_doctor

        return run_doctor(home_of(options).path, as_json=options.json)
    network, code = _network(options)
    if options.part == "network":
        _print(network, as_json=options.json)
        return code
    from coppermesh.agent import doctor

    seen = doctor.look(home_of(options).path)
    sandbox = doctor.describe(seen)
    if options.json:
        print(json.dumps({"network": network, "sandbox": sandbox}))
    else:
        print("Network")
        _print(network, as_json=False)
        print("\nSandbox")
        show(doctor.tell(seen))
    return code or (EXIT_OK if sandbox["strangers_kernels"] else EXIT_FAILED)


def _network(options: argparse.Namespace) -> tuple[dict[str, Any], int]:
    """The findings, and the exit code."""
    from coppermesh.agent.local_link import AgentUnavailable, LocalLink
    from coppermesh.agent.network_check import Finding, diagnose

    home = home_of(options)
    try:
        with LocalLink(home.socket_path, timeout_s=DOCTOR_SECONDS) as link:
            facts = json.loads(link.call_json("network"))
    except AgentUnavailable as error:
        seed = "of a seed" in str(error)
        remedy = (
            "doctor asks an agent: name the home of one with --home" if seed else "start it: coppermesh agent"
        )
        missing = Finding("no-agent", "bad", str(error), remedy)
        return {"findings": [asdict(missing)], "facts": None}, EXIT_NO_AGENT
    findings = diagnose(facts)
    wrong = any(finding.level == "bad" for finding in findings)
    return {"findings": [asdict(it) for it in findings], "facts": facts}, EXIT_FAILED if wrong else EXIT_OK


def _print(network: dict[str, Any], *, as_json: bool) -> None:
    from coppermesh.agent.network_check import Finding, tell

    if as_json:
        print(json.dumps(network))
    else:
        lines = tell([Finding(**finding) for finding in network["findings"]])
        show([screens.printable(line) for line in lines])
