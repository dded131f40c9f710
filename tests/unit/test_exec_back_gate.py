"""The gate before the C++ compiler: features refused by name and line, and no way to a file of this machine."""

import re
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coppermesh.exec.cuda_gate import HEADERS, SHIM, SourceRefused, check_cpu_source, scan
from coppermesh.exec.cuda_toolchain import find_toolchain

KERNEL = 'extern "C" __global__ void k(float* x) { x[threadIdx.x] = 1e-3f; }'

ACCEPTED = [
    KERNEL,
    "",
    '#include <cuda_runtime.h>\n#include "math_constants.h" // constants\n' + KERNEL,
    "# /* a null directive */\n#pragma unroll 4\n#pragma once\n#ifdef X\n#error it is defined\n#endif\n"
    + KERNEL,
    "#define JOIN(a, b) a##b\nint JOIN(co, unt);\n" + KERNEL,
    '// it\'s a comment with __shared__ and #include <stdio.h>\n/* asm("nop") */' + KERNEL,
    'const char* text = "#include <stdio.h> asm __shared__";',
    "int wide = 1'000'000; float f = .5e+3f; char c = '\\''; char d = '\"';",
    "int texture = 1, cub = 2, surface = texture < cub, std = 3;",
    "#define LONG \\\n  1 + \\  \n  2\n" + KERNEL,
    "int first; \r\nint second;\r\n",
    '#line 1 "operation"\nint q;',
    "float x = a < b, y = a << b;",
]

# What is refused, the line it must name, and a word of what must be named.
REFUSED = [
    ("int a;\n\n  cudaTextureObject_t tile;", 3, "textures"),
    ("void f() {\n__barrier_sync(0);\n}", 2, "barriers by number"),
    ("\n\n\nint a = __any(1);", 4, "Volta"),
    ("float s = __shfl_down(s, 1);", 1, "Volta"),
    ("unsigned b = __ballot(1);", 1, "Volta"),
    ("cooperative_groups::this_grid().sync();", 1, "grid synchronisation"),
    ("float v = tex2D<float>(t, 1, 2);", 1, "textures"),
    ("cudaTextureObject_t t;", 1, "textures"),
    ("surf2Dwrite(1, s, 0, 0);", 1, "surfaces"),
    ('void f() { asm("nop"); }', 1, "inline assembly"),
    ('void f() { __asm__ volatile("nop"); }', 1, "inline assembly"),
    ("void f() {\n k<<<1, 32>>>(x);\n}", 2, "dynamic parallelism"),
    ("nvcuda::wmma::fragment<1> f;", 1, "tensor-core"),
    ("curandState s;", 1, "curand"),
    ("thrust::sort(a, b);", 1, "thrust"),
    ("__nv_bfloat16 h;", 1, "bfloat16"),
    ("std::vector<int> v;", 1, "standard library"),
    ("__managed__ int m;", 1, "managed memory"),
    ("COPPERMESH_EXPORT(other)", 1, "build itself"),
    # --- ways to files of this machine
    ('int a;\n#include "/etc/shadow"', 2, "#include"),
    ("#include <../secret.h>", 1, "#include"),
    ("#include <stdio.h>", 1, "#include"),
    ('#include "kernel.cu"', 1, "#include"),
    ("#include <coppermesh_cuda.h>", 1, "#include"),
    ("#define H <stdio.h>\n#include H", 2, "#include H"),
    ("%:include <stdio.h>", 1, "#include"),
    ("#inc\\\nlude <stdio.h>", 1, "#include"),
    ("#inc\\  \nlude <stdio.h>", 1, "#include"),
    ("/* a\nb */ # /* c */ include <stdio.h>", 2, "#include"),
    ("#include /* c */ <cuda_runtime.h> <stdio.h>", 1, "#include"),
    ("#include_next <math.h>", 1, "#include_next"),
    ("#import <stdio.h>", 1, "#import"),
    ("#embed </etc/shadow>", 1, "#embed"),
    ('# 1 "/etc/shadow"', 1, "directive #1"),
    ('#line 1 "/etc/shadow"', 1, "#line"),
    ('#pragma GCC dependency "/etc/shadow"', 1, "#pragma GCC"),
    ('_Pragma("GCC system_header")', 1, "_Pragma"),
    ("#if __has_include(</etc/shadow>)\n#endif", 1, "__has_include"),
    ("#define P(a, b) a##b\n#if P(__has_, include)(<stdio.h>)\n#endif", 1, "__has_include"),
    ("#define P(a, b) a%:%:b\nP(_Prag, ma)", 1, "_Pragma"),
    ('#ident "x"', 1, "#ident"),
    # --- what a reader could see otherwise than a compiler
    ("??=include <stdio.h>", 1, "trigraphs"),
    ('const char* a = R"(" asm("nop"); ")";', 1, "raw string"),
    ('const char* a = u8R"(x)";', 1, "raw string"),
    ("#if 0\n' /*\n#endif\nint x;\n'*/", 2, "without its end"),
    ('char* a = "one\ntwo";', 1, "without its end"),
    ("int x; /* no end", 1, "comment without an end"),
    ("int \\u0061sm;", 1, "backslash"),
    ("int caf\u00e9;", 1, "U+00E9"),
    ("int a;\rint b;", 1, "carriage return"),
    ("int a;\0", 1, "control character"),
    ("int a;\\\n\\\n\n__managed__ int x;", 4, "managed memory"),
]


@pytest.mark.parametrize("source", ACCEPTED)
def test_ordinary_source_passes(source):
    check_cpu_source(source)


@pytest.mark.parametrize(("source", "line", "word"), REFUSED)
def test_refusals_name_the_thing_and_the_line(source, line, word):
    with pytest.raises(SourceRefused) as caught:
        check_cpu_source(source)
    assert caught.value.code == "unsupported-feature"
    assert caught.value.sentence.startswith(f"line {line}:")
    assert word in caught.value.sentence


HOST = "#include <stdio.h>\n"


@pytest.mark.parametrize(
    "source",
    [
        f"#ifndef __CUDACC_RTC__\n{HOST}#endif",
        f"%:ifndef __CUDACC_RTC__ // the host\n{HOST}#endif",
        f"#ifdef __CUDACC_RTC__\n#else\n{HOST}#endif",
        f"#ifdef __CUDACC_RTC__\n#elif 1\n{HOST}#else\n{HOST}#endif",
        f"#if !defined(__CUDACC_RTC__)\n#if 1\n{HOST}#else\n{HOST}#endif\n{HOST}#endif",
    ],
)
def test_a_hosts_headers_may_stand_where_no_compiler_reads_them(source):
    check_cpu_source(source)


@pytest.mark.parametrize(
    "source",
    [
        f"#ifndef __CUDACC_RTC__\n#else\n{HOST}#endif",
        f"#ifdef __CUDACC_RTC__\n{HOST}#endif",
        f"#ifndef __CUDACC_RTC__\n#endif\n{HOST}",
        f"#ifndef __CUDACC_RTC__\n#if 0\n#else\n#endif\n#elif 1\n{HOST}#endif",
        f"#un\\\ndef __CUDACC_RTC__\n#ifndef __CUDACC_RTC__\n{HOST}#endif",
        f"#if !defined(__CUDACC_RTC__) || 1\n{HOST}#endif",
        f"/*\n#ifndef __CUDACC_RTC__\n*/\n{HOST}/*\n#endif\n*/",
        f"#else\n{HOST}",
    ],
)
def test_they_are_refused_everywhere_else(source):
    with pytest.raises(SourceRefused, match=r"#include <stdio\.h>"):
        check_cpu_source(source)


def test_several_findings_are_listed_with_their_lines():
    with pytest.raises(SourceRefused) as caught:
        check_cpu_source("__managed__ int a;\n__nv_bfloat16 b;\n")
    assert "(and 1 more)" in caught.value.sentence
    assert caught.value.detail.splitlines() == [
        "kernel.cu:1: __managed__ (managed memory)",
        "kernel.cu:2: __nv_bfloat16 (bfloat16)",
    ]


def test_macro_values_of_options_count_as_source():
    check_cpu_source(KERNEL, ("-DN=3", "--use_fast_math"))
    with pytest.raises(SourceRefused, match="inline assembly"):
        check_cpu_source(KERNEL, ("-DX=asm",))
    with pytest.raises(SourceRefused, match="__has_include"):
        check_cpu_source(
            "#define P(a, b) a##b\n#if P(A, B)(<stdio.h>)\n#endif", ("-DA=__has", "-DB=_include")
        )


def test_every_header_that_may_be_included_exists():
    assert all((SHIM / name).is_file() for name in HEADERS)


def test_a_megabyte_is_read_in_reasonable_time_and_lines_stay_right():
    source = "int a; // x\\\n continued\n" * 40_000 + "__managed__ int b;"
    with pytest.raises(SourceRefused, match=r"^line 80001:"):
        check_cpu_source(source)


compiler = find_toolchain()
needs_gcc = pytest.mark.skipif(compiler is None or compiler.family != "gcc", reason="needs g++")


def _preprocess(source: str, directory: Path) -> subprocess.CompletedProcess[str]:
    (directory / "kernel.cu").write_text(source)
    (directory / "module.cpp").write_text('#include "coppermesh_cuda.h"\n#include "kernel.cu"\n')
    assert compiler is not None
    command = [*compiler.command, "-std=c++17", "-E", "-nostdinc", "-nostdinc++", f"-I{SHIM}", "module.cpp"]
    return subprocess.run(
        command, cwd=directory, capture_output=True, text=True, env={"LC_ALL": "C"}, check=False
    )


@needs_gcc
def test_control_without_the_gate_the_compiler_does_show_files_of_the_machine(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("#error hunter2\n")
    assert "hunter2" in _preprocess(f'#include "{secret}"', tmp_path).stderr
    joined = f'#define P(a, b) a##b\n#if P(__has_, include)("{secret}")\nfound\n#endif'
    assert "found" in _preprocess(joined, tmp_path).stdout


FRAGMENTS = st.sampled_from(
    [
        "#", "%:", "##", "%:%:", "include", "inc", "lude", "<SECRET>", '"SECRET"', "\n", "\\\n", "\\ \n", " ", "/*",
        "*/", "//",
        "'", '"', "\\", "??=", "??/\n", 'R"(', ')"', "#define P(a,b) a##b\n", "P(", ",", ")", "__has_", "line 1 ",
        "#if 0\n", "#endif\n", "#else\n", "pragma GCC dependency ", "_Prag", "ma", "_Pragma(", "int x;", "1", "u8", "R",
        "\f", "\v", "\t", "\r\n", "define H ", "H", "import ", "embed ", "#include <cuda.h>\n",
        "#ifndef __CUDACC_RTC__\n", "#ifdef __CUDACC_RTC__\n", "#if !defined(__CUDACC_RTC__)\n", "#elif 1\n",
        "#include <SECRET>\n", "#undef __CUDACC_RTC__\n", "__CUDACC_RTC__",
    ]
)  # fmt: skip


@needs_gcc
@settings(max_examples=150, deadline=None)
@given(st.lists(FRAGMENTS, min_size=3, max_size=25).map("".join))
def test_what_the_gate_lets_through_never_makes_the_compiler_read_another_file(tmp_path_factory, source):
    directory = tmp_path_factory.mktemp("gate", numbered=True)
    secret = directory / "secret.h"
    secret.write_text("hunter2\n#error hunter2\n")
    source = source.replace("SECRET", str(secret))
    try:
        check_cpu_source(source)
    except SourceRefused:
        return
    seen = _preprocess(source, directory)
    output = "\n".join(line for line in (seen.stdout + seen.stderr).splitlines() if str(secret) not in line)
    assert "hunter2" not in output
    opened = set(re.findall(r'^# \d+ "([^"]+)"', seen.stdout, re.MULTILINE))
    foreign = {name for name in opened if not name.startswith((str(SHIM), "module.cpp", "kernel.cu", "<"))}
    assert foreign <= {str(directory)}


# --- what only some devices have

FEATURES_USED = [
    ('void f() { asm("mov.u32 %0, %%laneid;" : "=r"(x)); }', "cuda-inline-ptx", 1, 12),
    ("#include <cuda_fp16.h>\n  __half h;", "cuda-half", 1, 1),
    ("int a;\n\tfloat v = tex2D<float>(t, 1, 2);", "cuda-textures", 2, 12),
    ("int a; \\\n  thrust::sort(a, b);", "cuda-thrust", 2, 3),
]


@pytest.mark.parametrize(("source", "code", "line", "column"), FEATURES_USED)
def test_a_feature_is_found_with_its_line_and_column(source, code, line, column):
    found = next(finding for finding in scan([source]) if finding.feature and finding.feature.code == code)
    assert (found.line, found.column) == (line, column)


def test_what_no_runtime_has_is_told_apart_from_what_a_cpu_lacks():
    with pytest.raises(SourceRefused, match="not possible in a kernel"):
        check_cpu_source("float v = tex2D<float>(t, 1, 2);")
    with pytest.raises(SourceRefused, match="not possible on a CPU device"):
        check_cpu_source('void f() { asm("nop"); }')


ATTRIBUTES = [
    "__attribute__((constructor)) void f() {}",
    "__attribute__((unused, section(\".text\"))) const char x[] = {1};",
    "__attribute__\n(\n(\nsection (\".text\"))) const char x[] = {1};",
    "[[gnu::section(\".text\")]] const char x[] = {1};",
    "[\n\n\n\n\n\n[gnu::constructor]] void f();",
    "[[using gnu: alias(\"system\")]] int f();",
    "#define unused constructor\n__attribute__((unused)) void f() {}",
    "#define A(x) __attribute__((unused, x(\".text\")))\nA(section) int q;",
    "#define A section(\".text\")\n__attribute__((unused, A)) int q;",
    "#define P(a, b) a##b\n__attribute__((P(sec, tion)(\".text\"))) int q;",
    "#define P(a, b) a##b\nP(__attri, bute__)((constructor)) void f();",
    "int f() __attribute__((ifunc(\"g\")));",
    "int f() __attribute__((alias(\"g\")));",
    "__declspec(dllexport) int f();",
]  # fmt: skip


@pytest.mark.parametrize("source", ATTRIBUTES)
def test_attributes_that_reach_the_linker_are_refused(source):
    with pytest.raises(SourceRefused, match=r"attribute|constructor"):
        check_cpu_source(source)


@pytest.mark.parametrize(
    "source",
    [
        "struct __attribute__((aligned(16))) V { float x; };",
        "[[maybe_unused]] static int q; [[nodiscard]] int f();",
        "__attribute__((always_inline)) inline int f() { return a[b[0]]; }",
        "int section = 1, alias = 2, retain = section + alias;",
    ],
)
def test_ordinary_attributes_and_names_pass(source):
    check_cpu_source(source)


def test_an_attribute_in_an_option_is_refused():
    with pytest.raises(SourceRefused, match="section"):
        check_cpu_source(KERNEL, ("-DX=section",))


def test_a_long_chain_of_names_is_read_in_linear_time():
    started = time.process_time()
    scan(["this_grid::" * 20_000])
    scan(["grid_group " * 20_000 + "sync(" * 20_000])
    assert time.process_time() - started < 5
