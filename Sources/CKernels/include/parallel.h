// The process's one thread pool: libgomp's, which oneDNN and OpenBLAS's OpenMP build use as well.

#ifndef CKERNELS_PARALLEL_H
#define CKERNELS_PARALLEL_H

#include <stddef.h>

#pragma clang assume_nonnull begin

/// Runs body(context, chunk) for every chunk in [0, chunks) on at most `threads` threads.
///
/// A thread that is done with a chunk takes the next; inside another parallel region one thread takes all.
void pk_parallel(int threads, size_t chunks, void (*body)(void *_Nullable context, size_t chunk),
                 void *_Nullable context);

/// The processors that this process may run on.
int pk_processor_count(void);
/// The default thread count: OMP_NUM_THREADS, else the processors available.
int pk_default_threads(void);
/// Makes the calling thread's OpenMP regions (oneDNN's, OpenBLAS's) use `threads` threads; cheap when nothing changes.
void pk_use_threads(int threads);
/// The thread count that pk_set_threads set last.
int pk_threads(void);
void pk_set_threads(int threads);

#pragma clang assume_nonnull end

#endif
