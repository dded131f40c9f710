// Integer intrinsics: bits, bytes, products, averages and dot products. All are exact.
#pragma once

COPPERMESH_INLINE int __popc(unsigned int x) { return __builtin_popcount(x); }
COPPERMESH_INLINE int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
COPPERMESH_INLINE int __clz(int x) { return x ? __builtin_clz((unsigned int)x) : 32; }
COPPERMESH_INLINE int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
COPPERMESH_INLINE int __ffs(int x) { return __builtin_ffs(x); }
COPPERMESH_INLINE int __ffsll(long long x) { return __builtin_ffsll(x); }
COPPERMESH_INLINE unsigned int __brev(unsigned int x) {
    x = (x >> 1 & 0x55555555u) | (x & 0x55555555u) << 1;
    x = (x >> 2 & 0x33333333u) | (x & 0x33333333u) << 2;
    x = (x >> 4 & 0x0f0f0f0fu) | (x & 0x0f0f0f0fu) << 4;
    return __builtin_bswap32(x);
}
COPPERMESH_INLINE unsigned long long __brevll(unsigned long long x) {
    return (unsigned long long)__brev((unsigned int)x) << 32 | __brev((unsigned int)(x >> 32));
}

// Position of the set bit that is `offset` bits from `base`: the first at or above it is 1, the first at or below -1;
// 0 asks whether `base` itself is set. 0xffffffff where there is none.
COPPERMESH_INLINE unsigned int __fns(unsigned int mask, unsigned int base, int offset) {
    if (offset == 0) return base < 32 && (mask >> base & 1) ? base : 0xffffffffu;
    const int step = offset > 0 ? 1 : -1;
    int left = offset > 0 ? offset : -offset;
    for (int bit = (int)base; bit >= 0 && bit < 32; bit += step)
        if ((mask >> bit & 1) && --left == 0) return (unsigned int)bit;
    return 0xffffffffu;
}

// --- bytes

COPPERMESH_INLINE unsigned int __byte_perm(unsigned int low, unsigned int high, unsigned int selector) {
    const unsigned long long bytes = (unsigned long long)high << 32 | low;
    unsigned int result = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned int from = selector >> (4 * i) & 7;
        result |= (unsigned int)(bytes >> (8 * from) & 0xff) << (8 * i);
    }
    return result;
}
COPPERMESH_INLINE unsigned int __funnelshift_l(unsigned int low, unsigned int high, unsigned int shift) {
    return (unsigned int)((((unsigned long long)high << 32 | low) << (shift & 31)) >> 32);
}
COPPERMESH_INLINE unsigned int __funnelshift_r(unsigned int low, unsigned int high, unsigned int shift) {
    return (unsigned int)(((unsigned long long)high << 32 | low) >> (shift & 31));
}
COPPERMESH_INLINE unsigned int __funnelshift_lc(unsigned int low, unsigned int high, unsigned int shift) {
    return (unsigned int)((((unsigned long long)high << 32 | low) << (shift < 32 ? shift : 32)) >> 32);
}
COPPERMESH_INLINE unsigned int __funnelshift_rc(unsigned int low, unsigned int high, unsigned int shift) {
    return (unsigned int)(((unsigned long long)high << 32 | low) >> (shift < 32 ? shift : 32));
}

// --- products

COPPERMESH_INLINE int __mul24(int x, int y) { return (x << 8 >> 8) * (y << 8 >> 8); }
COPPERMESH_INLINE unsigned int __umul24(unsigned int x, unsigned int y) {
    return (x & 0xffffffu) * (y & 0xffffffu);
}
COPPERMESH_INLINE int __mulhi(int x, int y) { return (int)((long long)x * y >> 32); }
COPPERMESH_INLINE unsigned int __umulhi(unsigned int x, unsigned int y) {
    return (unsigned int)((unsigned long long)x * y >> 32);
}
COPPERMESH_INLINE long long __mul64hi(long long x, long long y) { return (long long)((__int128)x * y >> 64); }
COPPERMESH_INLINE unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
    return (unsigned long long)((unsigned __int128)x * y >> 64);
}

// --- differences and averages

COPPERMESH_INLINE unsigned int __sad(int x, int y, unsigned int z) {
    return z + (x > y ? (unsigned int)x - (unsigned int)y : (unsigned int)y - (unsigned int)x);
}
COPPERMESH_INLINE unsigned int __usad(unsigned int x, unsigned int y, unsigned int z) {
    return z + (x > y ? x - y : y - x);
}
COPPERMESH_INLINE int __hadd(int x, int y) { return (int)(((long long)x + y) >> 1); }
COPPERMESH_INLINE int __rhadd(int x, int y) { return (int)(((long long)x + y + 1) >> 1); }
COPPERMESH_INLINE unsigned int __uhadd(unsigned int x, unsigned int y) {
    return (unsigned int)(((unsigned long long)x + y) >> 1);
}
COPPERMESH_INLINE unsigned int __urhadd(unsigned int x, unsigned int y) {
    return (unsigned int)(((unsigned long long)x + y + 1) >> 1);
}

// --- dot products of packed bytes and half words, added to c. Overflow wraps.

namespace coppermesh {
// Part number `index` of a word made of parts of type `Part`.
template <class Part> COPPERMESH_INLINE Part part(unsigned int word, int index) {
    return (Part)(word >> (8 * sizeof(Part) * index));
}
template <class A, class B> COPPERMESH_INLINE unsigned int dot4(unsigned int a, unsigned int b, unsigned int c) {
    for (int i = 0; i < 4; i++) c += (unsigned int)((int)part<A>(a, i) * (int)part<B>(b, i));
    return c;
}
// Two half words of `a` by the two bytes of `b` from byte `first` on.
template <class A, class B>
COPPERMESH_INLINE unsigned int dot2(unsigned int a, unsigned int b, unsigned int c, int first) {
    for (int i = 0; i < 2; i++) c += (unsigned int)((int)part<A>(a, i) * (int)part<B>(b, first + i));
    return c;
}
COPPERMESH_INLINE unsigned int word(char4 v) { return __builtin_bit_cast(unsigned int, v); }
COPPERMESH_INLINE unsigned int word(uchar4 v) { return __builtin_bit_cast(unsigned int, v); }
COPPERMESH_INLINE unsigned int word(short2 v) { return __builtin_bit_cast(unsigned int, v); }
COPPERMESH_INLINE unsigned int word(ushort2 v) { return __builtin_bit_cast(unsigned int, v); }
}  // namespace coppermesh

COPPERMESH_INLINE int __dp4a(int a, int b, int c) {
    return (int)coppermesh::dot4<signed char, signed char>((unsigned int)a, (unsigned int)b, (unsigned int)c);
}
COPPERMESH_INLINE unsigned int __dp4a(unsigned int a, unsigned int b, unsigned int c) {
    return coppermesh::dot4<unsigned char, unsigned char>(a, b, c);
}
COPPERMESH_INLINE int __dp4a(char4 a, char4 b, int c) {
    return __dp4a((int)coppermesh::word(a), (int)coppermesh::word(b), c);
}
COPPERMESH_INLINE unsigned int __dp4a(uchar4 a, uchar4 b, unsigned int c) {
    return __dp4a(coppermesh::word(a), coppermesh::word(b), c);
}
#define COPPERMESH_DP2A(name, first)                                                                       \
    COPPERMESH_INLINE int name(int a, int b, int c) {                                                      \
        return (int)coppermesh::dot2<short, signed char>(                                                  \
            (unsigned int)a, (unsigned int)b, (unsigned int)c, first);                                     \
    }                                                                                                      \
    COPPERMESH_INLINE unsigned int name(unsigned int a, unsigned int b, unsigned int c) {                  \
        return coppermesh::dot2<unsigned short, unsigned char>(a, b, c, first);                            \
    }                                                                                                      \
    COPPERMESH_INLINE int name(short2 a, char4 b, int c) {                                                 \
        return name((int)coppermesh::word(a), (int)coppermesh::word(b), c);                                \
    }                                                                                                      \
    COPPERMESH_INLINE unsigned int name(ushort2 a, uchar4 b, unsigned int c) {                             \
        return name(coppermesh::word(a), coppermesh::word(b), c);                                          \
    }
COPPERMESH_DP2A(__dp2a_lo, 0)
COPPERMESH_DP2A(__dp2a_hi, 2)
#undef COPPERMESH_DP2A
