// Conversions with a rounding and with saturation, directed sums, reinterpreted bits: exact on every device.
extern "C" __global__ void convert(const float* x, int* ints, float* directed, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const float v = x[i];
    int* t = ints + 6 * i;
    t[0] = __float2int_rn(v), t[1] = __float2int_rz(v), t[2] = __float2int_ru(v), t[3] = __float2int_rd(v);
    t[4] = (int)__float2uint_rn(v), t[5] = __float_as_int(v);
    float* d = directed + 6 * i;
    d[0] = __fadd_ru(v, 1e-9f), d[1] = __fadd_rd(v, -1e-9f), d[2] = __fmul_rz(v, 1.1f), d[3] = __fdiv_ru(v, 3.0f);
    d[4] = __int2float_rd(t[5]), d[5] = __saturatef(v);
}
