"""What a challenge found, for the person who asked: `Job.challenge()`, `coppermesh challenge`.

The agent asks the providers and checks what they sign (`challenger`); this side may run the task again on its own
machine, and knows the lines of the user's code behind the nodes. Nothing here decides who is paid: it says what is
known, and whether somebody signed what cannot be.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from coppermesh.agent.local_link import LocalLink
from coppermesh.exec.graph import SourceLine
from coppermesh.exec.program import decode_program
from coppermesh.exec.schema import CheckedProgram, check_program
from coppermesh.exec.source_lines import describe_line
from coppermesh.exec.tolerance import compare
from coppermesh.exec.trace_digests import TraceDigests, first_difference
from coppermesh.p2p.blobs import digest_of, roots_digest
from coppermesh.p2p.errors import MeshError
from coppermesh.p2p.messages import BlobInfo

if TYPE_CHECKING:
    from coppermesh.exec.local_run import TracedRun

CALL_SECONDS = 600.0
"""One round with the agent: it may send blobs to a provider meanwhile."""
LEAST_PAUSE_SECONDS = 0.5


class NoVerdict(MeshError):
    """The challenge could not be decided: the provider has no time yet, or blobs are gone. The text says what to do."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a challenge showed."""

    kind: str
    """`agree`, `part` (two runs differ from a node on), `contradiction` (a trace and its own receipt), `outputs`,
    `begin` (a chain that does not begin with this program and these inputs), `tolerance`, `class`, `refusal`."""
    fault: bool
    """Somebody signed what cannot be: the two runs name one determinism class, or no class excuses it."""
    sentence: str
    node: int | None = None
    operation: str = ""
    shapes: tuple[str, ...] = ()
    """What the node gives: `float32[2, 3]`."""
    line: str = ""
    """The user's line that recorded it, where known."""
    classes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ChallengeReport:
    """The whole answer. `str()` is for people."""

    job: str
    task: int
    traces: tuple[dict[str, Any], ...]
    """What each provider signed, the job's own first; keys as in `coppermesh challenge --json`."""
    findings: tuple[Finding, ...]

    @property
    def fault(self) -> bool:
        """True where somebody is proven or shown to have erred."""
        return any(finding.fault for finding in self.findings)

    @property
    def node(self) -> int | None:
        """The first node at which two runs part; None where none do."""
        nodes = [finding.node for finding in self.findings if finding.node is not None]
        return min(nodes, default=None)

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, fit for JSON."""
        return {
            "job": self.job,
            "task": self.task,
            "fault": self.fault,
            "node": self.node,
            "traces": list(self.traces),
            "findings": [
                {**asdict(one), "shapes": list(one.shapes), "classes": list(one.classes)}
                for one in self.findings
            ],
        }

    def __str__(self) -> str:
        lines = [f"job {self.job[:8]}, task {self.task}"]
        for trace in self.traces:
            when = "with the first run" if trace["first_run"] else "by running it again"
            lines.append(
                f"{trace['provider'][-8:]}  {trace['nodes']} nodes, root {trace['root'][:12]}, recorded {when}, "
                f"class {trace['determinism']}"
            )
        for finding in self.findings:
            lines.append(f"{'FAULT ' if finding.fault else '      '}{finding.sentence}")
            if finding.node is not None:
                place = f"node {finding.node} ({finding.operation}) gives {', '.join(finding.shapes)}"
                lines.append(f"        {place}")
            if finding.line:
                lines.append(f"        recorded at {finding.line}")
        lines.append("fault: somebody is wrong" if self.fault else "no fault found")
        return "\n".join(lines)


def challenge(
    link: Callable[[float], LocalLink],
    job: str,
    task: int,
    *,
    local: bool,
    timeout: float,
    sources: Sequence[SourceLine] = (),
    results: Sequence[np.ndarray] | None = None,
) -> ChallengeReport:
    """Ask through the home's agent until everybody has answered, and tell what was found.

    `link` connects to the agent, with a time limit in seconds. `local`: run the task on this machine too. `sources`
    are the lines behind the nodes; `results` what the job returned, to compare across classes. Raises NoVerdict,
    Refused (the provider's or the agent's reason), RunFailed where the run on this machine fails.
    """
    facts = _wait(link, job, task, timeout)
    program = _Program(link, facts, sources)
    findings = [*_of_traces(facts), *_of_comparisons(facts, program)]
    for refusal in facts["refusals"]:
        who = refusal["provider"][-8:]
        text = f"{who} ran the same task and does not answer: {refusal['sentence']}"
        findings.append(Finding("refusal", False, text))
    if local:
        found = _compare_locally(link, facts, program, timeout, results)
        findings += found
        text = "; ".join(finding.sentence for finding in found)
        with link(CALL_SECONDS) as agent:
            agent.call_json("challenge-note", json.dumps({"job": facts["job"], "task": task, "text": text}))
    return ChallengeReport(facts["job"], task, tuple(facts["traces"]), tuple(findings))


def _wait(link: Callable[[float], LocalLink], job: str, task: int, timeout: float) -> dict[str, Any]:
    """Rounds with the agent until the digests are there. Raises NoVerdict where that takes longer than `timeout`."""
    deadline = time.monotonic() + timeout
    while True:
        with link(CALL_SECONDS) as agent:
            text = agent.call_json("challenge", json.dumps({"job": job, "task": task}))
        facts: dict[str, Any] = json.loads(text)
        if facts["state"] == "recorded":
            return facts
        pause = max(LEAST_PAUSE_SECONDS, float(facts["retry_s"]))
        if time.monotonic() + pause > deadline:
            reason = facts["sentence"] or "it is running the task again"
            raise NoVerdict(
                f"{facts['provider'][-8:]} has not answered within {timeout:g} s: {reason}; ask again in {pause:.0f} s"
            )
        time.sleep(pause)


class _Program:
    """The challenged task's program, where the agent still has it, and what is known of its nodes."""

    def __init__(
        self, link: Callable[[float], LocalLink], facts: dict[str, Any], sources: Sequence[SourceLine]
    ) -> None:
        self._sources = sources
        self.data = None if facts["program"] is None else fetch(link, facts["program"])
        self.checked: CheckedProgram | None = (
            None if self.data is None else check_program(decode_program(self.data))
        )

    def finding(self, kind: str, fault: bool, sentence: str, node: int, classes: Sequence[str]) -> Finding:
        """A finding about `node`."""
        operation = ""
        shapes: tuple[str, ...] = ()
        if self.checked is not None and node < len(self.checked.nodes):
            known = self.checked.nodes[node]
            operation, shapes = known.node.op, tuple(map(str, known.results))
        line = describe_line(self._sources, node)
        return Finding(kind, fault, sentence, node, operation, shapes, line, tuple(classes))


def _of_traces(facts: dict[str, Any]) -> list[Finding]:
    """How each trace fits its own receipt."""
    findings = []
    for trace in facts["traces"]:
        who = trace["provider"][-8:]
        classes = (trace["receipt_determinism"], trace["determinism"])
        if trace["contradiction"]:
            findings.append(
                Finding("contradiction", True, f"{who}: {trace['contradiction']}", classes=classes)
            )
        elif trace["receipt_determinism"] != trace["determinism"]:
            text = (
                f"{who}: its class has changed since the receipt; bits may differ from what it returned then"
            )
            findings.append(Finding("class", False, text, classes=classes))
        elif trace["outputs"] == trace["receipt_outputs"]:
            recorded = int(trace["receipt_root"], 16) != 0
            text = "root and outputs are" if recorded else "outputs are"
            findings.append(
                Finding("agree", False, f"{who}: the {text} those of its receipt", classes=classes)
            )
    return findings


def _of_comparisons(facts: dict[str, Any], program: _Program) -> list[Finding]:
    """Where providers part."""
    findings = []
    for one in facts["comparisons"]:
        who = " and ".join(name[-8:] for name in one["providers"])
        sentence = f"{who}: {one['sentence']}"
        if one["node"] is not None:
            findings.append(program.finding("part", one["fault"], sentence, one["node"], one["classes"]))
        else:
            kind = "begin" if one["fault"] else "agree"
            findings.append(Finding(kind, one["fault"], sentence, classes=tuple(one["classes"])))
    return findings


def _compare_locally(
    link: Callable[[float], LocalLink],
    facts: dict[str, Any],
    program: _Program,
    timeout: float,
    results: Sequence[np.ndarray] | None,
) -> list[Finding]:
    """Run the task here and compare with the job's own provider. Raises NoVerdict where blobs are gone, RunFailed."""
    inputs = [one for one in facts["inputs"] if one is not None]
    if program.data is None or len(inputs) != len(facts["inputs"]):
        raise NoVerdict("the agent's store has let go of the task's program or inputs: submit the job again")
    from coppermesh.exec.local_run import rerun_traced  # worker processes are for who runs something here

    here = rerun_traced(program.data, [fetch(link, one) for one in inputs], timeout)
    trace = facts["traces"][0]
    who, classes = trace["provider"][-8:], (trace["determinism"], here.determinism)
    same_class = trace["determinism"] == here.determinism
    theirs = TraceDigests.from_bytes(bytes.fromhex(trace["start"]), fetch(link, trace["chain"]))
    try:
        node = first_difference(here.digests, theirs)
    except ValueError:
        text = f"{who}: its chain does not begin with this program and these inputs: it ran something else"
        return [Finding("begin", True, text, classes=classes)]
    if node is None:
        found = [Finding("agree", False, f"{who} and this machine: every node agrees", classes=classes)]
    else:
        excuse = "" if same_class else ", in different classes: bits may differ"
        text = f"{who} and this machine part at node {node}{excuse}"
        found = [program.finding("part", same_class, text, node, classes)]
    return [*found, *_compare_outputs(trace, here, who, program.data, results)]


def _compare_outputs(
    trace: dict[str, Any], here: "TracedRun", who: str, program: bytes, results: Sequence[np.ndarray] | None
) -> list[Finding]:
    """What the receipt says was returned, against what this machine computes."""
    classes = (trace["receipt_determinism"], here.determinism)
    outputs = roots_digest([digest_of(data) for data in here.outputs]).hex()
    if outputs == trace["receipt_outputs"]:
        return []
    if classes[0] == classes[1]:
        text = f"{who}: the outputs of its receipt are not what this machine computes, in the same class"
        return [Finding("outputs", True, text, classes=classes)]
    if results is None:
        return []
    mine = tuple(
        np.frombuffer(data, array.dtype).reshape(array.shape)
        for data, array in zip(here.outputs, results, strict=True)
    )
    verdict = compare(tuple(results), mine, program)
    return [Finding("tolerance", False, f"{who}: across classes its outputs: {verdict}", classes=classes)]


def fetch(link: Callable[[float], LocalLink], facts: dict[str, Any]) -> bytes:
    """A blob of the agent's store."""
    data = bytearray(facts["size"])
    with link(CALL_SECONDS) as agent:
        agent.get_blob(BlobInfo(bytes.fromhex(facts["root"]), facts["size"]), memoryview(data))
    return bytes(data)
