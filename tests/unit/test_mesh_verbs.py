"""`coppermesh mesh` where no agent runs: on the home's files, under its lock."""

import json
from typing import Any

import msgspec
import pytest
from blake3 import blake3

from coppermesh.agent import mesh_verbs
from coppermesh.agent.cli import main
from coppermesh.agent.clock import now_us
from coppermesh.agent.home import Home
from coppermesh.agent.ledger_files import open_database, open_for_reading
from coppermesh.agent.ledger_scan import find_ledgers, owner_of, scan_ledger
from coppermesh.agent.mesh_making import (
    adopt_admission,
    check_name,
    check_new_name,
    create_private_mesh,
    open_private_mesh,
)
from coppermesh.agent.mesh_state import find_mesh, private_meshes
from coppermesh.agent.mesh_words import joining_request
from coppermesh.agent.private_mesh import PrivateMesh, Terms
from coppermesh.p2p.certificates import DAY_US
from coppermesh.p2p.envelope import sign_record
from coppermesh.p2p.errors import Refused
from coppermesh.p2p.ids import format_peer
from coppermesh.p2p.invitation import invitation_text, read_invitation
from coppermesh.p2p.membership_messages import RotateRequest
from coppermesh.p2p.membership_records import Rotation
from coppermesh.p2p.signing import PeerKey

DOOR = "/ip4/192.0.2.1/tcp/4003"


@pytest.fixture
def home(tmp_path, monkeypatch) -> Home:
    monkeypatch.setenv("COPPERMESH_HOME", str(tmp_path / "home"))
    return Home(tmp_path / "home")


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main(["mesh", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def ask(capsys, *arguments: str) -> Any:
    code, out, err = run(capsys, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def test_making_listing_and_leaving_need_no_agent(home, capsys):
    made = ask(capsys, "create", "lab", "--name", "alice")
    assert (made["role"], made["root_key_here"], made["trouble"]) == ("admin", True, "")
    row, opened = ask(capsys, "list")["meshes"]
    assert (row["mesh"], row["served"], row["private"], row["default"]) == ("lab", False, True, False)
    assert (opened["mesh"], opened["served"], opened["private"], opened["default"]) == (
        "open",
        False,
        False,
        True,
    )
    home.config_path.write_text('mesh = "lab"\n')
    row, opened = ask(capsys, "list")["meshes"]
    assert (row["default"], opened["default"]) == (True, False)
    assert "in no open one" in opened["trouble"]
    home.config_path.unlink()
    [member] = ask(capsys, "members")["members"]
    assert (member["name"], member["self"], member["issuer"]) == ("alice", True, None)
    assert "not served" in run(capsys, "list")[1]
    assert "root key" in run(capsys, "members")[1]
    code, _, err = run(capsys, "create", "lab")
    assert code == 2
    assert "already" in err
    code, _, err = run(capsys, "invite")
    assert code == 3  # no agent answers: its door is where the invitation would be redeemed
    assert "coppermesh agent" in err
    assert "others are not told" in ask(capsys, "leave")["sentence"]
    assert private_meshes(home) == []
    assert "no private mesh" in run(capsys, "list")[2]


def test_a_member_is_revoked_without_an_agent_and_the_next_run_tells_it(home, capsys, tmp_path):
    ask(capsys, "create", "lab")
    state = private_meshes(home)[0]
    alice = open_private_mesh(home, state.mesh, now_us())
    invitation = read_invitation(alice.invite(Terms(expires_us=now_us() + DAY_US), [DOOR], now_us()))
    other = Home(tmp_path / "other")
    other.prepare()
    key = PeerKey.load_or_create(other.key_path(state.mesh))
    request = joining_request(key, state.mesh, alice.key.peer, invitation.token, "bob", now_us())
    reply = alice.admit(key.peer, "x", request, [], [], now_us())
    adopt_admission(other, invitation, key, reply, "", "", now_us())
    alice.keep_known(now_us())
    facts = ask(capsys, "revoke", "bob", "--mesh", "lab")
    assert facts["peer"] == format_peer(key.peer)
    after = open_private_mesh(home, state.mesh, now_us())
    assert after.book.is_revoked(key.peer)
    assert after.state.epoch == 1
    assert len(after.book.revocations(now_us())) == 1
    code, _, err = run(capsys, "revoke", "nobody")
    assert code == 1
    assert "no member 'nobody' is known" in err
    code, _, err = run(capsys, "revoke", format_peer(alice.key.peer))
    assert code == 2
    assert "mesh leave" in err


def test_which_mesh_is_meant_must_be_clear(home, capsys):
    ask(capsys, "create", "lab")
    ask(capsys, "create", "other")
    code, _, err = run(capsys, "members")
    assert code == 2
    assert "2 private meshes: name one with --mesh" in err
    assert ask(capsys, "members", "--mesh", "other")["mesh"] == "other"
    by_id = private_meshes(home)[0].mesh.hex()[:8]
    assert ask(capsys, "members", "--mesh", by_id)["mesh"] == "lab"
    code, _, err = run(capsys, "leave", "--mesh", "third")
    assert code == 2
    assert "mesh list" in err


@pytest.mark.parametrize(
    ("option", "value"),
    [("--expires", "12"), ("--expires", "0d"), ("--quota", "20"), ("--quota", "20gpu/day")],
)
def test_what_is_no_span_or_quota_is_wrong_usage(home, capsys, option, value):
    with pytest.raises(SystemExit) as ended:
        main(["mesh", "invite", option, value])
    assert ended.value.code == 2
    assert f"{option}: want a" in capsys.readouterr().err


def test_a_seed_of_a_private_mesh_is_an_agent(home, capsys):
    ask(capsys, "create", "lab")
    assert main(["bootstrap", "--mesh", "lab", "--listen", "/ip4/127.0.0.1/tcp/0"]) == 2
    said = capsys.readouterr().err
    assert "serve_relay = true" in said
    assert "coppermesh agent" in said


def test_a_home_makes_no_two_meshes_of_one_name(home, capsys):
    ask(capsys, "create", "lab")
    with pytest.raises(Refused, match="in a mesh 'lab' already"):
        check_new_name(home, "lab")
    check_new_name(home, "lab2")


def test_a_door_cannot_lie_about_the_swarm_key(home, alice):
    """Its number, its maker, the key itself: a newcomer takes what was signed by somebody who may."""
    home.prepare()
    now = now_us()
    invitation = read_invitation(alice.invite(Terms(expires_us=now + DAY_US), [DOOR], now))
    key = PeerKey.load_or_create(home.key_path(alice.mesh))

    def reply(**changes: Any) -> Any:
        request = joining_request(key, alice.mesh, alice.key.peer, invitation.token, "bob", now_us())
        return msgspec.structs.replace(alice.admit(key.peer, "x", request, [], [], now_us()), **changes)

    def refused(said: Any) -> str:
        with pytest.raises(Refused) as error:
            adopt_admission(home, invitation, key, said, "", "", now_us())
        assert private_meshes(home) == []
        return error.value.code

    assert refused(reply(epoch=1 << 40)) == "forged"
    alice.rotate(now_us())
    assert refused(reply(epoch=1 << 40)) == "forged"
    assert refused(reply(swarm_key=bytes(32))) == "forged"
    assert refused(reply(rotation=None)) == "forged"
    # A plain member signs one, with the number that the door then says.
    chain = reply().chain
    fresh = bytes(range(32))
    made = Rotation(1, alice.mesh, key.peer, 5, blake3(fresh).digest(), now_us())
    bad = RotateRequest(sign_record(key, made), chain, fresh)
    assert refused(reply(epoch=5, swarm_key=fresh, rotation=bad)) == "no-right"
    far = Rotation(1, alice.mesh, alice.key.peer, 1 << 61, blake3(fresh).digest(), now_us())
    bad = RotateRequest(sign_record(alice.key, far), alice.chain, fresh)
    assert refused(reply(epoch=1 << 61, swarm_key=fresh, rotation=bad)) == "forged"
    assert adopt_admission(home, invitation, key, reply(), "", "", now_us()).state.epoch == 1


def test_a_revocation_that_was_cut_short_is_finished(alice):
    other = PeerKey.generate()
    now = now_us()
    assert not alice.owes_rotation(now)
    alice.revoke(other.peer, 0, now + 1)
    assert alice.owes_rotation(now + 1)
    alice.rotate(now + 2)
    assert not alice.owes_rotation(now + 2)
    alice.end_membership(PeerKey.generate().peer, 0, now + 3)
    assert alice.state.epoch == 2
    assert not alice.owes_rotation(now + 3)


def test_what_is_no_invitation_is_said_before_anything_is_done(home, capsys):
    for text in ("hello", "coppermesh1aaaa", "coppermesh1"):
        code, _, err = run(capsys, "join", text)
        assert code == 1
        assert "invitation" in err
    assert private_meshes(home) == []


def test_the_qr_code_goes_to_stderr_and_holds_the_string(capsys):
    segno = pytest.importorskip("segno")
    text = "coppermesh1" + "a2b3c4d5" * 33
    mesh_verbs._show_qr(text)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) > 20
    assert segno.make_qr(text.upper(), error="l").mode == "alphanumeric"


def admit(alice: PrivateMesh, home: Home, monkeypatch, who: str = "bob") -> str:
    """Have `mesh join` ask `alice` where it would ask her door over the network; returns an invitation."""

    async def redeem(invitation, key, name):
        request = joining_request(key, alice.mesh, alice.key.peer, invitation.token, name, now_us())
        return alice.admit(key.peer, name, request, [], [DOOR], now_us())

    monkeypatch.setattr("coppermesh.agent.mesh_join._redeem", redeem)
    return alice.invite(Terms(expires_us=now_us() + DAY_US), [DOOR], now_us())


@pytest.fixture
def alice(tmp_path) -> PrivateMesh:
    home = Home(tmp_path / "alice")
    home.prepare()
    return create_private_mesh(home, "lab", "alice", "", "", now_us())


def test_who_was_revoked_leaves_joins_again_and_keeps_the_old_ledger(home, alice, capsys, monkeypatch):
    ask(capsys, "join", admit(alice, home, monkeypatch))
    mesh = alice.mesh
    first = PeerKey.load(home.key_path(mesh)).peer
    open_database(home.ledger_path(mesh), mesh, first).close()
    alice.revoke(first, 0, now_us())
    text = admit(alice, home, monkeypatch)
    code, _, err = run(capsys, "join", text)
    assert code == 1
    assert "leave first: `coppermesh mesh leave" in err
    assert "not used" in err
    ask(capsys, "leave")
    reading = open_for_reading(home.ledger_path(mesh))  # as another program may, meanwhile
    reading.close()
    ask(capsys, "join", text)
    second = PeerKey.load(home.key_path(mesh)).peer
    assert second != first
    open_database(home.ledger_path(mesh), mesh, second).close()  # as the agent does to serve it
    present, former = find_ledgers(home, "lab")
    assert (present.name, former.name) == ("lab", f"lab as ..{format_peer(first)[-8:]}")
    with scan_ledger(former.path) as database:
        assert owner_of(database) == first
    assert main(["ledger", "audit", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["ledgers"]) == 2


def test_a_ledger_that_cannot_be_used_refuses_before_the_invitation_is_spent(
    home, alice, capsys, monkeypatch
):
    text = admit(alice, home, monkeypatch)
    home.prepare()
    home.ledger_path(alice.mesh).write_bytes(b"not a ledger" * 1000)
    code, _, err = run(capsys, "join", text)
    assert code == 1
    assert "is no ledger" in err
    home.ledger_path(alice.mesh).unlink()
    ask(capsys, "join", text)


@pytest.mark.parametrize("name", ["open", "Open", "my lab", "a/b", "..", "-x", "x\\y", 'q"', "a\n"])
def test_names_that_a_shell_or_the_settings_would_mistake_are_refused(home, alice, capsys, monkeypatch, name):
    if name.isprintable():
        code, _, err = run(capsys, "create", "--", name)
        assert code == 1
        assert "may not be called" in err
    sent = read_invitation(admit(alice, home, monkeypatch))
    if name.isprintable():
        code, _, err = run(capsys, "join", invitation_text(msgspec.structs.replace(sent, name=name)))
        assert code == 1
        assert "may not be called" in err
    with pytest.raises(Refused, match="may not be called"):
        check_name(name)
    assert private_meshes(home) == []


def test_the_name_open_means_the_open_mesh_whatever_lies_in_the_home(home, alice):
    assert find_mesh([msgspec.structs.replace(alice.state, name="open")], "open") is None


def test_config_check_says_that_a_mesh_is_open(home, alice, capsys):
    home.prepare()
    home.config_path.write_text('mesh = "nolab"\n')
    assert main(["config", "check"]) == 0
    assert "no private mesh of this home is called 'nolab'" in capsys.readouterr().err
    code, _, err = run(capsys, "create", "nolab")
    assert code == 0
    assert 'mesh = "nolab" in config.toml means this private mesh from the next start' in err
    assert main(["config", "check"]) == 0
    assert "no private mesh" not in capsys.readouterr().err


def test_what_is_not_found_may_be_in_another_mesh_of_the_home(home, capsys, monkeypatch):
    def said(*arguments: str) -> str:
        main(arguments)
        told: str = capsys.readouterr().err
        return told

    for mesh in ("open", "lab"):  # --mesh goes by the environment
        monkeypatch.setenv("COPPERMESH_MESH", mesh)
        assert "the home has others" not in said("jobs")
    ask(capsys, "create", "lab")
    for mesh, other in (("open", "lab"), ("lab", "open")):
        monkeypatch.setenv("COPPERMESH_MESH", mesh)
        hint = f"this looked in mesh {mesh!r} alone; the home has others: --mesh {other}"
        assert all(hint in said(*words) for words in (("jobs",), ("receipts",), ("explain", "abcd")))
