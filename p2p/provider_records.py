"""Who says that it has the content of a key: Kademlia's provider records, as a seed keeps them for others (pure).

libp2p's kad-dht specification: a peer adds itself, and nobody else, for a key; records expire. coppermesh reads none of
them, but a peer of another implementation may announce what it has in the mesh's own DHT. Bounded: `MAX_KEYS` of one
peer, `MAX_RECORDS` in all, of which the longest unrepeated go first.
"""

from collections import OrderedDict
from dataclasses import dataclass

from coppermesh.p2p.ids import PeerId

MAX_KEY_BYTES = 80
"""The specification's limit: a multihash, and something around it."""
MAX_KEYS = 64
"""Of one peer."""
MAX_RECORDS = 8192
MAX_PROVIDERS = 20
"""Told for a key: Kademlia's k, the newest."""
LIFE_SECONDS = 24 * 3600.0
"""Half of the specification's 48 h: whoever still has it says so every 22 h."""


@dataclass(frozen=True, slots=True)
class _Record:
    addresses: tuple[str, ...]
    expires: float


class ProviderRecords:
    """Records by key and provider, the longest unheard of first."""

    def __init__(self) -> None:
        self._records: OrderedDict[tuple[bytes, PeerId], _Record] = OrderedDict()
        self._keys: dict[PeerId, int] = {}
        self._providers: dict[bytes, dict[PeerId, None]] = {}

    def __len__(self) -> int:
        return len(self._records)

    def add(self, key: bytes, provider: PeerId, addresses: list[str], now: float) -> bool:
        """`provider` says that it has `key`. False where there is no room for it, or the key is none."""
        if not 0 < len(key) <= MAX_KEY_BYTES:
            return False
        self._forget_expired(now)
        place = key, provider
        if place in self._records:
            self._drop(place)
        if self._keys.get(provider, 0) >= MAX_KEYS:
            return False
        while len(self._records) >= MAX_RECORDS:
            self._drop(next(iter(self._records)))
        self._records[place] = _Record(tuple(addresses), now + LIFE_SECONDS)
        self._keys[provider] = self._keys.get(provider, 0) + 1
        self._providers.setdefault(key, {})[provider] = None
        return True

    def of(self, key: bytes, now: float) -> dict[PeerId, tuple[str, ...]]:
        """Who has said so and where it is, the newest first."""
        self._forget_expired(now)
        newest = list(reversed(self._providers.get(key, {})))[:MAX_PROVIDERS]
        return {peer: self._records[key, peer].addresses for peer in newest}

    def _forget_expired(self, now: float) -> None:
        while self._records:
            place, record = next(iter(self._records.items()))
            if record.expires > now:
                return
            self._drop(place)

    def _drop(self, place: tuple[bytes, PeerId]) -> None:
        del self._records[place]
        key, provider = place
        self._keys[provider] -= 1
        if not self._keys[provider]:
            del self._keys[provider]
        del self._providers[key][provider]
        if not self._providers[key]:
            del self._providers[key]
