// Inclusive scan by doubling distances, two shared buffers in turn; the block's size is not a power of two.
extern "C" __global__ void inclusive_scan(const int* in, int* out, int n) {
    extern __shared__ int buffer[];
    int *from = buffer, *to = buffer + blockDim.x;
    const int t = threadIdx.x, i = blockIdx.x * blockDim.x + t;
    from[t] = i < n ? in[i] : 0;
    __syncthreads();
    for (int distance = 1; distance < blockDim.x; distance *= 2) {
        to[t] = from[t] + (t >= distance ? from[t - distance] : 0);
        __syncthreads();
        int* const swap = from;
        from = to;
        to = swap;
    }
    if (i < n) out[i] = from[t];
}
