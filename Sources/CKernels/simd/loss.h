// Softmax, log-sum-exp and the gradient of the cross-entropy.

ALWAYS float row_max(const float *x, float scale, size_t n) {
  vf m0 = splat(-INFINITY), m1 = m0;
  size_t i = 0;
  for (; i + 2 * VL <= n; i += 2 * VL) {
    m0 = vmax(load(x + i) * scale, m0);
    m1 = vmax(load(x + i + VL) * scale, m1);
  }
  float m = hmax(vmax(m0, m1));
  for (; i < n; i++) m = x[i] * scale > m ? x[i] * scale : m;
  return m;
}

// Σ exp(x - m).
ALWAYS float exp_sum(const float *x, float m, size_t n) {
  vf s0 = {}, s1 = {};
  size_t i = 0;
  for (; i + 2 * VL <= n; i += 2 * VL) {
    s0 += vexp_negative(load(x + i) - m);
    s1 += vexp_negative(load(x + i + VL) - m);
  }
  for (; i < n; i += VL) {
    size_t left = n - i < VL ? n - i : VL;
    float block[VL];
    for (size_t l = 0; l < VL; l++) block[l] = l < left ? x[i + l] : -INFINITY;
    s0 += vexp_negative(load(block) - m);
  }
  return hsum(s0 + s1);
}

// log Σ exp(x), in one pass over memory: blocks that stay in the first-level cache, a running maximum.
ALWAYS float row_log_sum_exp(const float *x, size_t columns) {
  float m = -INFINITY;
  double total = 0;
  for (size_t c = 0; c < columns; c += 2048) {
    size_t n = columns - c < 2048 ? columns - c : 2048;
    float top = row_max(x + c, 1.0f, n);
    if (top > m) {
      total *= exp((double)m - top);
      m = top;
    }
    if (m > -INFINITY) total += (double)exp_sum(x + c, m, n);
  }
  if (m > -INFINITY) return (float)(m + log(total));
  // The largest of numbers and NaN is a number; of NaN alone it is -inf.
  for (size_t c = 0; c < columns; c++)
    if (x[c] != x[c]) return x[c];
  return m;
}

static void K(log_sum_exp)(const float *x, float *lse, size_t rows, size_t columns) {
  for (size_t r = 0; r < rows; r++) lse[r] = row_log_sum_exp(x + r * columns, columns);
}

static void K(softmax)(const float *x, float scale, float *y, size_t rows, size_t columns) {
  size_t n = columns;
  for (size_t r = 0; r < rows; r++, x += n, y += n) {
    float m = row_max(x, scale, n);
    // A row of -inf becomes zeros.
    if (m == -INFINITY) m = 0;
    vf s = {};
    size_t i = 0;
    for (; i + VL <= n; i += VL) {
      vf e = vexp_negative(load(x + i) * scale - m);
      store(y + i, e);
      s += e;
    }
    float total = hsum(s);
    if (i < n) {
      vf e = vexp_negative(loadn(x + i, n - i) * scale - m);
      storen(y + i, e, n - i);
      for (size_t l = 0; l < n - i; l++) total += y[i + l];
    }
    if (total != 0) K(scale)(1.0f / total, y, y, n);
  }
}

static void K(softmax_backward)(const float *y, const float *dy, float scale, float *dx, size_t rows, size_t columns) {
  size_t n = columns;
  for (size_t r = 0; r < rows; r++, y += n, dy += n, dx += n) {
    float mean = (float)K(dot)(y, dy, n);
    size_t i = 0;
#define BODY_softmax_backward(L, S) S(dx, L(y) * (L(dy) - mean) * scale);
    for (; i + VL <= n; i += VL) {
      BODY_softmax_backward(LOAD_FULL, STORE_FULL)
    }
    if (i < n) {
      BODY_softmax_backward(LOAD_TAIL, STORE_TAIL)
    }
  }
}

static void K(cross_entropy_backward)(const float *logits, const int32_t *labels, int32_t ignored, const float *lse, float scale, float *dx,
                                      size_t rows, size_t columns) {
  size_t n = columns;
  for (size_t r = 0; r < rows; r++, logits += n, dx += n) {
    if (labels[r] == ignored) {
      memset(dx, 0, n * sizeof(float));
      continue;
    }
    const float *x = logits;
    float m = lse[r];
    size_t i = 0;
#define BODY_cross_entropy_backward(L, S) S(dx, vexp_negative(L(x) - m) * scale);
    for (; i + VL <= n; i += VL) {
      BODY_cross_entropy_backward(LOAD_FULL, STORE_FULL)
    }
    if (i < n) {
      BODY_cross_entropy_backward(LOAD_TAIL, STORE_TAIL)
    }
    dx[labels[r]] -= scale;
  }
}
