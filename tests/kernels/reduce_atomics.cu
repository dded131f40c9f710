// Every integer and bitwise atomic on global memory at once, in shapes whose result has one answer.
extern "C" __global__ void gather(const int* values, int* ints, unsigned int* words, unsigned long long* longs,
                                  long long* extremes, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const int v = values[i];
    atomicAdd(&ints[0], v);
    atomicSub(&ints[1], v);
    atomicMin(&ints[2], v);
    atomicMax(&ints[3], v);
    atomicAnd(&words[0], ~(1u << (v & 15)));
    atomicOr(&words[1], 1u << (v & 31));
    atomicXor(&words[2], (unsigned int)v * 2654435761u);
    atomicInc(&words[3], 96u);
    atomicDec(&words[4], 96u);
    atomicAdd(&longs[0], (unsigned long long)(unsigned int)v);
    atomicXor(&longs[1], (unsigned long long)v << 20);
    atomicMin(&extremes[0], (long long)v << 33);
    atomicMax(&extremes[1], (long long)v << 33);
}
