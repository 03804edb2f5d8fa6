// Names that nobody can guess.
#pragma once

#include <cstring>
#include <random>
#include <string>

namespace tandem {

/// So many bytes of the system's randomness. `n_bytes`: a multiple of 4. Thread-safe.
inline std::string RandomBytes(size_t n_bytes) {
  std::random_device random;
  std::string bytes(n_bytes, '\0');
  for (size_t i = 0; i < n_bytes; i += sizeof(uint32_t)) {
    const uint32_t word = random();
    std::memcpy(&bytes[i], &word, sizeof word);
  }
  return bytes;
}

}  // namespace tandem
