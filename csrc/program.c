#define _GNU_SOURCE
#include "program.h"
#include "ops/ops.h"
#include <assert.h>
#include <math.h>
#include <string.h>
#include <time.h>

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

/* ---- phases: every member of the team runs these together ---------------------------------------------------------- */

static void forward(const fbp_frame *f, const fbp_worker *w)
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

/* After a training pass: running statistics move towards those of the batch. */
static void statistics(const fbp_frame *f, const fbp_worker *w)
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

/* From the loss' gradient by the outputs, which is in place, back to the input (equations BP1 to BP4). */
static void backward(const fbp_frame *f, const fbp_worker *w)
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
    return fbp_threads_for(p->work_per_row * (double)rows * passes);
}

int fbp_training_threads(const fbp_program *p, ptrdiff_t rows) { return fbp_threads_for_steps(3 * p->work_per_row * (double)rows); }

static void run_forward(const fbp_worker *w, void *frame)
{
    forward(frame, w);
    statistics(frame, w);
}
void fbp_forward(fbp_frame *f, int threads) { fbp_run_team(threads, FBP_SUBNORMALS_FLUSHED, run_forward, f); }

static void run_backward(const fbp_worker *w, void *frame) { backward(frame, w); }
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

static void predict_share(const fbp_worker *w, void *argument)
{
    const prediction *q = argument;
    const fbp_program *p = q->program;
    const fbp_worker alone = {0, 1, NULL};
    fbp_frame f = fbp_frame_in((char *)q->memory + (size_t)w->part * fbp_frame_bytes(p, 1), p);
    f.params = q->params, f.csr = q->csr;
    ptrdiff_t i, end;
    for (fbp_share(w, q->n, 32, &i, &end); i < end; i += f.rows) {
        f.rows = end - i < p->capacity ? end - i : p->capacity;
        f.value[p->input] = fbp_at(p->table, q->x, i * p->value[p->input].width);
        f.first = i;
        for (int o = 0; o < p->outputs; o++) f.value[p->output[o].value] = fbp_at(p->table, q->y[o], i * p->value[p->output[o].value].width);
        forward(&f, &alone);
    }
}

void fbp_predict(const fbp_program *p, const void *params, ptrdiff_t n, const void *x, const fbp_csr *csr, void *const *y, void *memory, int threads)
{
    prediction q = {p, params, x, csr, y, memory, n};
    if (p->ops == 0) {   /* the identity */
        memcpy(y[0], x, (size_t)(n * p->value[p->input].width) * p->table->size);
        return;
    }
    fbp_run_team(threads, FBP_SUBNORMALS_FLUSHED, predict_share, &q);
}

/* ---- training -------------------------------------------------------------------------------------------------------- */

ptrdiff_t fbp_partials(ptrdiff_t rows, int outputs, ptrdiff_t parameters, int threads)
{
    const ptrdiff_t chunks = fbp_loss_chunks(rows), squares = (parameters + FBP_SQUARES_CHUNK - 1) / FBP_SQUARES_CHUNK;
    return (outputs + 1) * chunks + squares + threads;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void gather(const fbp_worker *w, const int64_t *order, ptrdiff_t rows, size_t bytes, const void *from, void *to)
{
    ptrdiff_t i, end;
    fbp_share(w, rows, 1, &i, &end);
    if (bytes == sizeof(int64_t)) for (; i < end; i++) memcpy((int64_t *)to + i, (const int64_t *)from + order[i], sizeof(int64_t));   /* a move, not a call */
    else for (; i < end; i++) memcpy((char *)to + (size_t)i * bytes, (const char *)from + (size_t)order[i] * bytes, bytes);
}

/* Rows [first, ...) of an epoch's order and one target per output: copied together when they are shuffled, else used where they are. Every worker sets the
 * same pointers in its own copy of the frame. */
static void take_batch(const fbp_run *r, fbp_frame *f, const fbp_worker *w, void *input_room, ptrdiff_t epoch, ptrdiff_t first, fbp_target *target)
{
    const fbp_program *p = f->program;
    const ptrdiff_t I = p->value[p->input].width;
    const size_t size = p->table->size;
    f->order = r->order ? r->order + epoch * r->n : NULL, f->first = first;
    const int64_t *order = f->order ? f->order + first : NULL;
    f->value[p->input] = order ? input_room : fbp_at(p->table, r->x, first * I);
    if (order && r->x) gather(w, order, f->rows, (size_t)I * size, r->x, input_room);
    if (order && r->w) gather(w, order, f->rows, size, r->w, r->gathered_w);
    for (int k = 0; k < p->outputs; k++) {
        const fbp_objective *q = r->objective + k;
        const ptrdiff_t O = p->value[p->output[k].value].width;
        if (!order) {
            target[k] = (fbp_target){fbp_at(p->table, q->target.t, first * O), q->target.label ? q->target.label + first : NULL, fbp_at(p->table, r->w, first)};
            continue;
        }
        target[k] = (fbp_target){q->target.t ? q->gathered_t : NULL, q->target.label ? q->gathered_label : NULL, r->w ? r->gathered_w : NULL};
        if (q->target.t) gather(w, order, f->rows, (size_t)O * size, q->target.t, q->gathered_t);
        if (q->target.label) gather(w, order, f->rows, sizeof *q->target.label, q->target.label, q->gathered_label);
    }
}

/* The losses of this worker's rows into `partial`, a piece of `chunks` doubles per output, and their gradients by the outputs. */
static void lose(const fbp_run *r, const fbp_frame *f, const fbp_worker *w, const fbp_target *target, double batch_weight, ptrdiff_t first, double *partial,
                 ptrdiff_t chunks)
{
    const fbp_program *p = f->program;
    for (int k = 0; k < p->outputs; k++) {
        const fbp_objective *q = r->objective + k;
        const int v = p->output[k].value;
        const ptrdiff_t O = p->value[v].width;
        fbp_loss_rows(p->table, w, q->loss, fbp_loss_factor(q->loss, batch_weight), f->rows, O, f->value[v], target[k], f->gradient[v],
                      partial + k * chunks);
        if (q->weight == 1 && !q->outputs) continue;
        ptrdiff_t i, end;
        fbp_share(w, f->rows, fbp_loss_chunk(f->rows), &i, &end);
        if (q->weight != 1) p->table->scale((end - i) * O, q->weight, fbp_at(p->table, f->gradient[v], i * O));
        if (q->outputs) memcpy(fbp_at(p->table, q->outputs, (first + i) * O), fbp_at(p->table, f->value[v], i * O), (size_t)((end - i) * O) * p->table->size);
    }
}

static ptrdiff_t parameters_of(const fbp_optimizer *o) { return o->slots ? o->slot[o->slots - 1].offset + o->slot[o->slots - 1].size : 0; }

/* Whether updates ride on the gradients. Clipping needs all of them first; few parameters are updated faster in one go, unless that takes one
 * more barrier. */
static int updates_ride(const fbp_run *r)
{
    enum { SMALL = 8192 };
    const fbp_optimizer *o = r->optimizer;
    return r->frame->program->complete && o->clip_norm == 0 && o->kind != FBP_GRADIENT && (parameters_of(o) > SMALL || r->threads > 1);
}

/* Whole steps until the time is up, the epoch ends, or a number stops being finite. All workers run this side by side, each
 * with its own frame; they take every decision from the same numbers. Worker 0 alone writes to the run. */
static void train_steps(fbp_run *r, const fbp_worker *w)
{
    const fbp_program *p = r->frame->program;
    const fbp_kernels *t = p->table;
    const fbp_optimizer *o = r->optimizer;
    const ptrdiff_t chunks = fbp_loss_chunks(r->batch_size);
    const ptrdiff_t parameters = parameters_of(o);
    const int rides = updates_ride(r);
    double *losses = r->partial, *hits = losses + p->outputs * chunks, *broken = hits + chunks, *squares = broken + w->parts;
    void *value[p->values];   /* this worker's pointers: the input's changes with the batch */
    fbp_target target[p->outputs];
    fbp_frame f = *r->frame;
    memcpy(value, f.value, sizeof value);
    f.value = value;
    void *input_room = value[p->input];
    int64_t steps = r->steps;
    const double start = w->part == 0 ? now() : 0;
    int64_t look = steps;
    const int64_t first_step = steps;
    const ptrdiff_t of_epoch = (r->n + r->batch_size - 1) / r->batch_size;
    ptrdiff_t epoch = r->batch / of_epoch, in_epoch = r->batch % of_epoch;   /* batches */

    if (w->part == 0) r->paused = 0;
    if (f.csr && rides && !r->cleared) {   /* the barriers of the first forward pass come before anyone adds to them */
        ptrdiff_t i, end;
        fbp_share(w, parameters, FBP_SQUARES_CHUNK, &i, &end);
        memset(fbp_at(t, f.grads, i), 0, (size_t)(end - i) * t->size);
    }

    for (;;) {
        const ptrdiff_t b = r->batch, first = in_epoch * r->batch_size;
        f.rows = r->n - first < r->batch_size ? r->n - first : r->batch_size;
        assert(0 < f.rows && f.rows <= p->capacity && b < r->batches);
        take_batch(r, &f, w, input_room, epoch, first, target);
        if (r->order) fbp_barrier(w);
        forward(&f, w);
        const double batch_weight = fbp_batch_weight(t, f.rows, target->w);
        lose(r, &f, w, target, batch_weight, first, losses, chunks);
        if (o->penalty > 0) fbp_penalty_squares(t, w, o, parameters, r->params, squares);
        if (r->wants_accuracy)
            fbp_accuracy_rows(t, w, r->threshold, f.rows, p->value[p->output->value].width, f.value[p->output->value], *target, hits);
        fbp_barrier(w);

        double loss = o->penalty > 0 ? fbp_penalty(o, batch_weight, parameters, squares) : 0;
        for (int k = 0; k < p->outputs; k++) loss += r->objective[k].weight * fbp_chunk_total(losses + k * chunks, f.rows);
        if (w->part == 0) r->last_loss = loss;
        if (!isfinite(loss) && !r->tolerant) {   /* before anything is updated */
            if (w->part == 0) r->status = FBP_LOSS_NOT_FINITE;
            return;
        }
        statistics(&f, w);
        fbp_step step = fbp_step_begin(o, r->lr[b], ++steps, batch_weight);
        step.grads = f.grads, step.params = r->params, step.state1 = r->state1, step.state2 = r->state2;
        f.update = rides ? &step : NULL;
        backward(&f, w);
        if (!rides) {
            fbp_barrier(w);
            if (o->clip_norm > 0) {
                fbp_update_squares(t, w, parameters, f.grads, squares);
                fbp_barrier(w);
            }
            fbp_update_flat(t, w, &step, parameters, squares);
        }
        broken[w->part] = step.not_finite && !r->tolerant;
        if (w->part == 0) {
            r->loss_sum[epoch] += loss * (double)f.rows;
            if (r->wants_accuracy) r->hits[epoch] += fbp_chunk_total(hits, f.rows);
            r->batch = b + 1;
            r->steps = steps;
            if (steps > look) {   /* at the clock, which takes longer than a small layer: soon at first, then after 1/16 of the steps made */
                r->paused = now() - start >= r->seconds;
                look = steps + (steps - first_step - 1) / 16;
            }
        }
        fbp_barrier(w);
        /* What is read here is written again only after the next step's barriers. */
        int not_finite = 0;
        for (int i = 0; i < w->parts; i++) not_finite |= broken[i] != 0;
        int done = b + 1 == r->batches;
        if (++in_epoch == of_epoch) epoch++, in_epoch = 0;
        if (done && r->next) {   /* the order changes: nobody reads it now */
            if (w->part == 0 && r->next(r->context, *r->loss_sum)) r->batch = 0, *r->loss_sum = *r->hits = 0;
            fbp_barrier(w);
            done = r->batch != 0, epoch = 0;
        }
        if (not_finite || done || r->paused) {
            if (w->part == 0) r->status = not_finite ? FBP_PARAMETER_NOT_FINITE : done ? FBP_DONE : FBP_RUNNING;
            return;
        }
        f.step++;
    }
}

/* Turning weights and their states there and back costs as much as some steps gain by it. Only updates that ride know of parts. */
static enum fbp_turned how_to_turn(const fbp_run *r)
{
    enum { STEPS = 8 };
    const fbp_program *p = r->frame->program;
    const double rate = 5e10, seconds = 3 * p->work_per_row * (double)r->batch_size / rate;   /* of a step: multiply-adds */
    const double arrays = 1 + (r->state1 != NULL) + (r->state2 != NULL);
    if (!r->room || (double)(r->batches - r->batch) < STEPS * arrays || r->seconds < STEPS * arrays * seconds) return FBP_AS_IT_IS;
    return updates_ride(r) ? FBP_TURNED_PARTS : FBP_TURNED;
}

/* Parameters and states as everybody sees them, and copies with turned weights: what others see stays whole. */
typedef struct {
    fbp_run *run;
    void *home[3], *copy[3];
} training;

/* Elements [i, end) but for the weights that turn. */
static void copy_others(const fbp_program *p, ptrdiff_t i, ptrdiff_t end, const void *from, void *to)
{
    while (i < end) {
        ptrdiff_t stop = end, next = end;
        for (const fbp_op *op = p->op; op < p->op + p->ops; op++) {
            const ptrdiff_t size = p->value[op->x].width * p->value[op->y].width;
            if (op->turns && op->weight + size > i && op->weight < stop) stop = op->weight, next = op->weight + size;
        }
        if (stop > i) memcpy(fbp_at(p->table, to, i), fbp_at(p->table, from, i), (size_t)(stop - i) * p->table->size);
        i = next;
    }
}

static void move(const training *q, int back, const fbp_worker *w)
{
    const fbp_frame *f = q->run->frame;
    const fbp_program *p = f->program;
    ptrdiff_t i, end;
    fbp_share(w, parameters_of(q->run->optimizer), 64, &i, &end);
    for (int a = 0; a < 3; a++) {
        if (!q->home[a]) continue;
        const void *from = back ? q->copy[a] : q->home[a];
        void *to = back ? q->home[a] : q->copy[a];
        copy_others(p, i, end, from, to);
        for (const fbp_op *op = p->op; op < p->op + p->ops; op++) if (op->turns) fbp_dense_turn(f, op, back, from, to, w);
    }
    fbp_barrier(w);
}

/* Parameters and states as they are; nobody changes them before the barriers of the first forward pass. */
static void save(const training *q, const fbp_worker *w)
{
    const fbp_run *r = q->run;
    const fbp_kernels *t = r->frame->program->table;
    ptrdiff_t i, end;
    fbp_share(w, parameters_of(r->optimizer), 64, &i, &end);
    for (int a = 0; a < 3; a++) if (q->home[a]) memcpy(fbp_at(t, r->saved[a], i), fbp_at(t, q->home[a], i), (size_t)(end - i) * t->size);
}

static void train(const fbp_worker *w, void *argument)
{
    const training *q = argument;
    if (q->run->saved[0]) save(q, w);
    if (q->run->frame->turned) move(q, 0, w);
    train_steps(q->run, w);
    if (q->run->frame->turned) move(q, 1, w);
}

void fbp_train(fbp_run *r)
{
    const uint64_t before = (uint64_t)r->steps;
    if (r->batch >= r->batches) {
        r->status = FBP_DONE;
        return;
    }
    training q = {.run = r, .home = {r->params, r->state1, r->state2}};
    r->frame->turned = how_to_turn(r);
    if (r->frame->turned) {
        const fbp_program *p = r->frame->program;
        for (int a = 0; a < 3; a++) if (q.home[a]) q.copy[a] = fbp_at(p->table, r->room, a * p->extent);
        r->params = q.copy[0], r->state1 = q.copy[1], r->state2 = q.copy[2];
    }
    r->frame->params = r->params;
    fbp_run_team(r->threads, FBP_SUBNORMALS_FLUSHED, train, &q);
    r->frame->params = r->params = q.home[0], r->state1 = q.home[1], r->state2 = q.home[2];
    r->frame->turned = 0;
    r->cleared = updates_ride(r);
    r->frame->step += (uint64_t)r->steps - before;
}

/* ---- the step-by-step path's loss and update ------------------------------------------------------------------------- */

typedef struct {
    const fbp_kernels *t;
    const fbp_loss *loss;
    ptrdiff_t B, O;
    const void *p;
    fbp_target target;
    void *dp;
    double factor, *partial;
} loss_call;

static void run_loss(const fbp_worker *w, void *argument)
{
    loss_call *c = argument;
    fbp_loss_rows(c->t, w, c->loss, c->factor, c->B, c->O, c->p, c->target, c->dp, c->partial);
}

double fbp_loss_value(const fbp_kernels *t, const fbp_loss *loss, ptrdiff_t B, ptrdiff_t O, const void *p, fbp_target target, void *dp,
                      double *partial, int threads)
{
    loss_call c = {t, loss, B, O, p, target, dp, fbp_loss_factor(loss, fbp_batch_weight(t, B, target.w)), partial};
    fbp_run_team(threads, FBP_SUBNORMALS_FLUSHED, run_loss, &c);
    return fbp_chunk_total(partial, B);
}

double fbp_hits(const fbp_kernels *t, double threshold, ptrdiff_t B, ptrdiff_t O, const void *p, fbp_target target)
{
    return t->accuracy(B, O, p, target.t, target.label, threshold);
}

typedef struct {
    const fbp_kernels *t;
    const fbp_optimizer *o;
    double lr;
    int64_t step;
    ptrdiff_t n;
    void *grads, *params, *state1, *state2;
    double *partial;
    atomic_int not_finite;
} update_call;

static void run_update(const fbp_worker *w, void *argument)
{
    update_call *c = argument;
    if (c->o->clip_norm > 0) {
        fbp_update_squares(c->t, w, c->n, c->grads, c->partial);
        fbp_barrier(w);
    }
    fbp_step step = fbp_step_begin(c->o, c->lr, c->step, 0);
    step.grads = c->grads, step.params = c->params, step.state1 = c->state1, step.state2 = c->state2;
    fbp_update_flat(c->t, w, &step, c->n, c->partial);
    if (step.not_finite) c->not_finite = 1;
}

int fbp_optimizer_step(const fbp_kernels *t, const fbp_optimizer *o, double lr, int64_t step, ptrdiff_t n, void *grads, void *params,
                       void *state1, void *state2, double *partial, int threads)
{
    update_call c = {.t = t, .o = o, .lr = lr, .step = step, .n = n, .grads = grads, .params = params, .state1 = state1, .state2 = state2,
                     .partial = partial};
    fbp_run_team(threads, FBP_SUBNORMALS_FLUSHED, run_update, &c);
    return c.not_finite;
}
