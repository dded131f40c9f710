"""Which blobs are here, who sees them, how much room they take and which must go. Pure: no file, no clock.

Every blob is charged in whole disk blocks and counted for each scope that sees it. Room is reserved before bytes are
accepted. What has to make way, in this order: where a scope would exceed its share, its own oldest blobs; where the
quota would be exceeded, the least recently used blobs of all. Pinned blobs stay.

Methods that evict return the roots whose files are to be deleted.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from coppermesh.p2p.blob_files import Scope, StoreFull
from coppermesh.p2p.errors import LocalProtocolError
from coppermesh.p2p.ids import Digest, PeerId

BLOCK_BYTES = 4096
MAX_BLOBS = 100_000
MAX_SCOPES_PER_BLOB = 256


def charge_of(size: int) -> int:
    """What a blob of `size` bytes takes from the quota."""
    return max(1, -(-size // BLOCK_BYTES)) * BLOCK_BYTES


@dataclass(slots=True)
class Entry:
    """One blob that is here."""

    size: int
    scopes: OrderedDict[Scope, None] = field(default_factory=OrderedDict)
    leaves: list[bytes] | None = None
    """Its leaf digests; None until its file was verified in this run."""


class BlobTable:
    """The books of one store. `owner`: the peer whose scopes may use the whole quota; others may use half each."""

    def __init__(self, quota_bytes: int, owner: PeerId | None) -> None:
        self.quota = quota_bytes
        self.used = 0
        self.reserved = 0
        self.evicted = 0
        self.grants = 0
        self._owner = owner
        self._entries: OrderedDict[Digest, Entry] = OrderedDict()
        self._visible: dict[Scope, OrderedDict[Digest, None]] = {}
        self._stored: Counter[Scope] = Counter()
        self._receiving: Counter[Scope] = Counter()
        self._pins: Counter[Digest] = Counter()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def pinned(self) -> int:
        """How many roots are pinned, here or not."""
        return len(self._pins)

    def get(self, root: Digest) -> Entry | None:
        """The blob's entry, whoever asks."""
        return self._entries.get(root)

    def visible(self, scope: Scope, root: Digest) -> Entry | None:
        """The blob's entry where `scope` may see it."""
        return self._entries[root] if root in self._visible.get(scope, ()) else None

    def all_grants(self) -> Iterator[tuple[Digest, Scope]]:
        """Every (root, scope), least recently used blob first."""
        for root, entry in self._entries.items():
            for scope in entry.scopes:
                yield root, scope

    def touch(self, scope: Scope, root: Digest) -> None:
        """The blob was used just now by `scope`, which sees it."""
        self._entries.move_to_end(root)
        self._visible[scope].move_to_end(root)

    def pin(self, root: Digest) -> None:
        """Keep the blob until as many `unpin`."""
        self._pins[root] += 1

    def unpin(self, root: Digest) -> None:
        """Undo one `pin`."""
        if self._pins[root] <= 0:
            raise LocalProtocolError(f"blob {root.hex()[:16]} is not pinned")
        self._pins[root] -= 1
        if not self._pins[root]:
            del self._pins[root]

    def check(self, scope: Scope, size: int) -> None:
        """Raises StoreFull where `reserve` would. Changes nothing."""
        charge = charge_of(size)
        pinned = [self._entries[root] for root in self._pins if root in self._entries]
        kept = sum(charge_of(entry.size) for entry in pinned)
        kept_for_scope = sum(charge_of(entry.size) for entry in pinned if scope in entry.scopes)
        share = self._share(scope) - self._receiving[scope] - kept_for_scope
        if charge > min(share, self.quota - self.reserved - kept):
            raise StoreFull(self._full_text(scope, charge))

    def reserve(self, scope: Scope, charge: int) -> list[Digest]:
        """Take room; returns what was evicted for it. Raises StoreFull, having evicted nothing."""
        leaving = self._plan_for_share(scope, charge)
        evicted = [root for root in leaving if len(self._entries[root].scopes) == 1]
        evicted += self._plan_for_quota(charge, scope, set(evicted))
        for root in leaving:
            self._hide(scope, root)
        for root in evicted:
            self.remove(root)
        self.evicted += len(evicted)
        self.reserved += charge
        self._receiving[scope] += charge
        return evicted

    def release(self, scope: Scope, charge: int) -> None:
        """Give reserved room back: the blob failed, or is about to be added."""
        self.reserved -= charge
        _subtract(self._receiving, scope, charge)

    def add(self, scope: Scope, root: Digest, size: int, leaves: list[bytes] | None) -> None:
        """The blob is here and `scope` sees it."""
        entry = self._entries.get(root)
        if entry is None:
            entry = self._entries[root] = Entry(size)
            self.used += charge_of(size)
        if leaves is not None:
            entry.leaves = leaves
        self.show(scope, root)
        self.touch(scope, root)

    def show(self, scope: Scope, root: Digest) -> None:
        """Let `scope` see a blob that is here; beyond `MAX_SCOPES_PER_BLOB` the oldest grant goes."""
        entry = self._entries[root]
        if scope in entry.scopes:
            return
        if len(entry.scopes) >= MAX_SCOPES_PER_BLOB:
            self._hide(next(iter(entry.scopes)), root)
        entry.scopes[scope] = None
        self._visible.setdefault(scope, OrderedDict())[root] = None
        self._stored[scope] += charge_of(entry.size)
        self.grants += 1

    def remove(self, root: Digest) -> None:
        """The blob is gone."""
        entry = self._entries[root]
        for scope in list(entry.scopes):
            self._hide(scope, root)
        del self._entries[root]
        self.used -= charge_of(entry.size)

    def _hide(self, scope: Scope, root: Digest) -> None:
        entry = self._entries[root]
        del entry.scopes[scope]
        visible = self._visible[scope]
        del visible[root]
        if not visible:
            del self._visible[scope]
        _subtract(self._stored, scope, charge_of(entry.size))
        self.grants -= 1

    def _plan_for_share(self, scope: Scope, charge: int) -> list[Digest]:
        """The scope's oldest unpinned blobs that it must forget to have room for `charge`."""
        over = self._stored[scope] + self._receiving[scope] + charge - self._share(scope)
        leaving = []
        for root in self._visible.get(scope, ()):
            if over <= 0:
                break
            if root not in self._pins:
                leaving.append(root)
                over -= charge_of(self._entries[root].size)
        if over > 0:
            raise StoreFull(self._full_text(scope, charge))
        return leaving

    def _plan_for_quota(self, charge: int, scope: Scope, going: set[Digest]) -> list[Digest]:
        """The least recently used, unpinned blobs that must go besides those `going` anyway."""
        over = self.used + self.reserved + charge - self.quota
        over -= sum(charge_of(self._entries[root].size) for root in going)
        too_many = len(self._entries) - len(going) + 1 - MAX_BLOBS
        evicted = []
        for root, entry in self._entries.items():
            if over <= 0 and too_many <= 0:
                break
            if root not in self._pins and root not in going:
                evicted.append(root)
                over -= charge_of(entry.size)
                too_many -= 1
        if over > 0 or too_many > 0:
            raise StoreFull(self._full_text(scope, charge))
        return evicted

    def _share(self, scope: Scope) -> int:
        return self.quota if scope[1] == self._owner else self.quota // 2

    def _full_text(self, scope: Scope, charge: int) -> str:
        return (
            f"the blob store has no room for {charge} bytes: its quota is {self.quota} bytes, of which this peer may"
            f" use {self._share(scope)}; {self.reserved} are being received, and blobs in use are kept"
        )


def _subtract(counter: Counter[Scope], scope: Scope, amount: int) -> None:
    counter[scope] -= amount
    if not counter[scope]:
        del counter[scope]
