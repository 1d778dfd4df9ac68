#define _GNU_SOURCE
#include "parallel.h"
#include "cpu.h"
#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <pthread.h>
#include <unistd.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#if defined(__x86_64__)
#define pause_core() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define pause_core() __asm__ volatile("yield")
#else
#define pause_core() ((void)0)
#endif

/* ---- how many ----------------------------------------------------------------------------------------------------- */

static int fork_count;
static double grain = 1.5e6;

static void count_fork(void) { fork_count++; }
__attribute__((constructor)) static void watch_forks(void) { pthread_atfork(NULL, NULL, count_fork); }
int fbp_forked(void) { return fork_count; }

int fbp_openmp_version(void)
{
#ifdef _OPENMP
    return _OPENMP;
#else
    return 0;
#endif
}

#ifdef __linux__
static int read_line(const char *path, char *line, int size)
{
    FILE *f = fopen(path, "r");
    if (!f) return 0;
    const int ok = fgets(line, size, f) != NULL;
    fclose(f);
    return ok;
}

static int quota_cores(double quota, double period)
{
    if (quota <= 0 || period <= 0) return 0;
    const int cores = (int)((quota + period - 1) / period);
    return cores > 0 ? cores : 1;
}

/* Cores that the process' control group may use at once; 0 when it is not limited. Version 2 first, then version 1. */
static int container_cores(void)
{
    char line[512], path[600];
    double quota, period;
    FILE *groups = fopen("/proc/self/cgroup", "r");
    int cores = 0;
    while (groups && !cores && fgets(line, sizeof line, groups)) {
        line[strcspn(line, "\n")] = 0;
        if (strncmp(line, "0::", 3)) continue;
        for (char *end = line + strlen(line); end >= line + 3 && !cores; end--) {   /* the group and its ancestors */
            if (*end != '/' && *end) continue;
            *end = 0;
            char value[64];
            snprintf(path, sizeof path, "/sys/fs/cgroup%s/cpu.max", line + 3);
            if (read_line(path, value, sizeof value) && sscanf(value, "%lf %lf", &quota, &period) == 2) cores = quota_cores(quota, period);
        }
    }
    if (groups) fclose(groups);
    if (!cores && read_line("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", line, sizeof line)) {
        quota = atof(line);
        if (read_line("/sys/fs/cgroup/cpu/cpu.cfs_period_us", line, sizeof line)) cores = quota_cores(quota, atof(line));
    }
    return cores;
}

static int affinity_cores(void)
{
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 0;
}
#else
static int container_cores(void) { return 0; }
static int affinity_cores(void) { return (int)sysconf(_SC_NPROCESSORS_ONLN); }
#endif

static int available_cores(void)
{
    static int quota = -1;   /* a container's limit is read once; the affinity mask may change at any time */
    if (quota < 0) quota = container_cores();
    const int cores = affinity_cores();
    return quota > 0 && (quota < cores || cores <= 0) ? quota : cores;
}

static int process_limit;
static _Thread_local int own_limit;

void fbp_set_thread_limit(int threads) { process_limit = threads; }

int fbp_set_own_thread_limit(int threads)
{
    const int old = own_limit;
    own_limit = threads;
    return old;
}

int fbp_thread_limit(void)
{
#ifdef _OPENMP
    if (own_limit > 0) return own_limit;
    if (process_limit > 0) return process_limit;
    const int limit = omp_get_max_threads(), cores = available_cores();
    if (getenv("OMP_NUM_THREADS")) return limit;   /* an explicit wish outranks what we find */
    return cores > 0 && cores < limit ? cores : limit;
#else
    return 1;
#endif
}

double fbp_set_grain(double multiply_adds)
{
    const double old = grain;
    grain = multiply_adds;
    return old;
}

int fbp_grain_forced(void) { return grain <= 1; }

static int at_most(double threads)
{
    if (threads < 2 || fork_count) return 1;
    const int limit = fbp_thread_limit();
    return threads < limit ? (int)threads : limit;
}

int fbp_threads_for(double work) { return at_most(grain > 1 ? work / grain : 1e9); }

/* A step takes work / threads, and for barriers and what passes from core to core as long as a thirtieth of a grain per thread: together least
 * at the square root of their quotient. */
int fbp_threads_for_steps(double work)
{
    const double by_work = work / grain, by_waiting = sqrt(30 * by_work);
    return at_most(grain <= 1 ? 1e9 : by_work > by_waiting ? by_work : by_waiting);
}

/* ---- the team ----------------------------------------------------------------------------------------------------- */

static unsigned arrive(const fbp_worker *w)
{
    fbp_team *t = w->team;
    const unsigned round = atomic_load_explicit(&t->round, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&t->arrived, 1, memory_order_acq_rel) == w->parts - 1) {
        atomic_store_explicit(&t->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&t->round, round + 1, memory_order_release);
    }
    return round;
}

/* Waiting threads spin `patience` times before they give their core away. */
static void await(const fbp_worker *w, unsigned round, int patience)
{
    for (int spins = 0; atomic_load_explicit(&w->team->round, memory_order_acquire) == round; spins++) {
        if (spins < patience) pause_core();
        else sched_yield();
    }
}

#ifdef FBP_SHAKEN
#include <time.h>
/* For tests: a member may come late, as on a busy machine, so that who relies on a barrier that is not there is found out. */
static void shake(const fbp_worker *w)
{
    static _Thread_local unsigned state;
    state = (state ? state : (unsigned)w->part) * 1664525u + 1013904223u;
    const struct timespec late = {0, (state >> 12) % 300000};
    if (state >> 30 == 0) nanosleep(&late, NULL);
}
#else
static void shake(const fbp_worker *w) { (void)w; }
#endif

unsigned fbp_arrive(const fbp_worker *w)
{
    if (w->parts == 1) return 0;
    const unsigned arrival = arrive(w);
    shake(w);
    return arrival;
}

void fbp_await(const fbp_worker *w, unsigned arrival)
{
    if (w->parts == 1) return;
    await(w, arrival, w->team->patience);
    shake(w);
}

void fbp_barrier(const fbp_worker *w) { fbp_await(w, fbp_arrive(w)); }

#ifdef __linux__
enum { CORES = 64 * sizeof((fbp_team){0}.cores) / sizeof((fbp_team){0}.cores[0]) };

/* Whether no other member began on the core that this one is on. */
static int take_core(fbp_team *t)
{
    const int core = sched_getcpu();
    if (core < 0 || core >= (int)CORES) return 1;
    const unsigned long long bit = 1ull << core % 64;
    return !(atomic_fetch_or(&t->cores[core / 64], bit) & bit);
}

/* Linux likes to wake a thread on the core of the one that woke it and may take many milliseconds to see that another one is idle. So
 * a member that finds itself on another's core asks, for a moment, to be on none of theirs. */
static void move_to_free_core(fbp_team *t)
{
    cpu_set_t allowed, others;
    if (sched_getaffinity(0, sizeof allowed, &allowed)) return;
    others = allowed;
    for (int core = 0; core < (int)CORES; core++)
        if (atomic_load(&t->cores[core / 64]) >> core % 64 & 1) CPU_CLR(core, &others);
    if (CPU_COUNT(&others) == 0 || sched_setaffinity(0, sizeof others, &others)) return;
    sched_setaffinity(0, sizeof allowed, &allowed);
    take_core(t);
}
#else
static int take_core(fbp_team *t) { (void)t; return 1; }
static void move_to_free_core(fbp_team *t) { (void)t; }
#endif

static void run_member(int part, int parts, fbp_team *team, enum fbp_subnormals mode, void (*body)(const fbp_worker *, void *), void *argument)
{
    enum { HURRY = 200 };
    const fbp_worker worker = {part, parts, team};
    if (part > 0 && !take_core(team)) move_to_free_core(team);
    if (parts > 1) await(&worker, arrive(&worker), HURRY);   /* whoever still has to move gets this core */
    if (mode == FBP_SUBNORMALS_KEPT) {
        body(&worker, argument);
        return;
    }
    const unsigned long before = fbp_float_mode_flush();
    body(&worker, argument);
    fbp_float_mode_restore(before);
}

void fbp_run_team(int threads, enum fbp_subnormals mode, void (*body)(const fbp_worker *, void *), void *argument)
{
#ifdef _OPENMP
    if (threads > 1 && !fork_count) {   /* a forked child never enters OpenMP, not even for a run begun before the fork */
        fbp_team team = {.threads = threads, .patience = threads <= available_cores() ? 20000 : 20};
        take_core(&team);
        #pragma omp parallel num_threads(threads)
        {
            /* OpenMP may grant fewer threads than asked for: nobody waits for the missing ones. */
            run_member(omp_get_thread_num(), omp_get_num_threads(), &team, mode, body, argument);
        }
        return;
    }
#endif
    (void)threads;
    run_member(0, 1, NULL, mode, body, argument);
}

void fbp_share(const fbp_worker *w, ptrdiff_t n, ptrdiff_t unit, ptrdiff_t *begin, ptrdiff_t *end)
{
    if (w->parts == 1) {   /* without the divisions, which a small layer would feel */
        *begin = 0, *end = n;
        return;
    }
    const ptrdiff_t units = (n + unit - 1) / unit;
    const ptrdiff_t first = units * w->part / w->parts * unit, last = units * (w->part + 1) / w->parts * unit;
    *begin = first < n ? first : n;
    *end = last < n ? last : n;
}
