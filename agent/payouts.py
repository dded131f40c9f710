"""Payout accounts: where a peer is paid. Bound to its peer key by a record, never the peer key itself (pure).

A peer key is hot: it lies on a machine that talks to strangers. It says where money goes, and holds none. Where the
account has an Ed25519 key (a Solana wallet, another coppermesh key kept apart), that key signs the same record, which
proves that whoever bound it can use it; for any other account the address is the peer's word alone, and said to be so.
"""

from coppermesh.agent.payout_addresses import address_problem
from coppermesh.p2p.envelope import open_record
from coppermesh.p2p.errors import RemoteProtocolError
from coppermesh.p2p.ids import PeerId
from coppermesh.p2p.settlement_records import Payout, SignedPayout

NO_ACCOUNT = "none"
"""The scheme of a record that takes the account before it back."""
MAX_LIFE_US = 400 * 86_400_000_000
CLOCK_SKEW_US = 120_000_000


def check_payout(signed: SignedPayout, *, peer: PeerId | None = None) -> Payout:
    """What the record binds, its one or two signatures checked; `peer`: who must have signed it.

    Raises RemoteProtocolError where a signature is missing or wrong, or the peer key itself would be the account.
    """
    opened = open_record(Payout, signed.by_peer, signer=peer)
    record = opened.record
    if opened.signer != record.peer:
        raise RemoteProtocolError("Payout: not signed by its peer")
    if record.key == record.peer:
        raise RemoteProtocolError("Payout: the peer key is never a wallet: bind another account")
    if record.scheme == NO_ACCOUNT:
        if record.address or record.key is not None or signed.by_key is not None:
            raise RemoteProtocolError("Payout: takes the account back and names one")
        return record
    if not record.address:
        raise RemoteProtocolError("Payout: names no address")
    if (record.key is None) != (signed.by_key is None):
        raise RemoteProtocolError("Payout: the account's key and its signature go together")
    if signed.by_key is not None:
        by_key = open_record(Payout, signed.by_key)
        if by_key.signer != record.key or by_key.id != opened.id:
            raise RemoteProtocolError("Payout: the account's key has signed something else")
    if not 0 < record.expires_us - record.issued_us <= MAX_LIFE_US:
        raise RemoteProtocolError("Payout: holds for no time, or for more than 400 days")
    return record


def why_not(record: Payout, now_us: int) -> str:
    """Why nothing should be paid there now; empty where it may."""
    if record.scheme == NO_ACCOUNT:
        return "the peer has taken its payout account back"
    if problem := address_problem(record.scheme, record.address):
        return f"the peer bound what cannot be paid to: {problem}"
    if now_us >= record.expires_us:
        return "the payout account has expired: ask the peer for a new one"
    if record.issued_us > now_us + CLOCK_SKEW_US:
        return "the payout account is from the future: one of the clocks is wrong"
    return ""
