#include "program.h"
#include "ops/ops.h"
#include <assert.h>
#include <string.h>

static const struct { fbp_driver *forward, *backward, *gradients; } drivers[FBP_OP_KINDS] = {
    [FBP_DENSE] = {fbp_dense_forward, fbp_dense_backward, fbp_dense_gradients},
    [FBP_SOFTMAX] = {fbp_softmax_forward, fbp_softmax_backward, NULL},
    [FBP_SUM] = {fbp_sum_forward, fbp_sum_backward, NULL},
    [FBP_EXPAND] = {fbp_expand_forward, fbp_expand_backward, NULL},
    [FBP_PLACE] = {fbp_place_forward, fbp_place_backward, NULL},
    [FBP_PICK] = {fbp_pick_forward, fbp_pick_backward, NULL},
    [FBP_PARAMETER] = {fbp_parameter_forward, fbp_parameter_backward, fbp_parameter_gradients},
    [FBP_LAYERNORM] = {fbp_layernorm_forward, fbp_layernorm_backward, NULL},
    [FBP_BATCHNORM] = {fbp_batchnorm_forward, fbp_batchnorm_backward, NULL},
    [FBP_SCALE] = {fbp_scale_forward, fbp_scale_backward, fbp_scale_gradients},
    [FBP_EMBEDDING] = {fbp_embedding_forward, fbp_embedding_backward, fbp_embedding_gradients},
    [FBP_SPARSE] = {fbp_sparse_forward, fbp_sparse_backward, fbp_sparse_gradients},
};

/* The elementwise kinds. */
static fbp_range_driver *const forward_range[FBP_OP_KINDS] = {
    [FBP_ACTIVATION] = fbp_activation_forward, [FBP_DROPOUT] = fbp_dropout_forward, [FBP_BINARY] = fbp_binary_forward, [FBP_AFFINE] = fbp_affine_forward,
};
static fbp_range_driver *const backward_range[FBP_OP_KINDS] = {
    [FBP_ACTIVATION] = fbp_activation_backward, [FBP_DROPOUT] = fbp_dropout_backward, [FBP_BINARY] = fbp_binary_backward, [FBP_AFFINE] = fbp_affine_backward,
};

/* ---- frames --------------------------------------------------------------------------------------------------------- */

static size_t aligned(size_t bytes) { return (bytes + 63) & ~(size_t)63; }
static size_t pointer_bytes(const fbp_program *p) { return aligned(2 * (size_t)p->values * sizeof(void *)); }
static size_t arena_bytes(const fbp_program *p) { return aligned((size_t)p->arena * p->table->size); }

size_t fbp_program_scratch(const fbp_kernels *t, int ops, const fbp_op *op, const fbp_value *value, ptrdiff_t rows)
{
    size_t most = 0;
    for (const fbp_op *end = op + ops; op < end; op++) {
        if (op->kind != FBP_DENSE) continue;
        const ptrdiff_t I = value[op->x].width, O = value[op->y].width;
        const size_t products[4] = {fbp_gemm_scratch(t, rows, O, I), fbp_gemm_scratch(t, O, I, rows), fbp_gemm_scratch(t, I, O, rows),
                                    fbp_gemm_scratch(t, rows, I, O)};
        for (int i = 0; i < 4; i++) if (products[i] > most) most = products[i];
    }
    return most;
}

size_t fbp_program_half(const fbp_kernels *t, int ops, const fbp_op *op, const fbp_value *value, ptrdiff_t rows)
{
    ptrdiff_t most = 0;   /* of small batches only, whose dx has fewer elements than half of w */
    for (const fbp_op *end = op + ops; op < end; op++)
        if (op->kind == FBP_DENSE && op->dx != FBP_UNWANTED && rows * value[op->x].width > most) most = rows * value[op->x].width;
    return aligned((size_t)(most < FBP_HALVED_MOST / 2 ? most : FBP_HALVED_MOST / 2) * t->size);
}

size_t fbp_frame_bytes(const fbp_program *p, int threads)
{
    return pointer_bytes(p) + arena_bytes(p) + 4 * p->half + (size_t)threads * p->scratch;
}

fbp_frame fbp_frame_in(void *memory, const fbp_program *p)
{
    char *arena = (char *)memory + pointer_bytes(p), *half = arena + arena_bytes(p);
    fbp_frame f = {.program = p, .value = memory, .gradient = (void **)memory + p->values, .arena = arena, .half = {half, half + 2 * p->half},
                   .scratch = half + 4 * p->half};
    for (int v = 0; v < p->values; v++) {
        f.value[v] = p->value[v].offset < 0 ? NULL : fbp_at(p->table, arena, p->value[v].offset);
        f.gradient[v] = p->value[v].gradient < 0 ? NULL : fbp_at(p->table, arena, p->value[v].gradient);
    }
    return f;
}

ptrdiff_t fbp_program_chunks(const fbp_program *p, ptrdiff_t rows)
{
    ptrdiff_t widths = p->value[p->input].width;
    const ptrdiff_t chunk = fbp_chunk(rows), chunks = (rows + chunk - 1) / chunk;
    if (chunks == 1 || !p->complete) return 0;
    for (const fbp_op *op = p->op; op < p->op + p->ops; op++) {
        if (op->kind == FBP_DENSE ? op->dw == FBP_MORE || op->db == FBP_MORE : drivers[op->kind].gradients || op->kind == FBP_BATCHNORM) return 0;
        widths += p->value[op->y].width;
    }
    return 10 * p->extent * chunks <= 3 * rows * widths ? chunks : 0;
}

/* ---- phases: every member of the team runs these together ---------------------------------------------------------- */

void fbp_program_forward(const fbp_frame *f, const fbp_worker *w)
{
    const fbp_program *p = f->program;
    assert(f->rows <= p->capacity);
    for (const fbp_op *op = p->op, *end = op + p->ops; op < end; op++) {
        const fbp_op *first = op;
        while (op + 1 < end && op[1].stage == first->stage) op++;
        if (forward_range[op->kind]) fbp_stage_forward(f, first, op, forward_range, w);
        else drivers[op->kind].forward(f, op, w);
        fbp_barrier(w);
    }
}

void fbp_program_statistics(const fbp_frame *f, const fbp_worker *w)
{
    const fbp_program *p = f->program;
    if (!p->statistics || !f->training) return;
    for (const fbp_op *op = p->op; op < p->op + p->ops; op++) if (op->kind == FBP_BATCHNORM) fbp_batchnorm_statistics(f, op, w);
}

/* Both gradients of a dense operation whose dx is two sums: while the other sum is under way, a worker makes the gradients, for which it needs what it
 * has. Returns whether all have met since. */
static int backward_in_halves(const fbp_frame *f, const fbp_op *op, const fbp_worker *w)
{
    fbp_dense_backward(f, op, w);
    const unsigned arrival = fbp_arrive(w);
    if (w->parts > 2) fbp_await(w, arrival);   /* others read the rows of the weight that this one updates */
    fbp_dense_gradients(f, op, w);
    fbp_await(w, arrival);
    fbp_dense_join(f, op, w);
    if (op > f->program->op && fbp_dense_alone(f, op - 1, w)) return 0;
    fbp_barrier(w);
    return 1;
}

void fbp_program_backward(const fbp_frame *f, const fbp_worker *w)
{
    const fbp_program *p = f->program;
    int met = 1;   /* since a worker added to gradients of parameters */
    for (const fbp_output *o = p->output; o < p->output + p->outputs; o++) {
        if (o->act == FBP_IDENTITY) continue;
        fbp_close_gradient(p->table, w, f->rows * p->value[o->value].width, o->act, o->alpha, f->value[o->value], f->gradient[o->value]);
        fbp_barrier(w);
    }
    for (const fbp_op *op = p->op + p->ops - 1; op >= p->op; op--) {
        if (op->closes) {
            fbp_close_gradient(p->table, w, f->rows * p->value[op->y].width, op->act, op->alpha, f->value[op->y], f->gradient[op->y]);
            fbp_barrier(w);
        }
        const int more = op->dw == FBP_MORE || op->db == FBP_MORE;   /* operations share the same parameters out in their own ways */
        if (fbp_dense_halved(f, op, w)) {
            if (!met && more) fbp_barrier(w);
            met = backward_in_halves(f, op, w);
            continue;
        }
        const fbp_op *last = op;
        int wanted = op->dx != FBP_UNWANTED || op->dz != FBP_UNWANTED;
        for (; op > p->op && op[-1].stage == last->stage; op--) wanted |= op[-1].dx != FBP_UNWANTED || op[-1].dz != FBP_UNWANTED;
        if (wanted) {
            if (backward_range[op->kind]) fbp_stage_backward(f, op, last, backward_range, w);
            else drivers[op->kind].backward(f, op, w);
            fbp_barrier(w);   /* now dx is whole, and nobody reads the parameters any more */
            met = 1;
        }
        if (!drivers[op->kind].gradients) continue;
        if (!met && more) fbp_barrier(w);
        drivers[op->kind].gradients(f, op, w);
        met = 0;
    }
}

int fbp_program_threads(const fbp_program *p, ptrdiff_t rows, int passes)
{
    enum { FEWEST = 8 };   /* to read the weights takes as long as to multiply that many rows by them */
    return fbp_threads_for(p->work_per_row * (double)(rows > FEWEST ? rows : FEWEST) * passes);
}

static void run_forward(const fbp_worker *w, void *frame)
{
    fbp_program_forward(frame, w);
    fbp_program_statistics(frame, w);
}
void fbp_forward(fbp_frame *f, int threads) { fbp_run_team(threads, FBP_SUBNORMALS_FLUSHED, run_forward, f); }

static void run_backward(const fbp_worker *w, void *frame) { fbp_program_backward(frame, w); }
void fbp_backward(fbp_frame *f, const void *const *dout, int threads)
{
    const fbp_program *p = f->program;
    for (int o = 0; o < p->outputs; o++)
        memcpy(f->gradient[p->output[o].value], dout[o], (size_t)(f->rows * p->value[p->output[o].value].width) * p->table->size);
    fbp_run_team(threads, FBP_SUBNORMALS_FLUSHED, run_backward, f);
}

/* ---- prediction ------------------------------------------------------------------------------------------------------ */

typedef struct {
    const fbp_program *program;
    const void *params, *x;
    const fbp_csr *csr;
    void *const *y;
    void *memory;
    ptrdiff_t n;
} prediction;

enum { SLICE = 32 };   /* rows that a thread has at least */

static fbp_frame frame_of(const prediction *q, int part)
{
    fbp_frame f = fbp_frame_in((char *)q->memory + (size_t)part * fbp_frame_bytes(q->program, 1), q->program);
    f.params = q->params, f.csr = q->csr;
    return f;
}

static void take_rows(const prediction *q, ptrdiff_t first, ptrdiff_t rows, fbp_frame *f)
{
    const fbp_program *p = q->program;
    f->first = first, f->rows = rows;
    f->value[p->input] = fbp_at(p->table, q->x, first * p->value[p->input].width);
    for (int o = 0; o < p->outputs; o++) f->value[p->output[o].value] = fbp_at(p->table, q->y[o], first * p->value[p->output[o].value].width);
}

static void predict_share(const fbp_worker *w, void *argument)
{
    const prediction *q = argument;
    const ptrdiff_t capacity = q->program->capacity;
    const fbp_worker alone = {0, 1, NULL};
    fbp_frame f = frame_of(q, w->part);
    ptrdiff_t i, end;
    for (fbp_share(w, q->n, SLICE, &i, &end); i < end; i += f.rows) {
        take_rows(q, i, end - i < capacity ? end - i : capacity, &f);
        fbp_program_forward(&f, &alone);
    }
}

void fbp_predict(const fbp_program *p, const void *params, ptrdiff_t n, const void *x, const fbp_csr *csr, void *const *y, void *memory, int threads)
{
    prediction q = {p, params, x, csr, y, memory, n};
    if (p->ops == 0) {   /* the identity */
        memcpy(y[0], x, (size_t)(n * p->value[p->input].width) * p->table->size);
        return;
    }
    if (0 < n && n < SLICE * threads && n <= p->capacity) {   /* too few to share out: the team shares out every operation */
        fbp_frame f = frame_of(&q, 0);
        take_rows(&q, 0, n, &f);
        fbp_forward(&f, threads);
        return;
    }
    fbp_run_team(threads, FBP_SUBNORMALS_FLUSHED, predict_share, &q);
}
