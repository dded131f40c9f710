"""An owner takes a device back: running tasks end, what was done is paid, and the rest goes on elsewhere."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import coppermesh as cm
from coppermesh.exec import xp

pytestmark = pytest.mark.processes

ENDLESS = 'extern "C" __global__ void spin(volatile float* x) { while (x[0] == 0.0f) { } }'


def run_cli(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "coppermesh.agent.cli", *arguments, "--home", str(home)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def step(carry, x):
    """Some milliseconds of work, and numbers that would differ if a step were left out or done twice."""
    matrix, total = carry
    product = xp.tanh(matrix @ matrix * 0.01 + x)
    return (product, total + xp.sum(product)), xp.sum(product)


def by_numpy(matrix, xs):
    total, sums = np.float64(0), []
    for x in xs:
        matrix = np.tanh(matrix @ matrix * 0.01 + x)
        total, sums = total + matrix.sum(), [*sums, matrix.sum()]
    return matrix, total, np.array(sums)


def test_a_loop_goes_on_elsewhere_from_its_last_carry(lab):
    client = lab.start(2)
    matrix = np.eye(300)
    xs = np.linspace(0.0, 1.0, 24)
    found: list = []
    runner = threading.Thread(
        target=lambda: found.append(client.scan(step, (matrix, np.float64(0)), xs, segment=2, deadline_s=120))
    )
    runner.start()
    homes = {name: lab.mesh.home(name) for name in ("provider-1", "provider-2")}

    def who_works() -> str:
        counts = {name: len(lab.ask(lab.client(name), "receipts", limit=100)) for name in homes}
        return next((name for name, count in counts.items() if count >= 2), "")

    name = lab.wait_until(who_works, "two segments done")
    told = run_cli("reclaim", "cpu", "--json", home=homes[name].path)
    assert told.returncode == 0, told.stderr
    facts = json.loads(told.stdout)
    assert (facts["devices"], facts["gone"]) == (["cpu"], True)
    before = len(lab.ask(lab.client(name), "receipts", limit=100))
    runner.join(120)
    ((last, total), sums), *_ = found
    expected = by_numpy(matrix, xs)
    np.testing.assert_allclose(last, expected[0], rtol=1e-9)
    np.testing.assert_allclose(total, expected[1], rtol=1e-9)
    np.testing.assert_allclose(sums, expected[2], rtol=1e-9)
    lab.await_settled("provider-1", "provider-2")
    rows = lab.ask(lab.client(name), "receipts", limit=100)
    assert len(rows) == before, "nothing more ran there"
    assert all(row["verdict"] == "accepted" for row in rows), "what was delivered is paid"
    accepted = sum(
        row["verdict"] == "accepted"
        for each in homes
        for row in lab.ask(lab.client(each), "receipts", limit=100)
    )
    assert accepted == 12, "each segment once"


def test_a_running_kernel_ends_and_the_device_is_not_lent_until_it_is_given_back(lab):
    client = lab.start(1)
    home, mine = lab.mesh.home("provider-1"), lab.mesh.home("requester").path
    spin = cm.RawKernel(ENDLESS, "spin")
    x = xp.zeros((1,), dtype=xp.float32)
    spin((1,), (1,), (x,))
    job = client.submit(x, wall_limit_s=600)
    asked = lab.client("provider-1")
    lab.wait_until(lambda: lab.ask(asked, "status")["leases_serving"], "the lease")
    agent = next(agent for agent in lab.mesh.agents if agent.name == "provider-1")
    lab.wait_until(lambda: any(busy(pid) for pid in lab.descendants(agent.process.pid)), "the kernel to spin")
    told = run_cli("reclaim", home=home.path)
    assert told.returncode == 0
    assert "cpu: yours again after" in told.stderr
    assert "1 lease ended" in told.stderr
    assert not any(busy(pid) for pid in lab.descendants(agent.process.pid)), "no worker computes any more"
    lab.wait_until(
        lambda: "the owner has taken cpu back" in run_cli("explain", job.id, home=mine).stdout, "told"
    )
    job.cancel()
    assert "taken back by `coppermesh reclaim`" in run_cli("status", home=home.path).stdout

    agent.process.kill()
    agent.process.wait()
    lab.start_provider("provider-1")
    assert "taken back by `coppermesh reclaim`" in run_cli("status", home=home.path).stdout, (
        "over a restart too"
    )
    assert "resumed: taking leases" in run_cli("resume", home=home.path).stderr
    lab.await_providers(client, 1)
    assert client.compute(xp.asarray([1.0]) + 1) == 2.0
    wrong = run_cli("reclaim", "gpu7", home=home.path)
    assert (wrong.returncode, "only cpu" in wrong.stderr) == (1, True)


def busy(pid: int) -> bool:
    """It runs just now, on a processor."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "R"
    except OSError:
        return False
