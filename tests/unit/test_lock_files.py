"""The lock files pin every package with hashes, agree with each other and with pyproject.toml, and name no machine."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = (
    "requirements.lock", ".ci/dev.lock", "bootstrap/build.lock", "bootstrap/cpu.lock", "bootstrap/check.lock",
)  # fmt: skip
PIN = re.compile(r"^([a-z0-9][a-z0-9._-]*)==([^ ;\\]+)", re.MULTILINE)


def pins(lock: str) -> dict[str, str]:
    return dict(PIN.findall((ROOT / lock).read_text()))


def wanted(*extras: str) -> set[str]:
    """Normal names of the distributions that pyproject.toml asks for directly."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = list(project["dependencies"])
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    return {re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~; ]", line)[0]).lower() for line in lines}


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_has_hashes_and_no_address(lock: str) -> None:
    text = (ROOT / lock).read_text()
    assert pins(lock)
    for block in re.split(r"\n(?=\S)", text):
        if not block.startswith("#"):
            assert PIN.match(block), block
            assert "--hash=sha256:" in block, block
    assert "://" not in text
    assert "file:" not in text
    assert not re.search(r"(^|\s)/\w", text)


def test_locks_hold_what_pyproject_asks_for() -> None:
    assert wanted("demo") <= pins("requirements.lock").keys()
    assert wanted("demo", "test", "dev", "models") <= pins(".ci/dev.lock").keys()
    assert not {"torch", "transformers", "sentence-transformers"} & pins(".ci/dev.lock").keys()
    assert pins("bootstrap/cpu.lock").keys() == {"ziglang"}
    assert pins("bootstrap/build.lock").keys() == {"setuptools"}
    assert pins("bootstrap/check.lock").keys() == wanted("check") - wanted() | {"cuda-pathfinder"}


def test_tests_run_on_the_versions_that_users_get() -> None:
    assert pins("requirements.lock").items() <= pins(".ci/dev.lock").items()


def test_fastecdsa_is_the_one_with_wheels() -> None:
    assert pins("requirements.lock")["fastecdsa"] == "4.0.0"
