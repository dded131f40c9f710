"""Which announcement topics an agent of a large mesh announces in, and which it listens to. Pure.

Theory of operation. A mesh starts with one topic, its root. When more than `limit` agents announce there, the topic
splits: first by device class (`cuda`, `cpu`), then by the bits of a hash of the peer id, one bit a level:

    ""  ->  "cuda", "cpu"  ->  "cuda/0", "cuda/1"  ->  "cuda/00", "cuda/01", ...

An agent has one *leaf*, where all its announcements go; it stays subscribed to the topics above its leaf. Each
announcement names its leaf. Agents decide for themselves, from what they have heard, and may disagree:

- *down*: more than `limit` agents belong to the leaf; *up*: at most 5/8 of `limit` belong to the topic above. What
  lies between changes nothing, nor does anything within `DWELL_SECONDS` of the last change, so that a mesh of about
  `limit` agents does not flap. A newcomer takes the median depth of its class among the announcements that its
  neighbours hand it; a few liars do not move a median.
- *signposts*: an agent announces in the topics above its leaf as well if a second hash of its id begins with so many
  zero bits that each topic carries about 16 such announcements for each of its two halves. So whoever listens above
  hears that there is something below, and can count it: each signpost stands for 2^bits agents.

So nobody is lost while agents disagree. A reader starts at the root and at the top of each class that it wants, whose
names it knows. An agent that has not split yet is heard there; of those that have, signposts are, and the reader
follows them down. Whoever splits too early or too late costs traffic, never visibility. A reader takes as many leaves
as it needs (`reader_topics`), its own side of the hash first, so that readers spread over the leaves.

An agent that listens to its path and one leaf carries at most `limit` announcements a refresh, and some 32 for each
of the few levels above, however large the mesh is.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from blake3 import blake3

from coppermesh.p2p.ids import MeshId, PeerId
from coppermesh.p2p.records import Announcement

LIMIT = 256
DWELL_SECONDS = 60.0
LEAVING_SECONDS = 30.0
MAX_DEPTH = 16
"""A class root and 15 bits: 8 million agents."""
FEW_HEARD = 4
"""Announcements of one's class from which on a median says something."""
SIGNPOSTS = 16
CLASSES = ("cuda", "cpu")
_CONTEXT = "coppermesh 2026 announcement shard v1"


@dataclass(frozen=True, slots=True)
class Place:
    """An agent that announces: its id, class, and the leaf that it names."""

    peer: PeerId
    kind: str
    leaf: str


def device_class(announcement: Announcement) -> str:
    """`cuda` where it offers a GPU, else `cpu`."""
    return "cuda" if any(device.kind == "cuda" for device in announcement.devices) else "cpu"


def place_of(announcement: Announcement) -> Place:
    """Where its author announces."""
    return Place(PeerId(announcement.peer), device_class(announcement), announcement.shard)


def topic_of(mesh: MeshId, path: str) -> str:
    """The gossip topic of a shard; that of the root is the mesh's own."""
    root = f"coppermesh/announcements/1/{mesh.hex()}"
    return f"{root}/{path}" if path else root


def depth_of(path: str) -> int:
    """0 for the root, 1 for a class, one more for each bit."""
    if not path:
        return 0
    return 1 + len(path.partition("/")[2])


@lru_cache(maxsize=1 << 14)
def _bits(peer: PeerId) -> tuple[str, int]:
    """Bits for the place, and how many zero bits the signposts' hash begins with."""
    digest = blake3(peer, derive_key_context=_CONTEXT).digest(16)
    place = format(int.from_bytes(digest[:8], "big"), "064b")
    return place, 64 - int.from_bytes(digest[8:], "big").bit_length()


def home_path(peer: PeerId, kind: str, depth: int) -> str:
    """The shard of that depth where the agent belongs."""
    if depth == 0:
        return ""
    return kind if depth == 1 else f"{kind}/{_bits(peer)[0][: depth - 1]}"


def path_to(leaf: str) -> list[str]:
    """The root, what lies between, and the leaf itself."""
    if not leaf:
        return [""]
    kind, _, bits = leaf.partition("/")
    return ["", kind, *(f"{kind}/{bits[:count]}" for count in range(1, len(bits) + 1))]


def _holds(path: str, leaf: str) -> bool:
    """Does `leaf` lie in `path`, or is it the same?"""
    if not path or path == leaf:
        return True
    return leaf.startswith(path if "/" in path else path + "/")


def _sign_bits(limit: int, leaf_depth: int, depth: int) -> int:
    """Zero bits that make an agent of a leaf at `leaf_depth` a signpost at `depth`."""
    share = max(1, limit // (2 * SIGNPOSTS))
    return share.bit_length() - 1 + leaf_depth - 1 - depth


def is_signpost(place: Place, path: str, limit: int = LIMIT) -> bool:
    """Does the agent announce in `path`, above its leaf, too?"""
    return _bits(place.peer)[1] >= _sign_bits(limit, depth_of(place.leaf), depth_of(path))


def count_in(path: str, heard: Iterable[Place], mine: str, limit: int = LIMIT) -> int:
    """How many agents belong to `path`, by what an agent with the leaf `mine` has heard.

    Those of one's own leaf and those that have not split are counted, those of other leaves estimated by signposts.
    """
    depth = depth_of(path)
    total = 0
    for place in heard:
        if place.leaf == mine or depth_of(place.leaf) <= depth:
            total += home_path(place.peer, place.kind, depth) == path
        elif _holds(path, place.leaf) and is_signpost(place, path, limit):
            total += 1 << _sign_bits(limit, depth_of(place.leaf), depth)
    return total


class ShardPlan:
    """Where one agent announces."""

    def __init__(self, me: PeerId, *, limit: int = LIMIT) -> None:
        self._me = me
        self._limit = limit
        self._kind = CLASSES[-1]
        self._depth = 0
        self._settled = False
        self._changed_at = -DWELL_SECONDS
        self._left: str | None = None
        """The leaf before this one."""

    @property
    def leaf(self) -> str:
        """Where all its announcements go."""
        return home_path(self._me, self._kind, self._depth)

    @property
    def place(self) -> Place:
        """What its announcements say of it."""
        return Place(self._me, self._kind, self.leaf)

    def settle(self, kind: str, heard: Sequence[Place], now: float) -> bool:
        """Look whether the leaf is still right. `heard`: live announcements, without one's own. True: it changed."""
        before = self.leaf
        self._kind = kind
        depth = self._next_depth(heard, now)
        self._depth = depth
        if self.leaf == before:
            return False
        self._left, self._changed_at = before, now
        return True

    def _next_depth(self, heard: Sequence[Place], now: float) -> int:
        depths = sorted(depth_of(place.leaf) for place in heard if place.kind == self._kind)
        if len(depths) >= FEW_HEARD:
            median = depths[len(depths) // 2]
            is_far = not self._settled or abs(median - self._depth) > 1
            self._settled = True
            if is_far and median != self._depth:
                return median
        if self._settled and now - self._changed_at < DWELL_SECONDS:
            return self._depth
        if 1 + count_in(self.leaf, heard, self.leaf, self._limit) > self._limit and self._depth < MAX_DEPTH:
            self._settled = True
            return self._depth + 1
        if self._depth and 1 + self._count_above(heard) <= self._limit * 5 // 8:
            return self._depth - 1
        return self._depth

    def _count_above(self, heard: Sequence[Place]) -> int:
        above = home_path(self._me, self._kind, self._depth - 1)
        if self._depth == 1:
            return count_in(above, heard, self.leaf, self._limit)
        # The halves of a shard are equally large but for chance: one's own, counted, says more than signposts.
        return 2 * count_in(self.leaf, heard, self.leaf, self._limit)

    def subscribes(self) -> list[str]:
        """The shards an announcing agent is subscribed to: its leaf and those above."""
        return path_to(self.leaf)

    def publishes(self, now: float) -> list[str]:
        """The shards its announcements go to: its leaf, and those above where it is a signpost.

        For a while also the leaf that it left, so that those who stay there hear where it went.
        """
        place = self.place
        paths = [path for path in path_to(place.leaf)[:-1] if is_signpost(place, path, self._limit)]
        paths.append(place.leaf)
        if self._left is not None and now - self._changed_at < LEAVING_SECONDS and self._left not in paths:
            paths.append(self._left)
        return paths


def reader_topics(me: PeerId, heard: Iterable[Place], kinds: Sequence[str], leaves: int = 1) -> list[str]:
    """The shards to listen to for announcements of these device classes: `leaves` leaves of each, and the way there.

    The shards that are nearest to one's own hash come first. Call again with what was heard there: signposts lead on.
    """
    own = _bits(me)[0]
    found = {"": None}
    places = list(heard)
    for kind in kinds:
        below = {place.leaf for place in places if place.leaf.partition("/")[0] == kind}
        frontier, taken = [kind], 0
        while frontier and taken < leaves:
            path = frontier.pop(0)
            found[path] = None
            bits = path.partition("/")[2]
            children = [f"{kind}/{bits}{bit}" for bit in (own[len(bits)], "10"[int(own[len(bits)])])]
            if not any(_holds(child, leaf) for child in children for leaf in below):
                children = []  # where there is one half, the other is looked into as well
            taken += not children
            # Depth first: a leaf is reached before a second branch is opened.
            frontier[:0] = children
    return list(found)
