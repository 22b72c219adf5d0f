#include "CKernels.h"

// Eight tables: a word of eight bytes costs eight look-ups that do not wait for each other.
static uint32_t tables[8][256];
static int ready = 0;

static void make_tables(void) {
  for (uint32_t byte = 0; byte < 256; byte++) {
    uint32_t value = byte;
    for (int bit = 0; bit < 8; bit++) value = value >> 1 ^ (value & 1 ? 0xedb88320u : 0);
    tables[0][byte] = value;
  }
  for (uint32_t byte = 0; byte < 256; byte++)
    for (int t = 1; t < 8; t++) tables[t][byte] = tables[t - 1][byte] >> 8 ^ tables[0][tables[t - 1][byte] & 0xff];
}

uint32_t pk_crc32(const uint8_t *bytes, size_t count) {
  // Whoever comes first writes the same values, so a second writer does no harm.
  if (!__atomic_load_n(&ready, __ATOMIC_ACQUIRE)) {
    make_tables();
    __atomic_store_n(&ready, 1, __ATOMIC_RELEASE);
  }
  uint32_t crc = 0xffffffffu;
  for (; count >= 8; count -= 8, bytes += 8) {
    uint32_t low = crc ^ ((uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24);
    crc = tables[7][low & 0xff] ^ tables[6][low >> 8 & 0xff] ^ tables[5][low >> 16 & 0xff] ^ tables[4][low >> 24] ^
          tables[3][bytes[4]] ^ tables[2][bytes[5]] ^ tables[1][bytes[6]] ^ tables[0][bytes[7]];
  }
  for (; count > 0; count--, bytes++) crc = crc >> 8 ^ tables[0][(crc ^ *bytes) & 0xff];
  return ~crc;
}
