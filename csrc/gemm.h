/* C (m, n) = [start] + A (m, k) B (k, n): cache blocking and tile ownership over the table's register tiles. */
#ifndef FBP_GEMM_H
#define FBP_GEMM_H

#include "kernels/table.h"
#include "parallel.h"

/* Element (i, j) is p[i*row + j*col]; transposing swaps the strides. One of the strides of A and of B must be 1. */
typedef struct {
    const void *p;
    ptrdiff_t row, col;
} fbp_matrix;

/* Rows of a batch whose contributions to a gradient make one sum: of a larger batch equal chunks, two, four, eight ... that workers can have for
 * themselves. */
static inline ptrdiff_t fbp_chunk(ptrdiff_t B)
{
    ptrdiff_t chunks = 1;
    if (B <= FBP_CHUNK) return FBP_CHUNK;   /* a division takes long */
    while (chunks * FBP_CHUNK < B) chunks *= 2;
    return (B + chunks - 1) / chunks;
}

/* A product that was a single block, but for a copy of B: all it takes to make it again, with the same memory and sizes, where to decide anew would take
 * as long as a small one does. */
typedef struct fbp_prepared {
    void (*make)(const fbp_block *);   /* NULL: nothing is known of the product, or it is more than that */
    fbp_block block;
    fbp_epilogue epilogue;
    fbp_matrix b;                  /* to be copied into panels, */
    void *b_panels;                /* or NULL */
    const fbp_kernels *table;
} fbp_prepared;

/* How C is rather divided among the threads: so that each meets again what it has read or written before. */
enum fbp_division { FBP_ANYHOW, FBP_BY_ROWS, FBP_BY_COLUMNS };

typedef struct {
    ptrdiff_t m, n, k;
    fbp_matrix a, b;
    void *c;
    ptrdiff_t ldc;
    int start;                     /* what to do with the C that is there; FBP_DESCEND: only for k up to FBP_CHUNK */
    double rate;                   /* of FBP_DESCEND, */
    int *not_finite;               /* and whether a new C is not finite */
    int chunked;                   /* 1: a sum per fbp_chunk(k) terms, added up in order (reductions over a batch); 0: one chain over all of k */
    enum fbp_division division;
    int kept;                      /* 1: C stays with the worker, no other one reads it */
    const fbp_epilogue *epilogue;  /* or NULL; sums only for a worker that is alone */
    /* NULL, or called for rows [i, i + m) and columns [j, j + n) of C once they are finished, while they are in the cache: at c, rows ldc apart. */
    void (*done)(void *context, ptrdiff_t i, ptrdiff_t m, ptrdiff_t j, ptrdiff_t n, void *c, ptrdiff_t ldc);
    void *context;
    int passing;                   /* 1: nobody else wants C, which need not be written */
    fbp_prepared *prepared;        /* NULL, or to be filled in where that can be: by a worker that is alone */
} fbp_product;

/* The worker's share of the product. Every element belongs to one worker, whose arithmetic does not depend on who else
 * works. Scratch: fbp_gemm_scratch bytes, 64-byte aligned, private to the worker. */
void fbp_gemm(const fbp_kernels *t, const fbp_worker *w, const fbp_product *q, void *scratch);
void fbp_gemm_again(fbp_prepared *p, const void *a, const void *b);   /* of A and B that lie there; NULL: where they lay */
size_t fbp_gemm_scratch(const fbp_kernels *t, ptrdiff_t m, ptrdiff_t n, ptrdiff_t k);

/* y (n) = column sums of x (B, n), in chunks of rows like a chunked product. */
void fbp_column_sums(const fbp_kernels *t, ptrdiff_t B, ptrdiff_t n, const void *x, ptrdiff_t ldx, int start, void *y);

/* p + n elements of the table's type; NULL stays NULL. */
static inline void *fbp_at(const fbp_kernels *t, const void *p, ptrdiff_t n)
{
    return p ? (char *)p + n * (ptrdiff_t)t->size : NULL;
}

#endif
