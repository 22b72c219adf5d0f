// Matrix times vector over f32, bf16 and f16 rows: bound by memory.

ALWAYS void gemv_finish(float *y, float sum, float alpha, float beta) {
  *y = beta == 0.0f ? alpha * sum : alpha * sum + beta * *y;
}

#define GEMV(name, type, LOADV, LOADN)                                                                                        \
  static void K(name)(const type *w, size_t ld, const float *x, float alpha, float beta, float *y, size_t rows, size_t columns) { \
    size_t r = 0;                                                                                                             \
    for (; r + 4 <= rows; r += 4, w += 4 * ld) {                                                                              \
      const type *w1 = w + ld, *w2 = w1 + ld, *w3 = w2 + ld;                                                                  \
      vf a0 = {}, a1 = {}, a2 = {}, a3 = {}, b0 = {}, b1 = {}, b2 = {}, b3 = {};                                              \
      size_t c = 0;                                                                                                           \
      for (; c + 2 * VL <= columns; c += 2 * VL) {                                                                            \
        vf u = load(x + c), v = load(x + c + VL);                                                                             \
        a0 += LOADV(w + c) * u;                                                                                               \
        a1 += LOADV(w1 + c) * u;                                                                                              \
        a2 += LOADV(w2 + c) * u;                                                                                              \
        a3 += LOADV(w3 + c) * u;                                                                                              \
        b0 += LOADV(w + c + VL) * v;                                                                                          \
        b1 += LOADV(w1 + c + VL) * v;                                                                                         \
        b2 += LOADV(w2 + c + VL) * v;                                                                                         \
        b3 += LOADV(w3 + c + VL) * v;                                                                                         \
      }                                                                                                                       \
      for (; c < columns; c += VL) {                                                                                          \
        size_t n = columns - c < VL ? columns - c : VL;                                                                       \
        vf u = loadn(x + c, n);                                                                                               \
        a0 += LOADN(w + c, n) * u;                                                                                            \
        a1 += LOADN(w1 + c, n) * u;                                                                                           \
        a2 += LOADN(w2 + c, n) * u;                                                                                           \
        a3 += LOADN(w3 + c, n) * u;                                                                                           \
      }                                                                                                                       \
      gemv_finish(y + r, hsum(a0 + b0), alpha, beta);                                                                         \
      gemv_finish(y + r + 1, hsum(a1 + b1), alpha, beta);                                                                     \
      gemv_finish(y + r + 2, hsum(a2 + b2), alpha, beta);                                                                     \
      gemv_finish(y + r + 3, hsum(a3 + b3), alpha, beta);                                                                     \
    }                                                                                                                         \
    for (; r < rows; r++, w += ld) {                                                                                          \
      vf a = {};                                                                                                              \
      for (size_t c = 0; c < columns; c += VL) {                                                                              \
        size_t n = columns - c < VL ? columns - c : VL;                                                                       \
        a += n == VL ? LOADV(w + c) * load(x + c) : LOADN(w + c, n) * loadn(x + c, n);                                        \
      }                                                                                                                       \
      gemv_finish(y + r, hsum(a), alpha, beta);                                                                               \
    }                                                                                                                         \
  }

#define LOADN_BF16(p, n) from_bf16(loadn_half(p, n))
#define LOADN_F16(p, n) from_f16(loadn_half(p, n))

// The transposed product adds four rows at a time to a block of y that stays in the first-level cache.
#define GEMV_T(name, type, LOADV, LOADN)                                                                                      \
  static void K(name)(const type *w, size_t ld, const float *x, float alpha, float beta, float *y, size_t rows, size_t columns) { \
    for (size_t c0 = 0; c0 < columns; c0 += 2048) {                                                                           \
      size_t n = columns - c0 < 2048 ? columns - c0 : 2048;                                                                   \
      float *out = y + c0;                                                                                                    \
      if (beta == 0.0f)                                                                                                       \
        memset(out, 0, n * sizeof(float));                                                                                    \
      else if (beta != 1.0f)                                                                                                  \
        K(scale)(beta, out, out, n);                                                                                          \
      const type *in = w + c0;                                                                                                \
      size_t r = 0;                                                                                                           \
      for (; r + 4 <= rows; r += 4, in += 4 * ld) {                                                                           \
        float x0 = alpha * x[r], x1 = alpha * x[r + 1], x2 = alpha * x[r + 2], x3 = alpha * x[r + 3];                         \
        size_t i = 0;                                                                                                         \
        for (; i + VL <= n; i += VL)                                                                                          \
          store(out + i, load(out + i) + (LOADV(in + i) * x0 + LOADV(in + ld + i) * x1) +                                     \
                             (LOADV(in + 2 * ld + i) * x2 + LOADV(in + 3 * ld + i) * x3));                                    \
        if (i < n) {                                                                                                          \
          size_t t = n - i;                                                                                                   \
          storen(out + i,                                                                                                     \
                 loadn(out + i, t) + (LOADN(in + i, t) * x0 + LOADN(in + ld + i, t) * x1) +                                   \
                     (LOADN(in + 2 * ld + i, t) * x2 + LOADN(in + 3 * ld + i, t) * x3),                                       \
                 t);                                                                                                          \
        }                                                                                                                     \
      }                                                                                                                       \
      for (; r < rows; r++, in += ld) {                                                                                       \
        float x0 = alpha * x[r];                                                                                              \
        size_t i = 0;                                                                                                         \
        for (; i + VL <= n; i += VL) store(out + i, load(out + i) + LOADV(in + i) * x0);                                      \
        if (i < n) storen(out + i, loadn(out + i, n - i) + LOADN(in + i, n - i) * x0, n - i);                                 \
      }                                                                                                                       \
    }                                                                                                                         \
  }

GEMV(gemv, float, load, loadn)
GEMV(gemv_bf16, uint16_t, load_bf16, LOADN_BF16)
GEMV(gemv_f16, uint16_t, load_f16, LOADN_F16)
GEMV_T(gemv_t, float, load, loadn)
GEMV_T(gemv_t_bf16, uint16_t, load_bf16, LOADN_BF16)
GEMV_T(gemv_t_f16, uint16_t, load_f16, LOADN_F16)
