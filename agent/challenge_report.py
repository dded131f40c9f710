"""What a challenge found, for the person who asked: `Job.challenge()`, `coppermesh challenge`.

The agent asks the providers and checks what they sign (`challenger`); this side may run the task again on its own
machine, and knows the lines of the user's code behind the nodes. Nothing here decides who is paid: it says what is
known, and whether somebody signed what cannot be.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from coppermesh.agent.challenge_facts import ROUND_SECONDS, excuse
from coppermesh.agent.local_link import LocalLink
from coppermesh.agent.traces import same_class
from coppermesh.exec.graph import SourceLine
from coppermesh.exec.program import ArraySpec, decode_program
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
"""One call to the agent."""
LEAST_PAUSE_SECONDS = 0.5


class NoVerdict(MeshError):
    """The challenge could not be decided: the provider has no time yet, or blobs are gone. The text says what to do."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a challenge showed."""

    kind: str
    """`agree`, `part` (two runs differ from a node on), `contradiction` (a trace and its own receipt), `outputs`,
    `length` (chains that cannot be of one program), `tolerance` (outputs across classes), `class`, `refusal`,
    `alone`."""
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
                f"{_provider(trace['provider'])}: {trace['nodes']} nodes, root {trace['root'][:12]}, recorded {when}, "
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
        text = f"{_provider(refusal['provider'])} ran the same task, but: {refusal['sentence']}"
        findings.append(Finding("refusal", False, text))
    if not local and not facts["comparisons"]:
        text = "no other run was compared: --local (local=True) runs the task on this machine, too"
        findings.append(Finding("alone", False, text))
    if local:
        found = _compare_locally(link, facts, program, timeout, results)
        findings += found
        text = "; ".join(finding.sentence for finding in found)
        with link(CALL_SECONDS) as agent:
            agent.call_json("challenge-note", json.dumps({"job": facts["job"], "task": task, "text": text}))
    return ChallengeReport(facts["job"], task, tuple(facts["traces"]), tuple(findings))


def _provider(peer: str) -> str:
    return f"provider {peer[-8:]}"


def _wait(link: Callable[[float], LocalLink], job: str, task: int, timeout: float) -> dict[str, Any]:
    """Rounds with the agent until the digests are there. Raises NoVerdict where that takes longer than `timeout`."""
    deadline = time.monotonic() + timeout
    while True:
        left = min(max(LEAST_PAUSE_SECONDS, deadline - time.monotonic()), ROUND_SECONDS)
        with link(CALL_SECONDS) as agent:
            text = agent.call_json("challenge", json.dumps({"job": job, "task": task, "wait_s": left}))
        facts: dict[str, Any] = json.loads(text)
        if facts["state"] == "recorded":
            return facts
        pause = max(LEAST_PAUSE_SECONDS, float(facts["retry_s"]))
        if time.monotonic() + pause > deadline:
            return _without_the_others(facts, timeout, pause)
        time.sleep(pause)


def _without_the_others(facts: dict[str, Any], timeout: float, pause: float) -> dict[str, Any]:
    """The facts, where only others than the task's own provider let us wait. Raises NoVerdict where it did itself."""
    reason = facts["sentence"] or "it is running the task again"
    sentence = f"no answer within {timeout:g} s: {reason}; ask again in {math.ceil(pause)} s"
    if "traces" not in facts:
        raise NoVerdict(f"{_provider(facts['provider'])}: {sentence}")
    late = {"provider": facts["provider"], "sentence": sentence}
    return {**facts, "refusals": [*facts["refusals"], late]}


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
        who = _provider(trace["provider"])
        classes = (trace["receipt_determinism"], trace["determinism"])
        if trace["contradiction"] and (trace["proven"] or classes[0] == classes[1]):
            text = f"{who}: {trace['contradiction']}"
            findings.append(Finding("contradiction", trace["proven"], text, classes=classes))
        elif classes[0] != classes[1]:
            text = (
                f"{who}: its class has changed since the receipt; bits may differ from what it returned then"
            )
            findings.append(Finding("class", False, text, classes=classes))
        else:
            recorded = int(trace["receipt_root"], 16) != 0
            text = "outputs and the root of the digests are" if recorded else "outputs are"
            findings.append(
                Finding("agree", False, f"{who}: the {text} those of its receipt", classes=classes)
            )
    return findings


def _of_comparisons(facts: dict[str, Any], program: _Program) -> list[Finding]:
    """Where providers part."""
    findings = []
    for one in facts["comparisons"]:
        who = " and ".join(map(_provider, one["providers"]))
        sentence = f"{who}: {one['sentence']}"
        if one["node"] is not None:
            findings.append(program.finding("part", one["fault"], sentence, one["node"], one["classes"]))
        else:
            kind = "length" if one["fault"] else "agree"
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
    blobs = [one for one in facts["inputs"] if one is not None]
    gone = ["program"] if program.data is None else []
    gone += ["inputs"] if len(blobs) != len(facts["inputs"]) else []
    if program.data is None or program.checked is None or gone:
        raise NoVerdict(
            f"the task's {' and '.join(gone)} are gone from this home's store, so it cannot be run here: challenge "
            "without --local (local=True), or submit the job again and challenge that one"
        )
    from coppermesh.exec.local_run import rerun_traced  # worker processes are for who runs something here

    inputs = [fetch(link, one) for one in blobs]
    here = rerun_traced(program.data, inputs, timeout)
    trace = facts["traces"][0]
    theirs = TraceDigests.from_bytes(fetch(link, trace["chain"]))
    nodes = _compare_nodes(trace, here, theirs, program)
    return [nodes, *_compare_outputs(trace, here, program.checked, inputs, results)]


def _compare_nodes(
    trace: dict[str, Any], here: "TracedRun", theirs: TraceDigests, program: _Program
) -> Finding:
    """Where the provider's run and the one on this machine part."""
    who, classes = _provider(trace["provider"]), (trace["determinism"], here.determinism)
    try:
        node = first_difference(here.digests, theirs)
    except ValueError as error:
        return Finding("length", True, f"{who}: it signed a wrong number of nodes: {error}", classes=classes)
    if node is None:
        return Finding("agree", False, f"{who} and this machine: every node agrees", classes=classes)
    same = same_class(*classes)
    words = excuse(same=same, node=node, steady_nodes=trace["steady_nodes"])
    return program.finding(
        "part", not words, f"{who} and this machine part at node {node}{words}", node, classes
    )


def _compare_outputs(
    trace: dict[str, Any],
    here: "TracedRun",
    checked: CheckedProgram,
    inputs: Sequence[bytes],
    results: Sequence[np.ndarray] | None,
) -> list[Finding]:
    """What the receipt says was returned, against what this machine computes."""
    who, classes = _provider(trace["provider"]), (trace["receipt_determinism"], here.determinism)
    outputs = roots_digest([digest_of(data) for data in here.outputs]).hex()
    if outputs == trace["receipt_outputs"]:
        return []
    if same_class(*classes) and trace["steady_nodes"] == len(checked.nodes):
        text = f"{who}: the outputs of its receipt are not what this machine computes, in the same class"
        return [Finding("outputs", True, text, classes=classes)]
    if results is None:
        text = (
            f"{who}: the outputs of its receipt are not bit for bit what this machine computes, which is no fault by "
            "itself; only the program that has the results can hold them against each other (job.challenge(local=True))"
        )
        return [Finding("tolerance", False, text, classes=classes)]
    mine = tuple(map(_as_array, here.outputs, checked.output_specs))
    given = list(map(_as_array, inputs, checked.input_specs))
    verdict = compare(tuple(results), mine, checked, given)
    text = f"{who}: its results against those of this machine, as far as rounding may differ: {verdict}"
    return [Finding("tolerance", not verdict.agree, text, classes=classes)]


def _as_array(data: bytes, spec: ArraySpec) -> np.ndarray:
    return np.frombuffer(data, spec.numpy_dtype).reshape(spec.shape)


def fetch(link: Callable[[float], LocalLink], facts: dict[str, Any]) -> bytes:
    """A blob of the agent's store."""
    data = bytearray(facts["size"])
    with link(CALL_SECONDS) as agent:
        agent.get_blob(BlobInfo(bytes.fromhex(facts["root"]), facts["size"]), memoryview(data))
    return bytes(data)
