// The kernels for any machine: four lanes, which is SSE2 on x86-64 and NEON on 64-bit ARM.

#include "dispatch.h"

#define PK_LEVEL 0
#include "simd/all.h"

const pk_table pk_table_portable = {
#define KERNEL(result, name, parameters, arguments) .name = K(name),
#include "kernels.def"
#undef KERNEL
};
