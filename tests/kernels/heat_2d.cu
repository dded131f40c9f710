// Explicit heat equation with a shared tile and its halo: threads at the tile's edge load one cell more.
#define SIDE 16

extern "C" __global__ void heat(const float* now, float* next, int width, int height, float rate) {
    __shared__ float tile[SIDE + 2][SIDE + 2];
    const int x = blockIdx.x * SIDE + threadIdx.x, y = blockIdx.y * SIDE + threadIdx.y;
    const int tx = threadIdx.x + 1, ty = threadIdx.y + 1;
    auto at = [=](int column, int row) {
        column = min(max(column, 0), width - 1);
        row = min(max(row, 0), height - 1);
        return now[row * width + column];
    };
    tile[ty][tx] = at(x, y);
    if (threadIdx.x == 0) tile[ty][0] = at(x - 1, y);
    if (threadIdx.x == SIDE - 1) tile[ty][SIDE + 1] = at(x + 1, y);
    if (threadIdx.y == 0) tile[0][tx] = at(x, y - 1);
    if (threadIdx.y == SIDE - 1) tile[SIDE + 1][tx] = at(x, y + 1);
    __syncthreads();
    if (x >= width || y >= height) return;
    const float around = tile[ty - 1][tx] + tile[ty + 1][tx] + tile[ty][tx - 1] + tile[ty][tx + 1];
    next[y * width + x] = tile[ty][tx] + rate * (around - 4.0f * tile[ty][tx]);
}
