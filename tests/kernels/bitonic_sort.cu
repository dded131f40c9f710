// Bitonic sort of rows in shared memory, keys with their values, in both directions by template.
template <typename T> __device__ void exchange(T& a, T& b) {
    const T kept = a;
    a = b;
    b = kept;
}

template <bool ascending> __device__ void sort_row(float* keys, int* values, int n) {
    extern __shared__ float shared_keys[];
    int* shared_values = (int*)(shared_keys + n);
    const int t = threadIdx.x;
    shared_keys[t] = keys[blockIdx.x * n + t];
    shared_values[t] = values[blockIdx.x * n + t];
    for (int size = 2; size <= n; size *= 2)
        for (int stride = size / 2; stride > 0; stride /= 2) {
            __syncthreads();
            const int other = t ^ stride;
            if (other > t) {
                const bool up = ((t & size) == 0) == ascending;
                if ((shared_keys[t] > shared_keys[other]) == up) {
                    exchange(shared_keys[t], shared_keys[other]);
                    exchange(shared_values[t], shared_values[other]);
                }
            }
        }
    __syncthreads();
    keys[blockIdx.x * n + t] = shared_keys[t];
    values[blockIdx.x * n + t] = shared_values[t];
}
extern "C" __global__ void sort_up(float* keys, int* values, int n) { sort_row<true>(keys, values, n); }
extern "C" __global__ void sort_down(float* keys, int* values, int n) { sort_row<false>(keys, values, n); }
