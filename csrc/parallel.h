/* Threads: how many a piece of work deserves, the team that does it, its barrier, and fair shares of a range.
 * OpenMP is named in parallel.c and nowhere else. */
#ifndef FBP_PARALLEL_H
#define FBP_PARALLEL_H

#include <stdatomic.h>
#include <stddef.h>

typedef struct {
    int threads;
    int patience;                 /* spins before a waiting thread gives its core away */
    atomic_int arrived;
    atomic_uint round;
    atomic_ullong cores[16];      /* bit c: a member began on core c */
} fbp_team;

/* One member of a team: number `part` of `parts`. */
typedef struct {
    int part, parts;
    fbp_team *team;
} fbp_worker;

int fbp_openmp_version(void);           /* 0: built without */
int fbp_forked(void);                   /* how often this process descends by fork from one that had loaded the library */

/* The most threads a call may use: the calling thread's own setting, else the process' setting, else the least of what OpenMP,
 * the affinity mask and the container's quota allow. 0 takes a setting back. */
int fbp_thread_limit(void);
void fbp_set_thread_limit(int threads);
int fbp_set_own_thread_limit(int threads);   /* of the calling thread; returns the old one */

/* The number of threads for `work` (multiply-adds, or what costs as much): within the limit, and never so many that a thread
 * has less than a grain. The answer never changes results. */
int fbp_threads_for(double work);
int fbp_threads_for_steps(double work);       /* of each of many steps that one team makes, already awake */
double fbp_set_grain(double multiply_adds);   /* returns the old one; for tests and tuning. Up to 1: always all that are allowed */
int fbp_grain_forced(void);                   /* 1 while the grain is that small */

enum fbp_subnormals { FBP_SUBNORMALS_KEPT, FBP_SUBNORMALS_FLUSHED };   /* flushed: they count as zero inside the team */

/* Runs body(worker, argument) once on each of `threads` threads and returns when all have. */
void fbp_run_team(int threads, enum fbp_subnormals mode, void (*body)(const fbp_worker *, void *), void *argument);

/* Returns when every member has arrived; what they wrote before is visible after. */
void fbp_barrier(const fbp_worker *w);

/* A barrier in two: arrives, and returns at once; returns when every member has arrived. No other barrier comes between the two. */
unsigned fbp_arrive(const fbp_worker *w);
void fbp_await(const fbp_worker *w, unsigned arrival);

enum { FBP_LINE = 16 };   /* elements of whole cache lines: a worker's fewest columns */

/* The share [*begin, *end) of n items, in whole multiples of `unit` but for the last. */
void fbp_share(const fbp_worker *w, ptrdiff_t n, ptrdiff_t unit, ptrdiff_t *begin, ptrdiff_t *end);

#endif
