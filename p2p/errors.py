"""Errors of the network side, one class per what the caller should do about it.

`LocalProtocolError` is our bug, `RemoteProtocolError` is the other side's misbehaviour (drop it, blame it),
`Unreachable` says try again later or elsewhere, `Refused` says the other side answered and said no.
"""


class MeshError(Exception):
    """Base of everything coppermesh raises on purpose; its text is written for the person who reads it."""


class ProtocolError(MeshError):
    """A rule of the protocol was broken. Abstract: raise one of the two children."""


class LocalProtocolError(ProtocolError):
    """This side tried to make a move that the protocol forbids: a bug here, nothing was sent."""


class RemoteProtocolError(ProtocolError):
    """The other side sent something that the protocol forbids: end that conversation, count it against the peer."""


class Unreachable(MeshError):
    """No answer: the address refused, the peer left, or a deadline passed. Retry later or elsewhere."""


class Refused(MeshError):
    """The other side understood and said no. `code` is stable, the text says what would have to change."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code
        self.sentence = sentence


class IdentityError(MeshError):
    """A key file is missing, unreadable, malformed or readable by others."""
