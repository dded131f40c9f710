"""The two conversations of the market, as transition tables: one lease's negotiation, and one task under a lease.

Theory of operation. Requester and provider each keep a machine for every conversation and feed it both sides' moves.
One table judges both: it says which move is possible in a state, who may make it and where it leads. A move that the
table does not have is a bug when it is ours (`LocalProtocolError`, nothing was sent) and a breach when it is theirs
(`RemoteProtocolError`; the machine is then in its BROKEN state, which ends that lease or task and nothing else).

Messages of the two sides cross on the wire, and after a broken connection the last one is sent again. So a second
table lists, for each state, moves that honest peers can still make: they change nothing, and a request among them is
answered as it was the first time. A peer that repeats itself without end is stopped by `MAX_MOVES`.

Nothing waits forever: each state that is not final has a longest stay, which a record's own expiry may shorten, and
EXPIRE leads out of it. EXPIRE is never a message: each side judges by its own clock. Final states have no way out and
free whatever was held for the conversation.

Everything that decides what may follow what is in this file, and this file knows nothing of records, signatures or
streams.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

from coppermesh.p2p.errors import LocalProtocolError, RemoteProtocolError

SECOND = 1_000_000
HOUR = 3600 * SECOND
MAX_MOVES = 64
"""Moves in one conversation; an honest one needs under twenty even when every connection breaks."""
MAX_HISTORY = 32


class Role(Enum):
    """The two sides of a conversation."""

    REQUESTER = "requester"
    PROVIDER = "provider"

    @property
    def other(self) -> "Role":
        """The other side."""
        return Role.PROVIDER if self is Role.REQUESTER else Role.REQUESTER


class Move(Enum):
    """What either side can do. All but EXPIRE and BREACH are messages or answers to messages."""

    ORDER = "order"
    BID = "bid"
    DECLINE = "decline"
    ABANDON = "abandon"
    LEASE_OFFER = "lease-offer"
    """The requester sends the lease with its signature."""
    LEASE_ACCEPT = "lease-accept"
    """The provider answers with its own signature on the same bytes."""
    LEASE_REFUSE = "lease-refuse"
    OFFER = "offer"
    """The requester sends a signed task, again after it sent the blobs that were needed."""
    NEED = "need"
    ACCEPT = "accept"
    REFUSE = "refuse"
    RESULT = "result"
    """The provider sends its signed receipt, whatever the task's outcome."""
    COUNTERSIGN = "countersign"
    CANCEL = "cancel"
    STOPPED = "stopped"
    """The provider no longer runs the task: it was cancelled, or its owner took the device back."""
    EXPIRE = "expire"
    """The state's deadline passed by one's own clock."""
    BREACH = "breach"
    """That side broke the protocol: a move out of turn, or a record that does not hold."""


class LeaseState(Enum):
    """Where the negotiation of a lease stands."""

    IDLE = "idle"
    ORDERED = "ordered"
    BID = "bid"
    OFFERED = "offered"
    LEASED = "leased"
    DECLINED = "declined"
    ABANDONED = "abandoned"
    REFUSED = "refused"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    ENDED = "ended"
    BROKEN = "broken"


class TaskState(Enum):
    """Where one task under a lease stands."""

    IDLE = "idle"
    OFFERED = "offered"
    NEEDED = "needed"
    ACCEPTED = "accepted"
    CANCELLING = "cancelling"
    DELIVERED = "delivered"
    REFUSED = "refused"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    SETTLED = "settled"
    BROKEN = "broken"


S = TypeVar("S", bound=Enum)
Who = frozenset[Role]
Transitions = Mapping[S, Mapping[Move, tuple[Who, S]]]
Crossings = Mapping[S, Mapping[Move, Who]]

REQUESTER: Who = frozenset({Role.REQUESTER})
PROVIDER: Who = frozenset({Role.PROVIDER})
EITHER: Who = REQUESTER | PROVIDER

LEASE_TRANSITIONS: Transitions[LeaseState] = {
    LeaseState.IDLE: {
        Move.ORDER: (REQUESTER, LeaseState.ORDERED),
        Move.ABANDON: (REQUESTER, LeaseState.ABANDONED),
        Move.EXPIRE: (EITHER, LeaseState.EXPIRED),
        Move.BREACH: (EITHER, LeaseState.BROKEN),
    },
    LeaseState.ORDERED: {
        Move.BID: (PROVIDER, LeaseState.BID),
        Move.DECLINE: (PROVIDER, LeaseState.DECLINED),
        Move.ABANDON: (REQUESTER, LeaseState.ABANDONED),
        Move.EXPIRE: (EITHER, LeaseState.EXPIRED),
        Move.BREACH: (EITHER, LeaseState.BROKEN),
    },
    LeaseState.BID: {
        Move.LEASE_OFFER: (REQUESTER, LeaseState.OFFERED),
        Move.ABANDON: (REQUESTER, LeaseState.ABANDONED),
        # The lease was offered, but the offer was lost with its connection.
        Move.CANCEL: (REQUESTER, LeaseState.CANCELLED),
        Move.EXPIRE: (EITHER, LeaseState.EXPIRED),
        Move.BREACH: (EITHER, LeaseState.BROKEN),
    },
    LeaseState.OFFERED: {
        Move.LEASE_ACCEPT: (PROVIDER, LeaseState.LEASED),
        Move.LEASE_REFUSE: (PROVIDER, LeaseState.REFUSED),
        # By the provider: it had accepted, that answer was lost, and it has ended the lease since.
        Move.CANCEL: (EITHER, LeaseState.CANCELLED),
        Move.EXPIRE: (EITHER, LeaseState.EXPIRED),
        Move.BREACH: (EITHER, LeaseState.BROKEN),
    },
    LeaseState.LEASED: {
        Move.CANCEL: (EITHER, LeaseState.ENDED),
        Move.EXPIRE: (EITHER, LeaseState.ENDED),
        Move.BREACH: (EITHER, LeaseState.BROKEN),
    },
    LeaseState.DECLINED: {},
    LeaseState.ABANDONED: {},
    LeaseState.REFUSED: {},
    LeaseState.CANCELLED: {},
    LeaseState.EXPIRED: {},
    LeaseState.ENDED: {},
    LeaseState.BROKEN: {},
}

LEASE_CROSSINGS: Crossings[LeaseState] = {
    LeaseState.ORDERED: {Move.ORDER: REQUESTER},
    LeaseState.BID: {Move.ORDER: REQUESTER, Move.BID: PROVIDER},
    LeaseState.OFFERED: {Move.LEASE_OFFER: REQUESTER, Move.BID: PROVIDER},
    LeaseState.LEASED: {Move.LEASE_OFFER: REQUESTER, Move.LEASE_ACCEPT: PROVIDER},
    LeaseState.DECLINED: {Move.ORDER: REQUESTER, Move.DECLINE: PROVIDER, Move.ABANDON: REQUESTER},
    LeaseState.ABANDONED: {Move.BID: PROVIDER, Move.DECLINE: PROVIDER, Move.ABANDON: REQUESTER},
    LeaseState.REFUSED: {Move.LEASE_OFFER: REQUESTER, Move.LEASE_REFUSE: PROVIDER, Move.CANCEL: REQUESTER},
    LeaseState.CANCELLED: {
        Move.BID: PROVIDER,
        Move.LEASE_OFFER: REQUESTER,
        Move.LEASE_ACCEPT: PROVIDER,
        Move.LEASE_REFUSE: PROVIDER,
        Move.CANCEL: EITHER,
    },
    # One side's clock runs ahead of the other's, which is still in time by its own.
    LeaseState.EXPIRED: {
        Move.ORDER: REQUESTER,
        Move.BID: PROVIDER,
        Move.DECLINE: PROVIDER,
        Move.ABANDON: REQUESTER,
        Move.LEASE_OFFER: REQUESTER,
        Move.LEASE_ACCEPT: PROVIDER,
        Move.LEASE_REFUSE: PROVIDER,
        Move.CANCEL: EITHER,
    },
    LeaseState.ENDED: {
        Move.LEASE_OFFER: REQUESTER,
        Move.LEASE_ACCEPT: PROVIDER,
        Move.LEASE_REFUSE: PROVIDER,
        Move.CANCEL: EITHER,
    },
}

LEASE_DEADLINES: Mapping[LeaseState, int] = {
    LeaseState.IDLE: 30 * SECOND,
    LeaseState.ORDERED: 10 * SECOND,
    LeaseState.BID: 30 * SECOND,
    LeaseState.OFFERED: 10 * SECOND,
    LeaseState.LEASED: 24 * HOUR,
}
"""Longest stay in each state, in microseconds; a record's expiry may shorten it, never lengthen it."""

TASK_TRANSITIONS: Transitions[TaskState] = {
    TaskState.IDLE: {
        Move.OFFER: (REQUESTER, TaskState.OFFERED),
        Move.CANCEL: (REQUESTER, TaskState.CANCELLED),
        Move.EXPIRE: (EITHER, TaskState.EXPIRED),
        Move.BREACH: (EITHER, TaskState.BROKEN),
    },
    TaskState.OFFERED: {
        Move.NEED: (PROVIDER, TaskState.NEEDED),
        Move.ACCEPT: (PROVIDER, TaskState.ACCEPTED),
        Move.REFUSE: (PROVIDER, TaskState.REFUSED),
        # The acceptance was lost with its connection, or is still behind the result in the reader's queue.
        Move.RESULT: (PROVIDER, TaskState.DELIVERED),
        Move.STOPPED: (PROVIDER, TaskState.CANCELLED),
        Move.CANCEL: (REQUESTER, TaskState.CANCELLING),
        Move.EXPIRE: (EITHER, TaskState.EXPIRED),
        Move.BREACH: (EITHER, TaskState.BROKEN),
    },
    TaskState.NEEDED: {
        Move.OFFER: (REQUESTER, TaskState.OFFERED),
        # Another task brought the blobs, and an offer that was sent twice was answered twice.
        Move.ACCEPT: (PROVIDER, TaskState.ACCEPTED),
        Move.RESULT: (PROVIDER, TaskState.DELIVERED),
        Move.STOPPED: (PROVIDER, TaskState.CANCELLED),
        Move.REFUSE: (PROVIDER, TaskState.REFUSED),
        Move.CANCEL: (REQUESTER, TaskState.CANCELLING),
        Move.EXPIRE: (EITHER, TaskState.EXPIRED),
        Move.BREACH: (EITHER, TaskState.BROKEN),
    },
    TaskState.ACCEPTED: {
        Move.RESULT: (PROVIDER, TaskState.DELIVERED),
        Move.CANCEL: (REQUESTER, TaskState.CANCELLING),
        Move.STOPPED: (PROVIDER, TaskState.CANCELLED),
        Move.EXPIRE: (EITHER, TaskState.EXPIRED),
        Move.BREACH: (EITHER, TaskState.BROKEN),
    },
    # The provider may have committed a receipt before it heard; that receipt is delivered and disputed.
    TaskState.CANCELLING: {
        Move.RESULT: (PROVIDER, TaskState.DELIVERED),
        Move.REFUSE: (PROVIDER, TaskState.CANCELLED),
        Move.STOPPED: (PROVIDER, TaskState.CANCELLED),
        Move.EXPIRE: (EITHER, TaskState.CANCELLED),
        Move.BREACH: (EITHER, TaskState.BROKEN),
    },
    TaskState.DELIVERED: {
        Move.COUNTERSIGN: (REQUESTER, TaskState.SETTLED),
        Move.EXPIRE: (EITHER, TaskState.EXPIRED),
        Move.BREACH: (EITHER, TaskState.BROKEN),
    },
    TaskState.REFUSED: {},
    TaskState.CANCELLED: {},
    TaskState.EXPIRED: {},
    TaskState.SETTLED: {},
    TaskState.BROKEN: {},
}

TASK_CROSSINGS: Crossings[TaskState] = {
    TaskState.OFFERED: {Move.OFFER: REQUESTER},
    TaskState.NEEDED: {Move.NEED: PROVIDER},
    TaskState.ACCEPTED: {Move.OFFER: REQUESTER, Move.ACCEPT: PROVIDER},
    TaskState.CANCELLING: {
        Move.OFFER: REQUESTER,
        Move.NEED: PROVIDER,
        Move.ACCEPT: PROVIDER,
        Move.CANCEL: REQUESTER,
    },
    TaskState.DELIVERED: {
        Move.OFFER: REQUESTER,
        Move.ACCEPT: PROVIDER,
        Move.RESULT: PROVIDER,
        Move.CANCEL: REQUESTER,
    },
    TaskState.REFUSED: {Move.OFFER: REQUESTER, Move.REFUSE: PROVIDER, Move.CANCEL: REQUESTER},
    TaskState.CANCELLED: {
        Move.OFFER: REQUESTER,
        Move.NEED: PROVIDER,
        Move.ACCEPT: PROVIDER,
        Move.REFUSE: PROVIDER,
        Move.RESULT: PROVIDER,
        Move.COUNTERSIGN: REQUESTER,
        Move.CANCEL: REQUESTER,
        Move.STOPPED: PROVIDER,
    },
    TaskState.EXPIRED: {
        Move.OFFER: REQUESTER,
        Move.NEED: PROVIDER,
        Move.ACCEPT: PROVIDER,
        Move.REFUSE: PROVIDER,
        Move.RESULT: PROVIDER,
        Move.COUNTERSIGN: REQUESTER,
        Move.CANCEL: REQUESTER,
        Move.STOPPED: PROVIDER,
    },
    # A countersignature that was lost is asked for by the same result, and given again with the same bytes.
    TaskState.SETTLED: {
        Move.OFFER: REQUESTER,
        Move.ACCEPT: PROVIDER,
        Move.RESULT: PROVIDER,
        Move.COUNTERSIGN: REQUESTER,
        Move.CANCEL: REQUESTER,
    },
}

TASK_DEADLINES: Mapping[TaskState, int] = {
    TaskState.IDLE: 60 * SECOND,
    TaskState.OFFERED: 30 * SECOND,
    TaskState.NEEDED: HOUR,
    TaskState.ACCEPTED: 24 * HOUR,
    TaskState.CANCELLING: 10 * SECOND,
    TaskState.DELIVERED: HOUR,
}
"""Longest stay in each state, in microseconds; the task's own limits shorten NEEDED and ACCEPTED."""


@dataclass(frozen=True, slots=True)
class Table(Generic[S]):
    """Everything that decides one kind of conversation."""

    name: str
    start: S
    broken: S
    transitions: Transitions[S]
    crossings: Crossings[S]
    deadlines: Mapping[S, int]

    def is_terminal(self, state: S) -> bool:
        """No way leads out of `state`."""
        return not self.transitions[state]


LEASE_TABLE = Table(
    "lease", LeaseState.IDLE, LeaseState.BROKEN, LEASE_TRANSITIONS, LEASE_CROSSINGS, LEASE_DEADLINES
)
TASK_TABLE = Table("task", TaskState.IDLE, TaskState.BROKEN, TASK_TRANSITIONS, TASK_CROSSINGS, TASK_DEADLINES)


@dataclass(frozen=True, slots=True)
class Step(Generic[S]):
    """One move that was made, for `explain`."""

    state: S
    """The state after the move."""
    move: Move
    by: Role
    at_us: int
    cause: str


class Conversation(Generic[S]):
    """One side's machine for one conversation. Use `Negotiation` or `TaskRun`."""

    def __init__(self, table: Table[S], me: Role, now_us: int) -> None:
        self._table = table
        self._me = me
        self._state = table.start
        self._until_us: int | None = None
        self._moves = dict.fromkeys(Role, 0)
        self._deadline_us: int | None = now_us + table.deadlines[table.start]
        self.history: deque[Step[S]] = deque(maxlen=MAX_HISTORY)
        """The newest moves, oldest first."""

    @property
    def me(self) -> Role:
        """Which side this machine is."""
        return self._me

    @property
    def state(self) -> S:
        """Where the conversation stands."""
        return self._state

    @property
    def is_terminal(self) -> bool:
        """It is over: nothing more is expected, and what was held for it can go."""
        return self._table.is_terminal(self._state)

    @property
    def deadline_us(self) -> int | None:
        """When EXPIRE becomes due; None in a final state."""
        return self._deadline_us

    def expired(self, now_us: int) -> bool:
        """EXPIRE is due: the caller should make that move."""
        return self._deadline_us is not None and now_us >= self._deadline_us

    def may(self, move: Move, by: Role) -> bool:
        """Whether `step` would take the move (EXPIRE also has to be due)."""
        found = self._table.transitions[self._state].get(move)
        if found is not None and by in found[0]:
            return True
        return by in self._table.crossings.get(self._state, {}).get(move, frozenset())

    def step(self, move: Move, by: Role, now_us: int, cause: str, until_us: int | None = None) -> S:
        """Make a move and return the state after it, which is the same as before when messages merely crossed.

        `until_us` is the expiry of the record that came with the move: the new state's deadline is never later.
        Raises LocalProtocolError for a move that this side may not make now; nothing has changed then. Raises
        RemoteProtocolError for one that the other side may not make; a conversation that was not over is BROKEN then.
        """
        if move is Move.EXPIRE and (by is not self._me or not self.expired(now_us)):
            raise LocalProtocolError(
                f"{self._table.name}: {self._state.value} has not expired by this side's clock"
            )
        if not self.may(move, by) or self._moves[by] >= MAX_MOVES:
            self._refuse(move, by, now_us, cause)
        self._moves[by] += 1
        found = self._table.transitions[self._state].get(move)
        if found is not None and by in found[0]:
            self._enter(found[1], now_us, until_us)
        self.history.append(Step(self._state, move, by, now_us, cause))
        return self._state

    def _enter(self, state: S, now_us: int, until_us: int | None) -> None:
        self._state = state
        stay_us = self._table.deadlines.get(state)
        if stay_us is None:
            self._deadline_us = None
            return
        self._deadline_us = now_us + stay_us
        if until_us is not None:
            self._deadline_us = min(self._deadline_us, until_us)

    def _refuse(self, move: Move, by: Role, now_us: int, cause: str) -> None:
        name, state = self._table.name, self._state.value
        text = f"{name}: the {by.value} may not {move.value} while {state} ({cause})"
        if self._moves[by] >= MAX_MOVES:
            text = f"{name}: the {by.value} made more than {MAX_MOVES} moves, the last {move.value} while {state}"
        if by is self._me:
            raise LocalProtocolError(text)
        if not self.is_terminal:
            self._enter(self._table.broken, now_us, None)
            self.history.append(Step(self._state, Move.BREACH, by, now_us, text))
        raise RemoteProtocolError(text)


class Negotiation(Conversation[LeaseState]):
    """The negotiation and life of one lease: order, bid, lease, end."""

    def __init__(self, me: Role, now_us: int) -> None:
        super().__init__(LEASE_TABLE, me, now_us)


class TaskRun(Conversation[TaskState]):
    """One task under a lease: offer, blobs, acceptance, result, countersignature."""

    def __init__(self, me: Role, now_us: int) -> None:
        super().__init__(TASK_TABLE, me, now_us)


def draw(table: Table[S]) -> str:
    """The table as text: each state with its longest stay and ways out, then what may still cross."""
    lines = []
    for state, moves in table.transitions.items():
        stay_us = table.deadlines.get(state)
        lines.append(
            f"{state.value} (final)" if stay_us is None else f"{state.value} (at most {stay_us // SECOND} s)"
        )
        for move, (who, target) in moves.items():
            lines.append(f"    {move.value:<13} {_name_who(who):<10} -> {target.value}")
        crossing = table.crossings.get(state, {})
        if crossing:
            lines.append(
                "    no effect:    "
                + ", ".join(f"{move.value} ({_name_who(who)})" for move, who in crossing.items())
            )
    return "\n".join(lines) + "\n"


def _name_who(who: Who) -> str:
    return "either" if who == EITHER else next(iter(who)).value
