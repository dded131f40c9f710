"""The built wheel holds every module and data file of the tree, and nothing else.

A sub-package or data file that pyproject.toml does not name works in an editable install and is missing from the wheel;
a stray Python file at the root would be shipped as part of coppermesh. Both are caught here.
"""

import os
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("agent", "p2p", "exec", "bootstrap")
NOT_SHIPPED_SUFFIXES = {".md", ".lock", ".pyc"}
NOT_SHIPPED = {Path("bootstrap/setup"), Path("bootstrap/Containerfile")}  # both work on a checkout
METADATA = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this checkout, built outside it, so that no old build/ gets in and none is left behind."""
    work = tmp_path_factory.mktemp("wheel")
    extra = work / "build.cfg"
    extra.write_text(f"[build]\nbuild_base = {work}/build\n[egg_info]\negg_base = {work}\n")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-build-isolation", "--no-index", "--wheel-dir", str(work), str(ROOT)]
    done = subprocess.run(
        command,
        env={**os.environ, "DIST_EXTRA_CONFIG": str(extra)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    (built,) = work.glob("coppermesh-*.whl")
    return built


def shipped_files() -> set[str]:
    """What the wheel must hold of this checkout, as paths relative to it."""
    names = {"__init__.py", "py.typed"}
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            relative = path.relative_to(ROOT)
            if path.is_file() and path.suffix not in NOT_SHIPPED_SUFFIXES and relative not in NOT_SHIPPED:
                names.add(str(relative))
    return names


def test_wheel_holds_the_tree_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        members = {name for name in archive.namelist() if not name.endswith("/")}
    info = {name.split(".dist-info/")[1] for name in members if ".dist-info/" in name}
    package = {name.removeprefix("coppermesh/") for name in members if ".dist-info/" not in name}
    assert info == METADATA
    assert package == shipped_files()


def test_every_folder_with_modules_is_a_typed_package() -> None:
    folders = {path.parent for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    for folder in folders:
        assert (folder / "__init__.py").is_file(), f"{folder} has modules and no __init__.py"
        assert (folder / "py.typed").is_file(), f"{folder} has no py.typed"


def test_wheel_names_its_needs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = Parser().parsestr(archive.read(name).decode())
        (entry_points,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        assert "coppermesh = coppermesh.agent.cli:main" in archive.read(entry_points).decode()
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata.get_all("Provides-Extra", [])) == {
        "bench",
        "check",
        "cpu",
        "cuda12",
        "cuda13",
        "dask",
        "demo",
        "dev",
        "models",
        "parquet",
        "test",
    }


def test_nothing_else_python_at_the_root() -> None:
    assert {path.name for path in ROOT.glob("*.py")} == {"__init__.py"}
