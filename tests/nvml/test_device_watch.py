"""Device memory by process, as a stand-in for NVML tells it, and what the watchdog makes of it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
UUID = "GPU-00000000-0000-4000-8000-000000000004"
MEBIBYTE = 1 << 20

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler on this machine")


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    path = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    command = [
        COMPILER,
        "-Wall",
        "-Wextra",
        "-Werror",
        "-O1",
        "-shared",
        "-fPIC",
        "-o",
        path,
        HERE / "fake_nvml.c",
    ]
    subprocess.run(command, check=True)
    return path


READ = """
import json, sys
from coppermesh.exec.device_watch import DeviceWatch
try:
    watch = DeviceWatch(sys.argv[1])
except OSError as error:
    print(json.dumps(str(error)))
else:
    print(json.dumps(watch.used()))
    watch.close()
    assert watch.used() is None
"""


@pytest.fixture
def read(library, tmp_path):
    """What a fresh process reads of a card with these lines."""

    def read(live, lines="", uuid=UUID):
        shutil.copy(library, tmp_path)
        (tmp_path / "profile.txt").write_text((HERE / "profiles" / "t4.txt").read_text() + lines + "\n")
        (tmp_path / "live.txt").write_text(live + "\n")
        environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", READ, uuid], env=environment, capture_output=True, check=True
        )
        return json.loads(done.stdout)

    return read


def test_each_process_with_what_it_uses(read):
    assert read("compute=0 17 1000\ncompute=0 18 2000") == {"17": 1000, "18": 2000}


def test_nobody_on_the_card(read):
    assert read("nobody=0") == {}


def test_a_process_whose_use_is_not_known_is_left_out(read):
    assert read("compute=0 17 -1\ncompute=0 18 5") == {"18": 5}


@pytest.mark.parametrize("answer", [3, 13, 15, 999])
def test_a_driver_that_does_not_say(read, answer):
    """13 is what a driver says that lacks the function: the binding has an error of another family for that."""
    assert read("compute=0 17 1000", f"fault=DeviceGetComputeRunningProcesses {answer}") is None


def test_a_card_that_is_not_there(read):
    assert "does not know" in read("", uuid="GPU-another")
