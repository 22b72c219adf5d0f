// Kernels over the rows and columns of matrices.

static void K(bias_rows)(const float *bias, float *y, size_t ld, size_t rows, size_t columns) {
  for (size_t r = 0; r < rows; r++) memcpy(y + r * ld, bias, columns * sizeof(float));
}

static void K(add_bias)(const float *x, const float *bias, float *y, size_t rows, size_t columns) {
  for (size_t r = 0; r < rows; r++) K(add)(x + r * columns, bias, y + r * columns, columns);
}

static void K(scale_columns)(const float *x, const float *s, float *y, size_t rows, size_t columns) {
  for (size_t r = 0; r < rows; r++) K(multiply)(x + r * columns, s, y + r * columns, columns);
}

static void K(scale_rows)(const float *x, const float *s, float *y, size_t rows, size_t columns) {
  for (size_t r = 0; r < rows; r++) K(scale)(s[r], x + r * columns, y + r * columns, columns);
}

static void K(row_dots)(const float *x, const float *y, size_t rows, size_t columns, float *z) {
  for (size_t r = 0; r < rows; r++) z[r] = (float)K(dot)(x + r * columns, y + r * columns, columns);
}

static void K(row_squares)(const float *x, size_t rows, size_t columns, float *y) {
  K(row_dots)(x, x, rows, columns, y);
}

#define ROW_SQUARES_HALF(name, convert)                                                   \
  static void K(name)(const uint16_t *x, size_t rows, size_t columns, float *y) {         \
    for (size_t r = 0; r < rows; r++, x += columns) {                                     \
      double total = 0;                                                                   \
      float block[256];                                                                   \
      for (size_t c = 0; c < columns; c += 256) {                                         \
        size_t n = columns - c < 256 ? columns - c : 256;                                 \
        K(convert)(x + c, block, n);                                                      \
        total += K(sum_squares)(block, n);                                                \
      }                                                                                   \
      y[r] = (float)total;                                                                \
    }                                                                                     \
  }
ROW_SQUARES_HALF(row_squares_bf16, bf16_to_f32)
ROW_SQUARES_HALF(row_squares_f16, f16_to_f32)

// Column reductions: VL columns at a time, 64 rows in single precision, those sums in double.
ALWAYS void add_double(vd *low, vd *high, vf v) {
  vh halves[2];
  memcpy(halves, &v, sizeof v);
  *low += __builtin_convertvector(halves[0], vd);
  *high += __builtin_convertvector(halves[1], vd);
}

ALWAYS void store_double(float *y, vd low, vd high, size_t n) {
  vh halves[2] = {__builtin_convertvector(low, vh), __builtin_convertvector(high, vh)};
  memcpy(y, halves, n * sizeof(float));
}

#define COLUMN_REDUCE(at, result)                                     \
  for (size_t c = 0; c < columns; c += VL) {                          \
    size_t n = columns - c < VL ? columns - c : VL;                   \
    vd low = {}, high = {};                                           \
    for (size_t r0 = 0; r0 < rows; r0 += 64) {                        \
      size_t r1 = r0 + 64 < rows ? r0 + 64 : rows;                    \
      vf s = {};                                                      \
      if (n == VL)                                                    \
        for (size_t r = r0; r < r1; r++) s += at(load);             \
      else                                                            \
        for (size_t r = r0; r < r1; r++) s += at(loadn, , n);         \
      add_double(&low, &high, s);                                     \
    }                                                                 \
    store_double((result) + c, low, high, n);                         \
  }

#define COLUMN_SUM(L, ...) L(x + r * ld + c __VA_ARGS__)
static void K(column_sums)(const float *x, size_t ld, size_t rows, size_t columns, float *y) {
  COLUMN_REDUCE(COLUMN_SUM, y)
}

#define COLUMN_DOT(L, ...) L(x + r * ld + c __VA_ARGS__) * L(y + r * ld + c __VA_ARGS__)
static void K(column_dots)(const float *x, const float *y, size_t ld, size_t rows, size_t columns, float *z) {
  COLUMN_REDUCE(COLUMN_DOT, z)
}

// y = bias + y ∘ s in every row, which are ld apart; no bias when it is NULL.
static void K(scale_columns_bias)(const float *s, const float *bias, float *y, size_t ld, size_t rows, size_t columns) {
  for (size_t r = 0; r < rows; r++, y += ld) {
    size_t c = 0, n = columns;
    for (; c + VL <= n; c += VL) {
      vf v = load(y + c) * load(s + c);
      store(y + c, bias ? v + load(bias + c) : v);
    }
    if (c < n) {
      vf v = loadn(y + c, n - c) * loadn(s + c, n - c);
      storen(y + c, bias ? v + loadn(bias + c, n - c) : v, n - c);
    }
  }
}

// z[j] = Σ dy[i, j] (y[i, j] - bias[j]), then dy[i, j] *= s[j]. Four vectors of columns at a time, so that whole
// pages are used while they are at hand.
static void K(scaled_column_dots)(float *dy, const float *y, const float *bias, const float *s, size_t ld, size_t rows,
                                  size_t columns, float *z) {
  size_t c = 0;
  for (; c + 4 * VL <= columns; c += 4 * VL) {
    vd low[4] = {}, high[4] = {};
    vf shift[4], factor[4];
    for (int k = 0; k < 4; k++) {
      shift[k] = bias ? load(bias + c + k * VL) : (vf){};
      factor[k] = load(s + c + k * VL);
    }
    for (size_t r0 = 0; r0 < rows; r0 += 64) {
      size_t r1 = r0 + 64 < rows ? r0 + 64 : rows;
      vf sum[4] = {};
      for (size_t r = r0; r < r1; r++) {
        float *d = dy + r * ld + c;
        const float *v = y + r * ld + c;
        for (int k = 0; k < 4; k++) {
          vf g = load(d + k * VL);
          sum[k] += g * (load(v + k * VL) - shift[k]);
          store(d + k * VL, g * factor[k]);
        }
      }
      for (int k = 0; k < 4; k++) add_double(&low[k], &high[k], sum[k]);
    }
    for (int k = 0; k < 4; k++) store_double(z + c + k * VL, low[k], high[k], VL);
  }
  for (; c < columns; c++) {
    double total = 0;
    for (size_t r = 0; r < rows; r++) {
      float *d = dy + r * ld + c;
      total += (double)*d * (y[r * ld + c] - (bias ? bias[c] : 0));
      *d *= s[c];
    }
    z[c] = (float)total;
  }
}

static void K(transpose)(const float *x, size_t ldx, float *y, size_t ldy, size_t rows, size_t columns) {
  size_t r = 0;
  for (; r + VL <= rows; r += VL) {
    size_t c = 0;
    for (; c + VL <= columns; c += VL) {
      vf square[VL];
      for (size_t i = 0; i < VL; i++) square[i] = load(x + (r + i) * ldx + c);
      transpose_square(square);
      for (size_t i = 0; i < VL; i++) store(y + (c + i) * ldy + r, square[i]);
    }
    for (; c < columns; c++)
      for (size_t i = 0; i < VL; i++) y[c * ldy + r + i] = x[(r + i) * ldx + c];
  }
  for (; r < rows; r++)
    for (size_t c = 0; c < columns; c++) y[c * ldy + r] = x[r * ldx + c];
}

static void K(argmax)(const float *x, size_t rows, size_t columns, int32_t *y) {
  for (size_t r = 0; r < rows; r++, x += columns) {
    vf m = splat(-INFINITY);
    size_t c = 0;
    for (; c + VL <= columns; c += VL) m = vmax(load(x + c), m);
    float top = hmax(m);
    for (; c < columns; c++) top = x[c] > top ? x[c] : top;
    size_t at = 0;
    // Whole vectors without it, then the element.
    for (; at + VL <= columns; at += VL) {
      vi equal = (vi)(load(x + at) == top);
      int32_t any = 0;
      for (int l = 0; l < VL; l++) any |= equal[l];
      if (any) break;
    }
    while (at < columns && x[at] != top) at++;
    y[r] = at < columns ? (int32_t)at : 0;
  }
}

static void K(rotary)(const float *x, const float *cosine, const float *sine, float sign, float *y, size_t tokens, size_t heads,
                      size_t dim) {
  size_t half = dim / 2;
  for (size_t t = 0; t < tokens; t++, cosine += half, sine += half)
    for (size_t h = 0; h < heads; h++, x += dim, y += dim) {
      size_t i = 0, n = half;
#define BODY_rotary(L, S)                                         \
  vf a = L(x), b = L(x + half), c = L(cosine), s = sign * L(sine); \
  S(y, a * c - b * s);                                            \
  S(y + half, b * c + a * s);
      for (; i + VL <= n; i += VL) {
        BODY_rotary(LOAD_FULL, STORE_FULL)
      }
      if (i < n) {
        BODY_rotary(LOAD_TAIL, STORE_TAIL)
      }
    }
}
