/* Memory for the callers of this library's C: aligned, and in large pages where the system has them. */
#ifndef FBP_MEMORY_H
#define FBP_MEMORY_H

#include <stddef.h>

/* 64-byte aligned, not cleared, given back by free(); NULL when it cannot be had. Large blocks ask for large pages: products
 * walk down columns, and every row of a wide matrix is on a page of its own. */
void *fbp_allocate(size_t bytes);

enum { FBP_LARGE = 3 << 20 };   /* bytes */

#endif
