"""The C++ compiler for CUDA source on a machine without a GPU: which one, and how it is called.

Order: the configured one, clang++, g++, then zig from the `cpu` extra (a whole clang in a wheel).

Flags. `-O3 -march=native`, because a module is built where it runs and never leaves. `-ffp-contract=off`: a GPU
contracts `a*b+c` and so may GCC and Clang, each in its own places; without it every CPU provider gives the same bits
for + - * / and sqrt, and NumPy's bits too, which is worth more to a mesh that compares results than the few per cent.
`-fwrapv -fno-strict-aliasing`: kernels overflow integers and pun pointers as a GPU lets them.
`-fno-delete-null-pointer-checks`: an access through a null pointer stays in the code, where it ends the worker;
else the compiler takes such code for unreachable and removes it, and the launch ends as if all had gone well.
`-nostdinc -nostdinc++` leaves the shim as the only place headers come from, and spares parsing the host's (70 ms a
module instead of 300).
"""

import importlib.util
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"

_COMMON_FLAGS = (
    "-O3",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fwrapv",
    "-fno-strict-aliasing",
    "-fno-delete-null-pointer-checks",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-threadsafe-statics",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-nostdinc",
    "-nostdinc++",
    "-fno-diagnostics-color",
    "-w",
)
_LIBRARIES = {"gcc": ("-lm",), "clang": ("-lm", "-lc", "-lgcc"), "zig": ("-lm",)}
"""Clang would link the libraries of C++ and of unwinding, whether they are needed or not."""
_FIBER_FLAGS = {
    "gcc": ("-fsanitize=bounds", "-fno-sanitize-recover=all", "-fstack-clash-protection", "-nodefaultlibs"),
    "clang": (
        "-fsanitize=array-bounds",
        "-fno-sanitize-recover=all",
        "-fstack-clash-protection",
        "-nodefaultlibs",
    ),
    "zig": ("-fsanitize=array-bounds", "-fno-sanitize-recover=all", "-fstack-clash-protection"),
}
"""For modules whose threads wait for each other. `coppermesh_fibers.h` has what the checks call, so the compilers'
own libraries for it stay out (`-nodefaultlibs`); large frames touch every page, so none steps over a guard page."""
_FIBER_LIBRARIES = {**_LIBRARIES, "gcc": ("-lm", "-lc", "-lgcc")}
_NO_START_FILES = ("-nostartfiles", "-Wl,--hash-style=both")
"""Nothing runs when a library is loaded, and its symbols can be counted: `library_check` wants both. Zig links its
start files all the same."""
_UNSET_MAY_BE_PASSED = ("-Xclang", "-no-enable-noundef-analysis")
"""Clang takes code that passes a variable without a value for unreachable. CUDA kernels do it, and rightly: `int first;
if (rank == 0) first = atomicAdd(...); first = group.shfl(first, 0);`. Versions before 15 do not know the option, nor
take code for unreachable because of it."""
_SET_ALL = ("-ftrivial-auto-var-init=pattern",)
"""For those: version 14 takes a variable that one lane alone has set for set by all of them, and every lane adds."""
_FAMILY_FLAGS = {
    "gcc": ("-march=native", "-pipe", "-fmax-errors=20", *_NO_START_FILES, "-Wl,-z,defs"),
    "clang": ("-march=native", "-nodefaultlibs", "-ferror-limit=20", *_NO_START_FILES, "-Wl,-z,defs"),
    "zig": (
        *("-mcpu=native", "-nostdlib++", "-fno-sanitize=all", "-ferror-limit=20", *_UNSET_MAY_BE_PASSED),
        *("-s", "-Wl,-z,defs"),
    ),
}


@dataclass(frozen=True)
class Toolchain:
    """A compiler and how to call it."""

    command: tuple[str, ...]
    family: str
    """`gcc`, `clang` or `zig`: which flags it takes."""
    more_flags: tuple[str, ...] = ()
    """Those that depend on its version."""

    def arguments(
        self, standard: str, include: Path, source: str, output: str, *, fibers: bool = False
    ) -> list[str]:
        """The command that builds `output` from `source`, both in the directory it runs in.

        `fibers`: threads of the module may wait for each other (`cuda_rewrite.uses_fibers`).
        """
        return [
            *self.command,
            f"-std={standard}",
            *_COMMON_FLAGS,
            *_FAMILY_FLAGS[self.family],
            *self.more_flags,
            *(_FIBER_FLAGS[self.family] if fibers else ()),
            f"-I{include}",
            source,
            "-o",
            output,
            *(_FIBER_LIBRARIES[self.family] if fibers else _LIBRARIES[self.family]),
        ]

    @property
    def start_files(self) -> bool:
        """Whether it links start files of its own, which run one function when a library is loaded."""
        return self.family == "zig"

    def environment(self, scratch: str) -> dict[str, str]:
        """All the environment it gets. Temporary files and zig's cache go to `scratch`; messages are plain ASCII."""
        path = f"{Path(self.command[0]).parent}:{SYSTEM_PATH}"
        cache = f"{scratch}/zig" if self.family == "zig" else scratch
        return {
            "PATH": path,
            "LC_ALL": "C",
            "HOME": scratch,
            "TMPDIR": scratch,
            "ZIG_GLOBAL_CACHE_DIR": cache,
            "ZIG_LOCAL_CACHE_DIR": cache,
        }

    def version(self) -> str:
        """Name and version for a receipt (`g++ 12.2.0`). Runs the compiler: some 10 ms, at most 10 s."""
        name = Path(self.command[0]).name
        question = ["version"] if self.family == "zig" else ["-dumpfullversion", "-dumpversion"]
        try:
            answer = subprocess.run(  # noqa: S603 - a compiler found on PATH, or the owner's choice
                [self.command[0], *question],
                env={"PATH": SYSTEM_PATH, "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=10,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return name
        lines = answer.stdout.decode(errors="replace").split()
        return f"{name} {lines[0][:20]}" if lines else name


def find_toolchain(configured: str | None = None) -> Toolchain | None:
    """The compiler to use, or None where there is none. `configured` is a path or a name on PATH."""
    if configured:
        path = shutil.which(configured)
        return _toolchain_at(path) if path else None
    for name in ("clang++", "g++"):
        if path := shutil.which(name):
            return _toolchain_at(path)
    return _zig_of_the_wheel()


def _toolchain_at(path: str) -> Toolchain:
    # What a link points to tells more than its own name: `c++` is g++ on one machine and clang++ on another.
    names = f"{Path(path).name} {Path(path).resolve().name}"
    if "zig" in names:
        return Toolchain((path, "cc", "-x", "c++"), "zig")
    if "clang" in names:
        return Toolchain((path,), "clang", _UNSET_MAY_BE_PASSED if _major_version(path) >= 15 else _SET_ALL)
    return Toolchain((path,), "gcc")


def _major_version(path: str) -> int:
    """Of a clang; a recent one's where it does not say. Runs it: some 10 ms, at most 10 s."""
    try:
        answer = subprocess.run(  # noqa: S603 - a compiler found on PATH, or the owner's choice
            [path, "-dumpversion"],
            env={"PATH": SYSTEM_PATH, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=10,
            check=True,
        )
        return int(answer.stdout.split(b".")[0])
    except (OSError, subprocess.SubprocessError, ValueError):
        return 99


def _zig_of_the_wheel() -> Toolchain | None:
    spec = importlib.util.find_spec("ziglang")
    if spec is None or spec.origin is None:
        return None
    program = Path(spec.origin).with_name("zig")
    # `zig c++` would build its C++ library first, which takes minutes once; kernels need none.
    return Toolchain((str(program), "cc", "-x", "c++"), "zig") if program.exists() else None
