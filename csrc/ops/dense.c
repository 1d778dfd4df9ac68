/* y = act(x wᵀ + b)        x (B, I)  w (O, I), or stored transposed as (I, O)  b (O)  y (B, O)
 * backward, dy the gradient by x wᵀ + b:  dw = dyᵀ x,  db = 1ᵀ dy,  dx = dy w * dact'(x) */
#include "ops.h"
#include <string.h>

static void *scratch_of(const fbp_frame *f, const fbp_worker *w)
{
    return (char *)f->scratch + (size_t)w->part * f->program->scratch;
}

/* Where the weight is in an array like the parameters, or in parts the worker's: its offset, the distance of its rows, which are those of (O, I)
 * or of (I, O), and which outputs lie there. */
typedef struct {
    ptrdiff_t at, row, first, end;
    int transposed;
} place;

static int lies_transposed(const fbp_op *op, enum fbp_turned turned) { return op->transposed | (op->turns & (turned != FBP_AS_IT_IS)); }

static place place_of(const fbp_frame *f, const fbp_op *op, enum fbp_turned turned, const fbp_worker *w)
{
    const ptrdiff_t I = f->program->value[op->x].width, O = f->program->value[op->y].width, row = fbp_line_row(O);
    if (op->turns && turned == FBP_TURNED_PARTS) {
        if (row < w->parts * FBP_LINE) return (place){op->parts, row, 0, O, 1};
        ptrdiff_t first, end;
        fbp_share(w, O, FBP_LINE, &first, &end);
        return (place){op->parts + I * first, (end - first + FBP_LINE - 1) / FBP_LINE * FBP_LINE, first, end, 1};
    }
    const int transposed = lies_transposed(op, turned);
    return (place){op->weight, transposed ? O : I, 0, O, transposed};
}

/* The outputs that lie there of w as an (O, I) matrix. */
static fbp_matrix weight_at(const fbp_frame *f, place at)
{
    const void *w = fbp_at(f->program->table, f->params, at.at);
    return at.transposed ? (fbp_matrix){w, 1, at.row} : (fbp_matrix){w, at.row, 1};
}

/* A product for some of the outputs is this worker's alone. */
static void multiply(const fbp_frame *f, const fbp_op *op, place at, const fbp_product *q, const fbp_worker *w, void *scratch)
{
    const fbp_worker alone = {0, 1, w->team};
    const int all = at.end - at.first == f->program->value[op->y].width;
    fbp_gemm(f->program->table, all ? w : &alone, q, scratch);
}

/* What is remembered of a product, or is to be. */
static fbp_prepared *prepared_of(const fbp_frame *f, const fbp_op *op, enum fbp_products which)
{
    return f->prepared ? f->prepared + (op - f->program->op) * FBP_PRODUCTS + which : NULL;
}

/* to (m, n) = fromᵀ, of few rows at a time: every one of them is on a page of its own. */
static void transpose(const fbp_kernels *t, ptrdiff_t m, ptrdiff_t n, const void *from, ptrdiff_t from_row, void *to, ptrdiff_t to_row)
{
    enum { ROWS = 16 };
    for (ptrdiff_t i = 0; i < m; i += ROWS)
        t->turn(&(fbp_block){.m = m - i < ROWS ? m - i : ROWS, .n = n, .a = fbp_at(t, from, i), .a_col = from_row, .c = fbp_at(t, to, i * to_row), .ldc = to_row});
}

/* The weight in an array laid out as the parameters, (O, I), to another one as the frame has it, (I, O); or back. Workers share out the inputs, or
 * have outputs of their own. */
void fbp_dense_turn(const fbp_frame *f, const fbp_op *op, int back, const void *from, void *to, const fbp_worker *w)
{
    const fbp_kernels *t = f->program->table;
    const place plain = place_of(f, op, FBP_AS_IT_IS, w), turned = place_of(f, op, f->turned, w);
    const ptrdiff_t O = f->program->value[op->y].width, outputs = turned.end - turned.first;
    ptrdiff_t i = 0, end = f->program->value[op->x].width;
    if (outputs == O) fbp_share(w, end, FBP_LINE, &i, &end);
    const ptrdiff_t here = plain.at + turned.first * plain.row + i, there = turned.at + i * turned.row;
    if (i == end) return;
    if (back) transpose(t, outputs, end - i, fbp_at(t, from, there), turned.row, fbp_at(t, to, here), plain.row);
    else transpose(t, end - i, outputs, fbp_at(t, from, here), plain.row, fbp_at(t, to, there), turned.row);
}

/* The rows of the batch that are this worker's; and whose products they are: its alone, where it has chunks for itself. */
static fbp_worker rows_of(const fbp_frame *f, const fbp_worker *w, ptrdiff_t *i, ptrdiff_t *end)
{
    *i = 0, *end = f->rows;
    if (!f->chunk_grads) return *w;
    fbp_share(w, f->rows, fbp_chunk(f->rows), i, end);
    return (fbp_worker){0, 1, w->team};
}

void fbp_dense_forward(const fbp_frame *f, const fbp_op *op, const fbp_worker *w)
{
    fbp_prepared *const known = prepared_of(f, op, FBP_OF_FORWARD);
    if (known && known->make) {
        fbp_gemm_again(known, f->value[op->x], NULL);   /* the input's is another one for every batch */
        return;
    }
    const fbp_kernels *t = f->program->table;
    const ptrdiff_t I = f->program->value[op->x].width, O = f->program->value[op->y].width;
    const place at = place_of(f, op, f->turned, w);
    const fbp_matrix weight = weight_at(f, at);
    const fbp_epilogue e = {.bias = op->bias < 0 ? NULL : fbp_at(t, f->params, op->bias + at.first), .act = op->act, .alpha = op->alpha};
    ptrdiff_t i, end;
    const fbp_worker who = rows_of(f, w, &i, &end);
    const fbp_product q = {
        .m = end - i, .n = at.end - at.first, .k = I,
        .a = {fbp_at(t, f->value[op->x], i * I), I, 1},
        .b = {weight.p, weight.col, weight.row},
        .c = fbp_at(t, f->value[op->y], i * O + at.first), .ldc = O, .start = FBP_STORE, .epilogue = &e, .prepared = known,
    };
    multiply(f, op, at, &q, &who, scratch_of(f, w));
}

/* Whether dx, which one worker makes from top to bottom, brings along its column sums: the chain that fbp_column_sums would add up. */
static int sums_ride(const fbp_frame *f, const fbp_worker *w) { return w->parts == 1 && f->rows <= FBP_CHUNK; }

/* dx = dy w is the sum of two, of half of the outputs each, where w is of middle size: large enough to be shared out, and so small that it stays in the
 * caches of those who share it. Returns the outputs in the first half, or all. */
static ptrdiff_t first_half(ptrdiff_t I, ptrdiff_t O)
{
    enum { FEWEST_OUTPUTS = 64, FEWEST = 20000 };
    if (O < FEWEST_OUTPUTS || I * O < FEWEST || I * O > FBP_HALVED_MOST) return O;
    return (O + FBP_LINE - 1) / FBP_LINE / 2 * FBP_LINE;
}

/* Whether half of the workers add up either sum: every worker then reads the rows of w that it updates and no others, and what goes from one to the
 * other is sums, which are fewer if the batch is small. Else every worker adds up the two one after the other, for the same bits. */
int fbp_dense_halved(const fbp_frame *f, const fbp_op *op, const fbp_worker *w)
{
    if (op->kind != FBP_DENSE || op->dx == FBP_UNWANTED || w->parts % 2 || f->chunk_grads) return 0;
    const ptrdiff_t I = f->program->value[op->x].width, O = f->program->value[op->y].width;
    return 2 * f->rows < O && first_half(I, O) < O;
}

int fbp_dense_alone(const fbp_frame *f, const fbp_op *op, const fbp_worker *w)
{
    if (op->kind != FBP_DENSE) return 0;
    if (op->dx != FBP_UNWANTED) return w->parts == 2 && fbp_dense_halved(f, op, w);
    const place at = place_of(f, op, f->turned, w);
    return at.end - at.first < f->program->value[op->y].width;
}

/* Neighbours take turns: one's sums may still be read when the next ones are made. */
static void *half_of(const fbp_frame *f, const fbp_op *op, int which)
{
    return (char *)f->half[which] + (size_t)((op - f->program->op) % 2) * f->program->half;
}

/* This worker's columns of dx = (the two sums) * dact'(x). */
void fbp_dense_join(const fbp_frame *f, const fbp_op *op, const fbp_worker *w)
{
    const fbp_kernels *t = f->program->table;
    const ptrdiff_t I = f->program->value[op->x].width;
    ptrdiff_t j, end;
    fbp_share(w, I, FBP_LINE, &j, &end);
    const ptrdiff_t n = end - j;
    for (ptrdiff_t i = j; i < f->rows * I && n > 0; i += I) {
        void *dx = fbp_at(t, f->gradient[op->x], i);
        const void *first = fbp_at(t, half_of(f, op, 0), i), *second = fbp_at(t, half_of(f, op, 1), i);
        if (op->dx == FBP_MORE) t->binary(FBP_PLUS, n, dx, first, dx), t->binary(FBP_PLUS, n, dx, second, dx);
        else t->binary(FBP_PLUS, n, first, second, dx);
        if (op->dact != FBP_IDENTITY) t->act_backward(op->dact, n, fbp_at(t, f->value[op->x], i), dx, op->dalpha, 0, dx);
    }
}

/* BP2, and BP1 where a loss follows: dx from dy. */
void fbp_dense_backward(const fbp_frame *f, const fbp_op *op, const fbp_worker *w)
{
    const fbp_kernels *t = f->program->table;
    const ptrdiff_t I = f->program->value[op->x].width, O = f->program->value[op->y].width;
    if (op->dx == FBP_UNWANTED) return;
    fbp_prepared *const known = prepared_of(f, op, FBP_OF_BACKWARD);
    if (known && known->make) {
        if (known->epilogue.sums) memset(known->epilogue.sums, 0, (size_t)I * t->size);
        fbp_gemm_again(known, NULL, NULL);
        return;
    }
    const ptrdiff_t half = first_half(I, O);
    const fbp_matrix weight = weight_at(f, place_of(f, op, f->turned, w));
    ptrdiff_t i, end;
    const fbp_worker who = rows_of(f, w, &i, &end);
    fbp_product first = {
        .m = end - i, .n = I, .k = half,
        .a = {fbp_at(t, f->gradient[op->y], i * O), O, 1},
        .b = weight,
        .c = fbp_at(t, f->gradient[op->x], i * I), .ldc = I, .start = op->dx != FBP_MORE ? FBP_STORE : half < O ? FBP_ADD : FBP_CONTINUE,
    };
    fbp_product second = first;
    second.k = O - half, second.start = FBP_ADD;
    second.a.p = fbp_at(t, first.a.p, half), second.b.p = fbp_at(t, first.b.p, half * weight.row);
    if (fbp_dense_halved(f, op, w)) {
        const fbp_worker member = {w->part % (w->parts / 2), w->parts / 2, w->team};
        const int which = w->part >= w->parts / 2;
        fbp_product *dx = which ? &second : &first;
        dx->c = half_of(f, op, which), dx->start = FBP_STORE;
        fbp_gemm(t, &member, dx, scratch_of(f, w));
        return;
    }
    void *sums = op->sums >= 0 && sums_ride(f, w) ? fbp_at(t, f->grads, op->sums) : NULL;
    const fbp_epilogue e = {.act = op->dact, .alpha = op->dalpha, 
                           .y = op->dact == FBP_IDENTITY ? NULL : fbp_at(t, f->value[op->x], i * I), .ldy = I, .sums = sums};
    if (sums) memset(sums, 0, (size_t)I * t->size);
    if (half < O) fbp_gemm(t, &who, &first, scratch_of(f, w));
    else first.prepared = known;
    fbp_product *last = half < O ? &second : &first;
    if (op->dact != FBP_IDENTITY || sums) last->epilogue = &e;
    fbp_gemm(t, &who, last, scratch_of(f, w));
}

typedef struct {
    const fbp_frame *f;
    const fbp_slot *slot;
    ptrdiff_t weight, row;         /* its offset, the distance of its rows */
} weight_update;

static void update_block(void *context, ptrdiff_t i, ptrdiff_t m, ptrdiff_t j, ptrdiff_t n, void *g, ptrdiff_t ldg)
{
    const weight_update *u = context;
    if (n == u->row && n == ldg) n *= m, m = 1;   /* whole rows lie one behind the other */
    fbp_update_rows(u->f->program->table, u->f->update, u->slot, u->weight + i * u->row + j, u->row, m, n, g, ldg);
}

/* BP3 and BP4 of this worker's chunks, each in a place of its own. */
static void chunk_gradients(const fbp_frame *f, const fbp_op *op, const fbp_worker *w)
{
    const fbp_kernels *t = f->program->table;
    const ptrdiff_t I = f->program->value[op->x].width, O = f->program->value[op->y].width, chunk = fbp_chunk(f->rows);
    const place at = place_of(f, op, f->turned, w);
    ptrdiff_t i, end;
    const fbp_worker alone = rows_of(f, w, &i, &end);
    for (; i < end; i += chunk) {
        const ptrdiff_t rows = end - i < chunk ? end - i : chunk;
        const fbp_matrix x = {fbp_at(t, f->value[op->x], i * I), I, 1}, d = {fbp_at(t, f->gradient[op->y], i * O), O, 1}, left = at.transposed ? x : d;
        void *grads = fbp_at(t, f->chunk_grads, i / chunk * f->program->extent);
        const fbp_product dw = {
            .m = at.transposed ? I : O, .n = at.transposed ? O : I, .k = rows,
            .a = {left.p, left.col, left.row},
            .b = at.transposed ? d : x,
            .c = fbp_at(t, grads, at.at), .ldc = at.row, .start = FBP_STORE, .chunked = 1,
        };
        fbp_gemm(t, &alone, &dw, scratch_of(f, w));
        if (op->bias >= 0) fbp_column_sums(t, rows, O, d.p, O, FBP_STORE, fbp_at(t, grads, op->bias));
    }
}

/* BP3: dw, and the update where this was the last contribution. */
static void weight_gradients(const fbp_frame *f, const fbp_op *op, const fbp_worker *w)
{
    fbp_prepared *const known = f->update ? NULL : prepared_of(f, op, FBP_OF_GRADIENTS);
    if (known && known->make) {
        const void *x = f->value[op->x];
        const int transposed = lies_transposed(op, f->turned);
        fbp_gemm_again(known, transposed ? x : NULL, transposed ? NULL : x);
        return;
    }
    const fbp_kernels *t = f->program->table;
    const ptrdiff_t I = f->program->value[op->x].width, O = f->program->value[op->y].width;
    const int updates = f->update && op->last_w;
    place at = place_of(f, op, f->turned, w);
    const int transposed = at.transposed, parts = at.at != op->weight, halved = fbp_dense_halved(f, op, w);
    if (halved && w->parts == 2) {   /* the outputs of this worker's sum, however the product would rather be divided: nobody else reads their weights */
        fbp_share(w, O, FBP_LINE, &at.first, &at.end);
        at.at += at.first * (transposed ? 1 : at.row);
    }
    const ptrdiff_t outputs = at.end - at.first;
    weight_update u = {f, updates ? fbp_slot_of(f->update->optimizer, op->weight) : NULL, at.at, at.row};
    const fbp_matrix x = {f->value[op->x], I, 1}, d = {fbp_at(t, f->gradient[op->y], at.first), O, 1}, left = transposed ? x : d;   /* dw = dyᵀ x, stored transposed: xᵀ dy */
    fbp_product dw = {
        .m = transposed ? I : outputs, .n = transposed ? outputs : I, .k = f->rows,
        .a = {left.p, left.col, left.row},
        .b = transposed ? d : x,
        .c = fbp_at(t, f->grads, parts ? op->weight + at.first * I : at.at), .ldc = parts ? outputs : at.row,
        .start = op->dw == FBP_MORE ? FBP_ADD : FBP_STORE, .chunked = 1,
        .division = transposed ? FBP_BY_COLUMNS : FBP_BY_ROWS,   /* as in the forward pass, which meets a worker's outputs */
        .kept = op->dx == FBP_UNWANTED || halved,
        .done = updates ? update_block : NULL, .context = &u, .passing = updates && op->dw == FBP_FIRST, .prepared = known,
    };
    if (dw.passing && f->rows <= FBP_CHUNK && fbp_descends(f->update, u.slot, &dw.rate)) {   /* in registers, from one weight to the next */
        dw.c = fbp_at(t, f->update->params, at.at), dw.ldc = at.row, dw.start = FBP_DESCEND, dw.not_finite = &f->update->not_finite;
        dw.done = NULL, dw.passing = 0;
    }
    multiply(f, op, at, &dw, w, scratch_of(f, w));
}

/* BP3 and BP4. */
void fbp_dense_gradients(const fbp_frame *f, const fbp_op *op, const fbp_worker *w)
{
    if (f->chunk_grads) {
        chunk_gradients(f, op, w);
        return;
    }
    weight_gradients(f, op, w);
    if (op->bias < 0) return;
    if (!op->summed || !sums_ride(f, w)) fbp_vector_gradients(f, op, op->bias, op->db, op->last_b, w);
    else if (f->update) {
        const fbp_kernels *t = f->program->table;
        const ptrdiff_t O = f->program->value[op->y].width;
        fbp_update_range(t, f->update, fbp_slot_of(f->update->optimizer, op->bias), op->bias, O, fbp_at(t, f->grads, op->bias));
    }
}

/* db = 1ᵀ dy, for a vector of parameters that is added to, or is, every row. */
void fbp_vector_gradients(const fbp_frame *f, const fbp_op *op, ptrdiff_t at, int db, int last, const fbp_worker *w)
{
    const fbp_kernels *t = f->program->table;
    const ptrdiff_t O = f->program->value[op->y].width;
    ptrdiff_t j, end;
    fbp_share(w, O, FBP_LINE, &j, &end);
    if (j == end) return;
    fbp_column_sums(t, f->rows, end - j, fbp_at(t, f->gradient[op->y], j), O, db == FBP_MORE ? FBP_ADD : FBP_STORE, fbp_at(t, f->grads, at + j));
    if (f->update && last) fbp_update_range(t, f->update, fbp_slot_of(f->update->optimizer, at), at + j, end - j, fbp_at(t, f->grads, at + j));
}

/* Every row of y (B, n) is the parameter. */
void fbp_parameter_forward(const fbp_frame *f, const fbp_op *op, const fbp_worker *w)
{
    const fbp_kernels *t = f->program->table;
    const ptrdiff_t n = f->program->value[op->y].width;
    ptrdiff_t i, end;
    fbp_share(w, f->rows, 16, &i, &end);
    for (; i < end; i++) memcpy(fbp_at(t, f->value[op->y], i * n), fbp_at(t, f->params, op->weight), (size_t)n * t->size);
}

void fbp_parameter_backward(const fbp_frame *f, const fbp_op *op, const fbp_worker *w) { (void)f; (void)op; (void)w; }

void fbp_parameter_gradients(const fbp_frame *f, const fbp_op *op, const fbp_worker *w)
{
    fbp_vector_gradients(f, op, op->weight, op->dw, op->last_w, w);
}
