/* Instruction sets: which tables this build holds, which of them this machine runs, which one is in use. */
#ifndef FBP_DISPATCH_H
#define FBP_DISPATCH_H

#include "kernels/table.h"

enum { FBP_F32, FBP_F64 };

const char *fbp_isa_name(int i);             /* i-th set of this build, best first; NULL past the last */
int fbp_isa_supported(int i);                /* 1 when this machine can run it */
int fbp_isa_select(const char *name);        /* NULL: the best. 0 chosen, -1 unknown, -2 not supported here */
const char *fbp_isa_selected(void);
const fbp_kernels *fbp_kernels_for(int type);   /* the table of the selected set for FBP_F32 or FBP_F64 */

#endif
