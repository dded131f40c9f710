"""Jobs between real agents: answers, receipts, the story, and what goes wrong told at the right place."""

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import coppermesh as cm
from coppermesh.agent import agent_start
from coppermesh.agent.client import Mesh
from coppermesh.agent.isolation import witness
from coppermesh.agent.job_handle import JobFailed
from coppermesh.agent.screens import printable
from coppermesh.exec.sandbox import landlock, seccomp
from coppermesh.p2p.ids import format_peer

xp = cm.xp

pytestmark = pytest.mark.processes

SMOOTH = r"""
extern "C" __global__ void smooth(const float* in, float* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i > 0 && i < n - 1) out[i] = (in[i - 1] + in[i] + in[i + 1]) / 3.0f;
}
"""


def run_cli(*arguments: str, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    """One command of the command line in a process of its own."""
    command = [sys.executable, "-m", "coppermesh.agent.cli", *arguments]
    if home is not None:
        command += ["--home", str(home)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def smooth_reference(values: np.ndarray) -> np.ndarray:
    expected = np.zeros_like(values)
    expected[1:-1] = (values[:-2] + values[1:-1] + values[2:]) / np.float32(3)
    return expected


def test_a_job_from_array_to_receipt_file(lab, tmp_path):
    """What README promises by hand: compute, list, show, save, verify, explain."""
    client = lab.start(2)
    values = np.random.default_rng(3).random(1000, dtype=np.float32)
    y = xp.zeros(1000, dtype=xp.float32)
    cm.RawKernel(SMOOTH, "smooth")((8,), (128,), (xp.asarray(values), y, np.int32(1000)))
    job = client.submit(y, xp.sum(xp.asarray(values) * 2))
    smoothed, total = job.result()
    np.testing.assert_allclose(smoothed, smooth_reference(values), rtol=1e-6)
    np.testing.assert_allclose(total, values.sum() * 2, rtol=1e-5)
    assert job.receipt["amount"] > 0

    home = lab.mesh.home("requester").path
    rows = json.loads(run_cli("receipts", "--json", home=home).stdout)
    assert [row["id"] for row in rows] == [job.receipt["id"]]
    assert rows[0]["verdict"] == "accepted"
    file = tmp_path / "receipt"
    assert run_cli("receipts", "save", job.receipt["id"][:10], str(file), home=home).returncode == 0
    verified = run_cli("receipts", "verify", str(file), "--json")
    assert verified.returncode == 0
    assert json.loads(verified.stdout)["receipt"]["id"] == job.receipt["id"]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    broken = run_cli("receipts", "verify", str(file))
    assert broken.returncode == 1
    assert "NOT VALID" in broken.stdout

    story = run_cli("explain", job.id[:8], home=home).stdout
    for word in ("asked", "bid", "lease", "task sent", "receipt accepted", "job done"):
        assert word in story


def test_reading_commands_print_tables_and_json(lab):
    lab.start(1)
    home = lab.mesh.home("requester").path
    for verb, key in (("status", "peer"), ("peers", "peers"), ("devices", "devices")):
        answer = run_cli(verb, "--json", home=home)
        assert answer.returncode == 0
        assert key in json.loads(answer.stdout)
        table = run_cli(verb, home=home)
        assert table.stdout.strip()
        assert not table.stderr


def test_paused_provider_declines_with_its_reason_and_resumes(lab):
    client = lab.start(1)
    provider = lab.mesh.home("provider-1").path
    assert run_cli("pause", home=provider).returncode == 0
    with pytest.raises(JobFailed) as failure:
        client.compute(xp.asarray([1.0]) + 1, deadline_s=3.0)
    assert failure.value.code == "no-provider"
    assert "paused" in str(failure.value)
    assert run_cli("resume", home=provider).returncode == 0
    assert client.compute(xp.asarray([1.0]) + 1) == 2.0


def test_no_provider_at_all_is_said_after_the_deadline_and_nothing_runs_here(lab):
    client = lab.start(0)
    with pytest.raises(JobFailed) as failure:
        client.compute(xp.asarray([1.0]) + 1, deadline_s=1.0)
    assert failure.value.code == "no-provider"
    assert "0 peers connected" in str(failure.value)


needs_floor = pytest.mark.skipif(
    not (landlock.abi() and seccomp.supported()), reason="this kernel lacks Landlock or seccomp filters"
)


@needs_floor
def test_strangers_kernels_run_where_the_sandbox_was_seen_to_hold(lab):
    """Nobody is named by --allow; layers can be demanded, and one that is not there is a reason."""
    lab.mesh.start(["provider-1"])
    lab.mesh.start(["requester"], "--requester-only")
    client = lab.client()
    lab.await_providers(client, 1)
    y = xp.zeros(8, dtype=xp.float32)
    cm.RawKernel(SMOOTH, "smooth")((1,), (8,), (xp.zeros(8, dtype=xp.float32), y, np.int32(8)))
    assert client.compute(y, isolation=["landlock", "seccomp"]).shape == (8,)
    assert client.compute(xp.asarray([2.0]) * 3) == 6.0
    with pytest.raises(JobFailed) as failure:
        client.compute(y + 1, isolation=["seccomp", "moat"], deadline_s=3.0)
    assert "moat" in str(failure.value)


def test_the_compilers_message_reaches_the_submitter(lab):
    client = lab.start(1)
    source = SMOOTH.replace("out[i] =", "out[i] = undeclared +")
    y = xp.zeros(8, dtype=xp.float32)
    cm.RawKernel(source, "smooth")((1,), (8,), (xp.zeros(8, dtype=xp.float32), y, np.int32(8)))
    with pytest.raises(JobFailed) as failure:
        client.compute(y)
    assert failure.value.code == "kernel-compile"
    assert "undeclared" in failure.value.detail
    assert "make them anew" in str(failure.value)
    line = 1 + source[: source.index("undeclared")].count("\n")
    assert f":{line}:" in failure.value.detail
    assert client.compute(xp.asarray([1.0]) + 1) == 2.0


def test_an_endless_kernel_ends_at_its_wall_limit(lab):
    client = lab.start(1)
    source = (
        r"""extern "C" __global__ void spin(volatile float* out) { while (out[0] >= 0.0f) out[0] = 1.0f; }"""
    )
    y = xp.zeros(1, dtype=xp.float32)
    cm.RawKernel(source, "spin")((1,), (1,), (y,))
    with pytest.raises(JobFailed) as failure:
        client.compute(y, wall_limit_s=1.0)
    assert failure.value.code == "wall-limit"
    assert client.compute(xp.asarray([1.0]) + 1) == 2.0


def test_an_impossible_array_is_refused_at_once(lab):
    """100 TiB: refused by the submitter's own agent, before anybody is asked."""
    client = lab.start(1)
    huge = xp.zeros((100 << 40,), dtype=xp.uint8)
    with pytest.raises(cm.MeshError) as failure:
        client.compute(xp.sum(huge))
    assert str(100 << 40) in str(failure.value).replace(",", "") or "TiB" in str(failure.value)


def test_a_second_job_on_the_same_inputs_sends_them_once(lab):
    client = lab.start(1)
    values = np.random.default_rng(5).random(1 << 20, dtype=np.float32)
    x = xp.asarray(values)
    np.testing.assert_allclose(client.compute(x + 1), values + 1)
    before = stored_bytes(client, lab)
    np.testing.assert_allclose(client.compute(x + 2), values + 2)
    assert stored_bytes(client, lab) - before < 2 * values.nbytes


def stored_bytes(client: Mesh, lab) -> int:
    status = json.loads(run_cli("status", "--json", home=lab.mesh.home("provider-1").path).stdout)
    return (
        int(status["store"]["received_bytes"])
        if "received_bytes" in status["store"]
        else int(status["store"]["used_bytes"])
    )


def test_printable_hides_what_steers_a_terminal():
    assert printable("a\x1b[2Jb\n") == "a\\x1b[2Jb\n"


def start_submit(home: Path, script: Path, *options: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "coppermesh.agent.cli",
        "submit",
        "--home",
        str(home),
        *options,
        str(script),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


WANTS_A_GPU = """
import numpy as np
import coppermesh as cm
with cm.connect() as mesh:
    mesh.compute(cm.xp.asarray(np.ones(3)) + 1, device="cuda")
"""


def test_submit_says_what_it_waits_for_and_ctrl_c_takes_the_job_back(lab, tmp_path):
    lab.start(1)
    home = lab.mesh.home("requester").path
    script = tmp_path / "script.py"
    script.write_text(WANTS_A_GPU)
    with start_submit(home, script, "--deadline", "120") as process:
        assert process.stderr is not None
        assert process.stdout is not None
        try:
            first = process.stderr.readline()
            job = first.split()[2].rstrip(":")
            assert first == f"coppermesh: job {job}: 1 task, waiting for a provider (deadline 120 s)\n"
            assert "cpu is a cpu device, wanted cuda" in process.stderr.readline()
            listed = lab.ask(lab.client(), "jobs")  # in this process: nobody wants it, so it fails after 15 s
            assert [(row["job"][:8], row["state"]) for row in listed] == [(job, "running")]
            process.send_signal(signal.SIGINT)
            assert f"coppermesh: job {job} cancelled; finished tasks stay paid\n" in process.stderr.read()
            assert process.wait(30) == 130
            assert process.stdout.read() == ""
        finally:
            process.kill()
    (row,) = json.loads(run_cli("jobs", "--json", home=home).stdout)
    assert (row["state"], row["code"]) == ("failed", "cancelled")
    again = run_cli("cancel", job, home=home)
    assert (again.returncode, again.stdout) == (0, "")
    assert "had ended already" in again.stderr


WANTS_A_SUM = """
import numpy as np
import coppermesh as cm
with cm.connect() as mesh:
    print(mesh.compute(cm.xp.sum(cm.xp.asarray(np.ones(3)))))
"""


@needs_floor
def test_submit_asks_for_layers_and_is_told_who_lacks_one(lab, tmp_path):
    lab.start(1)
    home = lab.mesh.home("requester").path
    script = tmp_path / "script.py"
    script.write_text(WANTS_A_SUM)
    with start_submit(home, script, "--isolation", "landlock,seccomp") as process:
        said, complaints = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "3.0\n"), complaints
    missing = [entry.layer for entry in witness() if not entry.held]
    if missing:  # on a machine that has every layer there is nobody to say no
        script.write_text(WANTS_A_SUM.replace("np.ones(3)", "np.ones(4)"))
        with start_submit(home, script, "--deadline", "5", "--isolation", missing[0]) as process:
            _, complaints = process.communicate(timeout=60)
        assert process.returncode == 1
        assert missing[0] in complaints


def test_a_bootstrap_out_of_reach_is_shown(lab, tmp_path):
    """Nobody listens there; and somebody listens, but is another peer than the address says."""
    (provider,) = lab.mesh.start(["provider-1"])
    address, _, _ = provider.ready["addresses"][0].partition("/p2p/")
    stranger = format_peer(lab.mesh.peer_of("nobody"))
    lost = [f"/ip4/127.0.0.1/tcp/1/p2p/{stranger}", f"{address}/p2p/{format_peer(lab.mesh.peer_of('other'))}"]
    home = lab.mesh.home("lonely")
    home.config_path.write_text(
        f'mesh = "{lab.mesh.name}"\nbootstrap = {json.dumps(lost)}\nprovide = false\n'
    )
    with agent_of(home.path):
        rows = lab.wait_until(lambda: shown_errors(home.path, 2), "both errors shown")
        assert [row["address"] for row in rows] == lost
        assert "connected" in run_cli("status", home=home.path).stdout
        assert f"bootstrap  {lost[0]}: " in run_cli("status", home=home.path).stdout
        log = home.log_path.read_text()
        for wrong in lost:
            assert log.count(f"cannot reach {wrong}: ") == 1


def shown_errors(home: Path, count: int) -> list[dict[str, Any]]:
    rows = json.loads(run_cli("peers", "--json", home=home).stdout)["bootstrap"]
    return rows if sum(bool(row["error"]) for row in rows) >= count else []


@contextlib.contextmanager
def agent_of(home: Path) -> Iterator[None]:
    """An agent as `submit` starts it."""
    cm.connect(home)
    try:
        yield
    finally:
        assert run_cli("stop", home=home).returncode == 0
        agent_start._started[-1].wait(15)
