// Gravity by tiles: float4 in shared memory, two barriers per tile, rsqrtf, several tiles and a partial last one.
#define TILE 64

__device__ float3 pull(float4 me, float4 other, float softening) {
    const float dx = other.x - me.x, dy = other.y - me.y, dz = other.z - me.z;
    const float inverse = rsqrtf(dx * dx + dy * dy + dz * dz + softening);
    const float weight = other.w * inverse * inverse * inverse;
    return make_float3(dx * weight, dy * weight, dz * weight);
}

extern "C" __global__ void accelerations(const float4* bodies, float* result, int n, float softening) {
    __shared__ float4 tile[TILE];
    const int me = blockIdx.x * TILE + threadIdx.x;
    const float4 mine = me < n ? bodies[me] : make_float4(0, 0, 0, 0);
    float3 sum = make_float3(0.0f, 0.0f, 0.0f);
    for (int first = 0; first < n; first += TILE) {
        const int other = first + threadIdx.x;
        tile[threadIdx.x] = other < n ? bodies[other] : make_float4(0, 0, 0, 0);
        __syncthreads();
        for (int j = 0; j < TILE; ++j) {
            const float3 a = pull(mine, tile[j], softening);
            sum.x += a.x, sum.y += a.y, sum.z += a.z;
        }
        __syncthreads();
    }
    if (me < n) {
        result[3 * me] = sum.x;
        result[3 * me + 1] = sum.y;
        result[3 * me + 2] = sum.z;
    }
}
