/* Which levels this build and this CPU have, best last. */
#pragma once
#include "portable.h"
#if defined(__x86_64__)
#include "sse2.h"
#include "avx2.h"
#include "avx512.h"
#elif defined(__aarch64__)
#include "neon.h"
#endif

#define COLO_LEVELS_MAX 4

static int colo_levels(const colo_kernels **levels)
{
    int count = 0;

    colo_fill_tables();
    levels[count++] = &colo_kernels_portable;
#if defined(__x86_64__)
    /* The compiler's runtime also asks the operating system whether it saves the wider registers. */
    __builtin_cpu_init();
    levels[count++] = &colo_kernels_sse2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2")
        && __builtin_cpu_supports("popcnt")) {
        levels[count++] = &colo_kernels_avx2;
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
            && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")
            && __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512vpopcntdq"))
            levels[count++] = &colo_kernels_avx512;
    }
#elif defined(__aarch64__)
    levels[count++] = &colo_kernels_neon;
#endif
    return count;
}
