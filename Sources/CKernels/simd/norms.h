// Layer normalisation and root-mean-square normalisation.

ALWAYS float row_sum(const float *x, size_t n) {
  vf s0 = {}, s1 = {};
  size_t i = 0;
  for (; i + 2 * VL <= n; i += 2 * VL) {
    s0 += load(x + i);
    s1 += load(x + i + VL);
  }
  for (; i < n; i += VL) s0 += n - i < VL ? loadn(x + i, n - i) : load(x + i);
  return hsum(s0 + s1);
}

// Σ (x - center)².
ALWAYS float row_spread(const float *x, float center, size_t n) {
  vf s0 = {}, s1 = {};
  size_t i = 0;
  for (; i + 2 * VL <= n; i += 2 * VL) {
    vf a = load(x + i) - center, b = load(x + i + VL) - center;
    s0 += a * a;
    s1 += b * b;
  }
  float tail = 0;
  for (; i + VL <= n; i += VL) {
    vf a = load(x + i) - center;
    s0 += a * a;
  }
  for (; i < n; i++) tail += (x[i] - center) * (x[i] - center);
  return hsum(s0 + s1) + tail;
}

static void K(layer_norm)(const float *x, const float *residual, float *sum, const float *weight, const float *bias, float eps, float *y,
                          float *mean, float *rstd, size_t rows, size_t columns) {
  size_t n = columns;
  for (size_t r = 0; r < rows; r++, y += n) {
    const float *in = x + r * n;
    if (residual) {
      float *total = sum ? sum + r * n : y;
      K(add)(in, residual + r * n, total, n);
      in = total;
    }
    float center = row_sum(in, n) / (float)n;
    float factor = 1.0f / sqrtf(row_spread(in, center, n) / (float)n + eps);
    mean[r] = center;
    rstd[r] = factor;
#define BODY_layer_norm(L, S)              \
  vf v = (L(in) - center) * factor;        \
  if (weight) v *= L(weight);              \
  if (bias) v += L(bias);                  \
  S(y, v);
    ELEMENTWISE(BODY_layer_norm)
  }
}

static void K(layer_norm_backward)(const float *x, const float *weight, const float *mean, const float *rstd, const float *dy,
                                   const float *addend, float *dx, size_t rows, size_t columns) {
  size_t n = columns;
  for (size_t r = 0; r < rows; r++, x += n, dy += n, dx += n) {
    float center = mean[r], factor = rstd[r];
    vf sg = {}, sgx = {};
    {
#define BODY_norm_sums(L, S)               \
  vf g = L(dy);                            \
  if (weight) g *= L(weight);              \
  sg += g;                                 \
  sgx += g * ((L(x) - center) * factor);
      ELEMENTWISE(BODY_norm_sums)
    }
    float mg = hsum(sg) / (float)n, mgx = hsum(sgx) / (float)n;
    const float *plus = addend ? addend + r * n : NULL;
#define BODY_layer_norm_backward(L, S)                                 \
  vf g = L(dy);                                                        \
  if (weight) g *= L(weight);                                          \
  vf v = factor * (g - mg - (L(x) - center) * factor * mgx);           \
  if (plus) v += L(plus);                                              \
  S(dx, v);
    ELEMENTWISE(BODY_layer_norm_backward)
  }
}

static void K(layer_norm_gradients)(const float *x, const float *mean, const float *rstd, const float *dy, size_t ld, size_t rows,
                                    size_t columns, float *dweight, float *dbias) {
#define NORM_WEIGHT(L, ...) L(dy + r * ld + c __VA_ARGS__) * ((L(x + r * ld + c __VA_ARGS__) - mean[r]) * rstd[r])
  if (dweight) {
    COLUMN_REDUCE(NORM_WEIGHT, dweight)
  }
  if (dbias) K(column_sums)(dy, ld, rows, columns, dbias);
}

static void K(rms_norm)(const float *x, const float *residual, float *sum, const float *weight, float eps, float *y, float *rstd,
                        size_t rows, size_t columns) {
  size_t n = columns;
  for (size_t r = 0; r < rows; r++, y += n) {
    const float *in = x + r * n;
    if (residual) {
      float *total = sum ? sum + r * n : y;
      K(add)(in, residual + r * n, total, n);
      in = total;
    }
    float factor = 1.0f / sqrtf(row_spread(in, 0.0f, n) / (float)n + eps);
    rstd[r] = factor;
#define BODY_rms_norm(L, S)       \
  vf v = L(in) * factor;          \
  if (weight) v *= L(weight);     \
  S(y, v);
    ELEMENTWISE(BODY_rms_norm)
  }
}

static void K(rms_norm_backward)(const float *x, const float *weight, const float *rstd, const float *dy, const float *addend, float *dx,
                                 size_t rows, size_t columns) {
  size_t n = columns;
  for (size_t r = 0; r < rows; r++, x += n, dy += n, dx += n) {
    float factor = rstd[r];
    vf sgx = {};
    {
#define BODY_rms_sums(L, S)       \
  vf g = L(dy);                   \
  if (weight) g *= L(weight);     \
  sgx += g * L(x);
      ELEMENTWISE(BODY_rms_sums)
    }
    float pull = hsum(sgx) / (float)n * factor * factor;
    const float *plus = addend ? addend + r * n : NULL;
#define BODY_rms_norm_backward(L, S)        \
  vf g = L(dy);                             \
  if (weight) g *= L(weight);               \
  vf v = factor * (g - L(x) * pull);        \
  if (plus) v += L(plus);                   \
  S(dx, v);
    ELEMENTWISE(BODY_rms_norm_backward)
  }
}

static void K(rms_norm_gradients)(const float *x, const float *rstd, const float *dy, size_t ld, size_t rows, size_t columns,
                                  float *dweight) {
#define RMS_WEIGHT(L, ...) L(dy + r * ld + c __VA_ARGS__) * (L(x + r * ld + c __VA_ARGS__) * rstd[r])
  COLUMN_REDUCE(RMS_WEIGHT, dweight)
}
