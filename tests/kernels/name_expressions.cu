// Kernels that are templates, taken by name expressions: type and negative non-type arguments, a namespace.
template <typename T, int factor> __global__ void scaled(T* values, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) values[i] *= T(factor);
}

namespace tools {
template <typename T> __global__ void filled(T* values, T value, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) values[i] = value;
}
}  // namespace tools
