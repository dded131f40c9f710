"""`coppermesh demo`: the whole path of a job on one machine, with real processes, keys, signatures and receipts."""

import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from coppermesh.agent import demo_picture, screens
from coppermesh.agent.client import Mesh, connect
from coppermesh.agent.job_handle import Job
from coppermesh.agent.local_agents import LocalMesh, allow, local_mesh
from coppermesh.agent.local_link import LocalLink
from coppermesh.agent.option_types import WrongOption, check_output
from coppermesh.agent.receipts import InvalidReceipt, verify_receipt_file
from coppermesh.p2p.errors import MeshError

PROVIDERS = ("provider-1", "provider-2", "provider-3")
FOUND_SECONDS = 30.0
_POLL_SECONDS = 0.1
MAX_ERROR = 1e-4
"""Largest difference from NumPy that is still the same picture: values are 0 to 1, the kernel's expf is not NumPy's."""


def run_demo(*, keep: Path | None, output: Path, tiles: int, as_json: bool) -> int:
    """Run the demo; returns the exit code. Everything it started has ended when it returns or raises."""
    check_output("--output", output)
    try:
        photograph = demo_picture.load_photograph()
    except ImportError as error:
        raise MeshError(
            f"the demo's photograph comes with scikit-image: install coppermesh[demo] ({error})"
        ) from error
    started = time.monotonic()
    with _terminate_as_interrupt(), _base_directory(keep) as base, local_mesh(base) as mesh:
        facts, table = _run(mesh, photograph, tiles, output)
    facts["seconds"] = round(time.monotonic() - started, 3)
    print("\n".join(table), file=sys.stderr if as_json else sys.stdout)
    _say(
        f"wrote {output}; {facts['receipts_verified']} of {facts['tiles']} receipts verified; "
        f"largest difference from NumPy {facts['max_abs_error']:.1e}; {facts['seconds']:.1f} s in all"
    )
    if as_json:
        print(json.dumps(facts))
    return 0 if facts["ok"] else 1


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that what was started and made goes with it."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    before = signal.signal(signal.SIGTERM, lambda _number, _frame: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _base_directory(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        try:
            keep.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WrongOption(f"--keep {keep}: cannot be made: {error.strerror}") from error
        if not os.access(keep, os.W_OK | os.X_OK):
            raise WrongOption(f"--keep {keep}: cannot be written")
        yield keep.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="coppermesh-demo-") as directory:
        yield Path(directory)


def _run(
    mesh: LocalMesh, photograph: np.ndarray, tile_count: int, output: Path
) -> tuple[dict[str, Any], list[str]]:
    """The facts of the run, and its closing table."""
    requester = mesh.peer_of("requester")
    _say("starting three agents on loopback")
    agents = mesh.start(PROVIDERS, *allow(requester))
    for agent in agents:
        _say(f"{agent.name}: {agent.ready['peer']}")
    mesh.start(["requester"], "--requester-only")
    with connect(mesh.home("requester").path) as client:
        await_providers(client, len(agents))
        rows, columns = _grid(tile_count)
        tiles = demo_picture.split(photograph, rows, columns)
        _say(f"submitting a photograph in {len(tiles)} tiles")
        recorded = [demo_picture.record_tile(tile) for tile in tiles]
        job = client.submit_many(recorded, providers=len(agents), wall_limit_s=60.0)
        _say(f"job {job.id[:8]}: {screens.counted(len(tiles), 'task')}, waiting for a provider")
        _follow(job, len(tiles))
        image = demo_picture.merge(tiles, job.result(), photograph.shape)
        facts_of_tiles = [_tile_facts(client, number, receipt) for number, receipt in enumerate(job.receipts)]
    demo_picture.save_picture(output, image)
    facts = _summary(photograph, image, facts_of_tiles, len(agents), output, job)
    return facts, screens.demo_table(facts_of_tiles)


def _summary(
    photograph: np.ndarray,
    image: np.ndarray,
    tiles: list[dict[str, Any]],
    agents: int,
    output: Path,
    job: Job,
) -> dict[str, Any]:
    error = float(np.max(np.abs(image - demo_picture.reference(photograph))))
    verified = sum(tile["verified"] for tile in tiles)
    return {
        "ok": verified == len(tiles) and error <= MAX_ERROR,
        "agents": agents,
        "tiles": len(tiles),
        "receipts_verified": verified,
        "max_abs_error": error,
        "providers_used": len({tile["provider"] for tile in tiles}),
        "cost": sum(tile["amount"] for tile in tiles),
        "unit": tiles[0]["unit"],
        "job": job.id,
        "output": str(output.resolve()),
    }


def await_providers(client: Mesh, count: int) -> None:
    """Wait until the requester's agent has heard and reached every provider."""
    deadline = time.monotonic() + FOUND_SECONDS
    while True:
        with client.link() as link:
            peers = json.loads(link.call_json("peers"))["peers"]
        found = [peer for peer in peers if peer["connected"] and peer["devices"]]
        if len(found) >= count:
            _say(f"found {len(found)} providers by gossip")
            return
        if time.monotonic() > deadline:
            raise MeshError(f"only {len(found)} of {count} providers were found within {FOUND_SECONDS:.0f} s")
        time.sleep(_POLL_SECONDS)


def _follow(job: Job, total: int) -> None:
    """Show progress until the job has ended."""
    live = sys.stderr.isatty()
    done = 0
    for event in job.events():
        if event["kind"] == "task":
            done += 1
            if live:
                print(f"\rcoppermesh: {done}/{total} tiles", end="", file=sys.stderr, flush=True)
            elif done == total or done % max(1, total // 4) == 0:
                _say(f"{done}/{total} tiles")
        elif event["kind"] == "progress":
            _say(screens.printable(event["text"]))
    if live:
        print(file=sys.stderr)


def _tile_facts(client: Mesh, number: int, receipt: dict[str, Any]) -> dict[str, Any]:
    with client.link() as link:
        verified = _verify(link, receipt["id"])
    return {
        "tile": number,
        "provider": receipt["provider"],
        "device": receipt["device"],
        "milliseconds": receipt["billed_us"] / 1000,
        "amount": receipt["amount"],
        "unit": receipt["unit"],
        "receipt": receipt["id"],
        "verified": verified,
    }


def _verify(link: LocalLink, receipt: str) -> bool:
    """Check a receipt as anybody could who has only its file."""
    facts = json.loads(link.call_json("receipt-file", json.dumps({"receipt": receipt})))
    try:
        checked = verify_receipt_file(bytes.fromhex(facts["file"]))
    except InvalidReceipt as error:
        _say(f"receipt {receipt[:12]} is not valid: {error}")
        return False
    return checked.accepted and checked.receipt.id.hex() == receipt


def _grid(count: int) -> tuple[int, int]:
    """Rows and columns, as square as the count's divisors allow."""
    rows = max(divisor for divisor in range(1, int(count**0.5) + 1) if count % divisor == 0)
    return rows, count // rows


def _say(text: str) -> None:
    print(f"coppermesh: {text}", file=sys.stderr, flush=True)
