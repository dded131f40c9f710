"""The CuPy runtime without a GPU: what can be shown is that nothing of CuPy loads before it is asked for."""

import importlib.util
import subprocess
import sys

import pytest

from coppermesh.exec.cupy_runtime import CupyRuntime


def test_importing_the_module_does_not_import_cupy():
    code = "import sys, coppermesh.exec.cupy_runtime; sys.exit('cupy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(importlib.util.find_spec("cupy") is not None, reason="CuPy is installed")
def test_without_cupy_the_error_names_it():
    with pytest.raises(ModuleNotFoundError, match="cupy"):
        CupyRuntime()
