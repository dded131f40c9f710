// Atomic functions for the types CUDA has them for; all relaxed, as CUDA's are, and between all threads of a launch.
#pragma once

namespace coppermesh {
template <int> struct bits;
template <> struct bits<2> { typedef unsigned short type; };
template <> struct bits<4> { typedef unsigned int type; };
template <> struct bits<8> { typedef unsigned long long type; };

// Replace *address by change(*address) in one step; gives the old value.
template <class T, class Change> COPPERMESH_INLINE T update(T* address, Change change) {
    typedef typename bits<sizeof(T)>::type Bits;
    Bits* place = (Bits*)address;
    Bits old = __atomic_load_n(place, __ATOMIC_RELAXED);
    for (;;) {
        const T before = __builtin_bit_cast(T, old);
        const Bits next = __builtin_bit_cast(Bits, change(before));
        if (__atomic_compare_exchange_n(place, &old, next, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) return before;
    }
}
}  // namespace coppermesh

// One function and its _block and _system forms (a launch is one process: they are the same here).
#define COPPERMESH_ATOMIC(T, name, expression)                                                             \
    COPPERMESH_INLINE T name(T* address, T value) { return expression; }                                   \
    COPPERMESH_INLINE T name##_block(T* address, T value) { return expression; }                           \
    COPPERMESH_INLINE T name##_system(T* address, T value) { return expression; }

#define COPPERMESH_FETCH(T, name, operation)                                                               \
    COPPERMESH_ATOMIC(T, name, __atomic_fetch_##operation(address, value, __ATOMIC_RELAXED))
COPPERMESH_FETCH(int, atomicAdd, add)
COPPERMESH_FETCH(unsigned int, atomicAdd, add)
COPPERMESH_FETCH(unsigned long long, atomicAdd, add)
COPPERMESH_FETCH(int, atomicSub, sub)
COPPERMESH_FETCH(unsigned int, atomicSub, sub)
#define COPPERMESH_BITWISE(T)                                                                              \
    COPPERMESH_FETCH(T, atomicAnd, and) COPPERMESH_FETCH(T, atomicOr, or) COPPERMESH_FETCH(T, atomicXor, xor)
COPPERMESH_BITWISE(int)
COPPERMESH_BITWISE(unsigned int)
COPPERMESH_BITWISE(unsigned long long)
#undef COPPERMESH_BITWISE
#undef COPPERMESH_FETCH

#define COPPERMESH_UPDATE(T, name, next)                                                                   \
    COPPERMESH_ATOMIC(T, name, (coppermesh::update(address, [=](T old) -> T { return next; })))
COPPERMESH_UPDATE(float, atomicAdd, old + value)
COPPERMESH_UPDATE(double, atomicAdd, old + value)
COPPERMESH_UPDATE(float, atomicExch, ((void)old, value))
#define COPPERMESH_EXTREMES(T)                                                                             \
    COPPERMESH_UPDATE(T, atomicMin, value < old ? value : old)                                             \
    COPPERMESH_UPDATE(T, atomicMax, old < value ? value : old)
COPPERMESH_EXTREMES(int)
COPPERMESH_EXTREMES(unsigned int)
COPPERMESH_EXTREMES(long long)
COPPERMESH_EXTREMES(unsigned long long)
#undef COPPERMESH_EXTREMES
COPPERMESH_UPDATE(unsigned int, atomicInc, old >= value ? 0u : old + 1u)
COPPERMESH_UPDATE(unsigned int, atomicDec, old == 0u || old > value ? value : old - 1u)
#undef COPPERMESH_UPDATE

// Vectors of floats: each component by itself is one step, as in CUDA.
#define COPPERMESH_ADD_PARTS(T, ...)                                                                       \
    COPPERMESH_INLINE T coppermesh_add(T* address, T value) { return T{__VA_ARGS__}; }                     \
    COPPERMESH_ATOMIC(T, atomicAdd, coppermesh_add(address, value))
COPPERMESH_ADD_PARTS(float2, atomicAdd(&address->x, value.x), atomicAdd(&address->y, value.y))
COPPERMESH_ADD_PARTS(float4, atomicAdd(&address->x, value.x), atomicAdd(&address->y, value.y),
                     atomicAdd(&address->z, value.z), atomicAdd(&address->w, value.w))
#undef COPPERMESH_ADD_PARTS

#define COPPERMESH_EXCHANGE(T)                                                                             \
    COPPERMESH_ATOMIC(T, atomicExch, __atomic_exchange_n(address, value, __ATOMIC_RELAXED))
COPPERMESH_EXCHANGE(int)
COPPERMESH_EXCHANGE(unsigned int)
COPPERMESH_EXCHANGE(unsigned long long)
#undef COPPERMESH_EXCHANGE
#undef COPPERMESH_ATOMIC

#define COPPERMESH_COMPARE_AND_SWAP(T, name)                                                               \
    COPPERMESH_INLINE T name(T* address, T compare, T value) {                                             \
        __atomic_compare_exchange_n(address, &compare, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);  \
        return compare;                                                                                    \
    }
#define COPPERMESH_SWAPS(T)                                                                                \
    COPPERMESH_COMPARE_AND_SWAP(T, atomicCAS)                                                              \
    COPPERMESH_COMPARE_AND_SWAP(T, atomicCAS_block)                                                        \
    COPPERMESH_COMPARE_AND_SWAP(T, atomicCAS_system)
COPPERMESH_SWAPS(int)
COPPERMESH_SWAPS(unsigned int)
COPPERMESH_SWAPS(unsigned long long)
COPPERMESH_SWAPS(unsigned short)
#undef COPPERMESH_SWAPS
#undef COPPERMESH_COMPARE_AND_SWAP

COPPERMESH_INLINE void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
COPPERMESH_INLINE void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
COPPERMESH_INLINE void __threadfence_system() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
