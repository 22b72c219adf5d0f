// A square of VL by VL elements, transposed in registers: log2 VL rounds of exchanges between rows whose numbers
// differ in one bit.

#if PK_LEVEL == 2
#define EXCHANGE_1(a, b) EXCHANGE(a, b, (0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30), (1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31))
#define EXCHANGE_2(a, b) EXCHANGE(a, b, (0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29), (2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31))
#define EXCHANGE_4(a, b) EXCHANGE(a, b, (0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27), (4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31))
#define EXCHANGE_8(a, b) EXCHANGE(a, b, (0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23), (8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31))
#elif PK_LEVEL == 1
#define EXCHANGE_1(a, b) EXCHANGE(a, b, (0, 8, 2, 10, 4, 12, 6, 14), (1, 9, 3, 11, 5, 13, 7, 15))
#define EXCHANGE_2(a, b) EXCHANGE(a, b, (0, 1, 8, 9, 4, 5, 12, 13), (2, 3, 10, 11, 6, 7, 14, 15))
#define EXCHANGE_4(a, b) EXCHANGE(a, b, (0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 6, 7, 12, 13, 14, 15))
#else
#define EXCHANGE_1(a, b) EXCHANGE(a, b, (0, 4, 2, 6), (1, 5, 3, 7))
#define EXCHANGE_2(a, b) EXCHANGE(a, b, (0, 1, 4, 5), (2, 3, 6, 7))
#endif
#define LIST(...) __VA_ARGS__
#define EXCHANGE(a, b, low, high)                          \
  {                                                        \
    vf l = __builtin_shufflevector(a, b, LIST low);        \
    vf h = __builtin_shufflevector(a, b, LIST high);       \
    a = l;                                                 \
    b = h;                                                 \
  }
#define EXCHANGE_ROUND(s)                                  \
  _Pragma("clang loop unroll(full)") for (int i = 0; i < VL; i++) if (!(i & s)) EXCHANGE_##s(r[i], r[i | s])

ALWAYS void transpose_square(vf r[VL]) {
  EXCHANGE_ROUND(1)
  EXCHANGE_ROUND(2)
#if VL > 4
  EXCHANGE_ROUND(4)
#endif
#if VL > 8
  EXCHANGE_ROUND(8)
#endif
}

// Each row of a square; unrolled, so that the square stays in registers.
#define FOR_SQUARE(r) _Pragma("clang loop unroll(full)") for (size_t r = 0; r < VL; r++)
