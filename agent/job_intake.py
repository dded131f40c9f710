"""Taking a job from a local client: check everything that can be checked before any peer is asked.

The programs are decoded and checked here with the same code that the provider uses, so that a wrong one is refused
with its sentence in milliseconds and nobody bids on work that cannot run. What a program needs (features, memory)
becomes the job's requirement. Blobs that ride in the call are verified and stored; others must be in the store already.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import trio

from coppermesh.agent.jobs import JobState, JobTable, ProgramFacts
from coppermesh.agent.local_messages import SubmitCall, TaskSpec
from coppermesh.agent.matching import MAX_LEASES, Requirement
from coppermesh.agent.traces import NODE_DIGESTS
from coppermesh.exec.budget import RunLimits, check_budget, estimate, lease_limits
from coppermesh.exec.cuda_needs import program_needs
from coppermesh.exec.errors import ExecError
from coppermesh.exec.program import ArraySpec, decode_program
from coppermesh.exec.schema import CheckedProgram, check_program
from coppermesh.p2p.blob_store import BlobStore, Scope
from coppermesh.p2p.errors import Refused
from coppermesh.p2p.ids import Digest
from coppermesh.p2p.messages import BlobInfo

STORED_AT_ONCE = 256
"""Small blobs of a job that are stored in one step."""
LARGEST = RunLimits(memory_bytes=1 << 40, output_bytes=1 << 38, blob_bytes=1 << 40, flops=1e20)
"""Beyond this no device of any provider will do; refused before anybody is asked. Operations are limited by the wall
limit too (`budget.lease_limits`): a provider of that kind of device would refuse the same, in the same words."""
LEAST_MEMORY_BYTES = 256 << 20
"""Memory that a lease asks for however small its tasks are."""
MAX_PROGRAMS = 4096
"""Checked programs remembered, and different programs in one job."""
THREAD_BYTES = 32 * 1024
"""Programs larger than this are checked in a thread."""
MAX_SECONDS = 86_400.0
MAX_MODEL = 64
_KNOWN_OPTIONS = frozenset(
    {
        "device", "model", "memory", "features", "isolation", "min_speed", "max_rate", "budget", "wall_limit_s",
        "deadline_s", "providers", "redundancy", "fresh", "trace",
    }
)  # fmt: skip


class JobIntake:
    """Checks submit calls and makes `JobState`s of them."""

    def __init__(
        self,
        store: BlobStore,
        scope: Scope,
        *,
        now_us: Callable[[], int],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._store = store
        self._scope = scope
        self._now_us = now_us
        self._random_bytes = random_bytes
        self._programs: dict[bytes, ProgramFacts] = {}

    async def take(self, call: SubmitCall, jobs: JobTable) -> JobState:
        """The job, in `jobs`, with its inputs pinned.

        Raises Refused: `bad-option`, `missing-blobs`, a program's own code, `too-many-programs`, `too-many-jobs`;
        StoreFull.
        """
        options = _parse_options(call.options)
        named = _named(call.tasks)
        for root in named:
            self._store.pin(Digest(root))
        try:
            return await self._take_pinned(call, options, jobs)
        except BaseException:
            for root in named:
                self._store.unpin(Digest(root))
            raise

    async def _take_pinned(self, call: SubmitCall, options: Mapping[str, Any], jobs: JobTable) -> JobState:
        for at in range(
            0, len(call.blobs), STORED_AT_ONCE
        ):  # thousands at once would hold up everything else
            part = call.blobs[at : at + STORED_AT_ONCE]
            await self._store.put_many(self._scope, [(Digest(blob.root), blob.data) for blob in part])
        await self._require_blobs(call.tasks)
        roots = dict.fromkeys(task.program for task in call.tasks)
        if len(roots) > MAX_PROGRAMS:
            raise Refused(
                "too-many-programs", f"a job has at most {MAX_PROGRAMS} programs, this one {len(roots)}"
            )
        wanted = lease_limits(options["device"], LARGEST.memory_bytes, options["wall_limit_s"])
        limits = replace(LARGEST, flops=min(LARGEST.flops, wanted.flops))
        programs = {root: await self._check(root, limits) for root in roots}
        for number, task in enumerate(call.tasks):
            _match_inputs(number, task, programs[task.program].inputs)
        now_us = self._now_us()
        job = JobState(
            job=self._random_bytes(16),
            tasks=call.tasks,
            requirement=_requirement(options, list(programs.values())),
            deadline_us=now_us + int(options["deadline_s"] * 1e6),
            budget=options["budget"],
            submitted_us=now_us,
            programs=programs,
            copies=options["redundancy"],
        )
        for forgotten in jobs.add(job):
            self.release_outputs(forgotten)
        return job

    def release_inputs(self, job: JobState) -> None:
        """The job has ended: its inputs may be evicted when room is needed."""
        for root in _named(job.tasks):
            self._store.unpin(Digest(root))

    def release_outputs(self, job: JobState) -> None:
        """Nobody can ask for the job any more."""
        for root in job.pinned:
            self._store.unpin(Digest(root))
        job.pinned.clear()

    async def _require_blobs(self, tasks: Sequence[TaskSpec]) -> None:
        missing = [root for root in _named(tasks) if not await self._store.ensure(self._scope, Digest(root))]
        if missing:
            names = ", ".join(root.hex()[:12] for root in missing[:3])
            raise Refused("missing-blobs", f"{len(missing)} blobs of the job are not in the store: {names}")

    async def _check(self, root: bytes, limits: RunLimits) -> ProgramFacts:
        known = self._programs.get(root)
        if known is not None and known.flops <= limits.flops:
            return known
        data = await self._store.read(self._scope, Digest(root))
        try:
            if len(data) > THREAD_BYTES:
                facts = await trio.to_thread.run_sync(_inspect, data, limits)
            else:
                facts = _inspect(data, limits)
        except ExecError as error:
            raise Refused(error.code, error.sentence) from error
        while len(self._programs) >= MAX_PROGRAMS:
            del self._programs[next(iter(self._programs))]
        self._programs[root] = facts
        return facts


def _inspect(data: bytes, limits: RunLimits) -> ProgramFacts:
    checked = check_program(decode_program(data))
    cost = estimate(checked)
    check_budget(cost, limits, checked)
    return ProgramFacts(
        inputs=tuple(checked.input_specs),
        outputs=tuple(checked.output_specs),
        features=checked.features,
        needs=_where_needed(checked),
        peak_bytes=cost.peak_bytes,
        flops=cost.flops,
        size=len(data),
    )


def _where_needed(checked: CheckedProgram) -> dict[str, str]:
    where: dict[str, str] = {}
    for need in program_needs(checked):
        where.setdefault(need.code, str(need))
    return where


def _named(tasks: Sequence[TaskSpec]) -> dict[bytes, None]:
    """Every blob that the tasks name, once."""
    roots: dict[bytes, None] = {}
    for task in tasks:
        roots[task.program] = None
        roots.update(dict.fromkeys(blob.root for blob in task.inputs))
    return roots


def _match_inputs(number: int, task: TaskSpec, specs: Sequence[ArraySpec]) -> None:
    given: list[BlobInfo] = list(task.inputs)
    if [blob.size for blob in given] != [spec.nbytes for spec in specs]:
        raise Refused("wrong-inputs", f"task {number}: its inputs are not those that its program takes")


def _parse_options(text: str) -> dict[str, Any]:
    """Options with their types and ranges checked. Raises Refused naming the option."""
    try:
        options = json.loads(text)
    except (ValueError, RecursionError):
        raise Refused("bad-option", "the job's options are not JSON") from None
    if not isinstance(options, dict) or options.keys() != _KNOWN_OPTIONS:
        raise Refused("bad-option", f"a job's options are {', '.join(sorted(_KNOWN_OPTIONS))}")
    _require(options["device"] in ("any", "cpu", "cuda"), "device", "any, cpu or cuda")
    model = options["model"]
    _require(
        isinstance(model, str) and len(model) <= MAX_MODEL and model.isascii() and model.isprintable(),
        "model",
        f"part of a device's name, at most {MAX_MODEL} printable ASCII characters",
    )
    _require(_is_whole(options["memory"], 0, 1 << 60), "memory", "a whole number of bytes, 0 or more")
    _require(_is_whole(options["min_speed"], 0, 1 << 60), "min_speed", "a whole number of Mop/s, 0 or more")
    _require(
        _is_whole(options["redundancy"], 1, MAX_LEASES), "redundancy", f"a number from 1 to {MAX_LEASES}"
    )
    for name in ("max_rate", "budget"):
        _require(_is_whole(options[name], 0, 1 << 60), name, "a whole number of millionths, 0 or more")
    for name in ("wall_limit_s", "deadline_s"):
        _require(_is_seconds(options[name]), name, f"seconds, above 0 and at most {MAX_SECONDS:.0f}")
    _require(_is_whole(options["providers"], 1, MAX_LEASES), "providers", f"a number from 1 to {MAX_LEASES}")
    for name in ("fresh", "trace"):
        _require(isinstance(options[name], bool), name, "true or false")
    for name in ("isolation", "features"):
        names = options[name]
        _require(
            isinstance(names, list) and len(names) <= 16 and all(_is_name(one) for one in names),
            name,
            'a list of at most 16 names of small letters, digits and "-"',
        )
    return options


def _require(holds: bool, name: str, want: str) -> None:
    if not holds:
        raise Refused("bad-option", f"option {name} must be {want}")


def _is_name(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[a-z0-9-]{1,40}", value) is not None


def _is_whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_seconds(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= MAX_SECONDS


def _requirement(options: Mapping[str, Any], programs: Sequence[ProgramFacts]) -> Requirement:
    features: frozenset[str] = frozenset({"array-programs", *options["features"]})
    features = features.union(*(facts.features for facts in programs))
    if options["trace"]:
        features |= {NODE_DIGESTS}
    return Requirement(
        device_kind=options["device"],
        model=options["model"].lower(),
        features=features,
        isolation=tuple(options["isolation"]),
        memory_bytes=max(options["memory"], _round_up(max(_memory_needed(facts) for facts in programs))),
        min_speed=options["min_speed"],
        wall_limit_us=int(options["wall_limit_s"] * 1e6),
        max_rate=options["max_rate"],
        fresh=options["fresh"],
        providers=options["providers"],
    )


def _memory_needed(facts: ProgramFacts) -> int:
    """Also the outputs must fit, and one value may be several outputs."""
    return max(facts.peak_bytes, sum(spec.nbytes for spec in facts.outputs))


def _round_up(size: int) -> int:
    """To a power of two, at least `LEAST_MEMORY_BYTES`: jobs of about the same size share leases."""
    return max(LEAST_MEMORY_BYTES, 1 << (size - 1).bit_length() if size else 0)
