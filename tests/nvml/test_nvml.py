"""What is made of NVML: fields, missing fields, faults, partitions, and that a stand-in is always told as one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from coppermesh.agent import screens
from coppermesh.exec import device
from coppermesh.exec.device import CONTEXT_BYTES, probe_gpus
from coppermesh.exec.keeper import WorkerUnavailable
from coppermesh.exec.metering import close_meter, open_meter_in_time, read_energy
from coppermesh.exec.supervisor import open_supervisor

HERE = Path(__file__).parent
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
GIB = 1 << 30
NOT_SUPPORTED, UNKNOWN, LOST = 3, 999, 15

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler on this machine")


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    path = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    source = HERE / "fake_nvml.c"
    command = [COMPILER, "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-o", path, source]
    subprocess.run(command, check=True)
    return path


@pytest.fixture
def show(library, tmp_path, monkeypatch):
    """Make this machine show the cards of a profile, with more lines for its last card or its driver."""
    folder = tmp_path / "lib"
    folder.mkdir()
    shutil.copy(library, folder)

    def show(profile="t4", card="", driver=""):
        text = (HERE / "profiles" / f"{profile}.txt").read_text()
        (folder / "profile.txt").write_text(f"{driver}\n{text}{card}\n")
        monkeypatch.setenv("LD_LIBRARY_PATH", str(folder))
        return probe_gpus()

    return show


def test_a_cards_fields(show):
    (card,) = show("t4")
    assert card.device == "gpu0"
    assert card.name == "Tesla T4 (simulated)"
    assert card.total_bytes == 15 * GIB
    assert card.memory_bytes == 15 * GIB - 471859200 - CONTEXT_BYTES
    assert (card.compute_capability, card.uuid) == ("7.5", "GPU-00000000-0000-4000-8000-000000000004")
    assert card.driver == "550.54.15-simulated"
    assert card.cores is None


def test_everything_of_a_stand_in_says_so(show):
    for profile in ("t4", "rtx4090", "a100-mig", "h100"):
        for card in show(profile):
            assert card.simulated
            assert card.features == ("simulated",), "no program fits it"
            assert card.name.endswith("(simulated)")
            assert card.driver.endswith("-simulated")
            assert card.meter in ("simulated", "none")


def test_a_consumer_card_without_a_counter_has_no_meter(show):
    (card,) = show("rtx4090")
    assert card.meter == "none"
    assert card.compute_capability == "8.9"


def test_a_busy_card_offers_what_is_free(show):
    first, second = show("h100")
    assert first.memory_bytes > 70 * GIB
    assert second.memory_bytes == 5 * GIB - CONTEXT_BYTES
    assert [card.device for card in (first, second)] == ["gpu0", "gpu1"]


def test_a_full_card_offers_nothing_and_is_not_negative(show):
    (card,) = show("t4", card="memory=1000 1000")
    assert card.memory_bytes == 0


def test_a_partitioned_card_is_its_instances(show):
    cards = show("a100-mig")
    assert [card.device for card in cards] == ["gpu0-0", "gpu0-1"]
    assert all(card.total_bytes == 20 * GIB and card.uuid.startswith("MIG-") for card in cards)
    assert [card.compute_capability for card in cards] == ["8.0", "8.0"], "the whole card's"
    assert [card.meter for card in cards] == ["none", "none"], "the counter is the whole card's, not theirs"


FIELDS = {
    "DeviceGetName": ("name", "NVIDIA GPU (simulated)"),
    "DeviceGetUUID": ("uuid", None),
    "DeviceGetCudaComputeCapability": ("compute_capability", None),
    "DeviceGetTotalEnergyConsumption": ("meter", "none"),
    "DeviceGetMigMode": ("total_bytes", 15 * GIB),
    "SystemGetDriverVersion": ("driver", None),
}


@pytest.mark.parametrize("answer", [NOT_SUPPORTED, LOST, UNKNOWN])
@pytest.mark.parametrize("function", FIELDS)
def test_a_field_that_fails_is_nil_and_the_rest_stays(show, function, answer):
    field, value = FIELDS[function]
    (card,) = show("t4", driver=f"fault={function} {answer}")
    assert getattr(card, field) == value
    assert card.simulated
    assert card.total_bytes == 15 * GIB


def test_without_a_uuid_nothing_is_metered(show):
    (card,) = show("t4", card=f"fault=DeviceGetUUID {NOT_SUPPORTED}")
    assert card.meter == "none"


@pytest.mark.parametrize(
    "function", ["InitWithFlags", "DeviceGetCount", "DeviceGetHandleByIndex", "DeviceGetMemoryInfo"]
)
def test_without_what_a_card_needs_there_is_none(show, function):
    assert show("t4", driver=f"fault={function} {LOST}") == []


def test_a_lost_card_does_not_take_the_others_with_it(show):
    (card,) = show("h100", card=f"fault=DeviceGetHandleByIndex {LOST}")
    assert card.device == "gpu0"


def test_a_card_that_hangs_costs_a_deadline_and_the_cards_before_it_stay(show, monkeypatch):
    monkeypatch.setattr(device, "PROBE_SECONDS", 2.0)
    (card,) = show("h100", card="hang=DeviceGetMemoryInfo")
    assert card.device == "gpu0"


def test_more_cards_than_an_announcement_holds(show):
    cards = show("t4", card="\n".join(f"gpu\nname=x{n}\nmemory=100 1" for n in range(20)))
    assert len(cards) == device.MAX_GPUS


def test_a_driver_that_looks_simulated_is_enough(monkeypatch):
    from types import SimpleNamespace

    from coppermesh.exec import nvml

    for driver, simulated in (("550.1-mock", True), ("570.86.15", False)):
        binding = SimpleNamespace(NVMLError=OSError, nvmlSystemGetDriverVersion=lambda d=driver: d)
        monkeypatch.setitem(sys.modules, "pynvml", binding)
        assert nvml.is_simulated() is simulated


# The meter, in a process of its own: a library is loaded once for the life of a process.

METER = """
import json, sys
from coppermesh.exec.meter import open_meter
meter = open_meter(sys.argv[1], sys.argv[2])
print(json.dumps([meter.kind, meter.may_hang, *(meter.read_mj() for _ in range(4))]))
meter.close()
assert meter.read_mj() is None
"""
UUID = "GPU-00000000-0000-4000-8000-000000000004"


def meter_of(kind="nvml", uuid=UUID):
    command = [sys.executable, "-c", METER, kind, uuid]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=os.environ).stdout)


@pytest.mark.parametrize("kind", ["nvml", "simulated"])
def test_a_stand_ins_meter_is_simulated_whatever_it_is_asked_for_as(show, kind):
    show("t4")
    assert meter_of(kind) == ["simulated", True, 1000700, 1001400, 1002100, 1002800]


def test_a_counter_that_begins_anew_gives_no_difference_once(show):
    show("t4", card="energy=18446744073709551000 700")  # wraps after the first reading, to 84
    _, _, first, second, third, _ = meter_of()
    assert (first, second, third) == (None, 784, 1484)


def test_a_card_that_is_gone_has_no_meter(show):
    show("t4")
    assert meter_of(uuid="GPU-gone")[0] == "none"
    show("t4", driver=f"fault=DeviceGetTotalEnergyConsumption {LOST}")
    assert meter_of()[0] == "none"


class HangingMeter:
    kind = "nvml"
    may_hang = True

    def __init__(self, release):
        self.release, self.asked, self.closed = release, 0, False

    def read_mj(self):
        self.asked += 1
        self.release.wait(30)
        return 1

    def close(self):
        self.closed = True


async def test_a_driver_that_hangs_is_asked_once(monkeypatch):
    import threading

    monkeypatch.setattr("coppermesh.exec.metering.METER_SECONDS", 0.05)
    release = threading.Event()
    meter = HangingMeter(release)
    try:
        assert [await read_energy(meter) for _ in range(3)] == [None, None, None]
        assert meter.asked == 1
        await close_meter(meter)
        assert not meter.closed, "a thread is still inside"
    finally:
        release.set()


async def test_opening_a_meter_has_a_deadline(monkeypatch):
    import threading

    monkeypatch.setattr("coppermesh.exec.metering.OPEN_SECONDS", 0.05)
    release = threading.Event()
    monkeypatch.setattr("coppermesh.exec.metering.open_meter", lambda *_: release.wait(30))
    try:
        assert (await open_meter_in_time("nvml", "GPU-x")).kind == "none"
    finally:
        release.set()


# What it may not do


async def test_no_worker_is_ever_made_for_a_stand_in(show, tmp_path):
    (card,) = show("t4")
    with pytest.raises(WorkerUnavailable, match="stand-in"):
        async with open_supervisor(card, scratch=tmp_path / "scratch"):
            pass


def test_the_owners_screen_says_simulated(show):
    (card,) = show("t4")
    facts = {
        "paused": False,
        "peer": "x",
        "uptime_s": 1,
        "mesh": "m",
        "home": "h",
        "addresses": [],
        "connected": 0,
        "announced": 0,
        "bootstrap": [],
        "leases_serving": 0,
        "provide": True,
        "simulated": [card.name],
        "jobs_open": 0,
        "leases_held": 0,
    }
    assert "simulated  Tesla T4 (simulated): NVML is a stand-in here; not offered" in screens.status(facts)
