/* The operations as plain functions on arrays: what fastbp.kernels offers. One team call each; subnormals are kept. */
#ifndef FBP_PRIMITIVES_H
#define FBP_PRIMITIVES_H

#include "gemm.h"

/* The product by a team. Scratch: fbp_gemm_scratch bytes per thread. */
void fbp_matmul(const fbp_kernels *t, const fbp_product *q, void *scratch, int threads);
void fbp_sum_columns(const fbp_kernels *t, ptrdiff_t B, ptrdiff_t n, const void *x, void *y, int threads);

/* y = f(x) and dx = dy * f'(s) over n elements. */
void fbp_map(const fbp_kernels *t, int act, ptrdiff_t n, const void *x, double alpha, void *y, int threads);
void fbp_map_backward(const fbp_kernels *t, int act, ptrdiff_t n, const void *s, const void *dy, double alpha, void *dx, int threads);
void fbp_softmax(const fbp_kernels *t, ptrdiff_t B, ptrdiff_t n, const void *x, void *y, int threads);

/* Index of the first NaN or infinity among n elements, or -1. */
ptrdiff_t fbp_first_nonfinite(const fbp_kernels *t, ptrdiff_t n, const void *x);

/* Achieved rate of the register tile's multiply-adds on operands in the first cache, in operations (2 per multiply-add) a second
 * and thread: the machine's own limit for a product. */
double fbp_peak(const fbp_kernels *t, double seconds);

#endif
