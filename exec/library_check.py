"""A kernel's library as it came out of the compiler, looked at once more before anything loads it.

A kernel is compiled to native code, and only its process contains that. But what can be seen cheaply is refused here,
with the kernel's name: a function of the C library that CUDA does not have (`system`, declared by the kernel itself),
code that would run when the library is loaded (a variable with a constructor, an `ifunc`), an executable stack, and
`__device__` arrays larger than any task's memory. The gate has refused most of it by name before; this holds whatever
way was found around it.

Read straight from the ELF file's program headers and dynamic section (System V ABI, generic part 4.1, chapters 4 and
5; x86-64 psABI, section 4.4): the loader uses these and never the sections. Every offset in the file is checked.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from coppermesh.exec.errors import KernelCompileError

MAX_IMAGE_BYTES = 1 << 32
"""Most memory that a library's own variables may take."""
MAX_SYMBOLS = 1 << 20

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_DYNAMIC = struct.Struct("<qQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQq")

_LOAD, _DYNAMIC_SEGMENT, _INTERPRETER, _TLS, _STACK = 1, 2, 3, 7, 0x6474E551
_EXECUTABLE, _WRITABLE = 1, 2
_NEEDED, _STRTAB, _SYMTAB, _RELA, _RELASZ, _STRSZ, _JMPREL, _PLTRELSZ = 1, 5, 6, 7, 8, 10, 23, 2
_HASH = 4
_RUNS_CODE = {
    12: "DT_INIT", 13: "DT_FINI", 25: "DT_INIT_ARRAY", 26: "DT_FINI_ARRAY", 32: "DT_PREINIT_ARRAY",
}  # fmt: skip
_SIZE_OF = {25: 27, 26: 28, 32: 33}
"""Where the bytes of each list of functions are told."""
_ADDRESS_BYTES = 8
_FINDS_FILES = {
    15: "DT_RPATH", 29: "DT_RUNPATH", 0x7FFFFFFD: "DT_AUXILIARY", 0x7FFFFFFF: "DT_FILTER", 0x6FFFFEFC: "DT_AUDIT",
    0x6FFFFEFB: "DT_DEPAUDIT",
}  # fmt: skip
_IFUNC = 10
_IRELATIVE = 37

LIBRARIES = frozenset({"libc.so.6", "libm.so.6", "ld-linux-x86-64.so.2", "libpthread.so.0", "libdl.so.2"})
_OF_RUNTIME = frozenset(
    {
        "__tls_get_addr", "malloc", "free", "memcpy", "memmove", "memset", "memcmp",
        # Of kernels whose threads wait for each other: stacks with guard pages, and faults told from crashes.
        "mprotect", "sigaction", "sigaltstack", "dl_iterate_phdr",
        # Rounding modes of the intrinsics.
        "fesetround", "fegetround",
    }
)  # fmt: skip
_OF_START_FILES = frozenset(
    {"__cxa_finalize", "__gmon_start__", "_ITM_registerTMCloneTable", "_ITM_deregisterTMCloneTable"}
)
_OF_LIBM = """
acos acosh asin asinh atan atan2 atanh cbrt ceil copysign cos cosh erf erfc exp exp10 exp2 expm1 fabs
fdim floor fma fmax fmin fmod frexp hypot ilogb j0 j1 jn ldexp lgamma llrint llround log log10 log1p log2 logb lrint
lround modf nan nearbyint nextafter pow remainder remquo rint round scalbln scalbn sin sincos sinh sqrt tan tanh tgamma
trunc y0 y1 yn
cacos cacosh casin casinh catan catanh ccos ccosh cexp clog cpow cproj csin csinh csqrt ctan ctanh
"""
IMPORTS = (
    _OF_RUNTIME
    | {f"{name}{suffix}" for name in _OF_LIBM.split() for suffix in ("", "f")}
    | {"lgamma_r", "lgammaf_r"}
)
"""Every function from outside that a kernel's library may use: what the shim's headers declare, and no more."""


@dataclass(frozen=True, slots=True)
class _Segment:
    kind: int
    flags: int
    offset: int
    address: int
    file_bytes: int
    memory_bytes: int


def check_library(data: bytes, kernel: str, *, start_files: bool = False) -> None:
    """Refuse a library that is more than kernels and data. Raises KernelCompileError, naming `kernel`.

    `start_files`: the compiler links its own, which put one function into each list of those that run by themselves.
    """
    try:
        fault = _fault(data, start_files)
    except (struct.error, LookupError, OverflowError, StopIteration, ValueError):
        fault = "the compiler's output is no library of this machine"
    if fault is not None:
        raise KernelCompileError(kernel, f"kernel.cu: error: {fault}")


def _fault(data: bytes, start_files: bool) -> str | None:
    segments = _segments(data)
    loaded = sum(segment.memory_bytes for segment in segments if segment.kind in (_LOAD, _TLS))
    if loaded > MAX_IMAGE_BYTES:
        return f"its variables take {loaded} bytes, at most {MAX_IMAGE_BYTES} are possible"
    for segment in segments:
        if segment.kind == _STACK and segment.flags & _EXECUTABLE:
            return "it wants an executable stack (a nested function?)"
        if segment.kind == _LOAD and segment.flags & _EXECUTABLE and segment.flags & _WRITABLE:
            return "it has memory that is writable and executable"
        if segment.kind == _INTERPRETER:
            return "it is a program and no library"
    dynamic = next(segment for segment in segments if segment.kind == _DYNAMIC_SEGMENT)
    entries = [*_entries(data, dynamic)]
    sizes = dict(entries)
    for tag, _ in entries:
        by_start_files = start_files and sizes.get(_SIZE_OF.get(tag, 0), 0) <= _ADDRESS_BYTES
        if tag in _RUNS_CODE and not by_start_files:
            return (
                "a variable needs code to initialise it, or a function is to run when the library is loaded "
                f"({_RUNS_CODE[tag]}): CUDA has neither"
            )
        if tag in _FINDS_FILES:
            return f"it names files of this machine ({_FINDS_FILES[tag]})"
    return _linking_fault(data, segments, entries, IMPORTS | _OF_START_FILES if start_files else IMPORTS)


def _linking_fault(
    data: bytes, segments: list[_Segment], entries: list[tuple[int, int]], imports: frozenset[str]
) -> str | None:
    table: Mapping[int, int] = dict(entries)
    names = _at(segments, table[_STRTAB]), table[_STRSZ]
    for tag, value in entries:
        if tag == _NEEDED and (library := _text(data, names, value)) not in LIBRARIES:
            return f"it needs the library {library[:80]}"
    symbols = [*_symbols(data, segments, table, names)]
    for name, kind, is_defined in symbols:
        if kind == _IFUNC:
            return f"{name[:80]} is chosen by code that runs when the library is loaded (ifunc)"
        if not is_defined and name not in imports:
            return f"a kernel cannot call {name[:80]}: it is no function of CUDA's"
    for start, size in ((_RELA, _RELASZ), (_JMPREL, _PLTRELSZ)):
        if start in table:
            begin = _at(segments, table[start])
            for position in range(begin, begin + table[size], _RELOCATION.size):
                _, info, _ = _RELOCATION.unpack_from(data, position)
                if info >> 32 > len(symbols):
                    raise ValueError("a relocation with a symbol outside the table")
                if info & 0xFFFFFFFF == _IRELATIVE:
                    return "code would run when the library is loaded (IRELATIVE)"
    return None


def _segments(data: bytes) -> list[_Segment]:
    header = _HEADER.unpack_from(data)
    magic, kind = header[0], header[1]
    if magic[:6] != b"\x7fELF\x02\x01" or kind != 3:
        raise ValueError("not a 64-bit little-endian shared object")
    offset, size, count = header[5], header[9], header[10]
    if size != _SEGMENT.size:
        raise ValueError("program headers of an unknown size")
    segments = []
    for number in range(count):
        kind, flags, start, address, _, in_file, in_memory, _ = _SEGMENT.unpack_from(
            data, offset + number * size
        )
        if in_file > in_memory and kind == _LOAD:
            raise ValueError("a segment larger in the file than in memory")
        segments.append(_Segment(kind, flags, start, address, in_file, in_memory))
    return segments


def _entries(data: bytes, dynamic: _Segment) -> Iterator[tuple[int, int]]:
    for position in range(dynamic.offset, dynamic.offset + dynamic.file_bytes, _DYNAMIC.size):
        tag, value = _DYNAMIC.unpack_from(data, position)
        if tag == 0:
            return
        yield tag, value


def _at(segments: list[_Segment], address: int) -> int:
    """Where in the file the loader finds what is at `address`."""
    for segment in segments:
        if segment.kind == _LOAD and segment.address <= address < segment.address + segment.file_bytes:
            return segment.offset + address - segment.address
    raise ValueError("an address outside the file")


def _text(data: bytes, names: tuple[int, int], offset: int) -> str:
    start, size = names
    if offset >= size:
        raise ValueError("a name outside the table of names")
    end = data.index(b"\0", start + offset)
    return data[start + offset : end].decode("ascii")


def _symbols(
    data: bytes, segments: list[_Segment], table: Mapping[int, int], names: tuple[int, int]
) -> Iterator[tuple[str, int, bool]]:
    """Name, type and whether it is defined here, of every dynamic symbol but the first, which is none."""
    start = _at(segments, table[_SYMTAB])
    _, count = struct.unpack_from("<II", data, _at(segments, table[_HASH]))
    if not 0 < count <= MAX_SYMBOLS:
        raise ValueError("a wrong number of symbols")
    for number in range(1, count):
        name, info, _, section, _, _ = _SYMBOL.unpack_from(data, start + number * _SYMBOL.size)
        yield _text(data, names, name), info & 15, section != 0
