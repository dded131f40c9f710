// A __device__ counter hands out places: every element that passes gets one of its own, whatever the order.
__device__ unsigned int taken;

extern "C" __global__ void gather_negative(const float* values, float* kept, unsigned int* count, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n && values[i] < 0.0f) {
        kept[atomicAdd(&taken, 1u)] = values[i];
        atomicAdd(count, 1u);
    }
}
