/* L = factor * sum over rows of w_i l_i. Partial sums by chunks of rows, added up in order: the same bits for
 * any number of workers. */
#include "ops.h"

double fbp_batch_weight(const fbp_kernels *t, ptrdiff_t B, const void *w) { return w ? t->sum(B, w) : (double)B; }

double fbp_loss_factor(const fbp_loss *loss, double batch_weight)
{
    if (loss->sum) return loss->scale;
    return batch_weight > 0 ? loss->scale / (batch_weight * loss->per_row) : 0;   /* a batch without weight has no loss and no gradient */
}

static fbp_target target_at(const fbp_kernels *t, fbp_target target, ptrdiff_t i, ptrdiff_t O)
{
    return (fbp_target){fbp_at(t, target.t, i * O), target.label ? target.label + i : NULL, fbp_at(t, target.w, i)};
}

void fbp_loss_rows(const fbp_kernels *t, const fbp_worker *w, const fbp_loss *loss, double factor, ptrdiff_t B, ptrdiff_t O, const void *p,
                   fbp_target target, void *dp, double *partial)
{
    const ptrdiff_t chunk = fbp_loss_chunk(B);
    ptrdiff_t i, end;
    fbp_share(w, B, chunk, &i, &end);
    for (; i < end; i += chunk) {
        const ptrdiff_t rows = end - i < chunk ? end - i : chunk;
        const fbp_target here = target_at(t, target, i, O);
        const void *pi = fbp_at(t, p, i * O);
        void *di = fbp_at(t, dp, i * O);
        partial[i / chunk] = loss->reported * factor * (loss->kind == FBP_CROSS_ENTROPY
            ? t->cross_entropy(rows, O, pi, here.t, here.label, here.w, loss->param, loss->limit, factor, di)
            : t->loss(loss->kind, rows, O, pi, here.t, here.w, loss->param, loss->limit, factor, di));
    }
}

void fbp_accuracy_rows(const fbp_kernels *t, const fbp_worker *w, double threshold, ptrdiff_t B, ptrdiff_t O, const void *p,
                       fbp_target target, double *partial)
{
    const ptrdiff_t chunk = fbp_loss_chunk(B);
    ptrdiff_t i, end;
    fbp_share(w, B, chunk, &i, &end);
    for (; i < end; i += chunk) {
        const fbp_target here = target_at(t, target, i, O);
        const ptrdiff_t rows = end - i < chunk ? end - i : chunk;
        partial[i / chunk] = t->accuracy(rows, O, fbp_at(t, p, i * O), here.t, here.label, threshold);
    }
}

double fbp_chunk_total(const double *partial, ptrdiff_t B)
{
    double total = 0;
    for (ptrdiff_t i = 0; i < fbp_loss_chunks(B); i++) total += partial[i];
    return total;
}
