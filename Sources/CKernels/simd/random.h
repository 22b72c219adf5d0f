// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", 2011).
//
// The counter is (block, stream), the key the seed. A group of 64 elements takes 16 blocks: word w of
// block 16 g + l is element 64 g + 16 w + l, so that no level needs a shuffle. Contraction is off, so every
// level rounds alike.

#if VL == 16
#define LANES ((vu){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15})
#elif VL == 8
#define LANES ((vu){0, 1, 2, 3, 4, 5, 6, 7})
#else
#define LANES ((vu){0, 1, 2, 3})
#endif

typedef uint64_t vq __attribute__((vector_size(VL * 4)));

ALWAYS void multiply_wide(vu a, uint32_t factor, vu *high, vu *low) {
  // Products of even and of odd lanes, whose halves are then put in their places.
#if PK_LEVEL == 2
  __m512i f = _mm512_set1_epi32((int)factor);
  __m512i even = _mm512_mul_epu32((__m512i)a, f), odd = _mm512_mul_epu32(_mm512_srli_epi64((__m512i)a, 32), f);
  *high = (vu)_mm512_mask_shuffle_epi32(odd, 0x5555, even, _MM_PERM_DDBB);
  *low = (vu)_mm512_mask_shuffle_epi32(even, 0xaaaa, odd, _MM_PERM_CCAA);
#elif PK_LEVEL == 1
  __m256i f = _mm256_set1_epi32((int)factor);
  __m256i even = _mm256_mul_epu32((__m256i)a, f), odd = _mm256_mul_epu32(_mm256_srli_epi64((__m256i)a, 32), f);
  *high = (vu)_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
  *low = (vu)_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
#else
  vq q = (vq)a;
  vq even = (q & 0xffffffff) * factor, odd = (q >> 32) * factor;
  *high = (vu)((even >> 32) | (odd & 0xffffffff00000000));
  *low = (vu)((even & 0xffffffff) | (odd << 32));
#endif
}

// The words of blocks first ... first + VL - 1, which must not cross a multiple of 2^32.
ALWAYS void philox(pk_random random, uint64_t first, vu words[4]) {
  vu c0 = splatu((uint32_t)first) + LANES, c1 = splatu((uint32_t)(first >> 32));
  vu c2 = splatu((uint32_t)random.stream), c3 = splatu((uint32_t)(random.stream >> 32));
  uint32_t k0 = (uint32_t)random.seed, k1 = (uint32_t)(random.seed >> 32);
#pragma clang loop unroll(full)
  for (int round = 0; round < 10; round++) {
    vu h0, l0, h1, l1;
    multiply_wide(c0, 0xd2511f53, &h0, &l0);
    multiply_wide(c2, 0xcd9e8d57, &h1, &l1);
    c0 = h1 ^ c1 ^ k0;
    c1 = l1;
    c2 = h0 ^ c3 ^ k1;
    c3 = l0;
    k0 += 0x9e3779b9;
    k1 += 0xbb67ae85;
  }
  words[0] = c0;
  words[1] = c1;
  words[2] = c2;
  words[3] = c3;
}

// The 64 numbers of a group.
ALWAYS void philox_group(pk_random random, uint64_t group, uint32_t *y) {
  for (int part = 0; part < 16; part += VL) {
    vu words[4];
    philox(random, group * 16 + (uint64_t)part, words);
    for (int w = 0; w < 4; w++) *(vi_any *)(y + 16 * w + part) = (vi)words[w];
  }
}

// Runs body over the elements that a group shares with [first, first + n): elements [from, to) of the group
// are y[base + from ...].
#define FOR_GROUPS(body)                                                                          \
  for (uint64_t g = first / 64; g * 64 < first + n; g++) {                                        \
    size_t from = g * 64 < first ? (size_t)(first - g * 64) : 0;                                  \
    size_t to = first + n - g * 64 < 64 ? (size_t)(first + n - g * 64) : 64;                      \
    ptrdiff_t base = (ptrdiff_t)(g * 64 - first);                                                 \
    body                                                                                          \
  }

static void K(dropout)(const float *x, float p, pk_random random, uint64_t first, float *y, size_t n) {
  uint32_t threshold = (uint32_t)((double)p * 4294967296.0);
  float keep = 1.0f / (1.0f - p);
  uint32_t bits[64];
  FOR_GROUPS({
    const float *in = x + base;
    float *out = y + base;
    if (to - from == 64) {
      for (int part = 0; part < 16; part += VL) {
        vu words[4];
        philox(random, g * 16 + (uint64_t)part, words);
        for (int w = 0; w < 4; w++) {
          size_t i = (size_t)(16 * w + part);
          store(out + i, (vf)((vi)(load(in + i) * keep) & (vi)(words[w] >= threshold)));
        }
      }
    } else {
      philox_group(random, g, bits);
      for (size_t i = from; i < to; i++) out[i] = bits[i] >= threshold ? in[i] * keep : 0.0f;
    }
  })
}

static void K(uniform)(float low, float high, pk_random random, uint64_t first, float *y, size_t n) {
#pragma clang fp contract(off)
  float block[64];
  float span = high - low;
  FOR_GROUPS({
    for (int part = 0; part < 16; part += VL) {
      vu words[4];
      philox(random, g * 16 + (uint64_t)part, words);
      for (int w = 0; w < 4; w++) {
        vf u = __builtin_convertvector((vi)(words[w] >> 8), vf) * 0x1p-24f;
        vf v = u * span;
        v = low + v;
        // Rounding may reach the open end.
        store(block + 16 * w + part, blend((vi)(v < high), v, splat(low)));
      }
    }
    memcpy(y + base + (ptrdiff_t)from, block + from, (to - from) * sizeof(float));
  })
}

// -2 ln u for u in (0, 1].
ALWAYS vf minus_two_log(vf u) {
#pragma clang fp contract(off)
  vi bits = (vi)u - 0x3f3504f3;
  vi e = bits >> 23;
  vf f = (vf)((bits & 0x7fffff) + 0x3f3504f3) - 1.0f;
  vf p = f * -0.07859546f + 0.12881622f;
  p = p * f - 0.13128768f;
  p = p * f + 0.14181196f;
  p = p * f - 0.16624553f;
  p = p * f + 0.20002286f;
  p = p * f - 0.25000810f;
  p = p * f + 0.33333317f;
  vf ff = f * f;
  vf l = f * ff * p - 0.5f * ff + f;
  return (l + __builtin_convertvector(e, vf) * 0.69314718f) * -2.0f;
}

// Box and Muller: two uniform numbers to two normal ones.
ALWAYS void box_muller(vu a, vu b, vf *x, vf *y) {
#pragma clang fp contract(off)
  vf u = __builtin_convertvector((vi)((a >> 8) + 1), vf) * 0x1p-24f;
  vf radius = vsqrt(vmax(splat(0.0f), minus_two_log(u)));
  vi t = (vi)(b >> 8);
  vi quadrant = (t + (1 << 21)) >> 22;
  vf z = __builtin_convertvector(t - (quadrant << 22), vf) * 0x1p-22f;
  vf zz = z * z;
  vf s = zz * -0.00460218f + 0.07968023f;
  s = s * zz - 0.64596348f;
  s = (s * zz + 1.57079632f) * z;
  vf c = zz * 0.000903631697f - 0.0208600713f;
  c = c * zz + 0.253669204f;
  c = c * zz - 1.23370054f;
  c = c * zz + 1.0f;
  vi swap = -(quadrant & 1);
  vf sine = blend(swap, c, s), cosine = blend(swap, s, c);
  sine = (vf)((vi)sine ^ ((quadrant & 2) << 30));
  cosine = (vf)((vi)cosine ^ (((quadrant + 1) & 2) << 30));
  *x = radius * cosine;
  *y = radius * sine;
}

static void K(normal)(float std, pk_random random, uint64_t first, float *y, size_t n) {
  float block[64];
  FOR_GROUPS({
    for (int part = 0; part < 16; part += VL) {
      vu words[4];
      vf z[4];
      philox(random, g * 16 + (uint64_t)part, words);
      box_muller(words[0], words[1], &z[0], &z[1]);
      box_muller(words[2], words[3], &z[2], &z[3]);
      for (int w = 0; w < 4; w++) store(block + 16 * w + part, z[w] * std);
    }
    memcpy(y + base + (ptrdiff_t)from, block + from, (to - from) * sizeof(float));
  })
}
