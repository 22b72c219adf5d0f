// Elementwise kernels and reductions over contiguous arrays.

// Defines a kernel from the value of one vector; `v(p)` reads the vector of array p at the position.
#define ELEMENTWISE(body)                 \
  size_t i = 0;                           \
  for (; i + VL <= n; i += VL) {          \
    body(LOAD_FULL, STORE_FULL)           \
  }                                       \
  if (i < n) {                            \
    body(LOAD_TAIL, STORE_TAIL)           \
  }
#define LOAD_FULL(p) load((p) + i)
#define LOAD_TAIL(p) loadn((p) + i, n - i)
#define STORE_FULL(p, v) store((p) + i, v)
#define STORE_TAIL(p, v) storen((p) + i, v, n - i)

#define UNARY(name, function)                                  \
  static void K(name)(const float *x, float *y, size_t n) {    \
    ELEMENTWISE(BODY_##name)                                   \
  }
#define BODY_exp(L, S) S(y, vexp(L(x)));
#define BODY_tanh(L, S) S(y, vtanh(L(x)));
#define BODY_sigmoid(L, S) S(y, vsigmoid(L(x)));
#define BODY_relu(L, S) S(y, vmax(splat(0.0f), L(x)));
#define BODY_gelu(L, S) S(y, vgelu(L(x)));
#define BODY_gelu_tanh(L, S) S(y, vgelu_tanh(L(x)));
#define BODY_silu(L, S) S(y, vsilu(L(x)));
UNARY(exp, vexp)
UNARY(tanh, vtanh)
UNARY(sigmoid, vsigmoid)
UNARY(relu, vrelu)
UNARY(gelu, vgelu)
UNARY(gelu_tanh, vgelu_tanh)
UNARY(silu, vsilu)

#define BINARY(name)                                                          \
  static void K(name)(const float *x, const float *y, float *z, size_t n) {   \
    ELEMENTWISE(BODY_##name)                                                  \
  }
#define BODY_tanh_backward(L, S) vf t = L(x); S(z, L(y) * (1.0f - t * t));
#define BODY_sigmoid_backward(L, S) vf t = L(x); S(z, L(y) * (t * (1.0f - t)));
#define BODY_relu_backward(L, S) S(z, (vf)((vi)(L(x) > 0.0f) & (vi)L(y)));
#define BODY_gelu_backward(L, S) S(z, L(y) * vgelu_slope(L(x)));
#define BODY_gelu_tanh_backward(L, S) S(z, L(y) * vgelu_tanh_slope(L(x)));
#define BODY_silu_backward(L, S) S(z, L(y) * vsilu_slope(L(x)));
#define BODY_swiglu(L, S) S(z, vsilu(L(x)) * L(y));
#define BODY_add(L, S) S(z, L(x) + L(y));
#define BODY_subtract(L, S) S(z, L(x) - L(y));
#define BODY_multiply(L, S) S(z, L(x) * L(y));
#define BODY_multiply_add(L, S) S(z, L(x) * L(y) + L(z));
BINARY(tanh_backward)
BINARY(sigmoid_backward)
BINARY(relu_backward)
BINARY(gelu_backward)
BINARY(gelu_tanh_backward)
BINARY(silu_backward)
BINARY(swiglu)
BINARY(add)
BINARY(subtract)
BINARY(multiply)
BINARY(multiply_add)

#define BODY_swiglu_backward(L, S)                    \
  vf g = L(gate), u = L(up), d = L(dy);               \
  vf c, s = vsigmoid_pair(g, &c);                     \
  S(dup, d * g * s);                                  \
  S(dgate, d * u * (s * (1.0f + g * c)));
static void K(swiglu_backward)(const float *gate, const float *up, const float *dy, float *dgate, float *dup, size_t n) {
  ELEMENTWISE(BODY_swiglu_backward)
}

#define BODY_fill(L, S) S(y, splat(value));
static void K(fill)(float value, float *y, size_t n) { ELEMENTWISE(BODY_fill) }

#define BODY_scale(L, S) S(y, a * L(x));
static void K(scale)(float a, const float *x, float *y, size_t n) { ELEMENTWISE(BODY_scale) }

#define BODY_axpy(L, S) S(y, a * L(x) + L(y));
static void K(axpy)(float a, const float *x, float *y, size_t n) { ELEMENTWISE(BODY_axpy) }

#define BODY_axpby(L, S) S(z, a * L(x) + b * L(y));
static void K(axpby)(float a, const float *x, float b, const float *y, float *z, size_t n) { ELEMENTWISE(BODY_axpby) }

#define BODY_adamw(L, S)                                     \
  vf grad = gradientScale * L(g);                            \
  vf m1 = beta1 * L(m) + gain1 * grad;                       \
  vf v1 = beta2 * L(v) + gain2 * grad * grad;                \
  S(m, m1);                                                  \
  S(v, v1);                                                  \
  S(p, L(p) * decay - step * m1 / (vsqrt(v1) * root + eps));
static void K(adamw)(float *p, const float *g, float *m, float *v, size_t n, float decay, float beta1, float gain1, float beta2, float gain2,
                     float step, float root, float eps, float gradientScale) {
  ELEMENTWISE(BODY_adamw)
}

// Sums run in double precision: as many lanes, four accumulators deep, then the lanes in order.
#define REDUCE(term, last)                                            \
  vd a0 = {}, a1 = {}, a2 = {}, a3 = {};                              \
  size_t i = 0;                                                       \
  for (; i + 4 * HL <= n; i += 4 * HL) {                              \
    a0 += term(i);                                                    \
    a1 += term(i + HL);                                               \
    a2 += term(i + 2 * HL);                                           \
    a3 += term(i + 3 * HL);                                           \
  }                                                                   \
  for (; i + HL <= n; i += HL) a0 += term(i);                         \
  double total = hsumd((a0 + a1) + (a2 + a3));                        \
  for (; i < n; i++) total += last(i);                                \
  return total;

#define TERM(at) widen(x + (at))
#define LAST(at) (double)x[at]
static double K(sum)(const float *x, size_t n) { REDUCE(TERM, LAST) }
#undef TERM
#undef LAST
#define TERM(at) widen(x + (at)) * widen(y + (at))
#define LAST(at) (double)x[at] * (double)y[at]
static double K(dot)(const float *x, const float *y, size_t n) { REDUCE(TERM, LAST) }
#undef TERM
#undef LAST
static double K(sum_squares)(const float *x, size_t n) { return K(dot)(x, x, n); }

static float K(max_abs)(const float *x, size_t n) {
  // Magnitudes order like their bits, and so NaN, above infinity, wins.
  vi m = {};
  size_t i = 0;
  for (; i + VL <= n; i += VL) {
    vi b = (vi)vabs(load(x + i));
    vi greater = (vi)(b > m);
    m = (greater & b) | (~greater & m);
  }
  if (i < n) {
    vi b = (vi)vabs(loadn(x + i, n - i));
    vi greater = (vi)(b > m);
    m = (greater & b) | (~greater & m);
  }
  int32_t top = 0;
  for (int l = 0; l < VL; l++) top = m[l] > top ? m[l] : top;
  float result;
  memcpy(&result, &top, 4);
  return result;
}

static bool K(all_finite)(const float *x, size_t n) {
  // x - x is zero for finite x and NaN otherwise.
  vi bad = {};
  size_t i = 0;
  for (; i + VL <= n; i += VL) {
    vf v = load(x + i);
    v -= v;
    bad |= (vi)v;
  }
  if (i < n) {
    vf v = loadn(x + i, n - i);
    v -= v;
    bad |= (vi)v;
  }
  int32_t any = 0;
  for (int l = 0; l < VL; l++) any |= bad[l] & 0x7fffffff;
  return any == 0;
}

// Conversions.
static void K(f32_to_bf16)(const float *x, uint16_t *y, size_t n) {
  size_t i = 0;
  for (; i + VL <= n; i += VL) *(vs_any *)(y + i) = to_bf16(load(x + i));
  if (i < n) {
    vs v = to_bf16(loadn(x + i, n - i));
    memcpy(y + i, &v, (n - i) * 2);
  }
}
static void K(f32_to_f16)(const float *x, uint16_t *y, size_t n) {
  size_t i = 0;
  for (; i + VL <= n; i += VL) *(vs_any *)(y + i) = to_f16(load(x + i));
  if (i < n) {
    vs v = to_f16(loadn(x + i, n - i));
    memcpy(y + i, &v, (n - i) * 2);
  }
}
static void K(bf16_to_f32)(const uint16_t *x, float *y, size_t n) {
  size_t i = 0;
  for (; i + VL <= n; i += VL) store(y + i, load_bf16(x + i));
  if (i < n) storen(y + i, from_bf16(loadn_half(x + i, n - i)), n - i);
}
static void K(f16_to_f32)(const uint16_t *x, float *y, size_t n) {
  size_t i = 0;
  for (; i + VL <= n; i += VL) store(y + i, load_f16(x + i));
  if (i < n) storen(y + i, from_f16(loadn_half(x + i, n - i)), n - i);
}
