/* Operations on independent elements or rows: activations that stand alone, softmax, dropout, arithmetic between values. */
#include "ops.h"

enum { UNIT = 1024 };   /* elements: a worker's smallest share */

void fbp_close_gradient(const fbp_kernels *t, const fbp_worker *w, ptrdiff_t n, int act, double alpha, const void *s, void *g)
{
    if (act == FBP_IDENTITY) return;
    ptrdiff_t i, end;
    fbp_share(w, n, UNIT, &i, &end);
    t->act_backward(act, end - i, fbp_at(t, s, i), fbp_at(t, g, i), alpha, 0, fbp_at(t, g, i));
}

void fbp_close_range(const fbp_frame *f, int value, int act, double alpha, ptrdiff_t i, ptrdiff_t end)
{
    const fbp_kernels *t = f->program->table;
    if (act == FBP_IDENTITY) return;
    void *g = fbp_at(t, f->gradient[value], i);
    t->act_backward(act, end - i, fbp_at(t, f->value[value], i), g, alpha, 0, g);
}

/* This worker's elements of a stage, a block at a time through all its operations: what lies between them stays in the first cache. */
void fbp_stage_forward(const fbp_frame *f, const fbp_op *first, const fbp_op *last, fbp_range_driver *const *drivers, const fbp_worker *w)
{
    ptrdiff_t i, end;
    fbp_share(w, f->rows * f->program->value[first->y].width, UNIT, &i, &end);
    for (; i < end; i += UNIT)
        for (const fbp_op *op = first; op <= last; op++) drivers[op->kind](f, op, i, i + UNIT < end ? i + UNIT : end);
}

void fbp_stage_backward(const fbp_frame *f, const fbp_op *first, const fbp_op *last, fbp_range_driver *const *drivers, const fbp_worker *w)
{
    ptrdiff_t i, end;
    fbp_share(w, f->rows * f->program->value[first->y].width, UNIT, &i, &end);
    for (; i < end; i += UNIT)
        for (const fbp_op *op = last; op >= first; op--)
            if (op->dx != FBP_UNWANTED || op->dz != FBP_UNWANTED) drivers[op->kind](f, op, i, i + UNIT < end ? i + UNIT : end);
}

void fbp_activation_forward(const fbp_frame *f, const fbp_op *op, ptrdiff_t i, ptrdiff_t end)
{
    const fbp_kernels *t = f->program->table;
    t->act_forward(op->act, end - i, fbp_at(t, f->value[op->x], i), op->alpha, fbp_at(t, f->value[op->y], i));
}

void fbp_activation_backward(const fbp_frame *f, const fbp_op *op, ptrdiff_t i, ptrdiff_t end)
{
    const fbp_kernels *t = f->program->table;
    const int from_input = op->act >= FBP_SOFTPLUS;
    t->act_backward(op->act, end - i, fbp_at(t, f->value[from_input ? op->x : op->y], i), fbp_at(t, f->gradient[op->y], i), op->alpha,
                    op->dx == FBP_MORE, fbp_at(t, f->gradient[op->x], i));
    fbp_close_range(f, op->x, op->dact, op->dalpha, i, end);
}

void fbp_softmax_forward(const fbp_frame *f, const fbp_op *op, const fbp_worker *w)
{
    const fbp_kernels *t = f->program->table;
    const ptrdiff_t n = f->program->value[op->x].width;
    ptrdiff_t i, end;
    fbp_share(w, f->rows, 16, &i, &end);
    t->softmax_forward(end - i, n, fbp_at(t, f->value[op->x], i * n), fbp_at(t, f->value[op->y], i * n));
}

void fbp_softmax_backward(const fbp_frame *f, const fbp_op *op, const fbp_worker *w)
{
    const fbp_kernels *t = f->program->table;
    const ptrdiff_t n = f->program->value[op->x].width;
    ptrdiff_t i, end;
    if (op->dx == FBP_UNWANTED) return;
    fbp_share(w, f->rows, 16, &i, &end);
    t->softmax_backward(end - i, n, fbp_at(t, f->value[op->y], i * n), fbp_at(t, f->gradient[op->y], i * n), op->dx == FBP_MORE,
                        fbp_at(t, f->gradient[op->x], i * n));
    fbp_close_range(f, op->x, op->dact, op->dalpha, i * n, end * n);
}

/* The bits depend on the seed, the step, the layer and the element, and on nothing else. */
static uint64_t dropout_key(const fbp_frame *f, const fbp_op *op)
{
    uint64_t z = f->seed + 0x9e3779b97f4a7c15u * (f->step + 1) + 0xbf58476d1ce4e5b9u * ((uint64_t)op->stream + 1);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static void dropout(const fbp_frame *f, const fbp_op *op, const void *from, int add, void *to, ptrdiff_t i, ptrdiff_t end)
{
    const fbp_kernels *t = f->program->table;
    t->dropout(end - i, fbp_at(t, from, i), f->training ? op->alpha : 0, dropout_key(f, op), (uint64_t)i, add, fbp_at(t, to, i));
}

void fbp_dropout_forward(const fbp_frame *f, const fbp_op *op, ptrdiff_t i, ptrdiff_t end)
{
    dropout(f, op, f->value[op->x], 0, f->value[op->y], i, end);
}

void fbp_dropout_backward(const fbp_frame *f, const fbp_op *op, ptrdiff_t i, ptrdiff_t end)
{
    dropout(f, op, f->gradient[op->y], op->dx == FBP_MORE, f->gradient[op->x], i, end);
    fbp_close_range(f, op->x, op->dact, op->dalpha, i, end);
}

/* ---- of the graph: arithmetic on values, and columns of values ------------------------------------------------------------ */

void fbp_binary_forward(const fbp_frame *f, const fbp_op *op, ptrdiff_t i, ptrdiff_t end)
{
    const fbp_kernels *t = f->program->table;
    t->binary(op->act, end - i, fbp_at(t, f->value[op->x], i), fbp_at(t, f->value[op->z], i), fbp_at(t, f->value[op->y], i));
}

/* x and z may be one value: the contribution of z comes second. */
void fbp_binary_backward(const fbp_frame *f, const fbp_op *op, ptrdiff_t i, ptrdiff_t end)
{
    const fbp_kernels *t = f->program->table;
    const void *x = fbp_at(t, f->value[op->x], i), *z = fbp_at(t, f->value[op->z], i), *dy = fbp_at(t, f->gradient[op->y], i);
    if (op->dx == FBP_FIRST || op->dx == FBP_MORE) t->binary_backward(op->act, 0, end - i, x, z, dy, op->dx == FBP_MORE, fbp_at(t, f->gradient[op->x], i));
    if (op->dz == FBP_FIRST || op->dz == FBP_MORE) t->binary_backward(op->act, 1, end - i, x, z, dy, op->dz == FBP_MORE, fbp_at(t, f->gradient[op->z], i));
    fbp_close_range(f, op->x, op->dact, op->dalpha, i, end);
    fbp_close_range(f, op->z, op->zact, op->zalpha, i, end);
}

void fbp_affine_forward(const fbp_frame *f, const fbp_op *op, ptrdiff_t i, ptrdiff_t end)
{
    const fbp_kernels *t = f->program->table;
    t->affine(end - i, op->alpha, op->beta, fbp_at(t, f->value[op->x], i), 0, fbp_at(t, f->value[op->y], i));
}

void fbp_affine_backward(const fbp_frame *f, const fbp_op *op, ptrdiff_t i, ptrdiff_t end)
{
    const fbp_kernels *t = f->program->table;
    t->affine(end - i, op->alpha, 0, fbp_at(t, f->gradient[op->y], i), op->dx == FBP_MORE, fbp_at(t, f->gradient[op->x], i));
    fbp_close_range(f, op->x, op->dact, op->dalpha, i, end);
}

/* `many` (B, n) and `one` (B, 1): the rows that are this worker's. */
static void sum_rows(const fbp_frame *f, const fbp_worker *w, ptrdiff_t n, const void *many, int add, void *one)
{
    const fbp_kernels *t = f->program->table;
    ptrdiff_t i, end;
    fbp_share(w, f->rows, 16, &i, &end);
    t->row_sums(end - i, n, fbp_at(t, many, i * n), add, fbp_at(t, one, i));
}

static void expand_rows(const fbp_frame *f, const fbp_worker *w, ptrdiff_t n, const void *one, int add, void *many)
{
    const fbp_kernels *t = f->program->table;
    ptrdiff_t i, end;
    fbp_share(w, f->rows, 16, &i, &end);
    t->expand(end - i, n, fbp_at(t, one, i), add, fbp_at(t, many, i * n));
}

void fbp_sum_forward(const fbp_frame *f, const fbp_op *op, const fbp_worker *w)
{
    sum_rows(f, w, f->program->value[op->x].width, f->value[op->x], 0, f->value[op->y]);
}

void fbp_sum_backward(const fbp_frame *f, const fbp_op *op, const fbp_worker *w)
{
    expand_rows(f, w, f->program->value[op->x].width, f->gradient[op->y], op->dx == FBP_MORE, f->gradient[op->x]);
}

void fbp_expand_forward(const fbp_frame *f, const fbp_op *op, const fbp_worker *w)
{
    expand_rows(f, w, f->program->value[op->y].width, f->value[op->x], 0, f->value[op->y]);
}

void fbp_expand_backward(const fbp_frame *f, const fbp_op *op, const fbp_worker *w)
{
    sum_rows(f, w, f->program->value[op->y].width, f->gradient[op->y], op->dx == FBP_MORE, f->gradient[op->x]);
}

/* Columns [from_at, from_at + n) of `from` to columns [to_at, to_at + n) of `to`, for this worker's rows. */
static void move_columns(const fbp_frame *f, const fbp_worker *w, ptrdiff_t n, const void *from, ptrdiff_t from_at, ptrdiff_t from_width, int add,
                         void *to, ptrdiff_t to_at, ptrdiff_t to_width)
{
    const fbp_kernels *t = f->program->table;
    ptrdiff_t i, end;
    fbp_share(w, f->rows, 16, &i, &end);
    for (; i < end; i++) t->act_backward(FBP_IDENTITY, n, NULL, fbp_at(t, from, i * from_width + from_at), 0, add, fbp_at(t, to, i * to_width + to_at));
}

void fbp_place_forward(const fbp_frame *f, const fbp_op *op, const fbp_worker *w)
{
    const ptrdiff_t n = f->program->value[op->x].width, width = f->program->value[op->y].width;
    move_columns(f, w, n, f->value[op->x], 0, n, 0, f->value[op->y], op->at, width);
}

void fbp_place_backward(const fbp_frame *f, const fbp_op *op, const fbp_worker *w)
{
    const ptrdiff_t n = f->program->value[op->x].width, width = f->program->value[op->y].width;
    move_columns(f, w, n, f->gradient[op->y], op->at, width, op->dx == FBP_MORE, f->gradient[op->x], 0, n);
}

void fbp_pick_forward(const fbp_frame *f, const fbp_op *op, const fbp_worker *w)
{
    const ptrdiff_t n = f->program->value[op->y].width, width = f->program->value[op->x].width;
    move_columns(f, w, n, f->value[op->x], op->at, width, 0, f->value[op->y], 0, n);
}

void fbp_pick_backward(const fbp_frame *f, const fbp_op *op, const fbp_worker *w)
{
    const ptrdiff_t n = f->program->value[op->y].width, width = f->program->value[op->x].width;
    move_columns(f, w, n, f->gradient[op->y], 0, n, op->dx == FBP_MORE, f->gradient[op->x], op->at, width);
}
