#define _GNU_SOURCE
#include "primitives.h"
#include <time.h>

enum { UNIT = 1024 };   /* elements: a worker's smallest share */

typedef struct {
    const fbp_kernels *t;
    const fbp_product *q;
    char *scratch;
} product_call;

static void run_product(const fbp_worker *w, void *argument)
{
    const product_call *c = argument;
    fbp_gemm(c->t, w, c->q, c->scratch + (size_t)w->part * fbp_gemm_scratch(c->t, c->q->m, c->q->n, c->q->k));
}

void fbp_matmul(const fbp_kernels *t, const fbp_product *q, void *scratch, int threads)
{
    product_call c = {t, q, scratch};
    fbp_run_team(threads, FBP_SUBNORMALS_KEPT, run_product, &c);
}

typedef struct {
    const fbp_kernels *t;
    int act;
    ptrdiff_t n, width;
    const void *x, *dy;
    double alpha;
    void *y;
} map_call;

static void run_columns(const fbp_worker *w, void *argument)
{
    const map_call *c = argument;
    ptrdiff_t j, end;
    fbp_share(w, c->width, FBP_LINE, &j, &end);
    if (j < end) fbp_column_sums(c->t, c->n, end - j, fbp_at(c->t, c->x, j), c->width, FBP_STORE, fbp_at(c->t, c->y, j));
}

void fbp_sum_columns(const fbp_kernels *t, ptrdiff_t B, ptrdiff_t n, const void *x, void *y, int threads)
{
    map_call c = {.t = t, .n = B, .width = n, .x = x, .y = y};
    fbp_run_team(threads, FBP_SUBNORMALS_KEPT, run_columns, &c);
}

/* Elements of a long y before its first whole cache line: stores that cross lines take longer, and arrays from elsewhere often begin within one. */
static ptrdiff_t before_line(const fbp_kernels *t, const void *y, ptrdiff_t n)
{
    return n < UNIT ? 0 : (ptrdiff_t)(-(uintptr_t)y % 64 / t->size);
}

static void map_range(const map_call *c, ptrdiff_t i, ptrdiff_t end)
{
    if (i < end) c->t->act_forward(c->act, end - i, fbp_at(c->t, c->x, i), c->alpha, fbp_at(c->t, c->y, i));
}

static void run_map(const fbp_worker *w, void *argument)
{
    const map_call *c = argument;
    ptrdiff_t i, end;
    fbp_share(w, c->n, UNIT, &i, &end);
    const ptrdiff_t line = i + before_line(c->t, fbp_at(c->t, c->y, i), end - i);
    map_range(c, i, line);
    map_range(c, line, end);
}

void fbp_map(const fbp_kernels *t, int act, ptrdiff_t n, const void *x, double alpha, void *y, int threads)
{
    map_call c = {.t = t, .act = act, .n = n, .x = x, .alpha = alpha, .y = y};
    fbp_run_team(threads, FBP_SUBNORMALS_KEPT, run_map, &c);
}

static void run_map_backward(const fbp_worker *w, void *argument)
{
    const map_call *c = argument;
    ptrdiff_t i, end;
    fbp_share(w, c->n, UNIT, &i, &end);
    c->t->act_backward(c->act, end - i, fbp_at(c->t, c->x, i), fbp_at(c->t, c->dy, i), c->alpha, 0, fbp_at(c->t, c->y, i));
}

void fbp_map_backward(const fbp_kernels *t, int act, ptrdiff_t n, const void *s, const void *dy, double alpha, void *dx, int threads)
{
    map_call c = {.t = t, .act = act, .n = n, .x = s, .dy = dy, .alpha = alpha, .y = dx};
    fbp_run_team(threads, FBP_SUBNORMALS_KEPT, run_map_backward, &c);
}

static void run_softmax(const fbp_worker *w, void *argument)
{
    const map_call *c = argument;
    ptrdiff_t i, end;
    fbp_share(w, c->n, 16, &i, &end);
    c->t->softmax_forward(end - i, c->width, fbp_at(c->t, c->x, i * c->width), fbp_at(c->t, c->y, i * c->width));
}

void fbp_softmax(const fbp_kernels *t, ptrdiff_t B, ptrdiff_t n, const void *x, void *y, int threads)
{
    map_call c = {.t = t, .n = B, .width = n, .x = x, .y = y};
    fbp_run_team(threads, FBP_SUBNORMALS_KEPT, run_softmax, &c);
}

ptrdiff_t fbp_first_nonfinite(const fbp_kernels *t, ptrdiff_t n, const void *x) { return t->first_nonfinite(n, x); }

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

double fbp_peak(const fbp_kernels *t, double seconds)
{
    enum { ROUNDS = 4096 };
    double best = 0;
    for (const double end = now() + seconds; now() < end;) {
        const double start = now();
        const double count = (double)t->multiply_adds(ROUNDS), rate = 2 * count / (now() - start);
        if (rate > best) best = rate;
    }
    return best;
}
