/* Training: whole steps of a program and an optimizer, one call for many; and the two phases that a step adds to the program's, by themselves. */
#ifndef FBP_TRAINING_H
#define FBP_TRAINING_H

#include "program.h"

enum fbp_status { FBP_RUNNING, FBP_DONE, FBP_LOSS_NOT_FINITE, FBP_PARAMETER_NOT_FINITE };

/* What an output is trained for: a term weight * loss of the whole loss. */
typedef struct {
    const fbp_loss *loss;
    double weight;
    fbp_target target;             /* of all n rows */
    void *gathered_t;              /* room for one batch */
    int64_t *gathered_label;
    void *outputs;                 /* (n, O) to receive the predictions in batch order, or NULL */
} fbp_objective;

enum { FBP_TURNED_BYTES = 1 << 20 };   /* to make more copies would take longer than it saves */

/* Batches [batch, batches) of epochs over n rows, one or more: gather, forward, loss, backward, update; ends a step after `seconds`. With `next` it is
 * one epoch, and others follow for as long as it says so. */
typedef struct {
    fbp_frame *frame;
    const fbp_objective *objective;    /* one per output */
    const fbp_optimizer *optimizer;
    void *params, *state1, *state2;    /* state: velocity, or m and v */
    void *saved[3];                /* where these are to be kept as they are now; NULL: nowhere */
    void *room;                    /* for a copy of each of these where weights that turn lie turned, up to FBP_TURNED_BYTES; NULL: they do not turn */
    void *chunk_grads;             /* fbp_program_chunks(...) times program->extent elements, 0 at first; NULL: there are none */
    const double *lr;              /* per batch */
    ptrdiff_t n, batch_size;
    const void *x;                 /* NULL: the frame has a sparse input */
    const void *w;                 /* of all n rows, or NULL */
    const int64_t *order;          /* n row numbers per epoch, batch i of which takes rows order[i*batch_size ...]; NULL: in order */
    void *gathered_w;              /* room for one batch */
    int wants_accuracy;            /* of the first output */
    double threshold;              /* of accuracy; NaN: argmax */
    double *partial;               /* fbp_partials(...) doubles */
    struct fbp_prepared *prepared; /* room for FBP_PRODUCTS per operation */
    double seconds;
    int threads;
    int tolerant;                  /* 1: goes on when a number is not finite */
    int cleared;                   /* 1: the gradients of a sparse operation's weight were zero when the first step began */
    ptrdiff_t batch, batches;      /* in: where to start; out: where it stopped */
    int64_t steps;                 /* updates the optimizer has made */
    double *loss_sum, *hits;       /* running sums of rows * loss and of right answers, per epoch */
    double last_loss;
    int (*next)(void *context, double loss_sum);   /* after an epoch: 1 to go on with another, whose order it has put where `order` is; or NULL */
    void *context;
    int paused;                    /* the time is up */
    int status;
} fbp_run;

void fbp_train(fbp_run *run);

/* How many threads steps of this batch size deserve. */
int fbp_training_threads(const fbp_program *p, ptrdiff_t rows);

/* Doubles of room for partial sums over `rows` rows of `outputs` outputs and `parameters` elements. */
ptrdiff_t fbp_partials(ptrdiff_t rows, int outputs, ptrdiff_t parameters, int threads);

/* The step-by-step path's loss and update, by a team: the same arithmetic as in fbp_train. */
double fbp_loss_value(const fbp_kernels *t, const fbp_loss *loss, ptrdiff_t B, ptrdiff_t O, const void *p, fbp_target target, void *dp,
                      double *partial, int threads);
double fbp_hits(const fbp_kernels *t, double threshold, ptrdiff_t B, ptrdiff_t O, const void *p, fbp_target target);
int fbp_optimizer_step(const fbp_kernels *t, const fbp_optimizer *o, double lr, int64_t step, ptrdiff_t n, void *grads, void *params,
                       void *state1, void *state2, double *partial, int threads);

#endif
