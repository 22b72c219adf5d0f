// Attention over packed sequences, one query row at a time.

// Keys that query i of a sequence sees: all, or with causality those up to its own position.
ALWAYS size_t visible_keys(const pk_attention *a, pk_sequence s, size_t i) {
  return a->causal ? s.keyCount - s.queryCount + i + 1 : s.keyCount;
}

// Where the dropout numbers of one score row start: rows are padded to whole groups.
ALWAYS uint64_t dropout_row(const pk_attention *a, pk_sequence s, size_t head, size_t i) {
  uint64_t stride = (s.keyCount + 63) / 64 * 64;
  return s.dropoutOffset + (head * s.queryCount + i) * stride;
}

// Scores of one query against n keys, scaled; hidden keys become -inf.
ALWAYS void score_row(const pk_attention *a, pk_sequence s, size_t head, const float *q, size_t n, float *y) {
  size_t kv = head / (a->heads / a->kvHeads);
  K(gemv)(a->k + s.key * a->ldk + kv * a->headDim, a->ldk, q, a->scale, 0.0f, y, n, a->headDim);
  if (a->keyMask)
    for (size_t j = 0; j < n; j++)
      if (!a->keyMask[s.key + j]) y[j] = -INFINITY;
}

static void K(attention_forward)(const pk_attention *a, pk_sequence s, size_t head, size_t first, size_t last, float *scratch) {
  size_t d = a->headDim, kv = head / (a->heads / a->kvHeads);
  const float *v = a->v + s.key * a->ldv + kv * d;
  for (size_t i = first; i < last; i++) {
    size_t n = visible_keys(a, s, i), row = s.query + i;
    float *out = a->outMutable + row * a->ldo + head * d;
    score_row(a, s, head, a->q + row * a->ldq + head * d, n, scratch);
    float lse = row_log_sum_exp(scratch, n);
    a->lseMutable[head * a->tokens + row] = lse;
    if (lse == -INFINITY) {
      memset(out, 0, d * sizeof(float));
      continue;
    }
    for (size_t j = 0; j < n; j += VL) {
      size_t left = n - j < VL ? n - j : VL;
      storen(scratch + j, vexp(loadn(scratch + j, left) - lse), left);
    }
    if (a->dropout > 0) K(dropout)(scratch, a->dropout, a->random, dropout_row(a, s, head, i), scratch, n);
    K(gemv_t)(v, a->ldv, scratch, 1.0f, 0.0f, out, n, d);
  }
}

static void K(attention_backward)(const pk_attention *a, pk_sequence s, size_t kv, float *scratch) {
  size_t d = a->headDim, group = a->heads / a->kvHeads;
  float *p = scratch, *dp = scratch + (s.keyCount + 63) / 64 * 64;
  const float *k = a->k + s.key * a->ldk + kv * d, *v = a->v + s.key * a->ldv + kv * d;
  float *dk = a->dk + s.key * a->ldk + kv * d, *dv = a->dv + s.key * a->ldv + kv * d;
  for (size_t j = 0; j < s.keyCount; j++) {
    memset(dk + j * a->ldk, 0, d * sizeof(float));
    memset(dv + j * a->ldv, 0, d * sizeof(float));
  }
  for (size_t head = kv * group; head < (kv + 1) * group; head++)
    for (size_t i = 0; i < s.queryCount; i++) {
      size_t n = visible_keys(a, s, i), row = s.query + i;
      const float *q = a->q + row * a->ldq + head * d, *out = a->out + row * a->ldo + head * d;
      const float *dout = a->dout + row * a->ldo + head * d;
      float *dq = a->dq + row * a->ldq + head * d;
      float lse = a->lse[head * a->tokens + row];
      if (lse == -INFINITY) {
        memset(dq, 0, d * sizeof(float));
        continue;
      }
      score_row(a, s, head, q, n, p);
      K(gemv)(v, a->ldv, dout, 1.0f, 0.0f, dp, n, d);
      if (a->dropout > 0) K(dropout)(dp, a->dropout, a->random, dropout_row(a, s, head, i), dp, n);
      float delta = (float)K(dot)(dout, out, d);
      for (size_t j = 0; j < n; j += VL) {
        size_t left = n - j < VL ? n - j : VL;
        vf e = vexp(loadn(p + j, left) - lse);
        storen(p + j, e, left);
        storen(dp + j, e * (loadn(dp + j, left) - delta) * a->scale, left);
      }
      K(gemv_t)(k, a->ldk, dp, 1.0f, 0.0f, dq, n, d);
      for (size_t j = 0; j < n; j++) K(axpy)(dp[j], q, dk + j * a->ldk, d);
      if (a->dropout > 0) K(dropout)(p, a->dropout, a->random, dropout_row(a, s, head, i), p, n);
      for (size_t j = 0; j < n; j++) K(axpy)(p[j], dout, dv + j * a->ldv, d);
    }
}
