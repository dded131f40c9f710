"""A provider says that a task failed by its own doing: whom to believe (pure).

Theory of operation. What an agent can check itself (the program, its inputs, its limits) it has checked before anybody
was asked. What is left, a compiler's error, a bad index, a crash, a limit that was reached, is one provider's word,
and a liar could end every job with it. So the task runs once more, at another provider:

- a second provider that says so too is believed, and the job ends;
- where it succeeds elsewhere, whoever said otherwise has failed like any other;
- where nobody else is left who may take it, or nobody could take it in `confirm_us`, the one word has to do. While
  another provider that may have it holds a lease, its turn is waited for, to the job's deadline: long tasks there must
  not leave the job to a liar.

Copies of a task are asked about together. With copies, one word alone never ends a job: it counts as one copy with
another result, and `copies.judge` decides.
"""

from coppermesh.agent.dispatch_board import Board
from coppermesh.agent.dispatch_events import CopyFailed, JobFinished, TaskFailed
from coppermesh.agent.dispatch_group import Group
from coppermesh.agent.dispatch_state import Attempt, Claim, Doubt, Job
from coppermesh.p2p.ids import PeerId, short_peer

BELIEVED = 2
"""So many providers are believed without more."""


class Doubts:
    """Judges claims, on the board."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._doubted: dict[bytes, Job] = {}
        """Jobs with doubts, so that no event looks through all jobs; ended ones go when they are next looked at."""

    def claimed(self, job: Job, event: TaskFailed, attempt: Attempt) -> None:
        """`attempt` ended, by the job's own doing as its provider says."""
        board, index = self._board, event.index
        task = job.base(index)
        if task not in job.doubts:
            job.doubts[task] = Doubt(board.now_us + board.limits.confirm_us)
            self._doubted[job.id] = job
        doubt = job.doubts[task]
        doubt.claims[attempt.provider] = Claim(attempt, event.code, event.sentence)
        if len(doubt.claims) >= BELIEVED:
            job.end(index, event.lease)
            self._believe(job, index, event.code, event.sentence)
            return
        doubt.waiting.add(index)
        board.retry(job, index, event.lease, event.code, event.sentence, blame=False)
        if job.id in board.jobs:
            until_us = board.now_us + board.limits.max_put_back_us
            job.trouble(index).excluded[attempt.provider] = until_us

    def done(self, job: Job, index: int, by: Attempt | None) -> None:
        """A task is done: it can be, so whoever said otherwise of it has failed at it."""
        doubt = job.doubts.get(job.base(index))
        if doubt is None or index not in doubt.waiting:
            return
        doubt.waiting.discard(index)
        for peer, claim in doubt.claims.items():
            if by is None or peer != by.provider:
                self._board.blame(job, index, claim.attempt)
                self._board.records.note_lost(peer, self._board.now_us)
        if not doubt.waiting:
            del job.doubts[job.base(index)]

    def nobody_else(self, group: Group, left: frozenset[PeerId]) -> None:
        """A negotiation gave nothing; `left` may yet take tasks of the group."""
        for job in self._jobs():
            for task, doubt in list(job.doubts.items()):
                ours = job.id in self._board.jobs and self._board.groups[job.requirement] is group
                if ours and left <= self._barred(job, task, doubt):
                    self._unconfirmed(group, job, doubt)

    def pass_time(self) -> None:
        """Claims that nobody could confirm in time."""
        now_us = self._board.now_us
        for job in self._jobs():
            for task, doubt in list(job.doubts.items()):
                if doubt.until_us > now_us or job.id not in self._board.jobs:
                    continue
                group = self._board.groups[job.requirement]
                if doubt.waiting and self._may_yet_be_tried(group, job, task, doubt):
                    doubt.until_us = now_us + self._board.limits.confirm_us
                else:
                    self._unconfirmed(group, job, doubt)

    def _jobs(self) -> list[Job]:
        """Those with doubts that are not over."""
        self._doubted = {
            job.id: job
            for job in self._doubted.values()
            if job.doubts and self._board.jobs.get(job.id) is job
        }
        return list(self._doubted.values())

    def _barred(self, job: Job, task: int, doubt: Doubt) -> set[PeerId]:
        """Who cannot confirm it: who claims it, has a copy of it, or may have nothing of the job."""
        return doubt.claims.keys() | job.owners(task) | job.barred(self._board.limits.max_strikes)

    def _may_yet_be_tried(self, group: Group, job: Job, task: int, doubt: Doubt) -> bool:
        """Somebody else holds a lease, and gets the task when its turn comes."""
        board = self._board
        others = {lease.provider for lease in group.leases.values() if not lease.final}
        others -= self._barred(job, task, doubt) | board.put_back.keys() | board.records.resting(board.now_us)
        return bool(others)

    def wakeups(self) -> list[int]:
        """When claims are due that wait for another provider."""
        return [
            doubt.until_us
            for job in self._jobs()
            for doubt in job.doubts.values()
            if doubt.until_us > self._board.now_us and doubt.waiting
        ]

    def counted(self, job: Job, index: int) -> None:
        """A copy that failed was compared with the others."""
        board = self._board
        board.groups[job.requirement].finish(job, index)
        if job.done == job.tasks:
            board.end_job(job, "all tasks are done")
            board.out.append(JobFinished(job.id, f"all {job.tasks} copies are compared"))

    def _unconfirmed(self, group: Group, job: Job, doubt: Doubt) -> None:
        waiting = [index for index in sorted(doubt.waiting) if not job.attempts(index)]
        for index in waiting:
            peer, claim = next(iter(doubt.claims.items()))
            if job.copies == 1:
                self._believe(job, index, claim.code, claim.sentence)
                return
            doubt.waiting.discard(index)
            group.set_aside(job, index)
            self._board.out.append(CopyFailed(job.id, index, peer, claim.code, _reason(claim)))
        if not doubt.waiting and job.copies > 1:
            doubt.until_us = 0  # a second word about another copy still ends the job

    def _believe(self, job: Job, index: int, code: str, sentence: str) -> None:
        others = [
            f"{short_peer(peer)} said {claim.code}"
            for peer, claim in job.doubts[job.base(index)].claims.items()
            if claim.code != code
        ]
        said = "; ".join([sentence, *others])
        self._board.fail_job(job, code, said, f"task {index} failed by the job's fault", index)


def _reason(claim: Claim) -> str:
    return f"{claim.code}: {claim.sentence}" if claim.sentence else claim.code
