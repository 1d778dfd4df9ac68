/* y = act(x w + b): x (B, I) rows of a CSR matrix, the program's input, which has no memory of its own; w (I, O); b (O); y (B, O)
 * dw = xᵀ dy,  db = 1ᵀ dy;  x has no gradient. */
#include "ops.h"
#include <string.h>

typedef struct { int64_t begin, end; } entries;

static entries entries_of(const fbp_frame *f, ptrdiff_t i)
{
    const int64_t row = f->order ? f->order[f->first + i] : f->first + i;
    return (entries){f->csr->start[row], f->csr->start[row + 1]};
}

static double value_at(const fbp_frame *f, int64_t k)
{
    return f->program->table->size == sizeof(float) ? ((const float *)f->csr->value)[k] : ((const double *)f->csr->value)[k];
}

/* Rows of the weight lie anywhere: those that are wanted AHEAD entries later are asked for now. */
enum { AHEAD = 8, LINE = 64 };

static void fetch(const void *row, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += LINE) __builtin_prefetch((const char *)row + at);
}

void fbp_sparse_forward(const fbp_frame *f, const fbp_op *op, const fbp_worker *w)
{
    const fbp_kernels *t = f->program->table;
    const ptrdiff_t O = f->program->value[op->y].width;
    const void *weight = fbp_at(t, f->params, op->weight);
    ptrdiff_t i, end;
    fbp_share(w, f->rows, 4, &i, &end);
    for (; i < end; i++) {
        void *y = fbp_at(t, f->value[op->y], i * O);
        if (op->bias < 0) memset(y, 0, (size_t)O * t->size);
        else memcpy(y, fbp_at(t, f->params, op->bias), (size_t)O * t->size);
        const entries e = entries_of(f, i);
        for (int64_t k = e.begin; k < e.end; k++) {
            if (k + AHEAD < e.end) fetch(fbp_at(t, weight, f->csr->column[k + AHEAD] * O), (size_t)O * t->size);
            t->affine(O, value_at(f, k), 0, fbp_at(t, weight, f->csr->column[k] * O), 1, y);
        }
        if (op->act != FBP_IDENTITY) t->act_forward(op->act, O, y, op->alpha, y);
    }
}

void fbp_sparse_backward(const fbp_frame *f, const fbp_op *op, const fbp_worker *w) { (void)f; (void)op; (void)w; }

/* Every worker has rows [j, end) of w to itself and looks through all entries of the batch. Where the update rides, dw is zero before and
 * after: only what was touched has to be cleared. */
void fbp_sparse_gradients(const fbp_frame *f, const fbp_op *op, const fbp_worker *w)
{
    const fbp_kernels *t = f->program->table;
    const ptrdiff_t I = f->program->value[op->x].width, O = f->program->value[op->y].width;
    const int updates = f->update && op->last_w;
    void *dw = fbp_at(t, f->grads, op->weight);
    ptrdiff_t j, end;
    fbp_share(w, I, FBP_LINE, &j, &end);
    if (op->bias >= 0) fbp_vector_gradients(f, op, op->bias, op->db, op->last_b, w);
    if (j == end) return;
    if (!updates && op->dw == FBP_FIRST) memset(fbp_at(t, dw, j * O), 0, (size_t)((end - j) * O) * t->size);
    for (ptrdiff_t i = 0; i < f->rows; i++) {
        const entries e = entries_of(f, i);
        for (int64_t k = e.begin; k < e.end; k++) {
            if (k + AHEAD < e.end) fetch(fbp_at(t, dw, f->csr->column[k + AHEAD] * O), (size_t)O * t->size);
            const ptrdiff_t column = f->csr->column[k];
            if (j <= column && column < end) t->affine(O, value_at(f, k), 0, fbp_at(t, f->gradient[op->y], i * O), 1, fbp_at(t, dw, column * O));
        }
    }
    if (!updates) return;
    fbp_update_range(t, f->update, fbp_slot_of(f->update->optimizer, op->weight), op->weight + j * O, (end - j) * O, fbp_at(t, f->grads, op->weight + j * O));
    for (ptrdiff_t i = 0; i < f->rows; i++) {
        const entries e = entries_of(f, i);
        for (int64_t k = e.begin; k < e.end; k++) {
            const ptrdiff_t column = f->csr->column[k];
            if (j <= column && column < end) memset(fbp_at(t, dw, column * O), 0, (size_t)O * t->size);
        }
    }
}
