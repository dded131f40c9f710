// Exclusive scan of a whole array: up and down sweep per block, scan of the block sums, and their addition: 3 launches.
#define THREADS 128

extern "C" __global__ void scan_blocks(const unsigned int* in, unsigned int* out, unsigned int* sums, int n) {
    __shared__ unsigned int tree[2 * THREADS];
    const int first = blockIdx.x * 2 * THREADS, a = threadIdx.x, b = threadIdx.x + THREADS;
    tree[a] = first + a < n ? in[first + a] : 0;
    tree[b] = first + b < n ? in[first + b] : 0;
    int step = 1;
    for (int pairs = THREADS; pairs > 0; pairs >>= 1, step *= 2) {
        __syncthreads();
        if (threadIdx.x < pairs) {
            const int right = (2 * threadIdx.x + 2) * step - 1;
            tree[right] += tree[right - step];
        }
    }
    if (threadIdx.x == 0) {
        sums[blockIdx.x] = tree[2 * THREADS - 1];
        tree[2 * THREADS - 1] = 0;
    }
    for (int pairs = 1; pairs <= THREADS; pairs *= 2) {
        step >>= 1;
        __syncthreads();
        if (threadIdx.x < pairs) {
            const int right = (2 * threadIdx.x + 2) * step - 1;
            const unsigned int left = tree[right - step];
            tree[right - step] = tree[right];
            tree[right] += left;
        }
    }
    __syncthreads();
    if (first + a < n) out[first + a] = tree[a];
    if (first + b < n) out[first + b] = tree[b];
}
extern "C" __global__ void add_sums(unsigned int* out, const unsigned int* sums, int n) {
    const int i = blockIdx.x * 2 * THREADS + threadIdx.x;
    if (i < n) out[i] += sums[blockIdx.x];
    if (i + THREADS < n) out[i + THREADS] += sums[blockIdx.x];
}
