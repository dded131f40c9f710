"""What a compiler made is looked at before it is loaded: the check itself, on real libraries and on broken bytes."""

import os
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coppermesh.exec.cuda_build import Kernel, build_kernel
from coppermesh.exec.cuda_toolchain import find_toolchain
from coppermesh.exec.errors import KernelCompileError
from coppermesh.exec.library_check import check_library

toolchain = find_toolchain()
needs_compiler = pytest.mark.skipif(toolchain is None, reason="needs a C++ compiler")
needs_gcc = pytest.mark.skipif(toolchain is None or toolchain.family != "gcc", reason="needs g++")

KERNEL = '\nextern "C" __global__ void k(float* x) { x[threadIdx.x] = 1; }'


def build(source: str, directory: Path) -> bytes:
    assert toolchain is not None
    descriptor = build_kernel(Kernel(source, "k", ()), toolchain, directory, directory)
    try:
        return os.pread(descriptor, 1 << 26, 0)
    finally:
        os.close(descriptor)


@needs_compiler
@pytest.mark.parametrize(
    ("source", "word"),
    [
        ('extern "C" int system(const char*);\n__device__ int run() { return system("true"); }', "system"),
        (
            'extern "C" void* dlopen(const char*, int);\n__device__ void* run() { return dlopen("x", 1); }',
            "dlopen",
        ),
        ('extern "C" long syscall(long, ...);\n__device__ long run() { return syscall(57); }', "syscall"),
        ('__device__ int run() { return __builtin_printf("%p", &threadIdx); }', "pri|put"),
        (
            "struct S { int v; __device__ S() { v = blockDim.x + 1; } };\n__device__ S run;",
            "initialise|DT_INIT",
        ),
    ],
)
def test_a_library_that_is_more_than_kernels_is_refused_and_the_kernel_named(tmp_path, source, word):
    used = KERNEL.replace(
        "x[threadIdx.x] = 1", "x[threadIdx.x] = (float)(long)&run; volatile auto p = &run; (void)p"
    )
    with pytest.raises(KernelCompileError, match=word) as caught:
        build(source + used, tmp_path)
    assert caught.value.kernel == "k"


@needs_compiler
def test_what_is_loaded_passes_and_nothing_in_it_runs_by_itself(tmp_path):
    assert toolchain is not None
    check_library(build(KERNEL, tmp_path), "k", start_files=toolchain.start_files)


# --- ways around the gate, made with the compiler alone

IFUNC = """static int g() { return 2; }
extern "C" void* r() { return (void*)&g; }
int f() __attribute__((ifunc("r")));"""
AROUND = [
    ("__attribute__((constructor)) void f() {}", (), "DT_INIT_ARRAY"),
    ("__attribute__((destructor)) void f() {}", (), "DT_FINI_ARRAY"),
    (IFUNC, (), "ifunc|IRELATIVE"),
    ('asm(".section .note.GNU-stack,\\"x\\",@progbits");', ("-Wl,-z,execstack",), "executable stack"),
    ("int f() { return 1; }", ("-Wl,-rpath,/tmp",), "DT_R"),
    ("int f() { return 1; }", ("-Wl,--no-as-needed", "-lresolv"), "libresolv"),
    ("int f() { return 1; }", ("-Wl,-N", "-nodefaultlibs"), "writable and executable"),
    ("char big[1ull << 33];", ("-mcmodel=large",), "8589934592|take"),
    ("int main() { return 1; }", ("-no-pie",), "no library"),
]  # fmt: skip


@needs_gcc
@pytest.mark.parametrize(("source", "flags", "word"), AROUND)
def test_whatever_way_round_the_gate_it_is_seen_in_the_library(tmp_path, source, flags, word):
    (tmp_path / "m.cpp").write_text(source)
    shared = () if "-no-pie" in flags else ("-shared", "-nostartfiles")
    command = ["g++", "-fPIC", *shared, "-Wl,--hash-style=both", *flags, "m.cpp", "-o", "m.so"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with pytest.raises(KernelCompileError, match=word):
        check_library((tmp_path / "m.so").read_bytes(), "k")


def test_start_files_may_have_one_function_in_each_list_and_no_more(tmp_path):
    if toolchain is None or toolchain.family != "gcc":
        pytest.skip("needs g++")
    for count, fine in ((0, True), (1, False)):
        text = "".join(f"__attribute__((constructor)) void f{n}() {{}}\n" for n in range(count))
        (tmp_path / "m.cpp").write_text(text or "int f;")
        command = ["g++", "-fPIC", "-shared", "-Wl,--hash-style=both", "m.cpp", "-o", "m.so"]
        subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
        data = (tmp_path / "m.so").read_bytes()
        if fine:
            check_library(data, "k", start_files=True)
        with pytest.raises(KernelCompileError):
            check_library(data, "k", start_files=fine and False)


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"\0" * 4096, b"\x7fELF\x02\x01" + b"\xff" * 4096])
def test_what_is_no_library_is_refused(data):
    with pytest.raises(KernelCompileError, match="no library"):
        check_library(data, "k")


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> bytes:
    if toolchain is None:
        pytest.skip("needs a C++ compiler")
    return build(KERNEL, tmp_path_factory.mktemp("sound"))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_broken_bytes_are_refused_or_taken_and_never_anything_else(sound, data):
    broken = bytearray(sound)
    values = st.sampled_from([0, 1, 0xFF, 1 << 31, (1 << 63) - 1, (1 << 64) - 1])
    changes = data.draw(st.lists(st.tuples(st.integers(0, 1016), values), min_size=1, max_size=6))
    length = data.draw(st.integers(0, len(broken)) | st.just(len(broken)))
    for place, value in changes:
        struct.pack_into("<Q", broken, place, value)
    try:
        check_library(bytes(broken[:length]), "k")
    except KernelCompileError:
        return
