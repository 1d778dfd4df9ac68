/* y = (x - mean) r, r = 1/sqrt(var + eps), over the features of a row (layernorm) or over the rows of a batch (batchnorm), and
 * y = x w + b with one w and b per column.
 * backward: dx = r (dy - mean(dy) - y mean(dy y)), means over the same elements; of given statistics dx = r dy
 *           dx = dy w,  dw = column sums of dy x,  db = 1ᵀ dy */
#include "ops.h"

static void *room_of(const fbp_frame *f, const fbp_op *op, ptrdiff_t at) { return fbp_at(f->program->table, f->arena, op->room + at); }

/* Rows are independent. Room: r (rows). */
void fbp_layernorm_forward(const fbp_frame *f, const fbp_op *op, const fbp_worker *w)
{
    const fbp_kernels *t = f->program->table;
    const ptrdiff_t n = f->program->value[op->x].width;
    ptrdiff_t i, end;
    fbp_share(w, f->rows, 16, &i, &end);
    t->standardise_rows(end - i, n, fbp_at(t, f->value[op->x], i * n), op->alpha, room_of(f, op, i), fbp_at(t, f->value[op->y], i * n));
}

void fbp_layernorm_backward(const fbp_frame *f, const fbp_op *op, const fbp_worker *w)
{
    const fbp_kernels *t = f->program->table;
    const ptrdiff_t n = f->program->value[op->x].width;
    ptrdiff_t i, end;
    fbp_share(w, f->rows, 16, &i, &end);
    t->standardise_rows_backward(end - i, n, fbp_at(t, f->value[op->y], i * n), room_of(f, op, i), fbp_at(t, f->gradient[op->y], i * n),
                                 op->dx == FBP_MORE, fbp_at(t, f->gradient[op->x], i * n));
    fbp_close_range(f, op->x, op->dact, op->dalpha, i * n, end * n);
}

/* Columns are independent. Room: mean, var and r of the batch (n each), then the count of batches with this one, and in backward two more
 * vectors. Outside training the running statistics are given. */
enum { MEAN, VAR, R_, MEAN_DY, SLOPE_DY, COUNT };

void fbp_batchnorm_forward(const fbp_frame *f, const fbp_op *op, const fbp_worker *w)
{
    const fbp_kernels *t = f->program->table;
    const ptrdiff_t n = f->program->value[op->x].width;
    ptrdiff_t j, end;
    fbp_share(w, n, FBP_LINE, &j, &end);
    void *mean = room_of(f, op, MEAN * n + j), *var = room_of(f, op, VAR * n + j);
    if (!f->training) {
        t->affine(end - j, 1, 0, fbp_at(t, f->params, op->weight + j), 0, mean);
        t->affine(end - j, 1, 0, fbp_at(t, f->params, op->bias + j), 0, var);
    }
    t->standardise_columns(f->rows, end - j, n, fbp_at(t, f->value[op->x], j), !f->training, op->alpha, mean, var, room_of(f, op, R_ * n + j),
                           fbp_at(t, f->value[op->y], j));
    if (w->part == 0 && f->training) t->affine(1, 1, op->stream, fbp_at(t, f->params, op->at), 0, room_of(f, op, COUNT * n));
}

void fbp_batchnorm_backward(const fbp_frame *f, const fbp_op *op, const fbp_worker *w)
{
    const fbp_kernels *t = f->program->table;
    const ptrdiff_t n = f->program->value[op->x].width;
    ptrdiff_t j, end;
    fbp_share(w, n, FBP_LINE, &j, &end);
    t->standardise_columns_backward(f->rows, end - j, n, fbp_at(t, f->value[op->y], j), room_of(f, op, R_ * n + j), fbp_at(t, f->gradient[op->y], j),
                                    !f->training, room_of(f, op, MEAN_DY * n + j), room_of(f, op, SLOPE_DY * n + j), op->dx == FBP_MORE,
                                    fbp_at(t, f->gradient[op->x], j));
}

/* running = (1 - momentum) running + momentum batch, the variance as an estimate from B - 1 degrees of freedom. They lie among the
 * parameters, where training may write and prediction does not. */
void fbp_batchnorm_statistics(const fbp_frame *f, const fbp_op *op, const fbp_worker *w)
{
    const fbp_kernels *t = f->program->table;
    const ptrdiff_t n = f->program->value[op->x].width;
    void *params = (void *)f->params;
    const double momentum = op->beta < 0 ? 1 / t->sum(1, room_of(f, op, COUNT * n)) : op->beta;
    const double unbiased = f->rows > 1 ? (double)f->rows / (double)(f->rows - 1) : 1;
    ptrdiff_t j, end;
    fbp_share(w, n, FBP_LINE, &j, &end);
    void *mean = fbp_at(t, params, op->weight + j), *var = fbp_at(t, params, op->bias + j);
    t->affine(end - j, 1 - momentum, 0, mean, 0, mean);
    t->affine(end - j, momentum, 0, room_of(f, op, MEAN * n + j), 1, mean);
    t->affine(end - j, 1 - momentum, 0, var, 0, var);
    t->affine(end - j, momentum * unbiased, 0, room_of(f, op, VAR * n + j), 1, var);
    if (w->part == 0) t->affine(1, 1, 0, room_of(f, op, COUNT * n), 0, fbp_at(t, params, op->at));
}

void fbp_scale_forward(const fbp_frame *f, const fbp_op *op, const fbp_worker *w)
{
    const fbp_kernels *t = f->program->table;
    const ptrdiff_t n = f->program->value[op->y].width;
    ptrdiff_t i, end;
    fbp_share(w, f->rows, 16, &i, &end);
    t->scale_columns(end - i, n, n, fbp_at(t, f->value[op->x], i * n), fbp_at(t, f->params, op->weight),
                     op->bias < 0 ? NULL : fbp_at(t, f->params, op->bias), 0, fbp_at(t, f->value[op->y], i * n));
}

void fbp_scale_backward(const fbp_frame *f, const fbp_op *op, const fbp_worker *w)
{
    const fbp_kernels *t = f->program->table;
    const ptrdiff_t n = f->program->value[op->y].width;
    ptrdiff_t i, end;
    if (op->dx == FBP_UNWANTED) return;
    fbp_share(w, f->rows, 16, &i, &end);
    t->scale_columns(end - i, n, n, fbp_at(t, f->gradient[op->y], i * n), fbp_at(t, f->params, op->weight), NULL, op->dx == FBP_MORE,
                     fbp_at(t, f->gradient[op->x], i * n));
}

void fbp_scale_gradients(const fbp_frame *f, const fbp_op *op, const fbp_worker *w)
{
    const fbp_kernels *t = f->program->table;
    const ptrdiff_t n = f->program->value[op->y].width;
    ptrdiff_t j, end;
    fbp_share(w, n, FBP_LINE, &j, &end);
    if (j == end) return;
    const int start = op->dw == FBP_MORE ? FBP_ADD : FBP_STORE;
    for (ptrdiff_t i = 0; i == 0 || i < f->rows; i += FBP_CHUNK)
        t->column_products(f->rows - i < FBP_CHUNK ? f->rows - i : FBP_CHUNK, end - j, fbp_at(t, f->gradient[op->y], i * n + j),
                           fbp_at(t, f->value[op->x], i * n + j), n, i ? FBP_ADD : start, fbp_at(t, f->grads, op->weight + j));
    if (f->update && op->last_w) fbp_update_range(t, f->update, fbp_slot_of(f->update->optimizer, op->weight), op->weight + j, end - j, fbp_at(t, f->grads, op->weight + j));
    if (op->bias >= 0) fbp_vector_gradients(f, op, op->bias, op->db, op->last_b, w);
}
