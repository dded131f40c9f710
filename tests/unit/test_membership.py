"""Chains of certificates and revocations of private meshes."""

import importlib.util
import itertools
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coppermesh.p2p.certificates import DAY_US, MAX_LIFE_US, ROLES, SKEW_US, Right, narrows, private_mesh_id
from coppermesh.p2p.envelope import open_record
from coppermesh.p2p.errors import Refused
from coppermesh.p2p.membership import MembershipBook
from coppermesh.p2p.membership_records import Certificate, Quota, Revocation
from coppermesh.p2p.records import SignedRecord

_spec = importlib.util.spec_from_file_location("lab_keys", Path(__file__).with_name("lab_keys.py"))
assert _spec is not None
assert _spec.loader is not None
lab: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(lab)
NOW, ROOT, MESH, key = lab.NOW, lab.ROOT, lab.MESH, lab.key  # fmt: skip


def refused(chain, peer, now: int = NOW, book: MembershipBook | None = None) -> str:
    with pytest.raises(Refused) as error:
        (book or lab.book()).check(chain, peer, now)
    assert error.value.sentence
    return error.value.code


def test_a_mesh_id_is_bound_to_its_root_key():
    assert private_mesh_id(ROOT.peer, "lab") != private_mesh_id(key(2).peer, "lab")
    assert private_mesh_id(ROOT.peer, "lab") != private_mesh_id(ROOT.peer, "lab2")
    with pytest.raises(ValueError, match="64"):
        private_mesh_id(ROOT.peer, "x" * 65)


@pytest.mark.parametrize("admins", [0, 1, 2, 3])
def test_a_chain_of_any_allowed_length_holds(admins):
    chain, member = lab.Chain(admins).build()
    found = lab.book().check(chain, member.peer, NOW)
    assert found.peer == member.peer
    assert found.certificate.role == "member"
    assert found.chain == chain
    assert found.expires_us == NOW + 7 * DAY_US


def test_every_refusal_by_name():
    chain, member = lab.Chain(1).build()
    first, last = chain
    issuer = key(2)
    forged = SignedRecord(last.body, last.signer, bytes(64))
    assert refused([], member.peer) == "no-certificate"
    assert refused([first, first, first, first, last], member.peer) == "chain-too-long"
    assert refused([last], member.peer) == "wrong-root"
    assert refused([first, lab.certificate(key(9), member.peer)], member.peer) == "broken-link"
    assert refused([first, forged], member.peer) == "forged"
    assert refused(chain, key(9).peer) == "wrong-subject"
    assert refused(chain, member.peer, NOW + 7 * DAY_US) == "expired"
    assert refused(chain, member.peer, NOW - DAY_US - SKEW_US - 1) == "not-yet-valid"

    def second(**fields):
        return [first, lab.certificate(issuer, member.peer, **fields)]

    assert refused(second(mesh=bytes(16)), member.peer) == "wrong-mesh"
    assert refused(second(expires_us=NOW + 7 * DAY_US + 1), member.peer) == "wider-expiry"
    long = NOW - DAY_US + MAX_LIFE_US + 1
    assert refused([lab.certificate(ROOT, member.peer, expires_us=long)], member.peer) == "too-long"
    # An admin below whom nobody may hang, a plain member, and one that gives away as much room as it has.
    leaf_admin = lab.admin(ROOT, issuer.peer, 0)
    plain = lab.certificate(ROOT, issuer.peer, depth=1)
    assert refused([leaf_admin, last], member.peer) == "may-not-issue"
    assert refused([plain, last], member.peer) == "may-not-issue"
    assert refused(second(role="admin", depth=3), member.peer) == "may-not-issue"
    # Nobody gives a right that it has not, whether it may issue or not.
    for has, gives in (("member", "admin"), ("submit-only", "member"), ("provide-only", "submit-only")):
        narrow = lab.certificate(ROOT, issuer.peer, role=has, depth=2)
        wide = lab.certificate(issuer, member.peer, role=gives, depth=1 if gives == "admin" else 0)
        assert refused([narrow, wide], member.peer) == "wider-role"


def test_a_quota_is_never_wider_than_its_issuers():
    day = Quota("cuda", 20 * 3_600_000_000, DAY_US)
    first = lab.admin(ROOT, key(2).peer, 1, quota=day)
    for quota in (None, replace_quota(day, device_us=day.device_us + 1), replace_quota(day, kind="cpu")):
        chain = [first, lab.certificate(key(2), key(3).peer, quota=quota)]
        assert refused(chain, key(3).peer) == "wider-quota"
    for quota in (day, replace_quota(day, kind="any"), replace_quota(day, device_us=1)):
        chain = [first, lab.certificate(key(2), key(3).peer, quota=quota)]
        assert lab.book().check(chain, key(3).peer, NOW).certificate.quota == quota


def replace_quota(quota: Quota, **fields: Any) -> Quota:
    return msgspec.structs.replace(quota, **fields)


quotas = st.builds(
    Quota,
    st.sampled_from(["any", "cpu", "cuda"]),
    st.integers(0, 10**13),
    st.integers(60_000_000, 10**13),
)


@given(quotas, quotas, quotas)
def test_narrowing_is_an_order(one, two, three):
    assert narrows(one, one)
    assert narrows(one, None)
    assert not narrows(None, one)
    if narrows(one, two) and narrows(two, three):
        assert narrows(one, three)


@given(st.data())
def test_no_mutation_of_a_valid_chain_validates(data):
    chain, member = lab.Chain(data.draw(st.integers(0, 2))).build()
    at = data.draw(st.integers(0, len(chain) - 1))
    field = data.draw(st.sampled_from(["body", "signer", "signature"]))
    raw = bytearray(getattr(chain[at], field))
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= 1 << data.draw(st.integers(0, 7))
    chain[at] = msgspec.structs.replace(chain[at], **{field: bytes(raw)})
    with pytest.raises(Refused):
        lab.book().check(chain, member.peer, NOW)


@given(st.permutations(range(3)), st.integers(0, 3))
def test_no_other_order_or_part_of_a_chain_validates(order, length):
    chain, member = lab.Chain(2).build()
    other = [chain[index] for index in order][:length]
    if other != chain:
        with pytest.raises(Refused):
            lab.book().check(other, member.peer, NOW)


@given(
    st.sampled_from(sorted(ROLES)),
    st.one_of(st.none(), quotas),
    st.one_of(st.none(), quotas),
    st.integers(0, 2),
    st.integers(1, 8 * DAY_US),
)
def test_what_narrows_validates_and_what_widens_does_not(role, given_quota, quota, depth, life_us):
    first = lab.admin(ROOT, key(2).peer, 2, quota=given_quota)
    second = lab.certificate(
        key(2),
        key(3).peer,
        role=role,
        quota=quota,
        depth=depth,
        not_before_us=NOW - 1,
        expires_us=NOW + life_us,
    )
    fits = narrows(quota, given_quota) and depth < 2 and life_us <= 7 * DAY_US
    if fits:
        found = lab.book().check([first, second], key(3).peer, NOW)
        assert {right for right in Right if found.may(right)} == ROLES[role]
    else:
        with pytest.raises(Refused):
            lab.book().check([first, second], key(3).peer, NOW)


# Revocations


def test_a_revoked_member_is_refused_and_forgotten():
    book = lab.book()
    chain, member = lab.Chain(1).build()
    book.learn(chain, member.peer, NOW)
    assert book.offer(lab.revocation(key(2), member.peer, chain[:1]), NOW)
    assert book.is_revoked(member.peer)
    assert book.member(member.peer, NOW) is None
    assert refused(chain, member.peer, book=book) == "revoked"
    again = lab.certificate(key(2), member.peer, serial=9)
    assert refused([chain[0], again], member.peer, book=book) == "revoked"
    assert not book.offer(lab.revocation(key(2), member.peer, chain[:1]), NOW)


def test_what_a_revoked_issuer_issued_counts_up_to_the_serial_named():
    book = lab.book()
    first = lab.admin(ROOT, key(2).peer, 1)
    chains = {n: [first, lab.certificate(key(2), key(10 + n).peer, serial=n)] for n in (1, 2, 3)}
    for number, chain in chains.items():
        book.learn(chain, key(10 + number).peer, NOW)
    assert book.highest_serial(key(2).peer) == 3
    book.offer(lab.revocation(ROOT, key(2).peer, [], last=2), NOW)
    assert [member.peer for member in book.members(NOW)] == sorted([key(11).peer, key(12).peer])
    assert refused(chains[3], key(13).peer, book=book) == "issuer-revoked"
    assert refused([first], key(2).peer, book=book) == "revoked"
    # The stricter of two revocations counts.
    book.offer(lab.revocation(ROOT, key(2).peer, [], last=0, issued_us=NOW + 1), NOW)
    assert book.members(NOW) == []


def test_who_may_revoke_whom():
    first = lab.admin(ROOT, key(2).peer, 3)
    second = lab.admin(key(2), key(3).peer, 2)
    member = lab.certificate(key(3), key(4).peer)
    cases = [
        (lab.revocation(key(4), key(5).peer, [first, second, member]), "no-right"),
        (lab.revocation(key(3), key(2).peer, [first, second]), "no-right"),
        (lab.revocation(key(4), key(3).peer, [first, second, member]), "no-right"),
        (lab.revocation(key(9), key(4).peer, []), "no-certificate"),
        (lab.revocation(key(9), key(4).peer, [first]), "wrong-subject"),
        (lab.revocation(ROOT, key(4).peer, [], mesh=bytes(16)), "wrong-mesh"),
        (lab.revocation(ROOT, key(4).peer, [], expires_us=NOW + 32 * DAY_US), "too-long"),
        (lab.revocation(ROOT, key(4).peer, [], issued_us=NOW + SKEW_US + 1), "not-yet-valid"),
        (lab.revocation(ROOT, key(4).peer, [], issued_us=NOW - 2, expires_us=NOW), "expired"),
    ]
    for notice, code in cases:
        with pytest.raises(Refused) as error:
            lab.book().offer(notice, NOW)
        assert error.value.code == code
    for notice in (
        lab.revocation(key(4), key(4).peer, [first, second, member]),
        lab.revocation(key(2), key(3).peer, [first]),
        lab.revocation(key(3), key(9).peer, [first, second]),
        lab.revocation(ROOT, key(2).peer, []),
    ):
        assert lab.book().offer(notice, NOW)


def test_the_outcome_does_not_depend_on_the_order_of_arrival():
    first, second = lab.admin(ROOT, key(2).peer, 3), lab.admin(ROOT, key(3).peer, 3)
    third = lab.admin(key(2), key(4).peer, 2)
    notices = [
        lab.revocation(ROOT, key(2).peer, [], last=5),
        lab.revocation(key(2), key(3).peer, [first]),  # by one that the root revokes: does not count
        lab.revocation(key(4), key(5).peer, [first, third]),  # issued below the serial that still counts
        lab.revocation(key(3), key(6).peer, [second]),
        lab.revocation(key(6), key(6).peer, [second, lab.certificate(key(3), key(6).peer)]),
    ]
    outcomes = set()
    for order in itertools.permutations(notices):
        book = lab.book()
        for notice in order:
            book.offer(notice, NOW)
        outcomes.add(frozenset(n for n in range(2, 7) if book.is_revoked(key(n).peer)))
    assert outcomes == {frozenset({2, 5, 6})}


def test_equals_that_revoke_each_other_are_both_out():
    first, second = lab.admin(ROOT, key(2).peer, 3), lab.admin(ROOT, key(3).peer, 3)
    book = lab.book()
    book.offer(lab.revocation(key(2), key(3).peer, [first]), NOW)
    book.offer(lab.revocation(key(3), key(2).peer, [second]), NOW)
    assert book.is_revoked(key(2).peer)
    assert book.is_revoked(key(3).peer)


def test_a_revocation_is_handed_on_until_it_expires_and_outlives_its_signers_certificate():
    book = lab.book()
    chain, member = lab.Chain(1).build()
    book.offer(lab.revocation(key(2), member.peer, chain[:1]), NOW)
    later = NOW + 8 * DAY_US  # the admin's own certificate has expired by then
    [notice] = book.revocations(later)
    fresh = lab.book()
    assert fresh.offer(notice, later)
    book.forget_expired(NOW + 31 * DAY_US)
    assert book.revocations(NOW + 31 * DAY_US) == []
    assert not book.is_revoked(member.peer)


def test_the_longest_lived_chain_of_a_member_is_kept():
    book = lab.book()
    short = [lab.certificate(ROOT, key(2).peer, expires_us=NOW + DAY_US)]
    long = [lab.certificate(ROOT, key(2).peer, serial=2)]
    book.learn(long, key(2).peer, NOW)
    assert book.learn(short, key(2).peer, NOW).certificate.serial == 2
    assert book.member(key(2).peer, NOW + 6 * DAY_US) is not None
    assert book.member(key(2).peer, NOW + 7 * DAY_US) is None
    book.forget_expired(NOW + 7 * DAY_US)
    assert book.members(NOW) == []


def test_rights_are_asked_for_by_name():
    book = lab.book()
    book.learn([lab.certificate(ROOT, key(2).peer, role="submit-only")], key(2).peer, NOW)
    assert book.require(key(2).peer, Right.SUBMIT, NOW).peer == key(2).peer
    with pytest.raises(Refused, match="submit-only may not provide"):
        book.require(key(2).peer, Right.PROVIDE, NOW)
    with pytest.raises(Refused, match="no member here"):
        book.require(key(3).peer, Right.SUBMIT, NOW)


def test_a_certificate_fits_its_limit():
    longest = Certificate(
        1, MESH, ROOT.peer, key(2).peer, (1 << 62) - 1, "provide-only",
        Quota("cuda", (1 << 62) - 1, (1 << 62) - 1), 3, "x" * 128, (1 << 62) - 2, (1 << 62) - 1,
    )  # fmt: skip
    values = {name: getattr(longest, name) for name in longest.__struct_fields__}
    signed = lab.certificate(
        ROOT, key(2).peer, **{k: v for k, v in values.items() if k not in ("issuer", "subject")}
    )
    assert open_record(Certificate, signed).record == longest


def test_nobody_revokes_the_root_key():
    first, low = lab.admin(ROOT, key(2).peer, 3), lab.admin(key(2), key(3).peer, 0)
    book = lab.book()
    for notice in (lab.revocation(key(3), ROOT.peer, [first, low]), lab.revocation(ROOT, ROOT.peer, [])):
        with pytest.raises(Refused, match="root key"):
            book.offer(notice, NOW)
    book.check([lab.certificate(ROOT, key(9).peer)], key(9).peer, NOW)


def test_whom_a_revoked_admin_made_an_admin_revokes_nobody():
    first, puppet = lab.admin(ROOT, key(2).peer, 3), lab.admin(key(2), key(3).peer, 0, serial=7)
    notices = [
        lab.revocation(key(3), key(9).peer, [first, puppet]),
        lab.revocation(ROOT, key(2).peer, [], last=6),
    ]
    for order in (notices, notices[::-1]):
        book = lab.book()
        for notice in order:
            book.offer(notice, NOW)
        assert not book.is_revoked(key(9).peer)
    book = lab.book()
    book.offer(notices[0], NOW)
    book.offer(lab.revocation(ROOT, key(2).peer, [], last=7), NOW)
    assert book.is_revoked(key(9).peer)


def test_nobody_fills_the_book_of_revocations(monkeypatch):
    monkeypatch.setattr("coppermesh.p2p.membership.MAX_REVOCATIONS", 8)
    monkeypatch.setattr("coppermesh.p2p.membership.MAX_BY_SIGNER", 5)
    book, chain = lab.book(), [lab.certificate(ROOT, key(4).peer)]
    for last in (9, 5, 7, 5, 3):
        book.offer(lab.revocation(key(4), key(4).peer, chain, last=last), NOW)
    [notice] = book.revocations(NOW)
    assert open_record(Revocation, notice.revocation).record.last_serial == 3
    admins = [[lab.admin(ROOT, key(number).peer, 0)] for number in (2, 3)]
    taken = 0
    for number, admin in zip((2, 3), admins, strict=True):
        for subject in range(20, 30):
            try:
                taken += book.offer(lab.revocation(key(number), key(subject).peer, admin), NOW)
            except Refused as error:
                assert error.code == "crowded"
    assert taken == 7
    assert book.offer(lab.revocation(ROOT, key(2).peer, []), NOW)
    assert book.is_revoked(key(2).peer)
    assert len(book.revocations(NOW)) == 8
    assert book.revocations(NOW)[0].chain == []


def test_others_words_do_not_change_what_a_member_has_shown():
    own = [lab.admin(ROOT, key(2).peer, 3)]
    hostile = [
        lab.admin(ROOT, key(3).peer, 3, expires_us=NOW + 9 * DAY_US),
        lab.certificate(key(3), key(2).peer, role="submit-only", expires_us=NOW + 9 * DAY_US),
    ]
    for order in ((True, False), (False, True)):
        book = lab.book()
        for hearsay in order:
            book.learn(hostile if hearsay else own, key(2).peer, NOW, hearsay=hearsay)
        assert book.require(key(2).peer, Right.REVOKE, NOW).chain == own
    book = lab.book()
    assert book.learn(hostile, key(2).peer, NOW, hearsay=True).certificate.role == "submit-only"
