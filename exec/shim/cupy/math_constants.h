// Kernels may include this name, CuPy's own for four of CUDA's constants.
#pragma once
#include "../math_constants.h"
