// SHA-256 of one 64-byte message per thread: rotations by __funnelshift_r, big-endian words by __byte_perm.
__constant__ unsigned int k256[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98,
    0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786,
    0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8,
    0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13,
    0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819,
    0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a,
    0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
    0xc67178f2};

__device__ __forceinline__ unsigned int turned(unsigned int x, int by) { return __funnelshift_r(x, x, by); }
__device__ unsigned int swapped(unsigned int x) { return __byte_perm(x, 0, 0x0123); }

__device__ void compress(unsigned int (&state)[8], unsigned int (&w)[64]) {
    for (int t = 16; t < 64; ++t) {
        const unsigned int s0 = turned(w[t - 15], 7) ^ turned(w[t - 15], 18) ^ (w[t - 15] >> 3);
        const unsigned int s1 = turned(w[t - 2], 17) ^ turned(w[t - 2], 19) ^ (w[t - 2] >> 10);
        w[t] = w[t - 16] + s0 + w[t - 7] + s1;
    }
    unsigned int a = state[0], b = state[1], c = state[2], d = state[3];
    unsigned int e = state[4], f = state[5], g = state[6], h = state[7];
    for (int t = 0; t < 64; ++t) {
        const unsigned int s1 = turned(e, 6) ^ turned(e, 11) ^ turned(e, 25);
        const unsigned int t1 = h + s1 + ((e & f) ^ (~e & g)) + k256[t] + w[t];
        const unsigned int s0 = turned(a, 2) ^ turned(a, 13) ^ turned(a, 22);
        const unsigned int t2 = s0 + ((a & b) ^ (a & c) ^ (b & c));
        h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
    }
    state[0] += a, state[1] += b, state[2] += c, state[3] += d;
    state[4] += e, state[5] += f, state[6] += g, state[7] += h;
}

extern "C" __global__ void sha256(const unsigned int* messages, unsigned int* digests, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    unsigned int state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                             0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    unsigned int w[64];
    for (int t = 0; t < 16; ++t) w[t] = swapped(messages[i * 16 + t]);
    compress(state, w);
    for (int t = 0; t < 16; ++t) w[t] = t == 0 ? 0x80000000u : t == 15 ? 512u : 0u;
    compress(state, w);
    for (int t = 0; t < 8; ++t) digests[i * 8 + t] = swapped(state[t]);
}
