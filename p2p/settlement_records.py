"""The signed records of settling: statements, vouchers, payments, payout accounts, scores. See `records` for the rules.

None of them moves money by itself. A statement says what two peers owe each other, a voucher promises it, a payment is
its payee's word that it came, and a payout account says where to send it. Amounts are 10^-6 of `unit`.
"""

from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

from coppermesh.p2p.records import (
    Code,
    Count,
    Hash,
    Key,
    Label,
    Mesh,
    Micros,
    Money,
    Record,
    SignedRecord,
    Version,
)

SPAN_BYTES = 32
"""Of a packed lane span: lane 16, first sequence 8, end 8, big-endian."""
MAX_SPANS = 4096
MAX_SPAN_BYTES = SPAN_BYTES * MAX_SPANS


class Statement(Record, frozen=True):
    """What two peers owe each other for the receipts under `root`; the same body signed by both settles them."""

    DOMAIN: ClassVar[str] = "coppermesh/statement/1"
    MAX_BYTES: ClassVar[int] = 512
    AUTHORS: ClassVar[tuple[str, ...]] = ("proposer", "other")

    version: Version
    mesh: Mesh
    proposer: Key
    other: Key
    unit: Code
    number: Count
    """0, 1, 2 ... between the two in this unit, whoever proposes."""
    previous: Hash
    """Id of the statement before; zero for the first."""
    receipts: Count
    """How many receipts it covers, disputed ones too."""
    root: Hash
    """RFC 6962 root over the receipts' and their countersignatures' ids."""
    earned_proposer: Money
    earned_other: Money
    net: Money
    """The difference of the two."""
    payee: Annotated[str, Meta(pattern=r"^(proposer|other|none)\Z")]
    """Who gets `net`."""
    issued_us: Micros
    expires_us: Micros
    """Until when the other side may sign it."""


class Voucher(Record, frozen=True):
    """The payer's promise: all that it ever owed the payee by statements, as one sum that only grows."""

    DOMAIN: ClassVar[str] = "coppermesh/voucher/1"
    MAX_BYTES: ClassVar[int] = 512
    AUTHORS: ClassVar[tuple[str, ...]] = ("payer",)

    version: Version
    mesh: Mesh
    payer: Key
    payee: Key
    unit: Code
    number: Count
    """Number of the newest statement in the sum; a higher one replaces a lower one."""
    statement: Hash
    """Id of that statement."""
    cumulative: Money
    """Every net that the payer owed by statements up to it."""
    issued_us: Micros


class Payment(Record, frozen=True):
    """The payee's word that a statement's net was paid."""

    DOMAIN: ClassVar[str] = "coppermesh/payment/1"
    MAX_BYTES: ClassVar[int] = 512
    AUTHORS: ClassVar[tuple[str, ...]] = ("payee",)

    version: Version
    mesh: Mesh
    payee: Key
    payer: Key
    statement: Hash
    unit: Code
    amount: Money
    backend: Code
    """How it was paid: `ledger` where the two agreed between themselves, else the chain."""
    reference: Label
    """What it is called there: a transaction's id, a bank's reference; may be empty."""
    issued_us: Micros


class Payout(Record, frozen=True):
    """Where a peer wants to be paid. Signed by the peer, and by `key` too where the account has an Ed25519 key."""

    DOMAIN: ClassVar[str] = "coppermesh/payout/1"
    MAX_BYTES: ClassVar[int] = 512
    AUTHORS: ClassVar[tuple[str, ...]] = ("peer", "key")

    version: Version
    mesh: Mesh
    peer: Key
    sequence: Count
    """Higher replaces lower."""
    scheme: Code
    """What kind of account: `ed25519`, `solana`, `iban`, `evm` ...; `none` takes the one before back."""
    address: Label
    key: Key | None
    """The account's public key where it can sign Ed25519; never the peer's own."""
    issued_us: Micros
    expires_us: Micros


class Score(Record, frozen=True):
    """What a peer thinks of another, from what the two settled."""

    DOMAIN: ClassVar[str] = "coppermesh/score/1"
    MAX_BYTES: ClassVar[int] = 256
    AUTHORS: ClassVar[tuple[str, ...]] = ("rater",)

    version: Version
    mesh: Mesh
    rater: Key
    subject: Key
    score: Annotated[int, Meta(ge=0, le=1000)]
    tasks: Count
    """How many tasks of the rater's own it rests on."""
    issued_us: Micros
    expires_us: Micros


class SignedStatement(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A statement on its way or signed by both, with the lanes that it covers."""

    proposed: SignedRecord
    """Statement, signed by its proposer."""
    agreed: SignedRecord | None
    """The same body, signed by the other side."""
    lanes: Annotated[bytes, Meta(max_length=MAX_SPAN_BYTES)]
    """Spans of 32 bytes, ordered by lane: lane, first sequence (8 bytes), the one after the last (8 bytes)."""


class SignedPayout(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A payout account with its one or two signatures."""

    by_peer: SignedRecord
    by_key: SignedRecord | None
