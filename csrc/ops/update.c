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

static fbp_rule rule_of(const fbp_optimizer *o, double lr, int64_t step, const fbp_slot *slot)
{
    const double decay = o->weight_decay * slot->decay;
    fbp_rule rule = {.lr = lr * slot->rate, .momentum = o->momentum, .nesterov = o->nesterov, .rate_inside = o->rate_inside,
                     .beta1 = o->beta1, .beta2 = o->beta2, .eps = o->eps};
    rule.shrink = o->decoupled ? 1 - rule.lr * decay : 1;
    rule.decay = o->decoupled ? 0 : decay;
    if (o->kind == FBP_ADAM) {   /* bias corrections from the whole step number, in double */
        rule.lr /= 1 - pow(o->beta1, (double)step);
        rule.root_scale = 1 / sqrt(1 - pow(o->beta2, (double)step));
    }
    return rule;
}

int fbp_update(const fbp_kernels *t, const fbp_worker *w, const fbp_optimizer *o, double lr, int64_t step, ptrdiff_t n, void *grads,
               void *params, void *state1, void *state2, const double *partial)
{
    ptrdiff_t begin, end;
    int not_finite = 0;
    fbp_share(w, n, FBP_SQUARES_CHUNK, &begin, &end);
    if (o->clip_norm > 0 && begin < end) {
        const double factor = clip_factor(o->clip_norm, n, partial);
        if (factor < 1) t->scale(end - begin, factor, fbp_at(t, grads, begin));
    }
    for (int s = 0; s < o->slots; s++) {
        const fbp_slot *slot = &o->slot[s];
        const ptrdiff_t i = slot->offset > begin ? slot->offset : begin;
        const ptrdiff_t stop = slot->offset + slot->size < end ? slot->offset + slot->size : end;
        if (i >= stop || slot->rate == 0) continue;
        const fbp_rule rule = rule_of(o, lr, step, slot);
        void *g = fbp_at(t, grads, i), *p = fbp_at(t, params, i), *s1 = fbp_at(t, state1, i), *s2 = fbp_at(t, state2, i);
        not_finite |= o->kind == FBP_ADAM ? t->adam(stop - i, &rule, g, p, s1, s2) : t->sgd(stop - i, &rule, g, p, s1);
    }
    return not_finite;
}
