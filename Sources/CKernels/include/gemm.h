// Dense GEMM: oneDNN and OpenBLAS behind one row-major interface.

#ifndef CKERNELS_GEMM_H
#define CKERNELS_GEMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#pragma clang assume_nonnull begin

typedef enum { PK_ONEDNN = 0, PK_OPENBLAS = 1 } pk_gemm_backend;

/// Whether this build has oneDNN.
bool pk_has_onednn(void);

/// C[m,n] = alpha op(A)[m,k] op(B)[k,n] + beta C, row-major, f32; false when the library refused.
bool pk_sgemm(pk_gemm_backend backend, bool ta, bool tb, size_t m, size_t n, size_t k, float alpha, const float *a, size_t lda,
              const float *b, size_t ldb, float beta, float *c, size_t ldc);

/// C[m,n] (f32) = op(A) op(B) (bf16) + (accumulate ? C : 0) on oneDNN; false when it cannot.
bool pk_gemm_bf16(bool ta, bool tb, size_t m, size_t n, size_t k, const uint16_t *a, size_t lda, const uint16_t *b, size_t ldb,
                  bool accumulate, float *c, size_t ldc);

#pragma clang assume_nonnull end

#endif
