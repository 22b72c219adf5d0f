// Micro-kernels of the own GEMM: a block of MR rows by NV vectors of C, kept in registers, from elements of A that
// are broadcast and vectors of B.

// The most rows of a block, for one and two vectors, with A by rows and by columns: what measured fastest among those
// that fit the registers.
#if PK_LEVEL == 2
#define MR_MAX 14
#define MR_ONE_ROWS 8
#define MR_ONE_COLUMNS 14
#define MR_TWO_ROWS 12
#define MR_TWO_COLUMNS 14
#elif PK_LEVEL == 1
#define MR_MAX 12
#define MR_ONE_ROWS 8
#define MR_ONE_COLUMNS 12
#define MR_TWO_ROWS 6
#define MR_TWO_COLUMNS 6
#else
#define MR_MAX 8
#define MR_ONE_ROWS 8
#define MR_ONE_COLUMNS 8
#define MR_TWO_ROWS 6
#define MR_TWO_COLUMNS 6
#endif

// Where a block of C goes: rows of `ldc`, `tail` valid elements in the last vector. And what to ask memory for
// meanwhile, a part of B's next panel: every 16 steps `aheadCount` lines (pairs of them if `aheadPairs`) that lie
// `aheadStride` bytes apart, and `aheadStep` bytes on.
typedef struct {
  float *c;
  size_t ldc, tail;
  float alpha, beta;
  const char *ahead;
  size_t aheadStride, aheadCount, aheadStep;
  bool aheadPairs;
} micro_target;

// How many elements ahead a packed A is asked for: it comes from a shared cache, in one sequence over all blocks.
enum { A_AHEAD = 256 };

typedef void (*micro_kernel)(size_t k, const float *a, size_t lda, const float *b, size_t ldb, const micro_target *t);

// Writes a block from its sums. Decisions are taken once for the block.
ALWAYS void finish(vf sum[MR_MAX][2], const micro_target *t, int mr, int nv) {
  float alpha = t->alpha, beta = t->beta;
  size_t ldc = t->ldc;
#define FOR_BLOCK(body)                                                \
  {                                                                    \
    float *c = t->c;                                                   \
    _Pragma("clang loop unroll(full)") for (int i = 0; i < mr; i++) {  \
      _Pragma("clang loop unroll(full)") for (int v = 0; v < nv; v++) body \
      c += ldc;                                                        \
    }                                                                  \
  }
  if (t->tail < VL) {
    size_t tail = t->tail;
    FOR_BLOCK({
      vf r = sum[i][v] * alpha;
      if (v == nv - 1) {
        if (beta != 0.0f) r += beta * loadn(c + v * VL, tail);
        storen(c + v * VL, r, tail);
      } else {
        if (beta != 0.0f) r += beta * load(c);
        store(c, r);
      }
    })
  } else if (beta == 0.0f) {
    FOR_BLOCK({ store(c + v * VL, sum[i][v] * alpha); })
  } else {
    FOR_BLOCK({ store(c + v * VL, beta * load(c + v * VL) + sum[i][v] * alpha); })
  }
}

// Elements of A: `byRows` a[i * lda + l], else a[l * lda + i], which packed panels are too. `packedB`: a row of B follows
// the one before; to know that saves a register, and with it a spill for the largest blocks.
ALWAYS void micro(size_t k, const float *a, size_t lda, const float *b, size_t ldb, const micro_target *t, int mr, int nv,
                  bool byRows, bool packedB) {
  if (packedB) ldb = (size_t)nv * VL;
  vf sum[MR_MAX][2];
#pragma clang loop unroll(full)
  for (int i = 0; i < mr; i++) sum[i][0] = sum[i][1] = (vf){};
  // Base pointers for `share` rows each, whose distance an index expresses; hidden from the optimiser, which would
  // compute them from each other again in every step. An index costs an operation of its own in each multiplication
  // with an element from memory, which only two vectors make up for.
  const int share = nv == 1 ? 1 : 3, bases = byRows ? (mr + share - 1) / share : 0;
  const float *base[MR_MAX];
#pragma clang loop unroll(full)
  for (int i = 0; i < bases; i++) {
    base[i] = a + (size_t)(i * share) * lda;
    __asm__("" : "+r"(base[i]));
  }
  // C is needed when the loop ends; ask for it now.
  if (k >= 64) {
#pragma clang loop unroll(full)
    for (int i = 0; i < mr; i++) {
      __builtin_prefetch(t->c + (size_t)i * t->ldc, 1);
      if (nv == 2) __builtin_prefetch(t->c + (size_t)i * t->ldc + VL + VL - 1, 1);
    }
  }
  // B comes from the second-level cache, or from distant rows in place.
#define MICRO_STEP(at)                                                                  \
  {                                                                                     \
    vf b0 = load(b), b1 = nv == 2 ? load(b + VL) : b0;                                  \
    if (nv == 2 || !byRows) {                                                           \
      __builtin_prefetch(b + 8 * ldb);                                                 \
      if (nv == 2) __builtin_prefetch(b + 8 * ldb + VL);                               \
    }                                                                                   \
    b += ldb;                                                                           \
    _Pragma("clang loop unroll(full)") for (int i = 0; i < mr; i++) {                   \
      vf x = splat(byRows ? base[i / share][(size_t)(i % share) * lda + at] : a[i]);            \
      sum[i][0] += x * b0;                                                              \
      if (nv == 2) sum[i][1] += x * b1;                                                 \
    }                                                                                   \
    if (!byRows) {                                                                      \
      __builtin_prefetch(a + A_AHEAD);                                                  \
      a += lda;                                                                         \
    }                                                                                   \
  }
#define MICRO_ADVANCE(by) \
  _Pragma("clang loop unroll(full)") for (int i = 0; i < bases; i++) base[i] += by;
  size_t l = 0;
  const char *ahead = t->ahead;
  for (; l + 4 <= k; l += 4) {
    if (l % 16 == 0 && t->aheadCount) {
      for (size_t i = 0; i < t->aheadCount; i++) __builtin_prefetch(ahead + i * t->aheadStride, 0, 2);
      if (t->aheadPairs)
        for (size_t i = 0; i < t->aheadCount; i++) __builtin_prefetch(ahead + i * t->aheadStride + 64, 0, 2);
      ahead += t->aheadStep;
    }
    MICRO_STEP(0)
    MICRO_STEP(1)
    MICRO_STEP(2)
    MICRO_STEP(3)
    if (byRows) {
      MICRO_ADVANCE(4)
    }
  }
  for (; l < k; l++) {
    MICRO_STEP(0)
    if (byRows) {
      MICRO_ADVANCE(1)
    }
  }
  finish(sum, t, mr, nv);
}

#define MICRO(mr, nv, form, byRows, packedB)                                                                                \
  static void K(micro_##mr##_##nv##_##form)(size_t k, const float *a, size_t lda, const float *b, size_t ldb,              \
                                            const micro_target *t) {                                                        \
    micro(k, a, lda, b, ldb, t, mr, nv, byRows, packedB);                                                                   \
  }
#define MICRO_FORMS(mr, nv) \
  MICRO(mr, nv, rows, true, false) MICRO(mr, nv, columns, false, false) MICRO(mr, nv, packed, true, true)
#define ENTRY(mr, nv) {K(micro_##mr##_##nv##_rows), K(micro_##mr##_##nv##_columns), K(micro_##mr##_##nv##_packed)},

#define UP_TO_6(X, nv) X(1, nv) X(2, nv) X(3, nv) X(4, nv) X(5, nv) X(6, nv)
#define UP_TO_8(X, nv) UP_TO_6(X, nv) X(7, nv) X(8, nv)
#define UP_TO_12(X, nv) UP_TO_8(X, nv) X(9, nv) X(10, nv) X(11, nv) X(12, nv)
#define UP_TO_14(X, nv) UP_TO_12(X, nv) X(13, nv) X(14, nv)
#if PK_LEVEL == 2
#define UP_TO_ONE UP_TO_14
#define UP_TO_TWO UP_TO_14
#elif PK_LEVEL == 1
#define UP_TO_ONE UP_TO_12
#define UP_TO_TWO UP_TO_6
#else
#define UP_TO_ONE UP_TO_8
#define UP_TO_TWO UP_TO_6
#endif

UP_TO_ONE(MICRO_FORMS, 1)
UP_TO_TWO(MICRO_FORMS, 2)

// [rows - 1][0: A by rows, 1: A by columns, 2: A by rows and B packed]
static const micro_kernel K(micro_one)[MR_MAX][3] = {UP_TO_ONE(ENTRY, 1)};
static const micro_kernel K(micro_two)[MR_MAX][3] = {UP_TO_TWO(ENTRY, 2)};

#if PK_LEVEL == 2
// For at most eight columns: one vector holds B's columns for two values of l, interleaved, and meets pairs of
// elements of A, so that no lane idles. `k` is even; a last odd element is the caller's.
ALWAYS void micro_pair(size_t k, const float *a, size_t lda, const float *b, const micro_target *t, int mr) {
  vf sum[MR_MAX][2];
#pragma clang loop unroll(full)
  for (int i = 0; i < mr; i++) sum[i][0] = (vf){};
  const int bases = (mr + 2) / 3;
  const float *base[(MR_MAX + 2) / 3];
#pragma clang loop unroll(full)
  for (int i = 0; i < bases; i++) {
    base[i] = a + (size_t)i * 3 * lda;
    __asm__("" : "+r"(base[i]));
  }
#define PAIR_STEP(at)                                                        \
  {                                                                          \
    vf y = load(b);                                                          \
    b += VL;                                                                 \
    _Pragma("clang loop unroll(full)") for (int i = 0; i < mr; i++) {        \
      double pair;                                                           \
      memcpy(&pair, base[i / 3] + (size_t)(i % 3) * lda + at, sizeof pair);  \
      sum[i][0] += (vf)_mm512_set1_pd(pair) * y;                                \
    }                                                                        \
  }
  size_t l = 0;
  for (; l + 4 <= k; l += 4) {
    PAIR_STEP(0)
    PAIR_STEP(2)
    MICRO_ADVANCE(4)
  }
  if (l < k) PAIR_STEP(0)
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 0, 2, 4, 6, 8, 10, 12, 14);
  const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 1, 3, 5, 7, 9, 11, 13, 15);
#pragma clang loop unroll(full)
  for (int i = 0; i < mr; i++) {
    sum[i][0] = (vf)_mm512_permutexvar_ps(even, (__m512)sum[i][0]) + (vf)_mm512_permutexvar_ps(odd, (__m512)sum[i][0]);
  }
  finish(sum, t, mr, 1);
}

#define MICRO_PAIR(mr, nv)                                                                                                  \
  static void K(micro_pair_##mr)(size_t k, const float *a, size_t lda, const float *b, size_t ldb, const micro_target *t) { \
    (void)ldb;                                                                                                              \
    micro_pair(k, a, lda, b, t, mr);                                                                                        \
  }
#define PAIR_ENTRY(mr, nv) K(micro_pair_##mr),
UP_TO_8(MICRO_PAIR, 0)
static const micro_kernel K(micro_pairs)[8] = {UP_TO_8(PAIR_ENTRY, 0)};
#endif
