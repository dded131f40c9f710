"""Who is asked, why others are not, and which bids are taken."""

from dataclasses import replace

import msgspec

from coppermesh.agent.matching import (
    Requirement,
    bid_misfits,
    candidates,
    misfits,
    survey,
    whom_to_ask,
)
from coppermesh.p2p.ids import PeerId
from coppermesh.p2p.records import Announcement, Bid, DeviceOffer

NOW = 1_700_000_000_000_000
GIB = 1 << 30


def device(**changes: object) -> DeviceOffer:
    offer = DeviceOffer(
        device="gpu0", kind="cuda", name="A GPU", rate=30_000, unit="usd", memory_bytes=8 * GIB, slots=2,
        features=["array-programs", "cuda-source"], meter="nvml", compute_capability="9.0", uuid=None, driver=None,
        total_bytes=8 * GIB,
    )  # fmt: skip
    return msgspec.structs.replace(offer, **changes)


def announcement(peer: bytes = b"p", *devices: DeviceOffer, **changes: object) -> Announcement:
    made = Announcement(
        version=1, mesh=bytes(16), peer=peer.ljust(32, b"."), sequence=1, issued_us=NOW, expires_us=NOW + 10**7,
        software="test", addresses=[], devices=list(devices or (device(),)), isolation=["seccomp"], busy_slots=0,
        paused=False, shard="",
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


def bid(peer: bytes = b"p", **changes: object) -> Bid:
    made = Bid(
        version=1, mesh=bytes(16), provider=peer.ljust(32, b"."), order=bytes(32), nonce=bytes(16), issued_us=NOW,
        expires_us=NOW + 10**6, device="gpu0", device_kind="cuda", device_name="A GPU", memory_bytes=8 * GIB,
        rate=30_000, unit="usd", depth=4, speed=0,
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


NEED = Requirement(device_kind="cuda", memory_bytes=GIB, max_rate=50_000)


def test_a_device_that_fits_has_no_reasons_against_it() -> None:
    assert misfits(announcement(), device(), NEED) == []


def test_every_reason_is_told_at_once() -> None:
    need = Requirement(
        device_kind="cpu",
        model="h100",
        features=frozenset({"scan"}),
        isolation=("landlock",),
        memory_bytes=99 * GIB,
        max_rate=1,
    )
    found = misfits(announcement(paused=True), device(), need)
    for part in [
        "paused",
        "cuda device, wanted cpu",
        "gpu0 is A GPU, wanted is h100",
        "does not take scan",
        "landlock",
        "GiB of memory, wanted 99 GiB (cm.trace_report",
        "0.03 usd/h",
    ]:
        assert any(part in reason.sentence for reason in found), part
    assert len(found) == 7


def test_prices_in_another_unit_are_not_compared() -> None:
    (found,) = misfits(announcement(), device(unit="eur", rate=1), NEED)
    assert str(found) == "unit: gpu0 is priced in eur, wanted usd"


def test_candidates_are_free_first_then_cheap_then_by_peer() -> None:
    heard = [
        announcement(b"busy", device(rate=1), busy_slots=2),
        announcement(b"dear", device(rate=40_000)),
        announcement(b"b"),
        announcement(b"a"),
    ]
    assert [found.peer.rstrip(b".") for found in candidates(heard, NEED, NOW)] == [
        b"a",
        b"b",
        b"dear",
        b"busy",
    ]


def test_the_survey_keeps_why_each_of_the_others_was_passed_over() -> None:
    heard = [
        announcement(b"old", expires_us=NOW),
        announcement(b"left"),
        announcement(b"bare", devices=[]),
        announcement(b"small", device(memory_bytes=1)),
    ]
    found = survey(heard, NEED, NOW, exclude={PeerId(b"left".ljust(32, b"."))})
    assert found.fitting == ()
    why = {peer.rstrip(b"."): str(reasons[0]) for peer, reasons in found.misfits.items()}
    assert why[b"old"] == "silent: its announcement has expired"
    assert why[b"left"].startswith("left-out: is left out for now")
    assert why[b"bare"] == "no-device: offers no device"
    assert why[b"small"].startswith("memory: gpu0 has 1 bytes of memory")


def test_the_survey_tells_reasons_that_last_from_those_that_pass() -> None:
    heard = [
        announcement(b"n", device(device="cpu", kind="cpu", features=["array-programs"])),
        announcement(b"p", device(device="cpu", kind="cpu"), paused=True),
        announcement(b"x", device(device="cpu", kind="cpu")),
        announcement(b"r", devices=[]),
        announcement(b"f"),
    ]
    found = survey(heard, NEED, 5, frozenset({PeerId(b"x".ljust(32, b"."))}))
    assert found.lasting == {PeerId(b"n".ljust(32, b"."))}
    assert found.without_device == {PeerId(b"r".ljust(32, b"."))}
    assert found.misfits.keys() == {PeerId(name.ljust(32, b".")) for name in (b"n", b"p", b"x", b"r")}


def test_a_cpu_without_kernels_says_what_it_lacks() -> None:
    need = Requirement(features=frozenset({"cuda-source"}), max_rate=50_000)
    cpu = device(device="cpu", kind="cpu", features=["array-programs"])
    (reason,) = misfits(announcement(), cpu, need)
    lacks = "there is no C++ compiler, or the machine is not x86-64"
    assert str(reason) == f"features: cpu does not take cuda-source ({lacks})"


def test_of_several_devices_the_cheapest_that_fits_is_taken() -> None:
    heard = announcement(
        b"p",
        device(device="gpu0", rate=40_000),
        device(device="gpu1"),
        device(device="cpu", kind="cpu", rate=1),
    )
    assert [found.device.device for found in candidates([heard], NEED, NOW)] == ["gpu1"]


def test_a_bid_is_held_to_the_order() -> None:
    assert bid_misfits(bid(), NEED) == []
    bad = bid(device_kind="cpu", memory_bytes=1, rate=50_001)
    assert len(bid_misfits(bad, NEED)) == 3
    assert len(bid_misfits(bid(speed=9), replace(NEED, model="h100", min_speed=10))) == 2
    assert bid_misfits(bid(unit="eur", rate=10**9), NEED) == ["bids in eur, wanted usd"]


def test_requirements_that_differ_only_in_how_many_share_leases() -> None:
    assert Requirement(max_rate=1, providers=3).for_lease() == Requirement(max_rate=1)
    assert hash(Requirement(max_rate=1, providers=3).for_lease()) == hash(Requirement(max_rate=1))


def test_a_few_are_asked_for_each_lease_and_not_the_same_by_everybody() -> None:
    known = [
        announcement(
            bytes([65 + number // 26, 65 + number % 26]),
            device(rate=10_000 + number),
            busy_slots=2 * (number < 20),
        )
        for number in range(120)
    ]
    fitting = survey(known, NEED, NOW).fitting

    def asked(count: int, fruitless: int = 0, seed: int = 0) -> list[PeerId]:
        chosen = whom_to_ask(fitting, count, fruitless, lambda peer: bytes([peer[1] * (seed + 7) % 251]))
        return [one.peer for one in chosen]

    assert len(asked(1)) == 16
    assert len(asked(10)) == 30
    assert len(asked(1, fruitless=1)) == 32
    assert len(asked(1, fruitless=60)) == len(asked(0)) == len(asked(100)) == 64
    assert asked(1)[:8] == [one.peer for one in fitting[:8]], "half of them the best by announcement"
    assert asked(1, seed=1)[8:] != asked(1)[8:], "the others drawn"
    free = {one.peer for one in fitting if not one.busy}
    assert set(asked(4)) <= free
    assert whom_to_ask(fitting[:5], 1, 0, bytes) == list(fitting[:5])
