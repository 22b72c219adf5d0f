#include "CKernels.h"

// Where row `row` of the matrix is: its image, and its part of each table of taps.
typedef struct {
  size_t image;
  const int32_t *t0, *t1, *t2;
} place;

static inline place find(const pk_windows *w, size_t row) {
  size_t p2 = row % w->positions2;
  row /= w->positions2;
  size_t p1 = row % w->positions1;
  row /= w->positions1;
  size_t p0 = row % w->positions0;
  return (place){row / w->positions0, w->taps0 + p0 * w->kernel0, w->taps1 + p1 * w->kernel1, w->taps2 + p2 * w->kernel2};
}

void pk_unfold(const pk_windows *w, const float *x, size_t first, size_t count, float *columns) {
  size_t volume = w->size0 * w->size1 * w->size2;
  for (size_t row = first; row < first + count; row++) {
    place at = find(w, row);
    for (size_t c = 0; c < w->channels; c++) {
      const float *plane = x + (at.image * w->channels + c) * volume;
      for (size_t a = 0; a < w->kernel0; a++)
        for (size_t b = 0; b < w->kernel1; b++) {
          if (at.t0[a] < 0 || at.t1[b] < 0) {
            for (size_t e = 0; e < w->kernel2; e++) *columns++ = 0;
            continue;
          }
          const float *line = plane + ((size_t)at.t0[a] * w->size1 + (size_t)at.t1[b]) * w->size2;
          for (size_t e = 0; e < w->kernel2; e++) *columns++ = at.t2[e] < 0 ? 0 : line[at.t2[e]];
        }
    }
  }
}

void pk_fold(const pk_windows *w, const float *columns, size_t first, size_t count, size_t first_channel, size_t channel_count,
             float *x) {
  size_t volume = w->size0 * w->size1 * w->size2, taps = w->kernel0 * w->kernel1 * w->kernel2;
  for (size_t row = first; row < first + count; row++) {
    place at = find(w, row);
    const float *from = columns + ((row - first) * w->channels + first_channel) * taps;
    for (size_t c = first_channel; c < first_channel + channel_count; c++) {
      float *plane = x + (at.image * w->channels + c) * volume;
      for (size_t a = 0; a < w->kernel0; a++)
        for (size_t b = 0; b < w->kernel1; b++, from += w->kernel2) {
          if (at.t0[a] < 0 || at.t1[b] < 0) continue;
          float *line = plane + ((size_t)at.t0[a] * w->size1 + (size_t)at.t1[b]) * w->size2;
          for (size_t e = 0; e < w->kernel2; e++)
            if (at.t2[e] >= 0) line[at.t2[e]] += from[e];
        }
    }
  }
}
