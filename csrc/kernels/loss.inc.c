/* Losses: each returns the sum over the rows of w_i l_i, in double, and writes dp = w_i * dl_i/dp * factor.
 *
 *   squared error            l = (p - t)^2                                    dl = 2 (p - t)
 *   absolute error           l = |p - t|                                      dl = sign(p - t)
 *   Huber(param)             l = d^2/2 for |d| <= param, else param (|d| - param/2)
 *   quantile(param)          l = param |d| where p < t, (1 - param) |d| where p > t
 *   Poisson on log rates     l = e^p - t + t (log t - p), the last 0 for t = 0  dl = e^p - t
 *   binary cross-entropy     l = -[t log p + (1-t) log(1-p)]                  dl = (p - t) / (p (1-p))
 *     logarithms not below -100, denominator not below 1e-12, as in PyTorch: finite for every p in [0, 1]
 *   ... on logits            l = max(z,0) - z t + log1p(e^-|z|)               dl = sigmoid(z) - t
 *   softmax cross-entropy    l = sum_j t_j (logsumexp(s) - s_j)               dl = softmax(s) sum_j t_j - t
 *
 * The last two with a limit: l as if the probability of what is true were within [e^-limit, 1 - e^-limit]; dl knows no limit.
 */

typedef struct { vreal value, slope; } loss_pair;

typedef struct { double low, high; } loss_bounds;

static loss_bounds bounds_of(double limit) { return (loss_bounds){limit < INFINITY ? -log1p(-exp(-limit)) : -0.0, limit}; }

static ALWAYS_INLINE double bounded(double l, loss_bounds b) { return l < b.low ? b.low : l > b.high ? b.high : l; }   /* NaN stays */

static ALWAYS_INLINE vdouble v_bounded(vdouble l, loss_bounds b)
{
    const vdouble low = (vdouble){0} + b.low, high = (vdouble){0} + b.high;
    const vlong below = l < low, above = l > high;
    return (vdouble)((below & (vlong)low) | (above & (vlong)high) | (~(below | above) & (vlong)l));
}

static ALWAYS_INLINE loss_pair loss_at(const int kind, vreal p, vreal t, real param, loss_bounds bounds)
{
    const vreal d = p - t, one = v_set(1);
    switch (kind) {
    case FBP_MSE: return (loss_pair){d * d, d + d};
    case FBP_L1: return (loss_pair){v_abs(d), v_select((d > 0) | (d < 0), v_copysign(one, d), d)};   /* NaN stays */
    case FBP_HUBER: {
        const vreal a = v_abs(d), limit = v_set(param);
        const vint outside = a > param;   /* not for NaN */
        return (loss_pair){v_select(outside, limit * (a - (real)0.5 * limit), (real)0.5 * d * d),
                           v_select(outside, v_copysign(limit, d), d)};
    }
    case FBP_QUANTILE: {
        const vreal above = v_set(1 - param), below = v_set(-param);
        return (loss_pair){d * v_select(d > 0, above, below), v_select(d > 0, above, v_select(d < 0, below, d))};   /* NaN stays */
    }
    case FBP_POISSON: {
        const vreal rate = v_exp(p);
        return (loss_pair){(rate - t) + v_keep(t > 0, t * (v_log(t) - p)), rate - t};
    }
    case FBP_BCE: {
        const vreal floor = v_set(-100), lp = v_max(floor, v_log(p)), lq = v_max(floor, v_log1p(-p));
        return (loss_pair){-(v_fma(t, lp, (1 - t) * lq)), d / v_max(v_set((real)1e-12), p * (1 - p))};
    }
    default: {
        const vreal l = v_drop(p <= 0, p) - p * t + v_log1p(v_exp(-v_abs(p))), low = v_set((real)bounds.low), high = v_set((real)bounds.high);
        return (loss_pair){v_select(l < low, low, v_select(l > high, high, l)), v_sigmoid(p) - t};
    }
    }
}

static ALWAYS_INLINE double loss_row(const int kind, ptrdiff_t n, const real *p, const real *t, real param, loss_bounds bounds, real factor, real *dp)
{
    double lane[LANES] = {0};
    ptrdiff_t j = 0;
    for (; j + VL <= n; j += VL) {
        const loss_pair l = loss_at(kind, v_load(p + j), v_load(t + j), param, bounds);
        lanes_add(lane, j % LANES, l.value);
        if (dp) v_store(dp + j, l.slope * factor);
    }
    if (j < n) {
        const ptrdiff_t r = n - j;
        const loss_pair l = loss_at(kind, v_load_n(p + j, r), v_load_n(t + j, r), param, bounds);
        for (ptrdiff_t i = 0; i < r; i++) lane[j % LANES + i] += (double)l.value[i];
        if (dp) v_store_n(dp + j, l.slope * factor, r);
    }
    return lanes_sum(lane);
}

/* Without weights the rows are one long row: no tails between them. */
static ALWAYS_INLINE double loss_rows(const int kind, ptrdiff_t B, ptrdiff_t n, const real *p, const real *t, const real *w, real param,
                                      double limit, double factor, real *dp)
{
    const loss_bounds bounds = kind == FBP_BCE_LOGITS ? bounds_of(limit) : (loss_bounds){0, 0};
    if (!w) return loss_row(kind, B * n, p, t, param, bounds, (real)factor, dp);
    double total = 0;
    for (ptrdiff_t i = 0; i < B; i++)
        total += (double)w[i] * loss_row(kind, n, p + i * n, t + i * n, param, bounds, (real)((double)w[i] * factor), dp ? dp + i * n : NULL);
    return total;
}

static double loss(int kind, ptrdiff_t B, ptrdiff_t n, const real *p, const real *t, const real *w, double param, double limit, double factor, real *dp)
{
    const real c = (real)param;
    switch (kind) {
    case FBP_MSE: return loss_rows(FBP_MSE, B, n, p, t, w, c, limit, factor, dp);
    case FBP_L1: return loss_rows(FBP_L1, B, n, p, t, w, c, limit, factor, dp);
    case FBP_HUBER: return loss_rows(FBP_HUBER, B, n, p, t, w, c, limit, factor, dp);
    case FBP_QUANTILE: return loss_rows(FBP_QUANTILE, B, n, p, t, w, c, limit, factor, dp);
    case FBP_POISSON: return loss_rows(FBP_POISSON, B, n, p, t, w, c, limit, factor, dp);
    case FBP_BCE: return loss_rows(FBP_BCE, B, n, p, t, w, c, limit, factor, dp);
    default: return loss_rows(FBP_BCE_LOGITS, B, n, p, t, w, c, limit, factor, dp);
    }
}

/* Softmax cross-entropy. Targets are labels, or probabilities t (B, n). Smoothing e moves them to (1-e) t + e/n. A row with w = 0
 * counts for nothing even where its loss is infinite. */
typedef struct {
    const real *t, *w;
    const int64_t *label;
    double even, kept, factor;   /* e/n, 1-e */
    loss_bounds bounds;
} soft_targets;

/* Rows that are longer than a few vectors: one after the other. ds may be s. */
static double cross_entropy_rows(ptrdiff_t B, ptrdiff_t n, const real *s, const soft_targets *q, real *ds)
{
    const real *t = q->t;
    double total = 0;
    for (ptrdiff_t i = 0; i < B; i++, s += n) {
        const real max = row_max(n, s);
        double linear = 0, mass;   /* of s - max and of t: taken first, since ds may be s */
        if (q->label) {
            mass = q->kept;
            linear = q->kept * (double)(s[q->label[i]] - max);
        } else {
            double lane_mass[LANES] = {0}, lane_linear[LANES] = {0};
            for (ptrdiff_t j = 0; j < n; j++) {
                lane_mass[j % LANES] += (double)t[j];
                if (t[j] != 0) lane_linear[j % LANES] += (double)t[j] * (double)(s[j] - max);   /* 0 * -inf is 0 here */
            }
            mass = q->kept * lanes_sum(lane_mass);
            linear = q->kept * lanes_sum(lane_linear);
        }
        if (q->even > 0) {
            double lane[LANES] = {0};
            for (ptrdiff_t j = 0; j < n; j++) lane[j % LANES] += (double)(s[j] - max);
            linear += q->even * lanes_sum(lane);
            mass += q->even * (double)n;
        }
        const double sum_exp = row_exp(n, s, max, ds);
        const double weight = q->w ? (double)q->w[i] : 1;
        if (weight != 0) total += weight * bounded(mass * log(sum_exp) - linear, q->bounds);
        if (ds) {
            const double f = weight * q->factor;
            const real g = (real)(f * mass / sum_exp), shift = (real)(f * q->even);
            for (ptrdiff_t j = 0; j < n; j++) ds[j] = g * ds[j] - shift;
            if (q->label) ds[q->label[i]] -= (real)(f * q->kept);
            else for (ptrdiff_t j = 0; j < n; j++) ds[j] -= (real)(f * q->kept) * t[j];
            ds += n;
        }
        if (t) t += n;
    }
    return total;
}

/* In every lane the label of its row; -1 where there is none. */
static ALWAYS_INLINE vreal label_lanes(ptrdiff_t r, const int64_t *label)
{
    int64_t some[VL];
    vdouble lanes[DOUBLES];
    if (r < VL) {
        for (ptrdiff_t l = 0; l < VL; l++) some[l] = l < r ? label[l] : -1;
        label = some;
    }
    EACH_DOUBLE {
        vlong half;
        memcpy(&half, label + h * (VL / DOUBLES), sizeof half);
        lanes[h] = __builtin_convertvector(half, vdouble);
    }
    return v_narrow(lanes);
}

/* r <= VL short rows side by side, one in each lane. The largest terms of a sum are 1: the rest is added up alone, and the logarithm
 * taken as log(1 + rest). Returns the total with these rows added, one after the other. */
static ALWAYS_INLINE double cross_entropy_lanes(double total, ptrdiff_t r, ptrdiff_t n, const real *s, const soft_targets *q, ptrdiff_t row, real *ds)
{
    vreal x[SHORT], e[SHORT], t[SHORT], weight_row[1] = {v_set(1)}, largest = {0}, right = {0}, label = {0};
    vdouble rest[DOUBLES] = {0}, linear[DOUBLES] = {0}, mass[DOUBLES] = {0}, slope[DOUBLES], even[DOUBLES], kept[DOUBLES];
    double part[VL];
    const vreal max = load_lanes(r, n, s, x);
    if (q->t) load_lanes(r, n, q->t + row * n, t);
    if (q->w) load_lanes(r, 1, q->w + row, weight_row);
    for (ptrdiff_t j = 0; j < n; j++) {
        const vreal d = x[j] - max;
        e[j] = v_exp(d);
        largest += v_keep(d == 0, v_set(1));
        EACH_DOUBLE rest[h] += v_widen(v_drop(d == 0, e[j]), h);
    }
    EACH_DOUBLE rest[h] += v_widen(largest, h) - 1;
    if (q->t) {
        for (ptrdiff_t j = 0; j < n; j++) {
            const vreal d = v_drop(t[j] == 0, x[j] - max);   /* 0 * -inf is 0 here */
            EACH_DOUBLE mass[h] += v_widen(t[j], h), linear[h] += v_widen(t[j], h) * v_widen(d, h);
        }
    } else {
        label = label_lanes(r, q->label + row);
        for (ptrdiff_t j = 0; j < n; j++) right += v_keep(label == v_set((real)j), x[j] - max);
        EACH_DOUBLE linear[h] = v_widen(right, h), mass[h] += 1;
    }
    EACH_DOUBLE linear[h] *= q->kept, mass[h] *= q->kept;
    if (q->even > 0) {
        vdouble all[DOUBLES] = {0};
        for (ptrdiff_t j = 0; j < n; j++) {
            const vreal d = x[j] - max;
            EACH_DOUBLE all[h] += v_widen(d, h);
        }
        EACH_DOUBLE linear[h] += q->even * all[h], mass[h] += q->even * (double)n;
    }
    const vreal log_sum = v_log1p(v_narrow(rest));
    EACH_DOUBLE {
        const vdouble value = mass[h] * v_widen(log_sum, h) - linear[h], weight = v_widen(weight_row[0], h);
        const vdouble counts = (vdouble)((weight != 0) & (vlong)(weight * v_bounded(value, q->bounds)));
        memcpy(part + h * (VL / DOUBLES), &counts, sizeof counts);
        const vdouble f = weight * q->factor;
        slope[h] = f * mass[h] / (1 + rest[h]), even[h] = f * q->even, kept[h] = f * q->kept;
    }
    for (ptrdiff_t l = 0; l < r; l++) total += part[l];
    if (!ds) return total;
    const vreal g = v_narrow(slope), shift = v_narrow(even), pull = v_narrow(kept);
    for (ptrdiff_t j = 0; j < n; j++) {
        e[j] = g * e[j] - shift;
        e[j] -= q->t ? pull * t[j] : v_keep(label == v_set((real)j), pull);
    }
    store_lanes(r, n, e, ds);
    return total;
}

static double cross_entropy(ptrdiff_t B, ptrdiff_t n, const real *s, const real *t, const int64_t *label, const real *w, double smoothing,
                            double limit, double factor, real *ds)
{
    const soft_targets q = {t, w, label, smoothing / (double)n, 1 - smoothing, factor, bounds_of(limit)};
    if (n > SHORT) return cross_entropy_rows(B, n, s, &q, ds);
    double total = 0;
    for (ptrdiff_t i = 0; i < B; i += VL)
        total = cross_entropy_lanes(total, B - i < VL ? B - i : VL, n, s + i * n, &q, i, ds ? ds + i * n : NULL);
    return total;
}

/* Labels or class probabilities (threshold NaN): the number of rows whose largest element is the target's.
 * Otherwise, elementwise: the mean over the n outputs of [p > threshold] == [t > 1/2], summed over the rows. */
static double accuracy(ptrdiff_t B, ptrdiff_t n, const real *p, const real *t, const int64_t *label, double threshold)
{
    double hits = 0;
    for (ptrdiff_t i = 0; i < B; i++, p += n) {
        if (threshold == threshold) {
            ptrdiff_t same = 0;
            for (ptrdiff_t j = 0; j < n; j++) same += ((double)p[j] > threshold) == (t[j] > (real)0.5);
            hits += (double)same / (double)n;
        } else {
            ptrdiff_t best = 0, want = 0;
            for (ptrdiff_t j = 1; j < n; j++) if (p[j] > p[best]) best = j;
            if (label) want = label[i];
            else for (ptrdiff_t j = 1; j < n; j++) if (t[j] > t[want]) want = j;
            hits += best == want;
        }
        if (t) t += n;
    }
    return hits;
}
