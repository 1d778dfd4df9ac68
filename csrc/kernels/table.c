/* Compiled once per (instruction set x real type) with that set's flags, -DFBP_ISA=<name>, -DFBP_SUFFIX=f32|f64 and, for double,
 * -DFBP_DOUBLE. Everything below is static but the table. With -DFBP_IS_BROAD it has the broad tile, and products only; -DFBP_BROAD=<name> names
 * that table to the one with everything. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"   /* it does not see that what is set under a condition is used under the same one */
#endif
#include "simd.h"
#include <assert.h>
#include <math.h>
#define R real
#include "table.h"
#include "math.inc.c"
#include "elementwise.inc.c"
#include "pack.inc.c"
#include "tile.inc.c"
#ifndef FBP_IS_BROAD
#include "few.inc.c"
#endif
#include "gemm.inc.c"
#ifndef FBP_IS_BROAD
#include "sums.inc.c"
#include "norm.inc.c"
#include "loss.inc.c"
#include "optim.inc.c"
#endif

#define STRING_(s) #s
#define STRING(s) STRING_(s)
#define NAME_(isa, suffix) fbp_kernels_##isa##_##suffix
#define NAME(isa, suffix) NAME_(isa, suffix)

#ifdef FBP_BROAD
extern const fbp_kernels NAME(FBP_BROAD, FBP_SUFFIX);
#define BROAD &NAME(FBP_BROAD, FBP_SUFFIX)
#else
#define BROAD NULL
#endif

extern const fbp_kernels NAME(FBP_ISA, FBP_SUFFIX);
const fbp_kernels NAME(FBP_ISA, FBP_SUFFIX) = {
    .isa = STRING(FBP_ISA), .size = sizeof(real), .mr = MR, .nr = NR, .masked_rows = MASKED_ROWS, .depth = DEPTH, .nc = NC, .a_bytes = A_BYTES,
    .broad = BROAD,
#ifdef FBP_IS_BROAD
    .pack_a = pack_a, .pack_b = pack_b, .block = block,
#else
    .strip_rows = STRIP_ROWS,
#define X(type, name, args) .name = name,
    FBP_KERNELS(X)
#undef X
#endif
};
