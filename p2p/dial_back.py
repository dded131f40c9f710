"""Telling a peer whether it can be reached: it asks, we dial the port it names at the host we see it at.

This is no tool to scan or flood others with. The host is never the asker's choice but where its own connection comes
from, the port is one, an attempt is a single TCP connection with a Noise handshake that only the asker's own key can
complete, each peer gets one attempt in `PAUSE_SECONDS` and each host `PER_HOST`, all together `MAX_AT_ONCE` at once. A
peer whose connection runs through a relay has no host of its own here, and is refused.
"""

from collections import OrderedDict

import trio

from coppermesh.p2p.errors import Refused
from coppermesh.p2p.ids import PeerId, format_peer
from coppermesh.p2p.messages import DialBackReply, DialBackRequest
from coppermesh.p2p.transport import Transport

PAUSE_SECONDS = 5.0
PER_HOST = 8
"""Several agents may sit behind one router."""
MAX_AT_ONCE = 16
MAX_KNOWN = 4096


class DialBack:
    """Answers `dialback` requests for peers of `transport`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._under_way = 0
        self._peers: OrderedDict[PeerId, float] = OrderedDict()
        self._hosts: OrderedDict[str, tuple[float, int]] = OrderedDict()

    async def answer(self, peer: PeerId, request: DialBackRequest) -> DialBackReply:
        """The handler. Raises Refused where the asker has to wait, or is behind a relay."""
        path = self._transport.path_to(peer)
        if path is None or path.relay is not None:
            raise Refused(
                "relayed", "your connection runs through a relay: ask a peer you are connected to directly"
            )
        kind, host, port = _seen_at(path.address)
        if kind not in ("ip4", "ip6"):
            raise Refused("no-address", "your address is not known here: it was dialled by its name")
        self._admit(peer, host)
        self._under_way += 1
        try:
            probe = await self._transport.probe(f"/{kind}/{host}/tcp/{request.port}/p2p/{format_peer(peer)}")
        finally:
            self._under_way -= 1
        return DialBackReply(probe.value, f"/{kind}/{host}/tcp/{port}")

    def _admit(self, peer: PeerId, host: str) -> None:
        now = trio.current_time()
        since, count = self._hosts.get(host, (now, 0))
        if now - since >= PAUSE_SECONDS:
            since, count = now, 0
        hasty = now - self._peers.get(peer, -PAUSE_SECONDS) < PAUSE_SECONDS
        if hasty or count >= PER_HOST or self._under_way >= MAX_AT_ONCE:
            raise Refused("busy", f"one attempt in {PAUSE_SECONDS:g} s: ask again later")
        self._hosts[host] = (since, count + 1)
        self._peers[peer] = now
        for known in (self._hosts, self._peers):
            if len(known) > MAX_KNOWN:
                known.popitem(last=False)


def _seen_at(address: str) -> tuple[str, str, str]:
    """Kind, host and port of a connection's address, full or not."""
    parts = address.split("/")
    return (parts[1], parts[2], parts[4]) if len(parts) > 4 else ("", "", "")
