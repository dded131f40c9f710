// Discrete cosine transform of 8x8 tiles of an image: rows, then columns, by a table in constant memory.
__constant__ float cosines[8] = {1.0f,        0.98078528f, 0.92387953f, 0.83146961f,
                                 0.70710678f, 0.55557023f, 0.38268343f, 0.19509032f};

// cos(pi k / 16), from the table's quarter turn.
__device__ float cosine(int k) {
    k &= 31;
    const float sign = k > 8 && k < 24 ? -1.0f : 1.0f;
    const int mirrored = k <= 8 ? k : k <= 16 ? 16 - k : k <= 24 ? k - 16 : 32 - k;
    return mirrored == 8 ? 0.0f : sign * cosines[mirrored];
}

extern "C" __global__ void dct(const float* image, float* out, int width) {
    __shared__ float pixels[8][9], rows[8][9];
    const int x = threadIdx.x, y = threadIdx.y;
    const int place = (blockIdx.y * 8 + y) * width + blockIdx.x * 8 + x;
    pixels[y][x] = image[place];
    __syncthreads();
    float sum = 0.0f;
    for (int k = 0; k < 8; ++k) sum += pixels[y][k] * cosine((2 * k + 1) * x);
    rows[y][x] = sum * (x == 0 ? 0.35355339f : 0.5f);
    __syncthreads();
    sum = 0.0f;
    for (int k = 0; k < 8; ++k) sum += rows[k][x] * cosine((2 * k + 1) * y);
    out[place] = sum * (y == 0 ? 0.35355339f : 0.5f);
}
