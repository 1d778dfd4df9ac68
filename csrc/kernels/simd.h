/* One vector type, `vreal`, and the few operations that C's own operators do not give. The only file with intrinsics.
 *
 * GCC and Clang vector extensions supply + - * / < & | on whole vectors, so kernels read like scalar code. The element
 * type follows FBP_DOUBLE, the width follows the instruction set that the file is compiled for; FBP_VECTOR_BYTES widens it
 * beyond that, so that 512-bit logic can be tested on a machine with 256-bit registers.
 *
 * A comparison gives a `vint` of the same shape: all ones where true, 0 where false. */
#ifndef FBP_SIMD_H
#define FBP_SIMD_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "fastbp needs IEEE arithmetic: compile without -ffast-math and -ffinite-math-only"
#endif

#if defined(FBP_VECTOR_BYTES)
#define VBYTES FBP_VECTOR_BYTES
#elif defined(__AVX512F__)
#define VBYTES 64
#elif defined(__AVX2__)
#define VBYTES 32
#else
#define VBYTES 16
#endif

#ifdef FBP_DOUBLE
typedef double real;
typedef int64_t ireal;
typedef uint64_t ureal;
#else
typedef float real;
typedef int32_t ireal;
typedef uint32_t ureal;
#endif

#define ALWAYS_INLINE inline __attribute__((always_inline))
#define VL ((ptrdiff_t)(VBYTES / sizeof(real)))   /* lanes */

typedef real vreal __attribute__((vector_size(VBYTES)));
typedef ireal vint __attribute__((vector_size(VBYTES)));
typedef ureal vuint __attribute__((vector_size(VBYTES)));
typedef real vreal_unaligned __attribute__((vector_size(VBYTES), aligned(sizeof(real)), may_alias));

/* ---- loads and stores: no alignment needed; *_n touch the first n < VL elements only ---------------------------- */

static ALWAYS_INLINE vreal v_load(const real *p) { return *(const vreal_unaligned *)p; }
static ALWAYS_INLINE void v_store(real *p, vreal v) { *(vreal_unaligned *)p = v; }
static ALWAYS_INLINE vreal v_set(real s) { return s - (vreal){0}; }   /* s - 0 keeps the sign of s = -0 */

#if VBYTES == 64 && defined(__AVX512F__)
#ifdef FBP_DOUBLE
#define V_MASK(n) ((__mmask8)((1u << (n)) - 1))
static ALWAYS_INLINE vreal v_load_n(const real *p, ptrdiff_t n) { return (vreal)_mm512_maskz_loadu_pd(V_MASK(n), p); }
static ALWAYS_INLINE void v_store_n(real *p, vreal v, ptrdiff_t n) { _mm512_mask_storeu_pd(p, V_MASK(n), (__m512d)v); }
#else
#define V_MASK(n) ((__mmask16)((1u << (n)) - 1))
static ALWAYS_INLINE vreal v_load_n(const real *p, ptrdiff_t n) { return (vreal)_mm512_maskz_loadu_ps(V_MASK(n), p); }
static ALWAYS_INLINE void v_store_n(real *p, vreal v, ptrdiff_t n) { _mm512_mask_storeu_ps(p, V_MASK(n), (__m512)v); }
#endif
#elif VBYTES == 32 && defined(__AVX2__)
static ALWAYS_INLINE __m256i v_mask_n(ptrdiff_t n)
{
    static const ireal ones_then_zeros[2 * VBYTES / sizeof(real)] = {
#ifdef FBP_DOUBLE
        -1, -1, -1, -1
#else
        -1, -1, -1, -1, -1, -1, -1, -1
#endif
    };
    return _mm256_loadu_si256((const __m256i *)(ones_then_zeros + VL - n));
}
/* Stores go in parts: some processors take dozens of cycles for one under a mask. */
#ifdef FBP_DOUBLE
static ALWAYS_INLINE vreal v_load_n(const real *p, ptrdiff_t n) { return (vreal)_mm256_maskload_pd(p, v_mask_n(n)); }
static ALWAYS_INLINE void v_store_n(real *p, vreal v, ptrdiff_t n)
{
    __m128d part = _mm256_castpd256_pd128((__m256d)v);
    if (n & 2) _mm_storeu_pd(p, part), p += 2, part = _mm256_extractf128_pd((__m256d)v, 1);
    if (n & 1) _mm_store_sd(p, part);
}
#else
static ALWAYS_INLINE vreal v_load_n(const real *p, ptrdiff_t n) { return (vreal)_mm256_maskload_ps(p, v_mask_n(n)); }
static ALWAYS_INLINE void v_store_n(real *p, vreal v, ptrdiff_t n)
{
    __m128 part = _mm256_castps256_ps128((__m256)v);
    if (n & 4) _mm_storeu_ps(p, part), p += 4, part = _mm256_extractf128_ps((__m256)v, 1);
    if (n & 2) _mm_storel_pi((__m64 *)p, part), p += 2, part = _mm_movehl_ps(part, part);
    if (n & 1) _mm_store_ss(p, part);
}
#endif
#else
static ALWAYS_INLINE vreal v_load_n(const real *p, ptrdiff_t n)
{
    vreal v = {0};
    memcpy(&v, p, (size_t)n * sizeof(real));
    return v;
}
static ALWAYS_INLINE void v_store_n(real *p, vreal v, ptrdiff_t n) { memcpy(p, &v, (size_t)n * sizeof(real)); }
#endif

/* The first r elements, r <= VL. */
#if VBYTES == 64 && defined(__AVX512F__)
static ALWAYS_INLINE vreal v_part(const real *p, ptrdiff_t r) { return v_load_n(p, r); }   /* a mask may be full */
#else
static ALWAYS_INLINE vreal v_part(const real *p, ptrdiff_t r) { return r < VL ? v_load_n(p, r) : v_load(p); }
#endif
static ALWAYS_INLINE void v_put(real *p, vreal v, ptrdiff_t r) { if (r < VL) v_store_n(p, v, r); else v_store(p, v); }

/* To whole vectors' addresses, past the caches where the instruction set can; v_streamed comes after the last. */
#if VBYTES == 64 && defined(__AVX512F__)
static ALWAYS_INLINE void v_stream(real *p, vreal v) { _mm512_stream_si512((void *)p, (__m512i)v); }
static ALWAYS_INLINE void v_streamed(void) { _mm_sfence(); }
#elif VBYTES == 32 && defined(__AVX2__)
static ALWAYS_INLINE void v_stream(real *p, vreal v) { _mm256_stream_si256((__m256i *)(void *)p, (__m256i)v); }
static ALWAYS_INLINE void v_streamed(void) { _mm_sfence(); }
#else
static ALWAYS_INLINE void v_stream(real *p, vreal v) { v_store(p, v); }
static ALWAYS_INLINE void v_streamed(void) { }
#endif

/* ---- a*b + c with one rounding. The baseline set has no such instruction and rounds twice: its results form a
 * ---- numerics class of their own; all the others agree bit for bit. ------------------------------------------------ */

#if VBYTES == 64 && defined(__AVX512F__)
#ifdef FBP_DOUBLE
static ALWAYS_INLINE vreal v_fma(vreal a, vreal b, vreal c) { return (vreal)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c); }
static ALWAYS_INLINE vreal v_sqrt(vreal a) { return (vreal)_mm512_sqrt_pd((__m512d)a); }
#else
static ALWAYS_INLINE vreal v_fma(vreal a, vreal b, vreal c) { return (vreal)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
static ALWAYS_INLINE vreal v_sqrt(vreal a) { return (vreal)_mm512_sqrt_ps((__m512)a); }
#endif
#elif VBYTES == 32 && defined(__AVX2__) && defined(__FMA__)
#ifdef FBP_DOUBLE
static ALWAYS_INLINE vreal v_fma(vreal a, vreal b, vreal c) { return (vreal)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c); }
static ALWAYS_INLINE vreal v_sqrt(vreal a) { return (vreal)_mm256_sqrt_pd((__m256d)a); }
#else
static ALWAYS_INLINE vreal v_fma(vreal a, vreal b, vreal c) { return (vreal)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
static ALWAYS_INLINE vreal v_sqrt(vreal a) { return (vreal)_mm256_sqrt_ps((__m256)a); }
#endif
#elif VBYTES == 16 && defined(__aarch64__)
#ifdef FBP_DOUBLE
static ALWAYS_INLINE vreal v_fma(vreal a, vreal b, vreal c) { return (vreal)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b); }
static ALWAYS_INLINE vreal v_sqrt(vreal a) { return (vreal)vsqrtq_f64((float64x2_t)a); }
#else
static ALWAYS_INLINE vreal v_fma(vreal a, vreal b, vreal c) { return (vreal)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
static ALWAYS_INLINE vreal v_sqrt(vreal a) { return (vreal)vsqrtq_f32((float32x4_t)a); }
#endif
#else
#ifdef FBP_DOUBLE
#define SCALAR_FMA __builtin_fma
#define SCALAR_SQRT __builtin_sqrt
#else
#define SCALAR_FMA __builtin_fmaf
#define SCALAR_SQRT __builtin_sqrtf
#endif
static ALWAYS_INLINE vreal v_fma(vreal a, vreal b, vreal c)
{
#ifdef __FMA__
    for (ptrdiff_t i = 0; i < VL; i++) a[i] = SCALAR_FMA(a[i], b[i], c[i]);
    return a;
#else
    return a * b + c;
#endif
}
static ALWAYS_INLINE vreal v_sqrt(vreal a)
{
    for (ptrdiff_t i = 0; i < VL; i++) a[i] = SCALAR_SQRT(a[i]);
    return a;
}
#endif

/* *c = a*b + *c, in c's own register: compilers like to move accumulators about in long loops. `spread`: *a in every lane, which serves only here; some
 * processors take a third longer if it goes through a register of its own. */
#ifdef FBP_DOUBLE
#define FMA_ONTO(a) "vfmadd231pd " a ", %2, %0"
#define SPREAD "%1%{1to8%}"
#else
#define FMA_ONTO(a) "vfmadd231ps " a ", %2, %0"
#define SPREAD "%1%{1to16%}"
#endif
#if VBYTES == 64 && defined(__AVX512F__)
static ALWAYS_INLINE void v_fma_onto(vreal *c, vreal a, vreal b) { __asm__(FMA_ONTO("%1") : "+v"(*c) : "v"(a), "v"(b)); }
static ALWAYS_INLINE void v_fma_spread_onto(vreal *c, const real *a, vreal b) { __asm__(FMA_ONTO(SPREAD) : "+v"(*c) : "m"(*a), "v"(b)); }
#elif VBYTES == 32 && defined(__AVX2__) && defined(__FMA__)
static ALWAYS_INLINE void v_fma_onto(vreal *c, vreal a, vreal b) { __asm__(FMA_ONTO("%1") : "+x"(*c) : "x"(a), "x"(b)); }
static ALWAYS_INLINE void v_fma_spread_onto(vreal *c, const real *a, vreal b) { v_fma_onto(c, v_set(*a), b); }
#else
static ALWAYS_INLINE void v_fma_onto(vreal *c, vreal a, vreal b) { *c = v_fma(a, b, *c); }
static ALWAYS_INLINE void v_fma_spread_onto(vreal *c, const real *a, vreal b) { v_fma_onto(c, v_set(*a), b); }
#endif

/* ---- half a vector, where a whole one has 64 bytes ------------------------------------------------------------------ */

#if VBYTES == 64
typedef real vhalf __attribute__((vector_size(VBYTES / 2)));
#ifdef FBP_DOUBLE
static ALWAYS_INLINE vhalf v_low(vreal v) { return __builtin_shufflevector(v, v, 0, 1, 2, 3); }
static ALWAYS_INLINE vreal v_whole(vhalf v) { return __builtin_shufflevector(v, (vhalf){0}, 0, 1, 2, 3, 4, 5, 6, 7); }
#else
static ALWAYS_INLINE vhalf v_low(vreal v) { return __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7); }
static ALWAYS_INLINE vreal v_whole(vhalf v) { return __builtin_shufflevector(v, (vhalf){0}, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
#endif
/* *a * b + c. The compiler would load *a once for this and for a whole vector beside it, which takes longer than to spread it in each
 * instruction. */
static ALWAYS_INLINE vhalf v_fma_half(const real *a, vhalf b, vhalf c)
{
#if defined(FBP_DOUBLE) && defined(__AVX512VL__)
    __asm__("vfmadd231pd %2%{1to4%}, %1, %0" : "+v"(c) : "v"(b), "m"(*a));
    return c;
#elif defined(FBP_DOUBLE)
    return (vhalf)_mm256_fmadd_pd(_mm256_broadcast_sd(a), (__m256d)b, (__m256d)c);
#elif defined(__AVX512VL__)
    __asm__("vfmadd231ps %2%{1to8%}, %1, %0" : "+v"(c) : "v"(b), "m"(*a));
    return c;
#else
    return (vhalf)_mm256_fmadd_ps(_mm256_broadcast_ss(a), (__m256)b, (__m256)c);
#endif
}
#else
typedef vreal vhalf;
static ALWAYS_INLINE vhalf v_low(vreal v) { return v; }
static ALWAYS_INLINE vreal v_whole(vhalf v) { return v; }
static ALWAYS_INLINE vhalf v_fma_half(const real *a, vhalf b, vhalf c) { return v_fma(v_set(*a), b, c); }
#endif

/* ---- made of the operators: the same code, hence the same bits, on every instruction set --------------------------- */

static ALWAYS_INLINE vreal v_select(vint mask, vreal yes, vreal no) { return (vreal)((mask & (vint)yes) | (~mask & (vint)no)); }
static ALWAYS_INLINE vreal v_keep(vint mask, vreal v) { return (vreal)(mask & (vint)v); }      /* v where mask, else +0 */
static ALWAYS_INLINE vreal v_drop(vint mask, vreal v) { return (vreal)(~mask & (vint)v); }     /* +0 where mask, else v */

/* a > b ? a : b and a < b ? a : b, hence b if either is NaN; x86 has an instruction for just that. */
#if VBYTES == 64 && defined(__AVX512F__) && !defined(FBP_DOUBLE)
static ALWAYS_INLINE vreal v_max(vreal a, vreal b) { return (vreal)_mm512_max_ps((__m512)a, (__m512)b); }
static ALWAYS_INLINE vreal v_min(vreal a, vreal b) { return (vreal)_mm512_min_ps((__m512)a, (__m512)b); }
#elif VBYTES == 64 && defined(__AVX512F__)
static ALWAYS_INLINE vreal v_max(vreal a, vreal b) { return (vreal)_mm512_max_pd((__m512d)a, (__m512d)b); }
static ALWAYS_INLINE vreal v_min(vreal a, vreal b) { return (vreal)_mm512_min_pd((__m512d)a, (__m512d)b); }
#elif VBYTES == 32 && defined(__AVX2__) && !defined(FBP_DOUBLE)
static ALWAYS_INLINE vreal v_max(vreal a, vreal b) { return (vreal)_mm256_max_ps((__m256)a, (__m256)b); }
static ALWAYS_INLINE vreal v_min(vreal a, vreal b) { return (vreal)_mm256_min_ps((__m256)a, (__m256)b); }
#elif VBYTES == 32 && defined(__AVX2__)
static ALWAYS_INLINE vreal v_max(vreal a, vreal b) { return (vreal)_mm256_max_pd((__m256d)a, (__m256d)b); }
static ALWAYS_INLINE vreal v_min(vreal a, vreal b) { return (vreal)_mm256_min_pd((__m256d)a, (__m256d)b); }
#else
static ALWAYS_INLINE vreal v_max(vreal a, vreal b) { return v_select(a > b, a, b); }
static ALWAYS_INLINE vreal v_min(vreal a, vreal b) { return v_select(a < b, a, b); }
#endif

/* Whether any lane is not 0; NaN is not. */
#if VBYTES == 64 && defined(__AVX512F__) && !defined(FBP_DOUBLE)
static ALWAYS_INLINE int v_any(vreal v) { return _mm512_cmp_ps_mask((__m512)v, _mm512_setzero_ps(), _CMP_NEQ_UQ) != 0; }
#elif VBYTES == 64 && defined(__AVX512F__)
static ALWAYS_INLINE int v_any(vreal v) { return _mm512_cmp_pd_mask((__m512d)v, _mm512_setzero_pd(), _CMP_NEQ_UQ) != 0; }
#elif VBYTES == 32 && defined(__AVX2__) && !defined(FBP_DOUBLE)
static ALWAYS_INLINE int v_any(vreal v) { return _mm256_movemask_ps(_mm256_cmp_ps((__m256)v, _mm256_setzero_ps(), _CMP_NEQ_UQ)) != 0; }
#elif VBYTES == 32 && defined(__AVX2__)
static ALWAYS_INLINE int v_any(vreal v) { return _mm256_movemask_pd(_mm256_cmp_pd((__m256d)v, _mm256_setzero_pd(), _CMP_NEQ_UQ)) != 0; }
#else
static ALWAYS_INLINE int v_any(vreal v)
{
    int found = 0;
    for (ptrdiff_t i = 0; i < VL; i++) found |= v[i] != 0;
    return found;
}
#endif

static ALWAYS_INLINE vreal v_abs(vreal a) { return (vreal)((vint)a & ~(vint)v_set((real)-0.0)); }
static ALWAYS_INLINE vreal v_copysign(vreal magnitude, vreal sign)
{
    const vint bit = (vint)v_set((real)-0.0);
    return (vreal)(((vint)magnitude & ~bit) | ((vint)sign & bit));
}

/* ---- transposing a PIECE of each of PATCH rows: t[j][i] = element j of row i. A row's address is row[i], or group[i / PIECE] +
 * ---- i % PIECE * stride: fewer pointers than registers ---- */

enum { PIECE = 16 / sizeof(real), PATCH = VBYTES >= 32 ? 2 * PIECE : PIECE };   /* a piece is what one 128-bit load brings */
typedef real vpiece_unaligned __attribute__((vector_size(16), aligned(sizeof(real)), may_alias));
typedef real vpatch __attribute__((vector_size(PATCH * sizeof(real))));
typedef real vpatch_unaligned __attribute__((vector_size(PATCH * sizeof(real)), aligned(sizeof(real)), may_alias));

static ALWAYS_INLINE vpatch v_beside(const real *p, const real *q)   /* pieces; q's only in a wide patch */
{
#if VBYTES >= 32 && defined(FBP_DOUBLE)   /* a shuffle of two registers would wait for the only port that crosses lanes */
    return (vpatch)_mm256_insertf128_pd(_mm256_castpd128_pd256(_mm_loadu_pd(p)), _mm_loadu_pd(q), 1);
#elif VBYTES >= 32
    return (vpatch)_mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(q), 1);
#else
    (void)q;
    return *(const vpiece_unaligned *)p;
#endif
}

/* First, or last, elements of a and b in turns, within every 128 bits; and the first, or last, pairs. */
#if VBYTES >= 32 && !defined(FBP_DOUBLE)
#define LOW(a, b) __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13)
#define HIGH(a, b) __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15)
#define LOW_PAIRS(a, b) __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13)
#define HIGH_PAIRS(a, b) __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15)
#elif VBYTES >= 32
#define LOW(a, b) __builtin_shufflevector(a, b, 0, 4, 2, 6)
#define HIGH(a, b) __builtin_shufflevector(a, b, 1, 5, 3, 7)
#elif !defined(FBP_DOUBLE)
#define LOW(a, b) __builtin_shufflevector(a, b, 0, 4, 1, 5)
#define HIGH(a, b) __builtin_shufflevector(a, b, 2, 6, 3, 7)
#define LOW_PAIRS(a, b) __builtin_shufflevector(a, b, 0, 1, 4, 5)
#define HIGH_PAIRS(a, b) __builtin_shufflevector(a, b, 2, 3, 6, 7)
#else
#define LOW(a, b) __builtin_shufflevector(a, b, 0, 2)
#define HIGH(a, b) __builtin_shufflevector(a, b, 1, 3)
#endif

static ALWAYS_INLINE void v_transpose_pieces(const vpatch *r, vpatch *t)
{
#ifdef FBP_DOUBLE
    t[0] = LOW(r[0], r[1]), t[1] = HIGH(r[0], r[1]);
#else
    const vpatch low = LOW(r[0], r[1]), high = HIGH(r[0], r[1]), low2 = LOW(r[2], r[3]), high2 = HIGH(r[2], r[3]);
    t[0] = LOW_PAIRS(low, low2), t[1] = HIGH_PAIRS(low, low2), t[2] = LOW_PAIRS(high, high2), t[3] = HIGH_PAIRS(high, high2);
#endif
}

static ALWAYS_INLINE void v_transpose(const real *const *row, ptrdiff_t at, vpatch *t)
{
    vpatch r[PIECE];
    _Pragma("GCC unroll 4") for (int i = 0; i < PIECE; i++) r[i] = v_beside(row[i] + at, row[PATCH - PIECE + i] + at);
    v_transpose_pieces(r, t);
}

static ALWAYS_INLINE void v_transpose_groups(const real *const *group, ptrdiff_t stride, vpatch *t)
{
    vpatch r[PIECE];
    _Pragma("GCC unroll 4") for (int i = 0; i < PIECE; i++) r[i] = v_beside(group[0] + i * stride, group[PATCH / PIECE - 1] + i * stride);
    v_transpose_pieces(r, t);
}

#if VBYTES == 64
/* ---- the same for a whole cache line of each of VL rows ---- */

enum { HALF_LINE = 32 / sizeof(real) };
typedef real vhalf_line __attribute__((vector_size(32), aligned(sizeof(real)), may_alias));

static ALWAYS_INLINE vreal v_joined(const real *p, const real *q)
{
#if defined(__AVX512F__)
    return (vreal)_mm512_insertf64x4(_mm512_castpd256_pd512((__m256d)*(const vhalf_line *)p), (__m256d)*(const vhalf_line *)q, 1);
#elif defined(FBP_DOUBLE)
    return __builtin_shufflevector(*(const vhalf_line *)p, *(const vhalf_line *)q, 0, 1, 2, 3, 4, 5, 6, 7);
#else
    return __builtin_shufflevector(*(const vhalf_line *)p, *(const vhalf_line *)q, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#endif
}

/* Elements i, j (, k, l) of every 128 bits, of a and then b; and 128 bits i and i + 2 of both. */
#ifdef FBP_DOUBLE
#define OF_QUARTERS(a, b, i, j) __builtin_shufflevector(a, b, i, j, i + 2, j + 2, i + 4, j + 4, i + 6, j + 6)
#define QUARTERS(a, b, i) __builtin_shufflevector(a, b, 2 * i, 2 * i + 1, 2 * i + 4, 2 * i + 5, 2 * i + 8, 2 * i + 9, 2 * i + 12, 2 * i + 13)
#else
#define OF_QUARTERS(a, b, i, j, k, l) \
    __builtin_shufflevector(a, b, i, j, k, l, i + 4, j + 4, k + 4, l + 4, i + 8, j + 8, k + 8, l + 8, i + 12, j + 12, k + 12, l + 12)
#define QUARTER(i) 4 * (i), 4 * (i) + 1, 4 * (i) + 2, 4 * (i) + 3
#define QUARTERS(a, b, i) __builtin_shufflevector(a, b, QUARTER(i), QUARTER(i + 2), QUARTER(i + 4), QUARTER(i + 6))
#endif

static ALWAYS_INLINE void v_transpose_lines(const real *const *row, ptrdiff_t at, vreal *t)
{
    vreal s[2][2][PIECE];   /* of each half, of rows 0 to 2*PIECE - 1 and the others: element i of every piece */
    _Pragma("GCC unroll 2") for (int g = 0; g < 2; g++) {
        vreal r[2][PIECE];   /* rows side by side */
        _Pragma("GCC unroll 4") for (int i = 0; i < PIECE; i++) _Pragma("GCC unroll 2") for (int h = 0; h < 2; h++)
            r[h][i] = v_joined(row[g * 2 * PIECE + i] + at + h * HALF_LINE, row[g * 2 * PIECE + PIECE + i] + at + h * HALF_LINE);
        _Pragma("GCC unroll 2") for (int h = 0; h < 2; h++) {
#ifdef FBP_DOUBLE
            s[h][g][0] = OF_QUARTERS(r[h][0], r[h][1], 0, 8), s[h][g][1] = OF_QUARTERS(r[h][0], r[h][1], 1, 9);
#else
            const vreal first = OF_QUARTERS(r[h][0], r[h][1], 0, 16, 1, 17), last = OF_QUARTERS(r[h][0], r[h][1], 2, 18, 3, 19);
            const vreal first2 = OF_QUARTERS(r[h][2], r[h][3], 0, 16, 1, 17), last2 = OF_QUARTERS(r[h][2], r[h][3], 2, 18, 3, 19);
            s[h][g][0] = OF_QUARTERS(first, first2, 0, 1, 16, 17), s[h][g][1] = OF_QUARTERS(first, first2, 2, 3, 18, 19);
            s[h][g][2] = OF_QUARTERS(last, last2, 0, 1, 16, 17), s[h][g][3] = OF_QUARTERS(last, last2, 2, 3, 18, 19);
#endif
        }
    }
    _Pragma("GCC unroll 2") for (int h = 0; h < 2; h++) _Pragma("GCC unroll 4") for (int i = 0; i < PIECE; i++)
        t[h * HALF_LINE + i] = QUARTERS(s[h][0][i], s[h][1][i], 0), t[h * HALF_LINE + PIECE + i] = QUARTERS(s[h][0][i], s[h][1][i], 1);
}
#undef QUARTERS
#undef QUARTER
#undef OF_QUARTERS
#endif

static ALWAYS_INLINE void v_put_patch(real *p, vpatch v) { *(vpatch_unaligned *)p = v; }

#if VBYTES == 64 && defined(FBP_DOUBLE)
static ALWAYS_INLINE vpatch v_fma_patch(real a, vpatch b, vpatch c) { return (vpatch)_mm256_fmadd_pd(_mm256_set1_pd(a), (__m256d)b, (__m256d)c); }
#elif VBYTES == 64
static ALWAYS_INLINE vpatch v_fma_patch(real a, vpatch b, vpatch c) { return (vpatch)_mm256_fmadd_ps(_mm256_set1_ps(a), (__m256)b, (__m256)c); }
#else
static ALWAYS_INLINE vpatch v_fma_patch(real a, vpatch b, vpatch c) { return v_fma(v_set(a), b, c); }
#endif

/* ---- one double per lane: DOUBLES vectors of them, never one of twice the width, which the compiler would keep on the stack ---------- */

typedef double vdouble __attribute__((vector_size(VBYTES)));
typedef int64_t vlong __attribute__((vector_size(VBYTES)));
enum { DOUBLES = sizeof(double) / sizeof(real) };
#define EACH_DOUBLE _Pragma("GCC unroll 2") for (int h = 0; h < DOUBLES; h++)

#ifdef FBP_DOUBLE
static ALWAYS_INLINE vdouble v_widen(vreal v, int h) { (void)h; return v; }
static ALWAYS_INLINE vreal v_narrow(const vdouble *v) { return v[0]; }
#else
typedef real vlanes __attribute__((vector_size(VBYTES / 2)));
#if VBYTES == 64
#define FIRST_LANES 0, 1, 2, 3, 4, 5, 6, 7
#define OTHER_LANES 8, 9, 10, 11, 12, 13, 14, 15
#elif VBYTES == 32
#define FIRST_LANES 0, 1, 2, 3
#define OTHER_LANES 4, 5, 6, 7
#else
#define FIRST_LANES 0, 1
#define OTHER_LANES 2, 3
#endif
#if VBYTES == 64 && defined(__AVX512F__)   /* which the compiler would do in quarters */
static ALWAYS_INLINE vdouble v_converted(vlanes v) { return (vdouble)_mm512_cvtps_pd((__m256)v); }
static ALWAYS_INLINE vlanes v_rounded(vdouble v) { return (vlanes)_mm512_cvtpd_ps((__m512d)v); }
#else
static ALWAYS_INLINE vdouble v_converted(vlanes v) { return __builtin_convertvector(v, vdouble); }
static ALWAYS_INLINE vlanes v_rounded(vdouble v) { return __builtin_convertvector(v, vlanes); }
#endif

static ALWAYS_INLINE vdouble v_widen(vreal v, int h)
{
    const vlanes lanes = h ? __builtin_shufflevector(v, v, OTHER_LANES) : __builtin_shufflevector(v, v, FIRST_LANES);
    return v_converted(lanes);
}

static ALWAYS_INLINE vreal v_narrow(const vdouble *v)
{
    return __builtin_shufflevector(v_rounded(v[0]), v_rounded(v[1]), FIRST_LANES, OTHER_LANES);
}
#endif

/* No register keeps a vector beyond this point: else the compiler would keep constants across a loop around one that needs all registers. */
#if defined(__AVX512F__)
#define OTHER_REGISTERS , "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25", "xmm26", "xmm27", "xmm28", "xmm29", "xmm30", "xmm31"
#else
#define OTHER_REGISTERS
#endif
static ALWAYS_INLINE void v_forget(void)
{
#if defined(__x86_64__)
    __asm__ volatile("" ::: "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"
                     OTHER_REGISTERS);
#elif defined(__aarch64__)
    __asm__ volatile("" ::: "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v12", "v13", "v14", "v15", "v16", "v17", "v18", "v19",
                     "v20", "v21", "v22", "v23", "v24", "v25", "v26", "v27", "v28", "v29", "v30", "v31");
#endif
}
#undef OTHER_REGISTERS

/* ---- reductions: always over LANES accumulators in one fixed tree, whatever the vector width ----------------------- */

enum { LANES = 16 };
#define NLANES (LANES / (int)VL)   /* vectors that make up LANES accumulators */

static ALWAYS_INLINE double lanes_sum(const double *lane)
{
    double s[LANES];
    for (int i = 0; i < LANES; i++) s[i] = lane[i];
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) s[i] += s[i + half];
    return s[0];
}

#endif
