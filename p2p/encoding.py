"""Canonical MessagePack: the one way a record or message is written as bytes.

Theory of operation. Every structure is a fixed-order array of integers, bytes, text, booleans, nil and
further such arrays; there are no maps, floats or extension types, and integers, lengths and headers take
their shortest form. So a value has exactly one encoding, and `decode` accepts no other: it parses under
limits (the msgpack package), checks types, lengths and ranges (msgspec, strict), writes the result again and
compares. Whatever slips through a parser's leniency (a 64-bit five, an array32 header, an empty extension
read as a pair) fails that comparison.

The same checks run on the way out, because building a msgspec structure checks nothing: a value that the
other side would refuse is a bug here and raises `LocalProtocolError` before anything is signed or sent.
"""

from typing import Any, TypeVar, cast

import msgpack
import msgspec

from coppermesh.p2p.errors import LocalProtocolError, RemoteProtocolError

MAX_ITEMS = 1024
"""Most elements of any one array, where the caller does not say another number.

Bounds what a lying array header can make the parser allocate.
"""

T = TypeVar("T", bound=msgspec.Struct)

# Without this, msgspec would take base64 text where bytes are wanted.
_BYTES_AS_THEY_ARE = (bytes,)


def encode(value: msgspec.Struct) -> bytes:
    """The canonical bytes of `value`.

    Raises LocalProtocolError where a field breaks its type, length, range or pattern.
    """
    kind = type(value)
    try:
        plain = _plain(value)
        msgspec.convert(plain, kind, strict=True, builtin_types=_BYTES_AS_THEY_ARE)
        return _pack(plain)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        # msgspec.ValidationError and UnicodeEncodeError (a lone surrogate) are ValueErrors.
        raise LocalProtocolError(f"cannot encode {kind.__name__}: {error}") from error


def decode(kind: type[T], data: bytes, *, max_bytes: int, max_items: int = MAX_ITEMS) -> T:
    """The `kind` whose canonical encoding is `data`, at most `max_bytes` long, no array above `max_items`.

    Raises RemoteProtocolError, and nothing else, on any other bytes.
    """
    if len(data) > max_bytes:
        raise RemoteProtocolError(f"{kind.__name__}: {len(data)} bytes, at most {max_bytes} are allowed")
    try:
        value = msgspec.convert(_unpack(data, max_items), kind, strict=True, builtin_types=_BYTES_AS_THEY_ARE)
        again = _pack(_plain(value))
    except (TypeError, ValueError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise RemoteProtocolError(f"{kind.__name__}: {str(error) or type(error).__name__}") from error
    if again != data:
        raise RemoteProtocolError(f"{kind.__name__}: not the canonical encoding")
    return value


def _plain(value: msgspec.Struct) -> Any:
    return msgspec.to_builtins(value, builtin_types=_BYTES_AS_THEY_ARE)


def _pack(plain: Any) -> bytes:
    return cast("bytes", msgpack.packb(plain, use_bin_type=True, strict_types=True))


def _unpack(data: bytes, max_items: int) -> Any:
    # Nesting needs no scan of ours: msgpack keeps its own stack and stops at 1024 levels with a ValueError,
    # and converting goes no deeper than the type does. `data` bounds text and bytes; the caller has bounded
    # `data`.
    return msgpack.unpackb(
        data,
        raw=False,
        use_list=True,
        unicode_errors="strict",
        ext_hook=_refuse_extension,
        max_array_len=max_items,
        max_map_len=0,
        max_ext_len=0,
    )


def _refuse_extension(code: int, _data: bytes) -> object:
    raise ValueError(f"extension type {code} is not used here")
