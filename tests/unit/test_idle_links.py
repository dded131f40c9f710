"""Connections to the agent are used again, and one that the agent has closed never is."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from coppermesh.agent import local_link
from coppermesh.agent.home import bind_unix
from coppermesh.agent.local_link import MAX_IDLE, IdleLinks, LocalLink


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


@pytest.fixture
def listener(path: Path) -> Iterator[socket.socket]:
    with bind_unix(path) as listening:
        listening.listen(16)
        yield listening


def test_a_link_is_taken_again_and_by_one_only(path: Path, listener: socket.socket) -> None:
    links, link = IdleLinks(), LocalLink(path, mesh="")
    links.keep(link)
    assert links.take(5.0) is link
    assert links.take(5.0) is None
    link.close()


@pytest.mark.parametrize("last_word", [b"", b"left over"])
def test_a_link_that_the_agent_closed_or_spoke_on_is_not_taken(
    path: Path, listener: socket.socket, last_word: bytes
) -> None:
    links = IdleLinks()
    links.keep(LocalLink(path, mesh=""))
    accepted, _ = listener.accept()
    accepted.sendall(last_word)
    accepted.close()
    assert links.take(5.0) is None


def test_a_link_that_was_idle_too_long_is_closed(
    path: Path, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    links, link = IdleLinks(), LocalLink(path, mesh="")
    links.keep(link)
    monkeypatch.setattr(local_link, "IDLE_SECONDS", 0.0)
    assert links.take(5.0) is None
    assert not link.is_open()


def test_few_are_kept_and_none_by_a_forked_child(
    path: Path, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = IdleLinks()
    kept = [LocalLink(path, mesh="") for _ in range(MAX_IDLE + 2)]
    for link in kept:
        links.keep(link)
    assert [link.is_open() for link in kept] == [False] * 2 + [True] * MAX_IDLE
    monkeypatch.setattr("os.getpid", lambda: -1)
    assert links.take(5.0) is None
    assert not any(link.is_open() for link in kept)
