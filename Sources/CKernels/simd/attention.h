// Attention over packed sequences.
//
// Scores are kept transposed, a row for each key and a lane for each query, in tiles of at most two vectors of
// queries. So keys and values are read as they lie, maxima and sums need no reduction across lanes, and every
// product is one of the two forms that the micro-kernels have.

// The largest depth for which a partial panel of B is packed at once.
enum { ATTENTION_DEPTH = PK_ATTENTION_DEPTH };

// C[m,n] = alpha op(A) B + beta C on strided rows; `spare` holds a panel of ATTENTION_DEPTH rows.
static void product(bool byColumns, size_t m, size_t n, size_t k, const float *a, size_t lda, const float *b, size_t ldb, float alpha,
                    float beta, float *c, size_t ldc, float *spare) {
  // A sum of nothing: without keys.
  if (k == 0)
    for (size_t i = 0; i < m; i++)
      for (size_t j = 0; j < n; j++) c[i * ldc + j] = beta == 0.0f ? 0.0f : beta * c[i * ldc + j];
  for (size_t j = 0; j < n;) {
    size_t left = n - j, width = left < 2 * VL ? left : 2 * VL;
    int nv = left > VL ? 2 : 1;
    // Whole vectors are read in place, the rest of a row through a copy.
    bool whole = width == (size_t)nv * VL;
    size_t most = most_rows(byColumns, nv), blocks = (m + most - 1) / most, step = whole ? k : ATTENTION_DEPTH;
    for (size_t l = 0; l < k; l += step) {
      size_t depth = k - l < step ? k - l : step;
      const float *panel = b + l * ldb + j;
      if (!whole) {
        pk_gemm_task t = {.b = b, .ldb = ldb, .tb = false, .format = PK_F32};
        K(pack_f32)(&t, l, depth, j, width, nv, spare);
        panel = spare;
      }
      micro_target target = {.ldc = ldc, .tail = width - (size_t)(nv - 1) * VL, .alpha = alpha, .beta = l == 0 ? beta : 1.0f};
      for (size_t block = 0; block < blocks; block++) {
        size_t from = block_start(m, blocks, block), mr = block_start(m, blocks, block + 1) - from;
        const micro_kernel *kernel = nv == 1 ? K(micro_one)[mr - 1] : K(micro_two)[mr - 1];
        target.c = c + from * ldc + j;
        kernel[byColumns](depth, byColumns ? a + l * lda + from : a + from * lda + l, lda, panel, whole ? ldb : (size_t)nv * VL, &target);
      }
    }
    j += width;
  }
}

// Keys that query i of a sequence sees: all, or with causality those up to its own position.
ALWAYS size_t visible_keys(const pk_attention *a, pk_sequence s, size_t i) {
  return a->causal ? s.keyCount - s.queryCount + i + 1 : s.keyCount;
}

// A tile: queries of one head, or of all heads that share keys, in turns.
typedef struct {
  size_t head, heads, first, columns;
  // The lanes, their number as vectors, and the keys that any of them, and all of them, see.
  size_t lanes, keys, common;
  int vectors;
} attention_tile;

static attention_tile make_tile(const pk_attention *a, pk_sequence s, size_t head, size_t heads, size_t first, size_t columns) {
  attention_tile t = {.head = head, .heads = heads, .first = first, .columns = columns};
  t.vectors = columns > VL ? 2 : 1;
  t.lanes = (size_t)t.vectors * VL;
  t.common = visible_keys(a, s, first / heads);
  t.keys = visible_keys(a, s, (first + columns - 1) / heads);
  return t;
}

// Column c of a tile stands for this query and head.
ALWAYS size_t tile_query(const attention_tile *t, size_t c) { return (t->first + c) / t->heads; }
ALWAYS size_t tile_head(const attention_tile *t, size_t c) { return t->head + (t->first + c) % t->heads; }

// Packs the tile's rows of x (q or dOut) as columns.
static void pack_columns(const attention_tile *t, pk_sequence s, const float *x, size_t ld, size_t d, float *panel, float *rows) {
  const float *from = x + (s.query + tile_query(t, 0)) * ld + tile_head(t, 0) * d;
  if (t->heads > 1) {
    for (size_t c = 0; c < t->columns; c++)
      memcpy(rows + c * d, x + (s.query + tile_query(t, c)) * ld + tile_head(t, c) * d, d * sizeof(float));
    from = rows;
    ld = d;
  }
  pk_gemm_task task = {.b = from, .ldb = ld, .tb = true, .format = PK_F32};
  K(pack_f32)(&task, 0, d, 0, t->columns, t->vectors, panel);
}

// Per lane, the number of visible keys.
ALWAYS void tile_limits(const pk_attention *a, pk_sequence s, const attention_tile *t, int32_t *limit) {
  for (size_t c = 0; c < t->lanes; c++) limit[c] = c < t->columns ? (int32_t)visible_keys(a, s, tile_query(t, c)) : (int32_t)t->keys;
}

// Replaces what is hidden from a lane in rows of scores or weights.
static void hide(const pk_attention *a, pk_sequence s, const attention_tile *t, float value, float *scores) {
  if (a->keyMask)
    for (size_t j = 0; j < t->keys; j++)
      if (!a->keyMask[s.key + j])
        for (size_t v = 0; v < t->lanes; v += VL) store(scores + j * t->lanes + v, splat(value));
  if (t->common == t->keys) return;
  int32_t limit[2 * VL];
  tile_limits(a, s, t, limit);
  for (size_t v = 0; v < t->lanes; v += VL) {
    vi last = *(const vi_any *)(limit + v);
    for (size_t j = t->common; j < t->keys; j++) {
      float *y = scores + j * t->lanes + v;
      store(y, blend((vi)(splati((int32_t)j) < last), load(y), splat(value)));
    }
  }
}

// Dropout numbers: four keys by 16 queries are one group of the stream, so that each level finds its lanes.
ALWAYS void drop(const pk_attention *a, pk_sequence s, const attention_tile *t, float *x) {
  uint32_t threshold = (uint32_t)((double)a->dropout * 4294967296.0);
  float keep = 1.0f / (1.0f - a->dropout);
  size_t across = (s.queryCount + 15) / 16, down = (s.keyCount + 3) / 4;
  for (size_t v = 0; v < t->lanes; v += VL) {
    // Tiles of several heads go lane by lane.
    for (size_t lane = 0; lane < VL && v + lane < t->columns; lane += t->heads > 1 ? 1 : VL) {
      size_t query = tile_query(t, v + lane), head = tile_head(t, v + lane);
      for (size_t j = 0; j < t->keys; j += 4) {
        uint64_t group = s.dropoutOffset / 64 + (head * down + j / 4) * across + query / 16;
        vu words[4];
        philox(a->random, group * 16 + (query % 16) / VL * VL, words);
        for (size_t w = 0; w < 4 && j + w < t->keys; w++) {
          size_t at = (j + w) * t->lanes + v;
          if (t->heads > 1) {
            x[at + lane] = words[w][query % VL] >= threshold ? x[at + lane] * keep : 0.0f;
          } else {
            vi kept = (vi)(words[w] >= threshold);
            store(x + at, (vf)((vi)(load(x + at) * keep) & kept));
          }
        }
      }
    }
  }
}

// Turns scores into exponentials; gives each lane's log-sum-exp and the factor that makes weights of them.
static void tile_softmax(const attention_tile *t, float *scores, float *lse, float *factor) {
  for (size_t v = 0; v < t->lanes; v += VL) {
    float *x = scores + v;
    size_t ld = t->lanes;
    vf top = splat(-INFINITY);
    for (size_t j = 0; j < t->keys; j++) top = vmax(load(x + j * ld), top);
    vi none = (vi)(top == -INFINITY);
    vf m = (vf)(~none & (vi)top), total = {};
    // Sums of sums, for the sake of rounding.
    for (size_t j0 = 0; j0 < t->keys; j0 += 64) {
      size_t j1 = j0 + 64 < t->keys ? j0 + 64 : t->keys;
      vf sum = {};
      for (size_t j = j0; j < j1; j++) {
        vf e = vexp_negative(load(x + j * ld) - m);
        store(x + j * ld, e);
        sum += e;
      }
      total += sum;
    }
    store(lse + v, blend(none, splat(-INFINITY), m - 0.5f * minus_two_log(total)));
    store(factor + v, (vf)(~none & (vi)(1.0f / total)));
  }
}

// One query of one head, whose scores are a row.
static void attend_row(const pk_attention *a, pk_sequence s, size_t head, size_t i, float *scratch) {
  size_t d = a->headDim, kv = head / (a->heads / a->kvHeads), n = visible_keys(a, s, i), row = s.query + i;
  float *out = a->outMutable + row * a->ldo + head * d;
  const float *q = a->q + row * a->ldq + head * d;
  K(gemv)(a->k + s.key * a->ldk + kv * d, a->ldk, q, a->scale, 0.0f, scratch, n, d);
  if (a->keyMask)
    for (size_t j = 0; j < n; j++)
      if (!a->keyMask[s.key + j]) scratch[j] = -INFINITY;
  float lse = row_log_sum_exp(scratch, n);
  a->lseMutable[head * a->tokens + row] = lse;
  if (lse == -INFINITY) {
    memset(out, 0, d * sizeof(float));
    return;
  }
  for (size_t j = 0; j < n; j += VL) {
    size_t left = n - j < VL ? n - j : VL;
    storen(scratch + j, vexp_negative(loadn(scratch + j, left) - lse), left);
  }
  K(gemv_t)(a->v + s.key * a->ldv + kv * d, a->ldv, scratch, 1.0f, 0.0f, out, n, d);
}

static void K(attention_forward)(const pk_attention *a, pk_sequence s, size_t head, size_t heads, size_t first, size_t last,
                                 float *scratch) {
  size_t d = a->headDim, kv = head / (a->heads / a->kvHeads), from = first * heads, to = last * heads;
  if (to - from <= VL / 4 && a->dropout <= 0) {
    for (size_t c = from; c < to; c++) attend_row(a, s, head + c % heads, c / heads, scratch);
    return;
  }
  const float *k = a->k + s.key * a->ldk + kv * d, *v = a->v + s.key * a->ldv + kv * d;
  float *panel = scratch, *rows = panel + d * 2 * VL, *out = rows + d * 2 * VL, *spare = out + d * 2 * VL;
  float *scores = spare + ATTENTION_DEPTH * 2 * VL;
  for (size_t c = from; c < to; c += 2 * VL) {
    attention_tile t = make_tile(a, s, head, heads, c, to - c < 2 * VL ? to - c : 2 * VL);
    pack_columns(&t, s, a->q, a->ldq, d, panel, rows);
    product(false, t.keys, t.lanes, d, k, a->ldk, panel, t.lanes, a->scale, 0.0f, scores, t.lanes, spare);
    hide(a, s, &t, -INFINITY, scores);
    float lse[2 * VL], factor[2 * VL];
    tile_softmax(&t, scores, lse, factor);
    if (a->dropout > 0) drop(a, s, &t, scores);
    product(true, t.columns, d, t.keys, scores, t.lanes, v, a->ldv, 1.0f, 0.0f, out, d, spare);
    for (size_t i = 0; i < t.columns; i++) {
      size_t row = s.query + tile_query(&t, i), h = tile_head(&t, i);
      a->lseMutable[h * a->tokens + row] = lse[i];
      K(scale)(factor[i], out + i * d, a->outMutable + row * a->ldo + h * d, d);
    }
  }
}

// Scores become weights (in p) and dP becomes dS without its factor (in dp).
static void tile_gradients(const pk_attention *a, pk_sequence s, const attention_tile *t, float *p, float *dp, const float *lse,
                           const float *delta) {
  size_t count = t->keys * t->lanes;
  for (size_t v = 0; v < t->lanes; v += VL) {
    vf l = load(lse + v);
    for (size_t i = v; i < count; i += t->lanes) store(p + i, vexp_negative(load(p + i) - l));
  }
  hide(a, s, t, 0.0f, p);
  if (a->dropout <= 0) {
    for (size_t v = 0; v < t->lanes; v += VL) {
      vf e = load(delta + v);
      for (size_t i = v; i < count; i += t->lanes) store(dp + i, load(p + i) * (load(dp + i) - e));
    }
    return;
  }
  // p (m dp - delta) with the mask and scale m; p m is what dV needs.
  drop(a, s, t, dp);
  for (size_t v = 0; v < t->lanes; v += VL) {
    vf e = load(delta + v);
    for (size_t i = v; i < count; i += t->lanes) store(dp + i, load(p + i) * (load(dp + i) - e));
  }
  drop(a, s, t, p);
}

static void K(attention_backward)(const pk_attention *a, pk_sequence s, size_t head, size_t heads, float *dk, float *dv, size_t ld,
                                  float *scratch) {
  size_t d = a->headDim, kv = head / (a->heads / a->kvHeads);
  const float *k = a->k + s.key * a->ldk + kv * d, *v = a->v + s.key * a->ldv + kv * d;
  float *panel = scratch, *rows = panel + d * 2 * VL, *spare = rows + d * 2 * VL;
  float *p = spare + ATTENTION_DEPTH * 2 * VL, *dp = p + s.keyCount * 2 * VL;
  if (s.queryCount == 0)
    for (size_t j = 0; j < s.keyCount; j++) {
      memset(dk + j * ld, 0, d * sizeof(float));
      memset(dv + j * ld, 0, d * sizeof(float));
    }
  // The last queries first: they see every key and so write every row.
  float beta = 0.0f;
  for (size_t h = head; h < head + heads; h++)
    for (size_t tiles = (s.queryCount + 2 * VL - 1) / (2 * VL); tiles-- > 0;) {
      size_t c = tiles * 2 * VL;
      attention_tile t = make_tile(a, s, h, 1, c, s.queryCount - c < 2 * VL ? s.queryCount - c : 2 * VL);
      size_t row = s.query + c;
      const float *q = a->q + row * a->ldq + h * d, *dout = a->dout + row * a->ldo + h * d;
      float lse[2 * VL], delta[2 * VL];
      for (size_t i = 0; i < 2 * VL; i++) {
        lse[i] = i < t.columns ? a->lse[h * a->tokens + row + i] : INFINITY;
        // A query that sees nothing: all weights are 0.
        if (lse[i] == -INFINITY) lse[i] = INFINITY;
        delta[i] = i < t.columns ? (float)K(dot)(dout + i * a->ldo, a->out + (row + i) * a->ldo + h * d, d) : 0.0f;
      }
      pack_columns(&t, s, a->q, a->ldq, d, panel, rows);
      product(false, t.keys, t.lanes, d, k, a->ldk, panel, t.lanes, a->scale, 0.0f, p, t.lanes, spare);
      pack_columns(&t, s, a->dout, a->ldo, d, panel, rows);
      product(false, t.keys, t.lanes, d, v, a->ldv, panel, t.lanes, 1.0f, 0.0f, dp, t.lanes, spare);
      tile_gradients(a, s, &t, p, dp, lse, delta);
      product(true, t.columns, d, t.keys, dp, t.lanes, k, a->ldk, a->scale, 0.0f, a->dq + row * a->ldq + h * d, a->ldq, spare);
      product(false, t.keys, d, t.columns, dp, t.lanes, q, a->ldq, a->scale, beta, dk, ld, spare);
      product(false, t.keys, d, t.columns, p, t.lanes, dout, a->ldo, 1.0f, beta, dv, ld, spare);
      beta = 1.0f;
    }
}
