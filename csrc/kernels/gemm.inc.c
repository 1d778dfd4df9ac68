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
enum { MC = MR * 16, NC = 512 };

/* Copies when the source runs along n: row by row, all panels at once, since the next row may lie on another page. Transposes
 * when it runs along k. */
static ALWAYS_INLINE void copy_panels(ptrdiff_t k, ptrdiff_t n, ptrdiff_t width, const real *src, ptrdiff_t row, real *dst)
{
    const ptrdiff_t whole = n - n % width;
    for (ptrdiff_t p = 0; p < k; p++, src += row, dst += width) {
        real *to = dst;
        for (ptrdiff_t j = 0; j < whole; j += width, to += k * width)
            for (ptrdiff_t i = 0; i < width; i++) to[i] = src[j + i];
        if (whole < n)
            for (ptrdiff_t i = 0; i < width; i++) to[i] = whole + i < n ? src[whole + i] : 0;
    }
}

static void pack(ptrdiff_t k, ptrdiff_t n, ptrdiff_t width, const real *src, ptrdiff_t row, ptrdiff_t col, real *dst)
{
    if (col == 1) {   /* the widths of panels as constants, so that a row of one is a few vectors */
        if (width == NR) copy_panels(k, n, NR, src, row, dst);
        else if (width == MR) copy_panels(k, n, MR, src, row, dst);
        else copy_panels(k, n, width, src, row, dst);
        return;
    }
    for (ptrdiff_t j0 = 0; j0 < n; j0 += width, dst += k * width)
        for (ptrdiff_t j = 0; j < width; j += PATCH) {   /* width is a multiple of PATCH here: the panels of B */
            const ptrdiff_t rest = n - j0 - j;
            const int columns = rest < PATCH ? rest > 0 ? (int)rest : 0 : PATCH;
            const real *from = src + (j0 + j) * col;
            ptrdiff_t p = 0;
            if (row == 1)
                for (; p + PATCH <= k; p += PATCH) v_transpose(from + p, col, columns, dst + p * width + j, width);
            for (; p < k; p++)
                for (int i = 0; i < PATCH; i++) dst[p * width + j + i] = i < columns ? from[p * row + i * col] : 0;
        }
}

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

    const real *row[(MR + 2) / 3];   /* every third row has its pointer; the two after it are one and two strides away */
    _Pragma("GCC unroll 8") for (int i = 0; i < mr; i += 3) row[i / 3] = a + i * a_row;
    for (ptrdiff_t p = q->k; p > 0; p--) {
        vreal bv[NV];
        _Pragma("GCC unroll 4") for (int v = 0; v < nv; v++) bv[v] = v_load(b + v * VL);
        _Pragma("GCC unroll 16") for (int i = 0; i < mr; i++) {
            const vreal ai = v_set(row[i / 3][i % 3 * a_row]);
            _Pragma("GCC unroll 4") for (int v = 0; v < nv; v++) acc[i][v] = v_fma(ai, bv[v], acc[i][v]);
        }
        _Pragma("GCC unroll 8") for (int i = 0; i < mr; i += 3) row[i / 3] += a_col;
        b += b_row;
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
    if (act == FBP_IDENTITY || act == FBP_RELU) return;
    for (int i = 0; i < mr; i++) {
        if (y) act_backward(act, nr, y + i * e->ldy, c + i * ldc, e->alpha, 0, c + i * ldc);
        else act_forward(act, nr, c + i * ldc, e->alpha, c + i * ldc);
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

/* Asks for the cache lines of a tile of C early; nothing is read. */
static ALWAYS_INLINE void fetch_tile(const real *c, ptrdiff_t ldc)
{
    for (int i = 0; i < MR; i++)
        for (int v = 0; v < NV; v++) __builtin_prefetch(c + i * ldc + v * VL, 1);
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
            if (i + MR < q->m) fetch_tile(q->c + (i + MR) * q->ldc + j, q->ldc);   /* the next tile's, while this one is computed */
            tiles[mr - 1][(nr - 1) / VL](q, a, b, q->c + i * q->ldc + j, nr, i, j);
        }
    }
}

/* y_j = [start] + sum over the B rows of x_ij, in ascending order. Several columns at once hide the latency of addition. */
static void column_sums(ptrdiff_t B, ptrdiff_t n, const real *x, ptrdiff_t ldx, int start, real *y)
{
    enum { WIDE = 8 };
    ptrdiff_t j = 0;
    for (; j + WIDE * VL <= n; j += WIDE * VL) {
        vreal acc[WIDE] = {{0}};
        for (ptrdiff_t i = 0; i < B; i++)
            for (int v = 0; v < WIDE; v++) acc[v] += v_load(x + i * ldx + j + v * VL);
        for (int v = 0; v < WIDE; v++) v_store(y + j + v * VL, start == FBP_ADD ? v_load(y + j + v * VL) + acc[v] : acc[v]);
    }
    for (; j < n; j += VL) {
        const ptrdiff_t r = n - j < VL ? n - j : VL;
        vreal acc = {0};
        if (r == VL) for (ptrdiff_t i = 0; i < B; i++) acc += v_load(x + i * ldx + j);
        else for (ptrdiff_t i = 0; i < B; i++) acc += v_load_n(x + i * ldx + j, r);
        v_store_n(y + j, start == FBP_ADD ? v_load_n(y + j, r) + acc : acc, r);
    }
}
