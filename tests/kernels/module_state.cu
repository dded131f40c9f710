// __device__ arrays that outlive a launch: a stack grows over several launches, another kernel reads it out.
__device__ int stack[64];
__device__ int height = 0;

extern "C" __global__ void push(const int* values, int start) {
    stack[atomicAdd(&height, 1)] = values[start + threadIdx.x];
}
extern "C" __global__ void read_out(int* out) {
    out[threadIdx.x] = stack[threadIdx.x];
    if (threadIdx.x == 0) out[64] = height;
}
