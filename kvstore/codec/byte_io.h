// Little-endian integers in and out of bytes, bounds checked. For the codec's formats.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>
#include <vector>

namespace tandem::kvstore::codec {

static_assert(std::endian::native == std::endian::little,
              "values are copied as they lie in memory");

/// Reads what may be too short: from the first read that does not fit, every value is zero or
/// empty and ok() is false.
class ByteReader {
 public:
  explicit ByteReader(std::span<const uint8_t> bytes) : rest_(bytes) {}

  template <typename T>
  T Read() {
    static_assert(std::is_arithmetic_v<T>);
    T value{};
    const auto bytes = Take(sizeof(T));
    if (!bytes.empty()) std::memcpy(&value, bytes.data(), sizeof(T));
    return value;
  }
  /// The next `n` bytes; empty when there are fewer.
  std::span<const uint8_t> Take(size_t n) {
    if (n > rest_.size()) {
      ok_ = false;
      rest_ = {};
      return {};
    }
    const auto taken = rest_.first(n);
    rest_ = rest_.subspan(n);
    return taken;
  }
  /// `n` values. Memory is taken only for values that are there.
  template <typename T>
  std::vector<T> ReadMany(size_t n) {
    if (n > rest_.size() / sizeof(T)) {
      Take(rest_.size() + 1);
      return {};
    }
    std::vector<T> values(n);
    const auto bytes = Take(n * sizeof(T));
    if (!bytes.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  }
  std::span<const uint8_t> rest() const { return rest_; }
  bool ok() const { return ok_; }
  /// All was there, and nothing is left.
  bool done() const { return ok_ && rest_.empty(); }

 private:
  std::span<const uint8_t> rest_;
  bool ok_ = true;
};

/// Appends to a vector of bytes.
class ByteWriter {
 public:
  explicit ByteWriter(std::vector<uint8_t>& out) : out_(out) {}

  template <typename T>
  void Write(T value) {
    static_assert(std::is_arithmetic_v<T>);
    WriteMany(std::span<const T>(&value, 1));
  }
  template <typename T>
  void WriteMany(std::span<const T> values) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(values.data());
    out_.insert(out_.end(), bytes, bytes + values.size_bytes());
  }

 private:
  std::vector<uint8_t>& out_;
};

}  // namespace tandem::kvstore::codec
