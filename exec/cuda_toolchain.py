"""Finding a C++ compiler for CUDA source on the CPU."""

import importlib.util
import shutil
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Toolchain:
    """A compiler and how to call it."""

    command: tuple[str, ...]
    family: str
    """`clang`, `gcc` or `zig`: which flags it takes."""


def find_toolchain(configured: str | None = None) -> Toolchain | None:
    """The compiler to use: the configured one, else clang++, g++, or zig from the `cpu` extra; None if there is none."""
    if configured:
        path = shutil.which(configured)
        return Toolchain((path,), "clang" if "clang" in configured else "gcc") if path else None
    for name, family in (("clang++", "clang"), ("g++", "gcc")):
        if path := shutil.which(name):
            return Toolchain((path,), family)
    if importlib.util.find_spec("ziglang") is not None:
        return Toolchain((sys.executable, "-I", "-m", "ziglang", "c++"), "zig")
    return None
