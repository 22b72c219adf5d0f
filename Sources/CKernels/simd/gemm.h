// The own GEMM: for narrow and small products, where the libraries are slow, and for weights in 16-bit formats,
// which are widened while they are packed.
//
// Loops, outside in: blocks of l (kc), blocks of rows (mc, packed into the second-level cache where they are used
// often), panels of one or two vectors of columns (packed, or read in place), blocks of MR rows. So a panel of B is
// read from memory and packed once for each mc rows and used at once.

// The largest blocks; the scratch holds one of A and one panel of B (see PK_GEMM_SCRATCH).
enum { GEMM_KC = PK_GEMM_KC, GEMM_MC = PK_GEMM_MC };

ALWAYS vf load_format(const void *b, size_t at, pk_format format) {
  switch (format) {
    case PK_BF16: return load_bf16((const uint16_t *)b + at);
    case PK_F16: return load_f16((const uint16_t *)b + at);
    default: return load((const float *)b + at);
  }
}

ALWAYS vf loadn_format(const void *b, size_t at, size_t n, pk_format format) {
  switch (format) {
    case PK_BF16: return from_bf16(loadn_half((const uint16_t *)b + at, n));
    case PK_F16: return from_f16(loadn_half((const uint16_t *)b + at, n));
    default: return loadn((const float *)b + at, n);
  }
}

// How far ahead packing asks for a row: rows are too many for the processor to do so by itself.
enum { PACK_AHEAD = 256 };

// Packs op(B)[l0 ..., j0 ...] into rows of nv vectors. Lanes past n hold anything: their sums go nowhere.
ALWAYS void pack_panel(const pk_gemm_task *t, size_t l0, size_t kc, size_t j0, size_t n, int nv, float *y, pk_format format) {
  size_t width = (size_t)nv * VL, ld = t->ldb;
  if (!t->tb) {
    for (size_t l = 0; l < kc; l++)
      for (int v = 0; v < nv; v++) {
        size_t at = (l0 + l) * ld + j0 + (size_t)v * VL, left = n > (size_t)v * VL ? n - (size_t)v * VL : 0;
        store(y + l * width + (size_t)v * VL,
              left >= VL ? load_format(t->b, at, format) : left ? loadn_format(t->b, at, left, format) : (vf){});
      }
    return;
  }
  size_t size = format == PK_F32 ? 4 : 2;
  for (size_t j = 0; j < width; j += VL) {
    size_t row[VL];
    FOR_SQUARE(r) row[r] = (j0 + (j + r < n ? j + r : n - 1)) * ld + l0;
    float *to = y + j;
    size_t l = 0;
    for (; l + VL <= kc; l += VL, to += VL * width) {
      vf square[VL];
      FOR_SQUARE(r) {
        square[r] = load_format(t->b, row[r] + l, format);
        __builtin_prefetch((const char *)t->b + (row[r] + l) * size + PACK_AHEAD);
      }
      transpose_square(square);
      FOR_SQUARE(r) store(to + r * width, square[r]);
    }
    if (l < kc) {
      vf square[VL];
      FOR_SQUARE(r) square[r] = loadn_format(t->b, row[r] + l, kc - l, format);
      transpose_square(square);
      FOR_SQUARE(r) if (r < kc - l) store(to + r * width, square[r]);
    }
  }
}

static void K(pack_f32)(const pk_gemm_task *t, size_t l0, size_t kc, size_t j0, size_t n, int nv, float *y) {
  pack_panel(t, l0, kc, j0, n, nv, y, PK_F32);
}
static void K(pack_bf16)(const pk_gemm_task *t, size_t l0, size_t kc, size_t j0, size_t n, int nv, float *y) {
  pack_panel(t, l0, kc, j0, n, nv, y, PK_BF16);
}
static void K(pack_f16)(const pk_gemm_task *t, size_t l0, size_t kc, size_t j0, size_t n, int nv, float *y) {
  pack_panel(t, l0, kc, j0, n, nv, y, PK_F16);
}

static void pack_any(const pk_gemm_task *t, size_t l0, size_t kc, size_t j0, size_t n, int nv, float *y) {
  switch (t->format) {
    case PK_BF16: K(pack_bf16)(t, l0, kc, j0, n, nv, y); break;
    case PK_F16: K(pack_f16)(t, l0, kc, j0, n, nv, y); break;
    default: K(pack_f32)(t, l0, kc, j0, n, nv, y); break;
  }
}

// Rows are cut into blocks of nearly equal size, at most `most`.
ALWAYS size_t block_start(size_t rows, size_t blocks, size_t i) { return rows * i / blocks; }

// Packs up to VL rows of A into a block whose rows for each l are `ld` apart. `overlaps`: whole vectors are written, as what
// they put beyond the rows is written over by those that follow.
ALWAYS void pack_block(const float *a, size_t lda, size_t rows, size_t kc, size_t ld, bool overlaps, float *y) {
  size_t count = rows < VL ? rows : VL, end = kc * ld;
  const float *row[VL];
  FOR_SQUARE(r) row[r] = a + (r < count ? r : count - 1) * lda;
  for (size_t l = 0; l < kc; l += VL) {
    size_t steps = kc - l < VL ? kc - l : VL;
    float *to = y + l * ld;
    vf square[VL];
    if (steps == VL) {
      FOR_SQUARE(r) {
        square[r] = load(row[r] + l);
        __builtin_prefetch((const char *)(row[r] + l) + PACK_AHEAD);
      }
    } else {
      FOR_SQUARE(r) square[r] = loadn(row[r] + l, steps);
    }
    transpose_square(square);
    if (overlaps && steps == VL && (l + VL - 1) * ld + VL <= end) {
      FOR_SQUARE(r) store(to + r * ld, square[r]);
    } else {
      FOR_SQUARE(r) if (r < steps) storen(to + r * ld, square[r], count);
    }
  }
}

// Packs rows [i0, i0 + rows) of op(A), each block's elements side by side for every l.
static void pack_rows(const pk_gemm_task *t, size_t i0, size_t rows, size_t l0, size_t kc, size_t blocks, float *y) {
  for (size_t b = 0; b < blocks; b++) {
    size_t from = block_start(rows, blocks, b), mr = block_start(rows, blocks, b + 1) - from;
    if (t->ta) {
      const float *a = t->a + l0 * t->lda + i0 + from;
      for (size_t l = 0; l < kc; l++, a += t->lda, y += mr)
        for (size_t i = 0; i < mr; i += VL) storen(y + i, loadn(a + i, mr - i < VL ? mr - i : VL), mr - i < VL ? mr - i : VL);
    } else {
      for (size_t i = 0; i < mr; i += VL) pack_block(t->a + (i0 + from + i) * t->lda + l0, t->lda, mr - i, kc, mr, i == 0, y + i);
      y += kc * mr;
    }
  }
}

// One block of rows by one panel.
ALWAYS void run_block(const pk_gemm_task *t, const float *packedA, size_t i, size_t mr, size_t l0, size_t kc, const float *b,
                      size_t ldb, int nv, const micro_target *target) {
  const micro_kernel *kernel = nv == 1 ? K(micro_one)[mr - 1] : K(micro_two)[mr - 1];
  if (packedA)
    kernel[1](kc, packedA, mr, b, ldb, target);
  else if (t->ta)
    kernel[1](kc, t->a + l0 * t->lda + i, t->lda, b, ldb, target);
  else
    kernel[0](kc, t->a + i * t->lda + l0, t->lda, b, ldb, target);
}

ALWAYS size_t most_rows(bool byColumns, int nv) {
  if (byColumns) return nv == 1 ? MR_ONE_COLUMNS : MR_TWO_COLUMNS;
  return nv == 1 ? MR_ONE_ROWS : MR_TWO_ROWS;
}

static void gemm_general(const pk_gemm_task *t, float *scratch) {
  size_t m = t->m, n = t->n, k = t->k;
  float *packedB = scratch, *packedA = scratch + GEMM_KC * 2 * VL;
  // Rows of A are read in place, unless their distance maps them to the same sets of the first-level cache;
  // columns are packed when several panels use them.
  bool packs = t->ta ? n > 4 * VL : n > 2 * VL && t->lda % 1024 == 0;
  // B in place costs a pass over distant rows for each block of rows.
  bool inPlace = !t->tb && t->format == PK_F32 && m <= 2 * MR_TWO_ROWS;
  // Rows in place may spill over the second-level cache a little: packing B once more costs more.
  size_t mc = packs ? GEMM_MC : 2 * GEMM_MC;
  size_t kBlocks = (k + GEMM_KC - 1) / GEMM_KC, mBlocks = (m + mc - 1) / mc;
  // A large B comes from memory.
  size_t size = t->format == PK_F32 ? 4 : 2;
  bool big = !inPlace && n * k * size > 1 << 17 && k >= 64;
  for (size_t kb = 0; kb < kBlocks; kb++) {
    size_t l0 = block_start(k, kBlocks, kb), kc = block_start(k, kBlocks, kb + 1) - l0;
    for (size_t mb = 0; mb < mBlocks; mb++) {
      size_t i0 = block_start(m, mBlocks, mb), rows = block_start(m, mBlocks, mb + 1) - i0;
      size_t packedBlocks = (rows + MR_TWO_COLUMNS - 1) / MR_TWO_COLUMNS;
      if (packs) pack_rows(t, i0, rows, l0, kc, packedBlocks, packedA);
      for (size_t j = 0; j < n;) {
        size_t left = n - j;
        int nv = left > VL ? 2 : 1;
        size_t width = left < (size_t)nv * VL ? left : (size_t)nv * VL;
        const float *b = packedB;
        size_t ldb = (size_t)nv * VL;
        if (inPlace && width == (size_t)nv * VL) {
          b = (const float *)t->b + l0 * t->ldb + j;
          ldb = t->ldb;
        } else {
          pack_any(t, l0, kc, j, width, nv, packedB);
        }
        size_t most = most_rows(t->ta, nv), blocks = packs ? packedBlocks : (rows + most - 1) / most;
        micro_target target = {
            .ldc = t->ldc, .tail = width - (size_t)(nv - 1) * VL, .alpha = t->alpha, .beta = kb == 0 ? t->beta : 1.0f};
        // The next panel, or the first one of the next block of l, spread over the blocks of rows.
        size_t nextJ = j + width < n ? j + width : 0, nextL = nextJ ? l0 : l0 + kc;
        size_t lines = (t->tb ? 2 * VL : kc / 16 * 16) / blocks + 1;
        bool ahead = big && nextL < k;
        if (ahead) {
          target.aheadStride = t->ldb * size;
          target.aheadCount = t->tb ? lines : (lines + kc / 16 - 1) / (kc / 16);
          target.aheadStep = t->tb ? 16 * size : target.aheadCount * target.aheadStride;
        }
        for (size_t block = 0; block < blocks; block++) {
          size_t from = block_start(rows, blocks, block), mr = block_start(rows, blocks, block + 1) - from;
          target.c = t->c + (i0 + from) * t->ldc + j;
          if (ahead) {
            size_t row = block * lines;
            if (row >= (t->tb ? 2 * VL : kc)) target.aheadCount = 0;
            target.ahead = (const char *)t->b + (t->tb ? (nextJ + row) * t->ldb + nextL : (nextL + row) * t->ldb + nextJ) * size;
          }
          run_block(t, packs ? packedA + from * kc : NULL, i0 + from, mr, l0, kc, b, ldb, nv, &target);
        }
        j += width;
      }
    }
  }
}

// A B that is packed as a whole stays in the cache, and C is written row by row.
static void gemm_flat(const pk_gemm_task *t, float *packed) {
  size_t m = t->m, n = t->n, k = t->k;
  float *y = packed;
  for (size_t j = 0; j < n; j += 2 * VL) {
    size_t left = n - j;
    int nv = left > VL ? 2 : 1;
    pack_any(t, 0, k, j, left < 2 * VL ? left : 2 * VL, nv, y);
    y += k * (size_t)nv * VL;
  }
  size_t most = most_rows(t->ta, n > VL ? 2 : 1), blocks = (m + most - 1) / most;
  for (size_t block = 0; block < blocks; block++) {
    size_t from = block_start(m, blocks, block), mr = block_start(m, blocks, block + 1) - from;
    const float *b = packed;
    for (size_t j = 0; j < n; j += 2 * VL) {
      size_t left = n - j;
      int nv = left > VL ? 2 : 1;
      size_t width = left < (size_t)nv * VL ? left : (size_t)nv * VL;
      micro_target target = {.c = t->c + from * t->ldc + j, .ldc = t->ldc, .tail = width - (size_t)(nv - 1) * VL,
                             .alpha = t->alpha, .beta = t->beta};
      run_block(t, NULL, from, mr, 0, k, b, (size_t)nv * VL, nv, &target);
      b += k * (size_t)nv * VL;
    }
  }
}

#if PK_LEVEL == 2
// Packs a column's elements, `perColumn` apart and `perStep` for one l, for micro_pair: of eight columns for two l at a
// time, zero past n and past kc.
ALWAYS void pack_pairs(const float *b, size_t perColumn, size_t perStep, size_t n, size_t kc, float *y) {
  if (n < 8) memset(y, 0, (kc + 1) / 2 * 16 * sizeof(float));
  for (size_t l = 0; l < kc; l++)
    for (size_t j = 0; j < n; j++) y[(l & ~(size_t)1) * 8 + 2 * j + (l & 1)] = b[j * perColumn + l * perStep];
}

// At most eight columns, A by rows: see micro_pair.
static void gemm_pairs(const pk_gemm_task *t, float *packed) {
  size_t n = t->n;
  const float *b = t->b;
  size_t kBlocks = (t->k + GEMM_KC - 1) / GEMM_KC;
  for (size_t kb = 0; kb < kBlocks; kb++) {
    size_t l0 = block_start(t->k, kBlocks, kb), kc = block_start(t->k, kBlocks, kb + 1) - l0, even = kc & ~(size_t)1;
    if (t->tb)
      pack_pairs(b + l0, t->ldb, 1, n, kc, packed);
    else
      pack_pairs(b + l0 * t->ldb, 1, t->ldb, n, kc, packed);
    size_t blocks = (t->m + 7) / 8;
    micro_target target = {.ldc = t->ldc, .tail = n, .alpha = t->alpha, .beta = kb == 0 ? t->beta : 1.0f};
    for (size_t block = 0; block < blocks; block++) {
      size_t from = block_start(t->m, blocks, block), mr = block_start(t->m, blocks, block + 1) - from;
      const float *a = t->a + from * t->lda + l0;
      target.c = t->c + from * t->ldc;
      K(micro_pairs)[mr - 1](even, a, t->lda, packed, 0, &target);
      if (even < kc)
        for (size_t i = 0; i < mr; i++)
          for (size_t j = 0; j < n; j++) target.c[i * t->ldc + j] += t->alpha * a[i * t->lda + even] * packed[even * 8 + 2 * j];
    }
  }
}
#endif

// Writes rows [i, i + VL) of C, of which `rows` are left, and its columns [j, j + columns) from a block of C^T.
static void store_transposed(const pk_gemm_task *t, const float *block, size_t ld, size_t i, size_t rows, size_t j, size_t columns) {
  float alpha = t->alpha, beta = t->beta;
  for (size_t at = 0; at < columns; at += VL) {
    size_t width = columns - at < VL ? columns - at : VL;
    float *c = t->c + i * t->ldc + j + at;
    vf square[VL];
    FOR_SQUARE(v) square[v] = load(block + (at + (v < width ? v : width - 1)) * ld) * alpha;
    transpose_square(square);
    if (width == VL && rows >= VL) {
      FOR_SQUARE(v) {
        store(c + v * t->ldc, beta == 0.0f ? square[v] : square[v] + beta * load(c + v * t->ldc));
        __builtin_prefetch(c + v * t->ldc + 2 * VL, 1);
      }
    } else {
      FOR_SQUARE(v) if (v < rows) {
        storen(c + v * t->ldc, beta == 0.0f ? square[v] : square[v] + beta * loadn(c + v * t->ldc, width), width);
      }
    }
  }
}

// A stored transposed, few columns: C^T = B^T A is a product of few rows whose long side lies well in memory.
static void gemm_swapped(const pk_gemm_task *t, float *scratch) {
  // Blocks of C^T, which then go to C.
  enum { WIDTH = 256 };
  float *block = scratch + PK_GEMM_SCRATCH - WIDTH * 16;
  for (size_t i = 0; i < t->m; i += WIDTH) {
    size_t rows = t->m - i < WIDTH ? t->m - i : WIDTH;
    pk_gemm_task s = {.a = t->b, .b = t->a + i, .c = block, .m = t->n, .n = rows, .k = t->k, .lda = t->ldb, .ldb = t->lda,
                      .ldc = WIDTH, .alpha = 1.0f, .beta = 0.0f, .ta = !t->tb, .tb = false, .format = PK_F32};
    gemm_general(&s, scratch);
    for (size_t r = 0; r < rows; r += VL) store_transposed(t, block + r, WIDTH, i + r, rows - r, 0, t->n);
  }
}

// Few rows, B stored transposed: products of rows, along which the vectors run.
ALWAYS void dot_block(const pk_gemm_task *t, size_t i, size_t j, int rows, int columns, pk_format format) {
  vf sum[4][4];
#pragma clang loop unroll(full)
  for (int r = 0; r < rows; r++)
#pragma clang loop unroll(full)
    for (int c = 0; c < columns; c++) sum[r][c] = (vf){};
  const float *a = t->a + i * t->lda;
  size_t at = j * t->ldb, l = 0;
#define DOT_STEP(LOADA, LOADB, ...)                                                        \
  {                                                                                        \
    vf x[4], y;                                                                            \
    _Pragma("clang loop unroll(full)") for (int r = 0; r < rows; r++)                      \
        x[r] = LOADA(a + (size_t)r * t->lda + l __VA_ARGS__);                              \
    _Pragma("clang loop unroll(full)") for (int c = 0; c < columns; c++) {                 \
      y = LOADB(t->b, at + (size_t)c * t->ldb + l __VA_ARGS__, format);                    \
      _Pragma("clang loop unroll(full)") for (int r = 0; r < rows; r++) sum[r][c] += x[r] * y; \
    }                                                                                      \
  }
  for (; l + VL <= t->k; l += VL) DOT_STEP(load, load_format)
  if (l < t->k) DOT_STEP(loadn, loadn_format, , t->k - l)
#pragma clang loop unroll(full)
  for (int r = 0; r < rows; r++)
#pragma clang loop unroll(full)
    for (int c = 0; c < columns; c++) {
      float *y = t->c + (i + (size_t)r) * t->ldc + j + (size_t)c, v = t->alpha * hsum(sum[r][c]);
      *y = t->beta == 0.0f ? v : v + t->beta * *y;
    }
}

ALWAYS void dot_rows(const pk_gemm_task *t, size_t j, int columns, pk_format format) {
  size_t i = 0;
  for (; i + 4 <= t->m; i += 4) dot_block(t, i, j, 4, columns, format);
  if (t->m - i == 3) dot_block(t, i, j, 3, columns, format);
  if (t->m - i == 2) dot_block(t, i, j, 2, columns, format);
  if (t->m - i == 1) dot_block(t, i, j, 1, columns, format);
}

#define GEMM_DOTS(name, format)                                      \
  static void name(const pk_gemm_task *t) {                          \
    size_t j = 0;                                                    \
    for (; j + 4 <= t->n; j += 4) dot_rows(t, j, 4, format);         \
    for (; j < t->n; j++) dot_rows(t, j, 1, format);                 \
  }
GEMM_DOTS(gemm_dots_f32, PK_F32)
GEMM_DOTS(gemm_dots_bf16, PK_BF16)
GEMM_DOTS(gemm_dots_f16, PK_F16)

static void K(gemm)(const pk_gemm_task *t, float *scratch) {
  if (!t->ta && t->tb && t->m <= 12 && t->k >= 2 * VL) {
    switch (t->format) {
      case PK_BF16: gemm_dots_bf16(t); break;
      case PK_F16: gemm_dots_f16(t); break;
      default: gemm_dots_f32(t); break;
    }
    return;
  }
  if (t->format == PK_F32) {
    if (t->ta && t->n <= 16 && t->m >= 2 * t->n) {
      gemm_swapped(t, scratch);
      return;
    }
#if PK_LEVEL == 2
    if (!t->ta && t->n <= 8 && t->k > 16) {
      gemm_pairs(t, scratch);
      return;
    }
#endif
  }
  if (t->k <= GEMM_KC && t->k * (t->n + 2 * VL) <= PK_GEMM_FLAT && t->m > 2 * MR_TWO_ROWS) {
    gemm_flat(t, scratch);
    return;
  }
  gemm_general(t, scratch);
}
