/* Sums over the rows of a matrix. */

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
