/* Compiled once per (instruction set x real type) with that set's flags, -DFBP_ISA=<name>, -DFBP_SUFFIX=f32|f64 and, for double,
 * -DFBP_DOUBLE. Everything below is static but the table. */
#include "simd.h"
#include <assert.h>
#include <math.h>
#define R real
#include "table.h"
#include "math.inc.c"
#include "elementwise.inc.c"
#include "pack.inc.c"
#include "tile.inc.c"
#include "few.inc.c"
#include "gemm.inc.c"
#include "sums.inc.c"
#include "norm.inc.c"
#include "loss.inc.c"
#include "optim.inc.c"

#define STRING_(s) #s
#define STRING(s) STRING_(s)
#define NAME_(isa, suffix) fbp_kernels_##isa##_##suffix
#define NAME(isa, suffix) NAME_(isa, suffix)

extern const fbp_kernels NAME(FBP_ISA, FBP_SUFFIX);
const fbp_kernels NAME(FBP_ISA, FBP_SUFFIX) = {
    .isa = STRING(FBP_ISA), .size = sizeof(real), .mr = MR, .nr = NR, .masked_rows = MASKED_ROWS, .depth = DEPTH, .nc = NC, .a_bytes = A_BYTES,
#define X(type, name, args) .name = name,
    FBP_KERNELS(X)
#undef X
};
