// One vector type for each instruction set. A source file defines PK_LEVEL (0, 1, 2), includes this and
// the kernels after it inside a target attribute, and so compiles them for that level.

#include <math.h>
#include <string.h>

#define ALWAYS static inline __attribute__((always_inline, unused))

#if PK_LEVEL == 2
#define VL 16
#define K(name) name##_avx512
#elif PK_LEVEL == 1
#define VL 8
#define K(name) name##_avx2
#else
#define VL 4
#define K(name) name##_portable
#endif
#define HL (VL / 2)

typedef float vf __attribute__((vector_size(VL * 4)));
typedef int32_t vi __attribute__((vector_size(VL * 4)));
typedef uint32_t vu __attribute__((vector_size(VL * 4)));
typedef double vd __attribute__((vector_size(VL * 4)));
typedef float vh __attribute__((vector_size(VL * 2)));
typedef uint16_t vs __attribute__((vector_size(VL * 2)));

// Loads and stores at any address.
typedef vf vf_any __attribute__((aligned(1), may_alias));
typedef vi vi_any __attribute__((aligned(1), may_alias));
typedef vh vh_any __attribute__((aligned(1), may_alias));
typedef vs vs_any __attribute__((aligned(1), may_alias));

ALWAYS vf load(const float *p) { return *(const vf_any *)p; }
ALWAYS void store(float *p, vf v) { *(vf_any *)p = v; }
// Subtracting zero keeps the sign of -0.
ALWAYS vf splat(float x) { return x - (vf){}; }
ALWAYS vi splati(int32_t x) { return (vi){} + x; }
ALWAYS vu splatu(uint32_t x) { return (vu){} + x; }
ALWAYS vd widen(const float *p) { return __builtin_convertvector(*(const vh_any *)p, vd); }
ALWAYS vf blend(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }

// The first n < VL elements; the rest read as zero.
ALWAYS vf loadn(const float *p, size_t n) {
#if PK_LEVEL == 2
  return (vf)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#else
  vf v = {};
  for (size_t i = 0; i < VL; i++)
    if (i < n) v[i] = p[i];
  return v;
#endif
}

ALWAYS void storen(float *p, vf v, size_t n) {
#if PK_LEVEL == 2
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
#else
  for (size_t i = 0; i < VL; i++)
    if (i < n) p[i] = v[i];
#endif
}

// max(a, b) and min(a, b); b when either is not a number.
ALWAYS vf vmax(vf a, vf b) {
#if PK_LEVEL == 2
  return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif PK_LEVEL == 1
  return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return blend((vi)(a > b), a, b);
#endif
}

ALWAYS vf vmin(vf a, vf b) {
#if PK_LEVEL == 2
  return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#elif PK_LEVEL == 1
  return (vf)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return blend((vi)(a < b), a, b);
#endif
}

ALWAYS vf vabs(vf a) { return (vf)((vi)a & 0x7fffffff); }
ALWAYS vf vsqrt(vf a) {
#if PK_LEVEL == 2
  return (vf)_mm512_sqrt_ps((__m512)a);
#elif PK_LEVEL == 1
  return (vf)_mm256_sqrt_ps((__m256)a);
#else
  for (int i = 0; i < VL; i++) a[i] = __builtin_sqrtf(a[i]);
  return a;
#endif
}

// The sum and the largest of the lanes, in a fixed order.
ALWAYS float hsum(vf v) {
#if PK_LEVEL == 2
  return _mm512_reduce_add_ps((__m512)v);
#elif PK_LEVEL == 1
  __m128 a = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
  a = _mm_add_ps(a, _mm_movehl_ps(a, a));
  return _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a)));
#else
  return (v[0] + v[2]) + (v[1] + v[3]);
#endif
}

ALWAYS double hsumd(vd v) {
  double s = 0;
  for (int i = 0; i < HL; i++) s += v[i];
  return s;
}

ALWAYS float hmax(vf v) {
  float m = v[0];
  for (int i = 1; i < VL; i++) m = v[i] > m ? v[i] : m;
  return m;
}

// bf16 and f16 to f32, exact.
ALWAYS vf from_bf16(vs h) { return (vf)(__builtin_convertvector(h, vu) << 16); }
ALWAYS vf from_f16(vs h) {
#if PK_LEVEL == 2
  return (vf)_mm512_cvtph_ps((__m256i)h);
#elif PK_LEVEL == 1
  return (vf)_mm256_cvtph_ps((__m128i)h);
#else
  vu w = __builtin_convertvector(h, vu), sign = (w & 0x8000) << 16, rest = (w & 0x7fff) << 13;
  // Scaling by 2^112 moves the exponent's bias and makes subnormals normal; infinities and NaN are patched.
  vf magnitude = (vf)rest * 0x1p112f;
  vu special = (vu)((vi)(rest >= (0x7c00u << 13)));
  vu bits = (special & (rest | 0x7f800000)) | (~special & (vu)magnitude);
  return (vf)(bits | sign);
#endif
}
ALWAYS vf load_bf16(const uint16_t *p) { return from_bf16(*(const vs_any *)p); }
ALWAYS vf load_f16(const uint16_t *p) { return from_f16(*(const vs_any *)p); }
ALWAYS vs loadn_half(const uint16_t *p, size_t n) {
  vs v = {};
  for (size_t i = 0; i < VL; i++)
    if (i < n) v[i] = p[i];
  return v;
}

// f32 to bf16 and f16, to nearest even; NaN stays NaN.
ALWAYS vs to_bf16(vf x) {
  vu u = (vu)x;
  vu rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  vu nan = (vu)(vi)(x != x);
  return __builtin_convertvector((nan & ((u >> 16) | 0x40)) | (~nan & rounded), vs);
}
ALWAYS vs to_f16(vf x) {
#if PK_LEVEL == 2
  return (vs)_mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT);
#elif PK_LEVEL == 1
  return (vs)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT);
#else
  vu u = (vu)x, sign = (u >> 16) & 0x8000, rest = u & 0x7fffffff;
  // Normal results: move the bias and round the 13 dropped bits. Subnormal results: the addition of 0.5
  // leaves the rounded significand in the low bits. Too large: infinity. NaN keeps its top bits.
  vu normal = (rest - (112u << 23) + 0xfff + ((rest >> 13) & 1)) >> 13;
  vu small = (vu)((vf)rest + 0.5f) - 0x3f000000u;
  vu is_small = (vu)(vi)(rest < (113u << 23));
  vu is_large = (vu)(vi)(rest >= 0x477ff000u);
  vu is_nan = (vu)(vi)(rest > 0x7f800000u);
  vu h = (is_small & small) | (~is_small & normal);
  h = (is_large & splatu(0x7c00)) | (~is_large & h);
  h = (is_nan & (((rest >> 13) & 0x3ff) | 0x7e00)) | (~is_nan & h);
  return __builtin_convertvector(h | sign, vs);
#endif
}
