/* The drivers of the operations: each does one worker's share of a whole batch and returns; barriers are the caller's. */
#ifndef FBP_OPS_H
#define FBP_OPS_H

#include "../gemm.h"
#include "../program.h"

typedef void fbp_driver(const fbp_frame *f, const fbp_op *op, const fbp_worker *w);

fbp_driver fbp_dense_forward, fbp_dense_backward, fbp_dense_gradients;
/* Of a dense operation whose dx is two sums, `backward` makes the sums and `join`, after a barrier, dx of them. alone: of dy and the weight a worker
 * reads only the columns and rows that it is to write. */
int fbp_dense_halved(const fbp_frame *f, const fbp_op *op, const fbp_worker *w);
int fbp_dense_alone(const fbp_frame *f, const fbp_op *op, const fbp_worker *w);
fbp_driver fbp_dense_join;
void fbp_dense_turn(const fbp_frame *f, const fbp_op *op, int back, const void *from, void *to, const fbp_worker *w);
fbp_driver fbp_softmax_forward, fbp_softmax_backward;
fbp_driver fbp_sum_forward, fbp_sum_backward;
fbp_driver fbp_expand_forward, fbp_expand_backward;
fbp_driver fbp_place_forward, fbp_place_backward;
fbp_driver fbp_pick_forward, fbp_pick_backward;
fbp_driver fbp_parameter_forward, fbp_parameter_backward, fbp_parameter_gradients;
fbp_driver fbp_layernorm_forward, fbp_layernorm_backward;
fbp_driver fbp_batchnorm_forward, fbp_batchnorm_backward, fbp_batchnorm_statistics;
fbp_driver fbp_scale_forward, fbp_scale_backward, fbp_scale_gradients;
fbp_driver fbp_embedding_forward, fbp_embedding_backward, fbp_embedding_gradients;
fbp_driver fbp_sparse_forward, fbp_sparse_backward, fbp_sparse_gradients;

/* Elementwise: over elements [i, end) of the values. */
typedef void fbp_range_driver(const fbp_frame *f, const fbp_op *op, ptrdiff_t i, ptrdiff_t end);

fbp_range_driver fbp_activation_forward, fbp_activation_backward;
fbp_range_driver fbp_dropout_forward, fbp_dropout_backward;
fbp_range_driver fbp_binary_forward, fbp_binary_backward;
fbp_range_driver fbp_affine_forward, fbp_affine_backward;

/* Operations first..last, one stage, through their range drivers (by kind). */
void fbp_stage_forward(const fbp_frame *f, const fbp_op *first, const fbp_op *last, fbp_range_driver *const *drivers, const fbp_worker *w);
void fbp_stage_backward(const fbp_frame *f, const fbp_op *first, const fbp_op *last, fbp_range_driver *const *drivers, const fbp_worker *w);

void fbp_vector_gradients(const fbp_frame *f, const fbp_op *op, ptrdiff_t at, int db, int last, const fbp_worker *w);

/* g (rows, width) *= act'(s), in place: closes a gradient with the activation of the op that made its value. The same over elements
 * [i, end) of a value that this worker has just written. */
void fbp_close_gradient(const fbp_kernels *t, const fbp_worker *w, ptrdiff_t n, int act, double alpha, const void *s, void *g);
void fbp_close_range(const fbp_frame *f, int value, int act, double alpha, ptrdiff_t i, ptrdiff_t end);

/* Loss: partial sums of w*l by chunks of rows, dp = dL/dp; then every worker may ask for the total. */
double fbp_batch_weight(const fbp_kernels *t, ptrdiff_t B, const void *w);   /* B, or the sum of w */
double fbp_loss_factor(const fbp_loss *loss, double batch_weight);
void fbp_loss_rows(const fbp_kernels *t, const fbp_worker *w, const fbp_loss *loss, double factor, ptrdiff_t B, ptrdiff_t O, const void *p,
                   fbp_target target, void *dp, double *partial);
void fbp_accuracy_rows(const fbp_kernels *t, const fbp_worker *w, double threshold, ptrdiff_t B, ptrdiff_t O, const void *p,
                       fbp_target target, double *partial);
double fbp_chunk_total(const double *partial, ptrdiff_t B);

/* Step `number` (from 1) of an optimizer: `range` updates parameters [i, i + n) of one slot, `flat` the worker's share of all n parameters.
 * `rows`: m times n of them, `row` apart, with gradients ldg apart. With clipping the squares come first and a barrier stands between the two
 * calls. `penalty_squares` leaves the penalty's partial sums, for every worker's `penalty` after a barrier. `descends`: whether the step is p - rate * g and nothing else. */
fbp_step fbp_step_begin(const fbp_optimizer *o, double lr, int64_t number, double batch_weight);
void fbp_penalty_squares(const fbp_kernels *t, const fbp_worker *w, const fbp_optimizer *o, ptrdiff_t n, const void *params, double *partial);
double fbp_penalty(const fbp_optimizer *o, double batch_weight, ptrdiff_t n, const double *partial);
const fbp_slot *fbp_slot_of(const fbp_optimizer *o, ptrdiff_t i);
int fbp_descends(const fbp_step *s, const fbp_slot *slot, double *rate);
void fbp_update_range(const fbp_kernels *t, fbp_step *s, const fbp_slot *slot, ptrdiff_t i, ptrdiff_t n, void *g);
void fbp_update_rows(const fbp_kernels *t, fbp_step *s, const fbp_slot *slot, ptrdiff_t i, ptrdiff_t row, ptrdiff_t m, ptrdiff_t n, void *g, ptrdiff_t ldg);
void fbp_update_squares(const fbp_kernels *t, const fbp_worker *w, ptrdiff_t n, const void *grads, double *partial);
void fbp_update_flat(const fbp_kernels *t, const fbp_worker *w, fbp_step *s, ptrdiff_t n, const double *partial);

/* Elements, and rows of a batch, whose partial sums are added up in order. A smaller batch has no more chunks of rows. */
enum { FBP_SQUARES_CHUNK = 16384 };
enum { FBP_UPDATED = 1024 };   /* parameters that a worker updates at least */
static inline ptrdiff_t fbp_loss_chunk(ptrdiff_t B) { return B > 64 ? 64 : 32; }
static inline ptrdiff_t fbp_loss_chunks(ptrdiff_t B) { return (B + fbp_loss_chunk(B) - 1) / fbp_loss_chunk(B); }

#endif
