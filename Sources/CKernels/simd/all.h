// Everything that is compiled once for each instruction set.

// clang-format off
#include "vector.h"
#include "functions.h"
#include "elementwise.h"
#include "transpose.h"
#include "rows.h"
#include "loss.h"
#include "norms.h"
#include "random.h"
#include "gemv.h"
#include "lowrank.h"
#include "gemm_micro.h"
#include "gemm.h"
#include "gemm_stream.h"
#include "attention.h"
// clang-format on
