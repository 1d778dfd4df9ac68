/* Activations and the other passes over n independent elements.
 *
 * A pass runs one vector function over the body and over the tail (idle lanes read as 0 and are not stored), so an element's
 * result does not depend on where it stands. */

typedef vreal unary(vreal x, real alpha);
typedef vreal unary_backward(vreal s, vreal dy, real alpha);

/* Processors take a load for one of what has just been stored if the addresses agree in their last twelve bits, and let it wait. Where y is that
 * little ahead of x, as arrays of whole pages often are when one is allocated after the other, a pass from the end never meets its own stores. */
static ALWAYS_INLINE int meets_its_stores(const real *x, const real *y)
{
    const uintptr_t ahead = ((uintptr_t)y - (uintptr_t)x) % 4096;
    return 0 < ahead && ahead < 1024;
}

/* Results that have left the caches before anyone reads them go past them: else every line would be read before it is written. */
static ALWAYS_INLINE int is_streamed(ptrdiff_t n, const real *y)
{
    enum { FAR_BYTES = 8 << 20 };
    return (size_t)n * sizeof(real) >= FAR_BYTES && (uintptr_t)y % sizeof(real) == 0;
}

/* y_i = value(i, r), r elements of it. */
#define STREAM(n, y, value) { \
        ptrdiff_t i = (ptrdiff_t)(-(uintptr_t)(y) % VBYTES / sizeof(real)); \
        if (i > 0) v_store_n(y, value(0, i), i); \
        for (; i + VL <= n; i += VL) v_stream(y + i, value(i, VL)); \
        if (i < n) v_store_n(y + i, value(i, n - i), n - i); \
        v_streamed(); }

static ALWAYS_INLINE void map(ptrdiff_t n, const real *x, real alpha, real *y, unary *f)
{
#define VALUE(i, r) f(v_part(x + (i), r), alpha)
    if (x != y && is_streamed(n, y)) {
        STREAM(n, y, VALUE)
        return;
    }
#undef VALUE
    const ptrdiff_t whole = n / VL * VL;
    if (whole < n) v_store_n(y + whole, f(v_load_n(x + whole, n - whole), alpha), n - whole);
    const int back = meets_its_stores(x, y);
    const ptrdiff_t step = back ? -VL : VL;
    for (ptrdiff_t i = back ? whole - VL : 0; 0 <= i && i < whole; i += step) v_store(y + i, f(v_load(x + i), alpha));
}

static ALWAYS_INLINE void map_backward(ptrdiff_t n, const real *s, const real *dy, real alpha, int add, real *dx, unary_backward *f)
{
#define VALUE(i, r) f(v_part(s + (i), r), v_part(dy + (i), r), alpha)
    if (!add && dx != s && dx != dy && is_streamed(n, dx)) {
        STREAM(n, dx, VALUE)
        return;
    }
#undef VALUE
    ptrdiff_t i = 0;
    for (; i + VL <= n; i += VL) {
        const vreal d = f(v_load(s + i), v_load(dy + i), alpha);
        v_store(dx + i, add ? v_load(dx + i) + d : d);
    }
    if (i < n) {
        const vreal d = f(v_load_n(s + i, n - i), v_load_n(dy + i, n - i), alpha);
        v_store_n(dx + i, add ? v_load_n(dx + i, n - i) + d : d, n - i);
    }
}

/* ---- y = f(x) and dx = dy * f'(s). Comparisons are written so that NaN passes through, and ReLU'(0) = 0. ------------ */

static ALWAYS_INLINE vreal identity(vreal x, real alpha) { (void)alpha; return x; }
static ALWAYS_INLINE vreal relu(vreal x, real alpha) { (void)alpha; return v_max((vreal){0}, x); }   /* NaN and -0 stay what they are */
static ALWAYS_INLINE vreal leaky_relu(vreal x, real alpha) { return v_select(x > 0, x, x * alpha); }
static ALWAYS_INLINE vreal sigmoid(vreal x, real alpha) { (void)alpha; return v_sigmoid(x); }
static ALWAYS_INLINE vreal tanh_(vreal x, real alpha) { (void)alpha; return v_tanh(x); }
static ALWAYS_INLINE vreal elu(vreal x, real alpha) { return v_select(x > 0, x, alpha * v_expm1(x)); }
static ALWAYS_INLINE vreal exp_(vreal x, real alpha) { (void)alpha; return v_exp(x); }
static ALWAYS_INLINE vreal softplus(vreal x, real alpha) { (void)alpha; return v_softplus(x); }
static ALWAYS_INLINE vreal gelu(vreal x, real alpha) { (void)alpha; return v_gelu(x); }
static ALWAYS_INLINE vreal silu(vreal x, real alpha) { (void)alpha; return v_silu(x); }

static ALWAYS_INLINE vreal sqrt_(vreal x, real alpha) { (void)alpha; return v_sqrt(x); }
static ALWAYS_INLINE vreal reciprocal(vreal x, real alpha) { (void)alpha; return 1 / x; }
static ALWAYS_INLINE vreal log_(vreal x, real alpha) { (void)alpha; return v_log(x); }
static ALWAYS_INLINE vreal square(vreal x, real alpha) { (void)alpha; return x * x; }
static ALWAYS_INLINE vreal sin_(vreal x, real alpha) { (void)alpha; return v_sin(x); }
static ALWAYS_INLINE vreal cos_(vreal x, real alpha) { (void)alpha; return v_cos(x); }

static ALWAYS_INLINE vreal identity_backward(vreal s, vreal dy, real alpha) { (void)s; (void)alpha; return dy; }
static ALWAYS_INLINE vreal relu_backward(vreal y, vreal dy, real alpha) { (void)alpha; return v_drop(y <= 0, dy); }
static ALWAYS_INLINE vreal leaky_relu_backward(vreal s, vreal dy, real alpha) { return v_select(s > 0, dy, dy * alpha); }
static ALWAYS_INLINE vreal sigmoid_backward(vreal y, vreal dy, real alpha) { (void)alpha; return dy * (y * (1 - y)); }
static ALWAYS_INLINE vreal tanh_backward(vreal y, vreal dy, real alpha) { (void)alpha; return dy * v_fma(-y, y, v_set(1)); }
static ALWAYS_INLINE vreal elu_backward(vreal y, vreal dy, real alpha) { return v_select(y > 0, dy, dy * (y + alpha)); }
static ALWAYS_INLINE vreal exp_backward(vreal y, vreal dy, real alpha) { (void)alpha; return dy * y; }
static ALWAYS_INLINE vreal softplus_backward(vreal x, vreal dy, real alpha) { (void)alpha; return dy * v_sigmoid(x); }
static ALWAYS_INLINE vreal gelu_backward(vreal x, vreal dy, real alpha) { (void)alpha; return dy * v_gelu_derivative(x); }
static ALWAYS_INLINE vreal silu_backward(vreal x, vreal dy, real alpha) { (void)alpha; return dy * v_silu_derivative(x); }

static ALWAYS_INLINE vreal sqrt_backward(vreal y, vreal dy, real alpha) { (void)alpha; return dy * ((real)0.5 / y); }
static ALWAYS_INLINE vreal reciprocal_backward(vreal y, vreal dy, real alpha) { (void)alpha; return -dy * (y * y); }
static ALWAYS_INLINE vreal log_backward(vreal x, vreal dy, real alpha) { (void)alpha; return dy / x; }
static ALWAYS_INLINE vreal square_backward(vreal x, vreal dy, real alpha) { (void)alpha; return dy * (x + x); }
static ALWAYS_INLINE vreal sin_backward(vreal x, vreal dy, real alpha) { return dy * cos_(x, alpha); }
static ALWAYS_INLINE vreal cos_backward(vreal x, vreal dy, real alpha) { return -dy * sin_(x, alpha); }

static void act_forward(int act, ptrdiff_t n, const real *x, double alpha, real *y)
{
    const real a = (real)alpha;
    switch (act) {
    case FBP_IDENTITY: map(n, x, a, y, identity); break;
    case FBP_RELU: map(n, x, a, y, relu); break;
    case FBP_LEAKY_RELU: map(n, x, a, y, leaky_relu); break;
    case FBP_SIGMOID: map(n, x, a, y, sigmoid); break;
    case FBP_TANH: map(n, x, a, y, tanh_); break;
    case FBP_ELU: map(n, x, a, y, elu); break;
    case FBP_EXP: map(n, x, a, y, exp_); break;
    case FBP_SOFTPLUS: map(n, x, a, y, softplus); break;
    case FBP_GELU: map(n, x, a, y, gelu); break;
    case FBP_SILU: map(n, x, a, y, silu); break;
    case FBP_SQRT: map(n, x, a, y, sqrt_); break;
    case FBP_RECIPROCAL: map(n, x, a, y, reciprocal); break;
    case FBP_LOG: map(n, x, a, y, log_); break;
    case FBP_SIN: map(n, x, a, y, sin_); break;
    case FBP_COS: map(n, x, a, y, cos_); break;
    case FBP_SQUARE: map(n, x, a, y, square); break;
    }
}

#define EACH_DERIVATIVE(X) \
    X(FBP_RELU, relu_backward) X(FBP_LEAKY_RELU, leaky_relu_backward) X(FBP_SIGMOID, sigmoid_backward) X(FBP_TANH, tanh_backward) \
    X(FBP_ELU, elu_backward) X(FBP_EXP, exp_backward) X(FBP_SOFTPLUS, softplus_backward) X(FBP_GELU, gelu_backward) X(FBP_SILU, silu_backward) \
    X(FBP_SQRT, sqrt_backward) X(FBP_RECIPROCAL, reciprocal_backward) X(FBP_LOG, log_backward) X(FBP_SIN, sin_backward) X(FBP_COS, cos_backward) \
    X(FBP_SQUARE, square_backward)

static void act_backward(int act, ptrdiff_t n, const real *s, const real *dy, double alpha, int add, real *dx)
{
    const real a = (real)alpha;
    switch (act) {
    case FBP_IDENTITY: map_backward(n, dy, dy, a, add, dx, identity_backward); break;   /* s may be absent */
#define CASE(act, f) case act: map_backward(n, s, dy, a, add, dx, f); break;
    EACH_DERIVATIVE(CASE)
#undef CASE
    }
}

/* r columns of a few rows of dx = dx * f'(s), and their sums. */
static ALWAYS_INLINE void map_columns_backward(ptrdiff_t rows, ptrdiff_t r, const real *s, ptrdiff_t lds, real alpha, real *dx, ptrdiff_t ldx, real *sums,
                                               unary_backward *f)
{
    vreal sum = v_part(sums, r);
    for (; rows > 0; rows--, s += lds, dx += ldx) {
        const vreal d = f(v_part(s, r), v_part(dx, r), alpha);
        v_put(dx, d, r);
        sum += d;
    }
    v_put(sums, sum, r);
}

static ALWAYS_INLINE void map_rows_backward(ptrdiff_t m, ptrdiff_t n, const real *s, ptrdiff_t lds, real alpha, real *dx, ptrdiff_t ldx, real *sums,
                                            unary_backward *f)
{
    const ptrdiff_t most = n <= VL ? m : 8;   /* rows at a time: they stay in the first cache */
    for (ptrdiff_t i = 0, rows; i < m; i += rows, s += rows * lds, dx += rows * ldx) {
        ptrdiff_t j = 0;
        rows = m - i < most ? m - i : most;
        for (; j + VL <= n; j += VL) map_columns_backward(rows, VL, s + j, lds, alpha, dx + j, ldx, sums + j, f);
        if (j < n) map_columns_backward(rows, n - j, s + j, lds, alpha, dx + j, ldx, sums + j, f);
    }
}

/* dx (m, n) = dx * f'(s), and sums_j = sums_j + sum over the rows of dx_ij, in ascending order: additions that wait for each other, while there are
 * derivatives to compute. */
static void act_backward_sums(int act, ptrdiff_t m, ptrdiff_t n, const real *s, ptrdiff_t lds, double alpha, real *dx, ptrdiff_t ldx, real *sums)
{
    const real a = (real)alpha;
    switch (act) {
#define CASE(act, f) case act: map_rows_backward(m, n, s, lds, a, dx, ldx, sums, f); break;
    EACH_DERIVATIVE(CASE)
#undef CASE
    }
}

/* ---- y = a op b;  da = dy, dy, dy b, dy / b;  db = dy, -dy, dy a, -dy (a / b) / b ------------------------------------ */

typedef vreal ternary(vreal a, vreal b, vreal d);

/* y = [y +] f(a, b, d) */
static ALWAYS_INLINE void combine(ptrdiff_t n, const real *a, const real *b, const real *d, int add, real *y, ternary *f)
{
    ptrdiff_t i = 0;
    for (; i + VL <= n; i += VL) {
        const vreal v = f(v_load(a + i), v_load(b + i), v_load(d + i));
        v_store(y + i, add ? v_load(y + i) + v : v);
    }
    if (i < n) {
        const ptrdiff_t r = n - i;
        const vreal v = f(v_load_n(a + i, r), v_load_n(b + i, r), v_load_n(d + i, r));
        v_store_n(y + i, add ? v_load_n(y + i, r) + v : v, r);
    }
}

static ALWAYS_INLINE vreal plus(vreal a, vreal b, vreal d) { (void)d; return a + b; }
static ALWAYS_INLINE vreal minus(vreal a, vreal b, vreal d) { (void)d; return a - b; }
static ALWAYS_INLINE vreal times(vreal a, vreal b, vreal d) { (void)d; return a * b; }
static ALWAYS_INLINE vreal over(vreal a, vreal b, vreal d) { (void)d; return a / b; }
static ALWAYS_INLINE vreal pass(vreal a, vreal b, vreal d) { (void)a; (void)b; return d; }
static ALWAYS_INLINE vreal pass_negative(vreal a, vreal b, vreal d) { (void)a; (void)b; return -d; }
static ALWAYS_INLINE vreal times_by_a(vreal a, vreal b, vreal d) { (void)a; return d * b; }
static ALWAYS_INLINE vreal times_by_b(vreal a, vreal b, vreal d) { (void)b; return d * a; }
static ALWAYS_INLINE vreal over_by_a(vreal a, vreal b, vreal d) { (void)a; return d / b; }
static ALWAYS_INLINE vreal over_by_b(vreal a, vreal b, vreal d) { return -(d * (a / b) / b); }

static void binary(int op, ptrdiff_t n, const real *a, const real *b, real *y)
{
    switch (op) {
    case FBP_PLUS: combine(n, a, b, a, 0, y, plus); break;
    case FBP_MINUS: combine(n, a, b, a, 0, y, minus); break;
    case FBP_TIMES: combine(n, a, b, a, 0, y, times); break;
    case FBP_OVER: combine(n, a, b, a, 0, y, over); break;
    }
}

static ALWAYS_INLINE void binary_gradient(int op, int by_b, ptrdiff_t n, const real *a, const real *b, const real *dy, int add, real *dx)
{
    switch (2 * op + by_b) {
    case 2 * FBP_PLUS:
    case 2 * FBP_PLUS + 1:
    case 2 * FBP_MINUS: combine(n, a, b, dy, add, dx, pass); break;
    case 2 * FBP_MINUS + 1: combine(n, a, b, dy, add, dx, pass_negative); break;
    case 2 * FBP_TIMES: combine(n, a, b, dy, add, dx, times_by_a); break;
    case 2 * FBP_TIMES + 1: combine(n, a, b, dy, add, dx, times_by_b); break;
    case 2 * FBP_OVER: combine(n, a, b, dy, add, dx, over_by_a); break;
    case 2 * FBP_OVER + 1: combine(n, a, b, dy, add, dx, over_by_b); break;
    }
}

static void binary_backward(int op, int by_b, ptrdiff_t n, const real *a, const real *b, const real *dy, int add, real *dx)
{
    if (add) binary_gradient(op, by_b, n, a, b, dy, 1, dx);
    else binary_gradient(op, by_b, n, a, b, dy, 0, dx);
}

static ALWAYS_INLINE void line(ptrdiff_t n, real a, real b, const real *x, int add, real *y)
{
    ptrdiff_t i = 0;
    for (; i + VL <= n; i += VL) {
        const vreal v = v_load(x + i) * a + b;
        v_store(y + i, add ? v_load(y + i) + v : v);
    }
    if (i < n) {
        const vreal v = v_load_n(x + i, n - i) * a + b;
        v_store_n(y + i, add ? v_load_n(y + i, n - i) + v : v, n - i);
    }
}

static void affine(ptrdiff_t n, double alpha, double beta, const real *x, int add, real *y)
{
    if (add) line(n, (real)alpha, (real)beta, x, 1, y);
    else line(n, (real)alpha, (real)beta, x, 0, y);
}

static void expand(ptrdiff_t B, ptrdiff_t n, const real *x, int add, real *y)
{
    for (; B > 0; B--, x++, y += n)
        for (ptrdiff_t i = 0; i < n; i += VL) {
            const ptrdiff_t r = n - i < VL ? n - i : VL;
            v_put(y + i, add ? v_part(y + i, r) + v_set(*x) : v_set(*x), r);
        }
}

/* ---- dropout: y_i = x_i / (1 - p) where bit stream (key, first + i) says keep, else 0. Its own backward. ------------- */

/* A 32-bit mixer: two rounds of xor-shift and multiply with the 64-bit key folded in between, enough for every output bit
 * to depend on every input bit. */
static inline uint32_t mix(uint32_t h, uint64_t key)
{
    h ^= (uint32_t)key;
    h ^= h >> 16; h *= 0x7feb352du; h ^= h >> 15; h *= 0x846ca68bu; h ^= h >> 16;
    h += (uint32_t)(key >> 32);
    h ^= h >> 16; h *= 0x7feb352du; h ^= h >> 15; h *= 0x846ca68bu; h ^= h >> 16;
    return h;
}

static void dropout(ptrdiff_t n, const real *x, double p, uint64_t key, uint64_t first, int add, real *y)
{
    const uint64_t threshold = (uint64_t)(p * 4294967296.0);   /* drop when the 32-bit hash is below */
    const real keep = p < 1 ? (real)(1 / (1 - p)) : 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        const uint64_t element = first + (uint64_t)i;
        const uint32_t h = mix((uint32_t)element, key + (element >> 32) * 0x9e3779b97f4a7c15u);
        const real v = (uint64_t)h < threshold ? 0 : x[i] * keep;
        y[i] = add ? y[i] + v : v;
    }
}

/* ---- sums in double over LANES accumulators ------------------------------------------------------------------------ */

static double sum(ptrdiff_t n, const real *x)
{
    double lane[LANES] = {0};
    ptrdiff_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) lane[l] += (double)x[i + l];
    for (; i < n; i++) lane[i % LANES] += (double)x[i];
    return lanes_sum(lane);
}

static ALWAYS_INLINE double dot(ptrdiff_t n, const real *x, const real *y)
{
    double lane[LANES] = {0};
    ptrdiff_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) lane[l] += (double)x[i + l] * (double)y[i + l];
    for (; i < n; i++) lane[i % LANES] += (double)x[i] * (double)y[i];
    return lanes_sum(lane);
}

static double sum_of_squares(ptrdiff_t n, const real *x) { return dot(n, x, x); }

/* ---- softmax by rows: y = e^(x - max) / sum. dx = y * (dy - sum(dy * y)). ------------------------------------------- */

static ALWAYS_INLINE void lanes_add(double *lane, ptrdiff_t at, vreal v)
{
    EACH_DOUBLE {
        vdouble sums;
        double *from = lane + at + h * (VL / DOUBLES);
        memcpy(&sums, from, sizeof sums);
        sums += v_widen(v, h);
        memcpy(from, &sums, sizeof sums);
    }
}

static real row_max(ptrdiff_t n, const real *x)
{
    real m = x[0];
    ptrdiff_t j = 0;
    if (n >= VL) {
        vreal acc = v_load(x);
        for (j = VL; j + VL <= n; j += VL) acc = v_max(v_load(x + j), acc);
        for (int i = 0; i < VL; i++) m = acc[i] > m ? acc[i] : m;
    }
    for (; j < n; j++) m = x[j] > m ? x[j] : m;
    return m;
}

/* e_j = e^(x_j - max), returns their sum; e may be NULL. */
static double row_exp(ptrdiff_t n, const real *x, real max, real *e)
{
    double lane[LANES] = {0};
    ptrdiff_t j = 0;
    for (; j + VL <= n; j += VL) {
        const vreal v = v_exp(v_load(x + j) - max);
        if (e) v_store(e + j, v);
        lanes_add(lane, j % LANES, v);
    }
    if (j < n) {
        const vreal v = v_exp(v_load_n(x + j, n - j) - max);
        if (e) v_store_n(e + j, v, n - j);
        for (ptrdiff_t i = 0; i < n - j; i++) lane[j % LANES + i] += (double)v[i];
    }
    return lanes_sum(lane);
}

static void row_sums(ptrdiff_t B, ptrdiff_t n, const real *x, int add, real *y)
{
    for (ptrdiff_t i = 0; i < B; i++, x += n) y[i] = (add ? y[i] : 0) + (real)sum(n, x);
}

static void scale(ptrdiff_t n, double factor, real *x)
{
    const real f = (real)factor;
    for (ptrdiff_t i = 0; i < n; i++) x[i] *= f;
}

/* Short rows are worked on side by side: r <= VL rows of n <= SHORT, element j of row l in lane l of x[j]. Other lanes hold some number.
 * Returns their maxima. */
enum { SHORT = 32 };

static ALWAYS_INLINE vreal load_lanes(ptrdiff_t r, ptrdiff_t n, const real *rows, vreal *x)
{
    real lanes[SHORT][VL];
    if (n < PIECE) {
        memset(lanes, 0, sizeof(real) * (size_t)(n * VL));
        for (ptrdiff_t l = 0; l < r; l++) for (ptrdiff_t j = 0; j < n; j++) lanes[j][l] = rows[l * n + j];
    } else
        for (ptrdiff_t l = 0; l < VL; l += PATCH) {
            const real *row[PATCH];   /* in the place of those that do not exist stands the last one */
            vpatch t[PIECE];
            for (int i = 0; i < PATCH; i++) row[i] = rows + (l + i < r ? l + i : r - 1) * n;
            for (ptrdiff_t next = 0, j; next < n; next = j + PIECE) {   /* the last piece may overlap the one before */
                j = next + PIECE <= n ? next : n - PIECE;
                v_transpose(row, j, t);
                for (int i = 0; i < PIECE; i++) v_put_patch(lanes[j + i] + l, t[i]);
            }
        }
    vreal max = v_load(lanes[0]);
    for (ptrdiff_t j = 0; j < n; j++) x[j] = v_load(lanes[j]), max = v_max(x[j], max);
    return max;
}

static ALWAYS_INLINE void store_lanes(ptrdiff_t r, ptrdiff_t n, const vreal *x, real *rows)
{
    real lanes[SHORT][VL];
    for (ptrdiff_t j = 0; j < n; j++) v_store(lanes[j], x[j]);
    if (n < PATCH || r < VL) {
        for (ptrdiff_t l = 0; l < r; l++) for (ptrdiff_t j = 0; j < n; j++) rows[l * n + j] = lanes[j][l];
        return;
    }
    for (ptrdiff_t next = 0, j; next < n; next = j + PATCH) {
        const real *column[PATCH];
        vpatch t[PIECE];
        j = next + PATCH <= n ? next : n - PATCH;
        for (int i = 0; i < PATCH; i++) column[i] = lanes[j + i];
        for (ptrdiff_t l = 0; l < VL; l += PIECE) {
            v_transpose(column, l, t);
            for (int i = 0; i < PIECE; i++) v_put_patch(rows + (l + i) * n + j, t[i]);
        }
    }
}

/* e (high + low), a factor in double, without a conversion to double and back */
static ALWAYS_INLINE vreal v_scaled(vreal e, vreal high, vreal low)
{
    return DOUBLES == 1 ? e * high : v_fma(e, high, e * low);
}

static ALWAYS_INLINE void softmax_lanes(ptrdiff_t r, ptrdiff_t n, const real *x, real *y)
{
    vreal e[SHORT];
    vdouble total[DOUBLES] = {0}, part[DOUBLES];
    const vreal max = load_lanes(r, n, x, e);
    for (ptrdiff_t j = 0; j < n; j++) {
        e[j] = v_exp(e[j] - max);
        EACH_DOUBLE total[h] += v_widen(e[j], h);
    }
    EACH_DOUBLE part[h] = 1 / total[h];
    const vreal high = v_narrow(part);
    EACH_DOUBLE part[h] -= v_widen(high, h);
    const vreal low = v_narrow(part);
    for (ptrdiff_t j = 0; j < n; j++) e[j] = v_scaled(e[j], high, low);
    store_lanes(r, n, e, y);
}

static void softmax_row(ptrdiff_t n, const real *x, real *y)
{
    const double part = 1 / row_exp(n, x, row_max(n, x), y);
    const vreal high = v_set((real)part), low = v_set((real)(part - (double)(real)part));
    for (ptrdiff_t j = 0; j < n; j += VL) {
        const ptrdiff_t r = n - j < VL ? n - j : VL;
        v_put(y + j, v_scaled(v_part(y + j, r), high, low), r);
    }
}

static void softmax_forward(ptrdiff_t B, ptrdiff_t n, const real *x, real *y)
{
    if (n <= SHORT) for (ptrdiff_t i = 0; i < B; i += VL) softmax_lanes(B - i < VL ? B - i : VL, n, x + i * n, y + i * n);
    else for (ptrdiff_t i = 0; i < B; i++) softmax_row(n, x + i * n, y + i * n);
}

static void softmax_backward(ptrdiff_t B, ptrdiff_t n, const real *y, const real *dy, int add, real *dx)
{
    for (ptrdiff_t i = 0; i < B; i++, y += n, dy += n, dx += n) {
        const real mean = (real)dot(n, y, dy);
        for (ptrdiff_t j = 0; j < n; j++) {
            const real d = y[j] * (dy[j] - mean);
            dx[j] = add ? dx[j] + d : d;
        }
    }
}

/* Index of the first NaN or infinity, or -1: x - x is 0 for a finite x and NaN otherwise. */
static ptrdiff_t first_nonfinite(ptrdiff_t n, const real *x)
{
    enum { STRIDE = 4096 };
    for (ptrdiff_t i = 0; i < n; i += STRIDE) {
        const ptrdiff_t end = n - i < STRIDE ? n : i + STRIDE;
        vreal acc = {0};
        ptrdiff_t j = i;
        for (; j + VL <= end; j += VL) { const vreal v = v_load(x + j); acc += v - v; }
        if (j < end) { const vreal v = v_load_n(x + j, end - j); acc += v - v; }
        real s = 0;
        for (int l = 0; l < VL; l++) s += acc[l];
        if (s != 0)   /* s is 0 or NaN, and NaN != 0 */
            for (j = i; j < end; j++) if (x[j] - x[j] != 0) return j;
    }
    return -1;
}
