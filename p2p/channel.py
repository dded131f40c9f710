"""One control stream to one peer: requests in both directions, pipelined by id.

Theory of operation. A frame is (kind, id, method, body). Each side numbers its own requests upwards from 1; a reply or
refusal carries the id of the request it answers, and answers come in any order. Three things run per channel: a
reader, a writer, and a task per request being handled.

- *Batching.* `_queue` only appends. The writer sends everything that was appended in this tick and while it was
  sending before as one piece: under load many frames share one encrypted record and one system call, without a timer.
- *Liveness.* `health` says when to ping. A ping takes no request slot on either side, and whatever arrives answers it.
- *Bounds.* At most `MAX_REQUESTS` of our requests are unanswered (more wait their turn). At most `MAX_REQUESTS` of
  theirs, or `MAX_HANDLING_BYTES`, are being handled; then reading stops until one is done. A peer that keeps to the
  first limit never meets the second, so reading cannot stop while handlers wait for replies on the same channel. The
  outgoing queue is bounded in bytes, and a peer that takes nothing for `SEND_SECONDS` has lost the channel.
- *Blame.* What a peer's own code cannot send ends the channel (`RemoteProtocolError`): unknown kinds, ids that go
  back, replies to questions never asked, bodies that do not decode. A reply to a request that we gave up on is
  ordinary: it is counted and ignored.
"""

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, TypeVar

import msgspec
import trio
from msgspec import Meta

from coppermesh.p2p.encoding import decode, encode
from coppermesh.p2p.errors import LocalProtocolError, Refused, RemoteProtocolError, Unreachable
from coppermesh.p2p.framing import FrameDecoder, encode_frame
from coppermesh.p2p.health import MAX_MISSED, Liveness, Step
from coppermesh.p2p.ids import PeerId, short_peer
from coppermesh.p2p.messages import MAX_FRAME_BYTES, Message, Nothing
from coppermesh.p2p.places import take_place
from coppermesh.p2p.records import Code, Count, Sentence
from coppermesh.p2p.transport import Stream

REQUEST, REPLY, REFUSAL = 0, 1, 2

MAX_REQUESTS = 64
MAX_HANDLING_BYTES = 16 << 20
MAX_QUEUED_BYTES = 4 << 20
SEND_SECONDS = 30.0
LAST_WORD_SECONDS = 1.0
HANDLER_SECONDS = 600.0
"""Longest a handler may take: a result with large outputs is answered once they are here."""
_SEND_PIECE_BYTES = 256 * 1024
_READ_BYTES = 256 * 1024

_NOTHING = encode(Nothing())

_log = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)
Handler = tuple[type[Any], Callable[[PeerId, Any], Awaitable[Message]]]
"""(request type, called with the proven peer and the request). The reply goes back; `Refused` as a refusal."""


class Frame(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a control frame holds, canonically encoded behind its length."""

    kind: Annotated[int, Meta(ge=0, le=2)]
    """0 request, 1 reply, 2 refusal."""
    id: Count
    method: Annotated[str, Meta(max_length=32, pattern=r"^[a-z0-9-]*\Z")]
    """Empty in replies and refusals."""
    body: Annotated[bytes, Meta(max_length=MAX_FRAME_BYTES)]


class Refusal(Message, frozen=True):
    """The body of a refusal."""

    code: Code
    sentence: Sentence


@dataclass(slots=True)
class ChannelCounts:
    """Running totals of one channel, or of all of a hub's."""

    requests: int = 0
    handled: int = 0
    refused: int = 0
    late_replies: int = 0
    faults: int = 0
    """Channels that ended because the other side broke the protocol."""
    handler_errors: int = 0
    batches: int = 0
    """Pieces handed to the network; `requests` over this says how well frames share them."""


@dataclass(slots=True)
class _Waiting:
    """A request of ours without an answer yet."""

    done: trio.Event = field(default_factory=trio.Event)
    answer: Frame | None = None


def frame_bytes(frame: Frame) -> bytes:
    """The frame as it travels. Raises LocalProtocolError where it is too large."""
    payload = encode(frame)
    if len(payload) > MAX_FRAME_BYTES:
        raise LocalProtocolError(
            f"control frame {frame.method!r}: {len(payload)} bytes, at most {MAX_FRAME_BYTES}"
        )
    return encode_frame(payload)


def refusal_frame(request_id: int, code: str, sentence: str) -> Frame:
    """A refusal with this sentence, cleaned."""
    return Frame(REFUSAL, request_id, "", encode(Refusal(code, clean_sentence(sentence))))


def clean_sentence(text: str) -> str:
    """`text` as a sentence of the wire: what it may not contain is replaced, so that saying no never fails."""
    return "".join(letter if " " <= letter <= "~" else "?" for letter in text[:400])


class Channel:
    """An open control stream after its hello. `run` drives it; `request` may be called while it runs.

    `early`: frames that came in one piece with the hello. Handlers are cancelled when the channel ends.
    """

    def __init__(
        self,
        stream: Stream,
        handlers: Mapping[str, Handler],
        counts: ChannelCounts,
        decoder: FrameDecoder,
        early: list[bytes],
    ) -> None:
        self.peer = stream.peer
        self.unresponsive = False
        """True once the peer was given up for silence: the connection below is of no use either."""
        self._counts = counts
        self._stream = stream
        self._handlers = handlers
        self._decoder = decoder
        self._early = early
        self._waiting: dict[int, _Waiting] = {}
        self._last_sent_id = 0
        self._last_seen_id = 0
        self._pings: deque[int] = deque(maxlen=2 * MAX_MISSED)
        self._slots = trio.Semaphore(MAX_REQUESTS)
        self._handling = 0
        self._handling_bytes = 0
        self._handler_done = trio.Event()
        self._reading_paused = False
        self._outgoing: deque[bytes] = deque()
        self._outgoing_bytes = 0
        self._sending = False
        self._queued = trio.Event()
        self._drained = trio.Event()
        self._liveness = Liveness(trio.current_time())
        self._ended: str | None = None
        self._fault: RemoteProtocolError | None = None
        self._scope = trio.CancelScope()

    @property
    def ended(self) -> bool:
        """Whether requests are of no use any more."""
        return self._ended is not None

    async def run(self) -> str:
        """Serve until the stream ends or `close`; returns why. Raises RemoteProtocolError on the peer's fault."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._guarded, self._write)
                    nursery.start_soon(self._guarded, self._watch)
                    await self._guarded(partial(self._read, nursery))
                    self.close("the other side closed the control channel")
        finally:
            self.close("the agent is stopping")
        if self._fault is not None:
            self._counts.faults += 1
            raise self._fault
        return self._ended or "closed"

    def close(self, reason: str) -> None:
        """End the channel; requests in flight raise Unreachable. Only the first reason counts."""
        if self._ended is None:
            self._ended = reason
            self._scope.cancel()
            for waiting in self._waiting.values():
                waiting.done.set()
            self._drained.set()

    async def request(self, method: str, body: Message, reply: type[M]) -> M:
        """Ask and wait, without a deadline of its own. Raises Unreachable, Refused, RemoteProtocolError."""
        data = encode(body)
        await take_place(self._slots)
        self._last_sent_id += 1
        request_id = self._last_sent_id
        waiting = self._waiting[request_id] = _Waiting()
        try:
            await self._queue(frame_bytes(Frame(REQUEST, request_id, method, data)))
            await waiting.done.wait()
        finally:
            del self._waiting[request_id]
            self._slots.release()
        if waiting.answer is None:
            raise Unreachable(f"{short_peer(self.peer)}: {self._ended}")
        self._counts.requests += 1
        return self._open_answer(waiting.answer, reply)

    def _open_answer(self, answer: Frame, reply: type[M]) -> M:
        try:
            if answer.kind == REPLY:
                return decode(reply, answer.body, max_bytes=MAX_FRAME_BYTES)
            refusal = decode(Refusal, answer.body, max_bytes=MAX_FRAME_BYTES)
        except RemoteProtocolError as error:
            self._blame(error)
            raise
        raise Refused(refusal.code, refusal.sentence)

    async def _guarded(self, part: Callable[[], Awaitable[None]]) -> None:
        """Run one part of the channel; what it says of the peer or the network ends the channel, not the agent."""
        try:
            await part()
        except RemoteProtocolError as error:
            self._blame(error)
        except Unreachable as error:
            self.close(str(error))

    def _blame(self, error: RemoteProtocolError) -> None:
        self._fault = self._fault or error
        self.close(f"it broke the protocol: {error}")

    # Sending

    async def _queue(self, data: bytes) -> None:
        """Hand a frame to the writer, waiting while too much is queued. Raises Unreachable."""
        while self._outgoing_bytes >= MAX_QUEUED_BYTES and self._ended is None:
            await self._drained.wait()
        if self._ended is not None:
            raise Unreachable(f"{short_peer(self.peer)}: {self._ended}")
        self._outgoing.append(data)
        self._outgoing_bytes += len(data)
        self._queued.set()

    def _take_batch(self) -> bytes:
        """The next piece to send: whole frames, up to about `_SEND_PIECE_BYTES`."""
        batch = [self._outgoing.popleft()]
        size = len(batch[0])
        while self._outgoing and size + len(self._outgoing[0]) <= _SEND_PIECE_BYTES:
            batch.append(self._outgoing.popleft())
            size += len(batch[-1])
        self._outgoing_bytes -= size
        return b"".join(batch)

    async def _write(self) -> None:
        while True:
            if not self._outgoing:
                self._queued = trio.Event()
                await self._queued.wait()
                # Let the other tasks of this tick queue theirs too.
                await trio.lowlevel.checkpoint()
            self._sending = True
            batch = self._take_batch()
            self._wake_drained()
            self._counts.batches += 1
            with trio.move_on_after(SEND_SECONDS) as scope:
                await self._stream.send_all(batch)
            if scope.cancelled_caught:
                self.unresponsive = True
                raise Unreachable(f"it took nothing for {SEND_SECONDS:g} s")
            self._sending = False
            self._wake_drained()

    def _wake_drained(self) -> None:
        self._drained.set()
        self._drained = trio.Event()

    # Receiving

    async def _read(self, nursery: trio.Nursery) -> None:
        payloads, self._early = self._early, []
        while True:
            for payload in payloads:
                await self._frame_arrives(decode(Frame, payload, max_bytes=MAX_FRAME_BYTES), nursery)
            data = await self._stream.receive_some(_READ_BYTES)
            if not data:
                self._decoder.finish()
                return
            self._liveness.heard(trio.current_time())
            payloads = self._decoder.feed(data)

    async def _frame_arrives(self, frame: Frame, nursery: trio.Nursery) -> None:
        if frame.kind != REQUEST:
            self._answer_arrives(frame)
            return
        if frame.id <= self._last_seen_id:
            raise RemoteProtocolError(f"request id {frame.id} after {self._last_seen_id}: ids must rise")
        self._last_seen_id = frame.id
        if frame.method == "ping":
            decode(Nothing, frame.body, max_bytes=MAX_FRAME_BYTES)
            await self._queue(frame_bytes(Frame(REPLY, frame.id, "", frame.body)))
            return
        await self._wait_for_room()
        self._handling += 1
        self._handling_bytes += len(frame.body)
        nursery.start_soon(self._guarded, partial(self._handle, frame))

    def _answer_arrives(self, frame: Frame) -> None:
        if frame.method:
            raise RemoteProtocolError(f"an answer that names a method: {frame.method!r}")
        waiting = self._waiting.get(frame.id)
        if waiting is not None and waiting.answer is None:
            waiting.answer = frame
            waiting.done.set()
        elif frame.id in self._pings:
            self._pings.remove(frame.id)
        elif 0 < frame.id <= self._last_sent_id:
            self._counts.late_replies += 1
        else:
            raise RemoteProtocolError(f"an answer to request {frame.id}, which was never sent")

    async def _wait_for_room(self) -> None:
        """Stop reading while too much is being handled. Silence is ours then, and not held against the peer."""
        self._reading_paused = True
        while self._handling >= MAX_REQUESTS or self._handling_bytes >= MAX_HANDLING_BYTES:
            await self._handler_done.wait()
        self._reading_paused = False

    async def _handle(self, frame: Frame) -> None:
        try:
            await self._queue(await self._answer(frame))
        finally:
            self._handling -= 1
            self._handling_bytes -= len(frame.body)
            self._handler_done.set()
            self._handler_done = trio.Event()

    async def _answer(self, frame: Frame) -> bytes:
        """The handler's answer as a frame. Raises RemoteProtocolError, after a last word, on the peer's fault."""
        handler = self._handlers.get(frame.method)
        if handler is None:
            return self._refuse(frame, "unknown-method", f"method {frame.method!r} is not known here")
        kind, call = handler
        try:
            with trio.fail_after(HANDLER_SECONDS):
                reply = await call(self.peer, decode(kind, frame.body, max_bytes=MAX_FRAME_BYTES))
            answer = frame_bytes(Frame(REPLY, frame.id, "", encode(reply)))
        except Refused as refused:
            return self._refuse(frame, refused.code, refused.sentence)
        except RemoteProtocolError as error:
            await self._last_word(self._refuse(frame, "protocol-error", str(error)))
            raise
        except trio.TooSlowError:
            return self._refuse(
                frame, "timeout", f"{frame.method} took longer than {HANDLER_SECONDS:g} s there"
            )
        except Exception as error:  # noqa: BLE001
            # A bug in one handler must not end the channel, nor show the other side more than that it happened.
            self._counts.handler_errors += 1
            _log.error("%s from %s failed", frame.method, short_peer(self.peer), exc_info=error)
            return self._refuse(frame, "internal", f"{frame.method} failed there; its log says why")
        self._counts.handled += 1
        return answer

    def _refuse(self, frame: Frame, code: str, sentence: str) -> bytes:
        self._counts.refused += 1
        return frame_bytes(refusal_frame(frame.id, code, sentence))

    async def _last_word(self, data: bytes) -> None:
        """Queue a frame and give the writer a moment to send it before the channel ends."""
        await self._queue(data)
        with trio.move_on_after(LAST_WORD_SECONDS):
            while self._outgoing or self._sending:
                await self._drained.wait()

    # Liveness

    async def _watch(self) -> None:
        while True:
            await trio.sleep_until(self._liveness.next_poll())
            now = trio.current_time()
            if self._reading_paused:
                self._liveness.heard(now)
            step = self._liveness.poll(now)
            if step is Step.DEAD:
                self.unresponsive = True
                raise Unreachable(f"it answered none of {MAX_MISSED} pings")
            if step is Step.PING:
                self._last_sent_id += 1
                self._pings.append(self._last_sent_id)
                # Never waits for room: a queue that stays full is what the pings are to find out.
                self._outgoing.append(frame_bytes(Frame(REQUEST, self._last_sent_id, "ping", _NOTHING)))
                self._outgoing_bytes += len(self._outgoing[-1])
                self._queued.set()
