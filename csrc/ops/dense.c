/* y = act(x wᵀ + b)        x (B, I)  w (O, I)  b (O)  y (B, O)
 * backward, dy the gradient by x wᵀ + b:  dw = dyᵀ x,  db = 1ᵀ dy,  dx = dy w * dact'(x) */
#include "ops.h"

static void *scratch_of(const fbp_frame *f, const fbp_worker *w)
{
    return (char *)f->scratch + (size_t)w->part * f->program->scratch;
}

void fbp_dense_forward(const fbp_frame *f, const fbp_op *op, const fbp_worker *w)
{
    const fbp_kernels *t = f->program->table;
    const ptrdiff_t I = f->program->value[op->x].width, O = f->program->value[op->y].width;
    const fbp_epilogue e = {.bias = op->bias < 0 ? NULL : fbp_at(t, f->params, op->bias), .act = op->act, .alpha = op->alpha};
    const fbp_product q = {
        .m = f->rows, .n = O, .k = I,
        .a = {f->value[op->x], I, 1},
        .b = {fbp_at(t, f->params, op->weight), 1, I},
        .c = f->value[op->y], .ldc = O, .start = FBP_STORE, .epilogue = &e,
    };
    fbp_gemm(t, w, &q, scratch_of(f, w));
}

void fbp_dense_backward(const fbp_frame *f, const fbp_op *op, const fbp_worker *w)
{
    const fbp_kernels *t = f->program->table;
    const ptrdiff_t I = f->program->value[op->x].width, O = f->program->value[op->y].width;
    const void *dy = f->gradient[op->y];
    const int start = op->dw == FBP_MORE ? FBP_ADD : FBP_STORE;
    const fbp_product dw = {
        .m = O, .n = I, .k = f->rows,
        .a = {dy, 1, O},
        .b = {f->value[op->x], I, 1},
        .c = fbp_at(t, f->grads, op->weight), .ldc = I, .start = start, .chunked = 1,
    };
    fbp_gemm(t, w, &dw, scratch_of(f, w));
    if (op->bias >= 0) fbp_column_sums(t, w, f->rows, O, dy, start, fbp_at(t, f->grads, op->bias));
    if (op->dx == FBP_UNWANTED) return;
    const fbp_epilogue e = {.act = op->dact, .alpha = op->dalpha, .y = f->value[op->x], .ldy = I};
    const fbp_product dx = {
        .m = f->rows, .n = I, .k = O,
        .a = {dy, O, 1},
        .b = {fbp_at(t, f->params, op->weight), I, 1},
        .c = f->gradient[op->x], .ldc = I, .start = op->dx == FBP_MORE ? FBP_CONTINUE : FBP_STORE,
        .epilogue = op->dact == FBP_IDENTITY ? NULL : &e,
    };
    fbp_gemm(t, w, &dx, scratch_of(f, w));
}
