"""What travels between members of a private mesh, and at its door. Shapes and sizes only: `membership` checks the rest.

Two protocols of their own, each one request and one reply in frames as on control streams:

| protocol                        | where             | request          | reply          |
|---------------------------------|-------------------|------------------|----------------|
| `/coppermesh/membership/1/<id>` | each connection   | Card             | Card           |
| `/coppermesh/admission/1/<id>`  | the door          | AdmissionRequest | AdmissionReply |

and five more methods on control streams:

| method    | who asks | request       | reply        |
|-----------|----------|---------------|--------------|
| `members` | both     | Nothing       | MembersReply |
| `renew`   | member   | Nothing       | RenewReply   |
| `rotate`  | both     | RotateRequest | Nothing      |
| `revoked` | both     | Revocations   | Nothing      |
| `usage`   | provider | UsageTotal    | UsageTotal   |
"""

from typing import Annotated

from msgspec import Meta

from coppermesh.p2p.membership_records import Chain, RevocationNotice, SwarmKey
from coppermesh.p2p.messages import Message
from coppermesh.p2p.records import Code, Count, Label, Sentence, SignedRecord

MAX_KNOWN = 64
"""Most members, and most revocations, in one message."""
MAX_ADDRESSES = 8
MAX_CARD_BYTES = 4 * 1024
MAX_ADMISSION_BYTES = 128 * 1024

Addresses = Annotated[list[Label], Meta(max_length=MAX_ADDRESSES)]


class Card(Message, frozen=True):
    """The sender's chain. `code` is `ok`, or says why the other's chain was refused; the chain is empty then."""

    chain: Chain
    code: Code
    sentence: Sentence


class AdmissionRequest(Message, frozen=True):
    """A signed Joining; with a chain where an old member comes back, else with a token inside."""

    joining: SignedRecord
    chain: Chain


class RotateRequest(Message, frozen=True):
    """A signed Rotation with its signer's chain, and the swarm key that it names."""

    rotation: SignedRecord
    chain: Chain
    swarm_key: SwarmKey


class AdmissionReply(Message, frozen=True):
    """`ok` with everything that a member needs, or a refusal with nothing."""

    code: Code
    sentence: Sentence
    chain: Chain
    swarm_key: SwarmKey | None
    epoch: Count
    rotation: RotateRequest | None
    """How that key came to be, to hand on; nil where it is the mesh's first."""
    addresses: Addresses
    """Where members of the mesh listen."""
    doors: Addresses
    """Where one comes back in."""
    revocations: Annotated[list[RevocationNotice], Meta(max_length=MAX_KNOWN)]


class MembersReply(Message, frozen=True):
    """Chains and revocations that the sender knows, and its own doors where it has any."""

    chains: Annotated[list[Chain], Meta(max_length=MAX_KNOWN)]
    revocations: Annotated[list[RevocationNotice], Meta(max_length=MAX_KNOWN)]
    doors: Addresses


class Revocations(Message, frozen=True):
    """The newest that the sender knows: told before a new swarm key, so that nobody hands that on to who is revoked."""

    revocations: Annotated[list[RevocationNotice], Meta(max_length=MAX_KNOWN)]


class UsageTotal(Message, frozen=True):
    """A Usage, signed by the provider in the request, by the requester in the reply."""

    usage: SignedRecord


class RenewReply(Message, frozen=True):
    """The asker's new chain."""

    chain: Chain
