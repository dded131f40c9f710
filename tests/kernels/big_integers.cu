// Sums and products of 256-bit integers, eight words each: carries by comparison, __umulhi, 64-bit accumulators.
template <int words> struct Big {
    unsigned int w[words];
};
typedef Big<8> Big256;

template <int words> __device__ unsigned int add(Big<words>& sum, const Big<words>& a, const Big<words>& b) {
    unsigned int carry = 0;
#pragma unroll
    for (int i = 0; i < words; ++i) {
        const unsigned int partial = a.w[i] + carry, low = partial < carry;
        sum.w[i] = partial + b.w[i];
        carry = low + (sum.w[i] < partial);
    }
    return carry;
}
__device__ void multiply(Big256& product, const Big256& a, const Big256& b) {
    for (int i = 0; i < 8; ++i) product.w[i] = 0;
    for (int i = 0; i < 8; ++i) {
        unsigned long long carry = 0;
        for (int j = 0; i + j < 8; ++j) {
            const unsigned int low = a.w[i] * b.w[j];
            carry += (unsigned long long)low + product.w[i + j];
            product.w[i + j] = (unsigned int)carry;
            carry = (carry >> 32) + __umulhi(a.w[i], b.w[j]);
        }
    }
}

extern "C" __global__ void big_arithmetic(const Big256* a, const Big256* b, Big256* sums, unsigned int* carries,
                                          Big256* products, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    carries[i] = add(sums[i], a[i], b[i]);
    multiply(products[i], a[i], b[i]);
}
