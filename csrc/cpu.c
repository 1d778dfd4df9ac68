#include "cpu.h"
#include <stdatomic.h>

enum { USUAL_WAYS = 8 };

#if defined(__x86_64__)
#include <cpuid.h>

/* XCR0: which register files the operating system saves on a context switch. */
static unsigned long long saved_registers(void)
{
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return ((unsigned long long)high << 32) | low;
}

unsigned fbp_cpu_features(void)
{
    enum { XMM_YMM = 0x6, OPMASK_ZMM = 0xe0 };
    unsigned a, b, c, d, features = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE) || !(c & bit_AVX) || !(c & bit_FMA)) return 0;
    const unsigned long long saved = saved_registers();
    if ((saved & XMM_YMM) != XMM_YMM || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & bit_AVX2)) return 0;
    features |= FBP_CPU_AVX2;
    const unsigned avx512 = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
    if ((saved & OPMASK_ZMM) == OPMASK_ZMM && (b & avx512) == avx512) features |= FBP_CPU_AVX512;
    return features;
}

static int find_cache_ways(void)
{
    enum { INTEL = 4, AMD = 0x8000001d, DATA = 1, FIRST = 1 };   /* both leaves describe one cache after the other in the same way; 0 past the last */
    for (int vendor = 0; vendor < 2; vendor++) {
        unsigned a, b, c, d;
        for (unsigned i = 0; __get_cpuid_count(vendor ? (unsigned)AMD : INTEL, i, &a, &b, &c, &d) && a % 32 != 0; i++)
            if (a % 32 == DATA && a / 32 % 8 == FIRST) return (int)(b >> 22) + 1;
    }
    return USUAL_WAYS;
}

int fbp_cpu_cache_ways(void)
{
    static atomic_int found;   /* cpuid takes microseconds where a hypervisor answers */
    int ways = atomic_load_explicit(&found, memory_order_relaxed);
    if (ways == 0) atomic_store_explicit(&found, ways = find_cache_ways(), memory_order_relaxed);
    return ways;
}

unsigned long fbp_float_mode_flush(void)
{
    enum { FLUSH_TO_ZERO = 1 << 15, DENORMALS_ARE_ZERO = 1 << 6 };
    const unsigned before = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(before | FLUSH_TO_ZERO | DENORMALS_ARE_ZERO);
    return before;
}

void fbp_float_mode_restore(unsigned long mode) { __builtin_ia32_ldmxcsr((unsigned)mode); }

#elif defined(__aarch64__)

unsigned fbp_cpu_features(void) { return 0; }   /* NEON belongs to the architecture's floor */
int fbp_cpu_cache_ways(void) { return USUAL_WAYS; }

unsigned long fbp_float_mode_flush(void)
{
    enum { FLUSH_TO_ZERO = 1 << 24 };
    unsigned long before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" : : "r"(before | FLUSH_TO_ZERO));
    return before;
}

void fbp_float_mode_restore(unsigned long mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }

#else

unsigned fbp_cpu_features(void) { return 0; }
int fbp_cpu_cache_ways(void) { return USUAL_WAYS; }
unsigned long fbp_float_mode_flush(void) { return 0; }
void fbp_float_mode_restore(unsigned long mode) { (void)mode; }

#endif
