/* Updates in place over n elements. Each returns 0 when all new parameters are finite: p * 0 is then 0 in every lane and NaN
 * otherwise, one instruction that hides behind the memory traffic. */

static int any_nonzero(vreal v)
{
    int found = 0;
    for (int i = 0; i < VL; i++) found |= v[i] != 0;
    return found;
}

/* g' = g + decay p;  v = momentum v + g';  p -= lr (g' + momentum v  if nesterov, else v)            PyTorch's SGD
 * rate_inside:  v = momentum v - lr g';  p += momentum v - lr g'  if nesterov, else v                scikit-learn's
 * Without momentum: p -= lr g'. */
static int sgd(ptrdiff_t n, const fbp_rule *rule, const real *g, real *p, real *velocity)
{
    const vreal minus_lr = v_set((real)-rule->lr), decay = v_set((real)rule->decay), momentum = v_set((real)rule->momentum);
    const real shrink = (real)rule->shrink;
    vreal check = {0};
    for (ptrdiff_t i = 0; i < n; i += VL) {
        const ptrdiff_t r = n - i < VL ? n - i : VL;
        vreal w = v_part(p + i, r) * shrink;
        vreal d = v_fma(decay, w, v_part(g + i, r));
        if (velocity && rule->rate_inside) {
            const vreal step = minus_lr * d;
            const vreal v = v_fma(momentum, v_part(velocity + i, r), step);
            v_put(velocity + i, v, r);
            w += rule->nesterov ? v_fma(momentum, v, step) : v;
        } else {
            if (velocity) {
                const vreal v = v_fma(momentum, v_part(velocity + i, r), d);
                v_put(velocity + i, v, r);
                d = rule->nesterov ? v_fma(momentum, v, d) : v;
            }
            w = v_fma(minus_lr, d, w);
        }
        v_put(p + i, w, r);
        check = v_fma(w, (vreal){0}, check);
    }
    return any_nonzero(check);
}

/* m += (1-b1)(g - m);  v = b2 v + (1-b2) g^2;  p = shrink p - lr m / (sqrt(v) root_scale + eps) */
static int adam(ptrdiff_t n, const fbp_rule *rule, const real *g, real *p, real *m, real *v)
{
    const vreal minus_lr = v_set((real)-rule->lr), decay = v_set((real)rule->decay), eps = v_set((real)rule->eps);
    const vreal rest1 = v_set((real)(1 - rule->beta1)), rest2 = v_set((real)(1 - rule->beta2));
    const vreal root_scale = v_set((real)rule->root_scale);
    const real beta2 = (real)rule->beta2, shrink = (real)rule->shrink;
    vreal check = {0};
    for (ptrdiff_t i = 0; i < n; i += VL) {
        const ptrdiff_t r = n - i < VL ? n - i : VL;
        vreal w = v_part(p + i, r);
        const vreal d = v_fma(decay, w, v_part(g + i, r));
        const vreal m0 = v_part(m + i, r), m1 = v_fma(rest1, d - m0, m0);
        const vreal v1 = v_fma(rest2 * d, d, beta2 * v_part(v + i, r));
        v_put(m + i, m1, r);
        v_put(v + i, v1, r);
        w = v_fma(minus_lr, m1 / v_fma(v_sqrt(v1), root_scale, eps), w * shrink);
        v_put(p + i, w, r);
        check = v_fma(w, (vreal){0}, check);
    }
    return any_nonzero(check);
}
