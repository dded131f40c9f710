"""What a machine says about its devices and meters."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from coppermesh.exec import device
from coppermesh.exec.cuda_toolchain import find_toolchain
from coppermesh.exec.meter import NoMeter, RaplMeter, open_meter


def test_a_cpu_claims_no_gpu_fields():
    cpu = device.probe_cpu()
    assert (cpu.device, cpu.kind) == ("cpu", "cpu")
    assert (cpu.total_bytes, cpu.compute_capability, cpu.uuid, cpu.driver) == (None, None, None, None)
    assert cpu.name == device.printable(cpu.name)
    assert cpu.cores is not None
    assert cpu.cores >= 1
    assert cpu.memory_bytes >= 64 << 20
    assert "array-programs" in cpu.features


def test_cuda_source_is_offered_only_with_a_compiler(tmp_path):
    assert "cuda-source" not in device.probe_cpu(str(tmp_path / "no-such-compiler")).features
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    assert "cuda-source" in device.probe_cpu(str(compiler)).features


def test_another_processor_takes_array_programs_only(monkeypatch):
    monkeypatch.setattr(device.platform, "machine", lambda: "aarch64")
    assert device.probe_cpu().features == ("array-programs", "float16-arrays")
    monkeypatch.setattr(device, "find_spec", lambda name: name)
    assert device._gpu_features() == ("array-programs", "float16-arrays")


def test_the_model_name_is_the_processors_own(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Some\u00ae CPU @ 3 GHz\nflags : x\n")
    assert device.cpu_name(cpuinfo) == "Some? CPU @ 3 GHz"
    cpuinfo.write_text("processor\t: 0\n")
    assert device.cpu_name(cpuinfo).endswith(" processor")
    assert device.cpu_name(tmp_path / "missing").endswith(" processor")


def test_no_driver_means_no_gpus_and_no_complaint(monkeypatch, tmp_path):
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    assert [gpu for gpu in device.probe_gpus() if gpu.kind != "cuda"] == []


def test_a_probe_that_hangs_or_babbles_gives_no_gpus(monkeypatch, tmp_path):
    script = tmp_path / "python"
    monkeypatch.setattr(sys, "executable", str(script))
    for text in ("exec sleep 100", "echo garbage", "exit 3", 'echo \'[{"device": "gpu0"}]\''):
        script.write_text(f"#!/bin/sh\n{text}\n")
        script.chmod(0o755)
        monkeypatch.setattr(device, "PROBE_SECONDS", 0.3)
        assert device.probe_gpus() == []
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    assert device.probe_gpus() == []


class _NvmlError(Exception):
    pass


def _supported_by(*handles, answer):
    def call(handle):
        if handle not in handles:
            raise _NvmlError("not supported")
        return answer

    return call


def _simulated_nvml() -> SimpleNamespace:
    """A pynvml with one full card, one that supports next to nothing, and one that is lost."""
    return SimpleNamespace(
        NVMLError=_NvmlError,
        nvmlInit=lambda: None,
        nvmlSystemGetDriverVersion=lambda: "999.1",
        nvmlDeviceGetCount=lambda: 3,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetMemoryInfo=_supported_by(0, 1, answer=SimpleNamespace(free=5 << 30, total=6 << 30)),
        nvmlDeviceGetName=_supported_by(0, answer=b"Simulated Card"),
        nvmlDeviceGetCudaComputeCapability=_supported_by(0, answer=(9, 0)),
        nvmlDeviceGetTotalEnergyConsumption=_supported_by(0, answer=12345),
        nvmlDeviceGetPowerUsage=_supported_by(0, answer=50_000),
        nvmlDeviceGetUUID=_supported_by(0, answer="GPU-simulated"),
    )


def test_each_gpu_field_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", _simulated_nvml())
    first, second = device._read_gpus()
    assert first["name"] == "Simulated Card"
    assert (first["compute_capability"], first["uuid"], first["meter"]) == ("9.0", "GPU-simulated", "nvml")
    assert (first["memory_bytes"], first["total_bytes"]) == ((5 << 30) - device.CONTEXT_BYTES, 6 << 30)
    assert (second["compute_capability"], second["uuid"], second["meter"]) == (None, None, "none")
    assert second["cores"] is None


def _package(root: Path, name: str, microjoules: str, top: int = 1000_000) -> Path:
    package = root / name
    package.mkdir(exist_ok=True)
    (package / "energy_uj").write_text(microjoules)
    (package / "max_energy_range_uj").write_text(str(top))
    return package


def test_rapl_sums_packages_and_survives_a_wrap(tmp_path):
    _package(tmp_path, "intel-rapl:0", "400000\n")
    _package(tmp_path, "intel-rapl:0:0", "999999\n")  # a part of package 0: counted there already
    _package(tmp_path, "intel-rapl:1", "100000\n")
    meter = RaplMeter.find(tmp_path)
    assert meter is not None
    assert meter.read_mj() == 500
    _package(tmp_path, "intel-rapl:0", "200000\n")
    assert meter.read_mj() == 1300
    _package(tmp_path, "intel-rapl:1", "unreadable")
    assert meter.read_mj() is None


def test_a_meter_that_cannot_be_read_is_none(tmp_path):
    assert RaplMeter.find(tmp_path) is None
    _package(tmp_path, "intel-rapl:0", "not a number")
    assert RaplMeter.find(tmp_path) is None
    meter = open_meter("nvml", "GPU-that-is-not-here")
    assert (meter.kind, meter.read_mj()) == ("none", None)
    assert isinstance(open_meter("none"), NoMeter)


@pytest.mark.parametrize(
    ("name", "family"),
    [("clang++-19", "clang"), ("g++", "gcc"), ("x86_64-linux-gnu-g++-12", "gcc"), ("zig", "zig")],
)
def test_a_configured_compiler_is_known_by_its_name(tmp_path, name, family):
    path = tmp_path / name
    path.write_text("#!/bin/sh\nexit 1\n")
    path.chmod(0o755)
    found = find_toolchain(str(path))
    assert found is not None
    assert (found.command[0], found.family) == (str(path), family)
    assert found.version() == name  # it says none


def test_a_link_is_known_by_what_it_points_to(tmp_path):
    (tmp_path / "clang-19").write_text("#!/bin/sh\necho 19.1.0\n")
    (tmp_path / "clang-19").chmod(0o755)
    (tmp_path / "c++").symlink_to(tmp_path / "clang-19")
    found = find_toolchain(str(tmp_path / "c++"))
    assert found is not None
    assert (found.command, found.family) == ((str(tmp_path / "c++"),), "clang")
    assert "-no-enable-noundef-analysis" in found.arguments("c++17", tmp_path, "a", "b")
    assert found.version() == "c++ 19.1.0"
    (tmp_path / "clang-19").write_text("#!/bin/sh\necho 14.0.6\n")
    old = find_toolchain(str(tmp_path / "c++"))
    assert old is not None
    assert "-no-enable-noundef-analysis" not in old.arguments("c++17", tmp_path, "a", "b")
    assert find_toolchain(str(tmp_path / "missing")) is None
