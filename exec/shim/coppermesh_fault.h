// One launch as its operating-system threads share it, and how a kernel that did something wrong ends.
//
// `fail` writes down what happened, once per launch, tells every other thread of the launch to stop, and leaves the
// kernel for good: it goes back to where this operating-system thread entered it, and whatever lies between is
// forgotten. Kernels hold nothing that needs tidying up, so the worker lives on.
#pragma once

namespace coppermesh {

// What went wrong. cuda_launch.py has the same layout and the words.
enum FaultKind : unsigned int {
    ASSERTION = 1,
    TRAP,
    OUT_OF_BOUNDS,
    SHARED_OVERFLOW,
    SHARED_CANARY,
    STACK_OVERFLOW,
    DIVERGENT_BARRIER,
    SKIPPED_BARRIER,
    NOT_IN_MASK,
    OUTSIDE_MASK,
    EXITED_LANE,
    BAD_WIDTH,
    DEADLOCK,
    NO_STACK,
    SHARED_INDEX,
    SHARED_LIMIT,
    ARRAY_OVERFLOW,
    ARRAY_CANARY,
    OUTSIDE_GROUP,
};

struct Fault {
    unsigned int claimed;  // by the thread that came first
    unsigned int kind;
    unsigned int line, other_line;  // 0: not known
    unsigned int thread[3], other[3], block[3];
    unsigned int mask;
    long long number, limit;
    char file[24];
    char text[104];
};

// One launch. cuda_launch.py has the same layout.
struct Launch {
    unsigned int grid[3];
    unsigned int block[3];
    unsigned long long blocks;  // in all
    unsigned long long chunk;   // how many a thread takes at a time
    unsigned long long next;    // first block that nobody has taken yet
    unsigned int shared_bytes;  // dynamic shared memory of a block
    unsigned int stop;          // set when no further block is to be run
    unsigned int arenas_taken;
    unsigned int stack_bytes;   // distance of two stacks
    unsigned int threads;       // operating-system threads that run it
    void* const* arenas;        // one for each operating-system thread: see coppermesh_fibers.h
    Fault fault;
};

struct Block;

// What this operating-system thread is doing.
struct Running {
    Launch* launch;
    void* launcher;  // stack pointer to go back to
    Block* block;    // with fibers only
    unsigned int shared_bytes;
    bool linear, blockwise;  // what `index` counts, if it does
};
static thread_local Running running;

#if defined(__x86_64__)
// coppermesh_call(&saved, f, x) is f(x); as long as it lasts, coppermesh_switch(_, saved) returns from it.
// coppermesh_switch(&saved, other) goes on where `other` was saved, and returns when somebody switches to `saved`.
// coppermesh_start is where a new fiber begins: it calls rbx(r12, r13), which never returns.
// Only what the calling convention keeps across calls is saved: all six registers and the stack pointer.
__asm__(
    ".pushsection .text\n"
    ".hidden coppermesh_call\n.globl coppermesh_call\n.type coppermesh_call,@function\n"
    "coppermesh_call:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp,(%rdi)\n  movq %rdx,%rdi\n  subq $8,%rsp\n  call *%rsi\n  addq $8,%rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n  ret\n"
    ".size coppermesh_call,.-coppermesh_call\n"
    ".p2align 4\n"
    ".hidden coppermesh_switch\n.globl coppermesh_switch\n.type coppermesh_switch,@function\n"
    "coppermesh_switch:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp,(%rdi)\n  movq %rsi,%rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n  ret\n"
    ".size coppermesh_switch,.-coppermesh_switch\n"
    ".p2align 4\n"
    ".hidden coppermesh_start\n.globl coppermesh_start\n.type coppermesh_start,@function\n"
    "coppermesh_start:\n"
    "  movq %r12,%rdi\n  movq %r13,%rsi\n  call *%rbx\n  ud2\n"
    ".size coppermesh_start,.-coppermesh_start\n"
    ".popsection\n");
extern "C" {
void coppermesh_call(void** saved, void (*function)(void*), void* argument);
void coppermesh_switch(void** saved, void* other);
void coppermesh_start();
}
#endif

// The first to come describes the fault (the caller fills in the rest of it); false for all others.
static __attribute__((noinline, cold, unused)) bool claim(unsigned int kind, unsigned int line) {
    Launch* launch = running.launch;
    __atomic_store_n(&launch->stop, 1u, __ATOMIC_RELAXED);
    if (__atomic_exchange_n(&launch->fault.claimed, 1u, __ATOMIC_RELAXED)) return false;
    Fault& fault = launch->fault;
    fault.kind = kind, fault.line = line;
#if !defined(COPPERMESH_FIBERS)
    if (flat) {  // a strided kernel's index may be beyond the grid
        if (running.linear) set_indices<LINEAR>(index);
        else if (running.blockwise) set_indices<IN_BLOCK>(index);
        else set_indices<ALONG_X>(index);
    }
#endif
    fault.thread[0] = threadIdx.x, fault.thread[1] = threadIdx.y, fault.thread[2] = threadIdx.z;
    fault.block[0] = blockIdx.x, fault.block[1] = blockIdx.y, fault.block[2] = blockIdx.z;
    return true;
}

[[noreturn]] static __attribute__((noinline, cold, unused)) void abandon() {
#if defined(__x86_64__)
    void* dead;
    coppermesh_switch(&dead, running.launcher);
#endif
    __builtin_trap();
}

static __attribute__((noinline, cold, unused)) void copy_text(char* to, unsigned int room, const char* from) {
    unsigned int length = 0;
    for (; from[length] && length + 1 < room; length++) to[length] = from[length];
    to[length] = 0;
}

[[noreturn]] static __attribute__((noinline, cold, unused)) void fail_with(
    unsigned int kind, unsigned int line, const char* file, const char* text, long long number = 0) {
    if (claim(kind, line)) {
        Fault& fault = running.launch->fault;
        copy_text(fault.file, sizeof fault.file, file);
        copy_text(fault.text, sizeof fault.text, text);
        fault.number = number;
    }
    abandon();
}

}  // namespace coppermesh
