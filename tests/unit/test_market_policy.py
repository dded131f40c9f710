"""What a provider bids on, and that every refusal says something a person can act on."""

import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coppermesh.agent.hours import parse_window
from coppermesh.agent.policy import (
    DECLINE_CODES,
    MAX_SENTENCE,
    SANDBOX_FLOOR,
    BidTerms,
    DeclineReason,
    DeviceState,
    Limits,
    ProviderState,
    decide,
    decline,
)
from coppermesh.agent.policy_case import span
from coppermesh.agent.sharing import Obstacle, Sharing
from coppermesh.exec.sandbox.layers import FLOOR
from coppermesh.p2p.ids import MeshId, PeerId, format_peer
from coppermesh.p2p.records import Decline, DeviceOffer, Order

NOW = 1_700_000_000_000_000
SECOND = 1_000_000
DAY = 86_400 * SECOND
MESH = MeshId(b"m" * 16)
STRANGER, FRIEND = PeerId(b"s" * 32), PeerId(b"f" * 32)

GPU = DeviceOffer(
    device="gpu0", kind="cuda", name="A GPU", rate=36_000, unit="usd", memory_bytes=8 << 30, slots=1,
    features=["array-programs", "cuda-source"], meter="nvml", compute_capability="9.0", uuid=None, driver=None,
    total_bytes=8 << 30,
)  # fmt: skip
CPU = msgspec.structs.replace(
    GPU, device="cpu", kind="cpu", rate=3_600, memory_bytes=1 << 30, total_bytes=None
)

ORDER = Order(
    version=1, mesh=MESH, requester=STRANGER, nonce=bytes(16), job=bytes(16), issued_us=NOW,
    expires_us=NOW + 10 * SECOND, device_kind="any", model="", features=["array-programs"], isolation=[],
    memory_bytes=1 << 20, min_speed=0, tasks=4, copies=1, wall_limit_us=10 * SECOND, max_rate=100_000, unit="usd",
    budget=1_000, lease_us=600 * SECOND, deadline_us=NOW + 900 * SECOND,
)  # fmt: skip


def order(**changes: Any) -> Order:
    return msgspec.structs.replace(ORDER, **changes)


def state(*devices: DeviceState, **changes: Any) -> ProviderState:
    known: dict[str, Any] = {"isolation": ("seccomp",), "allowed": frozenset({FRIEND})} | changes
    return ProviderState(mesh=MESH, devices=devices or (DeviceState(GPU, 1), DeviceState(CPU, 1)), **known)


def refusal(asked: Order, having: ProviderState, requester: PeerId = STRANGER) -> DeclineReason:
    answer = decide(asked, requester, having, NOW)
    assert isinstance(answer, DeclineReason), answer
    return answer


def test_the_cheapest_device_that_fits_is_bid() -> None:
    terms = decide(ORDER, STRANGER, state(), NOW)
    assert isinstance(terms, BidTerms)
    assert (terms.device.device, terms.rate, terms.unit) == ("cpu", 3_600, "usd")
    assert terms.expires_us == ORDER.expires_us, "a bid does not outlive its order"
    assert terms.depth == Limits().depth
    busy = decide(ORDER, STRANGER, state(DeviceState(GPU, 1), DeviceState(CPU, 0)), NOW)
    assert isinstance(busy, BidTerms)
    assert busy.device.device == "gpu0"


def test_a_bid_expires_by_itself() -> None:
    terms = decide(order(expires_us=NOW + 50 * SECOND), STRANGER, state(), NOW)
    assert isinstance(terms, BidTerms)
    assert terms.expires_us == NOW + Limits().bid_us


def test_strangers_send_source_where_the_sandbox_was_seen_to_hold() -> None:
    asked = order(features=["cuda-source"])
    assert FLOOR == SANDBOX_FLOOR
    for isolation in ((), ("landlock",), ("seccomp", "mountns", "netns", "pidns", "uid")):
        assert refusal(asked, state(DeviceState(GPU, 1), isolation=isolation)).code == "not-allowed"
        assert isinstance(
            decide(asked, FRIEND, state(DeviceState(GPU, 1), isolation=isolation), NOW), BidTerms
        )
    assert isinstance(
        decide(asked, STRANGER, state(DeviceState(GPU, 1), isolation=("landlock", "seccomp")), NOW), BidTerms
    )


NIGHT = (parse_window("23:00-22:00"),)
"""Open but for an hour in which `NOW` (22:13 UTC) lies."""
GPU_ONLY = state(DeviceState(GPU, 1))
CASES: list[tuple[str, Order, ProviderState, str]] = [
    ("wrong-mesh", order(mesh=b"x" * 16), state(), "join that mesh"),
    ("clock-skew", order(issued_us=NOW + DAY, expires_us=NOW + DAY + 1), state(), "1 d ahead"),
    ("clock-skew", order(issued_us=NOW - DAY, expires_us=NOW - DAY + 1), state(), "expired 23 h 59 min ago"),
    ("expired", order(issued_us=NOW - 10, expires_us=NOW), state(), "send a new one"),
    ("expired", order(expires_us=NOW), state(), "valid for some seconds"),
    ("too-many-orders", ORDER, state(recent_orders=100), "wait 10 s"),
    ("too-many-leases", ORDER, state(requester_holds=16), "release a lease"),
    ("paused", ORDER, state(paused=True), "coppermesh resume"),
    ("paused", ORDER, state(sharing=Sharing(paused=True)), "coppermesh resume"),
    ("out-of-hours", ORDER, state(sharing=Sharing(hours=NIGHT, time_zone="UTC")), "closed until 23:00"),
    ("denied", ORDER, state(sharing=Sharing(deny=(STRANGER,), allow=(STRANGER,))), "from this requester"),
    ("not-listed", ORDER, state(sharing=Sharing(allow=(FRIEND,))), "peers on a list"),
    ("reputation", ORDER, state(sharing=Sharing(min_reputation=501)), "501 or more; yours here is 500"),
    ("unpaid", ORDER, state(unpaid="2 receipts wait for your countersignature"), "2 receipts wait"),
    (
        "not-contained",
        ORDER,
        state(sharing=Sharing(need_isolation=("seccomp", "landlock"))),
        "by landlock, not",
    ),
    ("wall-limit", order(wall_limit_us=2 * 3600 * SECOND), state(), "1 h here, the order allows 2 h"),
    ("wall-limit", order(wall_limit_us=0), state(), "above zero"),
    ("lease-length", order(lease_us=DAY), state(), "at most 1 h 1 min here"),
    ("lease-length", order(lease_us=SECOND), state(), "ends before one task"),
    (
        "isolation",
        order(isolation=["seccomp", "landlock"]),
        state(),
        "not witnessed on this machine: landlock",
    ),
    ("no-device", ORDER, ProviderState(mesh=MESH, devices=()), "ask another"),
    ("device-kind", order(device_kind="cpu"), GPU_ONLY, "wanted a cpu device; gpu0 is cuda"),
    ("model", order(model="H100"), GPU_ONLY, "wanted a H100; gpu0 is a A GPU"),
    ("measuring", order(min_speed=1), GPU_ONLY, "gpu0 is not known yet"),
    ("speed", order(min_speed=701), state(DeviceState(GPU, 1, speed=700)), "measured at 700 Mop/s"),
    ("deadline", order(deadline_us=NOW), state(), "order for a later one"),
    ("features", order(features=["scan"]), GPU_ONLY, "does not take scan"),
    ("not-allowed", order(features=["cuda-source"]), GPU_ONLY, f"--allow {format_peer(STRANGER)}"),
    ("memory", order(memory_bytes=1 << 50), GPU_ONLY, "1125899906842624"),
    ("unit", order(unit="eur"), GPU_ONLY, "priced in usd, the order pays in eur"),
    ("below-cost", order(max_rate=39_999), state(DeviceState(GPU, 1, floor=40_000)), "lent for 0.04 usd/h"),
    ("rate", order(max_rate=35_999), GPU_ONLY, "costs 0.036 usd/h, the order pays at most 0.035999 usd/h"),
    (
        "budget",
        order(budget=99),
        GPU_ONLY,
        "can cost 0.0001 usd on gpu0, the budget is 0.000099 usd: give 100 or more",
    ),
    *[
        (
            code,
            ORDER,
            state(DeviceState(GPU, 1, (Obstacle(code, "not now", "pid 1234 of user x"),))),
            "not now",
        )
        for code in (
            "taken-back",
            "device-busy",
            "unfit",
            "too-hot",
            "power-limit",
            "load-limit",
            "kept-memory",
            "not-known",
        )
    ],
    ("disk-full", ORDER, state(disk_full=True), "free some space"),
    ("busy", ORDER, state(DeviceState(GPU, 0)), "ask again later"),
]


@pytest.mark.parametrize(
    ("code", "asked", "having", "part"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)]
)
def test_each_refusal_has_its_code_and_says_what_would_help(
    code: str, asked: Order, having: ProviderState, part: str
) -> None:
    answer = refusal(asked, having)
    assert answer.code == code
    assert part in answer.sentence


def test_every_code_is_covered_here_or_made_elsewhere() -> None:
    assert {case[0] for case in CASES} == set(DECLINE_CODES) - {"internal", "quota"}


def test_a_model_is_part_of_the_name_in_any_case_and_a_speed_is_told_with_the_bid() -> None:
    terms = decide(order(model="a gPu", min_speed=700), STRANGER, state(DeviceState(GPU, 1, speed=700)), NOW)
    assert isinstance(terms, BidTerms)
    assert terms.speed == 700


def test_who_is_allowed_is_served_and_a_device_that_is_needed_leaves_the_others_to_be_bid() -> None:
    friendly = state(sharing=Sharing(allow=(FRIEND,), deny=(STRANGER,)))
    assert isinstance(decide(order(requester=FRIEND), FRIEND, friendly, NOW), BidTerms)
    needed = (Obstacle("device-busy", "not now"),)
    terms = decide(ORDER, STRANGER, state(DeviceState(GPU, 1), DeviceState(CPU, 1, needed)), NOW)
    assert isinstance(terms, BidTerms)
    assert terms.device.device == "gpu0"


def test_the_policy_negotiates_a_rate_below_cost_up_to_the_floor() -> None:
    terms = decide(order(max_rate=40_000), STRANGER, state(DeviceState(GPU, 1, floor=40_000)), NOW)
    assert isinstance(terms, BidTerms)
    assert (terms.rate, terms.device.rate) == (40_000, 36_000)


def test_who_is_trusted_needs_no_reputation_and_no_layers() -> None:
    strict = state(sharing=Sharing(min_reputation=1000, need_isolation=("landlock",)), requester_score=10)
    assert isinstance(decide(order(requester=FRIEND), FRIEND, strict, NOW), BidTerms)


def test_one_step_less_and_it_would_have_been_a_bid() -> None:
    """The borders are where the sentences say: the values just inside are bid on."""
    for inside in [
        order(max_rate=36_000),
        order(budget=100),
        order(lease_us=10 * SECOND),
        order(memory_bytes=8 << 30),
    ]:
        assert isinstance(decide(inside, STRANGER, GPU_ONLY, NOW), BidTerms)
    skewed = order(issued_us=NOW + 60 * SECOND, expires_us=NOW + 61 * SECOND)
    assert isinstance(decide(skewed, STRANGER, GPU_ONLY, NOW), BidTerms)


def test_source_code_is_taken_from_named_peers_only() -> None:
    asked = order(features=["array-programs", "cuda-source"])
    assert isinstance(decide(asked, FRIEND, state(), NOW), BidTerms)
    assert refusal(asked, state()).code == "not-allowed"


def test_who_sent_it_is_what_counts_not_who_it_claims_to_be() -> None:
    asked = order(features=["cuda-source"], requester=FRIEND)
    assert refusal(asked, state(), STRANGER).code == "not-allowed"


def test_the_reason_is_that_of_the_device_that_came_closest() -> None:
    """The CPU has the wrong kind; the GPU only costs too much, which is worth knowing."""
    asked = order(device_kind="cuda", max_rate=1)
    assert refusal(asked, state()).code == "rate"


def test_a_code_that_is_not_listed_is_a_bug() -> None:
    with pytest.raises(ValueError, match="not listed"):
        decline("because", "no")


def test_a_long_sentence_is_cut_to_what_the_record_takes() -> None:
    features = [f"feature-{number}-{'x' * 20}" for number in range(32)]
    answer = refusal(order(features=features), state())
    assert len(answer.sentence) == MAX_SENTENCE
    assert answer.sentence.endswith("...")


codes = st.from_regex(r"[a-z0-9-]{1,40}", fullmatch=True)
counts = st.one_of(st.integers(0, 200), st.integers(0, (1 << 62) - 1))
times = st.one_of(counts, st.integers(NOW - 2 * DAY, NOW + 2 * DAY))


@given(
    asked=st.builds(
        Order, version=st.just(1), mesh=st.sampled_from([MESH, b"x" * 16]), requester=st.just(STRANGER),
        nonce=st.just(bytes(16)), job=st.just(bytes(16)), issued_us=times, expires_us=times,
        device_kind=st.sampled_from(["any", "cpu", "cuda"]),
        features=st.lists(st.one_of(codes, st.sampled_from(["array-programs", "cuda-source"])), max_size=32),
        isolation=st.lists(codes, max_size=16), memory_bytes=counts, tasks=counts, wall_limit_us=counts,
        max_rate=counts, unit=st.one_of(st.just("usd"), codes), budget=counts, lease_us=counts,
        model=st.sampled_from(["", "a gpu", "h100"]), min_speed=counts, copies=st.integers(1, 8), deadline_us=times,
    ),
    paused=st.booleans(),
    free=st.integers(0, 2),
)  # fmt: skip
def test_any_order_gets_terms_or_a_reason_that_fits_the_wire(asked: Order, paused: bool, free: int) -> None:
    having = state(DeviceState(GPU, free), DeviceState(CPU, free), paused=paused)
    answer = decide(asked, STRANGER, having, NOW)
    if isinstance(answer, BidTerms):
        assert NOW < answer.expires_us <= asked.expires_us
        assert answer.rate <= asked.max_rate
        assert not paused
        assert free
        assert "cuda-source" not in asked.features
        return
    _as_record(answer)
    assert re.search(r"[a-z]", answer.sentence)


def _as_record(reason: DeclineReason) -> None:
    record = Decline(
        version=1, mesh=MESH, provider=FRIEND, order=bytes(32), issued_us=NOW, code=reason.code,
        sentence=reason.sentence,
    )  # fmt: skip
    msgspec.convert(msgspec.to_builtins(record, builtin_types=(bytes,)), Decline)


def test_the_spans_of_time_read_well() -> None:
    assert [span(us) for us in (0, 4_000, 59 * SECOND, 60 * SECOND, 3_661 * SECOND, 90_061 * SECOND)] == [
        "0 s", "0.004 s", "59 s", "1 min", "1 h 1 min", "1 d 1 h",
    ]  # fmt: skip
