// Monte Carlo area of the unit disc: a generator class per thread, integer hits reduced in the block, one atomic each.
class Xorwow {
public:
    __device__ explicit Xorwow(unsigned int seed) : a_(seed ^ 0x9e3779b9u), b_(seed + 1), c_(362436069u), d_(0) {
        for (int i = 0; i < 8; ++i) (*this)();
    }
    __device__ unsigned int operator()() {
        const unsigned int t = a_ ^ (a_ >> 2);
        a_ = b_;
        b_ = c_;
        c_ = (c_ ^ (c_ << 4)) ^ (t ^ (t << 1));
        d_ += 362437u;
        return c_ + d_;
    }

private:
    unsigned int a_, b_, c_, d_;
};

extern "C" __global__ void hits(unsigned long long* inside, int samples, unsigned int seed) {
    __shared__ int block_hits;
    if (threadIdx.x == 0) block_hits = 0;
    __syncthreads();
    Xorwow next(seed + blockIdx.x * blockDim.x + threadIdx.x);
    int mine = 0;
    for (int s = 0; s < samples; ++s) {
        const long long x = next() >> 16, y = next() >> 16;
        mine += x * x + y * y < 65536ll * 65536ll;
    }
    atomicAdd(&block_hits, mine);
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(inside, (unsigned long long)block_hits);
}
