"""The last so many things: what a bounded memory remembers, the oldest forgotten first. Pure.

A set or dict beside a queue of its keys: an `OrderedDict` does the same with twice the memory and time an entry, and a
thousand simulated agents remember thousands of messages each.
"""

from collections import deque
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class RecentSet(Generic[K]):
    """The last `limit` keys that were added."""

    __slots__ = ("_keys", "_limit", "_order")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._keys: set[K] = set()
        self._order: deque[K] = deque()

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, key: K) -> bool:
        """Remember a key; False where it was remembered already."""
        if key in self._keys:
            return False
        self._keys.add(key)
        self._order.append(key)
        if len(self._order) > self._limit:
            self._keys.discard(self._order.popleft())
        return True


class RecentMap(Generic[K, V]):
    """The last `limit` keys that were put, each with its value."""

    __slots__ = ("_limit", "_order", "_values", "get")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._values: dict[K, V] = {}
        self._order: deque[K] = deque()
        self.get = self._values.get
        """The value of a key, or None."""

    def __len__(self) -> int:
        return len(self._values)

    def put(self, key: K, value: V) -> None:
        """Remember a value; that of a key that is there is replaced and ages as before."""
        if key not in self._values:
            self._order.append(key)
            if len(self._order) > self._limit:
                del self._values[self._order.popleft()]
        self._values[key] = value
