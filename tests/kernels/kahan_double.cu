// Double precision: compensated sums per row, fma for the exact error of a product, sqrt and division.
extern "C" __global__ void norms(const double* rows, double* sums, double* lengths, int columns, int n) {
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= n) return;
    double sum = 0.0, lost = 0.0, square = 0.0, square_lost = 0.0;
    for (int i = 0; i < columns; ++i) {
        const double x = rows[row * columns + i];
        const double y = __dsub_rn(x, lost), t = __dadd_rn(sum, y);
        lost = __dsub_rn(__dsub_rn(t, sum), y);
        sum = t;
        const double product = __dmul_rn(x, x), error = fma(x, x, -product);
        const double next = __dadd_rn(square, product);
        square_lost += (product - (next - square)) + error;
        square = next;
    }
    sums[row] = sum;
    lengths[row] = sqrt(square + square_lost);
}
