// A coded plane is, group after group: u8 mode (0: bytes as they are; 1: coded), and when coded u32
// length and that many bytes: u8 first symbol, u8 last symbol, u16 frequency of each between them,
// then a rANS stream of one run.
#include "kvstore/codec/lossless.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/status_macros.h"
#include "kvstore/codec/byte_io.h"
#include "kvstore/codec/rans.h"

namespace tandem::kvstore::codec {
namespace {

constexpr int kBits = 12;
/// Two sets of states are faster, and some 90 bytes dearer: for groups of so many bytes and more.
constexpr size_t kTwoSetsFrom = 32768;
enum class Mode : uint8_t { kRaw = 0, kCoded = 1 };

absl::Status Damaged() {
  return absl::DataLossError("the KV chunk is damaged: a plane's bytes do not decode");
}

/// Bytes of each group among `size`.
std::vector<size_t> GroupSizes(const ByteShape& shape, size_t size) {
  std::vector<size_t> sizes(shape.n_groups, 0);
  for (uint32_t c = 0; c < shape.period; ++c) {
    if (c < size) sizes[shape.group_of_class[c]] += (size - c + shape.period - 1) / shape.period;
  }
  return sizes;
}

size_t SetsFor(size_t group_bytes) { return group_bytes >= kTwoSetsFrom ? 2 : 1; }

/// 16-bit elements, which deserve loops that vectorise.
bool IsPairs(const ByteShape& shape) { return shape.period == 2 && shape.n_groups == 2; }

/// Copies between a plane's bytes and one group's, `kGather` from the plane.
template <bool kGather>
void Move(const ByteShape& shape, uint32_t group,
          std::conditional_t<kGather, const uint8_t*, uint8_t*> plane, size_t size,
          std::conditional_t<kGather, uint8_t*, const uint8_t*> bytes) {
  for (size_t start = 0; start < size; start += shape.period) {
    const size_t end = std::min<size_t>(shape.period, size - start);
    for (size_t c = 0; c < end; ++c) {
      if (shape.group_of_class[c] != group) continue;
      if constexpr (kGather)
        *bytes++ = plane[start + c];
      else
        plane[start + c] = *bytes++;
    }
  }
}

void Gather(const ByteShape& shape, uint32_t group, std::span<const uint8_t> plane,
            std::span<uint8_t> bytes) {
  if (!IsPairs(shape)) return Move<true>(shape, group, plane.data(), plane.size(), bytes.data());
  const uint8_t* const from = plane.data() + group;
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = from[2 * i];
}

void Scatter(const ByteShape& shape, std::span<const uint8_t* const> groups,
             std::span<uint8_t> plane) {
  if (shape.n_groups == 1) {
    std::copy_n(groups[0], plane.size(), plane.data());
    return;
  }
  if (!IsPairs(shape)) {
    for (uint32_t g = 0; g < shape.n_groups; ++g) {
      Move<false>(shape, g, plane.data(), plane.size(), groups[g]);
    }
    return;
  }
  const uint8_t *const first = groups[0], *const second = groups[1];
  uint8_t* const to = plane.data();
  const size_t n = plane.size() / 2;
  for (size_t i = 0; i < n; ++i) {
    to[2 * i] = first[i];
    to[2 * i + 1] = second[i];
  }
  if (plane.size() % 2 != 0) to[2 * n] = first[n];
}

std::array<uint32_t, 256> Count(std::span<const uint8_t> bytes) {
  // Four counters each: equal neighbours would wait for each other.
  std::array<std::array<uint32_t, 256>, 4> parts = {};
  size_t i = 0;
  for (; i + 4 <= bytes.size(); i += 4) {
    for (size_t part = 0; part < 4; ++part) ++parts[part][bytes[i + part]];
  }
  for (; i < bytes.size(); ++i) ++parts[0][bytes[i]];
  for (size_t s = 0; s < 256; ++s) parts[0][s] += parts[1][s] + parts[2][s] + parts[3][s];
  return parts[0];
}

/// What no table can do better than.
double EntropyBytes(const std::array<uint32_t, 256>& counts, size_t n) {
  double bits = 0;
  for (const double count : counts) {
    if (count > 0) bits -= count * std::log2(count / static_cast<double>(n));
  }
  return bits / 8;
}

/// Codes a group, unless that does not pay.
bool EncodeGroup(std::span<const uint8_t> bytes, Isa isa, std::vector<uint8_t>& out) {
  const double most = 0.98 * static_cast<double>(bytes.size());
  std::array<uint32_t, 256> counts = Count(bytes);
  if (EntropyBytes(counts, bytes.size()) > most) return false;
  const auto used = [](uint32_t n) { return n > 0; };
  size_t first = std::find_if(counts.begin(), counts.end(), used) - counts.begin();
  size_t end = counts.rend() - std::find_if(counts.rbegin(), counts.rend(), used);
  // No symbol is free of cost: a decoder may take the coded size for a bound on the plain one.
  if (end - first == 1) ++counts[first == 0 ? end++ : --first];
  const std::span<const uint32_t> range(counts.data(), end);
  const FrequencyTable table = FrequencyTable::FromCounts(range, kBits).value();
  const double expected =
      table.CostBits(range) / 8 +
      static_cast<double>(range.size() * sizeof(uint16_t) + RansMinBytes(SetsFor(bytes.size())));
  if (expected > most) return false;
  RansEncoder encoder(isa);
  encoder.Start(SetsFor(bytes.size()));
  encoder.Encode(EncodeTable(table), bytes.data(), bytes.size());
  const auto stream = encoder.Finish();
  ByteWriter writer(out);
  writer.Write(static_cast<uint8_t>(Mode::kCoded));
  writer.Write(
      static_cast<uint32_t>(1 + (range.size() - first) * sizeof(uint16_t) + 1 + stream.size()));
  writer.Write(static_cast<uint8_t>(first));
  writer.Write(static_cast<uint8_t>(range.size() - 1));
  writer.WriteMany(table.frequencies().subspan(first));
  writer.WriteMany(stream);
  return true;
}

absl::Status DecodeGroup(std::span<const uint8_t> coded, Isa isa, std::span<uint8_t> bytes) {
  ByteReader in(coded);
  const size_t first = in.Read<uint8_t>(), last = in.Read<uint8_t>();
  if (last < first) return Damaged();
  std::vector<uint16_t> frequencies(first, 0);
  for (size_t symbol = first; symbol <= last; ++symbol) frequencies.push_back(in.Read<uint16_t>());
  if (!in.ok()) return Damaged();
  const auto table = FrequencyTable::FromFrequencies(frequencies, kBits);
  if (!table.ok()) return Damaged();
  RansDecoder decoder(isa);
  RETURN_IF_ERROR(decoder.Start(in.rest(), SetsFor(bytes.size())));
  decoder.Decode(DecodeTable(*table), bytes.data(), bytes.size());
  return decoder.Finish();
}

}  // namespace

ByteShape ShapeOfType(std::string_view type) {
  if (type == "f16" || type == "bf16") return {2, 2, {0, 1}};
  if (type == "f32") return {4, 4, {0, 1, 2, 3}};
  // ggml's blocks of 32: their 16-bit scale (and minimum), then the integers.
  const auto blocks = [](uint32_t n_header, uint32_t n_bytes) {
    ByteShape shape{n_header + n_bytes, n_header + 1, {}};
    for (uint32_t c = 0; c < shape.period; ++c) {
      shape.group_of_class.push_back(static_cast<uint8_t>(std::min(c, n_header)));
    }
    return shape;
  };
  if (type == "q8_0") return blocks(2, 32);
  if (type == "q4_0" || type == "iq4_nl") return blocks(2, 16);
  if (type == "q4_1") return blocks(4, 16);
  if (type == "q5_0") return blocks(2, 20);
  if (type == "q5_1") return blocks(4, 20);
  return {};
}

void EncodeLossless(std::span<const uint8_t> bytes, const ByteShape& shape, Isa isa,
                    std::vector<uint8_t>& out) {
  const std::vector<size_t> sizes = GroupSizes(shape, bytes.size());
  std::vector<uint8_t> gathered;
  for (uint32_t g = 0; g < shape.n_groups; ++g) {
    if (sizes[g] == 0) continue;
    std::span<const uint8_t> group = bytes;
    if (shape.n_groups > 1) {
      gathered.resize(sizes[g]);
      Gather(shape, g, bytes, gathered);
      group = gathered;
    }
    if (EncodeGroup(group, isa, out)) continue;
    out.push_back(static_cast<uint8_t>(Mode::kRaw));
    out.insert(out.end(), group.begin(), group.end());
  }
}

absl::Status DecodeLossless(std::span<const uint8_t> encoded, const ByteShape& shape, Isa isa,
                            std::span<uint8_t> out) {
  const std::vector<size_t> sizes = GroupSizes(shape, out.size());
  ByteReader in(encoded);
  std::vector<std::vector<uint8_t>> decoded(shape.n_groups);
  std::vector<const uint8_t*> groups(shape.n_groups);
  for (uint32_t g = 0; g < shape.n_groups; ++g) {
    if (sizes[g] == 0) continue;
    const uint8_t mode = in.Read<uint8_t>();
    if (mode == static_cast<uint8_t>(Mode::kRaw)) {
      groups[g] = in.Take(sizes[g]).data();
      if (!in.ok()) return Damaged();
      continue;
    }
    if (mode != static_cast<uint8_t>(Mode::kCoded)) return Damaged();
    std::span<uint8_t> bytes = out;
    if (shape.n_groups > 1) {
      decoded[g].resize(sizes[g]);
      bytes = decoded[g];
    }
    RETURN_IF_ERROR(DecodeGroup(in.Take(in.Read<uint32_t>()), isa, bytes));
    groups[g] = bytes.data();
  }
  if (!in.done()) return Damaged();
  if (groups[0] != out.data()) Scatter(shape, groups, out);
  return absl::OkStatus();
}

}  // namespace tandem::kvstore::codec
