import pytest
from hypothesis import given
from hypothesis import strategies as st

from coppermesh.p2p.errors import LocalProtocolError, RemoteProtocolError
from coppermesh.p2p.framing import HEADER_BYTES, FrameDecoder, encode_frame


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=20), st.integers(1, 60))
def test_any_cut_gives_the_same_frames(payloads: list[bytes], step: int) -> None:
    stream = b"".join(encode_frame(payload) for payload in payloads)
    decoder = FrameDecoder(50)
    frames = []
    for start in range(0, len(stream), step):
        frames += decoder.feed(stream[start : start + step])
    decoder.finish()
    assert frames == payloads


def test_a_frame_of_the_limit_passes_and_one_byte_more_is_refused_at_its_header() -> None:
    assert FrameDecoder(8).feed(encode_frame(bytes(8))) == [bytes(8)]
    with pytest.raises(RemoteProtocolError, match="at most 8"):
        FrameDecoder(8).feed(encode_frame(bytes(9))[:HEADER_BYTES])


def test_after_an_error_nothing_is_believed() -> None:
    decoder = FrameDecoder(8)
    with pytest.raises(RemoteProtocolError, match="empty"):
        decoder.feed(bytes(4))
    assert decoder.buffered == 0
    with pytest.raises(RemoteProtocolError):
        decoder.feed(encode_frame(b"fine"))


def test_ending_inside_a_frame_is_an_error() -> None:
    decoder = FrameDecoder(8)
    decoder.feed(encode_frame(b"12345678")[:-1])
    assert decoder.buffered == HEADER_BYTES + 7
    with pytest.raises(RemoteProtocolError, match="ended"):
        decoder.finish()


def test_frames_that_cannot_be_sent() -> None:
    with pytest.raises(LocalProtocolError):
        encode_frame(b"")
    with pytest.raises(ValueError, match="limit"):
        FrameDecoder(0)
