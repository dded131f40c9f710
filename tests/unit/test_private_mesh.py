"""A private mesh's state, its door's decisions, quotas and invitations: no network."""

import stat
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coppermesh.agent.home import Home
from coppermesh.agent.mesh_making import adopt_admission, create_private_mesh, open_private_mesh
from coppermesh.agent.mesh_state import (
    StateError,
    find_mesh,
    id_of,
    load_state,
    private_meshes,
    root_key_path,
    state_path,
)
from coppermesh.agent.mesh_terms import parse_quota, parse_span, quota_text, terms_from
from coppermesh.agent.mesh_words import joining_request
from coppermesh.agent.private_mesh import PrivateMesh, Terms
from coppermesh.agent.quota_desk import QuotaDesk
from coppermesh.p2p.admission import KEPT_US, DoorPace
from coppermesh.p2p.certificates import DAY_US, MAX_LIFE_US, SKEW_US, Right
from coppermesh.p2p.errors import MeshError, Refused
from coppermesh.p2p.ids import PeerId, mesh_id
from coppermesh.p2p.invitation import Invitation, invitation_text, read_invitation
from coppermesh.p2p.leased_time import LeasedTime
from coppermesh.p2p.membership_records import Quota, Usage
from coppermesh.p2p.signing import PeerKey
from coppermesh.p2p.usage import HOUR_US, INTERVAL_US, UNSIGNED_US, UsageBook

NOW = 1_800_000_000_000_000
DOOR = "/ip4/192.0.2.1/tcp/4003/p2p/12D3KooWGjvsjRwpXqrBKnCr68JUBoNLZRQgARhm9yKYBmE7uEDi"


def new_home(base: Path, name: str) -> Home:
    home = Home(base / name)
    home.prepare()
    return home


@pytest.fixture
def alice(tmp_path: Path) -> PrivateMesh:
    return create_private_mesh(new_home(tmp_path, "alice"), "lab", "alice", "", "", NOW)


def invited(mesh: PrivateMesh, now: int = NOW, **terms) -> Invitation:
    return read_invitation(mesh.invite(Terms(**{"expires_us": now + DAY_US, **terms}), [DOOR], now))


def ask(
    mesh: PrivateMesh, invitation: Invitation, key: PeerKey, now: int = NOW, place: str = "one", **changed
):
    request = joining_request(key, mesh.mesh, mesh.key.peer, invitation.token, "bob", now)
    request = msgspec.structs.replace(request, **changed)
    return mesh.admit(key.peer, place, request, [DOOR], [DOOR], now)


def code_of(call, *arguments, **named) -> str:
    with pytest.raises(Refused) as error:
        call(*arguments, **named)
    return error.value.code


def join(tmp_path: Path, mesh: PrivateMesh, name: str, now: int = NOW, **terms) -> PrivateMesh:
    home = new_home(tmp_path, name)
    invitation = invited(mesh, now, **terms)
    key = PeerKey.load_or_create(home.key_path(invitation.mesh))
    reply = ask(mesh, invitation, key, now, place=name)
    return adopt_admission(home, invitation, key, reply, "", "", now)


def test_what_is_made_is_private_and_comes_back(alice, tmp_path):
    home = alice.home
    for path in (state_path(home, alice.mesh), root_key_path(home, alice.mesh), home.key_path(alice.mesh)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = open_private_mesh(home, alice.mesh, NOW)
    assert again.state == alice.state
    assert again.member(NOW).certificate.role == "admin"
    assert [state.name for state in private_meshes(home)] == ["lab"]
    assert id_of(home, "lab") == alice.mesh
    assert id_of(home, "other") == mesh_id("other")
    path = state_path(home, alice.mesh)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StateError, match="damaged"):
        load_state(path)


def test_two_meshes_of_one_name_are_told_apart_by_their_ids(alice):
    create_private_mesh(alice.home, "lab", "alice", "", "", NOW)
    states = private_meshes(alice.home)
    with pytest.raises(MeshError, match="several meshes"):
        find_mesh(states, "lab")
    assert find_mesh(states, alice.mesh.hex()[:8]) == alice.state
    assert find_mesh(states, "zzz") is None


def test_an_invitation_admits_once_and_again_whoever_lost_the_reply(alice):
    invitation, bob = invited(alice), PeerKey.generate()
    reply = ask(alice, invitation, bob)
    assert reply.swarm_key == alice.state.swarm_key
    assert alice.book.member(bob.peer, NOW) is not None
    # On disk before the reply: an agent that is killed right now has counted the use.
    [issued] = load_state(state_path(alice.home, alice.mesh)).invitations
    assert [use.subject for use in issued.used] == [bob.peer]
    assert ask(alice, invitation, bob).chain == reply.chain
    assert code_of(ask, alice, invitation, PeerKey.generate()) == "used-invitation"
    after = open_private_mesh(alice.home, alice.mesh, NOW)
    assert code_of(ask, after, invitation, PeerKey.generate()) == "used-invitation"


def test_every_refusal_at_the_door(alice):
    bob = PeerKey.generate()
    invitation = invited(alice)
    unknown = msgspec.structs.replace(invitation, token=bytes(16))
    assert code_of(ask, alice, unknown, bob, place="a") == "unknown-invitation"
    assert code_of(ask, alice, invitation, bob, NOW + DAY_US, place="b") == "expired-invitation"
    late = joining_request(bob, alice.mesh, alice.key.peer, invitation.token, "bob", NOW - SKEW_US - 1)
    assert code_of(alice.admit, bob.peer, "c", late, [], [], NOW) == "clock"
    other = joining_request(bob, alice.mesh, bob.peer, invitation.token, "bob", NOW)
    assert code_of(alice.admit, bob.peer, "d", other, [], [], NOW) == "not-for-us"
    stolen = joining_request(bob, alice.mesh, alice.key.peer, invitation.token, "bob", NOW)
    assert code_of(alice.admit, PeerKey.generate().peer, "e", stolen, [], [], NOW) == "forged"
    nothing = joining_request(bob, alice.mesh, alice.key.peer, None, "bob", NOW)
    assert code_of(alice.admit, bob.peer, "f", nothing, [], [], NOW) == "no-certificate"
    assert alice.state.next_serial == 1  # none of these has cost a certificate
    for _ in range(8):
        code_of(ask, alice, unknown, bob, place="flood")
    assert code_of(ask, alice, invitation, bob, place="flood") == "too-many"
    ask(alice, invitation, bob, place="elsewhere")


def test_a_replayed_request_gives_a_stranger_nothing(alice):
    # Who recorded Bob's request has not his key: the connection proves another peer than the one that signed.
    bob, thief = PeerKey.generate(), PeerKey.generate()
    invitation = invited(alice)
    request = joining_request(bob, alice.mesh, alice.key.peer, invitation.token, "bob", NOW)
    alice.admit(bob.peer, "a", request, [], [], NOW)
    assert code_of(alice.admit, thief.peer, "b", request, [], [], NOW) == "forged"


def test_who_may_invite_gives_no_more_than_it_has(alice, tmp_path):
    quota = Quota("cuda", HOUR_US, DAY_US)
    helper = join(tmp_path, alice, "helper", role="admin", quota=quota)
    assert code_of(helper.invite, Terms(expires_us=NOW + 1), [DOOR], NOW) == "wider-quota"
    carol = join(tmp_path, helper, "carol", role="submit-only", quota=quota)
    assert carol.member(NOW).links[-1].record.issuer == helper.key.peer
    assert not carol.may(Right.PROVIDE, NOW)
    assert code_of(carol.invite, Terms(expires_us=NOW + 1), [DOOR], NOW) == "may-not-issue"
    assert code_of(alice.invite, Terms(expires_us=NOW + 1), [], NOW) == "no-door"
    # As deep as it goes: an admin of an admin of an admin invites nobody.
    second = join(tmp_path, helper, "second", role="admin", quota=quota)
    third = join(tmp_path, second, "third", role="member", quota=quota)
    assert len(third.chain) == 4
    assert third.may_show(NOW)


def test_certificates_renew_within_their_last_third(alice, tmp_path):
    bob = join(tmp_path, alice, "bob")
    assert not bob.needs_renewal(NOW + 19 * DAY_US)
    later = NOW + 21 * DAY_US
    assert bob.needs_renewal(later)
    assert alice.needs_renewal(later)
    assert alice.renew_by_root(later)
    assert not bob.renew_by_root(later)
    chain = alice.renew_for(alice.book.check(bob.chain, bob.key.peer, later), later)
    bob.take_chain(chain, later)
    assert bob.member(later).expires_us == later + MAX_LIFE_US
    assert code_of(bob.take_chain, chain, later) == "not-longer"
    assert open_private_mesh(bob.home, bob.mesh, NOW + 50 * DAY_US).may_show(NOW + 50 * DAY_US)
    assert not bob.may_show(NOW + 52 * DAY_US)


def test_a_revoked_member_is_refused_everywhere_and_gets_no_new_key(alice, tmp_path):
    bob, carol = join(tmp_path, alice, "bob"), join(tmp_path, alice, "carol")
    notice = alice.revoke(bob.key.peer, 0, NOW)
    rotation = alice.rotate(NOW)
    assert carol.take_revocation(notice, NOW)
    assert not carol.take_revocation(notice, NOW)
    assert carol.take_rotation(rotation, NOW)
    assert not carol.take_rotation(rotation, NOW)
    assert carol.state.swarm_key == alice.state.swarm_key != bob.state.swarm_key
    for mesh in (alice, carol, open_private_mesh(carol.home, carol.mesh, NOW)):
        with pytest.raises(Refused, match="it was revoked"):
            mesh.book.check(bob.chain, bob.key.peer, NOW)
    back = bob.joining(alice.key.peer, None, NOW)
    assert code_of(alice.admit, bob.key.peer, "x", back, [], [], NOW) == "revoked"
    renewed = bob.book.check(bob.chain, bob.key.peer, NOW)
    assert code_of(alice.renew_for, renewed, NOW) == "revoked"


def test_who_was_away_gets_the_new_key_with_its_certificate(alice, tmp_path):
    bob, carol = join(tmp_path, alice, "bob"), join(tmp_path, alice, "carol")
    alice.revoke(bob.key.peer, 0, NOW)
    alice.rotate(NOW)
    reply = alice.admit(
        carol.key.peer, "x", carol.joining(alice.key.peer, None, NOW), ["/ip4/1.2.3.4/tcp/1"], [DOOR], NOW
    )
    assert carol.take_readmission(reply, NOW)
    assert carol.state.swarm_key == alice.state.swarm_key
    assert carol.book.is_revoked(bob.key.peer)
    assert not carol.take_readmission(reply, NOW)


def test_only_admins_change_the_swarm_key_and_a_forged_one_is_refused(alice, tmp_path):
    bob, carol = join(tmp_path, alice, "bob"), join(tmp_path, alice, "carol")
    by_bob = bob.rotate(NOW)
    assert code_of(carol.take_rotation, by_bob, NOW) == "no-right"
    genuine = alice.rotate(NOW)
    swapped = msgspec.structs.replace(genuine, swarm_key=bytes(32))
    assert code_of(carol.take_rotation, swapped, NOW) == "forged"
    assert carol.state.epoch == 0


def test_two_rotations_to_one_epoch_end_in_one_key(alice, tmp_path):
    helper = join(tmp_path, alice, "helper", role="admin")
    first, second = alice.rotate(NOW), helper.rotate(NOW)
    alice.take_rotation(second, NOW)
    helper.take_rotation(first, NOW)
    assert alice.state.swarm_key == helper.state.swarm_key
    assert alice.state.epoch == helper.state.epoch == 1


def test_a_rotation_by_somebody_who_was_revoked_does_not_last(alice, tmp_path):
    thief = join(tmp_path, alice, "thief", role="admin")
    bob, carol = join(tmp_path, alice, "bob"), join(tmp_path, alice, "carol")
    for number in range(50):
        taken = thief.rotate(NOW + number)
    assert bob.take_rotation(taken, NOW + 60)
    far = msgspec.structs.replace(thief._state, epoch=1 << 61)
    thief._state = far
    assert code_of(bob.take_rotation, thief.rotate(NOW + 60), NOW + 60) == "forged"
    notice, genuine = alice.revoke(thief.key.peer, 0, NOW + 70), alice.rotate(NOW + 70)
    assert genuine.rotation != taken.rotation
    for member in (bob, carol):
        member.take_revocation(notice, NOW + 80)
        assert member.take_rotation(genuine, NOW + 80)
        assert code_of(member.take_rotation, taken, NOW + 80) == "revoked"
        assert member.state.swarm_key == alice.state.swarm_key
    assert not bob.take_rotation(genuine, NOW + 80)


def test_who_was_away_comes_back_though_the_rotations_signer_has_ended(alice, tmp_path):
    helper = join(tmp_path, alice, "helper", role="admin")
    assert alice.renew_by_root(NOW + 20 * DAY_US)
    late = NOW + 25 * DAY_US
    carol = join(tmp_path, alice, "carol", late)
    assert alice.take_rotation(helper.rotate(NOW + DAY_US), late)
    now = NOW + 35 * DAY_US  # the helper's certificate is not valid any more
    request = carol.joining(alice.key.peer, None, now)
    reply = alice.admit(carol.key.peer, "x", request, [], [DOOR], now)
    assert carol.take_readmission(reply, now)
    assert carol.state.swarm_key == alice.state.swarm_key
    assert not alice.take_rotation(carol.state.rotation, now)


def test_a_use_that_is_on_no_disk_gives_nothing(alice, tmp_path, monkeypatch):
    invitation = invited(alice)
    saved, key = [], PeerKey.generate()

    def full(home, state):
        saved.append(state)
        if len(saved) == 2:
            raise StateError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr("coppermesh.agent.private_mesh.save_state", full)
        with pytest.raises(StateError):
            ask(alice, invitation, key)
    ask(alice, invitation, PeerKey.generate(), place="two")
    assert code_of(ask, open_private_mesh(alice.home, alice.mesh, NOW), invitation, key) == "used-invitation"


def test_a_renewal_that_gains_nothing_costs_nothing(alice, tmp_path):
    bob = join(tmp_path, alice, "bob")
    before = alice.state.next_serial
    member = alice.book.check(bob.chain, bob.key.peer, NOW)
    assert code_of(alice.renew_for, member, NOW + 1) == "not-longer"
    assert alice.state.next_serial == before


def test_what_is_no_address_is_not_kept(alice, tmp_path):
    bob = join(tmp_path, alice, "bob")
    reply = alice.admit(
        bob.key.peer, "x", bob.joining(alice.key.peer, None, NOW), ["nonsense", DOOR], ["", DOOR], NOW
    )
    bob.take_readmission(reply, NOW)
    bob.learn_doors(["/ip4/1.2.3.4"])
    assert bob.state.addresses == [DOOR]
    assert DOOR in bob.state.doors
    assert all("/p2p/" in door for door in bob.state.doors)


def test_what_could_not_be_read_again_is_not_written(alice, monkeypatch):
    monkeypatch.setattr("coppermesh.agent.mesh_state.MAX_STATE_BYTES", 600)
    with pytest.raises(StateError, match="too many uses"):
        alice.rotate(NOW)
    assert load_state(state_path(alice.home, alice.mesh)) == alice.state


def test_what_was_known_already_is_not_written_again(alice, tmp_path, monkeypatch):
    join(tmp_path, alice, "bob")
    alice.keep_known(NOW)
    monkeypatch.setattr("coppermesh.agent.private_mesh.save_state", None)
    alice.keep_known(NOW)


def test_leaving_removes_keys_and_is_a_revocation_of_oneself(alice, tmp_path):
    bob = join(tmp_path, alice, "bob")
    notice = bob.revoke(bob.key.peer, 0, NOW)
    assert alice.take_revocation(notice, NOW)
    bob.forget()
    assert private_meshes(bob.home) == []
    assert not bob.home.key_path(bob.mesh).exists()


# Invitations as strings


def test_a_string_survives_mail_and_capitals_and_nothing_else(alice):
    invitation = invited(alice)
    text = invitation_text(invitation)
    assert read_invitation(text.upper()) == invitation
    assert read_invitation(f"  {text[:50]}\n {text[50:]} ") == invitation
    assert invitation.addresses[0].startswith("/ip4/192.0.2.1/tcp/4003/p2p/")
    for wrong in (
        "",
        "hello",
        "coppermesh1",
        text[:-1],
        text + "a",
        "coppermesh1" + "a" * 5000,
        "coppermesh1!!",
    ):
        with pytest.raises(MeshError):
            read_invitation(wrong)


@given(st.data())
def test_no_changed_string_is_read(data):
    invitation = Invitation(1, "lab", bytes(32), bytes(32), ["/ip4/1.2.3.4/tcp/5"], bytes(16), NOW)
    text = invitation_text(invitation)
    at = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.sampled_from("abcdefghijklmnopqrstuvwxyz234567"))
    changed = text[:at] + letter + text[at + 1 :]
    if changed != text:
        with pytest.raises(MeshError):
            read_invitation(changed)


def test_the_last_digits_spare_bits_are_none():
    digits = "abcdefghijklmnopqrstuvwxyz234567"
    for length in range(1, 9):  # every number of spare bits
        text = invitation_text(Invitation(1, "l" * length, bytes(32), bytes(32), [DOOR], bytes(16), NOW))
        for other in digits.replace(text[-1], ""):
            with pytest.raises(MeshError, match="changed or cut"):
                read_invitation(text[:-1] + other)


def test_a_spent_invitation_is_remembered_for_a_month(alice):
    invited(alice)
    alice.invitations.forget_old(NOW + DAY_US + KEPT_US - 1)
    assert len(alice.invitations.to_list()) == 1
    alice.invitations.forget_old(NOW + DAY_US + KEPT_US)
    assert alice.invitations.to_list() == []


def test_the_doors_pace_forgets():
    pace = DoorPace(each=2, together=3, window_us=10)
    pace.admit("a", 0)
    pace.admit("a", 1)
    assert code_of(pace.admit, "a", 2) == "too-many"
    pace.admit("b", 2)
    assert code_of(pace.admit, "c", 3) == "too-many"
    pace.admit("a", 11)


def test_a_whole_network_counts_as_one_visitor_at_the_door():
    pace = DoorPace(each=2, nearby=4, together=100, window_us=10)
    for host in ("2001:db8:1:1::1", "2001:db8:1:1::2"):
        pace.admit(f"/ip6/{host}", 0)
    assert code_of(pace.admit, "/ip6/2001:db8:1:1:ffff::3", 0) == "too-many"
    for host in ("2001:db8:1:2::1", "2001:db8:1:3::1"):
        pace.admit(f"/ip6/{host}", 0)
    # Another /64 of the same /48: its neighbours have had their share. A stranger has not.
    assert code_of(pace.admit, "/ip6/2001:db8:1:4::1", 0) == "too-many"
    pace.admit("/ip6/2001:db8:2:1::1", 0)
    for host in ("198.51.100.1", "198.51.100.2", "198.51.100.3", "::ffff:198.51.100.4"):
        pace.admit(f"/ip4/{host}", 0)
    assert code_of(pace.admit, "/ip4/198.51.100.9", 0) == "too-many"
    pace.admit("/ip4/203.0.113.1", 0)


def test_a_flood_from_one_network_leaves_the_door_open_for_others():
    pace = DoorPace()
    for number in range(1000):
        with suppress(Refused):
            pace.admit(f"/ip6/2001:db8:1:{number:x}::1", number)
    pace.admit("/ip6/2001:db8:ffff::1", 1000)


# Terms and quotas


@pytest.mark.parametrize(
    ("text", "quota"),
    [
        ("20gpu-hours/day", Quota("cuda", 20 * HOUR_US, DAY_US)),
        ("1gpu-hour/week", Quota("cuda", HOUR_US, 7 * DAY_US)),
        ("1.5 cpu-hours/day", Quota("cpu", 3 * HOUR_US // 2, DAY_US)),
        ("90device-minutes/hour", Quota("any", 3 * HOUR_US // 2, HOUR_US)),
    ],
)
def test_quotas_as_people_write_them(text, quota):
    assert parse_quota(text) == quota
    assert parse_quota(quota_text(quota)) == quota


@pytest.mark.parametrize(
    "text", ["", "20", "20gpu", "gpu-hours/day", "20gpu-hours", "20tpu-hours/day", "-1gpu-hours/day"]
)
def test_what_is_no_quota_is_said(text):
    with pytest.raises(ValueError, match="20gpu-hours/day"):
        parse_quota(text)


def test_terms_of_a_local_call():
    given = {"role": "member", "uses": 1, "expires": "7d", "quota": "20gpu-hours/day", "depth": None}
    assert terms_from(given, NOW) == Terms(
        "member", parse_quota("20gpu-hours/day"), None, 1, NOW + 7 * DAY_US
    )
    assert parse_span("30m") == 30 * 60_000_000
    for wrong in (
        {"role": "king"},
        {"uses": 0},
        {"uses": True},
        {"expires": "31d"},
        {"expires": "soon"},
        {"quota": "x"},
    ):
        assert code_of(terms_from, {**given, **wrong}, NOW) == "bad-argument"


def usage(provider: PeerId, requester: PeerId, device_us: int, hour: int, kind: str = "cpu") -> Usage:
    return Usage(1, bytes(16), provider, requester, kind, hour, device_us)


def test_totals_only_rise_and_own_ones_are_not_taken_from_others():
    me, other, bob = (PeerKey.generate().peer for _ in range(3))
    book, hour = UsageBook(me), NOW // HOUR_US
    quota = Quota("any", HOUR_US, 2 * HOUR_US)
    book.add_own(bob, "cuda", NOW, 5)
    assert book.hear(usage(other, bob, 7, hour), NOW, signed=True)
    assert book.hear(usage(other, bob, 6, hour), NOW, signed=True)  # late, and of no effect
    assert not book.hear(usage(me, bob, 900, hour), NOW, signed=True)
    assert not book.hear(usage(other, bob, 7, hour + 2), NOW, signed=True)
    assert not book.hear(usage(other, bob, 2000 * HOUR_US, hour), NOW, signed=True)
    assert book.used_us(bob, quota, NOW) == 12
    assert book.used_us(bob, Quota("cuda", 1, HOUR_US), NOW) == 5
    assert book.used_us(bob, quota, NOW + 4 * HOUR_US) == 0
    book.forget_old(NOW + 40 * DAY_US)
    assert book.used_us(bob, Quota("any", 1, 100 * DAY_US), NOW) == 0


def test_news_are_told_once_and_repeated_for_newcomers():
    me, bob = PeerKey.generate().peer, PeerKey.generate().peer
    book, hour = UsageBook(me), NOW // HOUR_US - 1  # up to NOW, with which an hour begins
    book.add_own(bob, "cpu", NOW, 5)
    assert book.news({}, NOW) == [(bob, "cpu", hour, 5)]
    assert book.news({}, NOW) == []
    assert book.news({(bob, "cpu"): [3]}, NOW) == [(bob, "cpu", hour, 8)]
    book.add_own(bob, "cpu", NOW, 3)
    assert book.news({}, NOW) == []
    book.repeat()
    assert book.news({}, NOW) == [(bob, "cpu", hour, 8)]


def test_what_runs_over_a_full_hour_counts_once():
    me, bob, minute = PeerKey.generate().peer, PeerKey.generate().peer, 60_000_000
    book, hour = UsageBook(me), NOW // HOUR_US
    began = NOW - 5 * minute
    assert book.news({(bob, "cpu"): [4 * minute]}, began + 4 * minute) == [(bob, "cpu", hour - 1, 4 * minute)]
    later = NOW + 2 * minute
    told = book.news({(bob, "cpu"): [later - began]}, later)
    assert sorted(told) == [(bob, "cpu", hour - 1, 5 * minute), (bob, "cpu", hour, 2 * minute)]
    book.add_own(bob, "cpu", NOW + 3 * minute, 8 * minute)
    assert book.news({}, NOW + 3 * minute) == [(bob, "cpu", hour, 3 * minute)]
    assert book.used_us(bob, Quota("cpu", 1, DAY_US), NOW + 3 * minute) == 8 * minute


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(1, 9_000_000)), max_size=60), st.integers(1, 60_000_000)
)
def test_two_providers_together_overrun_a_quota_by_less_than_an_interval_each(steps, limit):
    """Bob runs wherever he is let; totals travel once an interval, the running task's among them."""
    peers = [PeerKey(bytes([n]) * 32).peer for n in (1, 2, 3)]
    bob, now = peers[2], [NOW]
    quota = Quota("cpu", limit, DAY_US)
    desks = [QuotaDesk(UsageBook(peer), lambda _peer: quota, lambda: now[0]) for peer in peers[:2]]
    running: list[int | None] = [None, None]
    used = [0, 0]

    def since(at: int) -> dict:
        started = running[at]
        return {} if started is None else {(bob, "cpu"): [now[0] - started]}

    for at, desk in enumerate(desks):
        desk.running = lambda at=at: since(at)
    told = NOW
    for at, length in steps:
        if desks[at].against(bob, "cpu") is None:
            running[at] = now[0]
        end = now[0] + length
        while now[0] < end:
            now[0] = min(end, now[0] + 1_000_000)
            if now[0] - told >= INTERVAL_US:
                told = now[0]
                for mine, other in ((0, 1), (1, 0)):
                    for requester, kind, hour, device_us in desks[mine].usage.news(
                        desks[mine].running(), now[0]
                    ):
                        desks[other].usage.hear(
                            usage(peers[mine], requester, device_us, hour, kind), now[0], signed=True
                        )
                        desks[mine].usage.signed(requester, kind, hour, device_us)
            for each in (0, 1):
                started = running[each]
                if started is not None and desks[each].against(bob, "cpu") is not None:
                    running[each] = None  # stopped: its time was used all the same
                    used[each] += now[0] - started
                    desks[each].usage.add_own(bob, "cpu", now[0], now[0] - started)
        started = running[at]
        if started is not None:
            running[at] = None
            used[at] += now[0] - started
            desks[at].usage.add_own(bob, "cpu", now[0], now[0] - started)
    assert sum(used) <= limit + 2 * (INTERVAL_US + 1_000_000)


def test_one_provider_cannot_fill_the_book_of_totals(monkeypatch):
    monkeypatch.setattr("coppermesh.p2p.usage.MAX_BY_PROVIDER", 2)
    me, flooder, other = (PeerKey.generate().peer for _ in range(3))
    book, hour = UsageBook(me), NOW // HOUR_US
    told = [book.hear(usage(flooder, PeerKey.generate().peer, 1, hour), NOW, signed=True) for _ in range(5)]
    assert told == [True, True, False, False, False]
    assert book.hear(usage(other, flooder, 1, hour), NOW, signed=True)
    book.forget_old(NOW + 40 * DAY_US)
    later = NOW + 40 * DAY_US
    assert book.hear(usage(flooder, other, 1, later // HOUR_US), later, signed=True)


def test_what_only_a_provider_says_starves_nobody():
    me, liar, other, bob = (PeerKey.generate().peer for _ in range(4))
    book, hour = UsageBook(me), NOW // HOUR_US
    quota = Quota("any", HOUR_US, DAY_US)
    for back in range(20):
        assert book.hear(usage(liar, bob, 500 * HOUR_US, hour - back), NOW, signed=False)
    assert book.used_us(bob, quota, NOW) == UNSIGNED_US
    assert book.hear(usage(other, bob, 7, hour), NOW, signed=True)
    assert book.hear(usage(other, bob, 7 + UNSIGNED_US + 1, hour), NOW, signed=False)
    assert book.used_us(bob, quota, NOW) == 7 + 2 * UNSIGNED_US


def test_a_member_that_signs_nothing_is_served_no_further():
    me, bob = PeerKey.generate().peer, PeerKey.generate().peer
    now = [NOW]
    desk = QuotaDesk(UsageBook(me), lambda _peer: Quota("cpu", HOUR_US, DAY_US), lambda: now[0])
    ran = [UNSIGNED_US - 1]
    desk.running = lambda: {(bob, "cpu"): [ran[0]]}
    assert desk.against(bob, "cpu") is None
    ran[0] += 1
    reason = desk.against(bob, "cpu")
    assert reason is not None
    assert "has not signed" in reason.sentence
    desk.usage.signed(bob, "cpu", NOW // HOUR_US, UNSIGNED_US)
    assert desk.against(bob, "cpu") is None
    desk.running = dict
    desk.usage.add_own(bob, "cpu", NOW, 2 * UNSIGNED_US)
    assert desk.against(bob, "cpu") is not None
    desk.usage.excuse()  # of an earlier run
    assert desk.against(bob, "cpu") is None


def test_a_member_signs_no_more_than_it_has_leased():
    provider, other, bob = (PeerKey.generate().peer for _ in range(3))
    leased, hour = LeasedTime(), NOW // HOUR_US
    minute = 60_000_000

    def signs(device_us: int, now: int, who: PeerId = provider, at: int = hour, kind: str = "cpu") -> bool:
        return bool(leased.sign(usage(who, bob, device_us, at, kind), now))

    assert not signs(1, NOW)
    leased.begun(b"one", provider, "cpu", NOW)
    assert signs(minute, NOW + minute)
    assert not signs(5 * minute, NOW + minute)
    assert not signs(1, NOW + minute, other)
    assert not signs(1, NOW + minute, kind="cuda")
    # What was signed of one hour is not claimed for another once more.
    assert not signs(minute, NOW + minute, at=hour - 1)
    assert not signs(minute, NOW + minute, at=hour + 2)
    leased.ended(b"one", NOW + 2 * minute)
    leased.ended(b"one", NOW + 9 * minute)
    assert signs(2 * minute, NOW + 60 * minute)
    assert not signs(3 * minute, NOW + 60 * minute)
    assert signs(2 * minute, NOW + 60 * minute)  # asked again, it signs the same again


def test_a_restarted_member_signs_what_its_ledger_shows():
    provider, bob, minute = PeerKey.generate().peer, PeerKey.generate().peer, 60_000_000
    leased = LeasedTime()
    leased.held_before(provider, "cpu", 10 * minute)
    assert leased.sign(usage(provider, bob, 11 * minute, NOW // HOUR_US), NOW)
    assert not leased.sign(usage(provider, bob, 12 * minute, NOW // HOUR_US), NOW)
