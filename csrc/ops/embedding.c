/* y (B, k width) = rows of w (rows, width) whose numbers are in x (B, k), side by side. dw: every row of dy is added to the row it came from; numbers have
 * no gradient. */
#include "ops.h"
#include <string.h>

static ptrdiff_t numbers(const fbp_frame *f, const fbp_op *op) { return f->program->value[op->x].width; }
static ptrdiff_t width(const fbp_frame *f, const fbp_op *op) { return f->program->value[op->y].width / numbers(f, op); }

void fbp_embedding_forward(const fbp_frame *f, const fbp_op *op, const fbp_worker *w)
{
    const fbp_kernels *t = f->program->table;
    const ptrdiff_t k = numbers(f, op), n = width(f, op);
    ptrdiff_t i, end;
    fbp_share(w, f->rows, 16, &i, &end);
    t->take_rows((end - i) * k, fbp_at(t, f->value[op->x], i * k), op->at, n, fbp_at(t, f->params, op->weight), fbp_at(t, f->value[op->y], i * k * n));
}

void fbp_embedding_backward(const fbp_frame *f, const fbp_op *op, const fbp_worker *w)
{
    const fbp_kernels *t = f->program->table;
    if (op->dx == FBP_FIRST && w->part == 0) memset(f->gradient[op->x], 0, (size_t)(f->rows * numbers(f, op)) * t->size);
}

/* Every worker has rows of w to itself and looks through all numbers. */
void fbp_embedding_gradients(const fbp_frame *f, const fbp_op *op, const fbp_worker *w)
{
    const fbp_kernels *t = f->program->table;
    const ptrdiff_t k = numbers(f, op), n = width(f, op);
    ptrdiff_t i, end;
    fbp_share(w, op->at, FBP_LINE, &i, &end);
    if (i == end) return;
    void *dw = fbp_at(t, f->grads, op->weight);
    if (op->dw == FBP_FIRST) memset(fbp_at(t, dw, i * n), 0, (size_t)((end - i) * n) * t->size);
    t->add_rows(f->rows * k, f->value[op->x], i, end, n, f->gradient[op->y], dw);
    if (f->update && op->last_w) fbp_update_range(t, f->update, fbp_slot_of(f->update->optimizer, op->weight), op->weight + i * n, (end - i) * n, fbp_at(t, f->grads, op->weight + i * n));
}
