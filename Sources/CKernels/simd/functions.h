// exp, tanh, the normal distribution's function and what is made of them, on vectors. The polynomials are
// minimax fits (weighted for the relative error of the result); the tests compare with double precision.

// 2^n for integers n in [-252, 254] times v, in two factors so that results may be subnormal or infinite.
ALWAYS vf scale_power(vf v, vi n) {
#if PK_LEVEL == 2
  return (vf)_mm512_scalef_ps((__m512)v, _mm512_cvtepi32_ps((__m512i)n));
#else
  vi half = n >> 1;
  return v * (vf)((half + 127) << 23) * (vf)((n - half + 127) << 23);
#endif
}

ALWAYS vf vexp(vf x) {
  // Beyond these the result is 0 or infinite; written so that NaN passes.
  x = vmin(splat(89.0f), vmax(splat(-104.0f), x));
  // Adding 1.5 * 2^23 rounds to an integer, which is then in the low bits.
  vf shifted = x * 1.44269504f + 12582912.0f;
  vf n = shifted - 12582912.0f;
  vf r = x - n * 0x1.62e4p-1f;
  r = r - n * 0x1.7f7d1cp-20f;
  vf q = r * 0.00139505f + 0.00836888f;
  q = q * r + 0.04166621f;
  q = q * r + 0.16666519f;
  q = q * r + 0.50000001f;
  vf e = q * (r * r) + r + 1.0f;
  return scale_power(e, (vi)shifted - 0x4b400000);
}

ALWAYS vf vsigmoid(vf x) { return 1.0f / (1.0f + vexp(-x)); }

// sigmoid(x), and 1 - sigmoid(x) without cancellation. Below -80 both stay as there, so that no product is
// infinity times zero.
ALWAYS vf vsigmoid_pair(vf x, vf *complement) {
  vf e = vexp(-vmax(splat(-80.0f), x));
  vf s = 1.0f / (1.0f + e);
  *complement = e * s;
  return s;
}

ALWAYS vf vtanh(vf x) {
  vf a = vabs(x), s = x * x;
  vf t = s * -0.00565706f + 0.02059874f;
  t = t * s - 0.05372826f;
  t = t * s + 0.13331318f;
  t = t * s - 0.33333278f;
  vf near = x + x * s * t;
  vf far = 1.0f - 2.0f / (vexp(a + a) + 1.0f);
  far = (vf)((vi)far | ((vi)x & (int)0x80000000));
  return blend((vi)(a < 0.625f), near, far);
}

// Phi(x), the standard normal distribution function, given e = exp(-x²/2): for x < 0 it is
// t P(t) e / 2 with t = 1 / (1 + 0.35 |x| / sqrt 2), accurate to the tail; for x > 0 the complement.
ALWAYS vf vnormal(vf x, vf e) {
  vf t = 1.0f / (1.0f + vabs(x) * 0.24748737f);
  vf p = t * 0.03908270f - 0.16273570f;
  p = p * t + 0.19069483f;
  p = p * t - 0.04044423f;
  p = p * t + 0.09801609f;
  p = p * t + 0.13989234f;
  p = p * t + 0.15340985f;
  p = p * t + 0.18740193f;
  p = p * t + 0.19720189f;
  p = p * t + 0.19748032f;
  vf tail = 0.5f * p * t * e;
  return blend((vi)(x < 0.0f), tail, 1.0f - tail);
}

ALWAYS vf vgelu(vf x) { return x * vnormal(x, vexp(-0.5f * x * x)); }

ALWAYS vf vgelu_slope(vf x) {
  vf e = vexp(-0.5f * x * x);
  return vnormal(x, e) + x * e * 0.398942280f;
}

// tanh(u) = 2 sigmoid(2u) - 1, so the tanh form of GELU is x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x³).
ALWAYS vf vgelu_tanh(vf x) {
  vf u = x * (1.59576912f + 0.0713548163f * x * x);
  return x * vsigmoid(u);
}

ALWAYS vf vgelu_tanh_slope(vf x) {
  vf c, s = vsigmoid_pair(x * (1.59576912f + 0.0713548163f * x * x), &c);
  return s + x * s * c * (1.59576912f + 0.214064449f * x * x);
}

ALWAYS vf vsilu(vf x) { return x * vsigmoid(x); }

ALWAYS vf vsilu_slope(vf x) {
  vf c, s = vsigmoid_pair(x, &c);
  return s * (1.0f + x * c);
}
