// Histogram of bytes: shared-memory counters per block by atomicAdd, merged into global ones; uint read as uchar4.
extern "C" __global__ void histogram(const unsigned int* words, unsigned int* counts, int n) {
    __shared__ unsigned int local_counts[256];
    for (int b = threadIdx.x; b < 256; b += blockDim.x) local_counts[b] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        const unsigned int word = words[i];
#pragma unroll
        for (int k = 0; k < 4; ++k) atomicAdd(&local_counts[word >> (8 * k) & 0xff], 1u);
    }
    __syncthreads();
    for (int b = threadIdx.x; b < 256; b += blockDim.x)
        if (local_counts[b]) atomicAdd(&counts[b], local_counts[b]);
}
