#include "gemm.h"
#include <assert.h>

static ptrdiff_t min(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }
static ptrdiff_t ceil_to(ptrdiff_t n, ptrdiff_t unit) { return (n + unit - 1) / unit * unit; }

/* A block is copied into panels when enough of B passes over it to pay for the copy. */
static int pays_to_pack_a(const fbp_kernels *t, ptrdiff_t n, ptrdiff_t k) { return n > 4 * t->nr && k >= 32; }

/* B must be copied when its rows are not contiguous, and is when enough of A passes over it. */
static int pays_to_pack_b(const fbp_kernels *t, ptrdiff_t m, const fbp_matrix *b) { return b->col != 1 || m > 3 * t->mr; }

static size_t aligned(size_t bytes) { return (bytes + 63) & ~(size_t)63; }

static size_t scratch_a(const fbp_kernels *t, ptrdiff_t m, ptrdiff_t k)
{
    return aligned((size_t)(min(ceil_to(m, t->mr), t->mc) * min(k, FBP_KC)) * t->size);
}

size_t fbp_gemm_scratch(const fbp_kernels *t, ptrdiff_t m, ptrdiff_t n, ptrdiff_t k)
{
    return scratch_a(t, m, k) + aligned((size_t)(min(ceil_to(n, t->nr), t->nc) * min(k, FBP_KC)) * t->size);
}

/* Rows [i0, i1) and columns [j0, j1) of the product, by one thread: the loops of Goto's algorithm around the block kernel.
 * A block of A stays in the second cache, a panel of B in the first. */
static void gemm_range(const fbp_kernels *t, const fbp_product *q, ptrdiff_t i0, ptrdiff_t i1, ptrdiff_t j0, ptrdiff_t j1, void *scratch)
{
    const int pack_a = pays_to_pack_a(t, j1 - j0, q->k), pack_b = pays_to_pack_b(t, i1 - i0, &q->b);
    void *a_panels = scratch, *b_panels = (char *)scratch + scratch_a(t, i1 - i0, q->k);
    for (ptrdiff_t j = j0; j < j1; j += t->nc) {
        const ptrdiff_t n = min(t->nc, j1 - j);
        const ptrdiff_t whole = pack_b ? 0 : n / t->nr * t->nr;   /* columns that B's own rows serve; a last partial panel is copied */
        for (ptrdiff_t p = 0; p == 0 || p < q->k; p += FBP_KC) {
            const ptrdiff_t k = min(FBP_KC, q->k - p);
            const fbp_matrix b = {fbp_at(t, q->b.p, p * q->b.row + j * q->b.col), q->b.row, q->b.col};
            if (whole < n) t->pack(k, n - whole, t->nr, fbp_at(t, b.p, whole * b.col), b.row, b.col, b_panels);
            for (ptrdiff_t i = i0; i < i1; i += t->mc) {
                fbp_block block = {
                    .m = min(t->mc, i1 - i), .n = whole, .k = k,
                    .a = fbp_at(t, q->a.p, i * q->a.row + p * q->a.col),
                    .a_row = q->a.row, .a_col = q->a.col, .a_panel = t->mr * q->a.row,
                    .b = b.p, .b_row = b.row, .b_panel = t->nr,
                    .c = fbp_at(t, q->c, i * q->ldc + j), .ldc = q->ldc,
                    .start = p == 0 ? q->start : q->chunked ? FBP_ADD : FBP_CONTINUE,
                };
                if (pack_a && q->a.col == 1) {   /* rows stay rows: a plain copy */
                    t->pack(block.m, k, k, block.a, q->a.row, 1, a_panels);
                    block.a_row = k, block.a_panel = t->mr * k;
                } else if (pack_a) {
                    t->pack(k, block.m, t->mr, block.a, q->a.col, q->a.row, a_panels);
                    block.a_row = 1, block.a_col = t->mr, block.a_panel = t->mr * k;
                }
                if (pack_a) block.a = a_panels;
                fbp_epilogue e;
                if (q->epilogue && p + k >= q->k) {
                    e = *q->epilogue;
                    e.bias = fbp_at(t, e.bias, j);
                    e.y = fbp_at(t, e.y, i * e.ldy + j);
                    block.epilogue = &e;
                }
                if (whole) t->block(&block);
                if (whole < n) {
                    block.n = n - whole;
                    block.b = b_panels, block.b_row = t->nr, block.b_panel = t->nr * k;
                    block.c = fbp_at(t, block.c, whole);
                    if (block.epilogue) e.bias = fbp_at(t, e.bias, whole), e.y = fbp_at(t, e.y, whole);
                    t->block(&block);
                }
            }
        }
    }
}

/* Splits C into a grid of parts, rows by columns, of the least estimated time: arithmetic on whole tiles plus the packing that
 * every part does for itself. */
static void choose_grid(const fbp_kernels *t, const fbp_product *q, int parts, int *grid_rows)
{
    double least = 0;
    for (int rows = 1; rows <= parts; rows++) {
        if (parts % rows) continue;
        const double m = (double)ceil_to((q->m + rows - 1) / rows, t->mr), n = (double)ceil_to((q->n + parts / rows - 1) / (parts / rows), t->nr);
        const double time = m * n / 16 + n + m / 2;
        if (least == 0 || time < least) least = time, *grid_rows = rows;
    }
}

void fbp_gemm(const fbp_kernels *t, const fbp_worker *w, const fbp_product *q, void *scratch)
{
    int rows = 1;
    assert(q->m >= 0 && q->n >= 0 && q->k >= 0 && q->ldc >= q->n);
    assert(q->a.row == 1 || q->a.col == 1);
    assert(q->b.row == 1 || q->b.col == 1);
    assert(0 <= w->part && w->part < w->parts);
    if (w->parts > 1) choose_grid(t, q, w->parts, &rows);
    const fbp_worker row = {w->part % rows, rows, w->team}, column = {w->part / rows, w->parts / rows, w->team};
    ptrdiff_t i0, i1, j0, j1;
    fbp_share(&row, q->m, t->mr, &i0, &i1);
    fbp_share(&column, q->n, t->nr, &j0, &j1);
    if (i0 < i1 && j0 < j1) gemm_range(t, q, i0, i1, j0, j1, scratch);
}

void fbp_column_sums(const fbp_kernels *t, const fbp_worker *w, ptrdiff_t B, ptrdiff_t n, const void *x, int start, void *y)
{
    enum { COLUMNS = 64 };   /* at least a few cache lines each */
    ptrdiff_t j0, j1;
    fbp_share(w, n, COLUMNS, &j0, &j1);
    if (j0 == j1) return;
    for (ptrdiff_t i = 0; i == 0 || i < B; i += FBP_KC)
        t->column_sums(min(FBP_KC, B - i), j1 - j0, fbp_at(t, x, i * n + j0), n, i ? FBP_ADD : start, fbp_at(t, y, j0));
}
