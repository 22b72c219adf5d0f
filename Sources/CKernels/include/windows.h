// The windows that a convolution sees, as rows of a matrix.

#ifndef CKERNELS_WINDOWS_H
#define CKERNELS_WINDOWS_H

#pragma clang assume_nonnull begin

/// Windows over images [n, channels, size[0], size[1], size[2]]; a missing dimension has size 1.
///
/// taps[d] is a table [positions[d], kernel[d]] of the coordinate in the input that each tap of each position
/// sees, -1 where it sees padding of zeros. Rows of the matrix are positions of all images, row-major; columns
/// are the channels' kernels.
typedef struct {
  size_t channels;
  size_t size0, size1, size2;
  size_t kernel0, kernel1, kernel2;
  size_t positions0, positions1, positions2;
  const int32_t *taps0, *taps1, *taps2;
} pk_windows;

/// Copies the windows of rows [first, first + count) into columns [count, channels * kernel].
void pk_unfold(const pk_windows *w, const float *x, size_t first, size_t count, float *columns);

/// The transpose: adds columns [count, channels * kernel] of the same rows to x, for some of the channels.
void pk_fold(const pk_windows *w, const float *columns, size_t first, size_t count, size_t first_channel, size_t channel_count,
             float *x);

#pragma clang assume_nonnull end

#endif
