"""`coppermesh.trace_report(y)`: what computing lazy arrays will take, before anything is sent."""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from coppermesh.exec import barrier
from coppermesh.exec.budget import RunLimits, check_budget, estimate, format_bytes, lease_limits
from coppermesh.exec.errors import OverBudget
from coppermesh.exec.graph import Handle
from coppermesh.exec.source_lines import describe_line
from coppermesh.exec.tracing import Recording, trace

SHOWN_BARRIERS = 5


@dataclass(frozen=True, slots=True)
class TraceReport:
    """What a program is made of and what it is estimated to need. `str()` is for people. Sizes are in bytes."""

    nodes: int
    operations: dict[str, int]
    """How often each operation occurs, most frequent first."""
    program_bytes: int
    inputs: int
    input_bytes: int
    outputs: int
    output_bytes: int
    flops: float
    """Estimated operations on elements (`budget`)."""
    peak_bytes: int
    """Upper bound of the arrays held at once."""
    peak_line: str
    """The user's line that recorded the node at which the peak is reached; empty where the inputs alone are it."""
    features: tuple[str, ...]
    """What a provider must offer."""
    barriers: int
    """Round trips of this process so far because Python needed a value."""
    recent_barriers: tuple[str, ...]
    """What asked for the latest ones, and where."""
    refusal: str = ""
    """Why a submit with these options would be refused, and the user's line; empty where it would not."""

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, fit for JSON."""
        return {
            **asdict(self),
            "features": list(self.features),
            "recent_barriers": list(self.recent_barriers),
        }

    def __str__(self) -> str:
        frequent = ", ".join(f"{name} {count}" for name, count in list(self.operations.items())[:6])
        peak = f"at most {format_bytes(self.peak_bytes)} at once"
        lines = [
            f"program    {self.nodes} nodes, {format_bytes(self.program_bytes)} ({frequent or 'none'})",
            f"inputs     {self.inputs} arrays, {format_bytes(self.input_bytes)}",
            f"outputs    {self.outputs} arrays, {format_bytes(self.output_bytes)}",
            f"work       about {self.flops:.2g} operations",
            f"memory     {peak}" + (f", at {self.peak_line}" if self.peak_line else ""),
            f"needs      {', '.join(self.features)}",
            f"fetched    {self.barriers} values so far in this process, a round trip each",
        ]
        lines += [f"           {text}" for text in self.recent_barriers]
        return "\n".join([*lines, f"refused    {self.refusal}"] if self.refusal else lines)


def check_limits(recording: Recording, limits: RunLimits) -> None:
    """Refuse what is over `limits`, with the user's own line. Raises OverBudget."""
    try:
        check_budget(estimate(recording.checked), limits, recording.checked)
    except OverBudget as error:
        error.line = recording.locate(error.node)
        raise


def trace_report(
    *arrays: Handle, device: str = "any", wall_limit_s: float = 60.0, memory_bytes: int | None = None
) -> TraceReport:
    """What computing `arrays` will take, and whether it can run. Runs nothing.

    `device` ("cpu", "cuda" or "any") and `wall_limit_s`, as `submit` takes them, limit the operations: what the device
    could not end in time is refused. `memory_bytes` is what a lease would give, where known; without it the lease is
    made as large as the program. Raises ProgramInvalid where the whole breaks a limit of the format.
    """
    recording = trace(*arrays)
    checked = recording.checked
    cost = estimate(checked)
    refusal = ""
    try:
        memory = max(cost.peak_bytes, cost.output_bytes) if memory_bytes is None else memory_bytes
        check_limits(recording, lease_limits(device, memory, wall_limit_s))
    except OverBudget as error:
        refusal = str(error)
    operations = Counter(checked_node.node.op for checked_node in checked.nodes)
    recent = [
        f"{one.what} at {describe_line([one.source], 0)}" for one in barrier.barriers()[-SHOWN_BARRIERS:]
    ]
    return TraceReport(
        nodes=cost.nodes,
        operations=dict(operations.most_common()),
        program_bytes=len(recording.program),
        inputs=len(checked.input_specs),
        input_bytes=cost.input_bytes,
        outputs=len(checked.output_specs),
        output_bytes=cost.output_bytes,
        flops=cost.flops,
        peak_bytes=cost.peak_bytes,
        peak_line=describe_line(recording.sources, cost.peak_node),
        features=tuple(sorted(checked.features)),
        barriers=barrier.count(),
        recent_barriers=tuple(recent),
        refusal=refusal,
    )
