/* Standardised rows and columns, a factor and a summand per column, rows of a table.
 *
 * Sums along a row are made in double over LANES accumulators; sums along a column, of FBP_CHUNK rows each, in rows' order. */

/* y = (x - mean) r with r = 1/sqrt(var + eps), var = mean of (x - mean)², for each row of x (B, n); r is kept. */
static void standardise_rows(ptrdiff_t B, ptrdiff_t n, const real *x, double eps, real *r, real *y)
{
    for (ptrdiff_t i = 0; i < B; i++, x += n, y += n) {
        const double mean = sum(n, x) / (double)n;
        for (ptrdiff_t j = 0; j < n; j++) y[j] = (real)((double)x[j] - mean);
        r[i] = (real)(1 / sqrt(sum_of_squares(n, y) / (double)n + eps));
        for (ptrdiff_t j = 0; j < n; j++) y[j] *= r[i];
    }
}

/* dx = r (dy - mean(dy) - y mean(dy y)) */
static void standardise_rows_backward(ptrdiff_t B, ptrdiff_t n, const real *y, const real *r, const real *dy, int add, real *dx)
{
    for (ptrdiff_t i = 0; i < B; i++, y += n, dy += n, dx += n) {
        const real mean = (real)(sum(n, dy) / (double)n), slope = (real)(dot(n, dy, y) / (double)n);
        for (ptrdiff_t j = 0; j < n; j++) {
            const real d = r[i] * (dy[j] - mean - y[j] * slope);
            dx[j] = add ? dx[j] + d : d;
        }
    }
}

/* y = [y +] x w + b: w and b (n), b or NULL; rows of x and y lie ld apart. */
static void scale_columns(ptrdiff_t B, ptrdiff_t n, ptrdiff_t ld, const real *x, const real *w, const real *b, int add, real *y)
{
    for (ptrdiff_t i = 0; i < B; i++, x += ld, y += ld)
        for (ptrdiff_t j = 0; j < n; j += VL) {
            const ptrdiff_t c = n - j < VL ? n - j : VL;
            const vreal xw = v_part(x + j, c) * v_part(w + j, c), v = b ? xw + v_part(b + j, c) : xw;
            v_put(y + j, add ? v_part(y + j, c) + v : v, c);
        }
}

static void chunked_products(ptrdiff_t B, ptrdiff_t n, ptrdiff_t ld, const real *a, const real *b, real *y)
{
    for (ptrdiff_t i = 0; i == 0 || i < B; i += FBP_CHUNK)
        sum_columns(B - i < FBP_CHUNK ? B - i : FBP_CHUNK, n, a + i * ld, b ? b + i * ld : NULL, ld, i ? FBP_ADD : FBP_STORE, y);
}

/* y = (x - mean) r, r = 1/sqrt(var + eps), for n columns of x (B, ld). mean and var (biased) are those of the columns, and are stored, or are `given`. */
static void standardise_columns(ptrdiff_t B, ptrdiff_t n, ptrdiff_t ld, const real *x, int given, double eps, real *mean, real *var, real *r, real *y)
{
    if (!given) {
        chunked_products(B, n, ld, x, NULL, mean);
        for (ptrdiff_t j = 0; j < n; j++) mean[j] /= (real)B;
    }
    for (ptrdiff_t i = 0; i < B; i++)
        for (ptrdiff_t j = 0; j < n; j++) y[i * ld + j] = x[i * ld + j] - mean[j];
    if (!given) {
        chunked_products(B, n, ld, y, y, var);
        for (ptrdiff_t j = 0; j < n; j++) var[j] /= (real)B;
    }
    for (ptrdiff_t j = 0; j < n; j++) r[j] = (real)(1 / sqrt((double)var[j] + eps));
    scale_columns(B, n, ld, y, r, NULL, 0, y);
}

/* dx = r (dy - mean(dy) - y mean(dy y)), or r dy where mean and var were given. mean, slope: room for n numbers each. */
static void standardise_columns_backward(ptrdiff_t B, ptrdiff_t n, ptrdiff_t ld, const real *y, const real *r, const real *dy, int given, real *mean,
                                         real *slope, int add, real *dx)
{
    if (!given) {
        chunked_products(B, n, ld, dy, NULL, mean);
        chunked_products(B, n, ld, dy, y, slope);
        for (ptrdiff_t j = 0; j < n; j++) mean[j] *= -r[j] / (real)B, slope[j] *= -r[j] / (real)B;
        scale_columns(B, n, ld, y, slope, mean, add, dx);
        add = 1;
    }
    scale_columns(B, n, ld, dy, r, NULL, add, dx);
}

/* Row i of y (n, width) is the row of w (rows, width) whose number x_i is; NaN for numbers that are no row's. */
static void take_rows(ptrdiff_t n, const real *x, ptrdiff_t rows, ptrdiff_t width, const real *w, real *y)
{
    for (ptrdiff_t i = 0; i < n; i++, y += width) {
        const int there = x[i] >= 0 && x[i] < (real)rows;
        if (there) memcpy(y, w + (ptrdiff_t)x[i] * width, (size_t)width * sizeof(real));
        else for (ptrdiff_t j = 0; j < width; j++) y[j] = (real)NAN;
    }
}

/* Adds row i of dy (n, width) to the row of dw whose number x_i is, for numbers in [first, last). */
static void add_rows(ptrdiff_t n, const real *x, ptrdiff_t first, ptrdiff_t last, ptrdiff_t width, const real *dy, real *dw)
{
    for (ptrdiff_t i = 0; i < n; i++, dy += width) {
        if (!(x[i] >= (real)first && x[i] < (real)last)) continue;
        real *row = dw + (ptrdiff_t)x[i] * width;
        for (ptrdiff_t j = 0; j < width; j += VL) {
            const ptrdiff_t c = width - j < VL ? width - j : VL;
            v_put(row + j, v_part(row + j, c) + v_part(dy + j, c), c);
        }
    }
}
