"""What an agent does about its ledger beyond single tasks: comparing, stating, settling, payout accounts, scores.

Joins the parts that do it, answers other agents' questions (`handlers`) and the command line's (`methods`).
"""

import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from coppermesh.agent.ledger import LedgerConflict, LedgerError
from coppermesh.agent.ledger_compare import LaneAnswers
from coppermesh.agent.ledger_store import LedgerStore
from coppermesh.agent.local_api import Method
from coppermesh.agent.local_messages import JsonBody, LocalMessage
from coppermesh.agent.payout_addresses import address_problem
from coppermesh.agent.payouts import MAX_LIFE_US, NO_ACCOUNT, check_payout
from coppermesh.agent.reputation import Dealings, score
from coppermesh.agent.settlement import LedgerSettlement
from coppermesh.agent.settlement_views import comparison_facts, payout_facts, statement_facts
from coppermesh.agent.settling import PayoutKept, ScoreKept
from coppermesh.agent.statement_desk import StatementDesk
from coppermesh.p2p.control import ControlHub, Handler
from coppermesh.p2p.encoding import decode, encode
from coppermesh.p2p.envelope import open_record, sign_record
from coppermesh.p2p.errors import Refused, RemoteProtocolError, Unreachable
from coppermesh.p2p.ids import Digest, MeshId, PeerId, format_peer, parse_peer, short_peer
from coppermesh.p2p.ledger_messages import (
    MAX_SCORES,
    LaneEntryRequest,
    LaneListRequest,
    LanePartRequest,
    LastStatement,
    PaymentRequest,
    PayoutReply,
    ScoresReply,
    StatementRequest,
    VoucherRequest,
)
from coppermesh.p2p.messages import Nothing
from coppermesh.p2p.proof_files import decode_statement_file, encode_statement_file
from coppermesh.p2p.records import SignedRecord
from coppermesh.p2p.settlement_records import Payout, Score, SignedPayout
from coppermesh.p2p.signing import PeerKey

SCORE_LIFE_US = 7 * 86_400_000_000
SCORES_FRESH_US = 600_000_000
"""For so long the same scores are given out."""

_log = logging.getLogger(__name__)


class LedgerDesk:
    """The ledger's dealings with other agents, for one mesh."""

    def __init__(
        self,
        key: PeerKey,
        mesh: MeshId,
        hub: Callable[[], ControlHub],
        ledger: LedgerStore,
        *,
        unit: str,
        now_us: Callable[[], int],
    ) -> None:
        """`unit`: what scores are computed in."""
        self._key = key
        self._mesh = mesh
        self._hub = hub
        self._ledger = ledger
        self._unit = unit
        self._now_us = now_us
        self.lanes = LaneAnswers(hub, ledger, now_us=now_us)
        self.settlement = LedgerSettlement(key, mesh, ledger, now_us=now_us)
        self.statements = StatementDesk(key, mesh, hub, ledger, self.lanes, self.settlement, now_us=now_us)
        self._given: tuple[int, list[SignedRecord]] | None = None
        """When scores were last signed, and they."""
        self._payout: Payout | None = None
        """An account that waits for the signature of its own key."""

    def handlers(self) -> dict[str, Handler]:
        """What other agents may ask."""
        statements = self.statements
        return {
            "lane-list": (LaneListRequest, self.lanes.on_list),
            "lane-part": (LanePartRequest, self.lanes.on_part),
            "lane-entry": (LaneEntryRequest, self.lanes.on_entry),
            "statement": (StatementRequest, statements.on_statement),
            "statement-last": (LastStatement, statements.on_last),
            "voucher": (VoucherRequest, statements.on_voucher),
            "payment": (PaymentRequest, statements.on_payment),
            "payout": (Nothing, self._on_payout),
            "scores": (Nothing, self._on_scores),
        }

    def methods(self) -> Mapping[str, Method]:
        """What the command line may ask."""
        answers: dict[str, Callable[[dict[str, Any]], Awaitable[Any]]] = {
            "ledger-compare": self._compare,
            "statement-propose": self._propose,
            "statement-sign": self._sign,
            "statement-settle": self._settle,
            "payout-bind": self._bind,
            "payout-ask": self._ask_payout,
        }
        return {name: partial(_answer, answer) for name, answer in answers.items()}

    async def history(self, peer: PeerId, unit: str) -> Dealings:
        """What the ledger says of dealings with a peer. Raises LedgerError."""
        return await self._ledger.dealings(peer, unit, self._now_us())

    async def peer_up(self, peer: PeerId) -> None:
        """A connection came up: keep what that peer thinks of others, where its word weighs anything here."""
        try:
            dealings = await self.history(peer, self._unit)
            if dealings.proofs or not dealings.settled + dealings.countersigned:
                return
            reply = await self._hub().request(peer, "scores", Nothing(), ScoresReply)
            await self._keep_scores(peer, reply.scores)
        except (Refused, Unreachable) as error:
            _log.debug("scores of %s: %s", short_peer(peer), error)
        except (RemoteProtocolError, LedgerError) as error:
            _log.warning("scores of %s: %s", short_peer(peer), error)

    async def _keep_scores(self, rater: PeerId, scores: list[SignedRecord]) -> None:
        now_us = self._now_us()
        opened = [open_record(Score, signed, signer=rater) for signed in scores]
        kept = [
            ScoreKept(found.signed)
            for found in opened
            if found.record.mesh == self._mesh
            and found.record.subject not in (rater, self._key.peer)
            and found.record.issued_us <= now_us + 120_000_000
            and now_us < found.record.expires_us <= found.record.issued_us + SCORE_LIFE_US
        ]
        if kept:
            await self._ledger.commit(*kept)

    async def _on_scores(self, peer: PeerId, request: Nothing) -> ScoresReply:
        """What this agent thinks of those it dealt with, signed; about the asking peer too."""
        now_us = self._now_us()
        if self._given is None or not 0 <= now_us - self._given[0] < SCORES_FRESH_US:
            self._given = (now_us, await self._sign_scores(now_us))
        return ScoresReply(self._given[1])

    async def _sign_scores(self, now_us: int) -> list[SignedRecord]:
        """About those that most was done with."""
        known = await self._ledger.all_dealings(self._unit, now_us)
        known.sort(key=lambda pair: _volume(pair[1].dealings), reverse=True)
        signed = []
        for peer, facts in known[:MAX_SCORES]:
            tasks = facts.dealings.tasks_ok + facts.dealings.tasks_failed + facts.dealings.disputes
            if not tasks and not facts.dealings.proofs:
                continue
            # Only what was seen here: passing others' opinions on would count them twice.
            own = score(peer, facts)
            made = Score(
                1, self._mesh, self._key.peer, peer, own.score, tasks, now_us, now_us + SCORE_LIFE_US
            )
            signed.append(sign_record(self._key, made))
        return signed

    async def _on_payout(self, peer: PeerId, request: Nothing) -> PayoutReply:
        return PayoutReply(await self._ledger.look(lambda tables: tables.newest_payout(self._key.peer)))

    # The command line

    async def _compare(self, arguments: dict[str, Any]) -> dict[str, Any]:
        peer = _peer(arguments)
        return comparison_facts(peer, await self.lanes.compare(peer))

    async def _propose(self, arguments: dict[str, Any]) -> dict[str, Any]:
        peer, unit = _peer(arguments), _text(arguments, "unit")
        if arguments.get("file") is True:
            signed = await self.statements.draft_for_file(peer, unit)
        else:
            signed = await self.statements.propose(peer, unit)
        return {**statement_facts(signed, self._key.peer), "file": encode_statement_file(signed).hex()}

    async def _sign(self, arguments: dict[str, Any]) -> dict[str, Any]:
        try:
            data = bytes.fromhex(_text(arguments, "file"))
        except ValueError:
            raise Refused("bad-argument", "file: want hexadecimal digits") from None
        try:
            signed = await self.statements.sign_file(decode_statement_file(data))
        except RemoteProtocolError as error:
            raise Refused("bad-file", f"the file holds no statement of this version: {error}") from error
        return {**statement_facts(signed, self._key.peer), "file": encode_statement_file(signed).hex()}

    async def _settle(self, arguments: dict[str, Any]) -> dict[str, Any]:
        name = bytes.fromhex(_text(arguments, "statement"))
        payment, undelivered = await self.statements.settle(Digest(name), arguments.get("reference") or "")
        return {"statement": name.hex(), "payment": payment.body.hex(), "undelivered": undelivered}

    async def _bind(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Two steps where the account has a key: what it is to sign goes out first, its signature comes second."""
        signature = arguments.get("signature")
        if signature is not None:
            waiting = self._payout
            if waiting is None or waiting.key is None:
                raise Refused("bad-argument", "no payout account waits for a signature: begin again")
            by_key = SignedRecord(encode(waiting), waiting.key, bytes.fromhex(str(signature)))
            return await self._keep_payout(SignedPayout(sign_record(self._key, waiting), by_key))
        payout = await self._new_payout(arguments)
        if payout.key is not None:
            self._payout = payout
            return {"sign": encode(payout).hex()}
        return await self._keep_payout(SignedPayout(sign_record(self._key, payout), None))

    async def _new_payout(self, arguments: dict[str, Any]) -> Payout:
        scheme, key = _text(arguments, "scheme"), arguments.get("key")
        days = arguments.get("days", 365)
        if not isinstance(days, int) or not 0 < days * 86_400_000_000 <= MAX_LIFE_US:
            raise Refused("bad-argument", f"days: want a number from 1 to {MAX_LIFE_US // 86_400_000_000}")
        if scheme != NO_ACCOUNT and (problem := address_problem(scheme, _text(arguments, "address"))):
            raise Refused("bad-argument", problem)
        known = await self._ledger.look(lambda tables: tables.newest_payout(self._key.peer))
        sequence = 0 if known is None else decode_payout(known).sequence + 1
        now_us = self._now_us()
        return Payout(
            version=1,
            mesh=self._mesh,
            peer=self._key.peer,
            sequence=sequence,
            scheme=scheme,
            address="" if scheme == NO_ACCOUNT else _text(arguments, "address"),
            key=None if key is None else bytes.fromhex(str(key)),
            issued_us=now_us,
            expires_us=now_us + days * 86_400_000_000,
        )

    async def _keep_payout(self, signed: SignedPayout) -> dict[str, Any]:
        try:
            check_payout(signed, peer=self._key.peer)
            await self._ledger.commit(PayoutKept(signed))
        except RemoteProtocolError as error:
            raise Refused("bad-argument", str(error)) from error
        except LedgerConflict as conflict:
            raise Refused(conflict.code, str(conflict)) from conflict
        self._payout = None
        return payout_facts(signed, self._now_us())

    async def _ask_payout(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """A peer's account: asked for now, and kept."""
        peer = _peer(arguments)
        reply = await self._hub().request(peer, "payout", Nothing(), PayoutReply)
        if reply.payout is None:
            raise Refused("no-account", f"{format_peer(peer)} has bound no payout account")
        check_payout(reply.payout, peer=peer)
        try:
            await self._ledger.commit(PayoutKept(reply.payout))
        except LedgerConflict as conflict:
            raise Refused(conflict.code, str(conflict)) from conflict
        return payout_facts(reply.payout, self._now_us())


def _volume(dealings: Dealings) -> int:
    return dealings.settled + dealings.countersigned


def decode_payout(signed: SignedPayout) -> Payout:
    """The record of a payout account that was checked before."""
    return decode(Payout, signed.by_peer.body, max_bytes=Payout.MAX_BYTES)


async def _answer(method: Callable[[dict[str, Any]], Awaitable[Any]], body: bytes) -> LocalMessage:
    try:
        arguments = json.loads(decode(JsonBody, body, max_bytes=1 << 20).text)
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise Refused("bad-argument", "want a JSON object")
    try:
        return JsonBody(json.dumps(await method(arguments)))
    except RemoteProtocolError as error:
        raise Refused("protocol-error", f"the other side answered wrongly: {error}") from error
    except ValueError as error:
        raise Refused("bad-argument", str(error)) from error


def _text(arguments: Mapping[str, Any], name: str) -> str:
    value = arguments.get(name)
    if not isinstance(value, str) or not value:
        raise Refused("bad-argument", f"{name}: want text")
    return value


def _peer(arguments: Mapping[str, Any]) -> PeerId:
    return parse_peer(_text(arguments, "peer"))
