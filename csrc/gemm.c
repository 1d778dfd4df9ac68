#include "gemm.h"
#include "cpu.h"
#include <assert.h>

static ptrdiff_t min(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }
static ptrdiff_t ceil_to(ptrdiff_t n, ptrdiff_t unit) { return (n + unit - 1) / unit * unit; }

/* ---- blocks --------------------------------------------------------------------------------------------------------- */

/* Into parts of equal size, a multiple of `unit`, of about `most` at most. */
static ptrdiff_t even_parts(ptrdiff_t n, ptrdiff_t most, ptrdiff_t unit)
{
    if (n <= most) return n;
    const ptrdiff_t parts = (n + most - 1) / most;
    return ceil_to((n + parts - 1) / parts, unit);
}

enum { PANEL_BYTES = 16 << 10 };   /* of a B that stays in the first cache */

static ptrdiff_t block_depth(const fbp_kernels *t, const fbp_product *q, int flat)
{
    enum { SHALLOW = 32 };
    if (q->k == 0) return 1;   /* one block of nothing, for the bias and the activation */
    if (q->chunked) return min(q->k, fbp_chunk(q->k));
    if (q->n <= t->nr && q->a.col != 1 && (size_t)(q->k * q->a.col) * t->size > 4 * t->a_bytes)
        return even_parts(q->k, SHALLOW, 16);   /* lines that a tile takes in part wait in the second cache for the next one */
    if (flat && q->k * t->nr * (ptrdiff_t)t->size <= PANEL_BYTES) return q->k;
    return even_parts(q->k, flat ? PANEL_BYTES / (ptrdiff_t)t->size / t->nr : t->depth, 16);
}

static ptrdiff_t block_rows(const fbp_kernels *t, ptrdiff_t m, ptrdiff_t depth)
{
    if (m <= t->mr || (m + t->mr) * (depth > 256 ? depth : 256) * (ptrdiff_t)t->size <= (ptrdiff_t)t->a_bytes) return m;   /* a division takes long */
    const ptrdiff_t fit = (ptrdiff_t)(t->a_bytes / t->size) / (depth > 256 ? depth : 256) / t->mr * t->mr;
    return even_parts(m, fit, t->mr);
}

static ptrdiff_t line(const fbp_kernels *t) { return 64 / (ptrdiff_t)t->size; }   /* elements of a cache line */

enum { SMALL = 48 << 10 };   /* elements of A, B and C: together well within the second cache, undivided */
enum { WORTH_COPYING = 32, MANY_WAYS = 12 };   /* terms; of the first cache */

/* A is used where it lies unless so many panels of B pass over it that a copy pays: soon if its rows, or columns, fall into the same sets of the
 * caches, where the rows of a tile find room only if the first one has many ways, and if the lines that a tile takes of columns, in part, have left
 * the second cache before the next one wants the rest; late if they have not even left the first by much. */
static int pays_to_copy_a(const fbp_kernels *t, ptrdiff_t n, const fbp_product *q)
{
    enum { NEAR_BYTES = 128 << 10, NEAR_COLUMNS = 256 };
    if (q->k < WORTH_COPYING) return 0;
    const int by_rows = q->a.col == 1;
    const ptrdiff_t stride = (by_rows ? q->a.row : q->a.col) * (ptrdiff_t)t->size;
    const int same = by_rows ? stride % 4096 == 0 && fbp_cpu_cache_ways() < MANY_WAYS : stride % 1024 == 0;
    const size_t bytes = (size_t)(q->k * stride);
    if (!by_rows && stride % 512 && stride < 2048 && bytes <= NEAR_BYTES) return n > NEAR_COLUMNS;
    const int far = bytes > 4 * t->a_bytes, panels = by_rows ? (same ? 4 : 47) : far ? (same ? 1 : 2) : (same ? 4 : 6);
    return n > panels * t->nr;
}

/* B must be packed when its rows are not contiguous, and is when enough of A passes over it, unless it stays in the second cache as it lies,
 * which is less certain the more rows of C pass too. Where its own rows fall into the same sets it does not stay. */
static int pays_to_pack_b(const fbp_kernels *t, ptrdiff_t m, const fbp_product *q)
{
    if (q->b.col != 1) return 1;
    if (m <= 3 * t->mr) return 0;
    const size_t stride = (size_t)q->b.row * t->size, b = (size_t)q->k * stride, c = (size_t)(m * q->n) * t->size;
    return stride % 4096 == 0 || (b > t->a_bytes && (m > 12 * t->mr || b + c > 4 * t->a_bytes));
}

/* Columns of an unpacked B before those with which all of its rows begin a cache line, where it lies: a vector that crosses lines is loaded twice. */
static ptrdiff_t columns_before_lines(const fbp_kernels *t, ptrdiff_t m, const void *b, ptrdiff_t row, ptrdiff_t n)
{
    if (m <= FBP_FEW || row % line(t) || n < 8 * t->nr) return 0;   /* a pass over B of their own, as long as that for a vector of columns */
    return -(ptrdiff_t)((uintptr_t)b / t->size) & (line(t) - 1);
}

/* Between panels of A: with room for the vector that the last row may write past its end, and an odd number of cache lines, so that neighbours
 * never fall into the same set. */
static ptrdiff_t a_panel(const fbp_kernels *t, ptrdiff_t depth) { return (((t->mr * depth + t->nr + line(t) - 1) / line(t)) | 1) * line(t); }

static ptrdiff_t most_depth(const fbp_kernels *t, ptrdiff_t k) { return min(k, t->depth > FBP_CHUNK ? t->depth : FBP_CHUNK); }

static size_t aligned(size_t bytes) { return (bytes + 63) & ~(size_t)63; }

/* Room for a block of any product of at most these sizes: it grows with m and k, while blocks may shrink. */
static size_t scratch_a(const fbp_kernels *t, ptrdiff_t m, ptrdiff_t k)
{
    const ptrdiff_t room = (ptrdiff_t)(t->a_bytes / t->size), rows = min(ceil_to(m, t->mr), room / 256), padding = t->nr + 2 * line(t);
    return aligned((size_t)(min(rows * most_depth(t, k), room) + rows * padding) * t->size);
}

static size_t scratch_b(const fbp_kernels *t, ptrdiff_t n, ptrdiff_t k)
{
    return aligned((size_t)(min(ceil_to(n, t->nr), t->nc) * most_depth(t, k)) * t->size);
}

/* Elements of a block of C that is handed over and forgotten: in the second cache beside those of A and B. At least a row of tiles. */
enum { PASSING = 48 << 10 };

size_t fbp_gemm_scratch(const fbp_kernels *t, ptrdiff_t m, ptrdiff_t n, ptrdiff_t k)
{
    const size_t bytes = scratch_b(t, n, k) + scratch_a(t, m, k) + PASSING * t->size, broad = t->broad ? fbp_gemm_scratch(t->broad, m, n, k) : 0;
    return bytes > broad ? bytes : broad;
}

/* The block of A to `to`, in panels. */
static void copy_a(const fbp_kernels *t, fbp_block *block, void *to)
{
    const ptrdiff_t panel = a_panel(t, block->k);
    t->pack_a(block->k, block->m, block->a, block->a_row, block->a_col, to, panel);
    block->a_row = 1, block->a_col = t->mr, block->a_panel = panel;
    block->a = to;
}

/* A transposed B that few rows pass over: a copy would take as long as some more rows, and longer from beyond the second cache, or where columns fall
 * into the same sets of the first one. In doubles tiles catch up sooner. */
static int pays_in_strips(const fbp_kernels *t, const fbp_product *q, ptrdiff_t m)
{
    enum { WORTH_TWICE = 64 << 10, FEWEST_TERMS = 24 };   /* bytes; of more rows, as their end takes a while */
    if (q->b.col == 1 || m > 2 * t->strip_rows) return 0;
    if (fbp_sums_in_tiles(q->epilogue) || q->b.row != 1 || q->start != FBP_STORE || q->chunked || q->done) return 0;
    const size_t bytes = (size_t)(q->n * q->k) * t->size;
    const int far = bytes > 4 * t->a_bytes, same_sets = (size_t)q->b.col * t->size % 1024 == 0, singles = t->size == 4;
    const int by_lines = t->strip_rows > FBP_FEW;   /* which are faster than patches for all but one row */
    if (m <= FBP_FEW || q->k < FEWEST_TERMS) return m <= FBP_FEW;
    if (m <= t->strip_rows) return far || singles || same_sets;
    return far ? by_lines || !singles : by_lines && singles && bytes > WORTH_TWICE;
}

/* B lies by columns and A has fewer elements: Cᵀ = Bᵀ Aᵀ then, where A is packed and not B. */
static int pays_turned(const fbp_kernels *t, const fbp_product *q, ptrdiff_t m, ptrdiff_t n)
{
    enum { FEWEST = 2 * FBP_FEW + 1, NEAR_BYTES = 128 << 10 };
    if (q->b.col == 1 || q->a.col != 1 || m < FEWEST || m > n || m > FBP_TURNED_ROWS || q->k > t->depth || q->k < WORTH_COPYING) return 0;
    if (q->start != FBP_STORE || q->chunked || q->done || (q->epilogue && (q->epilogue->y || q->epilogue->sums))) return 0;
    const double packing = (size_t)(n * q->k) * t->size > NEAR_BYTES ? 12 : 6;   /* an element takes as long as that many multiply-adds */
    const ptrdiff_t half = t->nr / 2, rest = m % t->nr;
    const double columns = (double)ceil_to(m, half) + (0 < rest && rest <= half ? 0.2 * t->nr : 0);   /* half a tile takes longer than half the time */
    const double straight = (double)ceil_to(m, t->mr / 2) * (double)ceil_to(n, half) * (double)q->k + packing * (double)(n * q->k);
    const double turned = (double)ceil_to(n, t->mr) * columns * (double)q->k + packing * (double)(m * (n + q->k));
    return straight > 1.05 * turned;
}

/* The product's epilogue for the part of C that begins at (i, j). */
static fbp_epilogue epilogue_at(const fbp_kernels *t, const fbp_product *q, ptrdiff_t i, ptrdiff_t j)
{
    fbp_epilogue e = *q->epilogue;
    e.bias = fbp_at(t, e.bias, j);
    e.y = fbp_at(t, e.y, i * e.ldy + j);
    e.sums = fbp_at(t, e.sums, j);
    return e;
}

/* A range of the product as one block, of operands where they lie, or of a copy of B in these panels. */
static void gemm_at_once(const fbp_kernels *t, const fbp_product *q, ptrdiff_t i0, ptrdiff_t i1, ptrdiff_t j0, ptrdiff_t j1, int in_strips, int shared,
                         void *b_panels)
{
    const fbp_matrix b = {fbp_at(t, q->b.p, j0 * q->b.col), q->b.row, q->b.col};
    fbp_epilogue e;
    fbp_block block = {
        .m = i1 - i0, .n = j1 - j0, .k = q->k,
        .a = fbp_at(t, q->a.p, i0 * q->a.row), .a_row = q->a.row, .a_col = q->a.col, .a_panel = t->mr * q->a.row,
        .b = b.p, .b_row = b.row, .b_panel = in_strips ? b.col : t->nr,
        .c = fbp_at(t, q->c, i0 * q->ldc + j0), .ldc = q->ldc, .shared = shared,
        .start = q->start, .rate = q->rate, .not_finite = q->not_finite, .epilogue = q->epilogue,
    };
    if (q->epilogue && (i0 | j0)) e = epilogue_at(t, q, i0, j0), block.epilogue = &e;
    if (b_panels) {
        block.b = b_panels, block.b_row = t->nr, block.b_panel = t->nr * q->k;
        t->pack_b(block.k, block.n, b.p, b.row, b.col, b_panels, block.b_panel);
    }
    void (*const make)(const fbp_block *) = in_strips ? t->strips : t->block;
    make(&block);
    if (q->done) q->done(q->context, i0, i1 - i0, j0, j1 - j0, block.c, q->ldc);
    else if (q->prepared && block.m == q->m && block.n == q->n) {
        fbp_prepared *const p = q->prepared;
        *p = (fbp_prepared){.make = make, .block = block, .b = b, .b_panels = b_panels, .table = t};
        if (q->epilogue) p->epilogue = *block.epilogue, p->block.epilogue = &p->epilogue;
    }
}

void fbp_gemm_again(fbp_prepared *p, const void *a, const void *b)
{
    fbp_block *const block = &p->block;
    if (a) block->a = a;
    if (b) *(p->b_panels ? &p->b.p : &block->b) = b;
    if (p->b_panels) p->table->pack_b(block->k, block->n, p->b.p, p->b.row, p->b.col, p->b_panels, block->b_panel);
    p->make(block);
}

static void gemm_turned(const fbp_kernels *t, const fbp_product *q, ptrdiff_t i0, ptrdiff_t i1, ptrdiff_t j0, ptrdiff_t j1, void *scratch)
{
    const ptrdiff_t m = i1 - i0, row = ceil_to(m, line(t)), most = PASSING / row / t->mr * t->mr;
    void *a_panels = scratch, *sums = (char *)scratch + scratch_b(t, q->n, q->k) + scratch_a(t, q->m, q->k);
    t->pack_b(q->k, m, fbp_at(t, q->a.p, i0 * q->a.row), q->a.col, q->a.row, a_panels, t->nr * q->k);
    for (ptrdiff_t j = j0; j < j1; j += most) {
        const ptrdiff_t n = min(most, j1 - j);
        const fbp_block product = {
            .m = n, .n = m, .k = q->k,
            .a = fbp_at(t, q->b.p, j * q->b.col), .a_row = q->b.col, .a_col = 1, .a_panel = t->mr * q->b.col,
            .b = a_panels, .b_row = t->nr, .b_panel = t->nr * q->k,
            .c = sums, .ldc = row, .start = FBP_STORE,
        };
        t->block(&product);
        fbp_epilogue e;
        fbp_block turned = {.m = m, .n = n, .a = sums, .a_col = row, .c = fbp_at(t, q->c, i0 * q->ldc + j), .ldc = q->ldc};
        if (q->epilogue) e = epilogue_at(t, q, i0, j), turned.epilogue = &e;
        t->turn(&turned);
    }
}

/* How many of the last columns, which fill a small part of a vector, are had sooner as rows of Cᵀ = Bᵀ Aᵀ: where A lies by columns, or where they are
 * few and all there are. */
static ptrdiff_t columns_as_rows(const fbp_kernels *t, const fbp_product *q, ptrdiff_t m, ptrdiff_t n)
{
    enum { WORTH_TURNING = 400 };   /* multiply-adds of a vector that are saved */
    const ptrdiff_t vector = t->nr / 2;   /* a power of two */
    if (q->k < (n == 1 ? 1 : WORTH_COPYING)) return 0;
    if (q->start != FBP_STORE || (q->chunked && q->k > FBP_CHUNK) || q->done || (q->epilogue && (q->epilogue->y || q->epilogue->sums))) return 0;
    if (q->a.col == 1) {   /* in strips: more of them too, unless tiles of half a vector hold them */
        const ptrdiff_t most = t->size == 4 ? FBP_FEW : FBP_FEW / 2;
        const ptrdiff_t fewest_rows = n == 1 ? 1 : q->b.col == 1 ? 4 * n : (n > FBP_FEW ? n : FBP_FEW) + 1;   /* else B's columns are had in strips */
        return (n <= most || (n > vector / 2 && n < vector && n <= t->strip_rows)) && m >= fewest_rows && q->a.row != 1 ? n : 0;
    }
    const ptrdiff_t rest = n < vector ? n : q->b.col == 1 ? n & (vector - 1) : 0, vectors = (m + vector - 1) / vector;
    if (rest == 0 || (rest < n && (size_t)(m * q->k) * t->size > t->a_bytes)) return 0;
    if (rest > t->masked_rows && m % t->nr) return 0;   /* A, as B now, would have to be copied */
    return q->k * (m - (rest < n ? 2 : 1) * rest * vectors) >= WORTH_TURNING ? rest : 0;
}

/* Columns [j, j + n), so few that their rows are one tile high. */
static void gemm_columns_as_rows(const fbp_kernels *t, const fbp_product *q, ptrdiff_t i0, ptrdiff_t i1, ptrdiff_t j, ptrdiff_t n, void *scratch)
{
    const int is_row = n == 1 && q->ldc == 1, in_strips = q->a.col == 1;
    const ptrdiff_t most = is_row || n * (i1 - i0) <= PASSING - n * t->nr ? i1 - i0 : PASSING / n / t->nr * t->nr;
    void *const room = is_row ? NULL : (char *)scratch + scratch_b(t, q->n, q->k) + scratch_a(t, q->m, q->k);
    for (ptrdiff_t i = i0, m; i < i1; i += m) {
        m = min(most, i1 - i);
        void *const c = fbp_at(t, q->c, i * q->ldc + j);
        const fbp_block rows = {
            .m = n, .n = m, .k = q->k,
            .a = fbp_at(t, q->b.p, j * q->b.col), .a_row = q->b.col, .a_col = q->b.row, .a_panel = t->mr * q->b.col,
            .b = fbp_at(t, q->a.p, i * q->a.row), .b_row = q->a.col, .b_panel = in_strips ? q->a.row : t->nr,
            .c = is_row ? c : room, .ldc = ceil_to(m, line(t)), .start = FBP_STORE,
        };
        if (in_strips) t->strips(&rows);
        else t->block(&rows);
        if (is_row && !q->epilogue) continue;
        for (ptrdiff_t p = 0; p < m; p += FBP_TURNED_ROWS) {
            fbp_epilogue e;
            fbp_block turned = {.m = min(FBP_TURNED_ROWS, m - p), .n = n, .a = fbp_at(t, rows.c, p), .a_col = rows.ldc, .c = fbp_at(t, c, p * q->ldc), .ldc = q->ldc};
            if (q->epilogue) e = epilogue_at(t, q, i + p, j), turned.epilogue = &e;
            t->turn(&turned);
        }
    }
}

/* A panel of B serves once or twice: packed in pieces still in the first cache then. */
static int is_flat(const fbp_kernels *t, ptrdiff_t m) { return m <= 2 * t->mr; }

/* Whether it is a single block already. Small products come often: what is decided here must not take as long as they do. */
static int is_one_block(const fbp_kernels *t, const fbp_product *q, ptrdiff_t m, ptrdiff_t n, int packs_b)
{
    if (q->k == 0 || q->k > FBP_CHUNK || m * n + (m + n) * q->k > SMALL || q->passing) return 0;
    return packs_b ? !is_flat(t, m) || q->k * t->nr * (ptrdiff_t)t->size <= PANEL_BYTES : m <= t->masked_rows || n % t->nr == 0;
}

/* By tiles: the time for one term of all of C, where a whole tile takes 1, and more for beginning and ending every tile. */
static double tiles_time(const fbp_kernels *t, ptrdiff_t m, ptrdiff_t n, ptrdiff_t k)
{
    const double overhead = 4;   /* terms */
    const ptrdiff_t vector = line(t), vectors = t->nr / vector, last = m % t->mr, rest = (n % t->nr + vector - 1) / vector;
    const double rows = (double)(m / t->mr) + (last == 0 ? 0 : 2 * last < t->mr ? 0.5 : (double)last / (double)t->mr);
    const double columns = (double)(n / t->nr) + (rest == 0 ? 0 : 0.06 + (double)rest / (double)vectors);
    return rows * columns * (double)k + overhead * (double)((m + t->mr - 1) / t->mr * ((n + t->nr - 1) / t->nr));
}

/* Broad tiles read A less often: faster by some percent where it fills a good part of the second cache. */
static int pays_broad(const fbp_kernels *t, const fbp_product *q, ptrdiff_t m, ptrdiff_t n)
{
    enum { FAR_BYTES = 192 << 10 };
    if (n <= t->nr || !t->broad || m <= FBP_FEW || q->k < WORTH_COPYING) return 0;
    const double gain = (size_t)(m * q->k) * t->size > FAR_BYTES ? 1.05 : 1;
    return tiles_time(t, m, n, q->k) * gain > 1.01 * tiles_time(t->broad, m, n, q->k);
}

/* Rows [i0, i1) and columns [j0, j1) of the product, by one thread: the loops of Goto's algorithm around the block kernel. */
static void gemm_range(const fbp_kernels *t, const fbp_product *q, ptrdiff_t i0, ptrdiff_t i1, ptrdiff_t j0, ptrdiff_t j1, int shared, void *scratch)
{
    const ptrdiff_t as_rows = columns_as_rows(t, q, i1 - i0, j1 - j0);
    if (as_rows) {
        j1 -= as_rows;
        gemm_columns_as_rows(t, q, i0, i1, j1, as_rows, scratch);
        if (j0 == j1) return;
    }
    const int in_strips = pays_in_strips(t, q, i1 - i0);
    if (!in_strips && pays_turned(t, q, i1 - i0, j1 - j0)) {
        gemm_turned(t, q, i0, i1, j0, j1, scratch);
        return;
    }
    const fbp_kernels *const tiles = !in_strips && pays_broad(t, q, i1 - i0, j1 - j0) ? t->broad : t;
    const int copies_a = pays_to_copy_a(tiles, j1 - j0, q), packs_b = pays_to_pack_b(tiles, i1 - i0, q);
    if (in_strips || (!copies_a && is_one_block(tiles, q, i1 - i0, j1 - j0, packs_b))) {
        gemm_at_once(tiles, q, i0, i1, j0, j1, in_strips, shared, packs_b && !in_strips ? scratch : NULL);
        return;
    }
    const int flat = packs_b && is_flat(tiles, i1 - i0);
    const ptrdiff_t depth = block_depth(tiles, q, flat);
    const int passing = q->passing && q->k <= depth;
    const ptrdiff_t columns = flat ? tiles->nr : tiles->nc, most_rows = block_rows(tiles, i1 - i0, depth);
    const ptrdiff_t rows = passing ? min(most_rows, PASSING / min(columns, j1 - j0) / tiles->mr * tiles->mr) : most_rows;
    void *b_panels = scratch, *a_copy = NULL, *c_block = NULL;
    if (copies_a || passing) a_copy = (char *)scratch + scratch_b(tiles, q->n, q->k), c_block = (char *)a_copy + scratch_a(tiles, q->m, q->k);
    const ptrdiff_t lead = packs_b ? 0 : columns_before_lines(tiles, i1 - i0, fbp_at(t, q->b.p, j0), q->b.row, j1 - j0);
    for (ptrdiff_t j = j0, n; j < j1; j += n) {
        const int leads = lead > 0 && j == j0;   /* too few columns to copy A for them */
        n = leads ? lead : min(columns, j1 - j);
        const ptrdiff_t whole = packs_b ? 0 : i1 - i0 <= tiles->masked_rows ? n : n / tiles->nr * tiles->nr;   /* columns that B's own rows serve */
        for (ptrdiff_t p = 0; p == 0 || p < q->k; p += depth) {
            const ptrdiff_t k = min(depth, q->k - p);
            const fbp_kernels *const u = k < WORTH_COPYING ? t : tiles;   /* a remainder may have fewer terms than a broad tile at least */
            const fbp_matrix b = {fbp_at(t, q->b.p, p * q->b.row + j * q->b.col), q->b.row, q->b.col};
            if (whole < n) u->pack_b(k, n - whole, fbp_at(t, b.p, whole * b.col), b.row, b.col, b_panels, u->nr * k);
            for (ptrdiff_t i = i0; i < i1; i += rows) {
                fbp_block block = {
                    .m = min(rows, i1 - i), .n = whole, .k = k,
                    .a = fbp_at(t, q->a.p, i * q->a.row + p * q->a.col), .a_row = q->a.row, .a_col = q->a.col, .a_panel = u->mr * q->a.row,
                    .b = b.p, .b_row = b.row, .b_panel = u->nr,
                    .c = fbp_at(t, q->c, i * q->ldc + j), .ldc = q->ldc, .shared = shared,
                    .start = p == 0 ? q->start : q->chunked ? FBP_ADD : FBP_CONTINUE, .rate = q->rate, .not_finite = q->not_finite,
                };
                if (passing) block.c = c_block, block.ldc = n;
                if (copies_a && !leads && k >= WORTH_COPYING) copy_a(tiles, &block, a_copy);
                fbp_epilogue e;
                if (q->epilogue && p + k >= q->k) {
                    block.epilogue = q->epilogue;
                    if (i | j) e = epilogue_at(t, q, i, j), block.epilogue = &e;
                }
                void *const c = block.c;
                if (whole) u->block(&block);
                if (whole < n) {
                    block.n = n - whole;
                    block.b = b_panels, block.b_row = u->nr, block.b_panel = u->nr * k;
                    block.c = fbp_at(t, block.c, whole);
                    if (block.epilogue) e = epilogue_at(t, q, i, j + whole), block.epilogue = &e;
                    u->block(&block);
                }
                if (q->done && p + k >= q->k) q->done(q->context, i, block.m, j, n, c, block.ldc);
            }
        }
    }
}

/* ---- threads -------------------------------------------------------------------------------------------------------- */

/* Splits C into a grid of parts, rows by columns, of the least estimated time: arithmetic on half tiles, which run at the speed of
 * whole ones or nearly so, plus the packing that every part does for itself. Writing to a cache line that another core has read takes
 * longer than some hundred multiply-adds, so it had better be the same worker that meets an element of C from product to product. */
static void choose_grid(const fbp_kernels *t, const fbp_product *q, int parts, int *grid_rows)
{
    const int wanted = q->division == FBP_BY_ROWS ? parts : q->division == FBP_BY_COLUMNS ? 1 : 0;
    double least = 0;
    for (int rows = 1; rows <= parts; rows++) {
        if (parts % rows) continue;
        const double m = (double)ceil_to((q->m + rows - 1) / rows, t->mr / 2), n = (double)ceil_to((q->n + parts / rows - 1) / (parts / rows), t->nr / 2);
        const double time = (m * n / 16 + n + m / 2) * (rows == wanted ? 0.8 : 1);
        if (least == 0 || time < least) least = time, *grid_rows = rows;
    }
}

void fbp_gemm(const fbp_kernels *t, const fbp_worker *w, const fbp_product *q, void *scratch)
{
    assert(q->m >= 0 && q->n >= 0 && q->k >= 0 && q->ldc >= q->n);
    assert(q->a.row == 1 || q->a.col == 1);
    assert(q->b.row == 1 || q->b.col == 1);
    assert(0 <= w->part && w->part < w->parts);
    assert(q->start != FBP_DESCEND || (q->chunked && q->k <= FBP_CHUNK));
    if (w->parts == 1) {
        if (q->m > 0 && q->n > 0) gemm_range(t, q, 0, q->m, 0, q->n, 0, scratch);
        return;
    }
    int rows = 1;
    choose_grid(t, q, w->parts, &rows);
    const fbp_worker row = {w->part % rows, rows, w->team}, column = {w->part / rows, w->parts / rows, w->team};
    ptrdiff_t i0, i1, j0, j1;
    fbp_share(&row, q->m, q->division == FBP_BY_ROWS ? FBP_LINE : t->mr / 2, &i0, &i1);
    fbp_share(&column, q->n, FBP_LINE, &j0, &j1);
    if (i0 < i1 && j0 < j1) gemm_range(t, q, i0, i1, j0, j1, !q->kept, scratch);
}

void fbp_column_sums(const fbp_kernels *t, ptrdiff_t B, ptrdiff_t n, const void *x, ptrdiff_t ldx, int start, void *y)
{
    const ptrdiff_t chunk = fbp_chunk(B);
    for (ptrdiff_t i = 0; i == 0 || i < B; i += chunk)
        t->column_sums(min(chunk, B - i), n, fbp_at(t, x, i * ldx), ldx, i ? FBP_ADD : start, y);
}
