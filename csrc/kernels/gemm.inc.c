/* Products: C (m, n) = [start] + A (m, k) B (k, n).
 *
 * Every element of C is one chain of fused multiply-adds in ascending k, in one accumulator lane, whatever tile it falls in:
 * a tail runs the same instructions on fewer rows or with idle lanes. So a result depends neither on its position nor on
 * what is computed beside it. */

/* The register tile: MR x NV vectors of accumulators, NV vectors of B and one broadcast of A must fit the registers. */
#if VBYTES == 64
enum { MR = 12, NV = 2 };
#elif defined(__aarch64__)
enum { MR = 12, NV = 2 };
#else
enum { MR = 6, NV = 2 };
#endif
#define NR (NV * (int)VL)

/* Cache blocks. A panel of B (DEPTH x NR) streams from the second cache beside a block of A that stays there; a deep block
 * visits C seldom. */
#if VBYTES == 64
enum { DEPTH = 4096 / sizeof(real), NC = 1024, A_BYTES = 256 << 10 };
#else
enum { DEPTH = 2048 / sizeof(real), NC = 1024, A_BYTES = 192 << 10 };
#endif

/* One row of a panel, r of its columns exist. Whole vectors are written: what they write too much belongs to the next row, which
 * comes later, or to the room behind the panel. */
static ALWAYS_INLINE void copy_row(const int width, const real *src, ptrdiff_t r, real *dst)
{
    _Pragma("GCC unroll 4") for (int j = 0; j < width; j += VL)
        v_store(dst + j, r - j >= VL ? v_load(src + j) : r > j ? v_load_n(src + j, r - j) : (vreal){0});
}

/* Row by row over all panels: a row is a stream, the next one may lie on another page. */
static ALWAYS_INLINE void copy_panels(const int width, ptrdiff_t k, ptrdiff_t n, const real *src, ptrdiff_t row, real *dst, ptrdiff_t panel)
{
    for (ptrdiff_t p = 0; p < k; p++, src += row, dst += width) {
        real *to = dst;
        for (ptrdiff_t j = 0; j < n; j += width, to += panel) copy_row(width, src + j, n - j, to);
    }
}

static void transpose_panels(ptrdiff_t k, ptrdiff_t n, const real *src, ptrdiff_t col, real *dst, ptrdiff_t panel)
{
    for (ptrdiff_t j0 = 0; j0 < n; j0 += NR, dst += panel)
        for (ptrdiff_t j = 0; j < NR; j += PATCH) {
            const ptrdiff_t rest = n - j0 - j;
            const int columns = rest < PATCH ? rest > 0 ? (int)rest : 0 : PATCH;
            const real *from = src + (j0 + j) * col;
            ptrdiff_t p = 0;
            for (; p + PATCH <= k; p += PATCH) v_transpose(from + p, col, columns, dst + p * NR + j, NR);
            for (; p < k; p++)
                for (int i = 0; i < PATCH; i++) dst[p * NR + j + i] = i < columns ? from[p + i * col] : 0;
        }
}

static void pack_a(ptrdiff_t k, ptrdiff_t m, const real *src, ptrdiff_t col, real *dst, ptrdiff_t panel)
{
    copy_panels(MR, k, m, src, col, dst, panel);
}

static void pack_b(ptrdiff_t k, ptrdiff_t n, const real *src, ptrdiff_t row, ptrdiff_t col, real *dst, ptrdiff_t panel)
{
    assert(row == 1 || col == 1);
    if (col == 1) copy_panels(NR, k, n, src, row, dst, panel);
    else transpose_panels(k, n, src, col, dst, panel);
}

enum { NEAR = 32 };   /* steps of k before the end of a tile when the next one's C is fetched */

/* One tile of `mr` rows and `nv` vectors, both compile-time constants where this is inlined. nr: columns that exist. */
static ALWAYS_INLINE void tile(const int mr, const int nv, const fbp_block *q, const real *a, const real *b, real *c, ptrdiff_t nr,
                               ptrdiff_t i0, ptrdiff_t j0)
{
    const ptrdiff_t tail = nr - (nv - 1) * VL, a_row = q->a_row, a_col = q->a_col, b_row = q->b_row, ldc = q->ldc;
    const fbp_epilogue *e = q->epilogue;
    vreal acc[MR][NV];
#define EACH _Pragma("GCC unroll 16") for (int i = 0; i < mr; i++) _Pragma("GCC unroll 4") for (int v = 0; v < nv; v++)
#define LOAD(p, v) ((v) == nv - 1 && tail < VL ? v_load_n((p) + (v) * VL, tail) : v_load((p) + (v) * VL))
    EACH acc[i][v] = (vreal){0};
    if (q->start == FBP_CONTINUE) EACH acc[i][v] = LOAD(c + i * ldc, v);

    /* The next tile of C is wanted in the second cache now, and in the first shortly before its time: A and B stream through
     * the first and would push it out again. */
    const int far = q->k > 4 * NEAR;   /* small products have it near anyway */
    if (far) EACH __builtin_prefetch(c + (mr + i) * ldc + v * VL, 0, 2);
    const real *row[(MR + 2) / 3];   /* every third row has its pointer; the two after it are one and two strides away */
    _Pragma("GCC unroll 8") for (int i = 0; i < mr; i += 3) row[i / 3] = a + i * a_row;
    const ptrdiff_t last = q->k < NEAR ? q->k : NEAR;
    for (int part = 0; part < 2; part++) {
        for (ptrdiff_t p = part == 0 ? q->k - last : last; p > 0; p--) {
            vreal bv[NV];
            _Pragma("GCC unroll 4") for (int v = 0; v < nv; v++) bv[v] = v_load(b + v * VL);
            _Pragma("GCC unroll 16") for (int i = 0; i < mr; i++) {
                const vreal ai = v_set(row[i / 3][i % 3 * a_row]);
                _Pragma("GCC unroll 4") for (int v = 0; v < nv; v++) acc[i][v] = v_fma(ai, bv[v], acc[i][v]);
            }
            _Pragma("GCC unroll 8") for (int i = 0; i < mr; i += 3) row[i / 3] += a_col;
            b += b_row;
        }
        if (part == 0 && far) EACH __builtin_prefetch(c + (mr + i) * ldc + v * VL, 1);
    }

    if (q->start == FBP_ADD) EACH acc[i][v] += LOAD(c + i * ldc, v);
    if (e && e->bias) EACH acc[i][v] += LOAD(e->bias + j0, v);
    const real *y = e && e->y ? e->y + i0 * e->ldy + j0 : NULL;
    const int act = e ? e->act : FBP_IDENTITY;
    if (act == FBP_RELU && !y) EACH acc[i][v] = relu(acc[i][v], 0);
    if (act == FBP_RELU && y) EACH acc[i][v] = relu_backward(LOAD(y + i * e->ldy, v), acc[i][v], 0);
    EACH {
        if (v == nv - 1 && tail < VL) v_store_n(c + i * ldc + v * VL, acc[i][v], tail);
        else v_store(c + i * ldc + v * VL, acc[i][v]);
    }
#undef EACH
#undef LOAD
}

/* One function per tile shape, so that the accumulators are registers. */
#define TILE(mr, nv) \
    static void tile_##mr##_##nv(const fbp_block *q, const real *a, const real *b, real *c, ptrdiff_t nr, ptrdiff_t i0, ptrdiff_t j0) \
    { tile(mr, nv, q, a, b, c, nr, i0, j0); }
#define TILES(mr) TILE(mr, 1) TILE(mr, 2)
#define NAMES(mr) { tile_##mr##_1, tile_##mr##_2 }
TILES(1) TILES(2) TILES(3) TILES(4) TILES(5) TILES(6)
#if VBYTES == 64 || defined(__aarch64__)
TILES(7) TILES(8) TILES(9) TILES(10) TILES(11) TILES(12)
#endif
static void (*const tiles[MR][NV])(const fbp_block *, const real *, const real *, real *, ptrdiff_t, ptrdiff_t, ptrdiff_t) = {
    NAMES(1), NAMES(2), NAMES(3), NAMES(4), NAMES(5), NAMES(6),
#if VBYTES == 64 || defined(__aarch64__)
    NAMES(7), NAMES(8), NAMES(9), NAMES(10), NAMES(11), NAMES(12),
#endif
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

static void block(const fbp_block *q)
{
    assert(q->m > 0 && q->n > 0 && q->k >= 0);
    assert(q->start == FBP_STORE || q->start == FBP_CONTINUE || q->start == FBP_ADD);
    const real *b = q->b;
    for (ptrdiff_t j = 0; j < q->n; j += NR, b += q->b_panel) {
        const ptrdiff_t nr = q->n - j < NR ? q->n - j : NR;
        const real *a = q->a;
        for (ptrdiff_t i = 0; i < q->m; i += MR, a += q->a_panel) {
            const ptrdiff_t mr = q->m - i < MR ? q->m - i : MR;
            tiles[mr - 1][(nr - 1) / VL](q, a, b, q->c + i * q->ldc + j, nr, i, j);
        }
    }
    if (q->epilogue && q->epilogue->act != FBP_IDENTITY && q->epilogue->act != FBP_RELU) activate(q, q->epilogue);
}

/* y_j = [start] + sum over the B rows of x_ij, in ascending order. A few rows at a time, along them: every row is a stream. */
static void column_sums(ptrdiff_t B, ptrdiff_t n, const real *x, ptrdiff_t ldx, int start, real *y)
{
    enum { ROWS = 8, COLUMNS = 1024 };   /* sums that stay in the first cache */
    real total[COLUMNS];
    for (ptrdiff_t j0 = 0; j0 < n; j0 += COLUMNS) {
        const ptrdiff_t columns = n - j0 < COLUMNS ? n - j0 : COLUMNS;
        memset(total, 0, sizeof total);
        for (ptrdiff_t i = 0; i < B; i += ROWS) {
            const real *rows = x + i * ldx + j0;
            const int count = B - i < ROWS ? (int)(B - i) : ROWS;
            for (ptrdiff_t j = 0; j < columns; j += VL) {
                const ptrdiff_t r = columns - j < VL ? columns - j : VL;
                vreal acc = v_load(total + j);
                if (count == ROWS && r == VL) _Pragma("GCC unroll 8") for (int l = 0; l < ROWS; l++) acc += v_load(rows + l * ldx + j);
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
