// Levenshtein distance by anti-diagonals: one pair of words per block, three shared lines, a barrier per diagonal.
#define LONGEST 64

extern "C" __global__ void distances(const char* left, const char* right, int* result, int length) {
    __shared__ int lines[3][LONGEST + 1];
    const char *a = left + blockIdx.x * length, *b = right + blockIdx.x * length;
    const int row = threadIdx.x;
    for (int diagonal = 0; diagonal <= 2 * length; ++diagonal) {
        int *now = lines[diagonal % 3], *last = lines[(diagonal + 2) % 3], *before = lines[(diagonal + 1) % 3];
        const int column = diagonal - row;
        if (row <= length && column >= 0 && column <= length) {
            if (row == 0 || column == 0)
                now[row] = row + column;
            else
                now[row] = min(min(last[row], last[row - 1]) + 1, before[row - 1] + (a[row - 1] != b[column - 1]));
        }
        __syncthreads();
    }
    if (row == length) result[blockIdx.x] = lines[2 * length % 3][length];
}
