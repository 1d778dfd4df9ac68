/* Register tiles: a few rows of A times a few vectors of B, and what becomes of the sums before they are stored. */

enum { NEAR = 32 };   /* terms before the end of a tile when the next one's C is fetched */
enum { STEPS = 4 };   /* terms at a time: what moves pointers takes the place of multiplications */

/* The last terms of a tile go row by row, so that there is arithmetic between the stores: of 64 bytes, the processor takes one while it
 * multiplies three times. Other registers are too few for more than one term. */
enum { LAST = VBYTES < 64 ? 1 : NV == 2 ? 3 : 2 };

/* What becomes of a block's sums, in one register; FAR: C is not in the first cache, or will have left it. */
enum { CONTINUES = 1, ADDS = 2, DESCENDS = 4, BIASES = 8, RECTIFIES = 16, MASKS = 32, SUMS = 64, FAR = 128 };

enum { SHARED_BYTES = 16 << 10 };   /* of C: a line that another core has read takes as long as some hundred multiply-adds */

static int what_it_does(const fbp_block *q)
{
    const fbp_epilogue *e = q->epilogue;
    const int start = q->start == FBP_CONTINUE ? CONTINUES : q->start == FBP_ADD ? ADDS : q->start == FBP_DESCEND ? DESCENDS : 0;
    const size_t near = q->shared ? SHARED_BYTES : A_BYTES;
    const int far = q->k >= 4 * NEAR || (q->k >= NEAR && (size_t)(q->m * q->n) * sizeof(real) > near) ? FAR : 0;
    return start | far | (e ? (e->bias != NULL) * BIASES | (e->act == FBP_RELU) * (e->y ? MASKS : RECTIFIES) | fbp_sums_in_tiles(e) * SUMS : 0);
}

enum { WHOLE, RAGGED, HALF, PADDED };   /* what exists of a tile's last vector: all, a part, at most half of it; a part in C, all in B */

/* One tile of `mr` rows and `nv` vectors, the last of them `ragged` as above, of an A by rows (a_col 1) or by columns (a_row 1): compile-time
 * constants where this is inlined. soon: from here on memory is fetched to the second cache, a row of a panel in STEPS terms. nr: columns that exist.
 * Half a vector goes through instructions of half the width, which some processors run twice as often. */
static ALWAYS_INLINE void tile(const int mr, const int nv, const int ragged, const int upright, const fbp_block *q, const int does, const real *a,
                               const real *b, const real *soon, real *c, ptrdiff_t nr, ptrdiff_t i0, ptrdiff_t j0)
{
    const ptrdiff_t tail = nr - (nv - 1) * VL, a_row = upright ? 1 : q->a_row, a_col = upright ? q->a_col : 1, b_row = q->b_row, ldc = q->ldc;
    vreal acc[MR][NV];
#define ROWS _Pragma("GCC unroll 16") for (int i = 0; i < mr; i++)
#define VECTORS(n) _Pragma("GCC unroll 4") for (int v = 0; v < n; v++)
#define LOAD(p, v) (ragged && (v) == nv - 1 ? v_load_n((p) + (v) * VL, tail) : v_load((p) + (v) * VL))
#define PUT(p, v, x) (ragged && (v) == nv - 1 ? v_store_n((p) + (v) * VL, x, tail) : v_store((p) + (v) * VL, x))
    /* From row to row; hidden, else the compiler would work out where all of them lie before the loop and keep that on the stack. */
#define NEXT(p, stride) { p += stride; __asm__("" : "+r"(p)); }
    ROWS VECTORS(nv) acc[i][v] = (vreal){0};
    if (does & CONTINUES) {
        const real *from = c;
        ROWS { VECTORS(nv) acc[i][v] = LOAD(from, v); NEXT(from, ldc) }
    }

    /* The next tile of C is wanted now, as this core's own, and in the first cache shortly before its time: A and B stream through that one and
     * may push it out again. */
    const real *next = c + mr * ldc;
    if (does & FAR) ROWS { VECTORS(nv) __builtin_prefetch(next + v * VL, 1); NEXT(next, ldc) }
    const real *row[(MR + 2) / 3];   /* every third row has its pointer, the two after it are one and two strides away; upright, one is enough */
    _Pragma("GCC unroll 8") for (int i = 0; i < mr; i += 3) row[i / 3] = a + i * a_row;
    const int whole = ragged == HALF ? nv - 1 : nv;
    vhalf half[MR];
    if (ragged == HALF) ROWS half[i] = v_low(acc[i][nv - 1]);
    vreal bv[LAST][NV];
#define LOAD_B(p) VECTORS(nv) bv[p][v] = ragged == PADDED ? v_load(b + (p) * b_row + v * VL) : LOAD(b + (p) * b_row, v)
#define TERM(from, p) { \
        const real *ai = from; \
        if (whole == 1) v_fma_spread_onto(&acc[i][0], ai, bv[p][0]); \
        else { const vreal x = v_set(*ai); VECTORS(whole) v_fma_onto(&acc[i][v], x, bv[p][v]); } \
        if (ragged == HALF) half[i] = v_fma_half(ai, v_low(bv[p][nv - 1]), half[i]); }
    /* n terms; what moves pointers takes the place of multiplications. */
#define TERMS(n) { \
        _Pragma("GCC unroll 4") for (int l = 0; l < n; l++) { \
            LOAD_B(0); \
            ROWS TERM(upright ? row[0] + i : row[i / 3] + i % 3 * a_row + l, 0) \
            NEXT(b, b_row) \
            if (upright) NEXT(row[0], a_col) } \
        if (!upright) _Pragma("GCC unroll 8") for (int i = 0; i < mr; i += 3) NEXT(row[i / 3], n) }
    ptrdiff_t p = q->k - LAST;
    if (does & FAR) {
        for (ptrdiff_t stop = NEAR;; stop = 0) {
            ptrdiff_t times = p > stop ? (p - stop) / STEPS : 0;
            p -= times * STEPS;
            for (; times > 0; times--) {
                _Pragma("GCC unroll 4") for (int l = 0; l < NR; l += LINE) __builtin_prefetch(soon + l, 0, 2);
                NEXT(soon, NR)
                TERMS(STEPS)
            }
            if (stop == 0) break;
            next = c + mr * ldc;
            ROWS { VECTORS(nv) __builtin_prefetch(next + v * VL, 1); NEXT(next, ldc) }
        }
    }
    for (; p > 0; p--) TERMS(1)

    const fbp_epilogue *e = q->epilogue;
    const real *bias = does & BIASES ? e->bias + j0 : NULL, *y = does & MASKS ? e->y + i0 * e->ldy + j0 : NULL;
    const ptrdiff_t ldy = does & MASKS ? e->ldy : 0;
    real *sums = does & SUMS ? e->sums + j0 : NULL;
    const real minus_rate = (real)-q->rate;
    vreal sum[NV], check = {0};   /* NaN where a number is not finite */
    if (does & SUMS) VECTORS(nv) sum[v] = LOAD(sums, v);
    _Pragma("GCC unroll 4") for (int p = 0; p < LAST; p++) LOAD_B(p);
    const real *last = row[0];
#define FINISH(does) ROWS { \
        _Pragma("GCC unroll 4") for (int p = 0; p < LAST; p++) TERM(last + p * a_col, p) \
        NEXT(last, a_row) \
        if (ragged == HALF) acc[i][nv - 1] = v_whole(half[i]); \
        if ((does) & ADDS) VECTORS(nv) acc[i][v] += LOAD(c, v); \
        if ((does) & DESCENDS) VECTORS(nv) { \
            acc[i][v] = v_fma(v_set(minus_rate), acc[i][v], LOAD(c, v)); \
            check = v_fma(acc[i][v], (vreal){0}, check); } \
        if ((does) & BIASES) VECTORS(nv) acc[i][v] += LOAD(bias, v); \
        if ((does) & RECTIFIES) VECTORS(nv) acc[i][v] = relu(acc[i][v], 0); \
        if ((does) & MASKS) { VECTORS(nv) acc[i][v] = relu_backward(LOAD(y, v), acc[i][v], 0); NEXT(y, ldy) } \
        if ((does) & SUMS) VECTORS(nv) sum[v] += acc[i][v]; \
        VECTORS(nv) PUT(c, v, acc[i][v]); \
        NEXT(c, ldc) \
        __asm__ volatile("" ::: "memory"); }   /* else the compiler would put the stores together again */
    const int end = does & ~(CONTINUES | FAR);   /* a whole tile asks once, not in every row */
    if (mr == MR && end == 0) FINISH(0)
    else if (mr == MR && end == BIASES) FINISH(BIASES)
    else if (mr == MR && end == (BIASES | RECTIFIES)) FINISH(BIASES | RECTIFIES)
    else if (mr == MR && end == MASKS) FINISH(MASKS)
    else if (mr == MR && end == (MASKS | SUMS)) FINISH(MASKS | SUMS)
    else if (mr == MR && end == DESCENDS) FINISH(DESCENDS)
    else FINISH(does)
    if (does & SUMS) VECTORS(nv) PUT(sums, v, sum[v]);
    if (does & DESCENDS && v_any(check)) *q->not_finite = 1;
#undef FINISH
#undef TERMS
#undef TERM
#undef LOAD_B
#undef NEXT
#undef PUT
#undef LOAD
#undef VECTORS
#undef ROWS
}

/* One function per kind of tile, so that the accumulators are registers. Of the largest it makes `count`, one below the other: a call is a part
 * of a tile of few terms. */
#define TILE(mr, nv, ragged, upright) \
    static void tile_##mr##_##nv##_##ragged##_##upright(const fbp_block *q, int does, const real *a, const real *b, const real *soon, real *c, \
                                                        ptrdiff_t nr, ptrdiff_t i0, ptrdiff_t j0, ptrdiff_t count) \
    { \
        for (;; a += q->a_panel, c += mr * q->ldc, i0 += mr) { \
            tile(mr, nv, ragged, upright, q, does, a, b, soon, c, nr, i0, j0); \
            if (mr < MR || --count == 0) break; \
            v_forget(); \
        } \
    }
#define BOTH_TILES(mr, nv, ragged) TILE(mr, nv, ragged, 0) TILE(mr, nv, ragged, 1)
#define BOTH_NAMES(mr, nv, ragged) { tile_##mr##_##nv##_##ragged##_0, tile_##mr##_##nv##_##ragged##_1 }
#if VBYTES == 64
#define TILES(mr, nv) BOTH_TILES(mr, nv, WHOLE) BOTH_TILES(mr, nv, RAGGED) BOTH_TILES(mr, nv, HALF)
#define NAMES(mr, nv) { BOTH_NAMES(mr, nv, WHOLE), BOTH_NAMES(mr, nv, RAGGED), BOTH_NAMES(mr, nv, HALF) }
#elif VBYTES == 32
#define TILES(mr, nv) BOTH_TILES(mr, nv, WHOLE) BOTH_TILES(mr, nv, RAGGED) BOTH_TILES(mr, nv, PADDED)
#define NAMES(mr, nv) { BOTH_NAMES(mr, nv, WHOLE), BOTH_NAMES(mr, nv, RAGGED), { NULL }, BOTH_NAMES(mr, nv, PADDED) }
#else
#define TILES(mr, nv) BOTH_TILES(mr, nv, WHOLE) BOTH_TILES(mr, nv, PADDED)
#define NAMES(mr, nv) { BOTH_NAMES(mr, nv, WHOLE), { NULL }, { NULL }, BOTH_NAMES(mr, nv, PADDED) }
#endif
#ifdef FBP_IS_BROAD
#define ROW_OF_TILES(mr) TILES(mr, 1) TILES(mr, 2) TILES(mr, 3)
#define ROW_OF_NAMES(mr) { NAMES(mr, 1), NAMES(mr, 2), NAMES(mr, 3) },
#else
#define ROW_OF_TILES(mr) TILES(mr, 1) TILES(mr, 2)
#define ROW_OF_NAMES(mr) { NAMES(mr, 1), NAMES(mr, 2) },
#endif
EACH_MR(ROW_OF_TILES)
static void (*const tiles[MR][NV][PADDED + 1][2])(const fbp_block *, int, const real *, const real *, const real *, real *, ptrdiff_t, ptrdiff_t,
                                                    ptrdiff_t, ptrdiff_t) = {
    EACH_MR(ROW_OF_NAMES)
};

/* The activations that are not worth a place in every tile, over whole rows. */
static void activate_rows(const fbp_block *q)
{
    const fbp_epilogue *e = q->epilogue;
    if (e->sums) {
        act_backward_sums(e->act, q->m, q->n, e->y, e->ldy, e->alpha, q->c, q->ldc, e->sums);
        return;
    }
    const int dense = q->ldc == q->n && (!e->y || e->ldy == q->n);
    const ptrdiff_t rows = dense ? 1 : q->m, n = dense ? q->m * q->n : q->n;
    for (ptrdiff_t i = 0; i < rows; i++) {
        real *c = q->c + i * q->ldc;
        if (e->y) act_backward(e->act, n, e->y + i * e->ldy, c, e->alpha, 0, c);
        else act_forward(e->act, n, c, e->alpha, c);
    }
}

static ALWAYS_INLINE void activate(const fbp_block *q)
{
    if (q->epilogue && q->epilogue->act != FBP_IDENTITY && q->epilogue->act != FBP_RELU) activate_rows(q);
}

/* n elements of row i of C, from column j on, of their sums: the bias added, rectified, or masked by y. */
static ALWAYS_INLINE void finish_row(const fbp_block *q, const real *sums, ptrdiff_t i, ptrdiff_t j, ptrdiff_t n)
{
    const fbp_epilogue *e = q->epilogue;
    for (const ptrdiff_t end = j + n; j < end; j += VL, sums += VL) {
        const ptrdiff_t r = end - j < VL ? end - j : VL;
        vreal v = v_part(sums, r);
        if (e && e->bias) v += v_part(e->bias + j, r);
        if (e && e->act == FBP_RELU) v = e->y ? relu_backward(v_part(e->y + i * e->ldy + j, r), v, 0) : relu(v, 0);
        v_put(q->c + i * q->ldc + j, v, r);
    }
}
