// Conway's game on a torus, cells as bytes; conditional sums of bool; ping-pong between two arrays.
extern "C" __global__ void generation(const unsigned char* cells, unsigned char* next, int width, int height) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= width || y >= height) return;
    int alive = 0;
    for (int dy = -1; dy <= 1; ++dy)
        for (int dx = -1; dx <= 1; ++dx) {
            if (dx == 0 && dy == 0) continue;
            alive += cells[(y + dy + height) % height * width + (x + dx + width) % width];
        }
    const bool lives = alive == 3 || (alive == 2 && cells[y * width + x]);
    next[y * width + x] = lives;
}
