"""The systemd units and the container file: what they start is what the command line takes, and systemd reads them."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from coppermesh.agent.cli import _build_parser

BOOTSTRAP = Path(__file__).parents[2] / "bootstrap"
UNITS = {"coppermesh.service": "--user", "coppermesh-seed.service": "--system"}
LINE = re.compile(r"(\[[A-Z][a-z]+\]|[A-Z][A-Za-z]+=.*|#.*|)")


def started(words: list[str]) -> None:
    """The command line takes these arguments."""
    parsed = _build_parser().parse_args(words)
    assert callable(parsed.command)


@pytest.mark.parametrize("name", UNITS)
def test_each_line_of_a_unit_is_one_and_its_command_is_ours(name):
    text = (BOOTSTRAP / name).read_text()
    assert [line for line in text.splitlines() if LINE.fullmatch(line) is None] == []
    (command,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    program, *words = shlex.split(command)
    assert Path(program).name == "coppermesh"
    started(words)


@pytest.mark.parametrize(("name", "manager"), UNITS.items())
def test_systemd_has_nothing_to_say_about_a_unit(tmp_path, monkeypatch, name, manager):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    # Only the program's place is the reader's own to fill in.
    text = re.sub(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", (BOOTSTRAP / name).read_text())
    unit = tmp_path / name
    unit.write_text(text)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    command = ["systemd-analyze", "verify", "--man=no", manager, str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")


def test_the_seed_is_shut_in_as_far_as_systemd_can(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    command = ["systemd-analyze", "security", "--offline=yes", str(BOOTSTRAP / "coppermesh-seed.service")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    found = re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)
    if found is None:
        pytest.skip("this systemd does not look at files")
    assert float(found[1]) <= 2.0


def test_the_container_file_copies_what_there_is_and_starts_a_seed():
    root = BOOTSTRAP.parent
    text = re.sub(r"\\\n", " ", (BOOTSTRAP / "Containerfile").read_text())
    steps = [line.partition(" ") for line in text.splitlines() if line and not line.startswith("#")]
    words = {name: rest for name, _, rest in steps}
    assert set(words) <= {"FROM", "COPY", "RUN", "USER", "ENV", "VOLUME", "EXPOSE", "ENTRYPOINT"}
    entry = words["ENTRYPOINT"].strip("[]").replace('"', "").split(", ")
    assert entry[0] == "coppermesh"
    started(entry[1:])
    home = entry[entry.index("--home") + 1]
    assert home.startswith(words["VOLUME"] + "/")
    assert words["USER"] != "root"
    setup = next(rest for name, _, rest in steps if name == "RUN" and "setup" in rest)
    script, *options = shlex.split(setup)
    assert (root / script.removeprefix("/source/")).is_file()
    asked = subprocess.run(
        [root / script.removeprefix("/source/"), "--help"], capture_output=True, text=True, check=False
    )
    for option in options:
        if option.startswith("--"):
            assert option in asked.stdout + asked.stderr
    # What the checkout has beside its files is not sent to the builder.
    ignored = (root / ".containerignore").read_text().split()
    assert {".git", ".venv"} <= set(ignored)
