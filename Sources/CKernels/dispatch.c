#include "dispatch.h"

#include <stdlib.h>
#include <string.h>

static const pk_table *tables[] = {
    &pk_table_portable,
#if defined(__x86_64__)
    &pk_table_avx2,
    &pk_table_avx512,
#endif
};

#if defined(__x86_64__)
static pk_isa machine_isa(void) {
  __builtin_cpu_init();
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                __builtin_cpu_supports("avx512vl");
  return avx2 ? (avx512 ? PK_AVX512 : PK_AVX2) : PK_PORTABLE;
}
bool pk_has_vnni(void) { return pk_isa_supported() >= PK_AVX512 && __builtin_cpu_supports("avx512vnni"); }
bool pk_has_bf16(void) { return pk_isa_supported() >= PK_AVX512 && __builtin_cpu_supports("avx512bf16"); }
#else
static pk_isa machine_isa(void) { return PK_PORTABLE; }
bool pk_has_vnni(void) { return false; }
bool pk_has_bf16(void) { return false; }
#endif

pk_isa pk_isa_supported(void) {
  static int known = -1;
  int level = __atomic_load_n(&known, __ATOMIC_RELAXED);
  if (level < 0) {
    pk_isa best = machine_isa();
    const char *limit = getenv("PEFT_ISA");
    if (limit && strcmp(limit, "portable") == 0) best = PK_PORTABLE;
    if (limit && strcmp(limit, "avx2") == 0 && best > PK_AVX2) best = PK_AVX2;
    level = (int)best;
    __atomic_store_n(&known, level, __ATOMIC_RELAXED);
  }
  return (pk_isa)level;
}

static int current_level = -1;

pk_isa pk_isa_current(void) {
  int level = __atomic_load_n(&current_level, __ATOMIC_RELAXED);
  return level < 0 ? pk_isa_supported() : (pk_isa)level;
}

void pk_isa_limit(pk_isa level) {
  pk_isa best = pk_isa_supported();
  __atomic_store_n(&current_level, (int)(level < best ? level : best), __ATOMIC_RELAXED);
}

static const pk_table *table(void) { return tables[pk_isa_current()]; }

#define KERNEL(result, name, parameters, arguments) \
  result pk_##name parameters { return table()->name arguments; }
#include "kernels.def"
#undef KERNEL
