// Blocks whose threads wait for each other: one fiber per CUDA thread.
//
// How it works. All threads of a block run on one operating-system thread, one after the other. Each runs until it
// must wait (at a barrier, in a shuffle) or has left the kernel; then the next one that can run goes on. A thread gets a
// stack when it first runs. One that leaves without ever having waited hands its stack on to the next, so a block that
// never waits is a loop over its threads on a single stack.
//
// `__shared__` variables are thread-local variables, so each operating-system thread has one set, used by the block that
// it runs. They are set to zero before every block, by copying the library's own image of them. Arrays that a function
// declares are in the arena instead (`shared_array`, which cuda_rewrite.py puts there), in pages of their own with a page
// without access on either side: an index that leaves one is seen, through whatever pointer it came. In every second
// block an array stands at the beginning of its pages, in the others at the end: what goes beyond is seen at once in
// these, what goes before in those. The bytes beside it hold a pattern, and the block's end shows who wrote there.
//
// The arena. Each operating-system thread of a launch gets one piece of memory (from cuda_launch.py, which keeps it):
//     0        the state below, and a stack for signal handlers at 128 KiB
//     192 KiB  nothing: no access, up to the page in which dynamic shared memory begins
//     256 KiB  dynamic shared memory, at the end: it ends at 512 KiB, or up to 15 bytes before
//     512 KiB  nothing: no access
//     576 KiB  dynamic shared memory of every second block, from here on
//     832 KiB  nothing: no access
//     896 KiB  static shared arrays, with pages without access between them
//     3456 KiB the stacks, `Launch::stack_bytes` apart, the lowest page of each without access
//
// Warps. Lanes that call a warp function meet in a group: same function, same mask, as PTX asks for. The last to come
// computes everybody's result. Lanes that have left the kernel, or that the block does not have, are not waited for.
// `__activemask` meets with whoever has come to the same place once no other lane of the warp can run.
#pragma once

#if !defined(__x86_64__)
#error "shared memory, barriers and warp functions need an x86-64 processor"
#endif

namespace coppermesh {

extern "C" {
int mprotect(void* address, size_t bytes, int protection);
int sigaction(int number, const void* action, void* old);
int sigaltstack(const void* stack, void* old);
int dl_iterate_phdr(int (*visit)(void* info, size_t size, void* data), void* data);
}

static constexpr size_t PAGE = 4096, KIB = 1024;
static constexpr size_t SIGNAL_STACK_AT = 128 * KIB, SIGNAL_STACK_BYTES = 64 * KIB;
static constexpr size_t GUARD_BYTES = 64 * KIB;
static constexpr size_t SHARED_AT = 256 * KIB, SHARED_END = 512 * KIB;
static constexpr size_t OTHER_SHARED_AT = 576 * KIB, ARRAYS_AT = 896 * KIB, STACKS_AT = 3456 * KIB;
static constexpr unsigned int MAX_SHARED_ARRAYS = 256;
static constexpr size_t MAX_SHARED_BYTES = 227 * KIB;
static constexpr unsigned int CANARY_BYTES = 64;
static constexpr unsigned char CANARY = 0xC5;
static constexpr unsigned int NOBODY = ~0u;
static constexpr unsigned int MAX_THREADS = 1024;
static constexpr unsigned int STREAK = 32;  // how often a warp may go on by itself before the next one's turn

// What lanes can meet for.
enum Meeting : unsigned int {
    SYNC = 1, SHUFFLE_INDEX, SHUFFLE_UP, SHUFFLE_DOWN, SHUFFLE_XOR, VOTE, MATCH_ANY, MATCH_ALL,
    ADD, MIN_SIGNED, MAX_SIGNED, MIN_UNSIGNED, MAX_UNSIGNED, AND, OR, XOR, ACTIVE
};

// Lanes of one warp that wait for each other. For ACTIVE, `mask` is the place in the source.
struct Group { unsigned int mask, meeting, arrived; };

struct Warp {
    unsigned int alive;    // lanes that have not left the kernel
    unsigned int ready;    // lanes that can run, the one that does and those not started included
    unsigned int started;
    unsigned int at_barrier;
    unsigned int early;    // lanes that took a `return` other than the kernel's end, and have not come to a barrier since
    unsigned int groups;
    Group group[32];
    unsigned int line[32];           // where a waiting lane waits
    unsigned int source[32];         // lane that a shuffle reads
    unsigned long long value[32];    // what a lane brought; then its result
};

// An array in static shared memory: where it is in a block of either side. `name` is a text of the library that runs.
struct SharedArray { unsigned char* at[2]; size_t bytes; const char* name; };

struct Block {
    Launch* launch;
    void* const* arguments;
    void (*invoke)(void* const* arguments);
    unsigned char* arena;
    void* launcher;                  // where to go on when every thread has left
    unsigned int threads, warps;
    unsigned int current;            // number of the running thread, x fastest
    unsigned int live;               // threads that have not left
    unsigned int ready_warps;
    unsigned int streak;
    unsigned int ended;              // threads that have left at the kernel's end
    unsigned int last_ended;
    unsigned int arrived;            // threads at the barrier
    unsigned int barrier_line, barrier_thread;
    unsigned long long barrier_place;
    unsigned int voted, votes, voters;  // predicates so far; those of the last barrier and how many it had
    unsigned int free_stacks, next_stack, guarded_stacks;
    unsigned short free_stack[MAX_THREADS];
    void* stack_pointer[MAX_THREADS];
    Warp warp[32];
    unsigned int side;               // 1 in every second block: memory begins behind a page without access
    unsigned char* dynamic;          // its dynamic shared memory
    unsigned int arrays;             // those placed in this launch
    bool arrays_closed;              // no access to what has no array
    size_t arrays_used, arrays_bytes;
    unsigned short array_number[MAX_SHARED_ARRAYS];
    SharedArray array[MAX_SHARED_ARRAYS];
};
static_assert(sizeof(Block) <= SIGNAL_STACK_AT, "the state fits before the signal stack");

static inline void set_index(const Block* block, unsigned int thread) {
    const unsigned int nx = block->launch->block[0], ny = block->launch->block[1];
    threadIdx.x = thread % nx, threadIdx.y = thread / nx % ny, threadIdx.z = thread / nx / ny;
}

static inline void set_index(const Block* block, unsigned int thread, unsigned int (&index)[3]) {
    const unsigned int nx = block->launch->block[0], ny = block->launch->block[1];
    index[0] = thread % nx, index[1] = thread / nx % ny, index[2] = thread / nx / ny;
}

// --- which thread runs next

static inline unsigned int pick(Block* block) {
    const unsigned int w = block->current >> 5;
    unsigned int lanes = block->warp[w].ready & (~1u << (block->current & 31));
    if (lanes) return (w << 5) + __builtin_ctz(lanes);
    lanes = block->warp[w].ready;
    if (lanes && block->streak++ < STREAK) return (w << 5) + __builtin_ctz(lanes);
    block->streak = 0;
    unsigned int warps = block->ready_warps & (~1u << w);
    if (!warps) warps = block->ready_warps;
    if (!warps) return NOBODY;
    const unsigned int chosen = __builtin_ctz(warps);
    return (chosen << 5) + __builtin_ctz(block->warp[chosen].ready);
}

[[noreturn]] static void live_on_stack(Block* block, unsigned int stack);

// A stack for a thread that has not run yet, ready to be switched to.
static void* new_stack(Block* block) {
    unsigned int stack;
    const size_t bytes = block->launch->stack_bytes;
    if (block->free_stacks) {
        stack = block->free_stack[--block->free_stacks];
    } else {
        stack = block->next_stack++;
        if (stack >= block->guarded_stacks) {
            if (mprotect(block->arena + STACKS_AT + stack * bytes, PAGE, 0)) fail_with(NO_STACK, 0, "", "");
            block->guarded_stacks = stack + 1;
        }
    }
    // Neighbours begin at different offsets in a page, or their hot ends would share a few sets of the cache.
    unsigned char* top = block->arena + STACKS_AT + (stack + 1) * bytes - stack % 13 * 304;
    // Seven words, so that the stack pointer is a multiple of 16 where coppermesh_start makes its call.
    void** frame = (void**)(top - 56);
    frame[0] = frame[1] = nullptr;                   // r15, r14
    frame[2] = (void*)(size_t)stack;                 // r13
    frame[3] = block;                                // r12
    frame[4] = (void*)&live_on_stack;                // rbx
    frame[5] = nullptr;                              // rbp
    frame[6] = (void*)&coppermesh_start;
    return frame;
}

[[noreturn]] static void report_deadlock(Block* block);

static void switch_to(Block* block, unsigned int me, unsigned int next) {
    Warp& warp = block->warp[next >> 5];
    const unsigned int bit = 1u << (next & 31);
    void* to = block->stack_pointer[next];
    if (!(warp.started & bit)) {
        warp.started |= bit;
        to = new_stack(block);
    }
    block->current = next;
    coppermesh_switch(&block->stack_pointer[me], to);
}

// Let another thread run; returns when this one can go on.
static void suspend(Block* block) {
    const unsigned int me = block->current, next = pick(block);
    if (__builtin_expect(next == NOBODY, 0)) report_deadlock(block);
    if (next != me) switch_to(block, me, next);
}

static inline void unready(Block* block, Warp& warp, unsigned int bit);

// --- barriers

static inline void release_barrier(Block* block) {
    for (unsigned int w = 0; w < block->warps; w++) {
        block->warp[w].ready |= block->warp[w].at_barrier;
        block->warp[w].at_barrier = 0;
        if (block->warp[w].ready) block->ready_warps |= 1u << w;
    }
    block->votes = block->voted, block->voters = block->arrived;
    block->voted = block->arrived = 0;
}

[[noreturn]] static __attribute__((noinline, cold)) void fail_barrier(
    Block* block, unsigned int kind, unsigned int line, unsigned int other, unsigned int other_line) {
    if (claim(kind, line)) {
        Fault& fault = block->launch->fault;
        set_index(block, block->current, fault.thread);
        set_index(block, other, fault.other);
        fault.other_line = other_line;
    }
    abandon();
}

// Number of threads whose predicate held.
static __attribute__((noinline)) unsigned int wait_at_barrier(
    Block* block, unsigned long long place, unsigned int line, bool predicate) {
    if (block->ended) fail_barrier(block, SKIPPED_BARRIER, line, block->last_ended, 0);
    if (block->arrived == 0) {
        block->barrier_place = place, block->barrier_line = line, block->barrier_thread = block->current;
    } else if (block->barrier_place != place) {
        fail_barrier(block, DIVERGENT_BARRIER, line, block->barrier_thread, block->barrier_line);
    }
    block->voted += predicate;
    block->warp[block->current >> 5].early &= ~(1u << (block->current & 31));
    if (++block->arrived == block->live) {
        release_barrier(block);
        if (__builtin_expect(__atomic_load_n(&block->launch->stop, __ATOMIC_RELAXED), 0)) abandon();
    } else {
        Warp& warp = block->warp[block->current >> 5];
        const unsigned int lane = block->current & 31;
        warp.at_barrier |= 1u << lane;
        warp.line[lane] = line;
        unready(block, warp, 1u << lane);
        suspend(block);
    }
    return block->votes;
}

// --- warps

static __attribute__((noinline, cold)) void fail_lane(
    Block* block, unsigned int w, unsigned int lane, unsigned int kind, unsigned int mask, long long number) {
    if (claim(kind, block->warp[w].line[lane])) {
        Fault& fault = block->launch->fault;
        set_index(block, (w << 5) + lane, fault.thread);
        fault.mask = mask, fault.number = number, fault.limit = block->threads - (w << 5);
    }
    abandon();
}

static void combine(Warp& warp, unsigned int lanes, unsigned int meeting) {
    const unsigned int first = __builtin_ctz(lanes);
    unsigned int result = (unsigned int)warp.value[first];
    for (unsigned int left = lanes & (lanes - 1); left; left &= left - 1) {
        const unsigned int value = (unsigned int)warp.value[__builtin_ctz(left)];
        switch (meeting) {
            case ADD: result += value; break;
            case MIN_SIGNED: result = (int)value < (int)result ? value : result; break;
            case MAX_SIGNED: result = (int)value > (int)result ? value : result; break;
            case MIN_UNSIGNED: result = value < result ? value : result; break;
            case MAX_UNSIGNED: result = value > result ? value : result; break;
            case AND: result &= value; break;
            case OR: result |= value; break;
            default: result ^= value; break;
        }
    }
    for (unsigned int left = lanes; left; left &= left - 1) warp.value[__builtin_ctz(left)] = result;
}

// Everybody's result, when all lanes of `group` have come.
static void complete(Block* block, Warp& warp, const Group& group) {
    unsigned long long result[32];
    const unsigned int lanes = group.arrived;
    switch (group.meeting) {
        case SYNC: return;
        case SHUFFLE_INDEX: case SHUFFLE_UP: case SHUFFLE_DOWN: case SHUFFLE_XOR:
            for (unsigned int left = lanes; left; left &= left - 1) {
                const unsigned int lane = __builtin_ctz(left), source = warp.source[lane];
                if (__builtin_expect(!(lanes >> source & 1), 0))
                    fail_lane(block, &warp - block->warp, lane, group.mask >> source & 1 ? EXITED_LANE : OUTSIDE_MASK,
                              group.mask, source);
                result[lane] = warp.value[source];
            }
            break;
        case VOTE: case ACTIVE: {
            unsigned int ballot = group.meeting == ACTIVE ? lanes : 0;
            for (unsigned int left = lanes; left; left &= left - 1) {
                const unsigned int lane = __builtin_ctz(left);
                ballot |= (unsigned int)(warp.value[lane] != 0) << lane;
            }
            for (unsigned int left = lanes; left; left &= left - 1)
                warp.value[__builtin_ctz(left)] = (unsigned long long)lanes << 32 | ballot;
            return;
        }
        case MATCH_ANY: case MATCH_ALL:
            for (unsigned int left = lanes; left; left &= left - 1) {
                const unsigned int lane = __builtin_ctz(left);
                unsigned int equal = 0;
                for (unsigned int other = lanes; other; other &= other - 1)
                    if (warp.value[__builtin_ctz(other)] == warp.value[lane]) equal |= other & -other;
                result[lane] = group.meeting == MATCH_ANY || equal == lanes ? equal : 0;
            }
            break;
        default: combine(warp, lanes, group.meeting); return;
    }
    for (unsigned int left = lanes; left; left &= left - 1)
        warp.value[__builtin_ctz(left)] = result[__builtin_ctz(left)];
}

static void release_group(Block* block, Warp& warp, unsigned int number) {
    complete(block, warp, warp.group[number]);
    warp.ready |= warp.group[number].arrived;
    block->ready_warps |= 1u << (&warp - block->warp);
    for (unsigned int later = number + 1; later < warp.groups; later++) warp.group[later - 1] = warp.group[later];
    warp.groups--;
}

// When no lane of a warp can run: lanes that ask who is with them get their answer.
static __attribute__((noinline, cold)) void answer_active(Block* block, Warp& warp) {
    for (unsigned int number = 0; number < warp.groups; number++)
        if (warp.group[number].meeting == ACTIVE) return release_group(block, warp, number);
}

// The running lane waits, or has left.
static inline void unready(Block* block, Warp& warp, unsigned int bit) {
    warp.ready &= ~bit;
    if (warp.ready) return;
    block->ready_warps &= ~(1u << (&warp - block->warp));
    if (warp.groups) answer_active(block, warp);
}

// Wait for the lanes of `mask` and give this lane's result.
static __attribute__((noinline)) unsigned long long meet(
    Block* block, unsigned int meeting, unsigned int mask, unsigned long long value, unsigned int source,
    unsigned int line) {
    Warp& warp = block->warp[block->current >> 5];
    const unsigned int lane = block->current & 31, bit = 1u << lane;
    warp.value[lane] = value, warp.source[lane] = source, warp.line[lane] = line;
    if (meeting != ACTIVE && !(mask & bit)) fail_lane(block, block->current >> 5, lane, NOT_IN_MASK, mask, lane);
    unsigned int number = 0;
    while (number < warp.groups && (warp.group[number].mask != mask || warp.group[number].meeting != meeting)) number++;
    Group& group = warp.group[number];
    if (number == warp.groups) group = Group{mask, meeting, 0}, warp.groups++;
    group.arrived |= bit;
    if (meeting != ACTIVE && group.arrived == (mask & warp.alive)) {
        release_group(block, warp, number);
        return warp.value[lane];
    }
    unready(block, warp, bit);
    if (!(warp.ready & bit)) suspend(block);
    return warp.value[lane];
}

// --- the life of a thread

static __attribute__((noinline, cold)) void finish_meetings(Block* block, Warp& warp) {
    for (unsigned int number = 0; number < warp.groups;) {
        const Group& group = warp.group[number];
        if (group.meeting != ACTIVE && group.arrived == (group.mask & warp.alive))
            release_group(block, warp, number);
        else
            number++;
    }
}

// The running thread has left the kernel.
static inline void depart(Block* block) {
    Warp& warp = block->warp[block->current >> 5];
    const unsigned int bit = 1u << (block->current & 31);
    if (!(warp.early & bit)) {
        block->ended++, block->last_ended = block->current;
        if (block->arrived) {
            const unsigned int ended = block->current;
            block->current = block->barrier_thread;
            fail_barrier(block, SKIPPED_BARRIER, block->barrier_line, ended, 0);
        }
    }
    block->live--;
    warp.alive &= ~bit;
    if (warp.groups) finish_meetings(block, warp);
    unready(block, warp, bit);
    if (block->arrived && block->arrived == block->live) release_barrier(block);
}

static void live_on_stack(Block* block, unsigned int stack) {
    set_index(block, block->current);
    for (;;) {
        block->invoke(block->arguments);
        depart(block);
        void* dead;
        if (block->live == 0) coppermesh_switch(&dead, block->launcher);
        const unsigned int next = pick(block), following = block->current + 1;
        if (next == NOBODY) report_deadlock(block);
        block->current = next;
        Warp& warp = block->warp[next >> 5];
        const unsigned int bit = 1u << (next & 31);
        if (!(warp.started & bit)) {
            if (next == following && ++threadIdx.x < block->launch->block[0])
                ;  // three divisions less
            else
                set_index(block, next);
        } else {
            block->free_stack[block->free_stacks++] = (unsigned short)stack;
            coppermesh_switch(&dead, block->stack_pointer[next]);
        }
        warp.started |= bit;
    }
}

// Nobody can run: name a lane that waits, and one that it waits for, where that one waits.
[[noreturn]] static __attribute__((noinline, cold)) void report_deadlock(Block* block) {
    for (unsigned int w = 0; w < block->warps; w++) {
        Warp& warp = block->warp[w];
        for (unsigned int number = 0; number < warp.groups; number++) {
            const Group& group = warp.group[number];
            const unsigned int missing = group.mask & warp.alive & ~group.arrived;
            if (group.meeting == ACTIVE || !missing) continue;
            const unsigned int lane = __builtin_ctz(group.arrived), absent = __builtin_ctz(missing);
            if (claim(DEADLOCK, warp.line[lane])) {
                Fault& fault = block->launch->fault;
                set_index(block, (w << 5) + lane, fault.thread);
                set_index(block, (w << 5) + absent, fault.other);
                fault.other_line = warp.line[absent], fault.mask = group.mask, fault.number = absent;
            }
            abandon();
        }
    }
    fail_with(DEADLOCK, 0, "", "");
}

// --- the block's memory

// Where this operating-system thread has the library's thread-local variables, and what they begin as.
struct Locals { void* at; const void* image; size_t image_bytes, bytes; };

// As in <link.h>: struct dl_phdr_info and Elf64_Phdr.
struct ProgramHeader { unsigned int type, flags; size_t offset, address, physical, in_file, in_memory, align; };
struct LibraryInfo {
    size_t base;
    const char* name;
    const ProgramHeader* headers;
    unsigned short count;
    unsigned long long loaded, unloaded;
    size_t module;
    void* locals;
};
struct Search { size_t inside; Locals found; };

static int visit_library(void* information, size_t, void* data) {
    const LibraryInfo* library = (const LibraryInfo*)information;
    Search* search = (Search*)data;
    const ProgramHeader* locals = nullptr;
    bool ours = false;
    for (unsigned int i = 0; i < library->count; i++) {
        const ProgramHeader& header = library->headers[i];
        if (header.type == 7) locals = &header;  // PT_TLS
        const size_t begin = library->base + header.address;
        ours |= header.type == 1 && search->inside >= begin && search->inside - begin < header.in_memory;  // PT_LOAD
    }
    if (!ours || !locals) return ours;
    search->found = Locals{library->locals, (const void*)(library->base + locals->address), locals->in_file,
                           locals->in_memory};
    return 1;
}

static __attribute__((noinline)) Locals find_locals() {
    Search search = {(size_t)&visit_library, {}};
    dl_iterate_phdr(&visit_library, &search);
    return search.found;
}

// Every thread-local variable begins anew; those of the build itself keep their values.
static __attribute__((noinline)) void clear_static_shared(const Locals& locals) {
    const Running kept = running;
    const uint3 index = blockIdx, block = blockDim, grid = gridDim;
    __builtin_memcpy(locals.at, locals.image, locals.image_bytes);
    __builtin_memset((char*)locals.at + locals.image_bytes, 0, locals.bytes - locals.image_bytes);
    __asm__ volatile("" ::: "memory");
    running = kept;
    blockIdx = index, blockDim = block, gridDim = grid;
}

static inline unsigned char* dynamic_shared(const Block* block, unsigned int side) {
    return block->arena + (side ? OTHER_SHARED_AT : SHARED_END - ((block->launch->shared_bytes + 15) & ~15u));
}

// How many bytes of pattern there are before and behind `bytes` bytes at `at`: no more than their pages have.
struct Beside { unsigned int before, after; };
static inline Beside beside(const unsigned char* at, size_t bytes, unsigned int most) {
    const unsigned int before = (unsigned int)((size_t)at & (PAGE - 1));
    const unsigned int after = -(unsigned int)(size_t)(at + bytes) & (PAGE - 1);
    return {before < most ? before : most, after < most ? after : most};
}

// Fill what is beside memory, up to the ends of its pages.
static inline void fill_beside(unsigned char* at, size_t bytes, unsigned int most) {
    const Beside fill = beside(at, bytes, most);
    __builtin_memset(at - fill.before, CANARY, fill.before);
    __builtin_memset(at + bytes, CANARY, fill.after);
}

// Whether somebody wrote there: then `changed` is the offset of the byte that is furthest away.
static inline bool changed_beside(const unsigned char* at, size_t bytes, long long* changed) {
    const Beside fill = beside(at, bytes, CANARY_BYTES);
    bool any = false;
    for (unsigned int i = 1; i <= fill.before; i++)
        if (*(at - i) != CANARY) any = true, *changed = -(long long)i;
    for (unsigned int i = 0; i < fill.after; i++)
        if (at[bytes + i] != CANARY) any = true, *changed = (long long)(bytes + i);
    return any;
}

static inline void clear_dynamic_shared(const Block* block) {
    __builtin_memset(block->dynamic, 0, block->launch->shared_bytes);
    fill_beside(block->dynamic, block->launch->shared_bytes, PAGE);
}

static void check_dynamic_shared(const Block* block) {
    long long changed = 0;
    if (__builtin_expect(!changed_beside(block->dynamic, block->launch->shared_bytes, &changed), 1)) return;
    if (claim(SHARED_CANARY, 0))
        block->launch->fault.number = changed, block->launch->fault.limit = block->launch->shared_bytes;
    abandon();
}

// --- static shared arrays

static size_t static_shared_bytes();
static unsigned int arrays_of_module;

[[noreturn]] static __attribute__((noinline, cold)) void too_much_shared(size_t bytes) {
    if (claim(SHARED_LIMIT, 0)) {
        running.launch->fault.number = (long long)bytes;
        running.launch->fault.limit = running.shared_bytes;
    }
    abandon();
}

// Pages for an array, with one without access before and behind them; null where there is no room. `side` is whose.
static unsigned char* array_pages(Block* block, size_t bytes, size_t align, unsigned int side) {
    const size_t pages = (bytes + PAGE - 1) & ~(PAGE - 1);
    unsigned char *const begin = block->arena + ARRAYS_AT + block->arrays_used + PAGE, *const end = begin + pages;
    if (end + PAGE > block->arena + STACKS_AT) return nullptr;
    if (mprotect(begin, pages, 3)) fail_with(NO_STACK, 0, "", "");
    block->arrays_used += PAGE + pages;
    unsigned char* const at = side ? begin : (unsigned char*)((size_t)(end - bytes) & ~(align - 1));
    __builtin_memset(at, 0, bytes);
    fill_beside(at, bytes, PAGE);
    return at;
}

// The first thread of a launch to come to an array's declaration gives it its places.
static __attribute__((noinline, cold)) unsigned char* place_array(
    Block* block, unsigned int number, size_t bytes, size_t align, const char* name) {
    block->arrays_bytes += bytes;
    const size_t all = block->arrays_bytes + static_shared_bytes();
    if (number >= MAX_SHARED_ARRAYS || all < bytes || all + running.shared_bytes > MAX_SHARED_BYTES || align > PAGE)
        too_much_shared(all);
    unsigned char* const first = array_pages(block, bytes, align, 0);
    if (!first) too_much_shared(all);
    unsigned char* const second = array_pages(block, bytes, align, 1);
    SharedArray& array = block->array[number];
    array = SharedArray{{first, second ? second : first}, bytes, name};
    block->array_number[block->arrays++] = (unsigned short)number;
    return array.at[block->side];
}

static __attribute__((noinline, cold, unused)) unsigned int new_array(unsigned int* number) {
    unsigned int none = 0, mine = __atomic_add_fetch(&arrays_of_module, 1u, __ATOMIC_RELAXED);
    return __atomic_compare_exchange_n(number, &none, mine, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED) ? mine : none;
}

// What `__shared__ float x[16];` becomes is `typedef float t[16]; static unsigned int n; t& x = shared_array<t>(n, "x");`.
template <class T> COPPERMESH_INLINE T& shared_array(unsigned int& number, const char* name) {
    Block* block = running.block;
    unsigned int n = __atomic_load_n(&number, __ATOMIC_RELAXED);
    if (__builtin_expect(n == 0, 0)) n = new_array(&number);
    unsigned char* at = n < MAX_SHARED_ARRAYS ? block->array[n].at[block->side] : nullptr;
    if (__builtin_expect(at == nullptr, 0))
        at = place_array(block, n, sizeof(T), alignof(T) < 16 ? 16 : alignof(T), name);
    return *(T*)at;
}

static void clear_arrays(Block* block) {
    for (unsigned int i = 0; i < block->arrays; i++) {
        const SharedArray& array = block->array[block->array_number[i]];
        __builtin_memset(array.at[block->side], 0, array.bytes);
    }
}

[[noreturn]] static __attribute__((noinline, cold)) void beside_array(const SharedArray& array, long long byte, bool canary) {
    if (claim(canary ? ARRAY_CANARY : ARRAY_OVERFLOW, 0)) {
        Fault& fault = running.launch->fault;
        if (!canary) set_index(running.block, running.block->current, fault.thread);
        fault.number = byte, fault.limit = (long long)array.bytes;
        copy_text(fault.text, sizeof fault.text, array.name);
    }
    abandon();
}

static void check_arrays(Block* block) {
    for (unsigned int i = 0; i < block->arrays; i++) {
        const SharedArray& array = block->array[block->array_number[i]];
        long long changed = 0;
        if (__builtin_expect(changed_beside(array.at[block->side], array.bytes, &changed), 0))
            beside_array(array, changed, true);
    }
}

// Of a launch before, perhaps of another library: now nobody may touch any of it. Gives false on failure.
static bool forget_arrays(Block* block) {
    for (unsigned int i = 0; i < block->arrays; i++) block->array[block->array_number[i]] = SharedArray{};
    const size_t bytes = block->arrays_closed ? block->arrays_used : STACKS_AT - ARRAYS_AT;
    block->arrays = 0, block->arrays_used = block->arrays_bytes = 0, block->arrays_closed = true;
    return !bytes || !mprotect(block->arena + ARRAYS_AT, bytes, 0);
}

// An access at `address`, which is among the arrays, to what nobody may touch.
[[noreturn]] static __attribute__((noinline, cold)) void wild_in_arrays(Block* block, size_t address) {
    const SharedArray* nearest = nullptr;
    size_t least = ~(size_t)0;
    for (unsigned int i = 0; i < block->arrays; i++) {
        const SharedArray& array = block->array[block->array_number[i]];
        const size_t begin = (size_t)array.at[block->side], end = begin + array.bytes;
        const size_t far = address < begin ? begin - address : address - end + 1;
        if (far < least) least = far, nearest = &array;
    }
    if (nearest) beside_array(*nearest, (long long)(address - (size_t)nearest->at[block->side]), false);
    fail_with(OUT_OF_BOUNDS, 0, "", "");
}

// What `extern __shared__ T x[];` becomes is `T (&x)[] = coppermesh::DynamicShared();`.
struct DynamicShared {
    template <class T> operator T&() const { return *(T*)running.block->dynamic; }
};

// What `__shared__ T x[n]` in a macro becomes is `T (&x)[n] = coppermesh::StaticShared{number, "x"}`.
struct StaticShared {
    unsigned int& number;
    const char* name;
    template <class T> COPPERMESH_METHOD operator T&() const { return shared_array<T>(number, name); }
};

// `x[i]` of such an array becomes `x[coppermesh::within(x, (i))]`, and `&x[i]` has at_most instead: the address just
// behind the end may be taken. Anything else of that name goes through unchanged.
template <class T, class I> COPPERMESH_INLINE I within(T (&)[], I index, unsigned int line = __builtin_LINE());
template <class T, class I> COPPERMESH_INLINE I at_most(T (&)[], I index, unsigned int line = __builtin_LINE());
template <class X, class I> COPPERMESH_INLINE I within(const X&, I index) { return index; }
template <class X, class I> COPPERMESH_INLINE I at_most(const X&, I index) { return index; }

[[noreturn]] static __attribute__((noinline, cold, unused)) void outside_shared(
    unsigned int line, long long index, unsigned int element) {
    if (claim(SHARED_INDEX, line)) {
        Fault& fault = running.launch->fault;
        fault.number = index, fault.limit = running.shared_bytes, fault.mask = element;
    }
    abandon();
}
template <class T, class I> I within(T (&)[], I index, unsigned int line) {
    if (__builtin_expect((unsigned long long)(long long)index >= running.shared_bytes / sizeof(T), 0))
        outside_shared(line, (long long)index, sizeof(T));
    return index;
}
template <class T, class I> I at_most(T (&)[], I index, unsigned int line) {
    if (__builtin_expect((unsigned long long)(long long)index > running.shared_bytes / sizeof(T), 0))
        outside_shared(line, (long long)index, sizeof(T));
    return index;
}

// `return;` other than a kernel's last statement. A barrier that the thread comes to later takes it back.
COPPERMESH_INLINE void leave() {
    Block* block = running.block;
    block->warp[block->current >> 5].early |= 1u << (block->current & 31);
}

// --- signals: an access beside dynamic shared memory or below a stack is the kernel's fault and known; others go on

struct SignalAction { void (*handler)(int, void*, void*); unsigned long mask[16]; int flags; void (*restorer)(); };
struct SignalStack { void* at; int flags; size_t bytes; };
static SignalAction previous_action[2];
static constexpr int SIGNALS[2] = {11, 7};  // SIGSEGV, SIGBUS

static void on_signal(int number, void* information, void*) {
    Block* block = running.block;
    const size_t address = *(size_t*)((char*)information + 16);  // siginfo_t's si_addr
    if (block) {
        const size_t offset = address - (size_t)block->arena, stacks = offset - STACKS_AT;
        const size_t bytes = block->launch->stack_bytes;
        if (offset >= SHARED_AT - GUARD_BYTES && offset < ARRAYS_AT) {
            if (claim(SHARED_OVERFLOW, 0)) {
                set_index(block, block->current, block->launch->fault.thread);
                block->launch->fault.number = (long long)(address - (size_t)block->dynamic);
                block->launch->fault.limit = block->launch->shared_bytes;
            }
            abandon();
        }
        if (offset >= ARRAYS_AT && offset < STACKS_AT) wild_in_arrays(block, address);
        if (offset >= STACKS_AT && stacks / bytes < block->next_stack && stacks % bytes < PAGE) {
            if (claim(STACK_OVERFLOW, 0)) {
                set_index(block, block->current, block->launch->fault.thread);
                block->launch->fault.limit = (long long)(bytes - 2 * PAGE);
            }
            abandon();
        }
    }
    for (int i = 0; i < 2; i++)
        if (SIGNALS[i] == number) sigaction(number, &previous_action[i], nullptr);
}

static void catch_signals() {
    SignalAction action = {};
    action.handler = on_signal;
    action.flags = 0x4 | 0x08000000 | 0x40000000;  // SA_SIGINFO | SA_ONSTACK | SA_NODEFER
    for (int i = 0; i < 2; i++) sigaction(SIGNALS[i], &action, &previous_action[i]);
}

static void release_signals() {
    for (int i = 0; i < 2; i++) sigaction(SIGNALS[i], &previous_action[i], nullptr);
}

// --- the launcher of one operating-system thread

static void begin_block(Block* block) {
    const unsigned int threads = block->threads;
    block->live = threads, block->current = 0;
    block->ready_warps = block->warps == 32 ? ~0u : (1u << block->warps) - 1;
    block->streak = block->ended = block->arrived = block->voted = 0;
    block->free_stacks = block->next_stack = 0;
    for (unsigned int w = 0; w < block->warps; w++) {
        Warp& warp = block->warp[w];
        const unsigned int lanes = threads - 32 * w;
        warp.alive = warp.ready = lanes >= 32 ? ~0u : (1u << lanes) - 1;
        warp.started = warp.at_barrier = warp.early = warp.groups = 0;
    }
    block->warp[0].started = 1;
}

static void run_blocks(void* data) {
    Block* block = (Block*)data;
    Launch& launch = *block->launch;
    const unsigned int gx = launch.grid[0], gy = launch.grid[1];
    const Locals locals = find_locals();
    blockDim = uint3{launch.block[0], launch.block[1], launch.block[2]};
    gridDim = uint3{gx, gy, launch.grid[2]};
    for (;;) {
        const unsigned long long first = __atomic_fetch_add(&launch.next, launch.chunk, __ATOMIC_RELAXED);
        if (first >= launch.blocks) return;
        const unsigned long long left = launch.blocks - first;
        const unsigned long long end = first + (launch.chunk < left ? launch.chunk : left);
        for (unsigned long long b = first; b < end; b++) {
            if (__atomic_load_n(&launch.stop, __ATOMIC_RELAXED)) return;
            clear_static_shared(locals);
            block->side = b & 1, block->dynamic = dynamic_shared(block, block->side);
            clear_dynamic_shared(block);
            clear_arrays(block);
            blockIdx = uint3{(unsigned int)(b % gx), (unsigned int)(b / gx % gy), (unsigned int)(b / gx / gy)};
            begin_block(block);
            coppermesh_switch(&block->launcher, new_stack(block));
            check_dynamic_shared(block);
            check_arrays(block);
        }
    }
}

// Dynamic shared memory of either side: access to its pages, and no further. Gives false on failure.
static bool guard_dynamic_shared(const Block* block) {
    unsigned char *const before = block->arena + SHARED_AT - GUARD_BYTES, *const end = block->arena + SHARED_END;
    unsigned char* const begin = (unsigned char*)((size_t)dynamic_shared(block, 0) & ~(PAGE - 1));
    unsigned char* const other = dynamic_shared(block, 1);
    const size_t bytes = (block->launch->shared_bytes + PAGE - 1) & ~(PAGE - 1);
    return !mprotect(before, begin - before, 0) && !mprotect(begin, end - begin, 3) &&
           !mprotect(end, other - end, 0) && !mprotect(other, bytes, 3) &&
           !mprotect(other + bytes, block->arena + ARRAYS_AT - other - bytes, 0);
}

static __attribute__((noinline)) void run_with_fibers(
    Launch& launch, void* const* arguments, void (*invoke)(void* const*)) {
    unsigned char* arena =
        (unsigned char*)launch.arenas[__atomic_fetch_add(&launch.arenas_taken, 1u, __ATOMIC_RELAXED)];
    Block* block = (Block*)arena;
    block->launch = &launch, block->arguments = arguments, block->invoke = invoke, block->arena = arena;
    block->threads = launch.block[0] * launch.block[1] * launch.block[2];
    block->warps = (block->threads + 31) / 32;
    const SignalStack stack = {arena + SIGNAL_STACK_AT, 0, SIGNAL_STACK_BYTES};
    SignalStack previous = {};
    sigaltstack(&stack, &previous);
    running = Running{&launch, nullptr, block, launch.shared_bytes};
    if (forget_arrays(block) && guard_dynamic_shared(block))
        coppermesh_call(&running.launcher, run_blocks, block);
    else
        claim(NO_STACK, 0);
    running = Running{};
    sigaltstack(&previous, nullptr);
}

// Bytes of the module's static shared memory: all thread-local variables that are not the build's own.
static size_t static_shared_bytes() {
    const size_t own = sizeof(Running) + 4 * sizeof(uint3), all = find_locals().bytes;
    return all > own ? all - own : 0;
}

}  // namespace coppermesh

// --- out of bounds of an array whose size is known: the compiler's checks (-fsanitize=bounds) call these

namespace coppermesh {
struct SourceLocation { const char* file; unsigned int line, column; };
struct TypeDescription { unsigned short kind, information; char name[1]; };
struct OutOfBounds { SourceLocation location; const TypeDescription* array; const TypeDescription* index; };

[[noreturn]] static __attribute__((noinline, cold)) void out_of_bounds(const OutOfBounds* data, unsigned long long index) {
    // The index comes in the value itself; `information` is twice the logarithm of its width in bits, plus one if signed.
    const unsigned int width = 1u << (data->index->information >> 1);
    long long value = (long long)index;
    if (data->index->information & 1 && width < 64) value = value << (64 - width) >> (64 - width);
    fail_with(OUT_OF_BOUNDS, data->location.line, data->location.file ? data->location.file : "", data->array->name, value);
}
}  // namespace coppermesh
extern "C" {
[[noreturn]] __attribute__((visibility("hidden"), used, cold)) void __ubsan_handle_out_of_bounds(
    void* data, unsigned long index) {
    coppermesh::out_of_bounds((const coppermesh::OutOfBounds*)data, index);
}
[[noreturn]] __attribute__((visibility("hidden"), used, cold)) void __ubsan_handle_out_of_bounds_abort(
    void* data, unsigned long index) {
    coppermesh::out_of_bounds((const coppermesh::OutOfBounds*)data, index);
}
}
