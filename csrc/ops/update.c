/* params -= lr * direction(grads), over the flat parameters, slot by slot. Rules: see kernels/optim.inc.c. */
#include "ops.h"
#include <math.h>

void fbp_update_squares(const fbp_kernels *t, const fbp_worker *w, ptrdiff_t n, const void *grads, double *partial)
{
    ptrdiff_t i, end;
    fbp_share(w, n, FBP_SQUARES_CHUNK, &i, &end);
    for (; i < end; i += FBP_SQUARES_CHUNK)
        partial[i / FBP_SQUARES_CHUNK] = t->sum_of_squares(end - i < FBP_SQUARES_CHUNK ? end - i : FBP_SQUARES_CHUNK, fbp_at(t, grads, i));
}

/* min(1, clip / (norm + 1e-6)), PyTorch's clip_grad_norm_. */
static double clip_factor(double clip, ptrdiff_t n, const double *partial)
{
    double squares = 0;
    for (ptrdiff_t i = 0; i < n; i += FBP_SQUARES_CHUNK) squares += partial[i / FBP_SQUARES_CHUNK];
    const double factor = clip / (sqrt(squares) + 1e-6);
    return factor < 1 ? factor : 1;
}

static double over_batch(double penalty, double batch_weight) { return penalty != 0 && batch_weight > 0 ? penalty / batch_weight : 0; }

void fbp_penalty_squares(const fbp_kernels *t, const fbp_worker *w, const fbp_optimizer *o, ptrdiff_t n, const void *params, double *partial)
{
    ptrdiff_t i, end;
    fbp_share(w, n, FBP_SQUARES_CHUNK, &i, &end);
    for (; i < end; i += FBP_SQUARES_CHUNK) {
        const ptrdiff_t stop = end - i < FBP_SQUARES_CHUNK ? end : i + FBP_SQUARES_CHUNK;
        double total = 0;
        for (const fbp_slot *slot = o->slot; slot < o->slot + o->slots && slot->offset < stop; slot++) {
            const ptrdiff_t first = slot->offset > i ? slot->offset : i, last = slot->offset + slot->size < stop ? slot->offset + slot->size : stop;
            if (first < last && slot->decay != 0) total += slot->decay * t->sum_of_squares(last - first, fbp_at(t, params, first));
        }
        partial[i / FBP_SQUARES_CHUNK] = total;
    }
}

double fbp_penalty(const fbp_optimizer *o, double batch_weight, ptrdiff_t n, const double *partial)
{
    double squares = 0;
    for (ptrdiff_t i = 0; i < n; i += FBP_SQUARES_CHUNK) squares += partial[i / FBP_SQUARES_CHUNK];
    return 0.5 * over_batch(o->penalty, batch_weight) * squares;
}

fbp_step fbp_step_begin(const fbp_optimizer *o, double lr, int64_t number, double batch_weight)
{
    fbp_step s = {.optimizer = o, .lr = lr, .correction = 1, .root_scale = 1, .decay = o->weight_decay + over_batch(o->penalty, batch_weight)};
    if (o->kind == FBP_ADAM) {   /* bias corrections from the whole step number, in double */
        s.correction = 1 - pow(o->beta1, (double)number);
        s.root_scale = 1 / sqrt(1 - pow(o->beta2, (double)number));
    }
    return s;
}

static fbp_rule rule_of(const fbp_step *s, const fbp_slot *slot)
{
    const fbp_optimizer *o = s->optimizer;
    const double lr = s->lr * slot->rate, decay = s->decay * slot->decay;
    return (fbp_rule){.lr = s->correction == 1 ? lr : lr / s->correction, .root_scale = s->root_scale,
                      .decay = o->decoupled ? 0 : decay, .shrink = o->decoupled ? 1 - lr * decay : 1,
                      .momentum = o->momentum, .nesterov = o->nesterov, .rate_inside = o->rate_inside,
                      .beta1 = o->beta1, .beta2 = o->beta2, .eps = o->epsilon_hat ? o->eps * s->root_scale : o->eps};
}

const fbp_slot *fbp_slot_of(const fbp_optimizer *o, ptrdiff_t i)
{
    const fbp_slot *slot = o->slot;
    while (i >= slot->offset + slot->size) slot++;
    return slot;
}

int fbp_descends(const fbp_step *s, const fbp_slot *slot, double *rate)
{
    const fbp_rule rule = rule_of(s, slot);
    *rate = rule.lr;
    return s->optimizer->kind == FBP_SGD && !s->state1 && slot->rate != 0 && rule.decay == 0 && rule.shrink == 1;
}

static inline void update(const fbp_kernels *t, fbp_step *s, const fbp_rule *rule, ptrdiff_t i, ptrdiff_t n, void *g)
{
    void *p = fbp_at(t, s->params, i), *s1 = fbp_at(t, s->state1, i), *s2 = fbp_at(t, s->state2, i);
    switch (s->optimizer->kind) {
    case FBP_SGD: s->not_finite |= t->sgd(n, rule, g, p, s1); break;
    case FBP_ADAM: s->not_finite |= t->adam(n, rule, g, p, s1, s2); break;
    default: if (rule->decay != 0) t->affine(n, rule->decay, 0, p, 1, g);
    }
}

void fbp_update_range(const fbp_kernels *t, fbp_step *s, const fbp_slot *slot, ptrdiff_t i, ptrdiff_t n, void *g)
{
    if (slot->rate == 0) return;
    const fbp_rule rule = rule_of(s, slot);
    update(t, s, &rule, i, n, g);
}

void fbp_update_rows(const fbp_kernels *t, fbp_step *s, const fbp_slot *slot, ptrdiff_t i, ptrdiff_t row, ptrdiff_t m, ptrdiff_t n, void *g, ptrdiff_t ldg)
{
    if (slot->rate == 0) return;
    const fbp_rule rule = rule_of(s, slot);
    for (; m > 0; m--, i += row, g = fbp_at(t, g, ldg)) update(t, s, &rule, i, n, g);
}

void fbp_update_flat(const fbp_kernels *t, const fbp_worker *w, fbp_step *s, ptrdiff_t n, const double *partial)
{
    const fbp_optimizer *o = s->optimizer;
    ptrdiff_t begin, end;
    fbp_share(w, n, FBP_UPDATED, &begin, &end);
    if (o->clip_norm > 0 && begin < end) {
        const double factor = clip_factor(o->clip_norm, n, partial);
        if (factor < 1) t->scale(end - begin, factor, fbp_at(t, s->grads, begin));
    }
    for (const fbp_slot *slot = o->slot; slot < o->slot + o->slots; slot++) {
        const ptrdiff_t i = slot->offset > begin ? slot->offset : begin;
        const ptrdiff_t stop = slot->offset + slot->size < end ? slot->offset + slot->size : end;
        if (i < stop) fbp_update_range(t, s, slot, i, stop - i, fbp_at(t, s->grads, i));
    }
}
