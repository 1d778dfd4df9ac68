/* The C API that _core.pyx sees.
 *
 *   dispatch.h   instruction sets and the table of kernels in use
 *   parallel.h   threads, teams, shares of a range
 *   gemm.h       products of matrices
 *   memory.h     aligned memory
 *   primitives.h the operations as plain functions on arrays
 *   program.h    a compiled graph: forward, backward, prediction
 *   training.h   steps of a program and an optimizer
 *
 * Conventions: sizes and strides are ptrdiff_t and count elements; B rows of a batch, I inputs, O outputs; matrices are
 * row-major; a `d` before a name means the gradient of the loss by it. No function allocates, prints or raises: callers bring the
 * memory and have checked the arguments. */
#ifndef FASTBP_H
#define FASTBP_H

#include "dispatch.h"
#include "gemm.h"
#include "memory.h"
#include "parallel.h"
#include "primitives.h"
#include "program.h"
#include "training.h"

#endif
