"""Canonical MessagePack for programs: bytes in, checked structures out, and exactly one encoding of each.

The same discipline as the network side keeps, on its own because neither part imports the other: msgpack parses under
limits, msgspec converts and checks types, and what was decoded must encode to the very same bytes. Nothing here
executes, imports or allocates by what the bytes say beyond the stated limits.
"""

from typing import TypeVar

import msgpack
import msgspec

from coppermesh.exec.errors import ProgramInvalid

T = TypeVar("T")


def encode(value: object) -> bytes:
    """The canonical bytes of a msgspec structure; maps are written in key order."""
    plain = msgspec.to_builtins(value, builtin_types=(bytes,), order="deterministic")
    packed = msgpack.packb(plain, use_bin_type=True)
    assert isinstance(packed, bytes)  # not None: no buffer of our own was given
    return packed


def decode(kind: type[T], data: bytes, *, max_bytes: int, max_items: int) -> T:
    """Parse `data` as `kind`. `max_items` bounds every single array; msgpack's own stack bounds nesting (1024).

    Raises ProgramInvalid with code `program-too-large`, `program-malformed` or `program-not-canonical`.
    """
    if len(data) > max_bytes:
        raise ProgramInvalid(
            "program-too-large", f"the program has {len(data)} bytes, at most {max_bytes} are taken"
        )
    value = _convert(kind, _unpack(data, max_items))
    if encode(value) != data:
        raise ProgramInvalid("program-not-canonical", "the program is not in its one canonical encoding")
    return value


def _unpack(data: bytes, max_items: int) -> object:
    try:
        return msgpack.unpackb(
            data,
            raw=False,
            use_list=True,
            strict_map_key=True,
            ext_hook=_refuse_extension,
            max_array_len=max_items,
            max_map_len=32,
            max_ext_len=0,
        )
    except (ValueError, msgpack.UnpackException) as error:
        # msgpack reports every kind of bad input as one of these two (nesting too deep and bad UTF-8 are ValueErrors).
        raise ProgramInvalid(
            "program-malformed", f"the program is not MessagePack: {error or type(error).__name__}"
        ) from error


def _refuse_extension(code: int, _data: bytes) -> object:
    raise ValueError(f"extension type {code} is not part of the format")


def _convert(kind: type[T], plain: object) -> T:
    try:
        return msgspec.convert(plain, kind, strict=True)
    except (msgspec.ValidationError, RecursionError) as error:
        raise ProgramInvalid(
            "program-malformed", f"the program has a part of a wrong type: {error}"
        ) from error
