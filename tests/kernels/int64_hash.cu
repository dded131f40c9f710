// 64-bit integers: splitmix64, __umul64hi for a range without division, __clzll, signed shifts and remainders.
__device__ unsigned long long mixed(unsigned long long x) {
    x += 0x9E3779B97F4A7C15ull;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
}

extern "C" __global__ void hashes(const long long* keys, unsigned long long* hash, unsigned long long* bucket,
                                  int* zeros, long long* folded, unsigned long long buckets, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    hash[i] = mixed((unsigned long long)keys[i]);
    bucket[i] = __umul64hi(hash[i], buckets);
    zeros[i] = __clzll((long long)hash[i]);
    folded[i] = (keys[i] >> 7) + keys[i] % 1000;
}
