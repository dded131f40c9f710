"""NVIDIA's management library through `pynvml`, and whether it is the real one.

Tests put a small library of their own in its place (`tests/nvml`), which has profiles of cards that are not there. It
exports a function that NVIDIA's does not, and its driver version ends in `simulated`, as other such libraries' may:
either is enough for everything that came from it to be marked. This cannot recognise a stand-in that wants to deceive;
what deceives here only deceives its owner's own screens, since no CUDA program ever runs on one.
"""

from importlib import import_module
from typing import Any, Final

MARK: Final = "coppermesh_simulated_nvml"


def binding() -> Any:
    """The module `pynvml`, imported late: it looks for a driver's library."""
    return import_module("pynvml")


def is_simulated() -> bool:
    """Whether the library that answers is a stand-in. NVML must be initialised."""
    pynvml = binding()
    library = getattr(pynvml, "nvmlLib", None)
    if library is not None and hasattr(library, MARK):
        return True
    try:
        driver = pynvml.nvmlSystemGetDriverVersion()
    except (pynvml.NVMLError, AttributeError):
        return False
    text = driver.decode(errors="replace") if isinstance(driver, bytes) else str(driver)
    return any(word in text.lower() for word in ("simulated", "mock", "fake"))
