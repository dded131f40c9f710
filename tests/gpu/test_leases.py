"""Two leases on one GPU: what a worker leaves in device memory, the next lease's worker cannot read."""

import numpy as np
import trio

from coppermesh.agent.isolation import scrub_was_seen, witness_scrub
from coppermesh.exec import xp
from coppermesh.exec.kernels import RawKernel
from coppermesh.exec.supervisor import InputBuffer, WorkerLimits, open_supervisor
from coppermesh.exec.tracing import trace

MEBIBYTE = 1 << 20
HELD = 512 * MEBIBYTE
LIMITS = WorkerLimits(memory_bytes=2 * HELD, output_bytes=64 * MEBIBYTE)
PATTERN = 0x5EC2E7C0FFEE
FACTOR = 0x9E3779B97F4A7C15
HUNT = RawKernel(
    r"""
    extern "C" __global__ void hunt(unsigned long long* found, unsigned long long product, unsigned long long factor) {
        // The device's heap: memory that nobody cleared for this kernel.
        for (int block = 0; block < 96; ++block) {
            unsigned long long* words = (unsigned long long*)malloc(64 << 10);
            if (!words) break;
            found[1] += 1;
            for (int i = 0; i < 8 << 10; ++i) found[0] += words[i] * factor == product;
        }
    }""",
    "hunt",
)


async def run(worker, *arrays):
    recorded = trace(*arrays)
    inputs = [InputBuffer(array.nbytes, data=array.tobytes()) for array in recorded.inputs]
    outcome = await worker.run(recorded.program, inputs, 60.0)
    assert outcome.status == "ok", f"{outcome.code}: {outcome.sentence}"
    values = [np.frombuffer(bytes(output.view), np.uint64) for output in outcome.outputs]
    outcome.close()
    return values


async def hunt(worker):
    """How often the pattern lies in memory that a lease gets, and how many blocks of it were searched."""
    found = xp.zeros(2, dtype=np.uint64)
    HUNT((1,), (1,), (found, np.uint64(PATTERN * FACTOR % (1 << 64)), np.uint64(FACTOR)))
    ((hits, blocks),) = await run(worker, found)
    return int(hits), int(blocks)


async def test_a_lease_finds_nothing_of_the_one_before_in_device_memory(gpu, tmp_path, figure):
    async with open_supervisor(gpu, scratch=tmp_path / "scratch") as supervisor:
        async with supervisor.worker(LIMITS) as first:
            filled = xp.full(HELD // 8, PATTERN, dtype=np.uint64)
            (total,) = await run(first, xp.sum((filled == PATTERN).astype(np.uint64)))
            assert total[0] == HELD // 8
            pid = first.pid
        async with supervisor.worker(LIMITS) as second:
            assert second.pid != pid
            hits, blocks = await hunt(second)
            figure("device heap of a lease after another: searched", blocks * 64, "KiB")
            assert blocks > 0
            assert hits == 0


async def test_the_driver_clears_memory_between_processes(gpu, tmp_path, figure):
    """Most of it is filled by a process that is killed, and read by the next. Where this fails, `vram-scrub` is not
    announced.
    """
    (entry,) = await trio.to_thread.run_sync(witness_scrub, tmp_path, [gpu])
    figure("device memory of a killed process: clear for the next", entry.held, entry.why)
    assert scrub_was_seen(tmp_path, [gpu]) is entry.held
    assert "could not be tried" not in entry.why
    assert entry.held, entry.why
