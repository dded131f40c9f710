// One level of a breadth-first search: atomicCAS marks each vertex once, atomicAdd counts the new ones.
extern "C" __global__ void bfs_step(const int* starts, const int* neighbours, int* level, int* found, int n, int depth) {
    const int v = blockIdx.x * blockDim.x + threadIdx.x;
    if (v >= n || level[v] != depth) return;
    for (int e = starts[v]; e < starts[v + 1]; ++e)
        if (atomicCAS(&level[neighbours[e]], -1, depth + 1) == -1) atomicAdd(found, 1);
}
