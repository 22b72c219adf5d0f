#include "gemm.h"

#include <cblas.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "parallel.h"

#ifdef PEFT_ONEDNN
#include <dnnl.h>

bool pk_has_onednn(void) { return true; }

// One matmul primitive for one problem; the cache below keeps the most recent. Making one generates code, which takes
// about 0.4 ms; packed batches bring a new m at nearly every step, so the cache holds a thousand. Its scratchpad is the
// calling thread's: a primitive with one of its own must not run on two threads at once.
typedef struct {
  size_t m, n, k, lda, ldb, ldc;
  dnnl_data_type_t type;
  bool ta, tb, accumulate;
  int threads;
} matmul_key;

typedef struct {
  matmul_key key;
  dnnl_primitive_t primitive;
  dnnl_memory_desc_t a, b, c, scratchpad;
  size_t scratchpad_size;
  uint64_t used;
  int users;
} matmul_entry;

enum { CACHE_SETS = 256, CACHE_WAYS = 4 };
static matmul_entry cache[CACHE_SETS][CACHE_WAYS];
static uint64_t cache_clock;
static pthread_mutex_t cache_lock = PTHREAD_MUTEX_INITIALIZER;
static dnnl_engine_t engine;

#if DNNL_VERSION_MAJOR >= 3

static bool make_desc(dnnl_memory_desc_t *desc, size_t rows, size_t columns, size_t stride0, size_t stride1, dnnl_data_type_t type) {
  dnnl_dims_t dims = {(dnnl_dim_t)rows, (dnnl_dim_t)columns};
  dnnl_dims_t strides = {(dnnl_dim_t)stride0, (dnnl_dim_t)stride1};
  return dnnl_memory_desc_create_with_strides(desc, 2, dims, type, strides) == dnnl_success;
}

static void drop_desc(dnnl_memory_desc_t *desc) {
  if (*desc) dnnl_memory_desc_destroy(*desc);
  *desc = NULL;
}

static bool find_scratchpad(matmul_entry *e, const_dnnl_primitive_desc_t pd) {
  const_dnnl_memory_desc_t desc = dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
  e->scratchpad_size = desc ? dnnl_memory_desc_get_size(desc) : 0;
  return e->scratchpad_size == 0 || dnnl_memory_desc_clone(&e->scratchpad, desc) == dnnl_success;
}

static bool make_primitive(matmul_entry *e, const_dnnl_primitive_attr_t attr) {
  dnnl_primitive_desc_t pd;
  if (dnnl_matmul_primitive_desc_create(&pd, engine, e->a, e->b, NULL, e->c, attr) != dnnl_success) return false;
  bool ok = find_scratchpad(e, pd) && dnnl_primitive_create(&e->primitive, pd) == dnnl_success;
  dnnl_primitive_desc_destroy(pd);
  return ok;
}

static bool append_sum(dnnl_post_ops_t ops) {
  return dnnl_post_ops_append_sum(ops, 1.0f, 0, dnnl_data_type_undef) == dnnl_success;
}

static bool make_memory(dnnl_memory_t *memory, dnnl_memory_desc_t *desc, void *data) {
  return dnnl_memory_create(memory, *desc, engine, data) == dnnl_success;
}

#else

static bool make_desc(dnnl_memory_desc_t *desc, size_t rows, size_t columns, size_t stride0, size_t stride1, dnnl_data_type_t type) {
  dnnl_dims_t dims = {(dnnl_dim_t)rows, (dnnl_dim_t)columns};
  dnnl_dims_t strides = {(dnnl_dim_t)stride0, (dnnl_dim_t)stride1};
  return dnnl_memory_desc_init_by_strides(desc, 2, dims, type, strides) == dnnl_success;
}

static void drop_desc(dnnl_memory_desc_t *desc) { (void)desc; }

static bool find_scratchpad(matmul_entry *e, const_dnnl_primitive_desc_t pd) {
  const dnnl_memory_desc_t *desc = dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
  e->scratchpad_size = desc ? dnnl_memory_desc_get_size(desc) : 0;
  if (e->scratchpad_size > 0) e->scratchpad = *desc;
  return true;
}

static bool make_primitive(matmul_entry *e, const_dnnl_primitive_attr_t attr) {
  dnnl_matmul_desc_t desc;
  if (dnnl_matmul_desc_init(&desc, &e->a, &e->b, NULL, &e->c) != dnnl_success) return false;
  dnnl_primitive_desc_t pd;
  if (dnnl_primitive_desc_create(&pd, &desc, attr, engine, NULL) != dnnl_success) return false;
  bool ok = find_scratchpad(e, pd) && dnnl_primitive_create(&e->primitive, pd) == dnnl_success;
  dnnl_primitive_desc_destroy(pd);
  return ok;
}

static bool append_sum(dnnl_post_ops_t ops) { return dnnl_post_ops_append_sum(ops, 1.0f) == dnnl_success; }

static bool make_memory(dnnl_memory_t *memory, dnnl_memory_desc_t *desc, void *data) {
  return dnnl_memory_create(memory, desc, engine, data) == dnnl_success;
}

#endif

static void drop_entry(matmul_entry *e) {
  if (e->primitive) dnnl_primitive_destroy(e->primitive);
  e->primitive = NULL;
  drop_desc(&e->a);
  drop_desc(&e->b);
  drop_desc(&e->c);
  drop_desc(&e->scratchpad);
}

static bool fill_entry(matmul_entry *e, const matmul_key *key) {
  memset(e, 0, sizeof *e);
  e->key = *key;
  if (!make_desc(&e->a, key->m, key->k, key->ta ? 1 : key->lda, key->ta ? key->lda : 1, key->type)) return false;
  if (!make_desc(&e->b, key->k, key->n, key->tb ? 1 : key->ldb, key->tb ? key->ldb : 1, key->type)) return false;
  if (!make_desc(&e->c, key->m, key->n, key->ldc, 1, dnnl_f32)) return false;
  dnnl_primitive_attr_t attr;
  if (dnnl_primitive_attr_create(&attr) != dnnl_success) return false;
  bool ok = dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user) == dnnl_success;
  if (ok && key->accumulate) {
    dnnl_post_ops_t ops;
    ok = dnnl_post_ops_create(&ops) == dnnl_success;
    if (ok) {
      ok = append_sum(ops) && dnnl_primitive_attr_set_post_ops(attr, ops) == dnnl_success;
      dnnl_post_ops_destroy(ops);
    }
  }
  ok = ok && make_primitive(e, attr);
  dnnl_primitive_attr_destroy(attr);
  return ok;
}

// The places in the cache for a key (64-bit FNV-1a of its bytes, which memset has made definite).
static matmul_entry *set_of(const matmul_key *key) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (size_t i = 0; i < sizeof *key; i++) hash = (hash ^ ((const unsigned char *)key)[i]) * 0x100000001b3u;
  return cache[(hash ^ hash >> 32) % CACHE_SETS];
}

// The cached primitive for a key, made when missing; the caller gives it back with release_entry.
static matmul_entry *take_entry(const matmul_key *key) {
  pthread_mutex_lock(&cache_lock);
  if (!engine && dnnl_engine_create(&engine, dnnl_cpu, 0) != dnnl_success) {
    engine = NULL;
    pthread_mutex_unlock(&cache_lock);
    return NULL;
  }
  matmul_entry *oldest = NULL, *found = NULL, *set = set_of(key);
  for (int i = 0; i < CACHE_WAYS && !found; i++) {
    matmul_entry *e = &set[i];
    if (e->primitive && memcmp(&e->key, key, sizeof *key) == 0) found = e;
    if (e->users == 0 && (!oldest || e->used < oldest->used)) oldest = e;
  }
  if (!found && oldest) {
    drop_entry(oldest);
    if (fill_entry(oldest, key))
      found = oldest;
    else
      drop_entry(oldest);
  }
  if (found) {
    found->users++;
    found->used = ++cache_clock;
  }
  pthread_mutex_unlock(&cache_lock);
  return found;
}

static void release_entry(matmul_entry *e) {
  pthread_mutex_lock(&cache_lock);
  e->users--;
  pthread_mutex_unlock(&cache_lock);
}

// The calling thread's scratchpad, of at least so many bytes.
static void *thread_scratchpad(size_t size) {
  static _Thread_local void *memory;
  static _Thread_local size_t capacity;
  if (size > capacity) {
    free(memory);
    capacity = 0;
    if (posix_memalign(&memory, 4096, size) != 0) memory = NULL;
    if (memory) capacity = size;
  }
  return memory;
}

static dnnl_stream_t thread_stream(void) {
  static _Thread_local dnnl_stream_t stream;
  if (!stream && dnnl_stream_create(&stream, engine, dnnl_stream_default_flags) != dnnl_success) stream = NULL;
  return stream;
}

static bool run_matmul(dnnl_data_type_t type, bool ta, bool tb, size_t m, size_t n, size_t k, const void *a, size_t lda, const void *b,
                       size_t ldb, bool accumulate, float *c, size_t ldc) {
  matmul_key key;
  memset(&key, 0, sizeof key);
  key.m = m, key.n = n, key.k = k, key.lda = lda, key.ldb = ldb, key.ldc = ldc;
  key.ta = ta, key.tb = tb, key.accumulate = accumulate, key.type = type, key.threads = pk_threads();
  pk_use_threads(key.threads);
  matmul_entry *e = take_entry(&key);
  if (!e) return false;
  dnnl_stream_t stream = thread_stream();
  dnnl_memory_t ma = NULL, mb = NULL, mc = NULL, ms = NULL;
  bool ok =
      stream && make_memory(&ma, &e->a, (void *)a) && make_memory(&mb, &e->b, (void *)b) && make_memory(&mc, &e->c, c);
  bool scratch = e->scratchpad_size > 0;
  if (ok && scratch) {
    void *memory = thread_scratchpad(e->scratchpad_size);
    ok = memory && make_memory(&ms, &e->scratchpad, memory);
  }
  if (ok) {
    dnnl_exec_arg_t arguments[4] = {{DNNL_ARG_SRC, ma}, {DNNL_ARG_WEIGHTS, mb}, {DNNL_ARG_DST, mc}, {DNNL_ARG_SCRATCHPAD, ms}};
    ok = dnnl_primitive_execute(e->primitive, stream, scratch ? 4 : 3, arguments) == dnnl_success &&
         dnnl_stream_wait(stream) == dnnl_success;
  }
  if (ma) dnnl_memory_destroy(ma);
  if (mb) dnnl_memory_destroy(mb);
  if (mc) dnnl_memory_destroy(mc);
  if (ms) dnnl_memory_destroy(ms);
  release_entry(e);
  return ok;
}

bool pk_gemm_bf16(bool ta, bool tb, size_t m, size_t n, size_t k, const uint16_t *a, size_t lda, const uint16_t *b, size_t ldb,
                  bool accumulate, float *c, size_t ldc) {
  return run_matmul(dnnl_bf16, ta, tb, m, n, k, a, lda, b, ldb, accumulate, c, ldc);
}

// Whether the matmul primitive is worth its set-up: it is 1.2 to 1.5 times as fast as dnnl_sgemm on products of a layer's size, most
// where B is transposed, and slower on narrow ones.
static bool suits_matmul(size_t m, size_t n, size_t k, float alpha, float beta) {
  return alpha == 1 && (beta == 0 || beta == 1) && m >= 16 && n >= 64 && k >= 64 && m * n * k >= (size_t)1 << 21;
}

#else

bool pk_has_onednn(void) { return false; }

bool pk_gemm_bf16(bool ta, bool tb, size_t m, size_t n, size_t k, const uint16_t *a, size_t lda, const uint16_t *b, size_t ldb,
                  bool accumulate, float *c, size_t ldc) {
  return false;
}

#endif

bool pk_sgemm(pk_gemm_backend backend, bool ta, bool tb, size_t m, size_t n, size_t k, float alpha, const float *a, size_t lda,
              const float *b, size_t ldb, float beta, float *c, size_t ldc) {
  pk_use_threads(pk_threads());
#ifdef PEFT_ONEDNN
  if (backend == PK_ONEDNN && suits_matmul(m, n, k, alpha, beta) &&
      run_matmul(dnnl_f32, ta, tb, m, n, k, a, lda, b, ldb, beta == 1, c, ldc))
    return true;
  if (backend == PK_ONEDNN)
    return dnnl_sgemm(ta ? 'T' : 'N', tb ? 'T' : 'N', (dnnl_dim_t)m, (dnnl_dim_t)n, (dnnl_dim_t)k, alpha, a, (dnnl_dim_t)lda, b,
                      (dnnl_dim_t)ldb, beta, c, (dnnl_dim_t)ldc) == dnnl_success;
#endif
  cblas_sgemm(CblasRowMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans, (int)m, (int)n, (int)k, alpha, a, (int)lda, b,
              (int)ldb, beta, c, (int)ldc);
  return true;
}
