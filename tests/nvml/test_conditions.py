"""What else goes on on a card, through the stand-in for NVML: programs, heat, power, and what is unknown or hangs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from coppermesh.agent import owner
from coppermesh.agent.device_gate import DeviceGate
from coppermesh.agent.sharing import Sharing
from coppermesh.exec import conditions
from coppermesh.exec.conditions import UNKNOWN, Conditions, CpuConditions, DeviceProcess, whose
from coppermesh.exec.device import DeviceInfo

HERE = Path(__file__).parent
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
UUID = "GPU-00000000-0000-4000-8000-000000000004"
GIB = 1 << 30
LOST = 15

# A library is loaded once for the life of a process, so the card is looked at in one of its own: at each line it reads.
LOOK = """
import dataclasses, json, sys
from coppermesh.exec.conditions import open_conditions
reader = open_conditions("cuda", sys.argv[1])
for _ in sys.stdin:
    print(json.dumps(dataclasses.asdict(reader.read())), flush=True)
reader.close()
assert reader.read().processes is None
"""


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    path = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    command = [COMPILER, "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-o", path]
    subprocess.run([*command, HERE / "fake_nvml.c"], check=True)
    return path


class Card:
    """A process that looks at the T4 of the profile, and the file that says what the card does."""

    def __init__(self, folder: Path, uuid: str) -> None:
        self.live = folder / "live.txt"
        environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
        command = [sys.executable, "-c", LOOK, uuid]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def look(self, *lines: str) -> Conditions:
        self.live.write_text("\n".join(lines))
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        fields = json.loads(self.process.stdout.readline())
        listed = fields.pop("processes")
        found = None if listed is None else tuple(DeviceProcess(**entry) for entry in listed)
        return Conditions(processes=found, **fields)


@pytest.fixture
def card(library, tmp_path):
    if COMPILER is None:
        pytest.skip("no C compiler on this machine")
    started = []

    def start(driver="", uuid=UUID):
        shutil.copy(library, tmp_path)
        (tmp_path / "profile.txt").write_text(f"{driver}\n{(HERE / 'profiles' / 't4.txt').read_text()}")
        started.append(Card(tmp_path, uuid))
        return started[-1]

    yield start
    for looked_at in started:
        looked_at.process.communicate()
        assert looked_at.process.returncode == 0


def test_a_card_tells_what_it_knows_at_each_look(card):
    card = card()
    free = 15 * GIB - 471859200
    assert card.look() == Conditions(processes=(), free_bytes=free)
    now = card.look("temperature=0 81", "power=0 69500", "utilisation=0 37")
    assert now == Conditions(processes=(), utilisation=0.37, temperature_c=81, power_w=69.5, free_bytes=free)
    assert card.look("temperature=0 60").temperature_c == 60
    assert card.look("temperature=1 60").temperature_c is None, "another card's"


def test_programs_are_told_by_who_runs_them_and_what_they_do(card):
    card = card()
    other = subprocess.Popen(["sleep", "60"])
    try:
        now = card.look(
            f"compute=0 {other.pid} {GIB}",
            f"compute=0 {card.process.pid} 5",
            f"graphics=0 {card.process.pid} 7",
            "compute=0 4194303 -1",
        )
    finally:
        other.kill()
        other.wait()
    found = {process.pid: process for process in now.processes}
    assert found[other.pid].owner == "other"
    assert (found[other.pid].name, found[other.pid].memory_bytes) == ("sleep", GIB)
    assert not found[other.pid].graphics
    mine = found[card.process.pid]
    assert (mine.owner, mine.graphics, mine.memory_bytes) == ("ours", True, 7), "on both lists"
    gone = found[4194303]
    assert (gone.owner, gone.name, gone.user, gone.memory_bytes) == ("unknown", "", "", None)


def test_children_of_the_agent_and_zygotes_of_other_agents_are_ours(tmp_path):
    child = subprocess.Popen(["sleep", "60"])
    try:
        assert whose(child.pid) == "ours"
    finally:
        child.kill()
        child.wait()
    head, _, tail = Path("/proc/self/stat").read_text().rpartition(")")
    # A process of nobody we know, whose command line names a zygote, or only looks as if it did.
    for words, seen in ((b"coppermesh.exec.zygote", "ours"), (b"x.coppermesh.exec.zygote", "other")):
        proc = tmp_path / seen
        (proc / "77").mkdir(parents=True)
        fields = tail.split()
        fields[1] = "1"
        (proc / "77" / "stat").write_text(f"{head}) {' '.join(fields)}")
        (proc / "77" / "status").write_text(f"Name:\tpython\nUid:\t0\t{os.geteuid()}\t0\t0\n")
        (proc / "77" / "cmdline").write_bytes(b"python\0-m\0" + words + b"\0")
        assert whose(77, proc) == seen


@pytest.mark.parametrize(
    ("function", "field"),
    [
        ("DeviceGetTemperature", "temperature_c"),
        ("DeviceGetPowerUsage", "power_w"),
        ("DeviceGetUtilizationRates", "utilisation"),
    ],
)
def test_a_field_that_fails_is_unknown_and_the_rest_stays(card, function, field):
    now = card(f"fault={function} {LOST}").look("temperature=0 81", "power=0 69500", "utilisation=0 37")
    assert getattr(now, field) is None
    assert sum(value is None for value in (now.temperature_c, now.power_w, now.utilisation)) == 1
    assert now.processes == ()


def test_without_a_list_of_programs_it_is_unknown_who_is_there(card):
    silent = "\n".join(f"fault=DeviceGet{kind}RunningProcesses {LOST}" for kind in ("Compute", "Graphics"))
    assert card(silent).look("temperature=0 81") == Conditions(
        temperature_c=81, free_bytes=15 * GIB - 471859200
    )


def test_a_card_that_is_gone_tells_nothing(card):
    assert card(uuid="GPU-gone").look("temperature=0 81") == UNKNOWN


def test_a_looked_at_card_closes_its_gate_and_opens_it_again(card):
    card, gate = card(), DeviceGate("gpu0")
    sharing = Sharing(max_temperature=80)
    second = 1_000_000

    def codes(*lines: str, at: int) -> list[str]:
        found = gate.judge(sharing, card.look(*lines), serving=False, now_us=at * second)
        return [obstacle.code for obstacle in found.obstacles]

    assert codes("temperature=0 80", at=0) == []
    assert codes("temperature=0 84", at=1) == ["too-hot"]
    assert codes("temperature=0 76", at=2) == ["too-hot"]
    assert codes("temperature=0 75", at=3) == []
    assert codes("temperature=0 75", f"compute=0 {os.getpid()} 5", at=4) == ["device-busy"]
    assert codes("temperature=0 75", at=5) == ["device-busy"]
    assert codes("temperature=0 75", at=9) == []


def test_the_processors_load_is_that_of_others(tmp_path):
    proc, hwmon = tmp_path / "proc", tmp_path / "hwmon"
    (proc / str(os.getpid())).mkdir(parents=True)
    (hwmon / "hwmon3").mkdir(parents=True)
    (hwmon / "hwmon3" / "name").write_text("k10temp\n")
    for number, degrees in enumerate((45_125, 71_500)):
        (hwmon / "hwmon3" / f"temp{number}_input").write_text(f"{degrees}\n")
    (hwmon / "hwmon4").mkdir()
    (hwmon / "hwmon4" / "name").write_text("nvme\n")
    (hwmon / "hwmon4" / "temp1_input").write_text("99000\n")
    reader = CpuConditions(proc, hwmon)

    def pass_time(user, idle, ours):
        (proc / "stat").write_text(f"cpu {user} 0 0 {idle} 0 0 0 0 0 0\ncpu0 1 2 3\n")
        mine = ["S", "1", *["0"] * 9, str(ours), "0", "0", "0", *["0"] * 30]
        (proc / str(os.getpid()) / "stat").write_text(f"{os.getpid()} (python) x) {' '.join(mine)}\n")
        return reader.read()

    assert pass_time(user=100, idle=100, ours=50) == Conditions(temperature_c=71)
    assert pass_time(user=200, idle=200, ours=100).load == pytest.approx(0.25), "half of it was ours"
    assert pass_time(user=300, idle=200, ours=100).load == 1.0
    assert CpuConditions(tmp_path / "none", tmp_path / "none").read() == UNKNOWN


def test_this_machines_own_processor_can_be_looked_at():
    reader = conditions.open_conditions("cpu", None)
    reader.read()
    while (load := reader.read().load) is None:  # the kernel counts in hundredths of a second
        pass
    assert 0 <= load <= 1


async def test_a_driver_that_hangs_is_unknown_and_asked_once(monkeypatch):
    import threading

    monkeypatch.setattr(owner, "OPEN_SECONDS", 0.05)
    release = threading.Event()
    opened = []

    def hang(kind: str, uuid: str | None):
        opened.append(uuid)
        release.wait(30)
        return CpuConditions()

    info = DeviceInfo("gpu0", "cuda", "a card", 1, 1, None, UUID, None, "none", (), None)
    look = owner._Look(hang, info)
    try:
        assert [await look.read() for _ in range(3)] == [UNKNOWN] * 3
        assert opened == [UUID]
        await look.close()
    finally:
        release.set()
    with trio.fail_after(30):
        while look._inside:  # noqa: ASYNC110 - a thread that nobody waits for any more
            await trio.sleep(0.01)
    assert await look.read() is not UNKNOWN, "it came back"
