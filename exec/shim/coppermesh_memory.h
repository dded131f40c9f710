// Loads and stores with cache hints, which are plain ones here, and questions about address spaces.
#pragma once

namespace coppermesh {
// As CUDA has them: for its arithmetic and vector types. Any type is taken here.
template <class T> struct same { typedef T type; };
}  // namespace coppermesh

#define COPPERMESH_LOAD(name)                                                                              \
    template <class T> COPPERMESH_INLINE T name(const T* address) { return *address; }
COPPERMESH_LOAD(__ldg)
COPPERMESH_LOAD(__ldca)
COPPERMESH_LOAD(__ldcg)
COPPERMESH_LOAD(__ldcs)
COPPERMESH_LOAD(__ldlu)
#undef COPPERMESH_LOAD
// "Volatile": what another thread has stored is seen, so nothing read before may be used again.
template <class T> COPPERMESH_INLINE T __ldcv(const T* address) {
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    return *address;
}

// The value's type follows the address's: `__stcs(&floats[i], 1)` stores a float.
#define COPPERMESH_STORE(name)                                                                             \
    template <class T>                                                                                     \
    COPPERMESH_INLINE void name(T* address, typename coppermesh::same<T>::type value) { *address = value; }
COPPERMESH_STORE(__stwb)
COPPERMESH_STORE(__stcg)
COPPERMESH_STORE(__stcs)
COPPERMESH_STORE(__stwt)
#undef COPPERMESH_STORE
