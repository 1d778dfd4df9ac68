/* A program: what the compiler makes of a graph. A flat list of operations over numbered values; C runs it forward, backward,
 * and for whole epochs.
 *
 * Letters: B rows of a batch, I inputs and O outputs of an operation. Values are (B, width), row-major. */
#ifndef FBP_PROGRAM_H
#define FBP_PROGRAM_H

#include "kernels/table.h"
#include "parallel.h"

enum fbp_op_kind {
    FBP_DENSE, FBP_ACTIVATION, FBP_SOFTMAX, FBP_DROPOUT,
    FBP_BINARY,                    /* y = x op z */
    FBP_AFFINE,                    /* y = alpha x + beta */
    FBP_SUM, FBP_EXPAND,           /* over the features of a row: many to one, one to many; each is the other's backward */
    FBP_PLACE, FBP_PICK,           /* x becomes columns [at, at + width) of y; y is those columns of x */
    FBP_PARAMETER,                 /* every row of y is the parameter */
    FBP_LAYERNORM, FBP_BATCHNORM,  /* y = (x - mean) / sqrt(var + alpha) over a row; over a column of the batch, or with its running statistics */
    FBP_SCALE,                     /* y = x w + b, one w and b per column */
    FBP_EMBEDDING,                 /* y = the rows of w whose numbers x holds, side by side */
    FBP_SPARSE,                    /* y = act(x w + b), x rows of a CSR matrix: only the input, and then no other operation reads it */
    FBP_OP_KINDS
};

/* How a contribution meets the gradient that is there: the first one in backward order stores, the others add. Shared: it is dy itself, which
 * nobody needs any more, and lies where dy lies. */
enum fbp_gradient { FBP_UNWANTED, FBP_FIRST, FBP_MORE, FBP_SHARED };

/* y = op(x). Dense: y = act(x wᵀ + b). Backward, with dy the gradient by the pre-activation of a dense op:
 *   dw = dyᵀ x,  db = 1ᵀ dy,  dx = dy w;  then, when this is the last contribution to dx, dx *= dact'(x),
 *   where dact is the activation fused into the op that made x, or the identity where that op `closes` dy itself. */
typedef struct {
    int kind;
    int x, z, y;                   /* values; z: the second operand of a binary operation */
    int act;                       /* dense, activation; of a binary operation: enum fbp_binary */
    int dact, zact;                /* see above; zact: of z */
    int dx, dz, dw, db;            /* enum fbp_gradient */
    int last_w, last_b;            /* 1: nothing is added to dw, db after this, and nobody reads the weight, the bias any more */
    int closes;                    /* 1: dy is to be multiplied by act'(y) first: no reader of y did so */
    int transposed;                /* 1: the weight lies as (I, O) */
    int turns;                     /* 1: it may lie so for the time of a call, as nobody else reads it; forward and dw are faster then, dx is not wanted */
    ptrdiff_t parts;               /* where it then lies if every worker has its part: an offset behind the parameters */
    ptrdiff_t weight, bias;        /* offsets in the flat parameters; -1: none. Batchnorm: of running mean and variance */
    ptrdiff_t sums;                /* dense: offset of the bias whose gradient the column sums of dx are; -1: none */
    int summed;                    /* dense: a later operation's `sums` is this one's bias */
    ptrdiff_t at;                  /* place, pick: the first column; embedding: the rows of w; batchnorm: offset of the count of batches */
    ptrdiff_t room;                /* offset in the arena of what the operation keeps for its backward; -1: nothing */
    double alpha, beta, dalpha, zalpha;    /* parameters of act, dact, zact; dropout: the probability; norms: eps; batchnorm's beta: momentum,
                                            * below 0: 1 / count of batches */
    int stream;                    /* dropout: the layer's number; batchnorm: which use of its layer this is, from 1 */
    int stage;                     /* operations of one stage are elementwise over as many elements: done together, block by block */
} fbp_op;

typedef struct {
    ptrdiff_t width;
    ptrdiff_t offset, gradient;    /* in the arena, in elements; -1: not there */
} fbp_value;

/* A value that leaves the program. act: fused into the operation that made it and closed by no reader, so the loss' gradient passes through it. */
typedef struct {
    int value, act;
    double alpha;
} fbp_output;

typedef struct {
    const fbp_kernels *table;
    int values, ops;
    const fbp_value *value;
    const fbp_op *op;
    int input, outputs;
    const fbp_output *output;
    int complete;                  /* 1: the operations read all parameters */
    int statistics;                /* 1: a training pass changes running statistics */
    ptrdiff_t capacity;            /* rows that the arena holds */
    ptrdiff_t arena;               /* elements */
    ptrdiff_t extent;              /* of an array like the parameters with `parts` behind them */
    size_t scratch;                /* bytes per worker */
    size_t half;                   /* bytes of one of the two sums that make a dense operation's dx */
    double work_per_row;           /* multiply-adds of one forward pass */
} fbp_program;

/* Mean loss: L = factor * sum of w_i l_i with factor = scale / (sum of w * per_row); sum: factor = scale. */
typedef struct {
    int kind;                      /* enum fbp_loss_kind */
    int sum;                       /* 1: do not divide */
    double per_row;                /* elements that the mean counts per row */
    double scale;
    double param;                  /* Huber's delta, the quantile, label smoothing */
    double limit;                  /* of logits' losses, see the kernels */
    double reported;               /* factor on the value that is reported, not on the gradient */
} fbp_loss;

/* Targets of consecutive rows: `t` (B, O) or labels (B); weights (B) or NULL. */
typedef struct {
    const void *t;
    const int64_t *label;
    const void *w;
} fbp_target;

/* FBP_GRADIENT: no step; the gradient of loss and penalty stays in `grads`. */
enum fbp_optimizer_kind { FBP_SGD, FBP_ADAM, FBP_GRADIENT };

/* One slot per parameter tensor. */
typedef struct {
    ptrdiff_t offset, size;
    double rate;                   /* factor on the learning rate; 0: not trainable */
    double decay;                  /* factor on the weight decay and on the penalty */
} fbp_slot;

typedef struct {
    int kind;
    double momentum;
    int nesterov, rate_inside;
    double beta1, beta2, eps;
    double weight_decay;
    int decoupled;                 /* AdamW: decay the parameter, not the gradient */
    int epsilon_hat;               /* Adam: eps is added to sqrt(v) before the bias correction (Kingma & Ba, end of section 2) */
    double penalty;                /* the batch's loss has penalty / (2 * rows, or the sum of their weights) * sum of p^2 */
    double clip_norm;              /* 0: no clipping */
    int slots;
    const fbp_slot *slot;
} fbp_optimizer;

/* One step of an optimizer, as one worker takes it. */
typedef struct {
    const fbp_optimizer *optimizer;
    double lr, correction, root_scale;   /* Adam: 1 - beta1^t, 1/sqrt(1 - beta2^t) */
    double decay;                  /* added to the gradient: decay * p */
    void *grads, *params, *state1, *state2;
    int not_finite;                /* whether a new parameter is not */
} fbp_step;

/* A matrix by its non-zero elements, row by row: entries start[i] to start[i + 1] are those of row i. */
typedef struct {
    const int64_t *start;
    const int32_t *column;
    const void *value;
} fbp_csr;

/* As (O, I); as (I, O) in the same place; as an (I, columns) for every worker, one behind the other: threads do not write to each other's cache
 * lines, nor to those beside them, which processors fetch unasked. */
enum fbp_turned { FBP_AS_IT_IS, FBP_TURNED, FBP_TURNED_PARTS };

/* Elements from one row of O to the next when rows take whole cache lines. */
static inline ptrdiff_t fbp_line_row(ptrdiff_t O) { return (O + FBP_LINE - 1) / FBP_LINE * FBP_LINE; }

enum fbp_products { FBP_OF_FORWARD, FBP_OF_BACKWARD, FBP_OF_GRADIENTS, FBP_PRODUCTS };   /* of a dense operation */

/* One running use of a program: where its values are and what the operations need to know. */
typedef struct {
    const fbp_program *program;
    void **value, **gradient;      /* one pointer per value */
    void *arena;
    const void *params;
    void *grads;
    ptrdiff_t rows;
    int training;                  /* 0: dropout is the identity */
    enum fbp_turned turned;        /* how weights that turn lie now */
    uint64_t seed, step;           /* of dropout */
    const fbp_csr *csr;            /* a sparse input: row i of the batch is row order[first + i], or first + i without an order */
    const int64_t *order;
    ptrdiff_t first;
    void *half[2];                 /* twice program->half bytes each: of one operation, and of the one before it */
    void *scratch;                 /* program->scratch bytes per worker */
    void *chunk_grads;             /* program->extent elements per chunk of rows: workers have chunks for themselves then, see fbp_program_chunks; NULL: they
                                    * share out every operation */
    fbp_step *update;              /* rides on the gradients; NULL: comes after them */
    struct fbp_prepared *prepared; /* FBP_PRODUCTS per operation, of a step with the same memory and as many rows; NULL: nobody remembers them */
} fbp_frame;

/* Bytes of memory for a frame of this program with `threads` workers, and the frame laid out in it. */
size_t fbp_frame_bytes(const fbp_program *p, int threads);
fbp_frame fbp_frame_in(void *memory, const fbp_program *p);

/* How many threads `passes` forward passes over these rows deserve: 1 to predict, 2 backward. */
int fbp_program_threads(const fbp_program *p, ptrdiff_t rows, int passes);

/* Bytes of scratch that a worker of this program needs, and of half a dx. */
size_t fbp_program_scratch(const fbp_kernels *t, int ops, const fbp_op *op, const fbp_value *value, ptrdiff_t rows);
size_t fbp_program_half(const fbp_kernels *t, int ops, const fbp_op *op, const fbp_value *value, ptrdiff_t rows);
enum { FBP_HALVED_MOST = 1 << 18 };   /* elements of a weight whose dx is two sums */

/* Chunks of a tall batch of a small program, of which workers make forward pass, backward pass and gradients for themselves, as reading what another core
 * has written takes longer than adding up gradients; 0: that does not pay. */
ptrdiff_t fbp_program_chunks(const fbp_program *p, ptrdiff_t rows);

/* Phases, which every member of a team runs beside the others: forward; then, of a training pass, running statistics move towards those of the batch;
 * and from the loss' gradient by the outputs, which is in place, back to the input (equations BP1 to BP4). */
void fbp_program_forward(const fbp_frame *f, const fbp_worker *w);
void fbp_program_statistics(const fbp_frame *f, const fbp_worker *w);
void fbp_program_backward(const fbp_frame *f, const fbp_worker *w);

/* One phase by a team; the step-by-step path. `backward` starts from a dout (B, O) for every output and leaves the input's gradient in the
 * frame when the program wants it. */
void fbp_forward(fbp_frame *f, int threads);
void fbp_backward(fbp_frame *f, const void *const *dout, int threads);

/* One y (n, O) for every output = the program applied to x (n, I), or to a sparse one, slice by slice of at most `capacity` rows, each by one
 * thread; or a few rows together. Memory: fbp_frame_bytes(p, 1) for each of `threads` workers. */
void fbp_predict(const fbp_program *p, const void *params, ptrdiff_t n, const void *x, const fbp_csr *csr, void *const *y, void *memory, int threads);

#endif
