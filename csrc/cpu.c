#include "cpu.h"

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
unsigned long fbp_float_mode_flush(void) { return 0; }
void fbp_float_mode_restore(unsigned long mode) { (void)mode; }

#endif
