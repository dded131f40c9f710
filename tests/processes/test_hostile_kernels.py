# ruff: noqa: E501  # kernels are easier to read on one line
"""Kernels of a stranger who means harm: refused, or ended within their limits, and nobody else notices.

Each act goes to a real worker as the bytes of a program, so that what the client would refuse meets the provider's own
checks. After each, the same supervisor, from the same zygote, gives a plain kernel's right answer; and the error names
the kernel. That native code cannot leave its process is the sandbox's business and not tried here.
"""

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import coppermesh as cm
from coppermesh.exec.cuda_toolchain import find_toolchain
from coppermesh.exec.device import probe_cpu
from coppermesh.exec.errors import ProgramInvalid
from coppermesh.exec.pipe import MAX_DETAIL
from coppermesh.exec.program import ArraySpec, KernelSource, Node, Program, encode_program
from coppermesh.exec.recorder import trace
from coppermesh.exec.supervisor import (
    InputBuffer,
    RunOutcome,
    Supervisor,
    Worker,
    WorkerLimits,
    open_supervisor,
)

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(find_toolchain() is None, reason="needs a C++ compiler"),
]

MEBIBYTE = 1 << 20
LIMITS = WorkerLimits(memory_bytes=256 * MEBIBYTE, output_bytes=16 * MEBIBYTE)
WALL_SECONDS = 4.0
SLACK_SECONDS = 4.0
"""For starting a fresh worker, on a busy machine."""

NAME = "evil_kernel"
BODY = f'\nextern "C" __global__ void {NAME}(float* x) {{ x[threadIdx.x] = 1; }}\n'
REFUSED = frozenset(
    {"unsupported-feature", "kernel-include", "kernel-option", "kernel-name", "launch-limits"}
)
COMPILER = frozenset({"kernel-compile", "kernel-build-limit", "wall-limit"})
KILLED = frozenset({"crashed", "kernel-trap", "wall-limit", "cpu-limit", "memory-limit", "worker-killed"})


@dataclass(frozen=True)
class Act:
    """One hostile program."""

    what: str
    source: str
    codes: frozenset[str]
    """How it may end."""
    word: str = ""
    """What the error must say besides the kernel's name."""
    options: tuple[str, ...] = ()
    shared: int = 0
    block: int = 4
    names: tuple[str, ...] = field(default=())
    """Name expressions: the source is a module then."""
    state: bool = False
    """It has variables: a module of the kernel `evil_kernel`, as the client records it."""

    def program(self) -> bytes:
        if self.state:
            x = cm.xp.asarray(np.zeros(4, np.float32))
            cm.RawModule(code=self.source).get_function(NAME)((1,), (4,), (x,))
            return trace(x).program
        attrs: dict[str, Any] = {
            "kernel": 0, "grid": (1, 1, 1), "block": (self.block, 1, 1), "shared_mem": self.shared,
        }  # fmt: skip
        if self.names:
            kernel = KernelSource(
                "module", "module", self.options, (self.source, "", "\n".join(self.names), "")
            )
            node = Node("module_kernel", (0,), {**attrs, "function": 0})
        else:
            kernel = KernelSource("raw", NAME, self.options, (self.source,))
            node = Node("raw_kernel", (0,), attrs)
        return encode_program(Program(1, (ArraySpec("float32", (4,)),), (kernel,), (node,), (1,)))


def kernel(body: str, before: str = "") -> str:
    return f'{before}\nextern "C" __global__ void {NAME}(float* x) {{\n{body}\n}}\n'


def reaching() -> Iterator[Act]:
    """Sources that reach for files of this machine."""
    for what, line in {
        "absolute include": '#include "/etc/passwd"',
        "relative include": '#include "../../../etc/passwd"',
        "include in angles": "#include <../etc/passwd>",
        "include of a host header": "#include <stdio.h>",
        "include of the shim's inside": '#include "coppermesh_cuda.h"',
        "include made by a macro": '#define FILE "/etc/passwd"\n#include FILE',
        "include by trigraph": '??=include "/etc/passwd"',
        "include by digraph": '%:include "/etc/passwd"',
        "include over a line splice": '#inc\\\nlude "/etc/passwd"',
        "include over a splice with blanks": '#inc\\  \nlude "/etc/passwd"',
        "include hidden by a raw string": 'const char* a = R"(/*)";\n#include "/etc/passwd"\n//*/',
        "#include_next": "#include_next <math.h>",
        "#import": '#import "/etc/passwd"',
        "#embed": 'const char secret[] = {\n#embed "/etc/passwd"\n};',
        "__has_include": '#if __has_include("/etc/passwd")\n#error it is there\n#endif',
        "__has_include pasted": '#define P(a, b) a##b\n#if P(__has_, include)("/etc/passwd")\n#error there\n#endif',
        "#line": '#line 1 "/etc/passwd"\nint x = ;',
        "a line marker": '# 1 "/etc/passwd"\nint x = ;',
        "#pragma GCC dependency": '#pragma GCC dependency "/etc/passwd"',
        "#pragma GCC poison": "#pragma GCC poison threadIdx",
        "#pragma GCC push_options": '#pragma GCC push_options\n#pragma GCC optimize("O0")',
        "_Pragma": '_Pragma("GCC dependency \\"/etc/passwd\\"")',
    }.items():
        yield Act(what, f"{line}{BODY}", REFUSED)


def exploding() -> Iterator[Act]:
    """Sources that work the compiler."""
    doubling = (
        "template <int N, long M> struct F { enum { v = F<N - 1, M * 2>::v + F<N - 1, M * 2 + 1>::v }; };"
    )
    yield Act(
        "template bomb",
        kernel("x[0] = F<40, 0>::v;", doubling + "template <long M> struct F<0, M> { enum { v = 1 }; };"),
        COMPILER,
    )
    deep = "template <int N> struct D { enum { v = D<N + 1>::v }; };"
    yield Act("endless template", kernel("x[0] = D<0>::v;", deep), COMPILER)
    macros = "".join(f"#define A{n} A{n - 1} A{n - 1} A{n - 1} A{n - 1}\n" for n in range(1, 24))
    yield Act("macro bomb", f"#define A0 1+\n{macros}{kernel('x[0] = A23 1;')}", COMPILER)
    endless = "constexpr long f() { long s = 0; for (long i = 0; i < (1l << 50); i++) s += i; return s; }"
    yield Act("constant that takes for ever", kernel("constexpr long v = f(); x[0] = v;", endless), COMPILER)
    calls = "constexpr long g(int n) { return n ? g(n - 1) + g(n - 1) : 1; }"
    yield Act("constant by calls without end", kernel("constexpr long v = g(60); x[0] = v;", calls), COMPILER)
    yield Act("brackets without end", kernel(f"x[0] = {'(' * 100_000}1{')' * 100_000};"), COMPILER)
    yield Act("errors without end", kernel("\n".join(f"undefined_{n} = {n};" for n in range(8000))), COMPILER)
    long_name = "n" * 60_000
    yield Act(
        "an error message of megabytes", kernel(f"{long_name}({', '.join([long_name] * 3)});"), COMPILER
    )
    yield Act(
        "an array of a tebibyte",
        kernel("x[0] = big[threadIdx.x];", "__device__ char big[1ull << 40];"),
        COMPILER,
        state=True,
    )
    filled = "__device__ int big[1 << 28] = {1};"
    yield Act("a library of a gibibyte", kernel("x[0] = big[threadIdx.x];", filled), COMPILER, state=True)


def linking() -> Iterator[Act]:
    """Sources that reach for the linker, the loader and the C library."""
    for what, line in {
        "constructor": "__attribute__((constructor)) void f() {}",
        "constructor in other spelling": "[[gnu::__constructor__]] void f() {}",
        "section": '__attribute__((section(".text"))) const char code[] = {0x0f, 0x05};',
        "ifunc": 'int f() __attribute__((ifunc("g")));',
        "alias": 'extern "C" int f() __attribute__((alias("system")));',
        "attribute by macro": '#define A(x) __attribute__((unused, x(".text")))\nA(section) const char c[] = {1};',
        "attribute pasted": "#define P(a, b) a##b\nP(__attri, bute__)((constructor)) void f() {}",
        "a name of the build": "int coppermesh_run_0;",
    }.items():
        yield Act(what, f"{line}{BODY}", REFUSED)
    yield Act(
        "constructor of a global",
        kernel(
            "x[0] = s.v;", "struct S { int v; __device__ S() { v = (int)(long)this; } };\n__device__ S s;"
        ),
        COMPILER,
        state=True,
    )
    for function, signature in {
        "system": "int system(const char*)",
        "dlopen": "void* dlopen(const char*, int)",
        "syscall": "long syscall(long, ...)",
        "execve": "int execve(const char*, char**, char**)",
        "socket": "int socket(int, int, int)",
        "fork": "int fork()",
    }.items():
        body = f"volatile auto call = &{function}; x[0] = call != nullptr;"
        yield Act(
            f"calling {function}",
            kernel(body, f'extern "C" {signature};'),
            COMPILER,
            f"cannot call {function}",
        )
    yield Act("printf of the compiler", kernel('__builtin_puts("x");'), COMPILER, "cannot call puts")


def running() -> Iterator[Act]:
    """Kernels that do not end, or end badly."""
    yield Act(
        "endless loop",
        kernel("volatile float* y = x; while (y[0] == y[0]) y[0] = 1;"),
        KILLED,
        f"kernel {NAME}",
    )
    yield Act(
        "endless loop at a barrier",
        kernel("volatile float* y = x; while (y[0] == y[0]) __syncthreads();"),
        KILLED,
    )
    yield Act("wild pointer", kernel("x[1ull << 40] = 1;"), KILLED, "SIGSEGV")
    yield Act("null pointer", kernel("*(volatile float*)nullptr = 1;"), KILLED, "SIGSEGV")
    yield Act("a jump into data", kernel("((void (*)())x)();"), KILLED, "SIGSEGV")
    recursion = (
        "__device__ __noinline__ int deep(volatile int* p, int n) {\n"
        "volatile int room[1000]; room[n % 1000] = *p; return n ? deep(room, n - 1) + room[n % 1000] : 0; }"
    )
    yield Act(
        "stack overflow",
        kernel("volatile int one = 1, n = 1 << 20; x[0] = deep(&one, n);", recursion),
        KILLED,
    )
    yield Act(
        "memory without end",
        kernel("for (;;) { char* p = (char*)malloc(1 << 20); if (!p) *(volatile int*)0 = 1; p[5] = 1; }"),
        KILLED,
    )
    yield Act("trap", kernel("__trap();"), KILLED)
    yield Act(
        "shared memory beyond CUDA's limit", kernel("x[0] = 1;"), REFUSED, "shared memory", shared=1 << 30
    )
    yield Act("a block beyond CUDA's limit", kernel("x[0] = 1;"), REFUSED, "block", block=4096)
    gigantic = "__shared__ char s[1 << 30]; s[threadIdx.x] = 1; __syncthreads(); x[0] = s[(int)x[1]];"
    yield Act(
        "a gibibyte of static shared memory",
        kernel(gigantic),
        COMPILER
        | KILLED
        | frozenset(
            {"kernel-shared-memory", "shared-memory", "unsupported-feature", "launch-limits", "kernel-launch"}
        ),
    )


def injecting() -> Iterator[Act]:
    """Names and options that are pasted into what is compiled."""
    template = "template <class T> __global__ void evil_kernel(T* x) { x[0] = 1; }\n"
    for what, name in {
        "a call in a name": "evil_kernel<decltype(f())>",
        "code in a name": "evil_kernel<float>); void f(); (0",
        "a comment in a name": "evil_kernel<float> /*",
        "a quote in a name": 'evil_kernel<float>"',
    }.items():
        yield Act(what, template, REFUSED, "evil_kernel", names=(name,))
    yield Act("an include in an option", BODY, REFUSED, options=("-DX=1\n#include </etc/passwd>",))
    yield Act("a directory in an option", BODY, REFUSED, options=("-I/etc",))
    yield Act("a file in an option", BODY, REFUSED, options=("-include/etc/passwd",))
    yield Act("a plugin in an option", BODY, REFUSED, options=("-fplugin=/tmp/x.so",))


def assembling() -> Iterator[Act]:
    """What a CUDA device may take and a CPU must not."""
    yield Act(
        "assembly that includes", f'asm(".incbin \\"/etc/passwd\\"");{BODY}', REFUSED, "inline assembly"
    )
    yield Act("a system call", kernel('asm volatile("syscall" : : "a"(57));'), REFUSED, "inline assembly")
    yield Act(
        "assembly pasted",
        kernel('P(as, m)("syscall");', "#define P(a, b) a##b"),
        COMPILER,
        "no_inline_assembly",
    )


def escaping() -> Iterator[Act]:
    """Other ways out of a kernel, or of its source."""
    for what, line in {
        "an include of the source itself": "#include __FILE__",
        "an include by a counter": "#define N __COUNTER__\n#include N",
        "a header unit": 'import "/etc/passwd";',
        "#pragma weak": "#pragma weak f = system",
        "#pragma redefine_extname": "#pragma redefine_extname f system",
        "#pragma GCC target": '#pragma GCC target("avx512f")',
        "a weak function": '__attribute__((weak)) extern "C" int f();',
        "a function without a frame": "__attribute__((naked)) void f() {}",
        "a name by assembly": 'extern "C" int f(const char*) asm("system");',
        "a splice in a word": '_\\\n_asm__("syscall");',
    }.items():
        yield Act(what, f"{line}{BODY}", REFUSED | COMPILER)
    yield Act("an exception", kernel("throw 1;"), COMPILER)
    yield Act("an exception caught", kernel("try { x[0] = 1; } catch (...) { }"), REFUSED | COMPILER)
    yield Act("a jump to a forged place", kernel("void* b[5] = {x, x, x}; __builtin_longjmp(b, 1);"), KILLED)
    huge = (
        "volatile char* p = (char*)__builtin_alloca((unsigned long)(x[1] + 1) << 33); p[0] = 1; x[0] = p[0];"
    )
    yield Act("a stack frame of gibibytes", kernel(huge), KILLED)
    print_on = 'volatile float* y = x; while (y[0] == y[0]) printf("%f", y[0]);'
    yield Act("printf without end", kernel(print_on), KILLED)
    yield Act(
        "a division of integers by zero", kernel("volatile int a = 5, n = 0; x[0] = a / n;"), KILLED, "SIGFPE"
    )
    through = "__device__ void f(float* s, int i) { s[i] = 1; }"
    beyond = "__shared__ float s[4]; f(s, 1 << 16); __syncthreads(); x[0] = s[threadIdx.x];"
    yield Act("a wild index into shared memory", kernel(beyond, through), KILLED)


def spelling() -> Iterator[Act]:
    """Old things in spellings that a reader of tokens may not know."""
    for what, line in {
        "an include by a digraph over a splice": '%\\\n:include "/etc/passwd"',
        "an include with its operand on the next line": '#include\\\n"/etc/passwd"',
        "an include behind a trigraph's splice": '// ??/\n#include "/etc/passwd"',
        "an include between comments": '#/**/include/**/"/etc/passwd"',
        "an include upwards from a known folder": "#include <cuda/std/../../../../../etc/passwd>",
        "an include where the macro for it was taken away": '#undef __CUDACC_RTC__\n#ifndef __CUDACC_RTC__\n#include "/etc/passwd"\n#endif',
        "an include behind the part that nobody reads": '#ifndef __CUDACC_RTC__\n#else\n#include "/etc/passwd"\n#endif',
        "an include of the source by its name": '#include "kernel.cu"',
        "an include of what includes the source": '#include "module.cpp"',
        "__has_include by its own #ifdef": "#ifdef __has_include\n#define H(x) __has_include(x)\n#endif",
        "__has_include_next in an #elif": '#if 0\n#elif __has_include_next("/etc/passwd")\n#endif',
        "#pragma comment": '#pragma comment(lib, "ssl")',
        "#pragma push_macro": '#pragma push_macro("asm")',
        "#ident": '#ident "x"',
        "assembly by a universal character name": '\\u0061sm("nop");',
        "a register by assembly": 'register long sp asm("rsp");',
        "a constructor behind another attribute": "__attribute__((unused, __constructor__(101))) void f() {}",
        "a constructor by using": "[[using gnu: unused, constructor]] void f() {}",
        "_init": 'extern "C" void _init() { *(volatile int*)0 = 1; }',
        "_fini": 'extern "C" void _fini() { *(volatile int*)0 = 1; }',
        "the environment": 'extern "C" char** environ; __device__ char* f() { return environ[0]; }',
        "another operator new": "void* operator new(size_t n) { return (void*)n; }",
    }.items():
        yield Act(what, f"{line}{BODY}", REFUSED | COMPILER)


def twisting() -> Iterator[Act]:
    """Further ways to end badly, or to outlast a limit."""
    bodies = {
        "a variable-length array": "long n = (long)(x[1] + 1) << 30; volatile char a[n]; for (long i = 0; i < n; i += 4096) a[i] = 1;",
        "memory of the stack in a loop": "for (;;) { volatile char* p = (char*)__builtin_alloca(4096); p[0] = 1; }",
        "freeing twice": "int* p = new int[100]; delete[] p; delete[] p; delete[] (p + 1);",
        "its own thread's inside": "volatile char* p = (volatile char*)__builtin_thread_pointer(); for (int i = -4096; i < 4096; i++) p[i] = 0x41;",
        "all memory downwards": "for (char* p = (char*)x;; p--) *p = 0;",
        "a function that must not return": "never();",
    }
    before = "[[noreturn]] __device__ void never() {}"
    for what, body in bodies.items():
        yield Act(what, kernel(body, before), KILLED)
    deaf = "long act[32] = {1}; for (int s = 1; s < 64; s++) sigaction(s, act, 0); volatile float* y = x; for (;;) y[0] += 1;"
    taken = 'extern "C" int sigaction(int, const void*, void*);'
    yield Act("an endless loop that takes no signal", kernel(deaf, taken), KILLED | COMPILER)
    yield Act(
        "execl of the compiler",
        kernel('__builtin_execl("/bin/sh", "sh", (char*)0);'),
        COMPILER,
        "cannot call execl",
    )
    yield Act("a process of the compiler", kernel("x[0] = __builtin_fork();"), COMPILER, "cannot call fork")
    pack = "template <int N, int... I> struct S : S<N - 1, N, I...> {}; template <int... I> struct S<0, I...> { enum { v = sizeof...(I) }; };"
    yield Act("a pack of a million numbers", kernel("x[0] = S<900000>::v;", pack), COMPILER)
    made = "struct Z { int a[1 << 26]; constexpr Z() : a() { for (int i = 0; i < (1 << 26); i++) a[i] = i; } };\nconstexpr Z z;"
    yield Act("a constant array made step by step", kernel("x[0] = z.a[(int)x[1]];", made), COMPILER)
    local = "thread_local char t[1u << 30];"
    yield Act(
        "thread-local memory of a gibibyte",
        kernel("t[threadIdx.x] = 1; x[0] = t[(int)x[1]];", local),
        COMPILER | KILLED,
    )
    guarded = "__device__ __noinline__ int f() { return *(volatile int*)8; }\nstatic int v = f();"
    yield Act("a static variable that runs code", kernel("x[0] = v;", guarded), COMPILER, state=True)


ACTS = [
    *spelling(),
    *twisting(),
    *escaping(),
    *assembling(),
    *reaching(),
    *exploding(),
    *linking(),
    *running(),
    *injecting(),
]
FOUR = InputBuffer(16, data=np.zeros(4, np.float32).tobytes())
PLAIN = Act(
    "plain", f'extern "C" __global__ void {NAME}(float* x) {{ x[threadIdx.x] = threadIdx.x; }}', frozenset()
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("hostile") / "scratch"
    return path


@asynccontextmanager
async def supervised(scratch: Path) -> AsyncIterator[Supervisor]:
    async with open_supervisor(probe_cpu(), scratch=scratch) as supervisor:
        yield supervisor


def said(outcome: RunOutcome) -> str:
    return f"{outcome.code}: {outcome.sentence}\n{outcome.detail}"


async def check_act(worker: Worker, act: Act, scratch: Path) -> None:
    began = time.monotonic()
    outcome = await worker.run(act.program(), [FOUR], WALL_SECONDS)
    took = time.monotonic() - began
    assert outcome.status == "job-failed", f"{act.what}: {said(outcome)}"
    assert outcome.code in act.codes, f"{act.what}: {said(outcome)}"
    assert took < WALL_SECONDS + SLACK_SECONDS, f"{act.what} took {took:.1f} s"
    text = outcome.sentence + outcome.detail
    assert NAME in text or act.names, f"{act.what} does not name the kernel: {said(outcome)}"
    assert act.word in text, f"{act.what}: {said(outcome)}"
    assert len(outcome.sentence) <= 400
    assert len(outcome.detail) <= MAX_DETAIL
    for secret in ("root:", "/bin/", str(scratch)):
        assert secret not in text, f"{act.what} shows {secret}: {said(outcome)}"


async def check_unharmed(supervisor: Supervisor, worker: Worker, zygote: int | None, what: str) -> None:
    outcome = await worker.run(PLAIN.program(), [FOUR], 20.0)
    assert outcome.status == "ok", f"after {what}: {said(outcome)}"
    assert np.frombuffer(bytes(outcome.outputs[0].view), np.float32).tolist() == [0, 1, 2, 3]
    outcome.close()
    assert supervisor.zygote_pid == zygote


@pytest.mark.parametrize(
    "acts",
    [escaping, assembling, reaching, exploding, linking, running, injecting, spelling, twisting],
    ids=lambda acts: acts.__name__,
)
async def test_each_act_is_refused_or_ended_and_the_next_kernel_is_right(scratch, acts):
    async with supervised(scratch) as supervisor, supervisor.worker(LIMITS) as worker:
        await check_unharmed(supervisor, worker, supervisor.zygote_pid, "nothing")
        zygote = supervisor.zygote_pid
        for act in acts():
            await check_act(worker, act, scratch)
            await check_unharmed(supervisor, worker, zygote, act.what)


def test_there_are_enough_acts_and_each_is_another() -> None:
    assert len(ACTS) >= 75
    assert len({act.what for act in ACTS}) == len({act.program() for act in ACTS}) == len(ACTS)


@pytest.mark.parametrize("act", [*reaching(), *injecting()], ids=lambda act: act.what)
def test_the_client_refuses_before_anything_is_sent(act: Act) -> None:
    def make() -> object:
        if act.names:
            return cm.RawModule(code=act.source, options=act.options, name_expressions=act.names)
        return cm.RawKernel(act.source, NAME, act.options)

    with pytest.raises(ProgramInvalid):
        make()
