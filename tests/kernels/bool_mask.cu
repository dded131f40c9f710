// bool arrays in and out, bool and narrow scalars as arguments, short and unsigned short elements.
extern "C" __global__ void choose(const bool* mask, const short* a, const unsigned short* b, bool invert,
                                  signed char shift, short* out, bool* changed, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const bool take = mask[i] != invert;
    out[i] = take ? a[i] : (short)(b[i] >> shift);
    changed[i] = out[i] != a[i];
}
