/* Updates in place over n elements. Each returns 0 when all new parameters are finite: p * 0 is then 0 in every lane and NaN
 * otherwise, one instruction that hides behind the memory traffic. */

/* Runs `update` over n elements, UNROLL vectors at a time: their checks are sums that do not wait for each other. */
enum { UNROLL = 4 };
#define UPDATE_ALL(n, update) \
    vreal check[UNROLL] = {{0}}; \
    ptrdiff_t i = 0; \
    for (; i + UNROLL * VL <= n; i += UNROLL * VL) \
        _Pragma("GCC unroll 4") for (int u = 0; u < UNROLL; u++) check[u] = v_fma(update(i + u * VL, VL), (vreal){0}, check[u]); \
    for (; i < n; i += VL) check[0] = v_fma(update(i, n - i < VL ? n - i : VL), (vreal){0}, check[0]); \
    return v_any((check[0] + check[1]) + (check[2] + check[3]))

/* g' = g + decay p;  v = momentum v + g';  p -= lr (g' + momentum v  if nesterov, else v)            PyTorch's SGD
 * rate_inside:  v = momentum v - lr g';  p += momentum v - lr g'  if nesterov, else v                scikit-learn's
 * Without momentum: p -= lr g'. Returns the new p. */
static ALWAYS_INLINE vreal sgd_vector(const fbp_rule *rule, const real *g, real *p, real *velocity, ptrdiff_t r)
{
    const vreal minus_lr = v_set((real)-rule->lr), momentum = v_set((real)rule->momentum);
    vreal w = v_part(p, r) * (real)rule->shrink;
    vreal d = v_fma(v_set((real)rule->decay), w, v_part(g, r));
    if (velocity && rule->rate_inside) {
        const vreal step = minus_lr * d;
        const vreal v = v_fma(momentum, v_part(velocity, r), step);
        v_put(velocity, v, r);
        w += rule->nesterov ? v_fma(momentum, v, step) : v;
    } else {
        if (velocity) {
            const vreal v = v_fma(momentum, v_part(velocity, r), d);
            v_put(velocity, v, r);
            d = rule->nesterov ? v_fma(momentum, v, d) : v;
        }
        w = v_fma(minus_lr, d, w);
    }
    v_put(p, w, r);
    return w;
}

static int sgd(ptrdiff_t n, const fbp_rule *rule, const real *g, real *p, real *velocity)
{
    const fbp_rule local = *rule;   /* nothing that is stored can change it */
#define AT(i, r) sgd_vector(&local, g + (i), p + (i), NULL, r)
#define AT_MOVING(i, r) sgd_vector(&local, g + (i), p + (i), velocity + (i), r)
    if (!velocity) { UPDATE_ALL(n, AT); }
    UPDATE_ALL(n, AT_MOVING);
#undef AT
#undef AT_MOVING
}

/* m += (1-b1)(g - m);  v = b2 v + (1-b2) g^2;  p = shrink p - lr m / (sqrt(v) root_scale + eps). Returns the new p. */
static ALWAYS_INLINE vreal adam_vector(const fbp_rule *rule, const real *g, real *p, real *m, real *v, ptrdiff_t r)
{
    const vreal w0 = v_part(p, r), d = v_fma(v_set((real)rule->decay), w0, v_part(g, r)), m0 = v_part(m, r);
    const vreal m1 = v_fma(v_set((real)(1 - rule->beta1)), d - m0, m0);
    const vreal v1 = v_fma(v_set((real)(1 - rule->beta2)) * d, d, (real)rule->beta2 * v_part(v, r));
    v_put(m, m1, r);
    v_put(v, v1, r);
    const vreal w = v_fma(v_set((real)-rule->lr), m1 / v_fma(v_sqrt(v1), v_set((real)rule->root_scale), v_set((real)rule->eps)), w0 * (real)rule->shrink);
    v_put(p, w, r);
    return w;
}

static int adam(ptrdiff_t n, const fbp_rule *rule, const real *g, real *p, real *m, real *v)
{
    const fbp_rule local = *rule;
#define AT(i, r) adam_vector(&local, g + (i), p + (i), m + (i), v + (i), r)
    UPDATE_ALL(n, AT);
#undef AT
}
