// What the tests of the store and its tiers share: chunks made of seeds, folders, waiting.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "kvstore/chunk.h"
#include "kvstore/tiers/disk_tier.h"

namespace tandem::kvstore {

/// The n-th of a row of words that look like chance (SplitMix64).
inline uint64_t Scramble(uint64_t n) {
  uint64_t word = (n + 1) * 0x9E3779B97F4A7C15;
  word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9;
  word = (word ^ (word >> 27)) * 0x94D049BB133111EB;
  return word ^ (word >> 31);
}

inline ChunkId MakeId(uint64_t seed) {
  ChunkId id;
  for (size_t i = 0; i < id.bytes.size(); i += 8) {
    const uint64_t word = Scramble(4 * seed + i / 8);
    std::memcpy(&id.bytes[i], &word, 8);
  }
  return id;
}

inline ChunkKey MakeKey(uint64_t seed, Level level = Level::kLossless) {
  return {MakeId(seed), level};
}

struct ChunkShape {
  size_t bytes = 1000;  // with the envelope
  uint32_t first_position = 0, n_tokens = 256;
  Level level = Level::kLossless;
};

/// Equal seeds and shapes give equal chunks.
inline StoredChunkPtr MakeChunk(uint64_t seed, ChunkShape shape = {}) {
  std::vector<uint8_t> payload(shape.bytes - StoredChunk::kEnvelopeBytes);
  for (size_t i = 0; i < payload.size(); i += 8) {
    const uint64_t word = Scramble(seed * 0x10001 + i);
    std::memcpy(&payload[i], &word, std::min<size_t>(8, payload.size() - i));
  }
  return StoredChunk::Seal(MakeKey(seed, shape.level), shape.first_position, shape.n_tokens,
                           payload);
}

/// Flips one bit of its payload, which nobody may do.
inline void Damage(const StoredChunk& chunk) {
  const_cast<uint8_t&>(chunk.payload()[chunk.payload().size() / 2]) ^= 4;
}

inline bool SameBytes(const StoredChunk& a, const StoredChunk& b) {
  return std::ranges::equal(a.bytes(), b.bytes());
}

/// Waits until it holds, ten seconds at most.
inline bool Eventually(const std::function<bool()>& holds,
                       absl::Duration limit = absl::Seconds(10)) {
  const absl::Time end = absl::Now() + limit;
  while (!holds()) {
    if (absl::Now() > end) return false;
    absl::SleepFor(absl::Milliseconds(2));
  }
  return true;
}

/// A folder that goes with the test.
class TempDir {
 public:
  TempDir() {
    std::string name = std::filesystem::temp_directory_path() / "tandem-store-XXXXXX";
    path_ = mkdtemp(name.data());
  }
  ~TempDir() { std::filesystem::remove_all(path_); }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  std::string path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

/// Of all files below a folder; those that vanish meanwhile count nothing.
inline uint64_t FolderBytes(const std::string& path) {
  uint64_t bytes = 0;
  std::error_code error;
  for (const auto& file : std::filesystem::recursive_directory_iterator(path, error)) {
    const uint64_t size = file.file_size(error);
    if (!error) bytes += size;
  }
  return bytes;
}

/// A clock that the test moves.
class TestClock {
 public:
  void Advance(absl::Duration by) { seconds_ += absl::ToInt64Seconds(by); }
  std::function<absl::Time()> now() {
    return [this] { return absl::FromUnixSeconds(seconds_); };
  }

 private:
  std::atomic<int64_t> seconds_ = 1'000'000'000;
};

}  // namespace tandem::kvstore
