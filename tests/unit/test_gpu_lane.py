"""The GPU lane on a machine without a GPU: it stops in words, and its halves work on the stand-in for CuPy."""

import importlib.machinery
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
RUN = TESTS / "gpu" / "run"


def load_script():
    loader = importlib.machinery.SourceFileLoader("coppermesh_gpu_run", str(RUN))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


lane = load_script()


def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path):
    results = TESTS / "gpu" / "RESULTS.md"
    before = results.read_bytes()
    # An empty directory first on the path hides a driver that is only found by it; a real one is left in peace.
    if lane.find_gpu() is None:
        pytest.skip("there is a GPU here")
    answer = subprocess.run([sys.executable, RUN], check=False, capture_output=True, text=True, cwd=tmp_path)
    assert answer.returncode == lane.NO_GPU
    assert answer.stderr.startswith("gpu lane: no NVIDIA GPU to run on:")
    assert answer.stderr.count("\n") == 1
    assert results.read_bytes() == before
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named():
    missing = lane.has(sys.executable, ["json", "no_such_module_of_ours"])
    assert missing == ["no_such_module_of_ours"]


def test_a_folder_without_wheels_is_told(tmp_path):
    with pytest.raises(SystemExit, match="no wheels"):
        lane.make_environment(tmp_path / "venv", tmp_path)
    assert not (tmp_path / "venv").exists()


def test_a_report_has_device_figures_and_what_failed(tmp_path, monkeypatch):
    xml = tmp_path / "report.xml"
    xml.write_text(
        '<testsuites><testsuite><testcase classname="tests.gpu.test_device" name="good"/>'
        '<testcase classname="tests.gpu.test_device" name="bad"><failure message="it broke&#10;here"/></testcase>'
        '<testcase classname="a" name="left"><skipped message="no libp2p"/></testcase></testsuite></testsuites>'
    )
    lines = [{"what": "programs", "value": 2, "unit": ""}, {"what": "time", "value": 1.5, "unit": "ms"}]
    figures = lane.join_figures("".join(json.dumps(line) + "\n" for line in (*lines, lines[0])))
    lane.write_results(tmp_path / "RESULTS.md", lane.read_report(xml, "device"), figures, "a device")
    text = (tmp_path / "RESULTS.md").read_text()
    assert "- device: a device" in text
    assert "1 passed, 1 failed, 1 skipped" in text
    assert "| programs | 4 |" in text
    assert "| time | 1.5 ms |" in text
    assert "- `test_device::bad`: it broke\n" in text
    assert "- `a::left`: no libp2p" in text


def test_a_run_without_a_report_has_failed(tmp_path):
    assert lane.read_report(tmp_path / "missing.xml", "device")["device"][0] == "failed"


PLUGIN = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("cupy_stand_in", {stand_in!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
gpu = module.StandInGpu(memory=1 << 34)
sys.modules.update(gpu.modules())
if {broken}:
    import numpy
    functions = dict(vars(numpy.linalg), inv=lambda a: a)
    sys.modules["cupy"].linalg = gpu.namespace(type("broken", (), functions), "linalg")
from on_both_runtimes import pytest_sessionfinish
"""


@pytest.mark.slow
@pytest.mark.parametrize("broken", [False, True])
def test_programs_of_the_unit_tests_run_on_both_runtimes_and_are_compared(tmp_path, broken):
    (tmp_path / "stand_in_plugin.py").write_text(
        PLUGIN.format(stand_in=str(Path(__file__).with_name("cupy_stand_in.py")), broken=broken)
    )
    figures = tmp_path / "figures"
    figures.touch()
    names = ["linalg"] if broken else ["arrays", "linalg", "indexing", "beyond", "scan"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "stand_in_plugin", "-p", "no:cacheprovider", "-W"]
    command += ["default", *(str(TESTS / "unit" / f"test_exec_{name}.py") for name in names)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(TESTS / "gpu")]),
        "COPPERMESH_GPU_LANE": str(figures),
    }
    answer = subprocess.run(
        command, env=environment, cwd=TESTS.parent, check=False, capture_output=True, text=True
    )
    assert (answer.returncode != 0) is broken, answer.stdout[-3000:]
    counts = {line["what"]: line["value"] for line in lane.join_figures(figures.read_text())}
    assert counts["array programs: programs"] > (10 if broken else 1000)
