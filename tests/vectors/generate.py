"""Writes the vector files of this folder's `data`. Run after a change of the wire: python tests/vectors/generate.py

A vector is a text file: header lines `name: value`, an empty line, then the input in hexadecimal. The headers say
which decoder it is for (`kind`), what must come out (`expect`), why (`comment`), and for a refusal what our own error
text contains (`says`), so that a file cannot be refused for another reason than the one it was made for. Everything
is derived from fixed seeds: the same files come out on every run, which `test_vectors.py` checks.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgpack
import msgspec
from blake3 import blake3
from nacl.signing import SigningKey

from coppermesh.exec.trace_digests import TraceDigests
from coppermesh.p2p.blobs import digest_of
from coppermesh.p2p.certificates import private_mesh_id
from coppermesh.p2p.encoding import encode
from coppermesh.p2p.envelope import record_id, sign_record, to_bytes
from coppermesh.p2p.framing import encode_frame
from coppermesh.p2p.ids import MeshId, PeerId, format_peer, mesh_id
from coppermesh.p2p.invitation import Invitation, invitation_text
from coppermesh.p2p.lease_records import Extension
from coppermesh.p2p.libp2p_pnet import XSalsa20
from coppermesh.p2p.mdns_records import make_text
from coppermesh.p2p.membership_records import Certificate, Joining, Quota, Revocation, Rotation, Usage
from coppermesh.p2p.merkle import leaf_hash, merkle_root
from coppermesh.p2p.messages import (
    BlobInfo,
    CancelRequest,
    ChallengeReply,
    ChallengeRequest,
    DialBackReply,
    DialBackRequest,
    ExtendReply,
    ExtendRequest,
    Hello,
    InlineBlob,
    PauseRequest,
    ResultAnswer,
    ResultsReply,
    TaskReply,
    TasksReply,
)
from coppermesh.p2p.proof_files import encode_evidence, encode_place
from coppermesh.p2p.receipt_file import encode_receipt_file
from coppermesh.p2p.record_ciphers import AesCipher, derive_aes_key
from coppermesh.p2p.records import (
    ZERO_HASH,
    Announcement,
    Bid,
    Countersignature,
    Decline,
    DeviceOffer,
    Lease,
    Order,
    Receipt,
    Record,
    SignedRecord,
    Task,
    Trace,
)
from coppermesh.p2p.settlement_records import (
    Payment,
    Payout,
    Score,
    SignedStatement,
    Statement,
    Voucher,
)
from coppermesh.p2p.signing import PeerKey

DATA = Path(__file__).parent / "data"

MESH = mesh_id("vectors")
PROVIDER = PeerKey(bytes([1]) * 32)
REQUESTER = PeerKey(bytes([2]) * 32)
STRANGER = PeerKey(bytes([3]) * 32)
NOW_US = 1_800_000_000_000_000
SECOND_US = 1_000_000

GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493
"""L of Ed25519 (RFC 8032): adding it to S makes a second signature that careless verifiers accept."""

RECEIPT_FIELDS = [info.name for info in msgspec.structs.fields(Receipt)]


@dataclass(frozen=True)
class Vector:
    """One file: `data/<kind>-<name>.txt`."""

    kind: str
    name: str
    expect: str
    comment: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    def text(self) -> str:
        headers = {"kind": self.kind, "expect": self.expect, "comment": self.comment, **self.headers}
        digits = self.body.hex()
        lines = [f"{name}: {value}" for name, value in headers.items()]
        lines += ["", *(digits[start : start + 96] for start in range(0, len(digits), 96))]
        return "\n".join(lines) + "\n"


# Samples


def filled(number: int, size: int = 32) -> bytes:
    return bytes([number]) * size


ANNOUNCEMENT = Announcement(
    version=1,
    mesh=MESH,
    peer=PROVIDER.peer,
    sequence=7,
    issued_us=NOW_US,
    expires_us=NOW_US + 300 * SECOND_US,
    software="coppermesh 0.1.0",
    addresses=["/ip4/127.0.0.1/tcp/4001/p2p/" + format_peer(PROVIDER.peer)],
    devices=[
        DeviceOffer(
            device="cpu",
            kind="cpu",
            name="Example CPU",
            rate=120_000,
            unit="usd",
            memory_bytes=8 << 30,
            slots=2,
            features=["array-programs", "cuda-source"],
            meter="none",
            compute_capability=None,
            uuid=None,
            driver=None,
            total_bytes=None,
        ),
    ],
    isolation=[],
    busy_slots=1,
    paused=False,
    shard="",
)
ORDER = Order(
    version=1,
    mesh=MESH,
    requester=REQUESTER.peer,
    nonce=filled(0x10, 16),
    job=filled(0x11, 16),
    issued_us=NOW_US,
    expires_us=NOW_US + 30 * SECOND_US,
    device_kind="any",
    model="example",
    features=["array-programs"],
    isolation=[],
    memory_bytes=1 << 30,
    min_speed=10_000,
    tasks=16,
    copies=1,
    wall_limit_us=60 * SECOND_US,
    max_rate=500_000,
    unit="usd",
    budget=10_000,
    lease_us=600 * SECOND_US,
    deadline_us=NOW_US + 900 * SECOND_US,
)
BID = Bid(
    version=1,
    mesh=MESH,
    provider=PROVIDER.peer,
    order=record_id(encode(ORDER)),
    nonce=filled(0x12, 16),
    issued_us=NOW_US + 1000,
    expires_us=NOW_US + 10 * SECOND_US,
    device="cpu",
    device_kind="cpu",
    device_name="Example CPU",
    memory_bytes=8 << 30,
    rate=120_000,
    unit="usd",
    depth=4,
    speed=20_000,
)
DECLINE = Decline(
    version=1,
    mesh=MESH,
    provider=PROVIDER.peer,
    order=record_id(encode(ORDER)),
    issued_us=NOW_US + 1000,
    code="busy",
    sentence="every slot is leased; try again in a minute",
)
LEASE = Lease(
    version=1,
    mesh=MESH,
    requester=REQUESTER.peer,
    provider=PROVIDER.peer,
    order=record_id(encode(ORDER)),
    bid=record_id(encode(BID)),
    lane=filled(0x13, 16),
    nonce=filled(0x14, 16),
    device="cpu",
    device_kind="cpu",
    rate=120_000,
    unit="usd",
    budget=10_000,
    memory_bytes=1 << 30,
    wall_limit_us=60 * SECOND_US,
    depth=4,
    fresh=False,
    issued_us=NOW_US + 2000,
    expires_us=NOW_US + 600 * SECOND_US,
)
EXTENSION = Extension(
    version=1,
    mesh=MESH,
    requester=REQUESTER.peer,
    provider=PROVIDER.peer,
    lease=record_id(encode(LEASE)),
    number=1,
    issued_us=NOW_US + 580 * SECOND_US,
    expires_us=NOW_US + 900 * SECOND_US,
)
TASK = Task(
    version=1,
    mesh=MESH,
    lease=record_id(encode(LEASE)),
    number=0,
    requester=REQUESTER.peer,
    job=filled(0x11, 16),
    index=3,
    program=filled(0x20),
    inputs=[filled(0x21), filled(0x22)],
    max_amount=2000,
    issued_us=NOW_US + 3000,
    expires_us=NOW_US + 90 * SECOND_US,
)
RECEIPT = Receipt(
    version=1,
    mesh=MESH,
    provider=PROVIDER.peer,
    requester=REQUESTER.peer,
    lease=record_id(encode(LEASE)),
    lane=filled(0x13, 16),
    sequence=0,
    previous=ZERO_HASH,
    task=0,
    task_id=record_id(encode(TASK)),
    program=filled(0x20),
    inputs=filled(0x23),
    outputs=filled(0x24),
    trace=ZERO_HASH,
    status="ok",
    code="ok",
    determinism="cpu",
    device="cpu",
    device_kind="cpu",
    device_name="Example CPU",
    device_uuid=None,
    attestation=ZERO_HASH,
    started_us=NOW_US + 4000,
    ended_us=NOW_US + 45_000,
    billed_us=41_000,
    device_us=None,
    energy_mj=None,
    meter="none",
    unit="usd",
    rate=120_000,
    amount=2,
    cumulative=2,
    countersign_by_us=NOW_US + 120 * SECOND_US,
)
COUNTERSIGNATURE = Countersignature(
    version=1,
    mesh=MESH,
    requester=REQUESTER.peer,
    receipt=record_id(encode(RECEIPT)),
    lane=filled(0x13, 16),
    sequence=0,
    verdict="accepted",
    code="ok",
    accepted_cumulative=2,
    issued_us=NOW_US + 50_000,
)
CHAIN = TraceDigests((filled(0x51), filled(0x52), filled(0x53)))
TRACE = Trace(
    version=1,
    mesh=MESH,
    provider=PROVIDER.peer,
    requester=REQUESTER.peer,
    receipt=record_id(encode(RECEIPT)),
    task_id=record_id(encode(TASK)),
    program=filled(0x20),
    determinism="cpu",
    nodes=3,
    root=CHAIN.root(RECEIPT.program, RECEIPT.inputs),
    chain=digest_of(CHAIN.to_bytes()),
    outputs=filled(0x24),
    first_run=False,
    issued_us=NOW_US + 60 * SECOND_US,
)


# Building blocks


def packed(value: Any) -> bytes:
    return cast("bytes", msgpack.packb(value, use_bin_type=True))


def plain(value: msgspec.Struct) -> list[Any]:
    result: list[Any] = msgspec.to_builtins(value, builtin_types=(bytes,))
    return result


def receipt_with(**raw: bytes) -> bytes:
    """The receipt's body with the bytes of some fields replaced, as a hostile encoder would write them."""
    items = [packed(item) for item in plain(RECEIPT)]
    for name, value in raw.items():
        items[RECEIPT_FIELDS.index(name)] = value
    return array_header(len(items)) + b"".join(items)


def array_header(count: int) -> bytes:
    return bytes([0x90 | count]) if count < 16 else b"\xdc" + count.to_bytes(2, "big")


def as_json(value: msgspec.Struct) -> str:
    """Field values for a reader in another language: bytes as `hex:` text, in field order."""

    def readable(item: Any) -> Any:
        if isinstance(item, bytes):
            return "hex:" + item.hex()
        return [readable(part) for part in item] if isinstance(item, list) else item

    return json.dumps(readable(plain(value)))


def small_order_signature() -> bytes:
    """R is the identity, S is zero: under an unchecked small-order key this verifies for every message."""
    return b"\x01" + bytes(63)


def structure(kind: str, name: str, says: str, comment: str, body: bytes) -> Vector:
    return Vector("structure", name, "malformed", comment, body, {"type": kind, "says": says})


# The vectors, by kind


def good_records() -> Iterator[Vector]:
    samples: list[tuple[str, PeerKey, Record]] = [
        ("announcement", PROVIDER, ANNOUNCEMENT),
        ("order", REQUESTER, ORDER),
        ("bid", PROVIDER, BID),
        ("decline", PROVIDER, DECLINE),
        ("lease-by-requester", REQUESTER, LEASE),
        ("lease-by-provider", PROVIDER, LEASE),
        ("extension-by-requester", REQUESTER, EXTENSION),
        ("extension-by-provider", PROVIDER, EXTENSION),
        ("task", REQUESTER, TASK),
        ("receipt", PROVIDER, RECEIPT),
        ("trace", PROVIDER, TRACE),
        ("countersignature", REQUESTER, COUNTERSIGNATURE),
    ]
    for name, key, record in samples:
        kind = type(record).__name__
        signed = sign_record(key, record)
        headers = {
            "type": kind,
            "signer": key.peer.hex(),
            "id": record_id(signed.body).hex(),
            "value": as_json(record),
        }
        yield Vector("signed", f"good-{name}", "ok", f"a valid {kind}", to_bytes(signed), headers)


def good_messages() -> Iterator[Vector]:
    samples: list[tuple[str, msgspec.Struct]] = [
        ("hello", Hello(mesh=MESH, peer=PROVIDER.peer, software="coppermesh 0.1.0", time_us=NOW_US)),
        ("task-reply", TaskReply(state="need", need=[filled(0x21)], code="need", sentence="")),
        (
            "tasks-reply",
            TasksReply([TaskReply("accepted", [], "ok", ""), TaskReply("refused", [], "spent", "number 3")]),
        ),
        (
            "results-reply",
            ResultsReply(
                [
                    ResultAnswer(sign_record(REQUESTER, COUNTERSIGNATURE), "ok", ""),
                    ResultAnswer(None, "gap", "receipt 9 came, number 7 of its lane is still missing"),
                ]
            ),
        ),
        (
            "cancel-lease",
            CancelRequest(lease=filled(0x30), task=None, code="idle", sentence="", decline=None),
        ),
        ("extend", ExtendRequest(sign_record(REQUESTER, EXTENSION))),
        ("extend-reply", ExtendReply(sign_record(PROVIDER, EXTENSION), None)),
        (
            "pause",
            PauseRequest(lease=filled(0x30), paused=True, code="unpaid", sentence="1 receipt waits"),
        ),
        (
            "challenge",
            ChallengeRequest(receipt=filled(0x30), blobs=[BlobInfo(root=filled(0x21), size=8)], inline=[]),
        ),
        (
            "challenge-busy",
            ChallengeReply(
                state="busy", need=[], retry_us=SECOND_US, trace=None, chain=None, sentence="work goes first"
            ),
        ),
        ("inline-blob", InlineBlob(root=filled(0x21), data=b"")),
        ("blob-info", BlobInfo(root=filled(0x21), size=(1 << 62) - 1)),
    ]
    for name, message in samples:
        kind = type(message).__name__
        headers = {"type": kind, "value": as_json(message)}
        yield Vector("structure", f"good-{name}", "ok", f"a valid {kind}", encode(message), headers)


def bad_shapes() -> Iterator[Vector]:
    body = encode(RECEIPT)
    count = len(RECEIPT_FIELDS)
    items = body[len(array_header(count)) :]
    pairs = zip(RECEIPT_FIELDS, plain(RECEIPT), strict=True)
    as_map = b"\xde" + count.to_bytes(2, "big") + b"".join(packed(n) + packed(v) for n, v in pairs)
    missing = b"".join(packed(item) for item in plain(RECEIPT)[:-1])
    for name, says, comment, data in [
        ("empty", "incomplete input", "no bytes at all", b""),
        ("truncated", "incomplete input", "the last byte is missing", body[:-1]),
        ("trailing-byte", "extra data", "one nil after the record", body + b"\xc0"),
        ("trailing-newline", "extra data", "what a text editor adds", body + b"\n"),
        ("extra-field", "at most length", "one field too many", array_header(count + 1) + items + b"\xc0"),
        ("missing-field", "at least length", "the last field left out", array_header(count - 1) + missing),
        ("map", "max_map_len", "field names and values in a map", as_map),
        ("empty-map", "got `object`", "a map may be empty and still is no array", b"\x80"),
        ("array32-header", "canonical", "the array's length in 4 bytes", b"\xdd\0\0" + body[1:3] + items),
        ("nil", "got `null`", "nil instead of a record", b"\xc0"),
        ("integer", "got `int`", "an integer instead of a record", b"\x05"),
        ("in-an-array", "at least length", "a record in an array of one", b"\x91" + body),
        ("reserved-byte", "FormatError", "0xc1 is never used in MessagePack", b"\xc1"),
        ("text-of-hex", "extra data", "the record as text", body.hex().encode()),
    ]:
        yield structure("Receipt", f"receipt-{name}", says, comment, data)


def bombs() -> Iterator[Vector]:
    for name, says, comment, data in [
        ("nested-arrays", "StackError", "arrays in arrays, as deep as the size allows", b"\x91" * 2048),
        (
            "nested-400",
            "at least length",
            "nested less deep than a parser's own limit",
            b"\x91" * 400 + b"\xc0",
        ),
        ("array32-lie", "max_array_len", "claims 4 billion elements", b"\xdd\xff\xff\xff\xff"),
        ("map32-lie", "max_map_len", "claims 4 billion pairs", b"\xdf\xff\xff\xff\xff"),
        ("text32-lie", "incomplete", "claims 4 GiB of text", b"\xdb\xff\xff\xff\xff"),
        ("bytes32-lie", "incomplete", "claims 4 GiB of bytes", b"\xc6\xff\xff\xff\xff"),
        ("wide-arrays", "incomplete", "1024 elements claimed, again and again", b"\xdc\x04\x00" * 600),
    ]:
        yield structure("Receipt", f"bomb-{name}", says, comment, data)


def bad_integers() -> Iterator[Vector]:
    amount = "$[30]"
    top = (1 << 64) - 1
    for name, says, comment, raw in [
        ("uint8-form-of-2", "canonical", "2 in two bytes", b"\xcc\x02"),
        ("uint64-form-of-2", "canonical", "2 in nine bytes", b"\xcf" + bytes(7) + b"\x02"),
        ("int8-form-of-2", "canonical", "2 as a signed byte", b"\xd0\x02"),
        ("int64-form-of-2", "canonical", "2 as a signed 64-bit integer", b"\xd3" + bytes(7) + b"\x02"),
        ("float64", f"got `float` - at `{amount}`", "2.0", b"\xcb\x40" + bytes(7)),
        ("float32", f"got `float` - at `{amount}`", "2.0 in four bytes", b"\xca\x40\0\0\0"),
        ("nan", f"got `float` - at `{amount}`", "not a number", b"\xcb\x7f\xf8" + bytes(6)),
        ("bool", f"got `bool` - at `{amount}`", "true is not 1", b"\xc3"),
        ("text", f"got `str` - at `{amount}`", "the digit as text", packed("2")),
        ("nil", f"got `null` - at `{amount}`", "this field may not be nil", b"\xc0"),
        ("negative", f"`int` >= 0 - at `{amount}`", "a debt the other way round", b"\xff"),
        ("most-negative", f"`int` >= 0 - at `{amount}`", "-2^63", b"\xd3\x80" + bytes(7)),
        ("two-to-62", f"- at `{amount}`", "the first integer out of range", packed(1 << 62)),
        ("two-to-64-less-one", f"- at `{amount}`", "the largest integer MessagePack has", packed(top)),
        ("two-to-64", "max_ext_len", "2^64 as an extension", b"\xc7\x09\x01\x01" + bytes(8)),
        ("empty-extension", "extension type", "an extension of no bytes", b"\xc7\x00\x05"),
        ("timestamp", "max_ext_len", "a MessagePack timestamp", b"\xd6\xff\0\0\0\x02"),
    ]:
        yield structure("Receipt", f"amount-{name}", says, comment, receipt_with(amount=raw))


def bad_fields() -> Iterator[Vector]:
    key = PROVIDER.peer
    cases: list[tuple[str, str, str, dict[str, bytes]]] = [
        ("version-0", ">= 1", "no version is zero", {"version": b"\x00"}),
        ("version-2", "<= 1", "a version from the future", {"version": b"\x02"}),
        ("code-newline", "matching regex", "a newline at the end of a code", {"code": packed("ok\n")}),
        ("code-empty", "length >= 1", "an empty code", {"code": packed("")}),
        ("code-capitals", "matching regex", "codes are lower case", {"code": packed("OK")}),
        ("code-too-long", "length <= 40", "41 characters", {"code": packed("a" * 41)}),
        ("label-too-long", "length <= 128", "129 characters", {"device": packed("d" * 129)}),
        ("label-not-ascii", "matching regex", "an accented letter", {"device": packed("gp\u00fc0")}),
        ("label-escape", "matching regex", "a terminal escape", {"device": packed("\x1b[2J")}),
        ("label-nul", "matching regex", "a NUL character", {"device": packed("cpu\0")}),
        ("label-bad-utf8", "utf-8", "a byte that is not UTF-8", {"device": b"\xa1\xff"}),
        ("label-surrogate", "utf-8", "half of a surrogate pair", {"device": b"\xa3\xed\xa0\x80"}),
        ("label-overlong-utf8", "utf-8", "a slash in two bytes", {"device": b"\xa2\xc0\xaf"}),
        ("label-as-bytes", "got `bytes`", "bytes where text belongs", {"device": packed(b"cpu")}),
        ("label-str8", "canonical", "short text, long header", {"device": b"\xd9\x03cpu"}),
        ("status-unknown", "matching regex", "a status that does not exist", {"status": packed("fine")}),
        ("status-prefix", "matching regex", "a status and more", {"status": packed("ok ok")}),
        ("kind-any", "matching regex", "an order's wish is no device", {"device_kind": packed("any")}),
        ("key-short", "length >= 32", "31 bytes", {"provider": packed(key[:31])}),
        ("key-long", "length <= 32", "33 bytes", {"provider": packed(key + b"\0")}),
        ("key-as-text", "got `str`", "the key in base64", {"provider": packed("A" * 43 + "=")}),
        ("key-bin16", "canonical", "short bytes, long header", {"provider": b"\xc5\x00\x20" + key}),
        ("key-nil", "got `null`", "no provider", {"provider": b"\xc0"}),
    ]
    for name, says, comment, raw in cases:
        yield structure("Receipt", f"field-{name}", says, comment, receipt_with(**raw))


def bad_challenges() -> Iterator[Vector]:
    """Bodies that break the limits of a Trace, a challenge or its answer."""
    trace = plain(TRACE)
    trace[8] = 100_001
    request = plain(ChallengeRequest(receipt=filled(0x30), blobs=[], inline=[]))
    request[1] = [[filled(0x21), 1]] * 130
    reply = plain(ChallengeReply("busy", [], 0, None, None, ""))
    for kind, name, says, comment, data in [
        ("Trace", "trace-over-node-limit", "<= 100000", "a node more than a program has", trace),
        ("ChallengeRequest", "challenge-many-blobs", "length <= 129", "130 blobs", request),
        (
            "ChallengeReply",
            "reply-state",
            "matching regex",
            "a state that there is not",
            ["paid", *reply[1:]],
        ),
        (
            "ChallengeReply",
            "reply-many-needs",
            "length <= 129",
            "130 needs",
            ["need", [filled(1)] * 130, *reply[2:]],
        ),
        (
            "ChallengeReply",
            "reply-long-chain",
            "length <= 196608",
            "a chain that should have been a blob",
            [*reply[:4], bytes(196_640), ""],
        ),
    ]:
        yield structure(kind, name, says, comment, packed(data))


def bad_lists() -> Iterator[Vector]:
    task = plain(TASK)
    many = [*task[:8], [filled(0x21)] * 129, *task[9:]]
    yield structure("Task", "task-129-inputs", "length <= 128", "one input too many", packed(many))
    nested = [*task[:8], [[filled(0x21)]], *task[9:]]
    yield structure(
        "Task", "task-nested-input", "got `array`", "an array instead of an input", packed(nested)
    )
    long = packed([*task[:8], [filled(0x21)] * 128, *task[9:]]) + bytes(8192)
    yield structure("Task", "task-oversized", "at most 8192", "longer than any task, whatever is in it", long)
    lease = plain(LEASE)
    number = packed([*lease[:16], 0, *lease[17:]])
    yield structure("Lease", "lease-fresh-as-0", "got `int`", "0 is not false", number)
    later = plain(EXTENSION)
    none = packed([*later[:5], 0, *later[6:]])
    yield structure("Extension", "extension-numbered-0", ">= 1", "they are numbered from 1", none)
    more = packed([*later, 5])
    yield structure(
        "Extension", "extension-extra-field", "at most length", "a field of a later version", more
    )
    offer = [*plain(ANNOUNCEMENT)[:8], [["cpu"]], *plain(ANNOUNCEMENT)[9:]]
    yield structure("Announcement", "announcement-short-device", "at least length", "", packed(offer))
    hello = [*plain(Hello(mesh=MESH, peer=PROVIDER.peer, software="x", time_us=1)), "more"]
    yield structure(
        "Hello", "hello-extra-field", "at most length", "a field of a later version", packed(hello)
    )
    reply = ["maybe", [], "busy", ""]
    yield structure(
        "TaskReply", "task-reply-state", "matching regex", "a state that does not exist", packed(reply)
    )


def signatures() -> Iterator[Vector]:
    domain = Receipt.DOMAIN
    body = encode(RECEIPT)
    good = PROVIDER.sign(domain, body)
    prefix = bytes([len(domain)]) + domain.encode() + b"\x01\x1e\x20"
    raw_key = SigningKey(bytes([1]) * 32)
    scalar = int.from_bytes(good[32:], "little")
    malleated = good[:32] + (scalar + GROUP_ORDER).to_bytes(32, "little")
    flipped = bytes([body[0], body[1] ^ 1]) + body[2:]
    key = PROVIDER.peer

    def case(
        name: str, comment: str, *, peer: bytes = key, signature: bytes = good, data: bytes = body
    ) -> Vector:
        headers = {"domain": domain, "peer": peer.hex(), "signature": signature.hex()}
        return Vector("signature", name, "forged", comment, data, headers)

    good_headers = {"domain": domain, "peer": key.hex(), "signature": good.hex()}
    yield Vector("signature", "good", "ok", "a valid signature of a receipt", body, good_headers)
    wrong = PROVIDER.sign(Bid.DOMAIN, body)
    yield case("wrong-domain", "made for a bid", signature=wrong)
    yield case("flipped-body", "one bit of the body differs", data=flipped)
    yield case("flipped-r", "one bit of R differs", signature=bytes([good[0] ^ 1]) + good[1:])
    yield case("flipped-s", "one bit of S differs", signature=good[:63] + bytes([good[63] ^ 1]))
    yield case("truncated", "63 bytes", signature=good[:63])
    yield case("trailing-byte", "65 bytes", signature=good + b"\0")
    yield case("empty", "no signature", signature=b"")
    yield case("zero", "all zero", signature=bytes(64))
    yield case("malleated-s", "S plus the order of the group", signature=malleated)
    yield case("other-key", "somebody else's signature", signature=STRANGER.sign(domain, body))
    yield case("raw-body", "over the body instead of its digest", signature=raw_key.sign(body).signature)
    digest = blake3(body).digest()
    yield case("no-domain", "over the digest without the layout", signature=raw_key.sign(digest).signature)
    unhashed = prefix[:-1] + bytes([0x7F]) + body[:0x7F]
    yield case("unhashed-payload", "the layout over bytes", signature=raw_key.sign(unhashed).signature)
    other_type = prefix[:-2] + b"\x12\x20" + digest
    yield case("payload-type", "names another hash function", signature=raw_key.sign(other_type).signature)
    yield case("small-order-r", "R of small order, S zero", signature=small_order_signature())
    yield case("key-31-bytes", "a short key", peer=key[:31])
    yield case("key-33-bytes", "a long key", peer=key + b"\0")
    not_a_point = b"\x02" + bytes(31)
    yield case("key-off-curve", "no point of the curve", peer=not_a_point, signature=small_order_signature())
    small = {
        "identity": "01" + "00" * 31,
        "identity-sign-bit": "01" + "00" * 30 + "80",
        "order-2": "ec" + "ff" * 30 + "7f",
        "order-4": "00" * 32,
        "order-8": "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "not-reduced": "ee" + "ff" * 30 + "7f",
    }
    for name, text in small.items():
        comment = "a key of small order: one signature fits every message"
        yield case(f"small-{name}", comment, peer=bytes.fromhex(text), signature=small_order_signature())


def bad_envelopes() -> Iterator[Vector]:
    signed = sign_record(PROVIDER, RECEIPT)
    by_stranger = SignedRecord(signed.body, STRANGER.peer, STRANGER.sign(Receipt.DOMAIN, signed.body))
    relabelled = SignedRecord(signed.body, STRANGER.peer, signed.signature)
    lease = encode(LEASE)
    lease_by_stranger = SignedRecord(lease, STRANGER.peer, STRANGER.sign(Lease.DOMAIN, lease))
    small_key = b"\x01" + bytes(31)
    body_by_nobody = receipt_with(provider=packed(small_key))
    nobody = SignedRecord(body_by_nobody, small_key, small_order_signature())
    garbage = b"\x93\x01\x02\x03"
    signed_garbage = SignedRecord(garbage, PROVIDER.peer, PROVIDER.sign(Receipt.DOMAIN, garbage))
    large = bytes(Receipt.MAX_BYTES + 1)
    signed_large = SignedRecord(large, PROVIDER.peer, PROVIDER.sign(Receipt.DOMAIN, large))
    good = to_bytes(signed)
    text_body = packed([signed.body.hex(), signed.signer, signed.signature])
    huge = packed([bytes(8193), signed.signer, signed.signature])
    order = to_bytes(sign_record(REQUESTER, ORDER))
    for name, expect, kind, comment, data in [
        ("not-the-author", "misattributed", "Receipt", "validly signed by a stranger", to_bytes(by_stranger)),
        ("relabelled", "forged", "Receipt", "another signer put on it", to_bytes(relabelled)),
        ("order-as-bid", "forged", "Bid", "an order passed off as a bid", order),
        ("lease-by-stranger", "misattributed", "Lease", "neither side signed", to_bytes(lease_by_stranger)),
        ("small-order-author", "forged", "Receipt", "author and signer of small order", to_bytes(nobody)),
        ("garbage-body", "malformed", "Receipt", "a valid signature of nonsense", to_bytes(signed_garbage)),
        (
            "oversized-body",
            "oversized",
            "Receipt",
            "a signed body over its kind's limit",
            to_bytes(signed_large),
        ),
        ("huge-body", "malformed", "Receipt", "a body over every kind's limit", huge),
        ("trailing-byte", "malformed", "Receipt", "one byte after the envelope", good + b"\0"),
        ("truncated", "malformed", "Receipt", "half of an envelope", good[: len(good) // 2]),
        ("text-body", "malformed", "Receipt", "the body as hexadecimal text", text_body),
    ]:
        yield Vector("signed", name, expect, comment, data, {"type": kind})
    headers = {"type": "Receipt", "signer": REQUESTER.peer.hex()}
    yield Vector(
        "signed", "unexpected-signer", "misattributed", "valid, but the requester was due", good, headers
    )


def announcements() -> Iterator[Vector]:
    def changed(**fields: Any) -> bytes:
        return to_bytes(sign_record(PROVIDER, msgspec.structs.replace(ANNOUNCEMENT, **fields)))

    good = changed()
    body = encode(ANNOUNCEMENT)
    by_stranger = SignedRecord(body, STRANGER.peer, STRANGER.sign(Announcement.DOMAIN, body))
    flipped = good[:-1] + bytes([good[-1] ^ 1])
    oversized = packed([bytes(Announcement.MAX_BYTES + 1), PROVIDER.peer, bytes(64)])
    late = NOW_US + 300 * SECOND_US
    for name, expect, comment, now_us, data in [
        ("accepted", "accepted", "alive and signed", NOW_US, good),
        ("skewed", "accepted", "issued 120 s ahead of our clock", NOW_US - 120 * SECOND_US, good),
        ("future", "future", "issued more than 120 s ahead", NOW_US - 120 * SECOND_US - 1, good),
        ("last-moment", "accepted", "expires in a microsecond", late - 1, good),
        ("expired", "expired", "expires this very microsecond", late, good),
        ("forged", "forged", "one bit of the signature differs", NOW_US, flipped),
        ("other-peer", "forged", "signed by a stranger to it", NOW_US, to_bytes(by_stranger)),
        ("wrong-mesh", "wrong-mesh", "of another mesh", NOW_US, changed(mesh=mesh_id("other"))),
        ("immortal", "malformed", "lives over 10 min", NOW_US, changed(expires_us=NOW_US + 600_000_001)),
        ("longest", "accepted", "lives 10 min", NOW_US, changed(expires_us=NOW_US + 600_000_000)),
        ("backwards", "malformed", "expires before it is issued", NOW_US, changed(expires_us=NOW_US - 1)),
        ("oversized", "oversized", "one byte over the limit", NOW_US, oversized),
        ("over-gossip-limit", "oversized", "longer than any gossip", NOW_US, bytes(16 * 1024 + 1)),
        ("garbage", "malformed", "random bytes", NOW_US, blake3(b"garbage").digest(300)),
        ("order", "forged", "an order on the topic", NOW_US, to_bytes(sign_record(REQUESTER, ORDER))),
    ]:
        headers = {"mesh": MESH.hex(), "now_us": str(now_us)}
        yield Vector("announcement", name, expect, comment, data, headers)


def receipt_files() -> Iterator[Vector]:
    receipt = sign_record(PROVIDER, RECEIPT)

    def answered(key: PeerKey = REQUESTER, **fields: Any) -> bytes:
        answer = msgspec.structs.replace(COUNTERSIGNATURE, **fields)
        return encode_receipt_file(receipt, sign_record(key, answer))

    good = answered()
    items = [plain(receipt), plain(sign_record(REQUESTER, COUNTERSIGNATURE))]
    by_provider = answered(PROVIDER, requester=PROVIDER.peer)
    for name, expect, says, comment, data in [
        ("good", "ok", "", "receipt and countersignature", good),
        ("open", "ok", "", "not countersigned yet", encode_receipt_file(receipt, None)),
        ("disputed", "ok", "", "a dispute counts too", answered(verdict="disputed", code="overbilled")),
        ("by-provider", "refused", "signed by", "the provider countersigned for itself", by_provider),
        (
            "other-receipt",
            "refused",
            "another receipt",
            "for another receipt",
            answered(receipt=filled(0x40)),
        ),
        ("other-lane", "refused", "mesh, lane", "names another lane", answered(lane=filled(0x41, 16))),
        ("other-sequence", "refused", "mesh, lane", "names another sequence", answered(sequence=1)),
        ("other-mesh", "refused", "mesh, lane", "names another mesh", answered(mesh=mesh_id("other"))),
        ("accepted-late", "refused", "code ok", "accepted with a code of dispute", answered(code="late")),
        ("disputed-ok", "refused", "code ok", "disputed without a code", answered(verdict="disputed")),
        ("flipped", "refused", "signature", "one bit differs", good[:-1] + bytes([good[-1] ^ 1])),
        ("newline", "refused", "extra data", "a newline at the end", good + b"\n"),
        ("magic", "refused", "matching regex", "another magic word", packed(["other", 1, *items])),
        (
            "version-2",
            "refused",
            "<= 1",
            "a version from the future",
            packed(["coppermesh-receipt", 2, *items]),
        ),
        (
            "only-a-receipt",
            "refused",
            "at least length",
            "a signed record without its file",
            to_bytes(receipt),
        ),
        ("oversized", "refused", "at most", "a long file", good + bytes(4096)),
    ]:
        headers = {"says": says} if says else {}
        yield Vector("receipt-file", name, expect, comment, data, headers)


def challenges() -> Iterator[Vector]:
    """Answers to a challenge of `RECEIPT`: the Trace and the digests that came with it."""

    nodes = CHAIN.to_bytes()

    def recorded(trace: SignedRecord | None, inline: bytes | None = nodes) -> bytes:
        return encode(ChallengeReply("recorded", [], 0, trace, inline, ""))

    def with_chain(inline: bytes | None) -> bytes:
        return recorded(sign_record(PROVIDER, TRACE), inline)

    def answer(key: PeerKey = PROVIDER, **fields: Any) -> bytes:
        return recorded(sign_record(key, msgspec.structs.replace(TRACE, **fields)))

    forged = SignedRecord(encode(TRACE), PROVIDER.peer, STRANGER.sign(Trace.DOMAIN, encode(TRACE)))
    as_receipt = sign_record(PROVIDER, RECEIPT)
    empty = TraceDigests(()).root(RECEIPT.program, RECEIPT.inputs)
    elsewhere = CHAIN.root(RECEIPT.program, filled(0x56))
    none = msgspec.structs.replace(TRACE, nodes=0, root=empty, chain=digest_of(b""))
    swapped = nodes[32:64] + nodes[:32] + nodes[64:]
    for name, says, comment, data in [
        ("good", "", "three nodes, the chain inline", answer()),
        ("chain-apart", "", "the chain is to be got as a blob", with_chain(None)),
        ("no-nodes", "", "a program that returns its inputs", recorded(sign_record(PROVIDER, none), b"")),
        ("other-receipt", "another receipt", "about another receipt", answer(receipt=filled(0x40))),
        ("other-task", "another task_id", "about another task", answer(task_id=filled(0x41))),
        ("other-program", "another program", "about another program", answer(program=filled(0x42))),
        ("other-mesh", "another mesh", "of another mesh", answer(mesh=mesh_id("other"))),
        ("other-requester", "another requester", "for somebody else", answer(requester=STRANGER.peer)),
        ("by-stranger", "signed by", "by another provider", answer(STRANGER, provider=STRANGER.peer)),
        ("forged", "signature is not", "signed with another key", recorded(forged)),
        ("receipt-as-trace", "signature is not", "another kind of record", recorded(as_receipt)),
        ("no-trace", "there is none", "recorded, with nothing", recorded(None)),
        ("too-many-links", "bytes for 3 nodes", "a digest too many", with_chain(nodes + filled(0x54))),
        ("too-few-links", "bytes for 3 nodes", "a digest short", with_chain(nodes[:-32])),
        ("half-a-link", "bytes for 3 nodes", "half a digest too many", with_chain(nodes + bytes(16))),
        ("other-digest", "not the blob", "the last digest differs", with_chain(nodes[:-32] + filled(0x54))),
        ("swapped", "not the blob", "two digests change places", with_chain(swapped)),
        ("wrong-root", "lead to its root", "a root of another chain", answer(root=filled(0x55))),
        ("other-inputs", "lead to its root", "a chain that begins with other inputs", answer(root=elsewhere)),
        ("wrong-chain", "not the blob", "names another blob", answer(chain=filled(0x57))),
    ]:
        headers = {"receipt": to_bytes(sign_record(PROVIDER, RECEIPT)).hex()}
        if says:
            headers["says"] = says
        yield Vector("challenge", name, "refused" if says else "ok", comment, data, headers)


LEAF = leaf_hash(record_id(encode(RECEIPT)) + record_id(encode(COUNTERSIGNATURE)))
OTHER_LEAF = leaf_hash(filled(0x61) + filled(0x62))
STATEMENT = Statement(
    version=1,
    mesh=MESH,
    proposer=PROVIDER.peer,
    other=REQUESTER.peer,
    unit="usd",
    number=0,
    previous=ZERO_HASH,
    receipts=2,
    root=merkle_root([LEAF, OTHER_LEAF]),
    earned_proposer=5,
    earned_other=0,
    net=5,
    payee="proposer",
    issued_us=NOW_US,
    expires_us=NOW_US + 600 * SECOND_US,
)
VOUCHER = Voucher(1, MESH, REQUESTER.peer, PROVIDER.peer, "usd", 0, record_id(encode(STATEMENT)), 5, NOW_US)
PAYMENT = Payment(
    1, MESH, PROVIDER.peer, REQUESTER.peer, record_id(encode(STATEMENT)), "usd", 5, "ledger", "tx 7", NOW_US
)
PAYOUT = Payout(
    1,
    MESH,
    PROVIDER.peer,
    0,
    "ed25519",
    STRANGER.peer.hex(),
    STRANGER.peer,
    NOW_US,
    NOW_US + 86_400 * SECOND_US,
)
SCORE = Score(1, MESH, PROVIDER.peer, REQUESTER.peer, 900, 12, NOW_US, NOW_US + 86_400 * SECOND_US)


def settling_records() -> Iterator[Vector]:
    samples: list[tuple[str, PeerKey, Record]] = [
        ("statement-by-proposer", PROVIDER, STATEMENT),
        ("statement-by-other", REQUESTER, STATEMENT),
        ("voucher", REQUESTER, VOUCHER),
        ("payment", PROVIDER, PAYMENT),
        ("payout-by-peer", PROVIDER, PAYOUT),
        ("payout-by-key", STRANGER, PAYOUT),
        ("score", PROVIDER, SCORE),
    ]
    for name, key, record in samples:
        kind = type(record).__name__
        signed = sign_record(key, record)
        headers = {
            "type": kind,
            "signer": key.peer.hex(),
            "id": record_id(signed.body).hex(),
            "value": as_json(record),
        }
        yield Vector("signed", f"good-{name}", "ok", f"a valid {kind}", to_bytes(signed), headers)
    body = encode(VOUCHER)
    by_payee = SignedRecord(body, PROVIDER.peer, PROVIDER.sign(Voucher.DOMAIN, body))
    as_payment = sign_record(PROVIDER, PAYMENT)
    for name, expect, kind, comment, data in [
        ("voucher-by-payee", "misattributed", "Voucher", "a promise to oneself", to_bytes(by_payee)),
        ("payment-as-voucher", "forged", "Voucher", "another kind of record", to_bytes(as_payment)),
    ]:
        yield Vector("signed", name, expect, comment, data, {"type": kind})
    score = plain(SCORE)
    statement = plain(STATEMENT)
    for kind, name, says, comment, items in [
        ("Score", "score-1001", "<= 1000", "better than the best", [*score[:4], 1001, *score[5:]]),
        (
            "Score",
            "score-float",
            "got `float`",
            "no floats in anything signed",
            [*score[:4], 0.5, *score[5:]],
        ),
        ("Statement", "statement-debt", ">= 0", "a net below zero", [*statement[:11], -5, *statement[12:]]),
        ("Statement", "statement-payee", "matching regex", "who", [*statement[:12], "both", *statement[13:]]),
        ("LanePartReply", "part-17-roots", "length <= 16", "a part too many", [[filled(1)] * 17]),
        ("LaneListReply", "lanes-1025", "length <= 65536", "a lane too many", [bytes(64 * 1025), False]),
    ]:
        yield structure(kind, name, says, comment, packed(items))


def evidence_files() -> Iterator[Vector]:
    one = sign_record(PROVIDER, RECEIPT)
    other = sign_record(PROVIDER, msgspec.structs.replace(RECEIPT, amount=1, cumulative=1))
    elsewhere = sign_record(PROVIDER, msgspec.structs.replace(RECEIPT, lane=filled(0x70, 16)))
    next_up = sign_record(PROVIDER, msgspec.structs.replace(RECEIPT, sequence=1, previous=filled(0x71)))
    forged = SignedRecord(other.body, PROVIDER.peer, one.signature)
    answers = [
        sign_record(REQUESTER, msgspec.structs.replace(COUNTERSIGNATURE, issued_us=NOW_US + at))
        for at in (1, 2)
    ]
    tasks = [sign_record(REQUESTER, msgspec.structs.replace(TASK, index=index)) for index in (3, 4)]
    again = sign_record(REQUESTER, msgspec.structs.replace(STATEMENT, issued_us=NOW_US + 1))
    said = [sign_record(REQUESTER, STATEMENT), again]
    proposals = [
        sign_record(PROVIDER, STATEMENT),
        sign_record(PROVIDER, msgspec.structs.replace(STATEMENT, net=4)),
    ]
    receipt = sign_record(PROVIDER, RECEIPT)
    too_much = sign_record(REQUESTER, msgspec.structs.replace(COUNTERSIGNATURE, accepted_cumulative=9))
    for name, kind, peer, records, says, comment in [
        ("equivocation", "equivocation", PROVIDER, [one, other], "", "two receipts for one place"),
        ("broken-chain", "broken-chain", PROVIDER, [one, next_up], "", "the second names another before it"),
        ("double-task", "double-task", REQUESTER, tasks, "", "one number, two tasks"),
        ("double-answer", "double-countersignature", REQUESTER, answers, "", "one receipt, two answers"),
        (
            "double-statement",
            "double-statement",
            REQUESTER,
            said,
            "",
            "the second side signed two of a number",
        ),
        ("wrong-sum", "wrong-sum", REQUESTER, [receipt, too_much], "", "accepts more than was billed"),
        ("same-twice", "equivocation", PROVIDER, [one, one], "do not show", "one receipt twice"),
        ("two-lanes", "equivocation", PROVIDER, [one, elsewhere], "do not show", "two lanes"),
        ("one-record", "equivocation", PROVIDER, [one], "want two", "half a proof"),
        ("forged", "equivocation", PROVIDER, [one, forged], "not valid", "one signature does not hold"),
        (
            "framed",
            "equivocation",
            REQUESTER,
            [one, other],
            "signed by",
            "against a peer that signed neither",
        ),
        ("proposals", "double-statement", PROVIDER, proposals, "do not show", "a proposer may propose again"),
        ("right-sum", "wrong-sum", REQUESTER, [receipt, answers[0]], "do not show", "a sum that adds up"),
        ("unknown-kind", "rudeness", PROVIDER, [one, other], "cannot be proven", "no kind of proof"),
    ]:
        headers = {"says": says} if says else {}
        data = encode_evidence(kind, peer.peer, records)
        yield Vector("evidence-file", name, "refused" if says else "ok", comment, data, headers)


def place_files() -> Iterator[Vector]:
    def place(index: int = 0, path: list[bytes] | None = None, **fields: Any) -> bytes:
        record = msgspec.structs.replace(STATEMENT, **fields)
        both = SignedStatement(sign_record(PROVIDER, record), sign_record(REQUESTER, record), b"")
        way = [OTHER_LEAF] if path is None else path
        return encode_place(
            sign_record(PROVIDER, RECEIPT), sign_record(REQUESTER, COUNTERSIGNATURE), both, index, way
        )

    once = SignedStatement(sign_record(PROVIDER, STATEMENT), sign_record(PROVIDER, STATEMENT), b"")
    receipt, answer = sign_record(PROVIDER, RECEIPT), sign_record(REQUESTER, COUNTERSIGNATURE)
    by_one = encode_place(receipt, answer, once, 0, [OTHER_LEAF])
    for name, says, comment, data in [
        ("good", "", "the first of two receipts", place()),
        ("other-index", "not under", "the second place", place(index=1)),
        ("outside", "not under", "a place that there is not", place(index=2)),
        ("other-path", "not under", "a path from elsewhere", place(path=[filled(0x63)])),
        ("no-path", "not under", "the path is missing", place(path=[])),
        ("long-path", "not under", "a hash too many", place(path=[OTHER_LEAF, OTHER_LEAF])),
        ("other-root", "not under", "another root", place(root=filled(0x64))),
        ("one-side", "both its sides", "the proposer signed twice", by_one),
        ("wrong-net", "net is", "a net that does not follow", place(net=6)),
        ("other-unit", "unit", "a statement in another unit", place(unit="eur")),
        ("flipped", "", "one bit differs", b""),
    ]:
        if name == "flipped":
            good = place()
            spoiled = good[:-40] + bytes([good[-40] ^ 1]) + good[-39:]
            yield Vector("place-file", name, "refused", comment, spoiled)
            continue
        headers = {"says": says} if says else {}
        yield Vector("place-file", name, "refused" if says else "ok", comment, data, headers)


LAB_ROOT = PeerKey(bytes([11]) * 32)
LAB_ADMIN = PeerKey(bytes([12]) * 32)
LAB = private_mesh_id(LAB_ROOT.peer, "lab")
DAY_US = 86_400 * SECOND_US


def link(issuer: PeerKey, subject: PeerKey, **fields: Any) -> SignedRecord:
    values: dict[str, Any] = {
        "version": 1, "mesh": LAB, "issuer": issuer.peer, "subject": subject.peer, "serial": 1, "role": "member",
        "quota": None, "depth": 0, "name": "", "not_before_us": NOW_US, "expires_us": NOW_US + 7 * DAY_US,
    }  # fmt: skip
    return sign_record(issuer, Certificate(**(values | fields)))


def membership_records() -> Iterator[Vector]:
    """One good record of each kind of private meshes."""
    samples: list[tuple[str, PeerKey, Record]] = [
        ("revocation", LAB_ADMIN, Revocation(
            version=1, mesh=LAB, signer=LAB_ADMIN.peer, subject=STRANGER.peer, last_serial=0, issued_us=NOW_US,
            expires_us=NOW_US + 31 * DAY_US)),
        ("joining", REQUESTER, Joining(
            version=1, mesh=LAB, subject=REQUESTER.peer, issuer=LAB_ADMIN.peer, token=filled(0x44, 16), name="bob",
            issued_us=NOW_US)),
        ("rotation", LAB_ADMIN, Rotation(
            version=1, mesh=LAB, signer=LAB_ADMIN.peer, epoch=1, key_hash=blake3(filled(0x55)).digest(),
            issued_us=NOW_US)),
        ("usage", PROVIDER, Usage(
            version=1, mesh=LAB, provider=PROVIDER.peer, requester=REQUESTER.peer, kind="cuda",
            hour=NOW_US // (3600 * SECOND_US), device_us=90 * SECOND_US)),
        ("certificate", LAB_ADMIN, Certificate(
            version=1, mesh=LAB, issuer=LAB_ADMIN.peer, subject=REQUESTER.peer, serial=7, role="submit-only",
            quota=Quota(kind="cuda", device_us=20 * 3600 * SECOND_US, period_us=DAY_US), depth=0, name="bob",
            not_before_us=NOW_US, expires_us=NOW_US + DAY_US)),
    ]  # fmt: skip
    for name, key, record in samples:
        kind = type(record).__name__
        signed = sign_record(key, record)
        headers = {
            "type": kind,
            "signer": key.peer.hex(),
            "id": record_id(signed.body).hex(),
            "value": as_json(record),
        }
        yield Vector("signed", f"good-{name}", "ok", f"a valid {kind}", to_bytes(signed), headers)


def chains() -> Iterator[Vector]:
    """Chains of certificates, and the code with which each is refused."""
    first = link(LAB_ROOT, LAB_ADMIN, role="admin", depth=2, expires_us=NOW_US + 20 * DAY_US)
    bob = REQUESTER
    narrow = link(LAB_ROOT, LAB_ADMIN, role="admin", depth=1, quota=Quota("cuda", 10, DAY_US))
    genuine = link(LAB_ADMIN, bob)
    cases: list[tuple[str, str, str, list[SignedRecord]]] = [
        ("ok", "ok", "root, admin, member", [first, genuine]),
        ("root-alone", "ok", "a member by the root key itself", [link(LAB_ROOT, bob)]),
        ("empty", "no-certificate", "nothing shown", []),
        ("long", "chain-too-long", "five links", [first, first, first, first, genuine]),
        ("other-root", "wrong-root", "begins with another key", [link(STRANGER, bob)]),
        ("headless", "wrong-root", "the first link left out", [genuine]),
        ("broken", "broken-link", "the second link by a stranger", [first, link(STRANGER, bob)]),
        ("forged", "forged", "a signature of zeros", [first, SignedRecord(genuine.body, genuine.signer, bytes(64))]),
        ("other-mesh", "wrong-mesh", "a link of another mesh", [first, link(LAB_ADMIN, bob, mesh=MESH)]),
        ("other-subject", "wrong-subject", "shown by another peer", [first, link(LAB_ADMIN, STRANGER)]),
        ("by-a-member", "may-not-issue", "issued by who is no admin", [link(LAB_ROOT, LAB_ADMIN), genuine]),
        ("wider-role", "wider-role", "an admin by a plain member", [link(LAB_ROOT, LAB_ADMIN, depth=1), link(
            LAB_ADMIN, bob, role="admin")]),
        ("wider-submitter", "wider-role", "a provider by one that only submits", [link(
            LAB_ROOT, LAB_ADMIN, role="submit-only", depth=1), link(LAB_ADMIN, bob, role="provide-only")]),
        ("too-deep", "may-not-issue", "as deep as its issuer", [first, link(LAB_ADMIN, bob, role="admin", depth=2)]),
        ("wider-quota", "wider-quota", "no quota below one with", [narrow, genuine]),
        ("wider-expiry", "wider-expiry", "outlives its issuer", [first, link(
            LAB_ADMIN, bob, expires_us=NOW_US + 21 * DAY_US)]),
        ("too-long", "too-long", "made out for 31 days", [link(LAB_ROOT, bob, expires_us=NOW_US + 31 * DAY_US)]),
        ("not-yet", "not-yet-valid", "valid from tomorrow on", [link(
            LAB_ROOT, bob, not_before_us=NOW_US + DAY_US)]),
        ("expired", "expired", "expired this very microsecond", [link(
            LAB_ROOT, bob, not_before_us=NOW_US - DAY_US, expires_us=NOW_US)]),
    ]  # fmt: skip
    for name, expect, comment, chain in cases:
        headers = {
            "root": LAB_ROOT.peer.hex(),
            "mesh": LAB.hex(),
            "peer": bob.peer.hex(),
            "now_us": str(NOW_US),
        }
        # Longer than any allowed, so written past the encoder's own check.
        body = packed([[plain(signed) for signed in chain]])
        yield Vector("chain", name, expect, comment, body, headers)


def invitations() -> Iterator[Vector]:
    """Strings, as ASCII bytes."""
    invitation = Invitation(
        1,
        "lab",
        LAB_ROOT.peer,
        LAB_ADMIN.peer,
        ["/ip4/192.0.2.1/tcp/4003"],
        filled(0x44, 16),
        NOW_US + DAY_US,
    )
    text = invitation_text(invitation)
    flipped = text[:-1] + ("a" if text[-1] != "a" else "b")
    for name, expect, comment, body in (
        ("good", "ok", "as it is printed", text),
        ("capitals", "ok", "as a QR code holds it", text.upper()),
        ("spaced", "ok", "broken by a mail program", f"{text[:60]}\n  {text[60:]}"),
        ("cut", "refused", "the last letter is missing", text[:-1]),
        ("mistyped", "refused", "one letter is another", flipped),
        ("foreign", "refused", "no invitation at all", "hello"),
    ):
        headers = {"value": as_json(invitation)} if expect == "ok" else {}
        yield Vector("invitation", name, expect, comment, body.encode(), headers)


def swarm_streams() -> Iterator[Vector]:
    """What a side sends under a swarm key, after its nonce."""
    key, nonce = filled(0x55), bytes(range(24))
    for name, data in (("multistream", b"\x13/multistream/1.0.0\n"), ("long", bytes(200))):
        sealed = bytes(XSalsa20(key, nonce).encrypt(data))
        headers = {"key": key.hex(), "nonce": nonce.hex(), "plain": data.hex()}
        yield Vector("swarm", name, "ok", "XSalsa20 from byte 0 of the stream on", sealed, headers)


def frames() -> Iterator[Vector]:
    one = encode_frame(b"\x01")
    full = encode_frame(bytes(64))
    for name, expect, comment, lengths, data in [
        ("two", "ok", "two frames, one of them as long as allowed", "1,64", one + full),
        ("none", "ok", "a stream that ends before its first frame", "", b""),
        ("empty", "empty", "a frame of no bytes", "", bytes(4)),
        ("empty-after-good", "empty", "a good frame, then one of no bytes", "", one + bytes(4)),
        ("oversized", "oversized", "one byte over the limit", "", b"\0\0\0\x41" + bytes(65)),
        ("oversized-header-only", "oversized", "refused before its bytes come", "", b"\0\0\0\x41"),
        ("4-gib", "oversized", "the longest length there is", "", b"\xff\xff\xff\xff"),
        ("little-endian", "oversized", "a length the wrong way round", "", b"\x01\0\0\0\x01"),
        ("truncated", "truncated", "ends inside a frame", "1", one + full[:-1]),
        ("truncated-header", "truncated", "ends inside a length", "1", one + b"\0\0"),
    ]:
        yield Vector("frames", name, expect, comment, data, {"limit": "64", "lengths": lengths})


def peer_texts() -> Iterator[Vector]:
    good = format_peer(PROVIDER.peer)
    zero = PeerId(bytes(32))
    for name, comment, peer in [
        ("good", "libp2p's form of an Ed25519 key", PROVIDER.peer),
        ("zero", "well-formed, though no key signs for it", zero),
    ]:
        text = format_peer(peer)
        yield Vector("peer-text", name, "ok", comment, text.encode(), {"peer": peer.hex()})
    for name, comment, text in [
        ("newline", "a newline at the end", good + "\n"),
        ("leading-space", "a space in front", " " + good),
        ("extra-1", "a second leading 1", "1" + good),
        ("missing-1", "the leading 1 is missing", good[1:]),
        ("letter-l", "l is no base58 digit", good[:-1] + "l"),
        ("wide-digit", "a full-width digit", good[:-1] + "\uff11"),
        ("truncated", "a character short", good[:-1]),
        ("longer", "a character long", good + "1"),
        ("empty", "no text", ""),
        ("hash", "the id of an RSA key", "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"),
        ("secp256k1", "another key type", "16Uiu2HAmPoRf4QDcGn5FM4yvXHsKcJ6ZfyKzBbzUFJXRKQpFpNGk"),
        ("hex", "the key in hexadecimal", PROVIDER.peer.hex()),
        ("long", "a text without end", "1" * 4096),
    ]:
        yield Vector("peer-text", name, "malformed", comment, text.encode())


def dial_backs() -> Iterator[Vector]:
    asked, reply = (
        DialBackRequest(port=4001),
        DialBackReply(state="reached", seen_at="/ip4/192.0.2.9/tcp/4001"),
    )
    for name, message in (("dial-back-request", asked), ("dial-back-reply", reply)):
        headers = {"type": type(message).__name__, "value": as_json(message)}
        comment = f"a valid {type(message).__name__}"
        yield Vector("structure", f"good-{name}", "ok", comment, encode(message), headers)
    for name, says, comment, body in [
        ("port-0", ">= 1", "no port is zero", packed([0])),
        ("port-65536", "<= 65535", "one port too many", packed([65536])),
        ("host", "at most length 1", "the host is not the asker's to name", packed([22, "192.0.2.1"])),
    ]:
        yield structure("DialBackRequest", f"dial-back-{name}", says, comment, body)
    for name, says, comment, body in [
        ("state", "matching regex", "a state that there is not", packed(["open", "/ip4/192.0.2.9/tcp/1"])),
        ("long", "length <= 256", "an address without end", packed(["closed", "/" * 257])),
        ("escape", "matching regex", "a terminal escape", packed(["closed", "\x1b[2J"])),
    ]:
        yield structure("DialBackReply", f"dial-back-{name}", says, comment, body)


def addresses() -> Iterator[Vector]:
    here, relay = format_peer(PROVIDER.peer), format_peer(REQUESTER.peer)
    through = f"/ip4/192.0.2.1/tcp/4001/p2p/{relay}/p2p-circuit/p2p/{here}"
    for name, comment, text in [
        ("direct", "a peer that listens there", f"/ip4/192.0.2.1/tcp/4001/p2p/{here}"),
        ("ip6", "the same by IPv6", f"/ip6/2001:db8::1/tcp/4001/p2p/{here}"),
        ("relayed", "a peer through a relay", through),
    ]:
        yield Vector("address", name, "ok", comment, text.encode(), {"peer": PROVIDER.peer.hex()})
    for name, comment, text in [
        ("no-peer", "nobody to prove a key", "/ip4/192.0.2.1/tcp/4001"),
        ("port-0", "no port is zero", f"/ip4/192.0.2.1/tcp/0/p2p/{here}"),
        ("udp", "not a stream", f"/ip4/192.0.2.1/udp/4001/p2p/{here}"),
        ("own-relay", "a relay to itself", through.replace(relay, here)),
        ("two-relays", "a relay behind a relay", f"{through}/p2p-circuit/p2p/{relay}"),
        ("no-target", "a relay to nobody", through.removesuffix(f"/p2p/{here}")),
        ("newline", "a newline at the end", f"/ip4/192.0.2.1/tcp/4001/p2p/{here}\n"),
        ("long", "257 characters", "/" * 257),
    ]:
        yield Vector("address", name, "malformed", comment, text.encode())


def mdns_texts() -> Iterator[Vector]:
    peer, other = PROVIDER.peer, STRANGER.peer
    place = f"/ip4/192.0.2.1/tcp/4001/p2p/{format_peer(peer)}"
    elsewhere = f"/ip4/192.0.2.2/tcp/4001/p2p/{format_peer(other)}"
    mesh = MeshId(MESH)
    good = make_text(mesh, peer, [place])
    headers = {"mesh": MESH.hex(), "peer": peer.hex(), "addresses": place}
    yield Vector("mdns", "good", "ok", "one address and the mesh's hint", good, headers)
    for name, comment, body in [
        ("other-mesh", "the hint of another mesh", make_text(mesh_id("another"), peer, [place])),
        ("no-hint", "no hint", bytes([8 + len(place)]) + b"dnsaddr=" + place.encode()),
        ("two-peers", "addresses of two peers", make_text(mesh, peer, [place, elsewhere])),
        ("cut", "the last string is cut", good[:-1]),
        ("no-address", "nothing but a hint", make_text(mesh, peer, [])),
    ]:
        yield Vector("mdns", name, "nobody", comment, body, {"mesh": MESH.hex()})


def encrypted_records() -> Iterator[Vector]:
    """A direction's records under `/coppermesh/noise-aes/1`, from what the Noise handshake gave."""
    known = {
        "noise-key": bytes([0x55]) * 32,
        "hash": bytes([0x66]) * 32,
        "dialler": PROVIDER.peer,
        "acceptor": REQUESTER.peer,
    }
    headers = {name: value.hex() for name, value in known.items()} | {"direction": "initiator to responder"}

    def sealed(texts: list[bytes], *, first_number: int = 0, from_initiator: bool = True) -> list[bytes]:
        key = derive_aes_key(
            known["noise-key"],
            known["hash"],
            initiator=known["dialler"],
            responder=known["acceptor"],
            from_initiator=from_initiator,
        )
        cipher = AesCipher(key, first_number=first_number)
        made = []
        for text in texts:
            record = memoryview(bytearray(len(text) + 20))
            cipher.seal(memoryview(text), record)
            made.append(bytes(record))
        return made

    one, two, three = sealed([b"first", b"", b"third, a little longer"])
    plain = headers | {"plain": (b"first" + b"third, a little longer").hex()}
    yield Vector("record", "good", "ok", "three records, the second empty", one + two + three, plain)
    last, rekeyed = sealed([b"last", b"first"], first_number=2**22 - 1)
    numbered = headers | {"number": str(2**22 - 1)}
    yield Vector(
        "record",
        "rekey",
        "ok",
        "record 2^22 has the next key",
        last + rekeyed,
        numbered | {"plain": b"lastfirst".hex()},
    )
    back = sealed([b"first"], from_initiator=False)[0]
    for name, comment, body in [
        ("altered", "a bit of the text is another", one[:4] + bytes([one[4] ^ 1]) + one[5:]),
        ("repeated", "the first record twice", one + one),
        ("swapped", "the second record first", two + one),
        ("left-out", "the third record as the second", one + three),
        ("cut", "the last byte is missing", one + three[:-1]),
        ("no-room", "15 bytes hold no tag", bytes([0, 0, 0, 15]) + bytes(15)),
        ("long", "over 256 KiB", bytes([0, 4, 0, 17])),
        ("other-direction", "under the other direction's key", back),
        ("length", "the length is authenticated", one[:3] + bytes([one[3] - 1]) + one[4:-1]),
    ]:
        yield Vector("record", name, "dead", comment, body, headers)


def vectors() -> Iterator[Vector]:
    """Every vector, in a fixed order."""
    makers = [
        good_records, good_messages, bad_shapes, bombs, bad_integers, bad_fields, bad_lists, bad_challenges, signatures,
        bad_envelopes, announcements, membership_records, chains, invitations, swarm_streams, receipt_files,
        challenges, settling_records, evidence_files, place_files, frames, dial_backs, addresses, mdns_texts,
        peer_texts, encrypted_records,
    ]  # fmt: skip
    for maker in makers:
        yield from maker()


def main() -> None:
    parser = argparse.ArgumentParser(description="write the vector files")
    parser.add_argument("folder", type=Path, nargs="?", default=DATA)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.txt"):
        stale.unlink()
    for vector in vectors():
        path = folder / f"{vector.kind}-{vector.name}.txt"
        if path.exists():
            raise SystemExit(f"two vectors are called {path.name}")
        path.write_text(vector.text())


if __name__ == "__main__":
    main()
