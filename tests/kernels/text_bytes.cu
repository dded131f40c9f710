// Text as bytes, four at a time by uchar4 and a reinterpreted pointer: capitals, and a count of words by atomics.
__device__ unsigned char capital(unsigned char c) { return c >= 'a' && c <= 'z' ? c - ('a' - 'A') : c; }
__device__ bool is_space(unsigned char c) { return c == ' ' || c == '\n' || c == '\t'; }

extern "C" __global__ void capitals(const unsigned char* text, unsigned char* out, int* words, int n) {
    const int i = 4 * (blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= n) return;
    const uchar4 c = *reinterpret_cast<const uchar4*>(text + i);
    *reinterpret_cast<uchar4*>(out + i) = make_uchar4(capital(c.x), capital(c.y), capital(c.z), capital(c.w));
    int begun = 0;
    for (int k = i; k < i + 4; ++k) begun += !is_space(text[k]) && (k == 0 || is_space(text[k - 1]));
    if (begun) atomicAdd(words, begun);
}
