/* The kernels: everything that may differ between instruction sets and real types, one line each.
 *
 * kernels/table.c is compiled once per (instruction set x real type) and exports one table. Inside it R is float or double;
 * for the drivers outside R is void: they move pointers by `size` bytes per element and know nothing of the type.
 * Kernels know nothing of threads, never allocate and never keep state. Sizes and strides count elements.
 *
 * Letters: B rows of a batch, n elements; x input, y output, t target, w weight per row; d... gradient of the loss. */
#ifndef FBP_TABLE_H
#define FBP_TABLE_H

#include <stddef.h>
#include <stdint.h>

#ifndef R
#define R void
#endif

/* y = f(x), elementwise. The derivative is taken from y, or from x where y does not determine it (see `act_backward`). */
enum fbp_activation {
    FBP_IDENTITY, FBP_RELU, FBP_LEAKY_RELU, FBP_SIGMOID, FBP_TANH, FBP_ELU, FBP_EXP, FBP_SQRT, FBP_RECIPROCAL,   /* f' from the output */
    FBP_SOFTPLUS, FBP_GELU, FBP_SILU, FBP_LOG, FBP_SIN, FBP_COS, FBP_SQUARE                                      /* f' from the input  */
};

/* y = a op b, elementwise. */
enum fbp_binary { FBP_PLUS, FBP_MINUS, FBP_TIMES, FBP_OVER };

enum fbp_loss_kind { FBP_MSE, FBP_L1, FBP_HUBER, FBP_QUANTILE, FBP_POISSON, FBP_BCE, FBP_BCE_LOGITS, FBP_CROSS_ENTROPY };

/* How a product meets what its output holds: store over it, go on with its sum (one FMA chain in ascending k),
 * add a finished sum to it, or take a step down along it, c - rate * sum as `sgd` does. */
enum fbp_start { FBP_STORE, FBP_CONTINUE, FBP_ADD, FBP_DESCEND };

/* What happens to a finished output tile while it is in registers or in the first cache.
 *   forward  (y == NULL)  c = f(c + bias)
 *   backward (y != NULL)  c = c * f'(y)
 *                      and then, if wanted,  sums_j = sums_j + sum over the rows i of c_ij, in ascending order. */
typedef struct {
    const R *bias;       /* one per column, or NULL */
    int act;
    double alpha;        /* the activation's parameter */
    const R *y;          /* same shape as c */
    ptrdiff_t ldy;
    R *sums;             /* one per column, or NULL */
} fbp_epilogue;

/* Other functions follow when the tiles are done, and so do the sums. */
static inline int fbp_sums_in_tiles(const fbp_epilogue *e) { return e && e->sums && (e->act == FBP_IDENTITY || e->act == FBP_RELU); }

/* C (m, n) = [start] + A (m, k) B (k, n), then the epilogue (or NULL).
 * A lies in panels of mr rows: element (i, p) of a panel at a[i*a_row + p*a_col], panels a_panel apart.
 * B lies in panels of `nr` columns: row p of a panel at b + p*b_row, panels b_panel apart; the last panel of a copy, which only
 * products of up to `masked_rows` rows do without, is readable over its whole width. */
typedef struct {
    ptrdiff_t m, n, k;
    const R *a;
    ptrdiff_t a_row, a_col, a_panel;
    const R *b;
    ptrdiff_t b_row, b_panel;
    R *c;
    ptrdiff_t ldc;
    int shared;          /* 1: another core may have read C */
    int start;
    double rate;
    int *not_finite;     /* set to 1 where a step leads to what is not */
    const fbp_epilogue *epilogue;
} fbp_block;

enum { FBP_FEW = 6 };   /* rows of A: too few to pay for a copy of B */

enum { FBP_TURNED_ROWS = 128 };   /* most of a C that comes of its transposed sums */

typedef struct {
    double lr;              /* step size; for Adam with its bias correction folded in */
    double decay;           /* L2 term added to the gradient: g + decay*p */
    double shrink;          /* decoupled decay: p * shrink before the step (1: none) */
    double momentum;        /* SGD */
    int nesterov;
    int rate_inside;        /* SGD: the velocity holds lr*g (scikit-learn's form) instead of g (PyTorch's) */
    double beta1, beta2;    /* Adam */
    double root_scale;      /* Adam: the denominator is sqrt(v)*root_scale + eps */
    double eps;
} fbp_rule;

#define FBP_KERNELS(X) \
    /* pack.inc.c: A (m, k), one stride 1, in panels of mr rows: dst[i/mr*panel + p*mr + i%mr]; B (k, n) likewise in panels of nr \
     * columns: dst[j/nr*panel + p*nr + j%nr]. What the last panel lacks may be anything. A vector may be written past each panel of A. */ \
    X(void, pack_a, (ptrdiff_t k, ptrdiff_t m, const R *src, ptrdiff_t row, ptrdiff_t col, R *dst, ptrdiff_t panel)) \
    X(void, pack_b, (ptrdiff_t k, ptrdiff_t n, const R *src, ptrdiff_t row, ptrdiff_t col, R *dst, ptrdiff_t panel)) \
    /* gemm.inc.c; strips: m <= 2*strip_rows rows stored, B not in panels but by columns: b[p + j*b_panel]; turn: C of its transposed sums, in a */ \
    X(void, block, (const fbp_block *p)) \
    X(void, strips, (const fbp_block *p)) \
    X(void, turn, (const fbp_block *p)) \
    X(ptrdiff_t, multiply_adds, (ptrdiff_t rounds))   /* as fast as they go, in registers; how many there were */ \
    /* sums.inc.c */ \
    X(void, column_sums, (ptrdiff_t B, ptrdiff_t n, const R *x, ptrdiff_t ldx, int start, R *y)) \
    X(void, column_products, (ptrdiff_t B, ptrdiff_t n, const R *x, const R *z, ptrdiff_t ldx, int start, R *y)) \
    /* elementwise.inc.c: `add` accumulates into dx instead of storing; s is y or x, whichever f' wants */ \
    X(void, act_forward, (int act, ptrdiff_t n, const R *x, double alpha, R *y)) \
    X(void, act_backward, (int act, ptrdiff_t n, const R *s, const R *dy, double alpha, int add, R *dx)) \
    X(void, binary, (int op, ptrdiff_t n, const R *a, const R *b, R *y)) \
    X(void, binary_backward, (int op, int by_b, ptrdiff_t n, const R *a, const R *b, const R *dy, int add, R *dx)) \
    X(void, affine, (ptrdiff_t n, double alpha, double beta, const R *x, int add, R *y))   /* y = alpha x + beta */ \
    X(void, expand, (ptrdiff_t B, ptrdiff_t n, const R *x, int add, R *y))   /* y_ij = x_i */ \
    X(void, row_sums, (ptrdiff_t B, ptrdiff_t n, const R *x, int add, R *y)) \
    X(void, dropout, (ptrdiff_t n, const R *x, double p, uint64_t key, uint64_t first, int add, R *y)) \
    X(void, softmax_forward, (ptrdiff_t B, ptrdiff_t n, const R *x, R *y)) \
    X(void, softmax_backward, (ptrdiff_t B, ptrdiff_t n, const R *y, const R *dy, int add, R *dx)) \
    X(void, scale, (ptrdiff_t n, double factor, R *x)) \
    X(double, sum_of_squares, (ptrdiff_t n, const R *x)) \
    X(double, sum, (ptrdiff_t n, const R *x)) \
    X(ptrdiff_t, first_nonfinite, (ptrdiff_t n, const R *x)) \
    /* norm.inc.c */ \
    X(void, standardise_rows, (ptrdiff_t B, ptrdiff_t n, const R *x, double eps, R *r, R *y)) \
    X(void, standardise_rows_backward, (ptrdiff_t B, ptrdiff_t n, const R *y, const R *r, const R *dy, int add, R *dx)) \
    X(void, standardise_columns, (ptrdiff_t B, ptrdiff_t n, ptrdiff_t ld, const R *x, int given, double eps, R *mean, R *var, R *r, R *y)) \
    X(void, standardise_columns_backward, (ptrdiff_t B, ptrdiff_t n, ptrdiff_t ld, const R *y, const R *r, const R *dy, int given, R *mean, R *slope, int add, R *dx)) \
    X(void, scale_columns, (ptrdiff_t B, ptrdiff_t n, ptrdiff_t ld, const R *x, const R *w, const R *b, int add, R *y)) \
    X(void, take_rows, (ptrdiff_t n, const R *x, ptrdiff_t rows, ptrdiff_t width, const R *w, R *y)) \
    X(void, add_rows, (ptrdiff_t n, const R *x, ptrdiff_t first, ptrdiff_t last, ptrdiff_t width, const R *dy, R *dw)) \
    /* loss.inc.c: returns the sum of w*l over the rows; dp = w * dl/dp * factor (dp may be NULL). Where l is of logits, its value counts as if \
     * the probability were at least e^-limit and at most 1 - e^-limit. */ \
    X(double, loss, (int kind, ptrdiff_t B, ptrdiff_t n, const R *p, const R *t, const R *w, double param, double limit, double factor, R *dp)) \
    X(double, cross_entropy, (ptrdiff_t B, ptrdiff_t n, const R *s, const R *t, const int64_t *label, const R *w, double smoothing, double limit, \
                              double factor, R *ds)) \
    X(double, accuracy, (ptrdiff_t B, ptrdiff_t n, const R *p, const R *t, const int64_t *label, double threshold)) \
    /* optim.inc.c: in place; return 0 when every new parameter is finite */ \
    X(int, sgd, (ptrdiff_t n, const fbp_rule *rule, const R *g, R *p, R *velocity)) \
    X(int, adam, (ptrdiff_t n, const fbp_rule *rule, const R *g, R *p, R *m, R *v))

typedef struct fbp_kernels {
    const char *isa;
    size_t size;            /* bytes per element */
    const struct fbp_kernels *broad;   /* pack_a, pack_b and block for a tile of fewer rows and more columns, the same results; or NULL */
    int mr, nr;             /* register tile */
    int masked_rows;        /* m up to which B's last panel may lie anywhere */
    int strip_rows;         /* m of a strip, and half of that up to which there are strips */
    ptrdiff_t depth, nc;    /* cache blocks: k of both, columns of B */
    size_t a_bytes;         /* a block of A, in the second cache */
#define X(type, name, args) type (*name) args;
    FBP_KERNELS(X)
#undef X
} fbp_kernels;

/* Rows of a batch whose contributions to a gradient make one sum; the sums of the chunks are added up in order. One number for
 * every instruction set and type, because it decides the rounding. */
enum { FBP_CHUNK = 512 };

#endif
