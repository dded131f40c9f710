"""The signed records of the wire, as frozen, fixed-order structures.

Each record travels as `SignedRecord` (body bytes, signer, signature); the signature covers the record's
domain and the BLAKE3 of exactly those body bytes (see `signing`). Integers, bytes and ASCII only: no floats
in anything signed. A record never grows optional fields: a new field is a new version, and an unknown version
is refused.

Units. Times are microseconds since the Unix epoch (`*_us`) or spans in microseconds. Money is an integer
number of 10^-6 of `unit` (`usd`): a `rate` is per device-hour, an `amount` is what a task or lease costs.
"""

from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

Key = Annotated[bytes, Meta(min_length=32, max_length=32)]
Hash = Annotated[bytes, Meta(min_length=32, max_length=32)]
Nonce = Annotated[bytes, Meta(min_length=16, max_length=16)]
Mesh = Annotated[bytes, Meta(min_length=16, max_length=16)]
Signature = Annotated[bytes, Meta(min_length=64, max_length=64)]
Count = Annotated[int, Meta(ge=0, lt=1 << 62)]
Micros = Annotated[int, Meta(ge=0, lt=1 << 62)]
Money = Annotated[int, Meta(ge=0, lt=1 << 62)]
Code = Annotated[str, Meta(min_length=1, max_length=40, pattern=r"^[a-z0-9-]+\Z")]
Label = Annotated[str, Meta(max_length=128, pattern=r"^[\x20-\x7e]*\Z")]
AddressText = Annotated[str, Meta(max_length=256, pattern=r"^[\x20-\x7e]*\Z")]
Sentence = Annotated[str, Meta(max_length=400, pattern=r"^[\x20-\x7e]*\Z")]
Shard = Annotated[str, Meta(max_length=20, pattern=r"^((cpu|cuda)(/[01]{1,15})?)?\Z")]
Version = Annotated[int, Meta(ge=1, le=1)]

ZERO_HASH = bytes(32)
MAX_BODY_BYTES = 8192
"""The longest body of any record kind."""


class Record(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of every signed record.

    `DOMAIN` separates signatures, `MAX_BYTES` bounds the body before it is parsed, `AUTHORS` names the fields
    whose keys may sign it.
    """

    DOMAIN: ClassVar[str]
    MAX_BYTES: ClassVar[int]
    AUTHORS: ClassVar[tuple[str, ...]]


class SignedRecord(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A record as it travels: `body` is the canonical encoding that was signed, never re-encoded."""

    body: Annotated[bytes, Meta(max_length=MAX_BODY_BYTES)]
    signer: Key
    signature: Signature


class DeviceOffer(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One device in an announcement. What a device does not have is nil, never a made-up value."""

    device: Label
    """Stable name on that machine: `cpu`, `gpu0`."""
    kind: Annotated[str, Meta(pattern=r"^(cpu|cuda)\Z")]
    name: Label
    rate: Money
    unit: Code
    memory_bytes: Count
    """Memory a task may use: device memory on a GPU, the agent's memory limit on a CPU."""
    slots: Annotated[int, Meta(ge=1, le=64)]
    """How many leases the device serves at once."""
    features: Annotated[list[Code], Meta(max_length=32)]
    """`array-programs`, `cuda-source`, ... : what programs it takes."""
    meter: Code
    """Energy meter: `nvml`, `nvml-power`, `rapl`, `none` or `simulated`."""
    compute_capability: Label | None
    uuid: Label | None
    driver: Label | None
    total_bytes: Count | None
    """Device memory in all (GPU only)."""


class Announcement(Record, frozen=True):
    """What an agent offers now. Higher `sequence` replaces lower; dead after `expires_us`."""

    DOMAIN: ClassVar[str] = "coppermesh/announcement/1"
    MAX_BYTES: ClassVar[int] = 4096
    AUTHORS: ClassVar[tuple[str, ...]] = ("peer",)

    version: Version
    mesh: Mesh
    peer: Key
    sequence: Count
    issued_us: Micros
    expires_us: Micros
    software: Label
    addresses: Annotated[list[AddressText], Meta(max_length=8)]
    devices: Annotated[list[DeviceOffer], Meta(max_length=16)]
    isolation: Annotated[list[Code], Meta(max_length=16)]
    """Isolation layers witnessed on that machine; empty until they are."""
    busy_slots: Count
    paused: bool
    shard: Shard
    """The announcement topic below the mesh's own where all its announcements go (`shards`); empty: the mesh's own."""


class Order(Record, frozen=True):
    """What a requester asks for: a lease on one device that fits."""

    DOMAIN: ClassVar[str] = "coppermesh/order/1"
    MAX_BYTES: ClassVar[int] = 2048
    AUTHORS: ClassVar[tuple[str, ...]] = ("requester",)

    version: Version
    mesh: Mesh
    requester: Key
    nonce: Nonce
    job: Nonce
    issued_us: Micros
    expires_us: Micros
    device_kind: Annotated[str, Meta(pattern=r"^(any|cpu|cuda)\Z")]
    model: Label
    """Part of the device's name, in any case: `h100`. Empty: any model."""
    features: Annotated[list[Code], Meta(max_length=32)]
    isolation: Annotated[list[Code], Meta(max_length=16)]
    memory_bytes: Count
    min_speed: Count
    """Least speed of the device, in millions of operations per second; 0: any. PROTOCOL.md says who measures what."""
    tasks: Count
    copies: Annotated[int, Meta(ge=1, le=8)]
    """At how many providers each task runs, for comparison: another one is asked for the others."""
    wall_limit_us: Micros
    """Most wall time one task may take."""
    max_rate: Money
    unit: Code
    budget: Money
    lease_us: Micros
    """How long the lease should last from its signing."""
    deadline_us: Micros
    """When the requester has no use for results any more."""


class Bid(Record, frozen=True):
    """A provider's offer for one order, held reserved until `expires_us`."""

    DOMAIN: ClassVar[str] = "coppermesh/bid/1"
    MAX_BYTES: ClassVar[int] = 1024
    AUTHORS: ClassVar[tuple[str, ...]] = ("provider",)

    version: Version
    mesh: Mesh
    provider: Key
    order: Hash
    nonce: Nonce
    issued_us: Micros
    expires_us: Micros
    device: Label
    device_kind: Annotated[str, Meta(pattern=r"^(cpu|cuda)\Z")]
    device_name: Label
    memory_bytes: Count
    rate: Money
    unit: Code
    depth: Annotated[int, Meta(ge=1, le=64)]
    """How many tasks may be outstanding under the lease at once."""
    speed: Count
    """What the provider measured its device at, in millions of operations per second; 0: not measured."""


class Decline(Record, frozen=True):
    """A provider's reason for not offering. Codes are listed in PROTOCOL.md."""

    DOMAIN: ClassVar[str] = "coppermesh/decline/1"
    MAX_BYTES: ClassVar[int] = 1024
    AUTHORS: ClassVar[tuple[str, ...]] = ("provider",)

    version: Version
    mesh: Mesh
    provider: Key
    order: Hash
    issued_us: Micros
    code: Code
    sentence: Sentence


class Lease(Record, frozen=True):
    """An order and a bid that both sides sign: the same body twice, told apart by the signer."""

    DOMAIN: ClassVar[str] = "coppermesh/lease/1"
    MAX_BYTES: ClassVar[int] = 1024
    AUTHORS: ClassVar[tuple[str, ...]] = ("requester", "provider")

    version: Version
    mesh: Mesh
    requester: Key
    provider: Key
    order: Hash
    """BLAKE3 of the exact signed body bytes of the order."""
    bid: Hash
    """BLAKE3 of the exact signed body bytes of the bid."""
    lane: Nonce
    nonce: Nonce
    device: Label
    device_kind: Annotated[str, Meta(pattern=r"^(cpu|cuda)\Z")]
    rate: Money
    unit: Code
    budget: Money
    memory_bytes: Count
    wall_limit_us: Micros
    depth: Annotated[int, Meta(ge=1, le=64)]
    fresh: bool
    """True: every task gets a worker process of its own."""
    issued_us: Micros
    expires_us: Micros


class Task(Record, frozen=True):
    """One run of one program on given blobs under a lease, signed by the requester."""

    DOMAIN: ClassVar[str] = "coppermesh/task/1"
    MAX_BYTES: ClassVar[int] = 8192
    AUTHORS: ClassVar[tuple[str, ...]] = ("requester",)

    version: Version
    mesh: Mesh
    lease: Hash
    number: Count
    """0, 1, 2 ... under the lease; each is spent once."""
    requester: Key
    job: Nonce
    index: Count
    """Which task of the job this is; a retry elsewhere keeps it."""
    program: Hash
    inputs: Annotated[list[Hash], Meta(max_length=128)]
    max_amount: Money
    issued_us: Micros
    expires_us: Micros


class Receipt(Record, frozen=True):
    """The provider's signed record of one task. Complete when the requester has countersigned it."""

    DOMAIN: ClassVar[str] = "coppermesh/receipt/1"
    MAX_BYTES: ClassVar[int] = 2048
    AUTHORS: ClassVar[tuple[str, ...]] = ("provider",)

    version: Version
    mesh: Mesh
    provider: Key
    requester: Key
    lease: Hash
    lane: Nonce
    sequence: Count
    previous: Hash
    """Id of the receipt before on this lane; zero for the first."""
    task: Count
    task_id: Hash
    """Id of the signed task record."""
    program: Hash
    inputs: Hash
    """`roots_digest` over the input blob ids, in order."""
    outputs: Hash
    """`roots_digest` over the output blob ids, in order; zero where the task gave none."""
    trace: Hash
    """Root over per-node digests; zero: not recorded."""
    status: Annotated[str, Meta(pattern=r"^(ok|job-failed|provider-failed)\Z")]
    code: Code
    """`ok`, or why it failed."""
    determinism: Label
    device: Label
    device_kind: Annotated[str, Meta(pattern=r"^(cpu|cuda)\Z")]
    device_name: Label
    device_uuid: Label | None
    attestation: Hash
    started_us: Micros
    ended_us: Micros
    billed_us: Micros
    """What the amount is computed from, on every kind of device."""
    device_us: Micros | None
    """Device time by device events; nil where the device has none."""
    energy_mj: Count | None
    meter: Code
    unit: Code
    rate: Money
    amount: Money
    cumulative: Money
    countersign_by_us: Micros


class Trace(Record, frozen=True):
    """The provider's signed word on what every node of a task gave. Fixed once signed, like any other evidence.

    The digests themselves are the blob `chain`; PROTOCOL.md says how they lead from `start` to `root`.
    """

    DOMAIN: ClassVar[str] = "coppermesh/trace/1"
    MAX_BYTES: ClassVar[int] = 1024
    AUTHORS: ClassVar[tuple[str, ...]] = ("provider",)

    version: Version
    mesh: Mesh
    provider: Key
    requester: Key
    receipt: Hash
    """Id of the receipt that it is about."""
    task_id: Hash
    program: Hash
    determinism: Label
    """Class of the run that recorded it: within one class any difference is a fault."""
    nodes: Annotated[int, Meta(ge=0, le=100_000)]
    root: Hash
    """The last link of the chain that the digests lead to, from the receipt's program and inputs."""
    chain: Hash
    """Root of the blob that holds the nodes' digests, 32 bytes each."""
    outputs: Hash
    """`roots_digest` of what that run gave: for an honest provider the receipt's."""
    first_run: bool
    """True: recorded by the run that the receipt bills. False: by a later one, when challenged."""
    issued_us: Micros


class Countersignature(Record, frozen=True):
    """The requester's answer to a receipt: accepted, or disputed with a code."""

    DOMAIN: ClassVar[str] = "coppermesh/countersignature/1"
    MAX_BYTES: ClassVar[int] = 512
    AUTHORS: ClassVar[tuple[str, ...]] = ("requester",)

    version: Version
    mesh: Mesh
    requester: Key
    receipt: Hash
    lane: Nonce
    sequence: Count
    verdict: Annotated[str, Meta(pattern=r"^(accepted|disputed)\Z")]
    code: Code
    """`ok` when accepted; else `late`, `superseded`, `outputs-mismatch`, `overbilled`, ..."""
    accepted_cumulative: Money
    """What the requester owes on the lane up to and including this receipt."""
    issued_us: Micros
