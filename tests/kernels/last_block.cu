// Sum in one launch: every block writes its part, the last to arrive (__threadfence and atomicInc) adds them up.
__device__ unsigned int arrived;

__device__ int block_sum(int value, int* scratch) {
    scratch[threadIdx.x] = value;
    __syncthreads();
    for (int half = blockDim.x / 2; half > 0; half >>= 1) {
        if (threadIdx.x < half) scratch[threadIdx.x] += scratch[threadIdx.x + half];
        __syncthreads();
    }
    return scratch[0];
}

extern "C" __global__ void sum(const int* values, volatile int* parts, int* result, int n) {
    __shared__ int scratch[128];
    __shared__ bool is_last;
    int mine = 0;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) mine += values[i];
    const int part = block_sum(mine, scratch);
    if (threadIdx.x == 0) {
        parts[blockIdx.x] = part;
        __threadfence();
        is_last = atomicInc(&arrived, gridDim.x - 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (!is_last) return;
    mine = 0;
    for (int b = threadIdx.x; b < gridDim.x; b += blockDim.x) mine += parts[b];
    __syncthreads();
    const int all = block_sum(mine, scratch);
    if (threadIdx.x == 0) *result = all;
}
