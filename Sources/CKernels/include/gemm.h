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

typedef enum { PK_F32 = 0, PK_BF16 = 1, PK_F16 = 2 } pk_format;

enum { PK_GEMM_KC = 512, PK_GEMM_MC = 256 };

/// The most floats of a B, padded to whole panels, that is packed as a whole and stays in the cache.
enum { PK_GEMM_FLAT = 1 << 16 };

/// C[m,n] = alpha op(A)[m,k] op(B)[k,n] + beta C, with B in f32, bf16 or f16; all extents positive.
typedef struct {
  const float *a;
  const void *b;
  float *c;
  size_t m, n, k, lda, ldb, ldc;
  float alpha, beta;
  bool ta, tb;
  pk_format format;
} pk_gemm_task;

/// The floats of scratch that pk_gemm needs.
enum { PK_GEMM_SCRATCH = PK_GEMM_KC * (PK_GEMM_MC + 32) };

/// The most rows of A, and the most of the summed extent, that pk_gemm_stream takes at once.
enum { PK_STREAM_ROWS = 256, PK_STREAM_KC = 256 };
/// The blocks of the summed extent that A is packed in.
static inline size_t pk_gemm_stream_blocks(size_t k) { return (k + PK_STREAM_KC - 1) / PK_STREAM_KC; }
/// The floats of a packed A: rows are padded to whole vectors.
static inline size_t pk_gemm_stream_packed(size_t m, size_t k) { return (m + 31) / 32 * 32 * k; }

#pragma clang assume_nonnull end

#endif
