// The kernels for AVX-512 (F, BW, DQ, VL): sixteen lanes.

#include "dispatch.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <string.h>

#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), apply_to = function)
#define PK_LEVEL 2
#include "simd/all.h"
#pragma clang attribute pop

const pk_table pk_table_avx512 = {
#define KERNEL(result, name, parameters, arguments) .name = K(name),
#include "kernels.def"
#undef KERNEL
};
#endif
