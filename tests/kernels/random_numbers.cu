// Three generators, bit for bit: xorshift32, PCG32 (64-bit state), Philox4x32-10 (__umulhi).
struct Pcg {
    unsigned long long state, increment;
    __device__ Pcg(unsigned long long seed, unsigned long long stream) : state(0), increment(stream << 1 | 1) {
        next();
        state += seed;
        next();
    }
    __device__ unsigned int next() {
        const unsigned long long old = state;
        state = old * 6364136223846793005ULL + increment;
        const unsigned int shifted = (unsigned int)(((old >> 18u) ^ old) >> 27u), turn = (unsigned int)(old >> 59u);
        return shifted >> turn | shifted << (-turn & 31);
    }
};

__device__ uint4 philox(uint4 counter, uint2 key) {
    for (int round = 0; round < 10; ++round) {
        const unsigned int high0 = __umulhi(0xD2511F53u, counter.x), low0 = 0xD2511F53u * counter.x;
        const unsigned int high1 = __umulhi(0xCD9E8D57u, counter.z), low1 = 0xCD9E8D57u * counter.z;
        counter = make_uint4(high1 ^ counter.y ^ key.x, low1, high0 ^ counter.w ^ key.y, low0);
        key.x += 0x9E3779B9u;
        key.y += 0xBB67AE85u;
    }
    return counter;
}

extern "C" __global__ void generate(unsigned int* xorshift, unsigned int* pcg, uint4* blocks, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    unsigned int x = 2463534242u + i;
    for (int k = 0; k < 5; ++k) {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
    }
    xorshift[i] = x;
    Pcg generator(42u + i, 54u);
    for (int k = 0; k < 3; ++k) generator.next();
    pcg[i] = generator.next();
    blocks[i] = philox(make_uint4(i, 0, 0, 7), make_uint2(0xdeadbeefu, 2));
}
