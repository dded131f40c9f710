// Dynamic shared memory cut into arrays of different types, by sizes known at launch only; static beside dynamic.
extern "C" __global__ void rank_values(const double* values, double* sorted, int* order, int n) {
    extern __shared__ __align__(16) unsigned char memory[];
    double* keys = reinterpret_cast<double*>(memory);
    int* places = reinterpret_cast<int*>(keys + n);
    __shared__ int ties;
    if (threadIdx.x == 0) ties = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) keys[i] = values[blockIdx.x * n + i];
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        int before = 0;
        for (int j = 0; j < n; ++j) before += keys[j] < keys[i] || (keys[j] == keys[i] && j < i);
        places[before] = i;
        if (before > 0 && before == n) atomicAdd(&ties, 1);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        sorted[blockIdx.x * n + i] = keys[places[i]];
        order[blockIdx.x * n + i] = places[i] + ties;
    }
}
