// Native code that hides secrets in its process, and native code that hunts for them in all memory and files of its own.
// The functions of the C library and the numbers of system calls are put in as macros by test_leases.py.

typedef unsigned long long word;

__device__ unsigned char variable[16];
__device__ int depth = 200;

__device__ __noinline__ int on_the_stack(const unsigned char* secret, int left) {
    volatile unsigned char room[64];
    for (int i = 0; i < 64; ++i) room[i] = secret[i % 16];
    return left ? on_the_stack(secret, left - 1) + room[left % 64] : room[0];
}

// `secrets`: sixteen bytes for each place. out[place] becomes 1 where it could be planted.
extern "C" __global__ void plant(word* out, const unsigned char* secrets) {
    __shared__ unsigned char shared[16];
    const unsigned char* heap = secrets + 16 * HEAP;
    char* kept = (char*)malloc(1 << 16);
    for (int i = 0; i < 1 << 16; ++i) kept[i] = heap[i % 16];
    out[HEAP] = kept != 0;
    long mapped = CALL(SYS_mmap, 0l, 1l << 20, 3l, 0x21l, -1l, 0l);
    out[MAPPING] = mapped > 0;
    if (mapped > 0) for (int i = 0; i < 1 << 20; ++i) ((char*)mapped)[i] = secrets[16 * MAPPING + i % 16];
    // No worker can make a memory file; what it writes into a lent one is an output.
    long file = CALL(SYS_memfd_create, "mine", 0l);
    out[FILE] = file > 0 && CALL(SYS_write, file, secrets + 16 * FILE, 16l) == 16;
    char name[24], value[24];
    for (int i = 0; i < 16; ++i) value[i] = secrets[16 * ENVIRONMENT + i];
    value[16] = 0;
    out[ENVIRONMENT] = SETENV("PLANTED", value, 1) == 0;
    for (int i = 0; i < 16; ++i) variable[i] = secrets[16 * VARIABLE + i];
    out[VARIABLE] = 1;
    for (int i = 0; i < 16; ++i) shared[i] = secrets[16 * SHARED + i];
    __syncthreads();
    out[SHARED] = shared[0] != 0;
    out[STACK] = on_the_stack(secrets + 16 * STACK, depth) != 0;
    out[PRINTED] = CALL(SYS_write, 2l, secrets + 16 * PRINTED, 16l) == 16;
    // A file by a name, which no worker may make or open; the directory is its own, and another lease's.
    out[DIRECTORY] = 0;
    const char* names[4] = {"planted", "../planted", "../compiler/planted", "/tmp/planted"};
    for (int i = 0; i < 4; ++i) {
        long opened = CALL(SYS_openat, -100l, names[i], 0x42l, 0600l);
        if (opened >= 0) out[DIRECTORY] += CALL(SYS_write, opened, secrets + 16 * DIRECTORY, 16l) == 16;
    }
    // Names the kernel keeps for a process.
    for (int i = 0; i < 15; ++i) name[i] = secrets[16 * LITERAL + i];
    name[15] = 0;
    static const unsigned char literal[17] = LITERAL_TEXT;
    out[LITERAL] = literal[0] == secrets[16 * LITERAL];
}

// A secret is known here by products only, from which no compiler makes the secret itself.
__device__ __noinline__ void search(const unsigned char* from, word size, word* out, const word* wanted) {
    const word tag = wanted[2 * PLACES];
    for (word at = 0; at + 16 <= size; ++at) {
        word head, tail;
        memcpy(&head, from + at, 8);
        if (head * FACTOR != tag) continue;
        memcpy(&tail, from + at + 8, 8);
        for (int place = 0; place <= PLACES; ++place)
            if (tail * FACTOR == wanted[2 * place + 1]) ++out[place];
    }
}

__device__ bool is_mapped(word page) {
    unsigned char there;
    return CALL(SYS_mincore, page, 4096l, &there) == 0;
}

// Whether it can be read: the kernel says so without a fault, by copying one byte of it.
__device__ bool is_readable(word page) { return CALL(SYS_pwrite64, 2l, page, 1l, 600l) == 1; }

// Searches from `start` upwards (step 1) or downwards (-1) and moves `end` to where nothing more was.
__device__ word walk(word start, int step, word* end, word* out, const word* wanted) {
    const word farthest = 1ull << 18;  // pages without anything: 1 GiB
    word pages = 0, empty = 0;
    word run = 0, length = 0;
    for (word page = start; empty < farthest && page > 65536 && page < 0x7ffffffff000ull; page += step * 4096ll) {
        bool readable = false;
        if (is_mapped(page)) {
            empty = 0;
            *end = page;
            readable = is_readable(page);
        } else ++empty;
        if (readable) {
            ++pages;
            if (step < 0 || !length) run = page;
            length += 4096;
        }
        if (length && (!readable || length >= 1 << 24)) {
            search((const unsigned char*)run, length, out, wanted);
            length = 0;
        }
    }
    if (length) search((const unsigned char*)run, length, out, wanted);
    return pages;
}

// wanted: pairs of products for each place, then those of a decoy. out: hits by place, then the decoy's, pages, files,
// and names that could be opened.
extern "C" __global__ void hunt(word* out, const word* wanted, const word* decoy) {
    word* planted = (word*)malloc(16);
    planted[0] = decoy[0] ^ decoy[2];
    planted[1] = decoy[1] ^ decoy[2];
    word local = 0;
    word starts[5] = {(word)&local, (word)&malloc, (word)planted, (word)out, (word)ENVIRON};
    word first[5], last[5];
    for (int i = 0; i < 5; ++i) {
        const word page = starts[i] & ~4095ull;
        bool known = false;
        first[i] = last[i] = page;
        for (int j = 0; j < i; ++j) known |= first[j] <= page && page <= last[j];
        if (known) continue;
        out[PLACES + 1] += walk(page, 1, &last[i], out, wanted) + walk(page - 4096, -1, &first[i], out, wanted);
    }
    unsigned char* room = (unsigned char*)malloc(1 << 16);
    for (long file = 0; file < 1024; ++file) {
        long got, at = 0;
        while (at < 1 << 26 && (got = CALL(SYS_pread64, file, room, 65536l, at)) > 0) {
            search(room, got, out, wanted);
            ++out[PLACES + 2];
            at += got > 16 ? got - 15 : got;
        }
    }
    const char* names[10] = {".", "..", "../worker-1", "../builder-1", "../builder-1/kernel.cu", "../compiler", "/",
                             "/proc/self/environ", "/proc/self/maps", "/dev/shm"};
    for (int i = 0; i < 10; ++i) {
        long file = CALL(SYS_openat, -100l, names[i], 0l, 0l);
        if (file < 0) continue;
        ++out[PLACES + 3];
        long got = CALL(SYS_read, file, room, 65536l);
        if (got > 0) search(room, got, out, wanted);
    }
    planted[0] = planted[1] = 0;
    for (int i = 0; i < 1 << 16; ++i) room[i] = 0;
    free(room);
    free(planted);
}
