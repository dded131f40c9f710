// `float16`, as CuPy's elementwise kernels know it: kept in 16 bits, computed with as float.
#pragma once
#include "../cuda_fp16.h"

class float16 {
    __half data_;

public:
    float16() = default;
    COPPERMESH_METHOD float16(float value) : data_(value) {}
    COPPERMESH_METHOD explicit float16(const __half& value) : data_(value) {}
    COPPERMESH_METHOD operator float() const { return data_; }
    COPPERMESH_METHOD bool isnan() const { return __hisnan(data_); }
    COPPERMESH_METHOD bool isinf() const { return __hisinf(data_) != 0; }
    COPPERMESH_METHOD bool isfinite() const { return (__half_as_ushort(data_) & 0x7c00) != 0x7c00; }
    COPPERMESH_METHOD bool signbit() const { return __half_as_ushort(data_) >> 15; }
#define COPPERMESH_ASSIGN(operation)                                                                       \
    template <class T> COPPERMESH_METHOD float16& operator operation##=(const T& value) {                  \
        return *this = float16((float)(*this operation value));                                            \
    }
    COPPERMESH_ASSIGN(+)
    COPPERMESH_ASSIGN(-)
    COPPERMESH_ASSIGN(*)
    COPPERMESH_ASSIGN(/)
#undef COPPERMESH_ASSIGN
};
COPPERMESH_INLINE bool isnan(float16 x) { return x.isnan(); }
COPPERMESH_INLINE bool isinf(float16 x) { return x.isinf(); }
COPPERMESH_INLINE bool isfinite(float16 x) { return x.isfinite(); }
COPPERMESH_INLINE bool signbit(float16 x) { return x.signbit(); }
COPPERMESH_INLINE float16 min(float16 x, float16 y) { return y < x ? y : x; }
COPPERMESH_INLINE float16 max(float16 x, float16 y) { return x < y ? y : x; }
namespace coppermesh {
template <> struct kind_of<float16> { static constexpr char value = 'f'; };
}
