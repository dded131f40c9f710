"""One kept, framed control stream per connected peer, with requests pipelined by id."""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import trio

from coppermesh.p2p.ids import MeshId, PeerId
from coppermesh.p2p.messages import Hello, Message
from coppermesh.p2p.transport import Transport

M = TypeVar("M", bound=Message)
Handler = tuple[type[Any], Callable[[PeerId, Any], Awaitable[Message]]]
"""(request type, called with the proven peer and the request). Its reply goes back; `Refused` goes back as a refusal."""


@dataclass(frozen=True, slots=True)
class ChannelUp:
    """Requests to `peer` work from now on."""

    peer: PeerId
    hello: Hello


@dataclass(frozen=True, slots=True)
class ChannelDown:
    """The control channel is gone; requests in flight raised Unreachable."""

    peer: PeerId
    reason: str


class ControlHub:
    """The control channels of one agent. It is the one reader of `transport.events()`."""

    def peers(self) -> list[PeerId]:
        """Peers with an open control channel."""

    def hello_of(self, peer: PeerId) -> Hello | None:
        """What the peer said of itself."""

    def events(self) -> trio.MemoryReceiveChannel[ChannelUp | ChannelDown]:
        """Channels coming and going, in order. One reader."""

    async def request(
        self, peer: PeerId, method: str, body: Message, reply: type[M], *, deadline_s: float = 10.0
    ) -> M:
        """Ask `peer` and wait for its reply. Raises Unreachable, Refused (its refusal), RemoteProtocolError."""

    async def close_channel(self, peer: PeerId, reason: str) -> None:
        """End the channel, and the connection with it."""


def open_control_hub(
    transport: Transport,
    mesh: MeshId,
    me: PeerId,
    *,
    handlers: Mapping[str, Handler],
    clock: Callable[[], int],
    software: str = "coppermesh",
) -> AbstractAsyncContextManager[ControlHub]:
    """Accept and keep control channels for the length of the block. `clock`: microseconds since the epoch."""
