// Kernels may include this name; everything it promises is already there.
#pragma once
#include "coppermesh_cuda.h"
