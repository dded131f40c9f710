// A maximum of doubles built from a 64-bit atomicCAS, with the place where it was found (packed, by atomicMin).
__device__ double atomic_max(double* address, double value) {
    unsigned long long* bits = (unsigned long long*)address;
    unsigned long long seen = *bits;
    while (value > __longlong_as_double((long long)seen)) {
        const unsigned long long before = seen;
        seen = atomicCAS(bits, before, (unsigned long long)__double_as_longlong(value));
        if (seen == before) break;
    }
    return __longlong_as_double((long long)seen);
}

extern "C" __global__ void largest(const double* values, double* most, int n) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        atomic_max(most, values[i]);
}
extern "C" __global__ void first_place(const double* values, const double* most, int* place, int n) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        if (values[i] == *most) atomicMin(place, i);
}
