// C kernels of swift-peft: one source for every instruction set, chosen once at run time.
//
// Every function that kernels.def lists runs on the calling thread, over the part that its arguments
// name; splitting the work over threads is the caller's business (see pk_parallel). Pointers may have
// any alignment that their element type allows.

#ifndef CKERNELS_H
#define CKERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gemm.h"
#include "lapack.h"
#include "parallel.h"
#include "windows.h"

#pragma clang assume_nonnull begin

/// The instruction sets that kernels are compiled for, in rising order.
typedef enum { PK_PORTABLE = 0, PK_AVX2 = 1, PK_AVX512 = 2 } pk_isa;

/// The best level of this machine that PEFT_ISA (portable, avx2, avx512) allows.
pk_isa pk_isa_supported(void);
/// The level in use.
pk_isa pk_isa_current(void);
/// Chooses a level; one above the machine's is lowered to it. Not to be called while kernels run.
void pk_isa_limit(pk_isa level);
/// Whether the processor has AVX-512 VNNI; AVX-512 BF16.
bool pk_has_vnni(void);
bool pk_has_bf16(void);

/// Asks for huge pages for a range of memory, where the system has them.
void pk_advise_huge(void *address, size_t bytes);

/// The CRC-32 of zip files (reflected polynomial 0xedb88320).
uint32_t pk_crc32(const uint8_t *bytes, size_t count);

/// A position in a Philox4x32-10 stream.
typedef struct {
  uint64_t seed, stream;
} pk_random;

/// One attention problem over packed sequences; see Attention in BLASKernels for the shapes.
typedef struct {
  const float *q, *k, *v;
  const uint8_t *_Nullable keyMask;
  const float *_Nullable out, *_Nullable lse, *_Nullable dout;
  float *_Nullable outMutable, *_Nullable lseMutable;
  float *_Nullable dq;
  size_t tokens, heads, kvHeads, headDim;
  size_t ldq, ldk, ldv, ldo;
  float scale;
  bool causal;
  float dropout;
  pk_random random;
} pk_attention;

enum { PK_ATTENTION_DEPTH = 256 };

/// The floats of scratch for the attention kernels.
static inline size_t pk_attention_scratch(size_t keys, size_t headDim) {
  return 32 * (2 * keys + 3 * headDim + PK_ATTENTION_DEPTH);
}

/// One sequence of a problem: its rows of q and of k and v.
typedef struct {
  size_t query, queryCount, key, keyCount;
  // Where this sequence's scores start in the dropout stream; a multiple of 64.
  uint64_t dropoutOffset;
} pk_sequence;

#pragma clang assume_nonnull end

#define KERNEL(result, name, parameters, arguments) result pk_##name parameters;
#include "kernels.def"
#undef KERNEL

#endif
