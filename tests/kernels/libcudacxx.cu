// The small headers of libcu++: fixed-width integers, traits, limits, arrays, pairs, bit operations, qualified maths.
#include <cuda/std/array>
#include <cuda/std/bit>
#include <cuda/std/cmath>
#include <cuda/std/cstdint>
#include <cuda/std/limits>
#include <cuda/std/type_traits>
#include <cuda/std/utility>

template <typename T> __device__ cuda::std::enable_if_t<cuda::std::is_integral<T>::value, T> halved(T x) { return x >> 1; }
template <typename T> __device__ cuda::std::enable_if_t<cuda::std::is_floating_point<T>::value, T> halved(T x) {
    return x * T(0.5);
}

extern "C" __global__ void library(const float* x, float* roots, uint32_t* turned, int64_t* wide, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    cuda::std::array<float, 3> terms = {x[i], halved(x[i]), cuda::std::numeric_limits<float>::epsilon()};
    cuda::std::pair<float, int> best(-cuda::std::numeric_limits<float>::infinity(), -1);
    for (cuda::std::size_t k = 0; k < terms.size(); ++k)
        if (terms[k] > best.first) best = cuda::std::make_pair(terms[k], (int)k);
    roots[i] = cuda::std::sqrt(best.first);
    const auto bits = cuda::std::bit_cast<uint32_t>(x[i]);
    turned[i] = cuda::std::rotl(bits, 5) ^ static_cast<uint32_t>(cuda::std::popcount(bits));
    int64_t low = halved<int64_t>(INT32_MAX), high = best.second;
    cuda::std::swap(low, high);
    wide[i] = low * 4294967296ll + std::move(high);
}
