// All-pairs shortest paths: one launch per intermediate vertex, each seeing what the last one wrote.
extern "C" __global__ void relax(int* distance, int n, int through) {
    const int to = blockIdx.x * blockDim.x + threadIdx.x, from = blockIdx.y;
    if (to >= n) return;
    const int by_way = distance[from * n + through] + distance[through * n + to];
    if (by_way < distance[from * n + to]) distance[from * n + to] = by_way;
}
