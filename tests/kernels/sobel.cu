// Edges of a grey image: unsigned bytes in, signed 16-bit gradients and saturated magnitude out; borders clamp.
__device__ int pixel(const unsigned char* image, int x, int y, int width, int height) {
    x = x < 0 ? 0 : x >= width ? width - 1 : x;
    y = y < 0 ? 0 : y >= height ? height - 1 : y;
    return image[y * width + x];
}

extern "C" __global__ void sobel(const unsigned char* image, short2* gradient, unsigned char* edge, int width,
                                 int height) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= width || y >= height) return;
    int gx = 0, gy = 0;
    for (int d = -1; d <= 1; ++d) {
        const int weight = 2 - abs(d);
        gx += weight * (pixel(image, x + 1, y + d, width, height) - pixel(image, x - 1, y + d, width, height));
        gy += weight * (pixel(image, x + d, y + 1, width, height) - pixel(image, x + d, y - 1, width, height));
    }
    gradient[y * width + x] = make_short2((short)gx, (short)gy);
    edge[y * width + x] = (unsigned char)min(abs(gx) + abs(gy), 255);
}
