import pytest

from coppermesh.p2p.encoding import decode, encode
from coppermesh.p2p.errors import LocalProtocolError, RemoteProtocolError
from coppermesh.p2p.messages import (
    INLINE_BYTES,
    MAX_DETAIL_BYTES,
    MAX_FRAME_BYTES,
    AnnouncementReply,
    AnnouncementRequest,
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
    LeaseReply,
    LeaseRequest,
    Message,
    Nothing,
    OrderAbandoned,
    OrderReply,
    OrderRequest,
    PauseRequest,
    ResultAnswer,
    ResultReply,
    ResultRequest,
    ResultsReply,
    ResultsRequest,
    TaskReply,
    TaskRequest,
    TasksReply,
    TasksRequest,
)
from coppermesh.p2p.records import MAX_BODY_BYTES, SignedRecord

SIGNED = SignedRecord(body=b"body", signer=bytes(32), signature=bytes(64))
LARGEST = SignedRecord(body=bytes(MAX_BODY_BYTES), signer=bytes(32), signature=bytes(64))
INFO = BlobInfo(root=bytes(32), size=5)
BLOB = InlineBlob(root=bytes(32), data=b"12345")

EXAMPLES: list[Message] = [
    Nothing(),
    Hello(mesh=bytes(16), peer=bytes(32), software="coppermesh 0.1.0", time_us=1),
    AnnouncementRequest(known=b"", want=0),
    AnnouncementRequest(known=bytes(16), want=64),
    AnnouncementReply(announcement=None, others=[]),
    AnnouncementReply(announcement=SIGNED, others=[SIGNED]),
    OrderRequest(order=SIGNED),
    OrderReply(bid=SIGNED, decline=None),
    OrderReply(bid=None, decline=SIGNED),
    LeaseRequest(lease=SIGNED),
    LeaseReply(lease=SIGNED, decline=None),
    INFO,
    BLOB,
    TaskRequest(task=SIGNED, blobs=[INFO, INFO], inline=[BLOB]),
    TaskReply(state="accepted", need=[], code="ok", sentence=""),
    ResultRequest(
        receipt=SIGNED, outputs=[INFO], inline=[BLOB], sentence="", detail="kernel.cu(3): error \u00e9\n"
    ),
    ResultReply(countersignature=SIGNED),
    ChallengeRequest(receipt=bytes(32), blobs=[INFO], inline=[BLOB]),
    ChallengeReply(state="recorded", need=[], retry_us=0, trace=SIGNED, chain=bytes(64), sentence=""),
    ChallengeReply(state="busy", need=[], retry_us=5, trace=None, chain=None, sentence="later"),
    CancelRequest(
        lease=bytes(32), task=7, code="superseded", sentence="another provider was faster", decline=None
    ),
    DialBackRequest(port=4001),
    DialBackReply(state="reached", seen_at="/ip4/192.0.2.1/tcp/4001"),
    OrderAbandoned(order=bytes(32), job=bytes(16)),
    ExtendRequest(extension=SIGNED),
    ExtendReply(extension=SIGNED, decline=None),
    ExtendReply(extension=None, decline=SIGNED),
    PauseRequest(
        lease=bytes(32), paused=True, code="unpaid", sentence="three receipts are not countersigned"
    ),
    TasksRequest(tasks=[TaskRequest(task=SIGNED, blobs=[INFO], inline=[BLOB])] * 2),
    TasksReply(replies=[TaskReply(state="need", need=[bytes(32)], code="ok", sentence="")] * 2),
    ResultsRequest(
        results=[ResultRequest(receipt=SIGNED, outputs=[INFO], inline=[BLOB], sentence="", detail="")]
    ),
    ResultAnswer(countersignature=SIGNED, code="ok", sentence=""),
    ResultsReply(answers=[ResultAnswer(countersignature=None, code="gap", sentence="number 3 is missing")]),
]


def test_every_message_has_an_example() -> None:
    here = {kind for kind in Message.__subclasses__() if kind.__module__ == Message.__module__}
    assert {type(example) for example in EXAMPLES} == here


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_message_round_trips(message: Message) -> None:
    data = encode(message)
    assert decode(type(message), data, max_bytes=MAX_FRAME_BYTES) == message


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_message_is_refused_one_byte_over_its_limit(message: Message) -> None:
    data = encode(message)
    with pytest.raises(RemoteProtocolError, match="at most"):
        decode(type(message), data, max_bytes=len(data) - 1)


def test_largest_messages_fit_a_frame() -> None:
    infos = [INFO] * 129
    small = [InlineBlob(root=bytes(32), data=bytes(INLINE_BYTES // 129))] * 129
    task = TaskRequest(task=LARGEST, blobs=infos, inline=small)
    detail = "\u20ac" * MAX_DETAIL_BYTES
    one = InlineBlob(root=bytes(32), data=bytes(INLINE_BYTES))
    result = ResultRequest(
        receipt=LARGEST, outputs=infos[:64], inline=[one], sentence="s" * 400, detail=detail
    )
    frame_overhead = 64
    assert len(encode(task)) < MAX_FRAME_BYTES - frame_overhead
    assert len(encode(result)) < MAX_FRAME_BYTES - frame_overhead


def test_a_list_too_long_is_not_even_sent() -> None:
    with pytest.raises(LocalProtocolError, match="length <= 129"):
        encode(TaskReply(state="need", need=[bytes(32)] * 130, code="need", sentence=""))
