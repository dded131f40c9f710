"""`coppermesh check`: what it says of a file, its exit codes, and that no compiler sees what must not be compiled.

NVRTC itself is tried in tests/kernels and by the slow lane; here a stand-in answers in its words.
"""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from coppermesh.agent.check_command import EXIT_EVERYWHERE, EXIT_NOWHERE, EXIT_PARTLY, lay_out
from coppermesh.agent.cli import main
from coppermesh.exec import kernel_check
from coppermesh.exec.compile_child import CompilerFailed
from coppermesh.exec.cuda_toolchain import find_toolchain
from coppermesh.exec.kernel_check import (
    CheckReport,
    Diagnostic,
    TargetResult,
    host_diagnostics,
    nvrtc_diagnostics,
)
from coppermesh.exec.kernel_listing import list_kernels
from coppermesh.exec.nvrtc import missing_parts
from coppermesh.exec.program import MAX_SOURCE_CHARACTERS

needs_compiler = pytest.mark.skipif(find_toolchain() is None, reason="needs a C++ compiler")

TWICE = """extern "C" __global__ void twice(const float* x, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = 2 * x[i];
}
"""
LANES = 'extern "C" __global__ void lanes(int* x) { asm("mov.u32 %0, %%laneid;" : "=r"(x[0])); }\n'


def exit_code(*arguments: str) -> int:
    """What a shell would see."""
    try:
        return main(arguments)
    except SystemExit as end:
        assert isinstance(end.code, int)
        return end.code


def check(capsys: Any, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit code and the facts of `--json`."""
    code = exit_code("check", *arguments, "--json")
    facts = json.loads(capsys.readouterr().out)
    assert facts["exit"] == code
    return code, facts


@pytest.fixture
def kernel_file(tmp_path):
    """Writes a file and gives its name."""

    def write(source: str) -> str:
        path = tmp_path / "kernel.cu"
        path.write_text(source)
        return str(path)

    return write


@pytest.fixture
def compilers(monkeypatch) -> list[tuple[str, Any]]:
    """Stand-ins for both compilers, which take everything; what they were asked."""
    asked: list[tuple[str, Any]] = []

    def for_cpu(kernel, compiler):
        asked.append(("cpu", kernel))
        return {"ok": True, "compiler": "c++ 1.0"}

    def for_cuda(source, architecture, options, expressions):
        asked.append((architecture, (options, expressions)))
        return {"ok": True, "log": "", "cubin_bytes": 1}

    known = {"version": "13.9", "architectures": ["sm_75", "sm_90", "sm_121"]}
    monkeypatch.setattr(kernel_check, "compile_for_cpu", for_cpu)
    monkeypatch.setattr(kernel_check, "compile_for_cuda", for_cuda)
    monkeypatch.setattr(kernel_check, "ask_nvrtc", lambda: known)
    return asked


@pytest.fixture
def no_compiler_may_see_it(monkeypatch) -> None:
    def seen(*arguments):
        pytest.fail("a compiler was given a source that the gate must stop")

    for name in ("compile_for_cpu", "compile_for_cuda", "ask_nvrtc"):
        monkeypatch.setattr(kernel_check, name, seen)


# --- targets and exit codes


def test_what_every_target_takes_is_exit_0(kernel_file, compilers, capsys):
    code, facts = check(capsys, kernel_file(TWICE))
    assert code == EXIT_EVERYWHERE
    assert [(t["target"], t["state"]) for t in facts["targets"]] == [
        ("cpu", "ok"),
        ("sm_75", "ok"),
        ("sm_121", "ok"),
    ]


def test_architectures_names_and_options_reach_the_compilers(kernel_file, compilers, capsys):
    source = "template <class T> __global__ void fill(T* x) { x[0] = N; }\n"
    arguments = (
        "--arch",
        "sm_90",
        "--name",
        "fill< float >",
        "--option",
        "-DN=4",
        "--option",
        "--use_fast_math",
    )
    code, facts = check(capsys, kernel_file(source), *arguments)
    assert code == EXIT_EVERYWHERE
    (_, kernel), cuda = compilers
    assert (kernel.expressions, kernel.options) == (("fill<float>",), ("-DN=4", "--use_fast_math"))
    assert cuda == ("sm_90", (("-DN=4", "--use_fast_math"), ("fill<float>",)))
    assert facts["notes"] == []


def test_what_only_cuda_has_is_exit_7_and_names_line_and_column(kernel_file, compilers, capsys):
    code, facts = check(capsys, kernel_file(TWICE + LANES), "--arch", "sm_90")
    assert code == EXIT_PARTLY == 7
    cpu, cuda = facts["targets"]
    assert (cpu["state"], cuda["state"]) == ("refused", "ok")
    (found,) = cpu["diagnostics"]
    assert (found["line"], found["column"]) == (5, LANES.index("asm") + 1)
    assert "inline assembly" in found["message"]
    assert [name for name, _ in compilers] == ["sm_90"], (
        "the CPU's compiler is not asked for what the gate refuses"
    )


def test_what_nobody_takes_is_exit_1(kernel_file, no_compiler_may_see_it, capsys):
    code, facts = check(capsys, kernel_file(TWICE + "cudaTextureObject_t t;\n"), "--arch", "sm_90")
    assert code == EXIT_NOWHERE
    assert all("textures" in target["diagnostics"][0]["message"] for target in facts["targets"])


def test_without_nvrtc_the_rest_is_checked_and_it_is_said_how_to_get_it(
    kernel_file, compilers, monkeypatch, capsys
):
    monkeypatch.setattr(
        kernel_check, "ask_nvrtc", lambda: {"missing": "NVRTC is not installed; get it with X"}
    )
    code, facts = check(capsys, kernel_file(TWICE))
    assert code == EXIT_EVERYWHERE
    assert facts["targets"][1] == {
        "target": "cuda", "state": "not-tried", "sentence": "NVRTC is not installed; get it with X", "diagnostics": [],
    }  # fmt: skip
    assert check(capsys, kernel_file(TWICE), "--arch", "sm_90")[0] == EXIT_PARTLY, (
        "what was asked for was not tried"
    )


def test_an_architecture_that_nvrtc_does_not_know_is_not_taken(kernel_file, compilers, capsys):
    code, facts = check(capsys, kernel_file(TWICE), "--arch", "sm_35")
    assert code == EXIT_PARTLY
    assert "knows sm_75, sm_90, sm_121" in facts["targets"][1]["sentence"]


def test_a_compiler_that_fails_is_told(kernel_file, compilers, monkeypatch, capsys):
    def fails(*arguments):
        raise CompilerFailed("NVRTC needed more than 60 s")

    monkeypatch.setattr(kernel_check, "compile_for_cuda", fails)
    code, facts = check(capsys, kernel_file(TWICE), "--arch", "sm_90", "--arch", "sm_121")
    assert (code, facts["targets"][1]["sentence"]) == (EXIT_PARTLY, "NVRTC needed more than 60 s")
    assert facts["targets"][2]["state"] == "not-tried", "the same would happen once more"


def test_the_missing_parts_are_those_of_the_extra():
    assert set(missing_parts()) <= {
        "cuda-bindings", "nvidia-cuda-cccl", "nvidia-cuda-nvrtc", "nvidia-cuda-runtime",
    }  # fmt: skip


HOSTILE = [
    '#include "/etc/passwd"',
    "#include <../../etc/passwd>",
    '#include "../kernel.cu"',
    "#include <stdio.h>",
    "#define H </etc/passwd>\n#include H",
    "#if __has_include(</etc/passwd>)\n#endif",
    "#embed </etc/passwd>",
    '#line 1 "/etc/passwd"',
    "??=include </etc/passwd>",
    "%:include </etc/passwd>",
    "#inc\\\nlude </etc/passwd>",
    "#define P(a, b) a##b\n#if P(__has_, include)(</etc/passwd>)\n#endif",
    'const char* x = R"(" */ #include </etc/passwd> )";',
]


@pytest.mark.parametrize("line", HOSTILE)
def test_hostile_sources_never_reach_a_compiler(kernel_file, no_compiler_may_see_it, capsys, line):
    code, facts = check(capsys, kernel_file(TWICE + line + "\n"))
    assert code == EXIT_NOWHERE
    for target in facts["targets"]:
        assert target["diagnostics"][0]["line"] >= 5


# --- files that cannot be checked


def test_files_that_cannot_be_read_are_named_and_exit_2(tmp_path, capsys):
    binary, latin, large = tmp_path / "binary.cu", tmp_path / "latin.cu", tmp_path / "large.cu"
    binary.write_bytes(b"\x7fELF\0\0")
    latin.write_bytes("// caf\xe9".encode("latin-1"))
    large.write_text("//" + " " * MAX_SOURCE_CHARACTERS)
    for path, word in (
        (tmp_path / "missing.cu", "No such file"),
        (tmp_path, "directory"),
        (binary, "not text"),
        (latin, "not UTF-8"),
        (large, "too large"),
        (Path("/dev/zero"), "NUL"),
    ):
        assert exit_code("check", str(path)) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert str(path) in said.err
        assert word in said.err


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--arch", "90"], "--arch"),
        (["--arch", "compute_90"], "--arch"),
        (["--option", "-I/etc"], "-I/etc"),
        (["--name", "f(1)"], "f(1)"),
        (["--name", "f<decltype(1)>"], "decltype"),
    ],
)
def test_wrong_usage_is_exit_2(kernel_file, no_compiler_may_see_it, capsys, arguments, word):
    assert exit_code("check", kernel_file(TWICE), *arguments) == 2
    assert word in capsys.readouterr().err


# --- what it reads off the source and off the compilers' messages


def test_kernels_are_listed_with_what_they_write():
    source = """
#define UNUSED __global__ void no(float* x)
namespace image {
template <class T, int N = 4>
__global__ void __launch_bounds__(256, 2) blur(const T* __restrict__ x, T* y) {}
}
extern "C" {
__global__ void plain(float x[], const int2 *const p, double s) {}
}
__global__ void none() {}
__global__ void declared(int* a);
namespace outer::inner { inline namespace v2 { namespace { __global__ void nested() {} } } }
"""
    listed = [
        (k.name, k.line, k.template, k.extern_c, [(p.text, p.use) for p in k.parameters])
        for k in list_kernels(source)
    ]
    assert listed == [
        ("image::blur", 5, True, False, [("const T* __restrict__ x", "read"), ("T* y", "written")]),
        (
            "plain",
            8,
            False,
            True,
            [("float x[]", "written"), ("const int2 *const p", "read"), ("double s", "value")],
        ),
        ("none", 10, False, False, []),
        ("declared", 11, False, False, [("int* a", "written")]),
        ("outer::inner::v2::nested", 12, False, False, []),
    ]
    assert list_kernels('R"(') == []
    assert [kernel.name for kernel in list_kernels("__global__ void f(")] == ["f"]


def test_marks_without_kernels_are_read_in_linear_time():
    start = time.process_time()
    assert list_kernels("__global__ " * 20_000) == []
    assert time.process_time() - start < 5  # a square of the length would be minutes


def test_the_words_of_both_compilers_become_lines_and_columns():
    log = """kernel.cu(2): error: identifier "z" is undefined
      x[0] = z;
             ^

kernel.cu(1): warning #177-D: variable "i" was declared but never referenced
      int i;
          ^

/usr/include/vector_types.h(9): error: in a header
__nv_name_map(1): error: expected an expression

4 errors detected in the compilation of "kernel.cu".
"""
    assert nvrtc_diagnostics(log) == (
        Diagnostic(2, 12, "error", 'identifier "z" is undefined'),
        Diagnostic(1, 9, "warning", 'variable "i" was declared but never referenced'),
        Diagnostic(0, 0, "error", "vector_types.h: in a header"),
    )
    log = "kernel.cu:2:7: error: 'z' was not declared\nmodule.cpp:(.text+0x1): undefined reference to `missing()'\n"
    assert host_diagnostics(log) == (
        Diagnostic(2, 7, "error", "'z' was not declared"),
        Diagnostic(0, 0, "error", "nothing defines missing()"),
    )


@pytest.mark.skipif(find_toolchain() is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("name", ["scale<nope>", "other<int>"])
def test_a_name_that_names_nothing_is_one_message(kernel_file, capsys, name):
    path = kernel_file("template <class T> __global__ void scale(T* x) { *x *= 2; }")
    assert main(["check", str(path), "--name", name]) == EXIT_NOWHERE
    errors = [line for line in capsys.readouterr().out.splitlines() if ": error: " in line]
    assert 1 <= len(errors) <= 2  # the CPU build's, and NVRTC's where it is there
    for error in errors:
        assert "kernel.cu: error: a kernel's name: " in error
        assert "nope" in error or "other" in error


def test_a_column_counts_characters_where_nvrtc_counts_bytes():
    log = 'kernel.cu(1): error: identifier "z" is undefined\n  /* \u20ac */ x[0] = z;\n' + " " * 19 + "^\n"
    assert [diagnostic.column for diagnostic in nvrtc_diagnostics(log)] == [16]


def test_a_flood_of_messages_is_cut():
    log = "".join(f"kernel.cu:{n}:1: error: {'x' * 5000}\n" for n in range(1, 10_000))
    found = host_diagnostics(log)
    assert len(found) == kernel_check.MAX_DIAGNOSTICS
    assert max(len(diagnostic.message) for diagnostic in found) == kernel_check.MAX_MESSAGE


def test_a_long_line_is_cut_where_it_shows_around_the_column_and_a_short_one_not():
    def shown(line: str, column: int) -> tuple[str, str]:
        found = Diagnostic(1, column, "error", "odd")
        report = CheckReport("k.cu", (), (TargetResult("cpu", "refused", "does not compile", (found,)),))
        _, text, mark, *_ = lay_out(report, [line], colour=False)
        return text.partition(" | ")[2], mark.partition(" | ")[2]

    short = "e" + "x" * 79
    assert shown(short, 61) == (short, " " * 60 + "^")
    text, mark = shown("a" * 200 + "B" + "c" * 200, 201)
    assert text[mark.index("^")] == "B"
    assert text.startswith("...a")
    assert text.endswith("c...")
    assert len(text) <= 92


def test_messages_are_laid_out_like_a_compilers():
    found = Diagnostic(2, 5, "error", "no \x1b[31m such thing")
    report = CheckReport("kernel.cu", (), (TargetResult("cpu", "refused", "does not compile", (found,)),))
    lines = lay_out(report, ["", "\tx =\x1b y;"], colour=False)
    assert lines[0] == "kernel.cu:2:5: error: no \\x1b[31m such thing [cpu]"
    assert lines[1:3] == ["    2 |  x =  y;", "      |     ^"]
    assert lines[-1] == "CPU devices: refused (1 error: does not compile)"
    assert "\033[" in lay_out(report, [], colour=True)[0]


# --- with a real compiler


@needs_compiler
def test_several_kernels_are_built_at_once_and_a_template_by_its_name(kernel_file, capsys):
    source = (
        TWICE + "template <class T> __global__ void fill(T* x) { x[0] = N; }\n__global__ void g(int* x) {}\n"
    )
    _, facts = check(capsys, kernel_file(source), "--name", "fill<double>", "--option", "-DN=2")
    assert facts["targets"][0]["state"] == "ok"
    _, facts = check(capsys, kernel_file(source), "--name", "fill<nonsense>", "--option", "-DN=2")
    assert facts["targets"][0]["state"] == "refused"


@needs_compiler
def test_an_error_of_the_cpu_build_has_its_line(kernel_file, capsys):
    _, facts = check(capsys, kernel_file(TWICE.replace("2 * x[i]", "2 * z[i]")))
    cpu = facts["targets"][0]
    assert cpu["state"] == "refused"
    assert (cpu["diagnostics"][0]["line"], cpu["diagnostics"][0]["column"]) == (3, 27)
    assert exit_code("check", kernel_file(TWICE.replace("2 * x[i]", "2 * z[i]"))) in (
        EXIT_NOWHERE,
        EXIT_PARTLY,
    )
    assert "kernel.cu:3:27: error:" in capsys.readouterr().out


@needs_compiler
def test_a_line_that_the_build_rewrites_has_no_column(kernel_file, capsys):
    source = (
        'extern "C" __global__ void k(float* x) {\n  if (x[0] > 1) return; else z = 1;\n'
        "  __syncthreads();\n  x[1] = y;\n}\n"
    )
    _, facts = check(capsys, kernel_file(source))
    places = [(found["line"], found["column"]) for found in facts["targets"][0]["diagnostics"]]
    assert places == [(2, 0), (4, 10)]


@needs_compiler
def test_a_bomb_ends_at_the_compilers_limits(kernel_file, monkeypatch, capsys):
    monkeypatch.setattr(
        kernel_check, "ask_nvrtc", lambda: {"missing": "not tried here: it takes its full time"}
    )
    bomb = "".join(f"#define A{n} A{n - 1} A{n - 1} A{n - 1} A{n - 1}\n" for n in range(1, 20))
    code, facts = check(capsys, kernel_file(f"#define A0 x\n{bomb}{TWICE}A19\n"))
    assert code in (EXIT_NOWHERE, EXIT_PARTLY)
    assert facts["targets"][0]["state"] == "refused"
