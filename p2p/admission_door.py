"""The door of a private mesh: one request and one reply, outside the swarm key.

The door's transport is one without gossip; the visitor proves its key by Noise, the door its own, which the invitation
pins. Nothing else is spoken there.
"""

import logging
from collections.abc import Awaitable, Callable

import trio

from coppermesh.p2p.addresses import parse_address
from coppermesh.p2p.admission import refusal
from coppermesh.p2p.errors import MeshError, Refused, RemoteProtocolError, Unreachable
from coppermesh.p2p.frame_io import receive_frame, send_frame
from coppermesh.p2p.ids import MeshId, PeerId, short_peer
from coppermesh.p2p.membership_messages import MAX_ADMISSION_BYTES, AdmissionReply, AdmissionRequest
from coppermesh.p2p.transport import Stream, Transport

REQUEST_SECONDS = 10.0
REPLY_SECONDS = 20.0
_log = logging.getLogger(__name__)

Decide = Callable[[PeerId, str, AdmissionRequest], Awaitable[AdmissionReply]]
"""(visitor, where it comes from, request) -> reply; raises Refused."""


def admission_protocol(mesh: MeshId) -> str:
    """The protocol id at the door."""
    return f"/coppermesh/admission/1/{mesh.hex()}"


def keep_door(transport: Transport, mesh: MeshId, decide: Decide) -> None:
    """Answer at the door for as long as the transport is open."""

    async def answer(stream: Stream) -> None:
        path = transport.path_to(stream.peer)
        place = "" if path is None else path.address.split("/tcp/")[0]
        try:
            with trio.fail_after(REQUEST_SECONDS):
                request = await receive_frame(stream, AdmissionRequest, MAX_ADMISSION_BYTES)
            reply = await decide(stream.peer, place, request)
        except trio.TooSlowError:
            raise Unreachable("the visitor asked for nothing") from None
        except Refused as error:
            _log.info("%s is not admitted: %s", short_peer(stream.peer), error)
            reply = refused_reply(error)
        except (Unreachable, RemoteProtocolError):
            raise
        except MeshError as error:
            _log.error("%s is not admitted: %s", short_peer(stream.peer), error)
            reply = refused_reply(refusal("door-closed"))
        await send_frame(stream, reply)
        await stream.send_eof()
        # The visitor has what it came for; it hangs up, or is hung up on.
        with trio.move_on_after(REQUEST_SECONDS):
            await _until_end(stream)
        await transport.disconnect(stream.peer)

    transport.handle(admission_protocol(mesh), answer)


def refused_reply(error: Refused) -> AdmissionReply:
    """A refusal as it travels."""
    return AdmissionReply(error.code, error.sentence[:400], [], None, 0, None, [], [], [])


async def ask_at_door(
    transport: Transport, mesh: MeshId, door: str, issuer: PeerId, request: AdmissionRequest
) -> AdmissionReply:
    """Ask at one door of `issuer`. Raises Unreachable, RemoteProtocolError, or Refused with the door's reason."""
    if parse_address(door).peer != issuer:
        raise Unreachable(f"{door} names another peer than who invited")
    await transport.dial(door)
    try:
        stream = await transport.open_stream(issuer, admission_protocol(mesh))
        try:
            with trio.fail_after(REPLY_SECONDS):
                await send_frame(stream, request)
                reply = await receive_frame(stream, AdmissionReply, MAX_ADMISSION_BYTES)
        except trio.TooSlowError:
            raise Unreachable(f"{door} gave no reply within {REPLY_SECONDS:g} s") from None
        finally:
            await stream.aclose()
    finally:
        await transport.disconnect(issuer)
    if reply.code != "ok":
        raise Refused(reply.code, reply.sentence)
    if reply.swarm_key is None or not reply.chain:
        raise Refused("protocol-error", "the door's reply lacks the swarm key or a certificate")
    return reply


async def _until_end(stream: Stream) -> None:
    try:
        while await stream.receive_some():
            pass
    except MeshError:
        pass
