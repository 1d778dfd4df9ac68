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
    const int large = bytes >= FBP_LARGE;
    /* A page that would be more than half used is made whole. */
    const size_t pages = large ? (bytes + LARGE_PAGE / 2) / LARGE_PAGE * LARGE_PAGE : 0, size = bytes > pages ? bytes : pages;
    if (size < bytes || posix_memalign(&memory, large ? LARGE_PAGE : LINE, size ? size : LINE)) return NULL;
#if defined(__linux__)
    if (large) madvise(memory, pages, MADV_HUGEPAGE);   /* a wish: nothing is lost when it is not granted */
#endif
    return memory;
}
