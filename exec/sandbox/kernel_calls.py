"""System calls that neither Python nor `coppermesh.exec.linux` offers, resolved when imported, as there."""

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_mount = _libc.mount
_mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_umount2 = _libc.umount2
_umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_unshare = _libc.unshare
_unshare.argtypes = [ctypes.c_int]
_shmget = _libc.shmget
_shmget.argtypes = [ctypes.c_int, ctypes.c_size_t, ctypes.c_int]
_shmctl = _libc.shmctl
_shmctl.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_char_p]
_IPC_STAT = 2
_SIZE_AT = 48
"""Of `shm_segsz` in `struct shmid_ds`, after its permissions."""
_capset = _libc.capset
_capset.argtypes = [ctypes.c_char_p, ctypes.c_char_p]


def call(number: int, *arguments: int | bytes | None) -> int:
    """System call `number`. Bytes are passed by address. Raises OSError."""
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    return _checked(_syscall(ctypes.c_long(number), *words), f"system call {number}")


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """Linux' mount. Raises OSError."""
    words = [text.encode() if text is not None else None for text in (source, target, kind, options)]
    _checked(_mount(words[0], words[1], words[2], flags, words[3]), f"mount {target}")


def detach(target: str) -> None:
    """Unmount lazily (umount2 with MNT_DETACH). Raises OSError."""
    _checked(_umount2(target.encode(), 2), f"unmount {target}")


def unshare(flags: int) -> None:
    """Linux' unshare. Raises OSError."""
    _checked(_unshare(flags), f"unshare({flags:#x})")


def capset(header: bytes, sets: bytes) -> None:
    """Linux' capset. Raises OSError."""
    _checked(_capset(header, sets), "capset")


def make_shared_memory() -> int:
    """A new System V segment of one page for this user. Raises OSError."""
    return _checked(_shmget(0, 4096, 0o1600), "shmget")


def shared_memory_size(number: int) -> int:
    """The size in bytes of the segment with that number. Raises OSError where there is none to see."""
    room = ctypes.create_string_buffer(256)
    _checked(_shmctl(number, _IPC_STAT, room), "shmctl")
    return int.from_bytes(room.raw[_SIZE_AT : _SIZE_AT + 8], "little")


def remove_shared_memory(number: int) -> None:
    """Remove a segment. Raises OSError."""
    _checked(_shmctl(number, 0, None), "shmctl")


def _checked(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return int(result)
