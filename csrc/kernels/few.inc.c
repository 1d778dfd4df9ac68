/* Products with few rows or few terms, for which tiles do not pay. The same chains as in a tile. */

enum { FEW = FBP_FEW };
enum { STRIP_ROWS = VBYTES == 64 ? 2 * FEW : FEW };   /* what the registers hold beside a vector of columns */

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

#if VBYTES == 64
/* The same by vectors of columns, a whole cache line of each at a time: for columns that fall into the same sets of the first cache, which keeps no line
 * until its next piece is wanted; and with more rows this takes fewer instructions. Columns that do not exist are read as the first one. */
static ALWAYS_INLINE void strip_of_lines(const int mr, const fbp_block *q, ptrdiff_t j, ptrdiff_t columns, real *c, ptrdiff_t ldc)
{
    const real *column[VL], *a[STRIP_ROWS];
    vreal acc[STRIP_ROWS], t[VL];
#define EACH _Pragma("GCC unroll 12") for (int i = 0; i < mr; i++)
#define COLUMNS _Pragma("GCC unroll 16") for (int v = 0; v < VL; v++)
    COLUMNS column[v] = q->b + (j + (v < columns ? v : 0)) * q->b_panel;
    EACH a[i] = q->a + i * q->a_row, acc[i] = (vreal){0};
    ptrdiff_t p = 0;
    for (; p + VL <= q->k; p += VL) {
        v_transpose_lines(column, p, t);
        _Pragma("GCC unroll 16") for (int l = 0; l < VL; l++) EACH acc[i] = v_fma(v_set(a[i][l * q->a_col]), t[l], acc[i]);
        EACH a[i] += VL * q->a_col;
    }
    if (p < q->k) {
        real last[VL][VL];
        COLUMNS v_store(last[v], v_load_n(column[v] + p, q->k - p)), column[v] = last[v];
        v_transpose_lines(column, 0, t);
        COLUMNS v_store(last[v], t[v]);
        for (ptrdiff_t l = 0; l < q->k - p; l++) EACH acc[i] = v_fma(v_set(a[i][l * q->a_col]), v_load(last[l]), acc[i]);
    }
    EACH v_store(c + i * ldc, acc[i]);
#undef COLUMNS
#undef EACH
}
#endif

/* A function for every number of rows, so that what they share are registers: columns [j, j + n) to a room of rows of STRIP_COLUMNS. The last columns go at
 * once too: as sums wait for themselves, two patches take no longer than one. */
enum { STRIP_COLUMNS = 4 * PATCH };
#define ONE(m, patches) (n == (patches) * PATCH ? strip(m, patches, 1, q, j, room, STRIP_COLUMNS) : strip(m, patches, 0, q, j, room, STRIP_COLUMNS))
#define STRIP(m, most) \
    static void strip_##m(const fbp_block *q, ptrdiff_t j, ptrdiff_t n, real *room) \
    { \
        if (most > 2 && n > 2 * PATCH) ONE(m, most); \
        else if (most > 1 && n > PATCH) ONE(m, most > 1 ? 2 : 1); \
        else ONE(m, 1); \
    }
#if VBYTES == 64
enum { PATCHES = 2 };   /* of more than three rows: what the registers hold */
#define LINES(m) static void lines_##m(const fbp_block *q, ptrdiff_t j, ptrdiff_t n, real *room) { strip_of_lines(m, q, j, n, room, STRIP_COLUMNS); }
LINES(1) LINES(2) LINES(3) LINES(4) LINES(5) LINES(6) LINES(7) LINES(8) LINES(9) LINES(10) LINES(11) LINES(12)
#undef LINES
#else
enum { PATCHES = 1 };
#endif
STRIP(1, 4) STRIP(2, 2) STRIP(3, 2) STRIP(4, PATCHES) STRIP(5, PATCHES) STRIP(6, PATCHES)
#undef STRIP
#undef ONE

/* At most 2*STRIP_ROWS rows, stored; b[p + j*b_panel]. */
static void strips(const fbp_block *q)
{
    static void (*const of_patches[FEW])(const fbp_block *, ptrdiff_t, ptrdiff_t, real *) = {strip_1, strip_2, strip_3, strip_4, strip_5, strip_6};
#if VBYTES == 64
    static void (*const of_lines[STRIP_ROWS])(const fbp_block *, ptrdiff_t, ptrdiff_t, real *) = {lines_1, lines_2, lines_3, lines_4,  lines_5,  lines_6,
                                                                                                  lines_7, lines_8, lines_9, lines_10, lines_11, lines_12};
#else
    static void (*const *const of_lines)(const fbp_block *, ptrdiff_t, ptrdiff_t, real *) = NULL;
#endif
    assert(0 < q->m && q->m <= 2 * STRIP_ROWS && q->n > 0 && q->start == FBP_STORE);
    const size_t stride = (size_t)q->b_panel * sizeof(real);
    const int same_sets = stride % 1024 == 0, one_set = stride % 4096 == 0;   /* of the first cache, for all columns */
    const int by_lines = VBYTES == 64 && (same_sets || q->m > (sizeof(real) == 4 ? 1 : FEW));
    const ptrdiff_t most = by_lines ? VL : PATCH * (one_set ? 1 : q->m == 1 && !same_sets ? 4 : q->m <= 3 ? 2 : PATCHES);
    for (ptrdiff_t j = 0, n; j < q->n; j += n) {
        real room[STRIP_ROWS * STRIP_COLUMNS];
        fbp_block part = *q;   /* the rows that registers hold, or half of them all: the second ones find the columns in a cache */
        n = q->n - j < most ? q->n - j : most;
        const int half_empty = n <= PATCH && q->m <= FEW;
        for (ptrdiff_t i0 = 0; i0 < q->m; i0 += part.m) {
            part.a = q->a + i0 * q->a_row;
            part.m = q->m <= STRIP_ROWS ? q->m : i0 == 0 ? (q->m + 1) / 2 : q->m / 2;
            (by_lines && !half_empty ? of_lines : of_patches)[part.m - 1](&part, j, n, room);
            for (ptrdiff_t i = 0; i < part.m; i++) finish_row(q, room + i * STRIP_COLUMNS, i0 + i, j, n);
        }
    }
    activate(q);
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
    return (far || one) && in_rows && q->m <= most && (q->start == FBP_STORE || q->start == FBP_CONTINUE) && !fbp_sums_in_tiles(q->epilogue);
}

/* A product of few terms: a vector of every row of B, or two, stays in registers while the rows of A pass over them. The same chains as in a tile.
 * Where there are only sixteen registers, tiles are as fast or faster, and this is for no terms at all. */
enum { PAIRED_TERMS = 11 };
#if VBYTES == 64
enum { TERMS = 20 };
#elif defined(__aarch64__)
enum { TERMS = 16 };
#else
enum { TERMS = 0 };
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
    vreal b[TERMS + 1][NV], bias[NV], sum[NV], check = {0};
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
#define UP_TO_TERMS(X) X(0)
#endif
UP_TO_TERMS(FEW_TERMS)

static int by_columns(const fbp_block *q) { return q->a_col != 1 || q->start == FBP_DESCEND; }

/* Half a vector is faster in a tile, and so are the fewest rows; but a tile has LAST terms at least. */
static int pays_by_terms(const fbp_block *q)
{
    if (q->k < LAST) return 1;
    if (by_columns(q) && (q->a_row != 1 || fbp_sums_in_tiles(q->epilogue))) return 0;
    const ptrdiff_t most = VBYTES == 64 && q->n > VL ? PAIRED_TERMS : TERMS;
    return q->k <= most && q->m > 4 && (VBYTES < 64 || q->n > VL / 2) && q->a_panel == MR * q->a_row;
}
