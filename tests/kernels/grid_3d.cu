// Three-dimensional grid and block: every index variable takes part, edges are cut off on all three axes.
__device__ __forceinline__ unsigned int flat(uint3 p, dim3 size) { return (p.z * size.y + p.y) * size.x + p.x; }

extern "C" __global__ void shear(const int* in, int* out, int nx, int ny, int nz) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x;
    const int y = blockIdx.y * blockDim.y + threadIdx.y;
    const int z = blockIdx.z * blockDim.z + threadIdx.z;
    if (x >= nx || y >= ny || z >= nz) return;
    const dim3 size(nx, ny, nz);
    const uint3 from = make_uint3((x + y + z) % nx, y, z);
    out[flat(make_uint3(x, y, z), size)] = in[flat(from, size)] + gridDim.z;
}
