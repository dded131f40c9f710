// SIMD within a 32-bit word: two half words (names end in 2) or four bytes (4), signed or unsigned, each on its own.
// Comparisons give all ones per part (`__vcmp...`) or a one (`__vset...`). `ss` and `us` mean saturating.
#pragma once

namespace coppermesh {
// Apply `each(x, y)` to the parts of two words; its result is cut to the part's width.
template <class Part, class Each> COPPERMESH_INLINE unsigned int each_part(unsigned int a, unsigned int b, Each each) {
    constexpr int width = 8 * sizeof(Part);
    constexpr unsigned int mask = (1u << width) - 1;
    unsigned int result = 0;
    for (int shift = 0; shift < 32; shift += width)
        result |= ((unsigned int)each((int)(Part)(a >> shift), (int)(Part)(b >> shift)) & mask) << shift;
    return result;
}
template <class Part, class Each> COPPERMESH_INLINE unsigned int sum_parts(unsigned int a, unsigned int b, Each each) {
    unsigned int result = 0;
    for (int shift = 0; shift < 32; shift += 8 * (int)sizeof(Part))
        result += (unsigned int)each((int)(Part)(a >> shift), (int)(Part)(b >> shift));
    return result;
}
template <class Part> COPPERMESH_INLINE int clamp_part(int x) {
    constexpr int least = (Part)-1 < (Part)0 ? -(1 << (8 * sizeof(Part) - 1)) : 0;
    constexpr int most = (Part)-1 < (Part)0 ? (1 << (8 * sizeof(Part) - 1)) - 1 : (1 << 8 * sizeof(Part)) - 1;
    return x < least ? least : x > most ? most : x;
}
COPPERMESH_INLINE int absolute(int x) { return x < 0 ? -x : x; }
}  // namespace coppermesh

#define COPPERMESH_PARTS(name, Part, expression)                                                           \
    COPPERMESH_INLINE unsigned int name(unsigned int a, unsigned int b) {                                  \
        return coppermesh::each_part<Part>(a, b, [](int x, int y) -> int { return expression; });          \
    }
#define COPPERMESH_PARTS1(name, Part, expression)                                                          \
    COPPERMESH_INLINE unsigned int name(unsigned int a) {                                                  \
        return coppermesh::each_part<Part>(a, a, [](int x, int) -> int { return expression; });            \
    }
#define COPPERMESH_COMPARE(name, Part, operation)                                                          \
    COPPERMESH_PARTS(__vcmp##name, Part, x operation y ? -1 : 0)                                           \
    COPPERMESH_PARTS(__vset##name, Part, x operation y ? 1 : 0)

#define COPPERMESH_SIMD(n, Signed, Unsigned)                                                               \
    COPPERMESH_PARTS(__vadd##n, Unsigned, x + y)                                                           \
    COPPERMESH_PARTS(__vsub##n, Unsigned, x - y)                                                           \
    COPPERMESH_PARTS(__vaddss##n, Signed, coppermesh::clamp_part<Signed>(x + y))                           \
    COPPERMESH_PARTS(__vsubss##n, Signed, coppermesh::clamp_part<Signed>(x - y))                           \
    COPPERMESH_PARTS(__vaddus##n, Unsigned, coppermesh::clamp_part<Unsigned>(x + y))                       \
    COPPERMESH_PARTS(__vsubus##n, Unsigned, coppermesh::clamp_part<Unsigned>(x - y))                       \
    COPPERMESH_PARTS(__vavgs##n, Signed, (x + y + 1) >> 1)                                                 \
    COPPERMESH_PARTS(__vavgu##n, Unsigned, (x + y + 1) >> 1)                                               \
    COPPERMESH_PARTS(__vhaddu##n, Unsigned, (x + y) >> 1)                                                  \
    COPPERMESH_PARTS(__vmaxs##n, Signed, x > y ? x : y)                                                    \
    COPPERMESH_PARTS(__vmaxu##n, Unsigned, x > y ? x : y)                                                  \
    COPPERMESH_PARTS(__vmins##n, Signed, x < y ? x : y)                                                    \
    COPPERMESH_PARTS(__vminu##n, Unsigned, x < y ? x : y)                                                  \
    COPPERMESH_PARTS(__vabsdiffs##n, Signed, coppermesh::absolute(x - y))                                  \
    COPPERMESH_PARTS(__vabsdiffu##n, Unsigned, coppermesh::absolute(x - y))                                \
    COPPERMESH_PARTS1(__vabs##n, Signed, coppermesh::absolute(x))                                          \
    COPPERMESH_PARTS1(__vabsss##n, Signed, coppermesh::clamp_part<Signed>(coppermesh::absolute(x)))        \
    COPPERMESH_PARTS1(__vneg##n, Signed, -x)                                                               \
    COPPERMESH_PARTS1(__vnegss##n, Signed, coppermesh::clamp_part<Signed>(-x))                             \
    COPPERMESH_INLINE unsigned int __vsads##n(unsigned int a, unsigned int b) {                            \
        return coppermesh::sum_parts<Signed>(a, b, [](int x, int y) { return coppermesh::absolute(x - y); });\
    }                                                                                                      \
    COPPERMESH_INLINE unsigned int __vsadu##n(unsigned int a, unsigned int b) {                            \
        return coppermesh::sum_parts<Unsigned>(a, b, [](int x, int y) { return coppermesh::absolute(x - y); });\
    }                                                                                                      \
    COPPERMESH_COMPARE(eq##n, Unsigned, ==)                                                                \
    COPPERMESH_COMPARE(ne##n, Unsigned, !=)                                                                \
    COPPERMESH_COMPARE(ges##n, Signed, >=)                                                                 \
    COPPERMESH_COMPARE(gts##n, Signed, >)                                                                  \
    COPPERMESH_COMPARE(les##n, Signed, <=)                                                                 \
    COPPERMESH_COMPARE(lts##n, Signed, <)                                                                  \
    COPPERMESH_COMPARE(geu##n, Unsigned, >=)                                                               \
    COPPERMESH_COMPARE(gtu##n, Unsigned, >)                                                                \
    COPPERMESH_COMPARE(leu##n, Unsigned, <=)                                                               \
    COPPERMESH_COMPARE(ltu##n, Unsigned, <)

COPPERMESH_SIMD(2, short, unsigned short)
COPPERMESH_SIMD(4, signed char, unsigned char)
#undef COPPERMESH_SIMD
#undef COPPERMESH_COMPARE

// --- dynamic-programming helpers: max and min of two or three, of a sum, with zero as a floor (`relu`)

#define COPPERMESH_DPX(T, suffix, width)                                                                   \
    COPPERMESH_INLINE T __vimax3_##suffix(T a, T b, T c) { return width(max, width(max, a, b), c); }       \
    COPPERMESH_INLINE T __vimin3_##suffix(T a, T b, T c) { return width(min, width(min, a, b), c); }       \
    COPPERMESH_INLINE T __viaddmax_##suffix(T a, T b, T c) { return width(max, width(add, a, b), c); }     \
    COPPERMESH_INLINE T __viaddmin_##suffix(T a, T b, T c) { return width(min, width(add, a, b), c); }
#define COPPERMESH_DPX_RELU(T, suffix, width)                                                              \
    COPPERMESH_INLINE T __vimax_##suffix##_relu(T a, T b) { return width(max, width(max, a, b), 0); }      \
    COPPERMESH_INLINE T __vimin_##suffix##_relu(T a, T b) { return width(max, width(min, a, b), 0); }      \
    COPPERMESH_INLINE T __vimax3_##suffix##_relu(T a, T b, T c) {                                          \
        return width(max, __vimax3_##suffix(a, b, c), 0);                                                  \
    }                                                                                                      \
    COPPERMESH_INLINE T __vimin3_##suffix##_relu(T a, T b, T c) {                                          \
        return width(max, __vimin3_##suffix(a, b, c), 0);                                                  \
    }                                                                                                      \
    COPPERMESH_INLINE T __viaddmax_##suffix##_relu(T a, T b, T c) {                                        \
        return width(max, __viaddmax_##suffix(a, b, c), 0);                                                \
    }                                                                                                      \
    COPPERMESH_INLINE T __viaddmin_##suffix##_relu(T a, T b, T c) {                                        \
        return width(max, __viaddmin_##suffix(a, b, c), 0);                                                \
    }

namespace coppermesh {
template <class T> COPPERMESH_INLINE T word_max(T a, T b) { return a > b ? a : b; }
template <class T> COPPERMESH_INLINE T word_min(T a, T b) { return a < b ? a : b; }
template <class T> COPPERMESH_INLINE T word_add(T a, T b) { return (T)((unsigned int)a + (unsigned int)b); }
}  // namespace coppermesh
#define COPPERMESH_S32(operation, a, b) coppermesh::word_##operation<int>(a, b)
#define COPPERMESH_U32(operation, a, b) coppermesh::word_##operation<unsigned int>(a, b)
#define COPPERMESH_S16_max __vmaxs2
#define COPPERMESH_S16_min __vmins2
#define COPPERMESH_S16_add __vadd2
#define COPPERMESH_U16_max __vmaxu2
#define COPPERMESH_U16_min __vminu2
#define COPPERMESH_U16_add __vadd2
#define COPPERMESH_S16(operation, a, b) COPPERMESH_S16_##operation(a, b)
#define COPPERMESH_U16(operation, a, b) COPPERMESH_U16_##operation(a, b)
COPPERMESH_DPX(int, s32, COPPERMESH_S32)
COPPERMESH_DPX(unsigned int, u32, COPPERMESH_U32)
COPPERMESH_DPX(unsigned int, s16x2, COPPERMESH_S16)
COPPERMESH_DPX(unsigned int, u16x2, COPPERMESH_U16)
COPPERMESH_DPX_RELU(int, s32, COPPERMESH_S32)
COPPERMESH_DPX_RELU(unsigned int, s16x2, COPPERMESH_S16)
#undef COPPERMESH_DPX
#undef COPPERMESH_DPX_RELU

// Max or min of two, and whether the first argument is the one given (ties count).
#define COPPERMESH_BOUND(T, suffix, order, operation)                                                      \
    COPPERMESH_INLINE T __vib##order##_##suffix(T a, T b, bool* first) {                                   \
        *first = a operation b;                                                                            \
        return *first ? a : b;                                                                             \
    }
COPPERMESH_BOUND(int, s32, max, >=)
COPPERMESH_BOUND(int, s32, min, <=)
COPPERMESH_BOUND(unsigned int, u32, max, >=)
COPPERMESH_BOUND(unsigned int, u32, min, <=)
#undef COPPERMESH_BOUND
#define COPPERMESH_BOUND2(suffix, order, which, Part, operation)                                           \
    COPPERMESH_INLINE unsigned int __vib##order##_##suffix(unsigned int a, unsigned int b, bool* high, bool* low) {\
        *high = (Part)(a >> 16) operation (Part)(b >> 16);                                                 \
        *low = (Part)a operation (Part)b;                                                                  \
        return which(a, b);                                                                                \
    }
COPPERMESH_BOUND2(s16x2, max, __vmaxs2, short, >=)
COPPERMESH_BOUND2(s16x2, min, __vmins2, short, <=)
COPPERMESH_BOUND2(u16x2, max, __vmaxu2, unsigned short, >=)
COPPERMESH_BOUND2(u16x2, min, __vminu2, unsigned short, <=)
#undef COPPERMESH_BOUND2
#undef COPPERMESH_PARTS
#undef COPPERMESH_PARTS1
