// Bits of 32- and 64-bit words: counts, places, reversal, funnel shifts, 24-bit products, differences, averages.
extern "C" __global__ void bits(const unsigned int* a, const unsigned int* b, int* counts, unsigned int* words,
                                unsigned long long* longs, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const unsigned int x = a[i], y = b[i];
    const unsigned long long both = (unsigned long long)x << 32 | y;
    int* c = counts + 6 * i;
    c[0] = __popc(x), c[1] = __clz((int)x), c[2] = __ffs((int)x);
    c[3] = __popcll(both), c[4] = __clzll((long long)(both >> 7)), c[5] = __ffsll((long long)(both << 9));
    unsigned int* w = words + 9 * i;
    w[0] = __brev(x), w[1] = __funnelshift_l(x, y, 11), w[2] = __funnelshift_rc(x, y, 40);
    w[3] = __umul24(x, y), w[4] = __umulhi(x, y), w[5] = __usad(x, y, 5u);
    w[6] = (unsigned int)__hadd((int)x, (int)y), w[7] = (unsigned int)__mul24((int)x, (int)y), w[8] = __uhadd(x, y);
    longs[2 * i] = __brevll(both);
    longs[2 * i + 1] = __umul64hi(both, 0x123456789abcdefull);
}
