// The kernels for AVX2 with FMA and F16C: eight lanes.

#include "dispatch.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <string.h>

#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#define PK_LEVEL 1
#include "simd/all.h"
#pragma clang attribute pop

const pk_table pk_table_avx2 = {
#define KERNEL(result, name, parameters, arguments) .name = K(name),
#include "kernels.def"
#undef KERNEL
};
#endif
