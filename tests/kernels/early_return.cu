// Whole blocks return before the barrier, and threads after their last one; the loop has a different length per block.
extern "C" __global__ void reverse_rows(const int* in, int* out, const int* lengths, int width) {
    __shared__ int row[256];
    const int length = lengths[blockIdx.x];
    if (length == 0) return;
    for (int first = 0; first < length; first += blockDim.x) {
        const int i = first + threadIdx.x;
        if (i < length) row[i] = in[blockIdx.x * width + i];
        __syncthreads();
    }
    const int mine = threadIdx.x;
    if (mine >= length) return;
    for (int i = mine; i < length; i += blockDim.x) out[blockIdx.x * width + i] = row[length - 1 - i];
}
