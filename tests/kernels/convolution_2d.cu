// Convolution with a 5x5 stencil in constant memory: the whole apron is loaded in a loop over the tile's elements.
#define SIDE 16
#define REACH 2
#define LOADED (SIDE + 2 * REACH)
__constant__ int stencil[5][5] = {{1, 4, 6, 4, 1}, {4, 16, 24, 16, 4}, {6, 24, -476, 24, 6}, {4, 16, 24, 16, 4}, {1, 4, 6, 4, 1}};

extern "C" __global__ void convolve(const int* in, int* out, int width, int height) {
    __shared__ int tile[LOADED][LOADED];
    const int left = blockIdx.x * SIDE - REACH, top = blockIdx.y * SIDE - REACH;
    const int t = threadIdx.y * SIDE + threadIdx.x;
    for (int i = t; i < LOADED * LOADED; i += SIDE * SIDE) {
        const int x = left + i % LOADED, y = top + i / LOADED;
        tile[i / LOADED][i % LOADED] = x >= 0 && x < width && y >= 0 && y < height ? in[y * width + x] : 0;
    }
    __syncthreads();
    const int x = blockIdx.x * SIDE + threadIdx.x, y = blockIdx.y * SIDE + threadIdx.y;
    if (x >= width || y >= height) return;
    int sum = 0;
    for (int v = 0; v < 5; ++v)
        for (int u = 0; u < 5; ++u) sum += stencil[v][u] * tile[threadIdx.y + v][threadIdx.x + u];
    out[y * width + x] = sum;
}
