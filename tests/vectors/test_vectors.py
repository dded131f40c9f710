"""Every vector file gives exactly the verdict it states; and the generator reproduces the files."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import pytest

from coppermesh.agent.proofs import InvalidProof, verify_evidence, verify_place
from coppermesh.agent.traces import open_recorded
from coppermesh.p2p import (
    lease_records,
    ledger_messages,
    membership_records,
    messages,
    records,
    settlement_records,
)
from coppermesh.p2p.addresses import parse_address
from coppermesh.p2p.announcements import AnnouncementBook
from coppermesh.p2p.encoding import decode, encode
from coppermesh.p2p.envelope import from_bytes, has_valid_signature, open_record, open_verified, to_bytes
from coppermesh.p2p.errors import MeshError, Refused, RemoteProtocolError, Unreachable
from coppermesh.p2p.framing import FrameDecoder
from coppermesh.p2p.ids import MeshId, PeerId, format_peer, parse_peer
from coppermesh.p2p.invitation import read_invitation
from coppermesh.p2p.libp2p_pnet import XSalsa20
from coppermesh.p2p.mdns_records import read_text
from coppermesh.p2p.membership import MembershipBook
from coppermesh.p2p.receipt_file import check_receipt_file
from coppermesh.p2p.record_ciphers import AesCipher, RecordError, derive_aes_key
from coppermesh.p2p.signing import verify

HERE = Path(__file__).parent
PATHS = sorted((HERE / "data").glob("*.txt"))


@dataclass(frozen=True)
class Vector:
    headers: dict[str, str]
    body: bytes


def read(path: Path) -> Vector:
    head, _, digits = path.read_text().partition("\n\n")
    headers: dict[str, str] = {}
    for line in head.splitlines():
        name, _, value = line.partition(":")
        headers[name] = value.strip()
    return Vector(headers, bytes.fromhex(digits))


def struct_type(name: str) -> Any:
    for module in (records, lease_records, messages, settlement_records, ledger_messages, membership_records):
        if hasattr(module, name):
            return getattr(module, name)
    raise AssertionError(f"no structure is called {name}")


def readable(value: Any) -> Any:
    if isinstance(value, bytes):
        return "hex:" + value.hex()
    return [readable(part) for part in value] if isinstance(value, list) else value


def assert_says(vector: Vector, error: BaseException) -> None:
    assert vector.headers.get("says", "").lower() in str(error).lower()


def run_structure(vector: Vector) -> str:
    kind = struct_type(vector.headers["type"])
    limit = getattr(kind, "MAX_BYTES", messages.MAX_FRAME_BYTES)
    try:
        value = decode(kind, vector.body, max_bytes=limit)
    except RemoteProtocolError as error:
        assert_says(vector, error)
        return "malformed"
    assert encode(value) == vector.body
    assert readable(msgspec.to_builtins(value, builtin_types=(bytes,))) == json.loads(vector.headers["value"])
    return "ok"


def run_signature(vector: Vector) -> str:
    headers = vector.headers
    peer = PeerId(bytes.fromhex(headers["peer"]))
    signed = bytes.fromhex(headers["signature"])
    return "ok" if verify(peer, headers["domain"], vector.body, signed) else "forged"


def run_signed(vector: Vector) -> str:
    kind = struct_type(vector.headers["type"])
    signer = PeerId(bytes.fromhex(vector.headers["signer"])) if "signer" in vector.headers else None
    verdict = verdict_on_signed(kind, vector, signer)
    # The whole must agree with its parts.
    try:
        opened = open_record(kind, from_bytes(vector.body), signer=signer)
    except RemoteProtocolError:
        assert verdict != "ok"
    else:
        assert verdict == "ok"
        assert opened.id.hex() == vector.headers["id"]
        assert to_bytes(opened.signed) == vector.body
        value = readable(msgspec.to_builtins(opened.record, builtin_types=(bytes,)))
        assert value == json.loads(vector.headers["value"])
    return verdict


def verdict_on_signed(kind: type[records.Record], vector: Vector, signer: PeerId | None) -> str:
    try:
        signed = from_bytes(vector.body)
    except RemoteProtocolError:
        return "malformed"
    if signer is not None and signed.signer != signer:
        return "misattributed"
    try:
        genuine = has_valid_signature(kind, signed)
    except RemoteProtocolError:
        return "oversized"
    if not genuine:
        return "forged"
    try:
        open_verified(kind, signed)
    except RemoteProtocolError as error:
        return "misattributed" if "author" in str(error) else "malformed"
    return "ok"


def run_announcement(vector: Vector) -> str:
    book = AnnouncementBook(MeshId(bytes.fromhex(vector.headers["mesh"])))
    now_us = int(vector.headers["now_us"])
    verdict = book.offer(vector.body, now_us)
    assert len(book.current(now_us)) == (1 if verdict == "accepted" else 0)
    return verdict.value


def run_receipt_file(vector: Vector) -> str:
    try:
        check_receipt_file(vector.body)
    except RemoteProtocolError as error:
        assert_says(vector, error)
        return "refused"
    return "ok"


def run_evidence_file(vector: Vector) -> str:
    return run_proof(vector, verify_evidence)


def run_place_file(vector: Vector) -> str:
    return run_proof(vector, verify_place)


def run_proof(vector: Vector, check: Callable[[bytes], object]) -> str:
    try:
        check(vector.body)
    except InvalidProof as error:
        assert_says(vector, error)
        return "refused"
    return "ok"


def run_chain(vector: Vector) -> str:
    headers = vector.headers
    book = MembershipBook(PeerId(bytes.fromhex(headers["root"])), MeshId(bytes.fromhex(headers["mesh"])))
    chain = [records.SignedRecord(*signed) for signed in msgpack.unpackb(vector.body)[0]]
    try:
        book.check(chain, PeerId(bytes.fromhex(headers["peer"])), int(headers["now_us"]))
    except Refused as error:
        return error.code
    return "ok"


def run_invitation(vector: Vector) -> str:
    try:
        invitation = read_invitation(vector.body.decode())
    except MeshError:
        return "refused"
    value = readable(msgspec.to_builtins(invitation, builtin_types=(bytes,)))
    assert value == json.loads(vector.headers["value"])
    return "ok"


def run_encrypted_records(vector: Vector) -> str:
    known = {
        name: bytes.fromhex(vector.headers[name]) for name in ("noise-key", "hash", "dialler", "acceptor")
    }
    key = derive_aes_key(
        known["noise-key"],
        known["hash"],
        initiator=known["dialler"],
        responder=known["acceptor"],
        from_initiator=vector.headers["direction"] == "initiator to responder",
    )
    cipher = AesCipher(key, first_number=int(vector.headers.get("number", "0")))
    rest, plain = memoryview(vector.body), b""
    try:
        while rest:
            size = cipher.ciphertext_size(rest[:4])
            plain += cipher.open(rest[:4], rest[4 : 4 + size])
            rest = rest[4 + size :]
    except RecordError:
        return "dead"
    assert plain.hex() == vector.headers["plain"]
    return "ok"


def run_swarm(vector: Vector) -> str:
    headers = vector.headers
    cipher = XSalsa20(bytes.fromhex(headers["key"]), bytes.fromhex(headers["nonce"]))
    return "ok" if cipher.encrypt(vector.body).hex() == headers["plain"] else "wrong"


def run_challenge(vector: Vector) -> str:
    receipt = open_record(records.Receipt, from_bytes(bytes.fromhex(vector.headers["receipt"])))
    reply = decode(messages.ChallengeReply, vector.body, max_bytes=messages.MAX_FRAME_BYTES)
    try:
        open_recorded(reply, receipt)
    except RemoteProtocolError as error:
        assert_says(vector, error)
        return "refused"
    return "ok"


def run_frames(vector: Vector) -> str:
    whole = cut(vector, step=max(1, len(vector.body)))
    assert cut(vector, step=1) == whole
    return whole


def cut(vector: Vector, step: int) -> str:
    decoder = FrameDecoder(int(vector.headers["limit"]))
    lengths: list[int] = []
    try:
        for start in range(0, len(vector.body), step):
            lengths += [len(frame) for frame in decoder.feed(vector.body[start : start + step])]
        expected = vector.headers["lengths"]
        assert lengths == [int(length) for length in expected.split(",") if length]
        decoder.finish()
    except RemoteProtocolError as error:
        text = str(error)
        return "truncated" if "ended" in text else "empty" if "empty" in text else "oversized"
    return "ok"


def run_peer_text(vector: Vector) -> str:
    text = vector.body.decode()
    try:
        peer = parse_peer(text)
    except ValueError:
        return "malformed"
    assert peer.hex() == vector.headers["peer"]
    assert format_peer(peer) == text
    return "ok"


def run_address(vector: Vector) -> str:
    text = vector.body.decode()
    try:
        address = parse_address(text)
    except Unreachable:
        return "malformed"
    assert address.peer.hex() == vector.headers["peer"]
    assert str(address) == text
    return "ok"


def run_mdns(vector: Vector) -> str:
    read_it = read_text(vector.body, MeshId(bytes.fromhex(vector.headers["mesh"])))
    if read_it is None:
        return "nobody"
    peer, addresses = read_it
    assert (peer.hex(), " ".join(addresses)) == (vector.headers["peer"], vector.headers["addresses"])
    return "ok"


RUNNERS: dict[str, Callable[[Vector], str]] = {
    "structure": run_structure,
    "signature": run_signature,
    "signed": run_signed,
    "announcement": run_announcement,
    "receipt-file": run_receipt_file,
    "challenge": run_challenge,
    "evidence-file": run_evidence_file,
    "place-file": run_place_file,
    "chain": run_chain,
    "invitation": run_invitation,
    "swarm": run_swarm,
    "record": run_encrypted_records,
    "frames": run_frames,
    "address": run_address,
    "mdns": run_mdns,
    "peer-text": run_peer_text,
}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_vector_gives_its_verdict(path: Path) -> None:
    vector = read(path)
    assert RUNNERS[vector.headers["kind"]](vector) == vector.headers["expect"]


def test_most_vectors_are_malicious() -> None:
    verdicts = [read(path).headers["expect"] for path in PATHS]
    assert len(verdicts) >= 100
    assert sum(verdict not in ("ok", "accepted") for verdict in verdicts) > len(verdicts) / 2


def test_generator_reproduces_the_files(tmp_path: Path) -> None:
    subprocess.run([sys.executable, HERE / "generate.py", tmp_path], check=True, cwd=tmp_path)
    fresh = {path.name: path.read_text() for path in tmp_path.glob("*.txt")}
    assert fresh == {path.name: path.read_text() for path in PATHS}
