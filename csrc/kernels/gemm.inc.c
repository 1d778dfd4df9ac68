/* Products: C (m, n) = [start] + A (m, k) B (k, n).
 *
 * Every element of C is one chain of fused multiply-adds in ascending k, in one accumulator lane, whatever tile it falls in:
 * a tail runs the same instructions on fewer rows or with idle lanes. So a result depends neither on its position nor on
 * what is computed beside it. */

/* The register tile: MR x NV vectors of accumulators, NV vectors of B and one broadcast of A must fit the registers. */
#if VBYTES == 64 || defined(__aarch64__)
enum { MR = 12, NV = 2 };
#define EACH_MR(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12)
#else
enum { MR = 6, NV = 2 };
#define EACH_MR(X) X(1) X(2) X(3) X(4) X(5) X(6)
#endif
#define NR (NV * (int)VL)

/* Rows of A up to which the last, ragged panel of B is read where it lies, under a mask; for more of them it is copied, unless such a load costs
 * no more than any other. */
enum { MASKED_ROWS = VBYTES == 64 ? 1 << 30 : VBYTES == 32 ? 8 * MR : 0 };

/* Cache blocks. A panel of B (DEPTH x NR) streams from the second cache beside a block of A that stays there; a deep block
 * visits C seldom. */
#if VBYTES == 64
enum { DEPTH = 4096 / sizeof(real), NC = 2048, A_BYTES = 256 << 10 };
#else
enum { DEPTH = 2048 / sizeof(real), NC = 1024, A_BYTES = 192 << 10 };
#endif

/* One row of a panel, r of its columns exist. Whole vectors are written, as far as they are read: what they write too much belongs to
 * the next row, which comes later, or to the room behind the panel. */
static ALWAYS_INLINE void copy_row(const int width, const real *src, ptrdiff_t r, real *dst)
{
    _Pragma("GCC unroll 4") for (int j = 0; j < width; j += VL)
        if (r > j) v_store(dst + j, v_part(src + j, r - j < VL ? r - j : VL));
}

/* Row by row over all panels: a row is a stream, the next one may lie on another page. */
static ALWAYS_INLINE void copy_panels(const int width, ptrdiff_t k, ptrdiff_t n, const real *src, ptrdiff_t row, real *dst, ptrdiff_t panel)
{
    for (ptrdiff_t p = 0; p < k; p++, src += row, dst += width) {
        real *to = dst;
        for (ptrdiff_t j = 0; j < n; j += width, to += panel) copy_row(width, src + j, n - j, to);
    }
}

/* PATCH columns from j on. In the place of those that do not exist stands one that does: nobody looks at it. */
static ALWAYS_INLINE void find_columns(const real *b, ptrdiff_t col, ptrdiff_t n, ptrdiff_t j, const real **column)
{
    _Pragma("GCC unroll 8") for (int i = 0; i < PATCH; i++) column[i] = b + (j + i < n ? j + i : 0) * col;
}

static ALWAYS_INLINE vpatch one_of_each(const real *const *column, ptrdiff_t p)
{
    vpatch v;
    _Pragma("GCC unroll 8") for (int i = 0; i < PATCH; i++) v[i] = column[i][p];
    return v;
}

/* STRETCH rows of a panel at a time, that stay in the first cache, and in them patches from the last to the first: what one writes too much
 * belongs to the next row. */
enum { STRETCH = 32 };

static ALWAYS_INLINE void transpose_panels(const int width, ptrdiff_t k, ptrdiff_t n, const real *src, ptrdiff_t col, real *dst, ptrdiff_t panel)
{
    for (ptrdiff_t j0 = 0; j0 < n; j0 += width, dst += panel)
        for (ptrdiff_t p0 = 0; p0 < k; p0 += STRETCH) {
            const ptrdiff_t end = k - p0 < STRETCH ? k : p0 + STRETCH;
            for (ptrdiff_t j = (width - 1) / PATCH * PATCH; j >= 0; j -= PATCH) {
                if (j0 + j >= n) continue;
                const real *column[PATCH];
                vpatch t[PIECE];
                find_columns(src, col, n, j0 + j, column);
                real *to = dst + p0 * width + j;
                ptrdiff_t p = p0;
                for (; p + PIECE <= end; p += PIECE) {
                    v_transpose(column, p, t);
                    _Pragma("GCC unroll 4") for (int i = 0; i < PIECE; i++, to += width) v_put_patch(to, t[i]);
                }
                for (; p < end; p++, to += width) v_put_patch(to, one_of_each(column, p));
            }
        }
}

static ALWAYS_INLINE void pack(const int width, ptrdiff_t k, ptrdiff_t n, const real *src, ptrdiff_t row, ptrdiff_t col, real *dst, ptrdiff_t panel)
{
    assert(row == 1 || col == 1);
    if (col == 1) copy_panels(width, k, n, src, row, dst, panel);
    else transpose_panels(width, k, n, src, col, dst, panel);
}

static void pack_a(ptrdiff_t k, ptrdiff_t m, const real *src, ptrdiff_t row, ptrdiff_t col, real *dst, ptrdiff_t panel)
{
    pack(MR, k, m, src, col, row, dst, panel);
}

static void pack_b(ptrdiff_t k, ptrdiff_t n, const real *src, ptrdiff_t row, ptrdiff_t col, real *dst, ptrdiff_t panel)
{
    pack(NR, k, n, src, row, col, dst, panel);
}

enum { THIN = 4 };    /* rows: a tile of fewer waits for its own sums, so the one before it shares its rows */
enum { NEAR = 32 };   /* terms before the end of a tile when the next one's C is fetched */
enum { STEPS = 4 };   /* terms at a time: what moves pointers takes the place of multiplications */

/* The last terms of a tile go row by row, so that there is arithmetic between the stores: of 64 bytes, the processor takes one while it
 * multiplies three times. Other registers are too few for more than one term. */
enum { LAST = VBYTES == 64 ? 3 : 1 };

/* What becomes of a block's sums, in one register; FAR: C is not in the first cache, or will have left it. */
enum { CONTINUES = 1, ADDS = 2, DESCENDS = 4, BIASES = 8, RECTIFIES = 16, MASKS = 32, SUMS = 64, FAR = 128 };

enum { SHARED_BYTES = 16 << 10 };   /* of C: a line that another core has read takes as long as some hundred multiply-adds */

static int what_it_does(const fbp_block *q)
{
    const fbp_epilogue *e = q->epilogue;
    const int start = q->start == FBP_CONTINUE ? CONTINUES : q->start == FBP_ADD ? ADDS : q->start == FBP_DESCEND ? DESCENDS : 0;
    const size_t near = q->shared ? SHARED_BYTES : A_BYTES;
    const int far = q->k >= 4 * NEAR || (q->k >= NEAR && (size_t)(q->m * q->n) * sizeof(real) > near) ? FAR : 0;
    return start | far | (e ? (e->bias != NULL) * BIASES | (e->act == FBP_RELU) * (e->y ? MASKS : RECTIFIES) | (e->sums != NULL) * SUMS : 0);
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
        const vreal x = v_set(*ai); \
        VECTORS(whole) v_fma_onto(&acc[i][v], x, bv[p][v]); \
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
                _Pragma("GCC unroll 4") for (int l = 0; l < NR; l += 64 / sizeof(real)) __builtin_prefetch(soon + l, 0, 2);
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
#define ROW_OF_TILES(mr) TILES(mr, 1) TILES(mr, 2)
#define ROW_OF_NAMES(mr) { NAMES(mr, 1), NAMES(mr, 2) },
EACH_MR(ROW_OF_TILES)
static void (*const tiles[MR][NV][PADDED + 1][2])(const fbp_block *, int, const real *, const real *, const real *, real *, ptrdiff_t, ptrdiff_t,
                                                    ptrdiff_t, ptrdiff_t) = {
    EACH_MR(ROW_OF_NAMES)
};

/* The activations that are not worth a place in every tile, over whole rows. */
static void activate(const fbp_block *q, const fbp_epilogue *e)
{
    const int dense = q->ldc == q->n && (!e->y || e->ldy == q->n);
    const ptrdiff_t rows = dense ? 1 : q->m, n = dense ? q->m * q->n : q->n;
    for (ptrdiff_t i = 0; i < rows; i++) {
        real *c = q->c + i * q->ldc;
        if (e->y) act_backward(e->act, n, e->y + i * e->ldy, c, e->alpha, 0, c);
        else act_forward(e->act, n, c, e->alpha, c);
    }
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

enum { FEW = FBP_FEW };

/* `mr` rows of A by `patches` * PATCH columns of a transposed B that is too rarely used to be packed: every patch is transposed in
 * registers. The same chains as in a tile. `whole`: all columns exist. */
static ALWAYS_INLINE void strip(const int mr, const int patches, const int whole, const fbp_block *q, ptrdiff_t j, real *c, ptrdiff_t ldc)
{
    enum { GROUPS = PATCH / PIECE };
    const real *column[4][PATCH], *group[4][GROUPS], *a[FEW];
    vpatch acc[FEW][4], t[PIECE];
#define EACH _Pragma("GCC unroll 6") for (int i = 0; i < mr; i++) _Pragma("GCC unroll 4") for (int v = 0; v < patches; v++)
    _Pragma("GCC unroll 6") for (int i = 0; i < mr; i++) a[i] = q->a + i * q->a_row;
    _Pragma("GCC unroll 4") for (int v = 0; v < patches; v++) {
        find_columns(q->b, q->b_panel, q->n, j + v * PATCH, column[v]);
        for (int g = 0; g < GROUPS; g++) group[v][g] = column[v][g * PIECE];
    }
    EACH acc[i][v] = (vpatch){0};
    ptrdiff_t p = 0;
    for (; p + PIECE <= q->k; p += PIECE) {
        _Pragma("GCC unroll 4") for (int v = 0; v < patches; v++) {
            if (whole) v_transpose_groups(group[v], q->b_panel, t);
            else v_transpose(column[v], p, t);
            _Pragma("GCC unroll 4") for (int l = 0; l < PIECE; l++)
                _Pragma("GCC unroll 6") for (int i = 0; i < mr; i++) acc[i][v] = v_fma_patch(a[i][l * q->a_col], t[l], acc[i][v]);
            for (int g = 0; g < GROUPS; g++) group[v][g] += PIECE;
        }
        _Pragma("GCC unroll 6") for (int i = 0; i < mr; i++) a[i] += PIECE * q->a_col;
    }
    for (; p < q->k; p++) {
        EACH acc[i][v] = v_fma_patch(*a[i], one_of_each(column[v], p), acc[i][v]);
        _Pragma("GCC unroll 6") for (int i = 0; i < mr; i++) a[i] += q->a_col;
    }
    EACH v_put_patch(c + i * ldc + v * PATCH, acc[i][v]);
#undef EACH
}

/* At most FEW rows, stored; b[p + j*b_panel]. */
static void strips(const fbp_block *q)
{
    enum { WIDE = 4 * PATCH };
    assert(0 < q->m && q->m <= FEW && q->n > 0 && q->start == FBP_STORE);
    const fbp_epilogue *e = q->epilogue;
    const ptrdiff_t most = q->m == 1 ? 4 * PATCH : q->m <= 3 ? 2 * PATCH : PATCH;   /* columns: what the registers hold */
    for (ptrdiff_t j = 0, n; j < q->n; j += n) {
        const ptrdiff_t rest = q->n - j;
        real room[FEW * WIDE];
        n = rest >= most ? most : rest < PATCH ? rest : PATCH;
#define STRIP(m, patches) (n == most ? strip(m, patches, 1, q, j, room, WIDE) : strip(m, 1, n == PATCH, q, j, room, WIDE))
        if (q->m == 1) STRIP(1, 4);
        else if (q->m == 2) STRIP(2, 2);
        else if (q->m == 3) STRIP(3, 2);
        else if (q->m == 4) STRIP(4, 1);
        else if (q->m == 5) STRIP(5, 1);
        else STRIP(6, 1);
#undef STRIP
        for (ptrdiff_t i = 0; i < q->m; i++) finish_row(q, room + i * WIDE, i, j, n);
    }
    if (e && e->act != FBP_IDENTITY && e->act != FBP_RELU) activate(q, e);
}

/* Rows of the columns from j on, as they come from a panel: the bias added, rectified. */
static ALWAYS_INLINE void finish_columns(const fbp_block *q, const int biases, const int rectifies, const real *sums, ptrdiff_t j, ptrdiff_t n)
{
    const vreal bias = biases ? v_part(q->epilogue->bias + j, n) : (vreal){0};
    real *c = q->c + j;
    for (ptrdiff_t i = 0; i < q->m; i++, sums += VL, c += q->ldc) {
        vreal v = v_load(sums);
        if (biases) v += bias;
        v_put(c, rectifies ? relu(v, 0) : v, n);
    }
}

/* C of its transposed sums, which lie in a: element (i, j) at a[i + j*a_col]. */
static void turn(const fbp_block *q)
{
    const fbp_epilogue *e = q->epilogue;
    const int rectifies = e && e->act == FBP_RELU;
    real panel[FBP_TURNED_ROWS * VL + PATCH] __attribute__((aligned(64)));
    assert(q->m <= FBP_TURNED_ROWS);
    for (ptrdiff_t j = 0; j < q->n; j += VL) {
        const ptrdiff_t n = q->n - j < VL ? q->n - j : VL;
        transpose_panels(VL, q->m, n, q->a + j * q->a_col, q->a_col, panel, 0);
        if (!e || !e->bias) finish_columns(q, 0, rectifies, panel, j, n);
        else if (n == VL) finish_columns(q, 1, rectifies, panel, j, VL);
        else finish_columns(q, 1, rectifies, panel, j, n);
    }
    if (e && e->act != FBP_IDENTITY && !rectifies) activate(q, e);
}

/* A few rows over a B that lies in rows and is used once: STREAMS of its rows at a time, along them. The same chains as in a tile. */
enum { STREAMS = 8 };

/* `count` terms of m rows and nv vectors of C, the last of r columns. x: the elements of A in every lane, where registers hold them, or NULL. */
static ALWAYS_INLINE void add_streams(const int m, const int nv, const int count, const real (*a)[STREAMS], const vreal (*x)[STREAMS], const real *b,
                                      ptrdiff_t b_row, real *c, ptrdiff_t ldc, ptrdiff_t r, int fresh)
{
    vreal acc[FEW][NV];
#define EACH _Pragma("GCC unroll 6") for (int i = 0; i < m; i++) _Pragma("GCC unroll 2") for (int v = 0; v < nv; v++)
#define PART(from) v_part((from) + v * VL, v == nv - 1 ? r : VL)
    EACH acc[i][v] = fresh ? (vreal){0} : PART(c + i * ldc);
    _Pragma("GCC unroll 8") for (int l = 0; l < count; l++) {
        vreal row[NV];
        _Pragma("GCC unroll 2") for (int v = 0; v < nv; v++) row[v] = PART(b + l * b_row);
        EACH acc[i][v] = v_fma(x ? x[i][l] : v_set(a[i][l]), row[v], acc[i][v]);
    }
    EACH v_put(c + i * ldc + v * VL, acc[i][v], v == nv - 1 ? r : VL);
#undef PART
#undef EACH
}

static ALWAYS_INLINE void few_rows(const int m, const fbp_block *q)
{
    const ptrdiff_t columns = (m <= 2 ? 8192 : 4096) / (ptrdiff_t)sizeof(real);   /* of C, that stay in the first cache: rows of B are streams, the longer the better */
    const ptrdiff_t b_row = q->b_row, ldc = q->ldc;
    const ptrdiff_t lead = b_row % VL ? 0 : (ptrdiff_t)(-(uintptr_t)q->b % VBYTES / sizeof(real));   /* columns before whole cache lines of all rows */
    const int kept = m * STREAMS <= (VBYTES == 64 ? 24 : 8);   /* the elements of A stay in registers */
    for (ptrdiff_t j0 = 0, end; j0 < q->n; j0 = end) {
        end = q->n - j0 < columns + lead ? q->n : j0 ? j0 + columns : columns + lead;
        for (ptrdiff_t p = 0; p < q->k; p += STREAMS) {
            const real *b = q->b + p * b_row;
            const int count = q->k - p < STREAMS ? (int)(q->k - p) : STREAMS, fresh = p == 0 && q->start == FBP_STORE;
            real a[FEW][STREAMS];
            vreal x[FEW][STREAMS];
            for (int i = 0; i < m; i++) for (int l = 0; l < count; l++) a[i][l] = q->a[i * q->a_row + (p + l) * q->a_col];
            if (kept && count == STREAMS) _Pragma("GCC unroll 6") for (int i = 0; i < m; i++) _Pragma("GCC unroll 8") for (int l = 0; l < STREAMS; l++) x[i][l] = v_set(a[i][l]);
            ptrdiff_t j = j0;
#define ADD(nv, r) { \
                if (count == STREAMS) add_streams(m, nv, STREAMS, a, kept ? x : NULL, b + j, b_row, q->c + j, ldc, r, fresh); \
                else add_streams(m, nv, count, a, NULL, b + j, b_row, q->c + j, ldc, r, fresh); }
            if (j == 0 && lead > 0) {
                const ptrdiff_t r = end < lead ? end : lead;
                ADD(1, r)
                j = r;
            }
            for (; !kept && j + NR <= end; j += NR) ADD(NV, VL)
            for (; j < end; j += VL) ADD(1, end - j < VL ? end - j : VL)
#undef ADD
        }
    }
    const fbp_epilogue *e = q->epilogue;
    if (!e || !(e->bias || e->act == FBP_RELU)) return;
    for (ptrdiff_t i = 0; i < m; i++) finish_row(q, q->c + i * q->ldc, i, 0, q->n);
}

#define ROWS(m) static void rows_##m(const fbp_block *q) { few_rows(m, q); }
ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6)

static int pays_by_rows(const fbp_block *q)
{
    const int in_rows = q->b_panel == NR && q->b_row != NR;
    const size_t bytes = (size_t)(q->k * q->n) * sizeof(real);
    const int far = bytes > 4 * A_BYTES;   /* nearer, tiles are faster; and a little longer if rows are short, but for the fewest rows of A */
    const int any = (size_t)q->b_row * sizeof(real) >= 4096 || bytes > 7 * A_BYTES;
    const ptrdiff_t most = any ? FEW : VBYTES == 64 ? FEW / 2 : 1;
    const int one = q->m == 1 && q->n > 6 * NR && q->k > STREAMS;
    return (far || one) && in_rows && q->m <= most && (q->start == FBP_STORE || q->start == FBP_CONTINUE) && !(q->epilogue && q->epilogue->sums);
}

/* A product of few terms: a vector of every row of B, or two, stays in registers while the rows of A pass over them. The same chains as in a tile. */
enum { PAIRED_TERMS = 11 };
#if VBYTES == 64
enum { TERMS = 20 };
#elif defined(__aarch64__)
enum { TERMS = 16 };
#else
enum { TERMS = 8 };
#endif

/* Rows [i0, end) and nv vectors of columns from j on, the last of r columns. Returns NaN where a number is not finite. */
static ALWAYS_INLINE vreal few_terms_at(const int k, const int by_columns, const int nv, const fbp_block *block, const fbp_epilogue *epilogue, int does,
                                        ptrdiff_t i0, ptrdiff_t end, ptrdiff_t j, ptrdiff_t r)
{
    enum { ROWS = 4 };             /* at a time */
    const fbp_block q = *block;    /* copies: what is stored to C cannot change them */
    const fbp_epilogue e = *epilogue;
    const ptrdiff_t ldy = e.y ? e.ldy : 0;
    const real minus_rate = (real)-q.rate;
    const real *from = q.b + j / NR * q.b_panel + j % NR;
    vreal b[TERMS][NV], bias[NV], sum[NV], check = {0};
#define VECTORS _Pragma("GCC unroll 2") for (int v = 0; v < nv; v++)
#define LOAD(p) v_part((p) + v * VL, v == nv - 1 ? r : VL)
    _Pragma("GCC unroll 20") for (int p = 0; p < k; p++) VECTORS b[p][v] = LOAD(from + p * q.b_row);
    VECTORS bias[v] = does & BIASES ? LOAD(e.bias + j) : (vreal){0};
    VECTORS sum[v] = !by_columns && does & SUMS ? LOAD(e.sums + j) : (vreal){0};
    const real *a = q.a + (by_columns ? i0 : i0 * q.a_row), *y = e.y ? e.y + i0 * ldy + j : NULL;
    real *c = q.c + i0 * q.ldc + j;
#define EACH _Pragma("GCC unroll 4") for (int l = 0; l < rows; l++) VECTORS
#define PASS(count) { \
        enum { rows = count }; \
        vreal acc[rows][NV]; \
        EACH acc[l][v] = does & CONTINUES ? LOAD(c + l * q.ldc) : (vreal){0}; \
        const real *at = a; \
        _Pragma("GCC unroll 20") for (int p = 0; p < k; p++, at += by_columns ? q.a_col : 1) \
            EACH acc[l][v] = v_fma(v_set(at[by_columns ? l : l * q.a_row]), b[p][v], acc[l][v]); \
        if (does & ADDS) EACH acc[l][v] += LOAD(c + l * q.ldc); \
        if (by_columns && does & DESCENDS) EACH { \
            acc[l][v] = v_fma(v_set(minus_rate), acc[l][v], LOAD(c + l * q.ldc)); \
            check = v_fma(acc[l][v], (vreal){0}, check); } \
        if (does & BIASES) EACH acc[l][v] += bias[v]; \
        if (does & RECTIFIES) EACH acc[l][v] = relu(acc[l][v], 0); \
        if (does & MASKS) EACH acc[l][v] = relu_backward(LOAD(y + l * ldy), acc[l][v], 0); \
        if (!by_columns && does & SUMS) EACH sum[v] += acc[l][v]; \
        EACH v_put(c + l * q.ldc + v * VL, acc[l][v], v == nv - 1 ? r : VL); \
        a += by_columns ? rows : rows * q.a_row, c += rows * q.ldc, y += rows * ldy; }
    ptrdiff_t i = i0;
    for (; i + ROWS <= end; i += ROWS) PASS(ROWS)
    for (; i < end; i++) PASS(1)
    if (!by_columns && does & SUMS) VECTORS v_put(e.sums + j + v * VL, sum[v], v == nv - 1 ? r : VL);
#undef PASS
#undef EACH
#undef LOAD
#undef VECTORS
    return check;
}

static ALWAYS_INLINE void few_terms(const int k, const int by_columns, const fbp_block *q)
{
    const int pairs = VBYTES == 64 && k <= PAIRED_TERMS;
    const ptrdiff_t near = VBYTES < 64 && (size_t)q->ldc * sizeof(real) % 1024 == 0 ? 8 : 32;   /* rows of C whose lines, begun by one vector, the next one still finds */
    const fbp_epilogue e = q->epilogue ? *q->epilogue : (fbp_epilogue){0};
    const int does = what_it_does(q);   /* column sums are of rows only, steps along columns: of an input's gradient and a weight's */
    assert(by_columns ? q->a_row == 1 && !(does & SUMS) : q->a_col == 1 && !(does & DESCENDS));
    vreal check = {0};
    for (ptrdiff_t i0 = 0; i0 < q->m; i0 += near) {
        const ptrdiff_t end = q->m - i0 < near ? q->m : i0 + near;
        for (ptrdiff_t j = 0, columns; j < q->n; j += columns) {
            const ptrdiff_t rest = q->n - j;
            const int pair = pairs && rest > VL;
            columns = pair ? NR : VL;
            const ptrdiff_t r = rest < columns ? rest - (columns - VL) : VL;
            check += pair ? few_terms_at(k, by_columns, NV, q, &e, does, i0, end, j, r) : few_terms_at(k, by_columns, 1, q, &e, does, i0, end, j, r);
        }
    }
    if (by_columns && does & DESCENDS && v_any(check)) *q->not_finite = 1;
}

#define FEW_TERMS(k) \
    static void terms_##k##_rows(const fbp_block *q) { few_terms(k, 0, q); } \
    static void terms_##k##_columns(const fbp_block *q) { few_terms(k, 1, q); }
#define BOTH_TERMS(k) { terms_##k##_rows, terms_##k##_columns },
#if VBYTES == 64
#define UP_TO_TERMS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15) X(16) X(17) X(18) X(19) X(20)
#elif defined(__aarch64__)
#define UP_TO_TERMS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15) X(16)
#else
#define UP_TO_TERMS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8)
#endif
UP_TO_TERMS(FEW_TERMS)

static int by_columns(const fbp_block *q) { return q->a_col != 1 || q->start == FBP_DESCEND; }

/* Half a vector is faster in a tile, and so are the fewest rows; but a tile has LAST terms at least. */
static int pays_by_terms(const fbp_block *q)
{
    if (q->k < LAST) return 1;
    if (by_columns(q) && (q->a_row != 1 || (q->epilogue && q->epilogue->sums))) return 0;
    const ptrdiff_t most = VBYTES == 64 && q->n > VL ? PAIRED_TERMS : TERMS;
    return q->k <= most && q->m > 4 && (VBYTES < 64 || q->n > VL / 2) && q->a_panel == MR * q->a_row;
}

static void block(const fbp_block *q)
{
    static void (*const rows[FEW])(const fbp_block *) = {rows_1, rows_2, rows_3, rows_4, rows_5, rows_6};
    assert(q->m > 0 && q->n > 0 && q->k >= 0);
    assert(FBP_STORE <= q->start && q->start <= FBP_DESCEND);
    static void (*const terms[TERMS + 1][2])(const fbp_block *) = {UP_TO_TERMS(BOTH_TERMS)};
    if (pays_by_rows(q)) rows[q->m - 1](q);
    else if (pays_by_terms(q)) terms[q->k][by_columns(q)](q);
    else {
        const real *b = q->b;
        const int in_rows = q->a_panel == MR * q->a_row;   /* a tile may begin at any row */
        const int does = what_it_does(q);
        const ptrdiff_t part = (q->k / STEPS + 1) * NR;
        assert(q->k >= LAST);
        for (ptrdiff_t j = 0; j < q->n; j += NR, b += q->b_panel) {
            const ptrdiff_t nr = q->n - j < NR ? q->n - j : NR, lacks = (nr + VL - 1) / VL * VL - nr;
            const int padded = VBYTES < 64 && !(MASKED_ROWS && q->b_panel == NR);   /* a copy; of one term, it may be masked as well */
            const int ragged = lacks == 0 ? WHOLE : padded ? PADDED : VBYTES == 64 && lacks >= VL / 2 ? HALF : RAGGED;
            /* The first tiles beside a panel of a packed B fetch a part of the next panel each. */
            const real *a = q->a, *panel = q->b_row != NR ? b : j + NR < q->n ? b + q->b_panel : q->b, *soon = panel;
            for (ptrdiff_t i = 0, mr, count; i < q->m; i += count * mr, a += mr == MR ? count * q->a_panel : mr * q->a_row, soon += part) {
                const ptrdiff_t rest = q->m - i, thin = in_rows && 0 < rest % MR && rest % MR < THIN;
                if (soon >= panel + q->k * NR) soon = b;
                mr = rest < MR ? rest : thin && rest < 2 * MR ? (rest + 1) / 2 : MR;
                count = mr < MR || does & FAR ? 1 : rest / MR - thin;   /* those that fetch fetch different memory */
                tiles[mr - 1][(nr - 1) / VL][ragged][q->a_col != 1](q, does, a, b, soon, q->c + i * q->ldc + j, nr, i, j, count);
            }
        }
    }
    if (q->epilogue && q->epilogue->act != FBP_IDENTITY && q->epilogue->act != FBP_RELU) activate(q, q->epilogue);
}

/* What no product can surpass. */
static ptrdiff_t multiply_adds(ptrdiff_t rounds)
{
    enum { CHAINS = 12 };   /* hide the latency, and are registers everywhere */
    const vreal half = v_set((real)0.5);
    vreal acc[CHAINS], total = {0};
#define EACH _Pragma("GCC unroll 12") for (int i = 0; i < CHAINS; i++)
    EACH acc[i] = v_set((real)i);
    for (ptrdiff_t r = 0; r < rounds; r++) EACH acc[i] = v_fma(acc[i], half, half);
    EACH total += acc[i];
#undef EACH
    return v_any(total) ? rounds * CHAINS * VL : 0;   /* always some, but the compiler cannot know */
}

/* y_j = [start] + sum over the B rows of x_ij, or of x_ij z_ij, in ascending order. A few rows at a time, along them: every row is a stream. */
static ALWAYS_INLINE void sum_columns(ptrdiff_t B, ptrdiff_t n, const real *x, const real *z, ptrdiff_t ldx, int start, real *y)
{
    enum { ROWS = 8, COLUMNS = 2048 };   /* sums that stay in the first cache */
    real total[COLUMNS];
    if (n <= VL) {
        vreal acc = {0};
        for (ptrdiff_t i = 0; i < B; i++, x += ldx) acc += z ? v_part(x, n) * v_part(z + i * ldx, n) : v_part(x, n);
        v_put(y, start == FBP_ADD ? v_part(y, n) + acc : acc, n);
        return;
    }
    for (ptrdiff_t j0 = 0; j0 < n; j0 += COLUMNS) {
        const ptrdiff_t columns = n - j0 < COLUMNS ? n - j0 : COLUMNS;
        memset(total, 0, (size_t)(columns + VL - 1) / VL * VL * sizeof(real));
        for (ptrdiff_t i = 0; i < B; i += ROWS) {
            const real *rows = x + i * ldx + j0, *others = z ? z + i * ldx + j0 : NULL;
            const int count = B - i < ROWS ? (int)(B - i) : ROWS;
            for (ptrdiff_t j = 0; j < columns; j += VL) {
                const ptrdiff_t r = columns - j < VL ? columns - j : VL;
                vreal acc = v_load(total + j);
                if (z) for (int l = 0; l < count; l++) acc += v_part(rows + l * ldx + j, r) * v_part(others + l * ldx + j, r);
                else if (count == ROWS && r == VL) _Pragma("GCC unroll 8") for (int l = 0; l < ROWS; l++) acc += v_load(rows + l * ldx + j);
                else for (int l = 0; l < count; l++) acc += v_part(rows + l * ldx + j, r);
                v_store(total + j, acc);
            }
        }
        for (ptrdiff_t j = 0; j < columns; j += VL) {
            const ptrdiff_t r = columns - j < VL ? columns - j : VL;
            const vreal sum = v_load(total + j);
            v_put(y + j0 + j, start == FBP_ADD ? v_part(y + j0 + j, r) + sum : sum, r);
        }
    }
}

static void column_sums(ptrdiff_t B, ptrdiff_t n, const real *x, ptrdiff_t ldx, int start, real *y) { sum_columns(B, n, x, NULL, ldx, start, y); }

static void column_products(ptrdiff_t B, ptrdiff_t n, const real *x, const real *z, ptrdiff_t ldx, int start, real *y)
{
    sum_columns(B, n, x, z, ldx, start, y);
}
