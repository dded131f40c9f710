"""`coppermesh statement show`, `payout show`, `reputation`: read from the ledger's file, with or without an agent."""

import json
from pathlib import Path
from typing import Any

from coppermesh.agent.clock import now_us
from coppermesh.agent.config import load_config
from coppermesh.agent.home import Home
from coppermesh.agent.ledger_commands import one_ledger
from coppermesh.agent.ledger_reader import NotInLedger, read_ledger
from coppermesh.agent.ledger_settling import SettlingTables
from coppermesh.agent.proof_commands import read_statement
from coppermesh.agent.reputation import DEFAULT_INTERVAL, score
from coppermesh.agent.settlement import state_of
from coppermesh.agent.settlement_views import payout_facts, reputation_facts, statement_facts
from coppermesh.p2p.envelope import open_verified
from coppermesh.p2p.errors import IdentityError, LocalProtocolError
from coppermesh.p2p.ids import PeerId, parse_peer
from coppermesh.p2p.settlement_records import SignedStatement, Statement
from coppermesh.p2p.signing import PeerKey

MAX_KEY_FILE_BYTES = 4096
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def statements(home: Home, prefix: str | None = None) -> list[dict[str, Any]]:
    """Every statement of the home's mesh, or the one whose id begins so. Raises NotInLedger."""
    with read_ledger(one_ledger(home, None).path) as reader:
        me = reader.me

        def facts(signed: SignedStatement, tables: SettlingTables) -> dict[str, Any]:
            name = open_verified(Statement, signed.proposed).id
            return statement_facts(signed, me, state_of(tables, name, me))

        if prefix is not None:
            named = read_statement(reader, prefix)
            return [reader.look(lambda tables: facts(named, tables))]
        return reader.look(lambda tables: [facts(signed, tables) for signed in tables.statements()])


def own_payout(home: Home) -> dict[str, Any]:
    """Where this home's agent is paid. Raises NotInLedger where nothing is bound."""
    with read_ledger(one_ledger(home, None).path) as reader:
        me = reader.me
        found = reader.look(lambda tables: tables.newest_payout(me))
    if found is None:
        raise NotInLedger("no payout account is bound: `coppermesh payout bind` binds one")
    return payout_facts(found, now_us())


def reputations(home: Home, peer: str | None, unit: str | None) -> list[dict[str, Any]]:
    """What one peer's history is worth, or that of all that were dealt with, best first."""
    asked = unit or load_config(home).unit
    at_us = now_us()
    with read_ledger(one_ledger(home, None).path) as reader:
        peers = (
            [parse_peer(peer)] if peer is not None else [known for known, of in reader.peers() if of == asked]
        )
        rows = []
        for known in peers:
            facts = reader.reputation_facts(known, asked, at_us, DEFAULT_INTERVAL)
            rows.append(reputation_facts(known, score(known, facts), DEFAULT_INTERVAL, asked))
    return sorted(rows, key=lambda row: -int(row["score"]))


def read_account_key(path: Path, scheme: str) -> tuple[PeerKey, str]:
    """An account's Ed25519 key and its address: one of our key files, or a Solana keypair. Raises IdentityError."""
    try:
        if path.stat().st_mode & 0o077:
            raise IdentityError(f"{path} can be read by others: run `chmod 600 {path}`")
        text = path.read_text()[:MAX_KEY_FILE_BYTES]
    except (OSError, UnicodeDecodeError) as error:
        raise IdentityError(f"{path}: {error}") from error
    key = _solana_key(path, text) if text.lstrip().startswith("[") else PeerKey.load(path)
    return key, base58(key.peer) if scheme == "solana" else key.peer.hex()


def _solana_key(path: Path, text: str) -> PeerKey:
    """64 numbers: the seed and the public key."""
    try:
        numbers = bytes(json.loads(text))
        key = PeerKey(numbers[:32])
    except (ValueError, TypeError, RecursionError, LocalProtocolError) as error:
        raise IdentityError(f"{path} holds no Solana keypair (64 numbers)") from error
    if len(numbers) != 64 or numbers[32:] != key.peer:
        raise IdentityError(f"{path}: the public half is not that of the secret one")
    return key


def base58(key: PeerId) -> str:
    """A key as Solana writes it."""
    number = int.from_bytes(key, "big")
    digits = []
    while number:
        number, digit = divmod(number, 58)
        digits.append(_BASE58[digit])
    zeros = len(key) - len(key.lstrip(b"\0"))
    return "1" * zeros + "".join(reversed(digits))
