/* The sizes of register tiles and cache blocks, and copies of A and B in panels for them. */

/* The register tile: MR x NV vectors of accumulators, NV vectors of B and one broadcast of A must fit the registers. With 32 of them there is a broad
 * tile too: it reads a block of A less often, which pays where that comes from the second cache, or where columns are three vectors. */
#ifdef FBP_IS_BROAD
enum { MR = 8, NV = 3 };
#define EACH_MR(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8)
#elif VBYTES == 64 || defined(__aarch64__)
enum { MR = 12, NV = 2 };
#define EACH_MR(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12)
#else
enum { MR = 6, NV = 2 };
#define EACH_MR(X) X(1) X(2) X(3) X(4) X(5) X(6)
#endif
#define NR (NV * (int)VL)

enum { LINE = 64 / sizeof(real) };   /* elements of a cache line */

/* Rows of A up to which the last, ragged panel of B is read where it lies, under a mask; for more of them it is copied, unless such a load costs
 * no more than any other. */
enum { MASKED_ROWS = VBYTES == 64 ? 1 << 30 : VBYTES == 32 ? 8 * MR : 0 };

/* Cache blocks. A panel of B (DEPTH x NR) streams from the second cache beside a block of A that stays there; a deep block
 * visits C seldom. */
#if VBYTES == 64
enum { DEPTH = 4096 / sizeof(real), NC = 2048 / (NV * 16) * (NV * 16), A_BYTES = 256 << 10 };
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

/* Row by row over all panels: a row is a stream, the next one may lie on another page. The short rows of a block of A are fetched ahead if they come
 * from beyond the second cache, as no processor does that from page to page. */
static ALWAYS_INLINE void copy_panels(const int width, ptrdiff_t k, ptrdiff_t n, const real *src, ptrdiff_t row, real *dst, ptrdiff_t panel)
{
    enum { ROWS_AHEAD = 2, FAR_BYTES = 1 << 20 };
    const int fetches = width == MR && (size_t)(k * row) * sizeof(real) > FAR_BYTES;
    for (ptrdiff_t p = 0; p < k; p++, src += row, dst += width) {
        real *to = dst;
        if (fetches) for (ptrdiff_t j = 0; j < n; j += LINE) __builtin_prefetch(src + ROWS_AHEAD * row + j);
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

/* Columns [j0, n) and rows [p0, k) of a panel: STRETCH rows at a time, that stay in the first cache, and in them patches from the last to the first: what
 * one writes too much belongs to the next row. */
enum { STRETCH = 32 };

static ALWAYS_INLINE void transpose_patches(const int width, ptrdiff_t p0, ptrdiff_t k, ptrdiff_t j0, ptrdiff_t n, const real *src, ptrdiff_t col, real *dst)
{
    for (ptrdiff_t end; p0 < k; p0 = end) {
        end = k - p0 < STRETCH ? k : p0 + STRETCH;
        for (ptrdiff_t j = (width - 1) / PATCH * PATCH; j >= j0; j -= PATCH) {
            if (j >= n) continue;
            const real *column[PATCH];
            vpatch t[PIECE];
            find_columns(src, col, n, j, column);
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

#if VBYTES == 64
/* Of whole vectors of columns, whole cache lines: fewer instructions, and no line is wanted twice. */
static ALWAYS_INLINE void transpose_vectors(const int width, ptrdiff_t k, ptrdiff_t n, const real *src, ptrdiff_t col, real *dst)
{
    for (ptrdiff_t j = 0; j < n; j += VL) {
        const real *column[VL];
        real *to = dst + j;
        _Pragma("GCC unroll 16") for (int v = 0; v < VL; v++) column[v] = src + (j + v) * col;
        for (ptrdiff_t p = 0; p < k; p += VL) {
            vreal t[VL];
            v_transpose_lines(column, p, t);
            _Pragma("GCC unroll 16") for (int i = 0; i < VL; i++, to += width) v_store(to, t[i]);
        }
    }
}
#endif

static ALWAYS_INLINE void transpose_panels(const int width, ptrdiff_t k, ptrdiff_t n, const real *src, ptrdiff_t col, real *dst, ptrdiff_t panel)
{
    for (ptrdiff_t j = 0; j < n; j += width, src += width * col, dst += panel) {
        const ptrdiff_t columns = n - j < width ? n - j : width;
#if VBYTES == 64
        const ptrdiff_t vectors = width % VL ? 0 : columns / VL * VL, lines = vectors ? k / VL * VL : 0;
        transpose_vectors(width, lines, vectors, src, col, dst);
#else
        enum { vectors = 0, lines = 0 };
#endif
        if (vectors < columns) transpose_patches(width, 0, lines, vectors, columns, src, col, dst);
        transpose_patches(width, lines, k, 0, columns, src, col, dst);
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
