// Products of some hundred rows with a large B, a weight: B is read in place, once, and the lines of its next block are
// asked for while the present one is multiplied. A is small beside it and is packed beforehand, for all threads.
//
// B stored transposed (rows along l): elements of B are broadcast and meet vectors of A^T; the result is C^T, which is
// gathered for a group of rows of B and then transposed. B stored plainly: vectors of B meet elements of A.

enum { STREAM_GROUP = 8 * MR_TWO_COLUMNS };

ALWAYS size_t stream_start(size_t k, size_t block) { return block_start(k, pk_gemm_stream_blocks(k), block); }

// Rows of A in whole vectors.
ALWAYS size_t stream_rows(size_t m) { return (m + VL - 1) / VL * VL; }

ALWAYS size_t stream_row_blocks(size_t m) { return (m + MR_TWO_COLUMNS - 1) / MR_TWO_COLUMNS; }

// Whether the last panel of A^T has at most eight columns and is packed in pairs, which leave no lane idle: such rows
// come along with others where a norm needs A W^T.
ALWAYS bool stream_pairs(const pk_gemm_task *t) {
  size_t last = t->m % (2 * VL);
  return PK_LEVEL == 2 && last > 0 && last <= 8 && t->k % (2 * pk_gemm_stream_blocks(t->k)) == 0;
}

// A in the place of B, transposed.
ALWAYS pk_gemm_task stream_swapped(const pk_gemm_task *t) {
  pk_gemm_task s = *t;
  s.b = t->a;
  s.ldb = t->lda;
  s.tb = true;
  return s;
}

// Blocks of l one after the other; in each, panels of A^T, or blocks of rows of A.
static void K(gemm_stream_pack)(const pk_gemm_task *t, size_t block, float *packed) {
  size_t l0 = stream_start(t->k, block), kc = stream_start(t->k, block + 1) - l0;
  if (!t->tb) {
    pack_rows(t, 0, t->m, l0, kc, stream_row_blocks(t->m), packed + t->m * l0);
    return;
  }
  pk_gemm_task s = stream_swapped(t);
  float *y = packed + stream_rows(t->m) * l0;
  for (size_t i = 0; i < t->m; i += 2 * VL) {
    size_t left = t->m - i;
    int nv = left > VL ? 2 : 1;
#if PK_LEVEL == 2
    if (left < 2 * VL && stream_pairs(t)) {
      pack_pairs(t->a + i * t->lda + l0, t->lda, 1, left, kc, y);
      return;
    }
#endif
    K(pack_f32)(&s, l0, kc, i, left < 2 * VL ? left : 2 * VL, nv, y);
    y += kc * (size_t)nv * VL;
  }
}

// Rows of B at a distance that maps them to the same sets of the first-level cache are copied.
ALWAYS bool stream_copies(const pk_gemm_task *t) { return t->ldb % 512 == 0; }

#if PK_LEVEL == 2
// A block of rows of B by a panel in pairs, in halves, as micro_pair takes fewer rows.
ALWAYS void stream_pair_block(size_t mr, size_t kc, const float *b, size_t ldb, const float *a, const micro_target *t) {
  micro_target half = *t;
  size_t first = (mr + 1) / 2;
  K(micro_pairs)[first - 1](kc, b, ldb, a, 0, &half);
  if (first == mr) return;
  half.c += first * half.ldc;
  K(micro_pairs)[mr - first - 1](kc, b + first * ldb, ldb, a, 0, &half);
}
#endif

static void stream_transposed(const pk_gemm_task *t, const float *packed, float *scratch) {
  size_t m = stream_rows(t->m), n = t->n, k = t->k, blocks = pk_gemm_stream_blocks(k), panels = (m + 2 * VL - 1) / (2 * VL);
  float *sums = scratch, *copy = scratch + STREAM_GROUP * m;
  bool copies = stream_copies(t), pairs = stream_pairs(t);
  for (size_t j = 0; j < n; j += STREAM_GROUP) {
    size_t rows = n - j < STREAM_GROUP ? n - j : STREAM_GROUP;
    for (size_t block = 0; block < blocks; block++) {
      size_t l0 = stream_start(k, block), kc = stream_start(k, block + 1) - l0;
      for (size_t i = 0; i < rows; i += MR_TWO_COLUMNS) {
        size_t mr = rows - i < MR_TWO_COLUMNS ? rows - i : MR_TWO_COLUMNS, ldb = t->ldb;
        const float *b = (const float *)t->b + (j + i) * ldb + l0, *a = packed + m * l0;
        // The block after this one, a few of its rows in each panel that asks for them.
        const float *next = NULL;
        if (i + mr < rows)
          next = b + mr * ldb;
        else if (block + 1 < blocks)
          next = (const float *)t->b + j * ldb + l0 + kc;
        else if (j + rows < n)
          next = (const float *)t->b + (j + rows) * ldb;
        size_t asking = panels > 1 ? panels - pairs : 1, share = (MR_TWO_COLUMNS + asking - 1) / asking;
        if (copies) {
          for (size_t r = 0; r < mr; r++)
            for (size_t l = 0; l < kc; l += VL) {
              size_t left = kc - l < VL ? kc - l : VL;
              storen(copy + r * (PK_STREAM_KC + VL) + l, loadn(b + r * ldb + l, left), left);
            }
          b = copy;
          ldb = PK_STREAM_KC + VL;
        }
        for (size_t p = 0; p < panels; p++) {
          int nv = m - p * 2 * VL > VL ? 2 : 1;
          micro_target target = {.c = sums + i * m + p * 2 * VL, .ldc = m, .tail = VL, .alpha = 1.0f, .beta = block == 0 ? 0.0f : 1.0f};
          if (next && p * share < MR_TWO_COLUMNS) {
            target.ahead = (const char *)(next + p * share * t->ldb);
            target.aheadStride = t->ldb * sizeof(float);
            target.aheadCount = MR_TWO_COLUMNS - p * share < share ? MR_TWO_COLUMNS - p * share : share;
            target.aheadStep = 16 * sizeof(float);
          }
#if PK_LEVEL == 2
          if (pairs && p + 1 == panels) {
            target.tail = t->m - p * 2 * VL;
            stream_pair_block(mr, kc, b, ldb, a, &target);
            break;
          }
#endif
          (nv == 1 ? K(micro_one) : K(micro_two))[mr - 1][2](kc, b, ldb, a, (size_t)nv * VL, &target);
          a += kc * (size_t)nv * VL;
        }
      }
    }
    for (size_t i = 0; i < t->m; i += VL) store_transposed(t, sums + i, m, i, t->m - i, j, rows);
  }
}

static void stream_plain(const pk_gemm_task *t, const float *packed, float *scratch) {
  size_t m = t->m, n = t->n, k = t->k, blocks = pk_gemm_stream_blocks(k), rowBlocks = stream_row_blocks(m);
  bool copies = stream_copies(t);
  for (size_t block = 0; block < blocks; block++) {
    size_t l0 = stream_start(k, block), kc = stream_start(k, block + 1) - l0;
    for (size_t j = 0; j < n; j += 2 * VL) {
      size_t width = n - j < 2 * VL ? n - j : 2 * VL, ldb = t->ldb;
      int nv = width > VL ? 2 : 1;
      const float *b = (const float *)t->b + l0 * ldb + j, *next = NULL;
      if (j + width < n)
        next = b + width;
      else if (block + 1 < blocks)
        next = (const float *)t->b + (l0 + kc) * ldb;
      if (copies || width < (size_t)nv * VL) {
        K(pack_f32)(t, l0, kc, j, width, nv, scratch);
        b = scratch;
        ldb = (size_t)nv * VL;
      }
      // Rows of the next panel for each block of rows.
      size_t share = (kc + rowBlocks - 1) / rowBlocks, steps = (kc + 15) / 16;
      for (size_t i = 0; i < rowBlocks; i++) {
        size_t from = block_start(m, rowBlocks, i), mr = block_start(m, rowBlocks, i + 1) - from;
        micro_target target = {.c = t->c + from * t->ldc + j, .ldc = t->ldc, .tail = width - (size_t)(nv - 1) * VL,
                               .alpha = t->alpha, .beta = block == 0 ? t->beta : 1.0f};
        if (next && i * share < kc) {
          target.ahead = (const char *)(next + i * share * t->ldb);
          target.aheadStride = t->ldb * sizeof(float);
          target.aheadCount = (share + steps - 1) / steps;
          target.aheadStep = target.aheadCount * target.aheadStride;
          target.aheadPairs = VL > 8;
        }
        (nv == 1 ? K(micro_one) : K(micro_two))[mr - 1][1](kc, packed + m * l0 + from * kc, mr, b, ldb, &target);
      }
    }
  }
}

static void K(gemm_stream)(const pk_gemm_task *t, const float *packed, float *scratch) {
  if (t->tb)
    stream_transposed(t, packed, scratch);
  else
    stream_plain(t, packed, scratch);
}
