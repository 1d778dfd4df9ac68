/* What the processor and the operating system offer, and the floating-point mode of a thread. */
#ifndef FBP_CPU_H
#define FBP_CPU_H

enum { FBP_CPU_AVX2 = 1, FBP_CPU_AVX512 = 2 };   /* AVX2 includes FMA; AVX512 means F, BW, DQ and VL */

/* Features that may be used: the processor has the instructions and the system saves their registers. */
unsigned fbp_cpu_features(void);

/* Ways of the first data cache: so many lines of one set can be there together. */
int fbp_cpu_cache_ways(void);

/* Subnormal results and inputs count as 0 from here on; returns the mode to give back to fbp_float_mode_restore. */
unsigned long fbp_float_mode_flush(void);
void fbp_float_mode_restore(unsigned long mode);

#endif
