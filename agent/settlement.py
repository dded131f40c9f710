"""How statements are paid: one interface, with this agent's own ledger as the backend that is always there.

A backend moves value, or records that it moved. What it is given is fit for a chain: amounts are whole 10^-6 of a unit,
every step is named by the id of the statement it settles, and the same step again gives the same answer, so that a lost
reply is answered by asking again. A voucher is *cumulative*: it promises all that the payer ever owed the payee by
statements, so that only the newest one has to be kept, and losing one loses nothing.

`LedgerSettlement` locks up no money. Its vouchers are the payer's signed promise, and a statement counts as settled
when its payee has signed that the payment came, by whatever way the two agreed on. A chain's backend keeps the same
steps: `open` deposits, `voucher` signs what the chain would pay out, `settle` hands it in, `status` asks for its
fate, `close` takes back what is left.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from blake3 import blake3

from coppermesh.agent.ledger import LedgerConflict
from coppermesh.agent.ledger_settling import SettlingTables
from coppermesh.agent.ledger_store import LedgerStore
from coppermesh.agent.settling import PaymentKept, VoucherKept
from coppermesh.agent.settling_rules import other_side
from coppermesh.agent.statements import net_for
from coppermesh.p2p.envelope import Opened, open_record, open_verified, sign_record
from coppermesh.p2p.errors import Refused
from coppermesh.p2p.ids import Digest, MeshId, PeerId
from coppermesh.p2p.records import SignedRecord
from coppermesh.p2p.settlement_records import Payment, Statement, Voucher
from coppermesh.p2p.signing import PeerKey

State = Literal["unknown", "stated", "vouched", "settled"]
CLOCK_SKEW_US = 120_000_000


@dataclass(frozen=True, slots=True)
class Channel:
    """Where two peers settle in one unit."""

    id: Digest
    peer: PeerId
    unit: str


@dataclass(frozen=True, slots=True)
class Closed:
    """What closing a channel came to."""

    settled: int
    """Statements that were settled on it."""
    returned: int
    """Deposit that came back, money."""


class Settlement(Protocol):
    """A way to settle statements. All methods may be repeated; what they raise is Refused with a code."""

    async def open(self, peer: PeerId, unit: str, deposit: int = 0) -> Channel:
        """The channel to a peer, opened where there is none. The same arguments give the same channel."""
        ...

    async def voucher(self, channel: Channel) -> SignedRecord:
        """The payer's promise of all it owes by statements so far. Refused: `nothing-owed`."""
        ...

    async def accept(self, channel: Channel, voucher: SignedRecord) -> int:
        """The payee takes a voucher; returns the sum it holds now. Refused: `stale`, `wrong-sum` and others."""
        ...

    async def settle(self, statement: Digest, reference: str = "") -> SignedRecord:
        """The payee settles a statement; the Payment says so. Refused: `not-payee`, `unknown-statement`."""
        ...

    async def status(self, statement: Digest) -> State:
        """How far a statement's settling has come."""
        ...

    async def close(self, channel: Channel) -> Closed:
        """End a channel. Refused (`unsettled`) while a statement on it waits to be paid."""
        ...


class LedgerSettlement:
    """The embedded ledger as a backend."""

    BACKEND = "ledger"

    def __init__(self, key: PeerKey, mesh: MeshId, ledger: LedgerStore, *, now_us: Callable[[], int]) -> None:
        self._key = key
        self._mesh = mesh
        self._ledger = ledger
        self._now_us = now_us

    async def open(self, peer: PeerId, unit: str, deposit: int = 0) -> Channel:
        """Nothing is deposited: the two trust each other within what each may owe."""
        if deposit:
            raise Refused("no-deposit", "the ledger holds no money: a deposit needs a chain's backend")
        if peer == self._key.peer:
            raise Refused("not-ours", "a channel is between two peers")
        sides = b"".join(sorted((peer, self._key.peer)))
        name = blake3(self._mesh + sides + unit.encode(), derive_key_context="coppermesh 2026 channel id v1")
        return Channel(Digest(name.digest()), peer, unit)

    async def voucher(self, channel: Channel) -> SignedRecord:
        """The promise over the newest statement; made once for each, and the same bytes from then on."""
        me, peer, unit = self._key.peer, channel.peer, channel.unit

        def read(tables: SettlingTables) -> tuple[int, Digest, int, SignedRecord | None]:
            last = tables.last_statement(peer, unit)
            owed = tables.owed_by_statements(me, peer, unit, last.number)
            return last.number, last.id, owed, tables.newest_voucher(me, peer, unit)

        number, statement, owed, known = await self._ledger.look(read)
        if not owed:
            raise Refused("nothing-owed", "no statement says that anything is owed to that peer")
        if known is not None and open_verified(Voucher, known).record.number == number:
            return known
        made = Voucher(1, self._mesh, me, peer, unit, number, statement, owed, self._now_us())
        signed = sign_record(self._key, made)
        await self._keep(VoucherKept(signed))
        return signed

    async def accept(self, channel: Channel, voucher: SignedRecord) -> int:
        """Keep a promise: checked against every statement that both signed."""
        opened = open_record(Voucher, voucher, signer=channel.peer)
        record = opened.record
        if (record.mesh, record.payee, record.unit) != (self._mesh, self._key.peer, channel.unit):
            raise Refused("not-ours", "the voucher is for another payee, mesh or unit")
        self._check_clock(record.issued_us)
        await self._keep(VoucherKept(voucher))
        return record.cumulative

    async def settle(self, statement: Digest, reference: str = "") -> SignedRecord:
        """Sign that the payment came."""
        known, found = await self._ledger.look(
            lambda tables: (tables.payment_of(statement), tables.statement(statement))
        )
        if known is not None:
            return known
        if found is None:
            raise Refused("unknown-statement", "no statement with that id is signed here")
        record = open_verified(Statement, found.proposed).record
        if net_for(record, self._key.peer) <= 0:
            raise Refused("not-payee", "only the side that is owed can say that it was paid")
        payment = Payment(
            version=1,
            mesh=self._mesh,
            payee=self._key.peer,
            payer=other_side(record, self._key.peer),
            statement=statement,
            unit=record.unit,
            amount=record.net,
            backend=self.BACKEND,
            reference=reference,
            issued_us=self._now_us(),
        )
        signed = sign_record(self._key, payment)
        await self._keep(PaymentKept(signed))
        return signed

    async def accept_payment(self, peer: PeerId, payment: SignedRecord) -> Opened[Payment]:
        """The payer takes the payee's word that it was paid."""
        opened = open_record(Payment, payment, signer=peer)
        if opened.record.mesh != self._mesh:
            raise Refused("not-ours", "the payment is of another mesh")
        self._check_clock(opened.record.issued_us)
        await self._keep(PaymentKept(payment))
        return opened

    async def status(self, statement: Digest) -> State:
        """`stated` while only the statement is signed, `vouched` once its payer promised, `settled` once it is paid."""
        me = self._key.peer
        return await self._ledger.look(lambda tables: state_of(tables, statement, me))

    async def close(self, channel: Channel) -> Closed:
        """Nothing is locked up, so nothing comes back; it is refused while something is owed."""
        me = self._key.peer

        def read(tables: SettlingTables) -> list[State]:
            ids = [
                (open_verified(Statement, signed.proposed), signed)
                for signed in tables.statements_with(channel.peer, channel.unit)
            ]
            return [state_of(tables, opened.id, me) for opened, _ in ids]

        states = await self._ledger.look(read)
        waiting = sum(state != "settled" for state in states)
        if waiting:
            raise Refused("unsettled", f"{waiting} statements on this channel wait to be paid")
        return Closed(len(states), 0)

    def _check_clock(self, issued_us: int) -> None:
        ahead = issued_us - self._now_us()
        if ahead > CLOCK_SKEW_US:
            raise Refused("clock", f"signed {ahead / 1e6:.0f} s in the future: one of the clocks is wrong")

    async def _keep(self, entry: VoucherKept | PaymentKept) -> None:
        try:
            await self._ledger.commit(entry)
        except LedgerConflict as conflict:
            raise Refused(conflict.code, str(conflict)) from conflict


def state_of(tables: SettlingTables, statement: Digest, me: PeerId) -> State:
    """How far a statement's settling has come, by this ledger. One over nothing is settled as it is signed."""
    signed = tables.statement(statement)
    if signed is None:
        return "unknown"
    record = open_verified(Statement, signed.proposed).record
    net = net_for(record, me)
    if not net or tables.payment_of(statement) is not None:
        return "settled"
    peer = other_side(record, me)
    payer, payee = (peer, me) if net > 0 else (me, peer)
    voucher = tables.newest_voucher(payer, payee, record.unit)
    promised = voucher is not None and open_verified(Voucher, voucher).record.number >= record.number
    return "vouched" if promised else "stated"
