/* Whether an x86-64 processor has features of CPUID leaf 7 (EBX), and its system the registers. */
#ifndef GRADLEDGER_CPU_H
#define GRADLEDGER_CPU_H

#include <cpuid.h>

#define HAS_AVX2 (1u << 5)
#define HAS_AVX512 (1u << 16 | 1u << 17 | 1u << 21 | 1u << 31) /* F, DQ, IFMA, VL */
#define YMM_STATE 0x06u
#define ZMM_STATE 0xe6u

static inline int cpu_has(unsigned features, unsigned state)
{
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return 0; /* OSXSAVE */
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & state) != state) return 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & features) == features;
}

#endif
