#define _GNU_SOURCE
#include "parallel.h"

#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "CKernels.h"

#if defined(__linux__)
// libgomp's stable ABI; Swift's clang ships no omp.h and no libomp.
extern void GOMP_parallel(void (*fn)(void *), void *data, unsigned threads, unsigned flags);
extern int omp_in_parallel(void);
extern void omp_set_num_threads(int threads);

typedef struct {
  void (*body)(void *, size_t);
  void *context;
  size_t chunks;
  size_t next;
} region;

// A thread takes the next chunk when it is done with one: where cores differ in speed, or are shared, no one waits long.
// Nor does it matter how many threads there are: OMP_THREAD_LIMIT and OMP_DYNAMIC can make them fewer than were asked for.
static void run_region(void *data) {
  region *r = data;
  for (size_t chunk; (chunk = __atomic_fetch_add(&r->next, 1, __ATOMIC_RELAXED)) < r->chunks;) r->body(r->context, chunk);
}

void pk_parallel(int threads, size_t chunks, void (*body)(void *, size_t), void *context) {
  if ((size_t)threads > chunks) threads = (int)chunks;
  if (threads > 1 && !omp_in_parallel()) {
    region r = {body, context, chunks, 0};
    GOMP_parallel(run_region, &r, (unsigned)threads, 0);
  } else {
    for (size_t chunk = 0; chunk < chunks; chunk++) body(context, chunk);
  }
}

int pk_processor_count(void) {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  int count = CPU_COUNT(&set);
  return count > 0 ? count : 1;
}

#else

void pk_parallel(int threads, size_t chunks, void (*body)(void *, size_t), void *context) {
  (void)threads;
  for (size_t chunk = 0; chunk < chunks; chunk++) body(context, chunk);
}

int pk_processor_count(void) { return 1; }

#endif

int pk_default_threads(void) {
  const char *text = getenv("OMP_NUM_THREADS");
  int count = text ? atoi(text) : 0;
  return count > 0 ? count : pk_processor_count();
}

static int current_threads;

int pk_threads(void) {
  int threads = __atomic_load_n(&current_threads, __ATOMIC_RELAXED);
  if (threads == 0) {
    threads = pk_default_threads();
    __atomic_store_n(&current_threads, threads, __ATOMIC_RELAXED);
  }
  return threads;
}

void pk_set_threads(int threads) {
  __atomic_store_n(&current_threads, threads < 1 ? 1 : threads, __ATOMIC_RELAXED);
  pk_use_threads(pk_threads());
}

void pk_use_threads(int threads) {
#if defined(__linux__)
  // OpenMP keeps the count for each thread that starts regions.
  static _Thread_local int last;
  if (last != threads) {
    omp_set_num_threads(threads);
    last = threads;
  }
#else
  (void)threads;
#endif
}

void pk_advise_huge(void *address, size_t bytes) {
#if defined(__linux__)
  madvise(address, bytes, MADV_HUGEPAGE);
#else
  (void)address;
  (void)bytes;
#endif
}
