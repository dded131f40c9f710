"""An agent on a machine whose NVML is a stand-in: it shows the card as simulated, and works as the CPU that it is."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from coppermesh.exec import xp

pytestmark = pytest.mark.processes

NVML = Path(__file__).parents[1] / "nvml"
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


@pytest.mark.skipif(COMPILER is None, reason="no C compiler on this machine")
def test_a_simulated_gpu_is_shown_and_gets_no_work(lab, tmp_path, monkeypatch):
    folder = tmp_path / "lib"
    folder.mkdir()
    library = folder / "libnvidia-ml.so.1"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", library, NVML / "fake_nvml.c"], check=True)
    shutil.copy(NVML / "profiles" / "h100.txt", folder / "profile.txt")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(folder))
    client = lab.start(1)
    with client:
        status = lab.ask(lab.client("provider-1"), "status")
        assert status["simulated"] == ["NVIDIA H100 80GB HBM3 (simulated)"] * 2
        devices = lab.ask(client, "devices")["devices"]
        assert [device["kind"] for device in devices] == ["cpu"]
        x = xp.asarray(np.arange(5.0))
        np.testing.assert_array_equal(client.compute(x + 1), np.arange(5.0) + 1)
        (receipt,) = lab.ask(client, "receipts", limit=10)
    assert "cuda" not in str(receipt)
