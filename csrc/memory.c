#define _GNU_SOURCE
#include "memory.h"
#include <stdlib.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

void *fbp_allocate(size_t bytes)
{
    enum { LINE = 64, LARGE_PAGE = 2 << 20 };
    void *memory = NULL;
    const int large = bytes >= 2 * (size_t)LARGE_PAGE;
    if (posix_memalign(&memory, large ? LARGE_PAGE : LINE, bytes ? bytes : LINE)) return NULL;
#if defined(__linux__)
    if (large) madvise(memory, bytes, MADV_HUGEPAGE);   /* a wish: nothing is lost when it is not granted */
#endif
    return memory;
}
