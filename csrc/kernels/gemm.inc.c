/* Products: C (m, n) = [start] + A (m, k) B (k, n).
 *
 * Every element of C is one chain of fused multiply-adds in ascending k, in one accumulator lane, whatever tile it falls in:
 * a tail runs the same instructions on fewer rows or with idle lanes. So a result depends neither on its position nor on
 * what is computed beside it. */

enum { THIN = 4 };    /* rows: a tile of fewer waits for its own sums, so the one before it shares its rows */

/* What a tile is going to read at its end. */
static void fetch_rows(const real *p, ptrdiff_t row, ptrdiff_t m)
{
    for (ptrdiff_t i = 0; i < m; i++, p += row)
        for (ptrdiff_t j = 0; j < NR; j += LINE) __builtin_prefetch(p + j);
}

/* Panel by panel of B, from the top of A to its bottom. */
static ALWAYS_INLINE void by_tiles(const fbp_block *q)
{
    const real *b = q->b;
    const int in_rows = q->a_panel == MR * q->a_row;   /* a tile may begin at any row */
    const int does = what_it_does(q);
    const int fetches_y = does & FAR && does & MASKS && (size_t)(q->m * q->n) * sizeof(real) >= A_BYTES;   /* which has left the second cache */
    const ptrdiff_t part = (q->k / STEPS + 1) * NR;
    assert(q->m > 0 && q->n > 0 && q->k >= LAST);
    assert(FBP_STORE <= q->start && q->start <= FBP_DESCEND);
    for (ptrdiff_t j = 0; j < q->n; j += NR, b += q->b_panel) {
        const ptrdiff_t nr = q->n - j < NR ? q->n - j : NR, lacks = (nr + VL - 1) / VL * VL - nr;
        const int padded = VBYTES < 64 && !(MASKED_ROWS && q->b_panel == NR);   /* a copy; of one term, it may be masked as well */
        const int ragged = lacks == 0 ? WHOLE : padded ? PADDED : VBYTES == 64 && lacks >= VL / 2 ? HALF : RAGGED;
        /* The first tiles beside a panel of a packed B fetch a part of the next panel each; but beside the first one, every tile what it can of the
         * rows of A that follow, which nobody may have read yet. */
        const real *a = q->a, *panel = q->b_row != NR ? b : j + NR < q->n ? b + q->b_panel : q->b, *soon = panel;
        for (ptrdiff_t i = 0, mr, count; i < q->m; i += count * mr, a += mr == MR ? count * q->a_panel : mr * q->a_row, soon += part) {
            const ptrdiff_t rest = q->m - i, thin = in_rows && 0 < rest % MR && rest % MR < THIN;
            if (j == 0 && in_rows && q->a_col == 1) soon = a + MR * q->a_row;
            else if (soon >= panel + q->k * NR) soon = b;
            mr = rest < MR ? rest : thin && rest < 2 * MR ? (rest + 1) / 2 : MR;
            count = mr < MR || does & FAR ? 1 : rest / MR - thin;   /* those that fetch fetch different memory */
            if (fetches_y) fetch_rows(q->epilogue->y + i * q->epilogue->ldy + j, q->epilogue->ldy, mr);
            tiles[mr - 1][(nr - 1) / VL][ragged][q->a_col != 1](q, does, a, b, soon, q->c + i * q->ldc + j, nr, i, j, count);
        }
    }
}

#ifdef FBP_IS_BROAD
static void block(const fbp_block *q)
{
    by_tiles(q);
    activate(q);
}
#else
static void block(const fbp_block *q)
{
    static void (*const rows[FEW])(const fbp_block *) = {rows_1, rows_2, rows_3, rows_4, rows_5, rows_6};
    static void (*const terms[TERMS + 1][2])(const fbp_block *) = {UP_TO_TERMS(BOTH_TERMS)};
    assert(q->m > 0 && q->n > 0 && q->k >= 0);
    if (pays_by_rows(q)) rows[q->m - 1](q);
    else if (pays_by_terms(q)) terms[q->k][by_columns(q)](q);
    else by_tiles(q);
    activate(q);
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

/* The only one, of sums that lie as it does, if not there. */
static void finish_column(const fbp_block *q, const int rectifies)
{
    const real *bias = q->epilogue ? q->epilogue->bias : NULL;
    if (q->a == q->c && !bias && !rectifies) return;
    for (ptrdiff_t i = 0; i < q->m; i += VL) {
        const ptrdiff_t n = q->m - i < VL ? q->m - i : VL;
        vreal v = v_part(q->a + i, n);
        if (bias) v += v_set(*bias);
        v_put(q->c + i, rectifies ? relu(v, 0) : v, n);
    }
}

/* C of its transposed sums, which lie in a: element (i, j) at a[i + j*a_col]. */
static void turn(const fbp_block *q)
{
    const fbp_epilogue *e = q->epilogue;
    const int rectifies = e && e->act == FBP_RELU;
    real panel[FBP_TURNED_ROWS * VL + PATCH] __attribute__((aligned(64)));
    assert(q->m <= FBP_TURNED_ROWS);
    if (q->n == 1 && q->ldc == 1) finish_column(q, rectifies);
    else for (ptrdiff_t j = 0; j < q->n; j += VL) {
        const ptrdiff_t n = q->n - j < VL ? q->n - j : VL;
        transpose_panels(VL, q->m, n, q->a + j * q->a_col, q->a_col, panel, 0);
        if (!e || !e->bias) finish_columns(q, 0, rectifies, panel, j, n);
        else if (n == VL) finish_columns(q, 1, rectifies, panel, j, VL);
        else finish_columns(q, 1, rectifies, panel, j, n);
    }
    activate(q);
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
#endif
