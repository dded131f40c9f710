"""`coppermesh demo` as a person runs it: the picture, the JSON line, and Ctrl-C at any moment."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.processes

DEMO = [sys.executable, "-m", "coppermesh.agent.cli", "demo"]


def processes_under(directory: Path) -> list[int]:
    """Living processes whose command line or working directory names `directory`."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            words = (entry / "cmdline").read_bytes() + str((entry / "cwd").readlink()).encode()
            if state != "Z" and str(directory).encode() in words:
                found.append(int(entry.name))
    return found


def test_demo_writes_the_picture_and_one_line_of_json(tmp_path):
    picture = tmp_path / "picture.png"
    keep = tmp_path / "kept"
    command = [*DEMO, "--json", "--tiles", "6", "--output", str(picture), "--keep", str(keep)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert run.returncode == 0, run.stderr
    (line,) = run.stdout.splitlines()
    facts = json.loads(line)
    assert facts["ok"] is True
    assert (facts["agents"], facts["tiles"], facts["receipts_verified"]) == (3, 6, 6)
    assert facts["max_abs_error"] <= 1e-4
    assert facts["cost"] > 0
    assert facts["seconds"] > 0
    assert Path(facts["output"]) == picture
    from PIL import Image

    with Image.open(picture) as image:
        pixels = np.asarray(image)
    assert pixels.shape == (400, 600, 3)
    assert pixels.std() > 20  # a photograph, not a blank
    assert {path.name for path in keep.iterdir()} == {"requester", "provider-1", "provider-2", "provider-3"}
    assert "VERIFIED" in run.stderr
    assert "VERIFIED" not in run.stdout
    assert not processes_under(keep)


@pytest.mark.parametrize("after", ["starting three agents", "provider-3", "found 3 providers", "submitting"])
def test_ctrl_c_at_any_moment_leaves_no_process_behind(tmp_path, after):
    keep = tmp_path / "kept"
    command = [*DEMO, "--output", str(tmp_path / "picture.png"), "--keep", str(keep)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as demo:
        assert demo.stderr is not None
        try:
            for line in demo.stderr:
                if after in line:
                    demo.send_signal(signal.SIGINT)
                    break
            demo.stderr.read()
            assert demo.wait(30) == 130
        finally:
            demo.kill()
    assert not processes_under(keep)


def test_sigterm_removes_what_the_demo_made(tmp_path):
    """As Ctrl-C does; and the table was data, so nothing else is on stdout."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    command = [*DEMO, "--output", str(tmp_path / "picture.png")]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment,
    ) as demo:
        assert demo.stderr is not None
        assert demo.stdout is not None
        try:
            for line in demo.stderr:
                if "found 3 providers" in line:
                    assert [path.name[:16] for path in temporary.iterdir()] == ["coppermesh-demo-"]
                    demo.terminate()
                    break
            demo.stderr.read()
            assert demo.wait(30) == 130
            assert demo.stdout.read() == ""
        finally:
            demo.kill()
    assert not list(temporary.iterdir())
    assert not processes_under(temporary)


def test_killing_the_demo_ends_its_agents_too(tmp_path, eventually):
    """kill -9: nobody is left to end them, so they notice by themselves."""
    keep = tmp_path / "kept"
    command = [*DEMO, "--output", str(tmp_path / "picture.png"), "--keep", str(keep)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as demo:
        assert demo.stderr is not None
        for line in demo.stderr:
            if "found 3 providers" in line:
                break
        demo.kill()
    eventually(lambda: not processes_under(keep), "every agent gone", 15.0)
