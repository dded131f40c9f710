// Four bytes or two half words in a register: saturating sums, averages, extremes, comparisons, dot products.
extern "C" __global__ void packed(const unsigned int* a, const unsigned int* b, unsigned int* out, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const unsigned int x = a[i], y = b[i];
    const unsigned int results[12] = {__vadd4(x, y),    __vaddss4(x, y),  __vsubus4(x, y), __vavgu4(x, y),
                                      __vmaxs4(x, y),   __vminu2(x, y),   __vabsdiffu4(x, y), __vsadu4(x, y),
                                      __vcmpgts2(x, y), __vseteq4(x, y), __vsubss2(x, y), __vabsss2(x)};
    for (int k = 0; k < 12; ++k) out[k * n + i] = results[k];
}
extern "C" __global__ void dots(const int* a, const int* b, int* out, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = __dp4a(a[i], b[i], i) + (int)__dp4a((unsigned int)a[i], (unsigned int)b[i], 0u);
}
