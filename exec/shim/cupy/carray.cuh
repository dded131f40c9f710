// What kernels use of the header that CuPy puts before generated ones: M_PI, and a few type traits by CuPy's names.
// Arrays reach kernels as pointers, so CArray itself is not here.
#pragma once
#include "coppermesh_cuda.h"

#ifndef M_PI
#define M_PI 3.1415926535897932384626433832795
#endif

namespace cupy {
namespace type_traits {
template <bool Condition, class T, class F> struct conditional { typedef T type; };
template <class T, class F> struct conditional<false, T, F> { typedef F type; };
template <bool Condition, class T = void> struct enable_if {};
template <class T> struct enable_if<true, T> { typedef T type; };
template <class T, class U> struct is_same { static const bool value = false; };
template <class T> struct is_same<T, T> { static const bool value = true; };
}  // namespace type_traits
}  // namespace cupy
