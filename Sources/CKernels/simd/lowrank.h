// One row of a low-rank update, y += s B (A x), for batches in which each row has its own factors.

#if PK_LEVEL == 2
// Sixteen outputs of rank 8: each vector holds two rows of B; products are summed over lanes in a tree.
ALWAYS vf lowrank8_block(const float *b, vf t) {
  vf v[8];
  for (int i = 0; i < 8; i++) v[i] = load(b + 16 * i) * t;
  for (int i = 0; i < 4; i++)
    v[i] = __builtin_shufflevector(v[2 * i], v[2 * i + 1], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
           __builtin_shufflevector(v[2 * i], v[2 * i + 1], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  for (int i = 0; i < 2; i++)
    v[i] = __builtin_shufflevector(v[2 * i], v[2 * i + 1], 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29) +
           __builtin_shufflevector(v[2 * i], v[2 * i + 1], 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
  return __builtin_shufflevector(v[0], v[1], 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
         __builtin_shufflevector(v[0], v[1], 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}
#endif

static void K(lowrank_row)(const float *x, const float *a, const float *b, float scale, float *t, float *y, size_t rank,
                           size_t inputs, size_t outputs) {
  K(gemv)(a, inputs, x, scale, 0.0f, t, rank, inputs);
  size_t o = 0;
#if PK_LEVEL == 2
  if (rank == 8) {
    vf low = loadn(t, 8);
    vf both = __builtin_shufflevector(low, low, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7);
    for (; o + 16 <= outputs; o += 16) store(y + o, load(y + o) + lowrank8_block(b + 8 * o, both));
  }
#endif
  if (o < outputs) K(gemv)(b + o * rank, rank, t, 1.0f, 1.0f, y + o, outputs - o, rank);
}
