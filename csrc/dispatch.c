#include "dispatch.h"
#include "cpu.h"
#include <string.h>

#define DECLARE(isa) extern const fbp_kernels fbp_kernels_##isa##_f32, fbp_kernels_##isa##_f64;
#define ROW(isa, needs) { #isa, needs, { &fbp_kernels_##isa##_f32, &fbp_kernels_##isa##_f64 } }

typedef struct {
    const char *name;
    unsigned needs;
    const fbp_kernels *table[2];
} isa;

/* Best first; the last one runs everywhere. */
#if defined(__x86_64__)
DECLARE(avx512) DECLARE(avx2) DECLARE(baseline)
#ifdef FBP_WIDE   /* before the last row: never the best of what a machine runs */
DECLARE(wide)
#define WIDE ROW(wide, FBP_CPU_AVX2),
#else
#define WIDE
#endif
static const isa isas[] = { ROW(avx512, FBP_CPU_AVX512 | FBP_CPU_AVX2), ROW(avx2, FBP_CPU_AVX2), WIDE ROW(baseline, 0) };
#elif defined(__aarch64__)
DECLARE(neon)
static const isa isas[] = { ROW(neon, 0) };
#else
DECLARE(baseline)
static const isa isas[] = { ROW(baseline, 0) };
#endif

enum { COUNT = sizeof isas / sizeof *isas };
static const isa *selected = &isas[COUNT - 1];

const char *fbp_isa_name(int i) { return i < COUNT ? isas[i].name : NULL; }
int fbp_isa_supported(int i) { return (fbp_cpu_features() & isas[i].needs) == isas[i].needs; }

int fbp_isa_select(const char *name)
{
    for (int i = 0; i < COUNT; i++) {
        if (name && strcmp(name, isas[i].name)) continue;
        if (fbp_isa_supported(i)) {
            selected = &isas[i];
            return 0;
        }
        if (name) return -2;
    }
    return -1;
}

const char *fbp_isa_selected(void) { return selected->name; }
const fbp_kernels *fbp_kernels_for(int type) { return selected->table[type]; }
