// Jacobi sweeps for a diagonally dominant system in double precision; many launches, two arrays in turn.
extern "C" __global__ void sweep(const double* matrix, const double* right, const double* x, double* next, int n) {
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= n) return;
    double rest = right[row];
    for (int column = 0; column < n; ++column)
        if (column != row) rest -= matrix[row * n + column] * x[column];
    next[row] = rest / matrix[row * n + row];
}
