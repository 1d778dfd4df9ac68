#define _GNU_SOURCE
#include "training.h"
#include "ops/ops.h"
#include <assert.h>
#include <math.h>
#include <string.h>
#include <time.h>

int fbp_training_threads(const fbp_program *p, ptrdiff_t rows) { return fbp_threads_for_steps(3 * p->work_per_row * (double)rows); }

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

static void gather(const fbp_worker *w, const int64_t *order, ptrdiff_t rows, ptrdiff_t unit, size_t bytes, const void *from, void *to)
{
    ptrdiff_t i, end;
    fbp_share(w, rows, unit, &i, &end);
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
    const ptrdiff_t unit = f->chunk_grads ? fbp_chunk(f->rows) : 1;
    f->order = r->order ? r->order + epoch * r->n : NULL, f->first = first;
    const int64_t *order = f->order ? f->order + first : NULL;
    f->value[p->input] = order ? input_room : fbp_at(p->table, r->x, first * I);
    if (order && r->x) gather(w, order, f->rows, unit, (size_t)I * size, r->x, input_room);
    if (order && r->w) gather(w, order, f->rows, unit, size, r->w, r->gathered_w);
    for (int k = 0; k < p->outputs; k++) {
        const fbp_objective *q = r->objective + k;
        const ptrdiff_t O = p->value[p->output[k].value].width;
        if (!order) {
            target[k] = (fbp_target){fbp_at(p->table, q->target.t, first * O), q->target.label ? q->target.label + first : NULL, fbp_at(p->table, r->w, first)};
            continue;
        }
        target[k] = (fbp_target){q->target.t ? q->gathered_t : NULL, q->target.label ? q->gathered_label : NULL, r->w ? r->gathered_w : NULL};
        if (q->target.t) gather(w, order, f->rows, unit, (size_t)O * size, q->target.t, q->gathered_t);
        if (q->target.label) gather(w, order, f->rows, unit, sizeof *q->target.label, q->target.label, q->gathered_label);
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
    return r->frame->program->complete && !r->frame->chunk_grads && o->clip_norm == 0 && o->kind != FBP_GRADIENT && (parameters_of(o) > SMALL || r->threads > 1);
}

/* This worker's share of the gradients: the chunks' one after the other. */
static void add_chunks(const fbp_frame *f, ptrdiff_t parameters, const fbp_worker *w)
{
    const fbp_kernels *t = f->program->table;
    const ptrdiff_t chunk = fbp_chunk(f->rows), extent = f->program->extent;
    ptrdiff_t i, end;
    fbp_share(w, parameters, FBP_UPDATED, &i, &end);
    for (ptrdiff_t n; i < end; i += n) {
        n = end - i < FBP_UPDATED ? end - i : FBP_UPDATED;
        void *g = fbp_at(t, f->grads, i);
        const void *of_chunk = fbp_at(t, f->chunk_grads, i);
        memcpy(g, of_chunk, (size_t)n * t->size);
        for (ptrdiff_t row = chunk; row < f->rows; row += chunk) t->binary(FBP_PLUS, n, g, of_chunk = fbp_at(t, of_chunk, extent), g);
    }
}

/* Another number of rows: other products. */
static void forget_products(const fbp_program *p, fbp_prepared *prepared)
{
    for (ptrdiff_t i = 0; i < p->ops * FBP_PRODUCTS; i++) prepared[i].make = NULL;
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
    const int rides = updates_ride(r), alone = w->parts == 1;
    double *losses = r->partial, *hits = losses + p->outputs * chunks, *broken = hits + chunks, *squares = broken + w->parts;
    void *value[p->values];   /* this worker's pointers: the input's changes with the batch */
    fbp_target target[p->outputs];
    fbp_frame f = *r->frame;
    memcpy(value, f.value, sizeof value);
    f.value = value, f.prepared = alone ? r->prepared : NULL, f.rows = 0;
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
        const ptrdiff_t b = r->batch, first = in_epoch * r->batch_size, rows = f.rows;
        f.rows = r->n - first < r->batch_size ? r->n - first : r->batch_size;
        if (alone && f.rows != rows) forget_products(p, f.prepared);
        assert(0 < f.rows && f.rows <= p->capacity && b < r->batches);
        take_batch(r, &f, w, input_room, epoch, first, target);
        if (r->order) fbp_barrier(w);
        fbp_program_forward(&f, w);
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
        fbp_program_statistics(&f, w);
        fbp_step step = fbp_step_begin(o, r->lr[b], ++steps, batch_weight);
        step.grads = f.grads, step.params = r->params, step.state1 = r->state1, step.state2 = r->state2;
        f.update = rides ? &step : NULL;
        fbp_program_backward(&f, w);
        if (!rides) {
            fbp_barrier(w);
            if (f.chunk_grads) add_chunks(&f, parameters, w);
            if (o->clip_norm > 0) {
                if (f.chunk_grads) fbp_barrier(w);
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
    r->frame->chunk_grads = r->threads > 1 ? r->chunk_grads : NULL;
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
    r->frame->chunk_grads = NULL;
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
