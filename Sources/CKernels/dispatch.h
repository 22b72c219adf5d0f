// One table of kernels for each instruction set.

#ifndef CKERNELS_DISPATCH_H
#define CKERNELS_DISPATCH_H

#include "CKernels.h"

typedef struct {
#define KERNEL(result, name, parameters, arguments) result(*name) parameters;
#include "kernels.def"
#undef KERNEL
} pk_table;

extern const pk_table pk_table_portable, pk_table_avx2, pk_table_avx512;

#endif
