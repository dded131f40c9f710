// Sparse matrix (CSR) by vector, one warp per row: rows of any length, __shfl_down_sync, lane arithmetic.
extern "C" __global__ void spmv(const int* starts, const int* columns, const double* values, const double* x,
                                double* y, int rows) {
    const int row = (blockIdx.x * blockDim.x + threadIdx.x) / warpSize, lane = threadIdx.x % warpSize;
    if (row >= rows) return;
    double sum = 0.0;
    for (int k = starts[row] + lane; k < starts[row + 1]; k += warpSize) sum += values[k] * x[columns[k]];
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_down_sync(0xffffffffu, sum, distance);
    if (lane == 0) y[row] = sum;
}
