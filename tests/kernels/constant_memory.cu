// __constant__ data set by the host (get_global) and beside it a table with an initialiser.
__constant__ float coefficients[4];
__constant__ int offsets[3] = {-1, 0, 1};

extern "C" __global__ void polynomial(const float* x, float* y, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float sum = coefficients[3];
    for (int k = 2; k >= 0; --k) sum = fmaf(sum, x[i], coefficients[k]);
    y[i] = sum + offsets[i % 3];
}
