"""What the tests of the GPU lane share. Outside `tests/gpu/run` they are skipped: they need a GPU."""

import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

LANE = "COPPERMESH_GPU_LANE"
"""Set by `run`: the file that takes the figures, one JSON object a line."""
TESTS = Path(__file__).parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs a GPU."""
    for item in items:
        if Path(item.path).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.gpu)
            if LANE not in os.environ:
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU: tests/gpu/run"))


@pytest.fixture(scope="session")
def figure() -> Iterator[Callable[..., None]]:
    """`figure("what", value, "unit")` puts a line into RESULTS.md."""
    with Path(os.environ[LANE]).open("a") as file:

        def write(what: str, value: Any, unit: str = "") -> None:
            file.write(json.dumps({"what": what, "value": value, "unit": unit}) + "\n")
            file.flush()

        yield write


@pytest.fixture(scope="session")
def runtime() -> Any:
    """One CuPy runtime for all tests that share a context. Starts the driver in this process."""
    from coppermesh.exec.cupy_runtime import CupyRuntime

    return CupyRuntime()


@pytest.fixture(scope="session")
def gpu() -> Any:
    """The first GPU, as the agent sees it."""
    from coppermesh.exec.device import probe_gpus

    return probe_gpus()[0]


@pytest.fixture(scope="session")
def load() -> Callable[[str], ModuleType]:
    """`load("kernels/corpus.py")`: a file of the tests as a module."""

    def load(path: str) -> ModuleType:
        name = "coppermesh_gpu_" + path.replace("/", "_").removesuffix(".py")
        spec = importlib.util.spec_from_file_location(name, TESTS / path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
