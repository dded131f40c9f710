"""Real agents: one job from submission to a countersigned receipt that says it ran on a GPU."""

import importlib.util

import numpy as np
import pytest

from coppermesh.exec import xp

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libp2p") is None, reason="libp2p is not installed here: see tests/gpu/README.md"
)


def test_a_job_on_a_gpu_provider_has_a_receipt_that_says_cuda(load, tmp_path, gpu, figure):
    from coppermesh.agent.local_agents import local_mesh

    agents = load("processes/conftest.py")
    with local_mesh(tmp_path) as mesh:
        lab = agents.Lab(mesh)
        with mesh.home("provider-1").config_path.open("a") as settings:
            settings.write('[sharing]\nbusy = "ignore"\n')  # these tests are a program on the card themselves
        client = lab.start(1)
        with client:
            (device,) = lab.ask(client, "devices")["devices"]
            assert device["kind"] == "cuda"
            assert device["name"] == gpu.name
            x = np.random.default_rng(0).random((512, 512), dtype=np.float32)
            result = client.compute(xp.sum(xp.asarray(x) @ xp.asarray(x), axis=0), device="cuda")
            np.testing.assert_allclose(result, (x @ x).sum(axis=0), rtol=1e-3)
            lab.await_settled("provider-1")
        lab.stop()
        (row,) = lab.audit("provider-1")
    receipt = row.receipt
    assert receipt.status == "ok"
    assert receipt.device_kind == "cuda"
    assert receipt.device_name == gpu.name
    assert receipt.device_uuid == gpu.uuid
    assert receipt.device_us is not None
    assert receipt.meter == gpu.meter
    assert receipt.determinism.startswith("cupy/")
    figure("a job between two agents: billed", receipt.billed_us / 1000, "ms")
