// CRC-32 of many records: a table made once per block in shared memory, byte pointers, unaligned lengths.
extern "C" __global__ void crc32(const unsigned char* bytes, const int* ends, unsigned int* sums, int records) {
    __shared__ unsigned int table[256];
    for (unsigned int i = threadIdx.x; i < 256; i += blockDim.x) {
        unsigned int value = i;
        for (int bit = 0; bit < 8; ++bit) value = value & 1 ? 0xEDB88320u ^ (value >> 1) : value >> 1;
        table[i] = value;
    }
    __syncthreads();
    const int record = blockIdx.x * blockDim.x + threadIdx.x;
    if (record >= records) return;
    const unsigned char* at = bytes + (record ? ends[record - 1] : 0);
    const unsigned char* const end = bytes + ends[record];
    unsigned int sum = ~0u;
    while (at != end) sum = table[(sum ^ *at++) & 0xff] ^ (sum >> 8);
    sums[record] = ~sum;
}
