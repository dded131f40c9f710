// CUDA C++ as host C++17, for g++, clang++ and zig c++.
//
// How it works. A kernel stays an ordinary function, and the index variables are thread-local variables. The blocks are
// dealt out to a few operating-system threads by an atomic counter, so `__device__` and `__constant__` data are ordinary
// globals, shared by all threads as on a GPU. Two launchers, of which a module gets one:
//   - threads that never wait for each other are called one by one from plain loops over the block (coppermesh_launch.h);
//   - with COPPERMESH_FIBERS, which cuda_build.py defines for modules that name shared memory, barriers, warp functions
//     or cooperative groups, each thread is a fiber that can wait (coppermesh_fibers.h).
//
// Nothing here includes a header of the host: compilers are run without their system include paths, and the few
// functions of libc and libm that kernels may call are declared in coppermesh_runtime.h and coppermesh_math.h.
#pragma once

#define __COPPERMESH_CPU__ 1
#define __CUDACC__ 1
#define __CUDACC_RTC__ 1
#define __CUDA_ARCH__ 800

#if defined(COPPERMESH_LOOPS)  // cuda_loops.py has prepared a kernel for a loop, in which it must be seen whole
#define __global__ __attribute__((visibility("protected"), always_inline))
#else
#define __global__ __attribute__((visibility("protected")))
#endif
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __builtin_align__(bytes) __attribute__((aligned(bytes)))
#if defined(__clang__)
#define __restrict__ __restrict
#endif

#if defined(COPPERMESH_FIBERS)
// One set for each operating-system thread, used by the block that it runs. In a function `static` is implied.
#define __shared__ thread_local
#endif

#define COPPERMESH_INLINE static inline __attribute__((always_inline, unused))
#define COPPERMESH_METHOD inline __attribute__((always_inline))

typedef __SIZE_TYPE__ size_t;
typedef __PTRDIFF_TYPE__ ptrdiff_t;
// Fixed-width names (uint32_t, ...) are in <cuda/std/cstdint>, as with NVRTC: kernels often define them themselves.
#ifndef NULL
#define NULL 0
#endif

#include "coppermesh_vectors.h"
#include "coppermesh_fault.h"
#if defined(COPPERMESH_FIBERS)
#include "coppermesh_fibers.h"
#include "coppermesh_warps.h"
#endif
#include "coppermesh_math.h"
#include "coppermesh_atomics.h"
#include "coppermesh_launch.h"

// Inline assembly is refused by the source check; these catch a spelling put together by token pasting.
#define asm coppermesh_no_inline_assembly
#define __asm coppermesh_no_inline_assembly
#define __asm__ coppermesh_no_inline_assembly
