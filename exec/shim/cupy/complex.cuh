// Kernels may include this name, CuPy's own for complex<T>.
#pragma once
#include "coppermesh_complex.h"
