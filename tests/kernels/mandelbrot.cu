// Divergent loop per pixel on a two-dimensional grid; float2 with operators of its own; constexpr; integer counts.
constexpr int kLimit = 64;

__device__ float2 operator+(float2 a, float2 b) { return make_float2(a.x + b.x, a.y + b.y); }
__device__ float2 square(float2 z) { return make_float2(z.x * z.x - z.y * z.y, 2.0f * z.x * z.y); }

extern "C" __global__ void mandelbrot(int* counts, int width, int height, float left, float top, float step) {
    const int column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y * blockDim.y + threadIdx.y;
    if (column >= width || row >= height) return;
    const float2 c = make_float2(left + step * column, top + step * row);
    float2 z = make_float2(0.0f, 0.0f);
    int count = 0;
    while (count < kLimit && z.x * z.x + z.y * z.y <= 4.0f) {
        z = square(z) + c;
        ++count;
    }
    counts[row * width + column] = count;
}
