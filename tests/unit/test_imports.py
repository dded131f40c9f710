"""What importing costs and needs: the client stays light, a worker sees exec only, and nothing needs a GPU.

import-linter checks the import statements; these tests check what a fresh interpreter really loads.
"""

import ast
import json
import pkgutil
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import coppermesh

ROOT = Path(__file__).parents[2]
FOLDERS = ("agent", "p2p", "exec", "bootstrap")
OPTIONAL = {
    "cuda": "only with the extra check",
    "cupy": "only with the extra cuda12 or cuda13",
    "cupy_backends": "part of CuPy",
    "ziglang": "only with the extra cpu",
    "skimage": "only with the extra demo",
    "PIL": "only with the extra demo",
    "dask": "only with the extra dask",
    "pyarrow": "only with the extra parquet",
    "ray": "only with the extra bench",
}


def loaded_by(*statements: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after `statements`. CuPy is made impossible to import."""
    program = "\n".join(
        ["import sys, json", "sys.modules['cupy'] = None", *statements, "print(json.dumps([*sys.modules]))"]
    )
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    names: list[str] = json.loads(done.stdout.splitlines()[-1])
    return set(names)


def all_modules() -> list[str]:
    """Every module of the installed coppermesh, by name, without importing one. A `__main__` runs when imported."""
    names = []
    for folder in FOLDERS:
        prefix = f"coppermesh.{folder}."
        paths = [str(Path(coppermesh.__path__[0]) / folder)]
        names += [module.name for module in pkgutil.walk_packages(paths, prefix)]
    return [name for name in names if not name.endswith(".__main__")]


def test_importing_coppermesh_loads_no_part_of_it() -> None:
    loaded = loaded_by("import coppermesh")
    assert {name for name in loaded if name.startswith("coppermesh")} == {"coppermesh"}
    assert not loaded & {"numpy", "trio", "libp2p"}


def test_the_client_loads_no_network_stack() -> None:
    loaded = loaded_by("import coppermesh as cm", "cm.connect, cm.xp, cm.RawKernel")
    assert not loaded & {"libp2p", "trio", "sqlite3", "multiaddr", "coppermesh.p2p.transport"}


@pytest.mark.parametrize("module", ["worker", "zygote"])
def test_a_worker_loads_exec_only(module: str) -> None:
    loaded = loaded_by(f"import coppermesh.exec.{module}")
    ours = {name for name in loaded if name.startswith("coppermesh.")}
    assert {name for name in ours if not f"{name}.".startswith("coppermesh.exec.")} == set()
    assert not loaded & {"libp2p", "trio", "nacl", "sqlite3"}


def test_every_exported_name_is_there() -> None:
    statements = [f"coppermesh.{name}" for name in coppermesh.__all__]
    loaded_by("import coppermesh", *statements)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = coppermesh.nonsense  # type: ignore[attr-defined]


def test_every_module_imports_without_a_gpu() -> None:
    names = all_modules()
    assert len(names) > 30
    loaded = loaded_by("import importlib", *(f"importlib.import_module({name!r})" for name in names))
    assert loaded >= set(names)


def imported_names(path: Path) -> set[str]:
    """Top-level names of everything that a file imports, at the top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            assert node.module is not None
            names.add(node.module.split(".")[0])
    return names


def test_every_import_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[\[<>=!~; ]", line)[0].lower() for line in project["dependencies"]}
    distributions = packages_distributions()
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            for name in imported_names(path) - set(sys.stdlib_module_names) - set(OPTIONAL) - {"coppermesh"}:
                owners = {owner.lower() for owner in distributions.get(name, [])}
                assert owners & declared, (
                    f"{path.relative_to(ROOT)} imports {name}, which pyproject.toml does not name"
                )


@pytest.mark.parametrize(
    ("library", "owners"),
    [("libp2p", "p2p/libp2p_*.py"), ("multiaddr", "p2p/libp2p_*.py"), ("cupy", "exec/cupy_runtime.py")],
)
def test_a_library_is_imported_by_its_own_modules_only(library: str, owners: str) -> None:
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            relative = path.relative_to(ROOT)
            assert relative.match(owners) or library not in imported_names(path), (
                f"{relative} imports {library}"
            )
