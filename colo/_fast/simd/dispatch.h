/* Which levels this build and this CPU have, best last. */
#pragma once
#include "portable.h"

#define COLO_LEVELS_MAX 8

static int colo_levels(const colo_kernels **levels)
{
    int count = 0;

    levels[count++] = &colo_kernels_portable;
    return count;
}
