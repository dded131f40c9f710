"""bootstrap/setup where it must stop: every refusal says what is wrong and what to do, and touches nothing.

That it works on an empty machine is shown by .ci/run, which begins with it.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SETUP = Path(__file__).parents[2] / "bootstrap" / "setup"
TOOLS = ("dirname", "find", "grep", "ls", "mkdir", "mktemp", "mv", "rm", "sh", "tail", "cat")


@pytest.fixture
def bare_path(tmp_path: Path) -> Path:
    """A PATH with the shell's tools and nothing else: no Python, no compiler."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None
        (folder / tool).symlink_to(found)
    return folder


def run_setup(*arguments: str, path: Path | None = None, **extra: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **extra}
    environment.pop("PYTHON", None)
    if path is not None:
        environment["PATH"] = str(path)
    environment.update(extra)
    return subprocess.run(
        ["/bin/sh", str(SETUP), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def fake_python(folder: Path, body: str) -> Path:
    program = folder / "python3"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    return program


def test_help_fits_a_screen_and_ends_in_an_example() -> None:
    done = run_setup("--help")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert len(lines) < 24
    assert lines[-1].startswith("Example: bootstrap/setup")


@pytest.mark.parametrize("arguments", [["--nonsense"], ["--venv"], ["extra"]])
def test_a_wrong_argument_shows_the_usage(arguments: list[str]) -> None:
    done = run_setup(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: bootstrap/setup")


def test_no_python_says_which_are_wanted(tmp_path: Path, bare_path: Path) -> None:
    done = run_setup("--venv", str(tmp_path / "venv"), path=bare_path)
    assert done.returncode == 1
    assert "no Python 3.11, 3.12 or 3.13 found (python3 is missing)" in done.stderr
    assert "PYTHON=/path/to/python" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_a_python_that_is_too_old_is_named(tmp_path: Path, bare_path: Path) -> None:
    fake_python(bare_path, '[ "$1" = --version ] && echo Python 3.9.2; exit 1')
    done = run_setup("--venv", str(tmp_path / "venv"), path=bare_path)
    assert done.returncode == 1
    assert "python3 is Python 3.9.2" in done.stderr


def test_a_python_without_venv_says_what_to_install(tmp_path: Path, bare_path: Path) -> None:
    fake_python(bare_path, '[ "$1" = -m ] && { echo "No module named venv"; exit 1; }; exit 0')
    done = run_setup("--venv", str(tmp_path / "venv"), path=bare_path)
    assert done.returncode == 1
    assert "apt install python3-venv" in done.stderr


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path, bare_path: Path) -> None:
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / "thesis.txt").write_text("words")
    done = run_setup("--venv", str(folder), path=bare_path)
    assert done.returncode == 1
    assert f"{folder} exists and is not a virtual environment" in done.stderr
    assert [item.name for item in folder.iterdir()] == ["thesis.txt"]


def test_an_environment_of_somebody_else_is_never_cleared(tmp_path: Path, bare_path: Path) -> None:
    folder = tmp_path / "venv"
    folder.mkdir()
    (folder / "pyvenv.cfg").write_text("")
    fake_python(bare_path, "exit 0")
    done = run_setup("--venv", str(folder), path=bare_path)
    assert done.returncode == 1
    assert "has no Python 3.11 to 3.13" in done.stderr
    assert [item.name for item in folder.iterdir()] == ["pyvenv.cfg"]


def test_no_network_says_so(tmp_path: Path, bare_path: Path) -> None:
    folder = tmp_path / "venv"
    (folder / "bin").mkdir(parents=True)
    (folder / "pyvenv.cfg").write_text("")
    python = fake_python(
        bare_path, '[ "$1" = -m ] && { echo "NewConnectionError: Network is unreachable"; exit 1; }; exit 0'
    )
    (folder / "bin" / "python").symlink_to(python)
    done = run_setup("--venv", str(folder), path=bare_path)
    assert done.returncode == 1
    assert "a package could not be fetched: is there a network" in done.stderr
