// A slice of a path tracer: nearest hit among spheres, normal, one reflected ray. Structures in constant memory,
// templates, operators on float3, references and pointers to locals, early exits.
struct Sphere {
    float3 centre;
    float radius;
    float albedo;
};
__constant__ Sphere spheres[3] = {{{0.0f, 0.0f, 3.0f}, 1.0f, 0.9f},
                                  {{1.2f, 0.3f, 2.5f}, 0.5f, 0.6f},
                                  {{-1.1f, -0.4f, 2.2f}, 0.4f, 0.3f}};

__device__ float3 operator+(float3 a, float3 b) { return make_float3(a.x + b.x, a.y + b.y, a.z + b.z); }
__device__ float3 operator-(float3 a, float3 b) { return make_float3(a.x - b.x, a.y - b.y, a.z - b.z); }
__device__ float3 operator*(float s, float3 a) { return make_float3(s * a.x, s * a.y, s * a.z); }
template <typename V> __device__ float dot(const V& a, const V& b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
__device__ float3 normalised(float3 a) { return (1.0f / sqrtf(dot(a, a))) * a; }

struct Hit {
    int which = -1;
    float distance = 1e30f;
};

__device__ bool strike(const Sphere& s, float3 from, float3 towards, float* distance) {
    const float3 offset = s.centre - from;
    const float along = dot(offset, towards);
    const float room = s.radius * s.radius - (dot(offset, offset) - along * along);
    if (room <= 0.0f) return false;
    *distance = along - sqrtf(room);
    return *distance > 1e-3f;
}

__device__ Hit nearest(float3 from, float3 towards) {
    Hit best;
    for (int i = 0; i < 3; ++i) {
        float distance;
        if (strike(spheres[i], from, towards, &distance) && distance < best.distance) {
            best.which = i;
            best.distance = distance;
        }
    }
    return best;
}

extern "C" __global__ void trace(float* light, int width, int height) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= width || y >= height) return;
    float3 from = make_float3(0.0f, 0.0f, 0.0f);
    float3 towards = normalised(make_float3((x + 0.5f) / width - 0.5f, (y + 0.5f) / height - 0.5f, 0.6f));
    const float3 sun = normalised(make_float3(0.5f, -1.0f, -0.7f));
    float collected = 0.0f, weight = 1.0f;
    for (int bounce = 0; bounce < 2; ++bounce) {
        const Hit hit = nearest(from, towards);
        if (hit.which < 0) {
            collected += weight * 0.1f;
            break;
        }
        const Sphere& s = spheres[hit.which];
        from = from + hit.distance * towards;
        const float3 normal = normalised(from - s.centre);
        collected += weight * s.albedo * fmaxf(0.0f, dot(normal, sun));
        towards = towards - (2.0f * dot(towards, normal)) * normal;
        weight *= 0.5f;
    }
    light[y * width + x] = collected;
}
