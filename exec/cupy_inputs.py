"""Inputs on the device: what one lease uploads once and then finds there, and what a run may write over.

A lease often runs many tasks on the same weights. A file's bytes are named by device, inode, size and times, and the
cache keeps a descriptor of it open, so that the inode cannot become another file's while the name is in use. Only
files with a name in a directory are kept: the agent's store never changes one, while a memory file is made anew for
each task. What is kept is never written. What is not kept belongs to the run, and the interpreter may write over it
after its last use.

Room is what the lease has left beside the program at hand: kept inputs that it does not use give way, the longest
unused first. So keeping never makes a program fail that would run without.
"""

import os
import stat
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SMALLEST_KEPT = 64 * 1024
"""Bytes below which finding costs as much as sending."""
MOST_KEPT = 256

FileName = tuple[int, ...]


@dataclass
class _Kept:
    array: Any
    descriptor: int
    """Holds the file, so that its inode stays its own."""


class InputCache:
    """Device copies of a lease's input files. `close` gives everything back."""

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._kept: OrderedDict[tuple[FileName, str, tuple[int, ...]], _Kept] = OrderedDict()
        self.uploaded_bytes = 0
        """Copied to the device since the start."""

    @property
    def held_bytes(self) -> int:
        """Device memory of what is kept."""
        return sum(kept.array.nbytes for kept in self._kept.values())

    def place(
        self, inputs: Sequence[np.ndarray[Any, Any]], files: Sequence[int | None], spare_bytes: int
    ) -> tuple[list[Any], list[int]]:
        """The inputs on the device, and the numbers of those that belong to the run.

        `files[n]` is an open descriptor of the file that input n lies in, or None. `spare_bytes` is what the lease's
        memory has left over beside this program, its own inputs counted as the program's.
        """
        names = [
            _name(array, files[number] if number < len(files) else None)
            for number, array in enumerate(inputs)
        ]
        wanted = {name for name in names if name is not None}
        self._make_room(wanted, spare_bytes)
        arrays, given = [], []
        for number, (array, name) in enumerate(zip(inputs, names, strict=True)):
            kept = self._kept.get(name) if name is not None else None
            if kept is None:
                on_device = self._upload(array)
                if name is not None and len(self._kept) < MOST_KEPT:
                    descriptor = files[number]
                    assert descriptor is not None  # else it would have no name
                    self._kept[name] = _Kept(on_device, os.dup(descriptor))
                else:
                    given.append(number)
            else:
                self._kept.move_to_end(name)  # type: ignore[arg-type]  # what was found has a name
                on_device = kept.array
            arrays.append(on_device)
        return arrays, given

    def close(self) -> None:
        """Forget everything."""
        for name in list(self._kept):
            self._drop(name)

    def _upload(self, array: np.ndarray[Any, Any]) -> Any:
        self.uploaded_bytes += array.nbytes
        return self._cupy.array(array, order="C", copy=True)

    def _make_room(self, wanted: set[Any], spare_bytes: int) -> None:
        unused = [name for name in self._kept if name not in wanted]
        held = sum(self._kept[name].array.nbytes for name in unused)
        new = len([name for name in wanted if name not in self._kept])
        for name in unused:
            if held <= spare_bytes and len(self._kept) + new <= MOST_KEPT:
                return
            held -= self._kept[name].array.nbytes
            self._drop(name)

    def _drop(self, name: Any) -> None:
        os.close(self._kept.pop(name).descriptor)


def _name(
    array: np.ndarray[Any, Any], descriptor: int | None
) -> tuple[FileName, str, tuple[int, ...]] | None:
    """What names these bytes for as long as the file is held open, or None where nothing does."""
    if descriptor is None or array.nbytes < SMALLEST_KEPT:
        return None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink == 0:
        return None
    file = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return file, array.dtype.str, array.shape
