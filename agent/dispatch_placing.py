"""Which task runs where, and when more leases are wanted: what follows from the state of a group after each event.

Theory of operation. A waiting task goes to the lease where it is expected to end first: the tasks there and this one,
times what a task takes there by measurement (leases without one yet count as the middle one of those with). Of equals
the one with fewest tasks, then the least recently used. Of a job's next few tasks that one is taken whose large blobs
are at the provider already.

Once nothing waits, the work is evened out. A lease that has become idle takes a task that waits behind others at a
slow provider: it was not begun, so nobody loses by it. Where a task runs much longer than its like, a second copy is
started on an idle lease: the first of both results counts, the other is stopped and not paid.
"""

from collections.abc import Iterator
from itertools import islice

from coppermesh.agent.dispatch_board import Board, short
from coppermesh.agent.dispatch_events import ExtendLease, Supersede, WantLeases
from coppermesh.agent.dispatch_group import Group, Near
from coppermesh.agent.dispatch_state import LEAST_SERVICE_US, MAX_SCAN, SECOND, Job, Lease
from coppermesh.agent.pricing import format_money
from coppermesh.p2p.ids import short_peer

QUEUE_US = 2 * SECOND
"""Tasks for about so long are sent to a provider ahead, and two at least."""
MEASURED = 3
"""Tasks of a job that are done before one of the others counts as slow."""


class Placing:
    """Decides for one group at a time, on the board."""

    def __init__(self, board: Board, near: Near | None) -> None:
        self._board = board
        self._near = near

    def settle(self, group: Group) -> None:
        """Do everything that the group's state calls for."""
        self._drop_leases(group)
        self._place_tasks(group)
        self._extend(group)
        self._steal(group)
        self._copy_stragglers(group)
        self._fail_the_broke(group)
        self._ask_for_leases(group)
        if group.is_empty:
            self._board.groups.pop(group.requirement, None)

    def next_longer_us(self, group: Group) -> int | None:
        """When the tasks that run for the first time will have run long enough for more leases to be wanted."""
        board, limits = self._board, self._board.limits
        if group.typical_us is not None or not self._backlog(group):
            return None
        known_us = group.known_us(board.now_us)
        steps = (limits.lease_work_us // 2, limits.lease_work_us)
        ahead = [step - known_us for step in steps if known_us is not None and step > known_us]
        return board.now_us + min(ahead) if ahead else None

    def _backlog(self, group: Group) -> int:
        """Tasks that an idle lease could take: they wait here, or behind another and were not moved before."""
        behind = 0
        for lease in group.leases.values():
            for job_id, index in islice(lease.outstanding, 1, None):
                trouble = self._board.jobs[job_id].troubles.get(index)
                behind += not (trouble and trouble.moved)
        return group.waiting + behind

    def next_copy_us(self, group: Group) -> int | None:
        """When the next task counts as a straggler, where it can be helped."""
        return min((due_us for due_us, *_ in self._stragglers(group)), default=None)

    def _drop_leases(self, group: Group) -> None:
        board = self._board
        if self.next_copy_us(group) is not None:
            for lease in self._idle(group):
                lease.idle_since_us = board.now_us  # a straggler may need it yet
        for lease in [lease for lease in group.leases.values() if lease.is_idle]:
            if lease.is_spent:
                board.release(lease, "budget", "its budget does not cover another task")
            elif board.is_ending(lease):
                board.release(lease, "expiring", "another task might not end before the lease does")
            elif lease.idle_since_us + board.warm_us(lease) <= board.now_us:
                board.release(lease, "idle", f"no task for {board.warm_us(lease) / SECOND:g} s")

    def _place_tasks(self, group: Group) -> None:
        """Start waiting tasks wherever there is room for them."""
        board = self._board
        share = group.fair_share
        usable = [lease for lease in group.leases.values() if board.is_usable(lease)]
        default_us = group.typical_us or LEAST_SERVICE_US
        while group.waiting and usable:
            lease = min(usable, key=lambda found: _expected(found, default_us))
            found = None
            if self._has_room(lease, share):
                found = group.take(lease, board.now_us, board.limits.max_strikes, self._near)
            if found is None:
                usable.remove(lease)
            else:
                board.start(*found, lease)

    def _extend(self, group: Group) -> None:
        """Leases that work outlasts are asked to end later, in time: a new one would need a new worker."""
        board = self._board
        for lease in group.leases.values():
            due = lease.may_extend and board.now_us >= lease.extend_us(board.limits)
            if due and board.may_take_more(lease.provider):
                lease.extending = True
                left_s = max(0, lease.expires_us - board.now_us) // SECOND
                board.out.append(ExtendLease(lease.id, f"it ends in {left_s} s and has work"))

    def _has_room(self, lease: Lease, share: int | None = None) -> bool:
        """One more task is of use there, and allowed."""
        queue = min(_queue(lease, self._board.limits.unproven_tasks), share or MAX_SCAN)
        return bool(lease.room) and len(lease.outstanding) < queue and self._board.may_take(lease)

    # Evening out.

    def _idle(self, group: Group) -> list[Lease]:
        board = self._board
        return [
            lease
            for lease in group.leases.values()
            if lease.is_idle and lease.room and board.is_usable(lease) and board.may_take(lease)
        ]

    def _proven_idle(self, group: Group) -> list[Lease]:
        return [lease for lease in self._idle(group) if lease.service_us is not None]

    def _steal(self, group: Group) -> None:
        """Idle leases take tasks that wait behind others where it takes long."""
        if group.waiting or len(group.leases) < 2:
            return
        for lease in self._idle(group):
            found = self._worth_moving(group, lease)
            if found is None:
                continue
            job, index, old = found
            attempt = job.end(index, old.id)
            assert attempt is not None
            cause = f"moved from lease {short(old.id)}: it waited there, lease {short(lease.id)} is idle"
            job.trouble(index).moved.append(old.id)
            self._board.out.append(Supersede(job.id, index, old.id, cause))
            self._board.stop(job.id, index, attempt, cause)
            self._board.start(job, index, lease, cause)

    def _worth_moving(self, group: Group, lease: Lease) -> tuple[Job, int, Lease] | None:
        """The task that gains most by being moved to `lease`, of those that have not begun."""
        best, best_gain_us = None, 0
        # What has run for so long without ever ending is expected to take as long again.
        known_us = group.typical_us or 2 * (group.known_us(self._board.now_us) or 0)
        if lease.service_us is None and known_us < self._board.limits.lease_work_us:
            return None  # nothing is known of it, nor that it is worth while
        own_us = known_us if lease.service_us is None else lease.service_us
        for old in group.leases.values():
            if len(old.outstanding) < 2 or old.provider == lease.provider:
                continue
            gain_us = self._wait_us(old, known_us) - own_us
            least_us = max(best_gain_us, self._board.limits.move_gain_us, own_us // 4)
            if gain_us > least_us and (found := self._movable(old, lease)):
                best, best_gain_us = (*found, old), gain_us
        return best

    def _wait_us(self, lease: Lease, known_us: int) -> int:
        """How long the last task there is expected to take from now on."""
        head = lease.head()
        running_us = self._board.now_us - head[1] if head else 0
        service_us = max(known_us if lease.service_us is None else lease.service_us, running_us)
        return len(lease.outstanding) * service_us - min(running_us, service_us)

    def _movable(self, old: Lease, lease: Lease) -> tuple[Job, int] | None:
        """The newest task under `old` that may run under `lease` and was not moved before; never the one that runs."""
        for job_id, index in islice(reversed(old.outstanding), len(old.outstanding) - 1):
            job = self._board.jobs[job_id]
            trouble = job.troubles.get(index)
            if (
                len(job.attempts(index)) == 1
                and not (trouble and trouble.moved)
                and self._may(job, index, lease)
            ):
                return job, index
        return None

    def _may(self, job: Job, index: int, lease: Lease) -> bool:
        board = self._board
        return (
            not job.is_barred(lease.provider, board.limits.max_strikes)
            and job.may_have(lease.provider, index, board.now_us)
            and job.can_pay(lease.task_cost)
        )

    def _copy_stragglers(self, group: Group) -> None:
        due = [found for found in self._stragglers(group) if found[0] <= self._board.now_us]
        for _, job, index, old, lease in due:
            if lease.is_idle and len(job.attempts(index)) == 1:
                slow = f"it runs long on lease {short(old.id)} of {short_peer(old.provider)}"
                self._board.start(job, index, lease, f"a second copy: {slow}")

    def _stragglers(self, group: Group) -> Iterator[tuple[int, Job, int, Lease, Lease]]:
        """Tasks that run alone while another lease is idle: when each is due for a second copy, and where."""
        idle = [] if group.waiting or len(group.leases) < 2 else self._proven_idle(group)
        typical_us = group.typical_us
        if not idle or typical_us is None:
            return
        limits = self._board.limits
        after_us = max(limits.least_straggle_us, limits.straggle_factor * typical_us)
        for old in group.leases.values():
            head = old.head()
            if head is None:
                continue
            (job_id, index), since_us = head
            job = self._board.jobs[job_id]
            if job.done < MEASURED or len(job.attempts(index)) != 1:
                continue
            for lease in idle:
                if lease.provider != old.provider and self._may(job, index, lease):
                    yield since_us + after_us, job, index, old, lease
                    break

    # What cannot go on, and what more is wanted.

    def _fail_the_broke(self, group: Group) -> None:
        """End jobs that cannot pay one more task under any lease held, with nothing running that may cost less."""
        cheapest = min((lease.task_cost for lease in group.leases.values()), default=0)
        looked_at = list(islice(group.ready, MAX_SCAN))
        for job in [job for job in looked_at if not job.running and not job.can_pay(cheapest)]:
            unit = group.requirement.unit
            sentence = (
                f"{job.done_so_far} for {format_money(job.spent, unit)}; one more can cost "
                f"{format_money(cheapest, unit)}, the budget is {format_money(job.budget, unit)}"
            )
            self._board.fail_job(job, "budget", sentence, "the budget does not cover another task")

    def _ask_for_leases(self, group: Group) -> None:
        board, limits = self._board, self._board.limits
        if not group.jobs or group.negotiating_until_us is not None or board.now_us < group.retry_us:
            return
        usable = [lease for lease in group.leases.values() if board.is_usable(lease)]
        per_lease = group.tasks_per_lease(board.now_us, limits)
        if group.waiting:
            useless = [lease for lease in usable if self._has_room(lease)]
            held = len(usable) - len(useless)
            by_load = -(-(group.waiting + group.outstanding) // per_lease)
        elif per_lease == 1 and (behind := self._backlog(group)):
            # Each of them takes long, and would begin at once elsewhere.
            useless = []
            held = len(usable)
            by_load = sum(bool(lease.outstanding) for lease in usable) + behind
        else:
            useless = []
            held = len(group.leases)
            by_load = 0
        target = min(group.most_leases(board.now_us, limits), max(group.least_leases, by_load))
        count = min(target - held, group.most_held(board.now_us, limits) - len(group.leases))
        if count <= 0:
            return
        exclude = (
            set(board.put_back)
            | board.records.resting(board.now_us)
            | {lease.provider for lease in useless}
            | group.barred(limits.max_strikes)
            | group.served_out()
        )
        deadline_us = group.begin_negotiation(count, board.now_us, limits)
        wait = "1 task waits" if group.waiting == 1 else f"{group.waiting} tasks wait"
        board.out.append(
            WantLeases(
                group.requirement,
                count,
                exclude=frozenset(exclude),
                held=frozenset(lease.provider for lease in group.leases.values()),
                deadline_us=deadline_us,
                cause=f"{wait}, {held} of {target} leases held",
                fruitless=group.fruitless,
            )
        )


def _queue(lease: Lease, unproven: int) -> int:
    """How many tasks are worth having there: enough that it never waits for one, few where each takes long."""
    return unproven if lease.service_us is None else max(2, QUEUE_US // lease.service_us)


def _expected(lease: Lease, default_us: int) -> tuple[int, int, int]:
    """When a task put there now is expected to end, then how many are there, then when it was last used."""
    service_us = default_us if lease.service_us is None else lease.service_us
    count = len(lease.outstanding)
    # To within a tenth of a second: less is noise, and spreading evenly is worth more.
    return (count + 1) * service_us // 100_000, count, lease.used
