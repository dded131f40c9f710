"""What `[network]` means, and the port that an agent keeps."""

import socket
from pathlib import Path

import pytest

from coppermesh.agent.last_port import keep_port, with_last_port
from coppermesh.agent.networking import mdns_interfaces
from coppermesh.p2p.errors import Unreachable
from coppermesh.p2p.ids import PeerId, format_peer

PEER = format_peer(PeerId(bytes(32)))


def at(host: str, port: int = 4001) -> str:
    return f"{host}/tcp/{port}/p2p/{PEER}"


def test_mdns_is_spoken_where_the_agent_listens_and_never_on_loopback() -> None:
    addresses = [at("/ip4/192.168.1.4"), at("/ip4/127.0.0.1"), at("/ip6/2001:db8::1"), at("/ip4/10.0.0.7")]
    assert mdns_interfaces(True, addresses) == ["192.168.1.4", "10.0.0.7"]
    assert mdns_interfaces(False, addresses) == []
    assert mdns_interfaces(True, [at("/ip4/127.0.0.1")]) == []


def test_the_port_of_the_last_run_is_taken_again_where_it_is_free(tmp_path: Path) -> None:
    path = tmp_path / "port"
    assert with_last_port("/ip4/127.0.0.1/tcp/0", path) == "/ip4/127.0.0.1/tcp/0"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        keep_port(path, [at("/ip4/127.0.0.1", port)])
        assert with_last_port("/ip4/127.0.0.1/tcp/0", path) == "/ip4/127.0.0.1/tcp/0"
    assert with_last_port("/ip4/127.0.0.1/tcp/0", path) == f"/ip4/127.0.0.1/tcp/{port}"
    assert with_last_port("/ip4/127.0.0.1/tcp/7", path) == "/ip4/127.0.0.1/tcp/7"
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", ["", "0", "70000", "-1", "http", "1" * 4000])
def test_a_damaged_file_with_the_port_is_ignored(tmp_path: Path, content: str) -> None:
    path = tmp_path / "port"
    path.write_text(content)
    assert with_last_port("/ip4/127.0.0.1/tcp/0", path) == "/ip4/127.0.0.1/tcp/0"


def test_a_wrong_listen_address_is_said(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="want"):
        with_last_port("nonsense", tmp_path / "port")


def test_a_port_that_cannot_be_kept_costs_only_that(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keep_port(tmp_path / "missing" / "port", [at("/ip4/127.0.0.1")])
    assert "cannot be kept" in caplog.text
