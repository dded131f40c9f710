"""Finding agents on the local network, and being found, with no configuration: libp2p's mDNS over the zeroconf library.

Theory of operation. The library runs a thread of its own with an event loop. What blocks in it (opening sockets,
registering, asking, closing) is called in worker threads; what it hears comes back through trio's token into a bounded
queue, so a network that shouts costs lookups, at most `MAX_LOOKUPS` at once, and what does not fit is dropped: services
are repeated. Where the machine's addresses change, everything is closed and opened anew on the new interfaces.

A machine without multicast is no error: it is said once, and tried again later.
"""

import logging
import secrets
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import IPv4Address

import trio
from zeroconf import IPVersion, ServiceBrowser, ServiceInfo, ServiceListener, Zeroconf

from coppermesh.p2p.addresses import parse_address
from coppermesh.p2p.ids import MeshId, PeerId, short_peer
from coppermesh.p2p.mdns_records import SERVICE, make_text, read_text

LOOK_SECONDS = 2.0
RETRY_SECONDS = 30.0
LOOKUP_MILLISECONDS = 3000
MAX_LOOKUPS = 4
MAX_WAITING = 256

_log = logging.getLogger(__name__)

Found = Callable[[PeerId, list[str]], None]


class Mdns:
    """Says where this agent is, and hears where others are. `addresses` and `interfaces` are asked again and again.

    `interfaces`: IPv4 addresses of this machine to speak and hear on; none: nothing is said or heard.
    """

    def __init__(
        self,
        mesh: MeshId,
        peer: PeerId,
        *,
        addresses: Callable[[], Sequence[str]],
        interfaces: Callable[[], Sequence[str]],
        found: Found,
    ) -> None:
        self._mesh = mesh
        self._peer = peer
        self._addresses = addresses
        self._interfaces = interfaces
        self._found = found
        # New in every run, as the specification wants it: a name is nobody's identity.
        self._name = secrets.token_hex(16)
        self.trouble: str | None = None
        """Why this network gives no mDNS; None while it does."""
        self.heard = 0
        """Records of members of this mesh that came in."""

    async def run(self) -> None:
        """Until cancelled; then the agent takes its leave of the network."""
        while True:
            said = self._state()
            if not said[0]:
                await trio.sleep(LOOK_SECONDS)
                continue
            try:
                await self._run_on(said)
            except Exception as error:  # noqa: BLE001
                # The library raises errors of its own too, such as when its thread was late; none may end the agent.
                why = _reason_of(error)
                if self.trouble is None:
                    _log.info("no mDNS on %s: %s", ", ".join(said[0]), why)
                self.trouble = why
                await trio.sleep(RETRY_SECONDS)

    def _state(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return tuple(self._interfaces()), tuple(self._addresses())

    async def _run_on(self, said: tuple[tuple[str, ...], tuple[str, ...]]) -> None:
        """Serve until the addresses change. Raises OSError where there is no multicast, and what the library does."""
        interfaces, addresses = said
        heard_in, heard_out = trio.open_memory_channel[str](MAX_WAITING)
        listener = _Listener(trio.lowlevel.current_trio_token(), heard_in)
        zeroconf = await trio.to_thread.run_sync(_open, interfaces)
        try:
            self.trouble = None
            async with trio.open_nursery() as nursery:
                await trio.to_thread.run_sync(ServiceBrowser, zeroconf, SERVICE, listener)
                for _ in range(MAX_LOOKUPS):
                    nursery.start_soon(self._look_up, zeroconf, heard_out)
                await trio.to_thread.run_sync(self._register, zeroconf, interfaces, addresses)
                while self._state() == said:  # noqa: ASYNC110 - nobody tells when an interface comes or goes
                    await trio.sleep(LOOK_SECONDS)
                nursery.cancel_scope.cancel()
        finally:
            listener.close()
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(_close, zeroconf)

    def _register(self, zeroconf: Zeroconf, interfaces: Sequence[str], addresses: Sequence[str]) -> None:
        info = ServiceInfo(
            SERVICE,
            f"{self._name}.{SERVICE}",
            port=parse_address(addresses[0]).port if addresses else 0,
            properties=make_text(self._mesh, self._peer, addresses),
            server=f"{self._name}.local.",
            addresses=[IPv4Address(host).packed for host in interfaces],
        )
        # The name is random: asking whether somebody has it already would only cost a second.
        zeroconf.register_service(info, cooperating_responders=True)

    async def _look_up(self, zeroconf: Zeroconf, heard: trio.MemoryReceiveChannel[str]) -> None:
        async for name in heard:
            text = await trio.to_thread.run_sync(_text_of, zeroconf, name)
            read = None if text is None else read_text(text, self._mesh)
            if read is not None and read[0] != self._peer:
                self.heard += 1
                _log.debug("mDNS: %s is at %s", short_peer(read[0]), ", ".join(read[1]))
                self._found(*read)


class _Listener(ServiceListener):
    """Called in the library's thread; hands names over to trio."""

    def __init__(self, token: trio.lowlevel.TrioToken, names: trio.MemorySendChannel[str]) -> None:
        self._token = token
        self._names = names

    def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        """See ServiceListener."""
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._hand_over, name)

    def update_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        """See ServiceListener."""
        self.add_service(zc, type_, name)

    def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        """Who takes his leave is noticed by his connection."""

    def _hand_over(self, name: str) -> None:
        with suppress(trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            self._names.send_nowait(name)

    def close(self) -> None:
        """Take no more."""
        self._names.close()


def _open(interfaces: Sequence[str]) -> Zeroconf:
    for host in interfaces:
        # The library leaves a socket open where it fails on one of them; and addresses do go away.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0))
    return Zeroconf(interfaces=list(interfaces), ip_version=IPVersion.V4Only)


def _close(zeroconf: Zeroconf) -> None:
    try:
        zeroconf.close()
    except Exception as error:  # noqa: BLE001
        _log.debug("mDNS did not take its leave: %s", _reason_of(error))


def _reason_of(error: BaseException) -> str:
    """The first error in a group, in words."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(getattr(error, "strerror", None) or str(error) or type(error).__name__)


def _text_of(zeroconf: Zeroconf, name: str) -> bytes | None:
    """The TXT record of the service called `name`."""
    try:
        info = zeroconf.get_service_info(SERVICE, name, LOOKUP_MILLISECONDS)
    except Exception as error:  # noqa: BLE001
        # A stranger's name, a library that is closing, or whose thread was late: this service is not looked at.
        _log.debug("mDNS: %s", _reason_of(error))
        return None
    return None if info is None else info.text
