// Bytes to values. The way of a block: symbols of every component (rANS), then tile by tile:
// transform, rotate, convert, store at the final place.
#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "kvstore/codec/builtin_tables.h"
#include "kvstore/codec/byte_io.h"
#include "kvstore/codec/lossy.h"
#include "kvstore/codec/rans.h"

namespace tandem::kvstore::codec {
namespace {

absl::Status Damaged(std::string_view what) {
  return absl::DataLossError(absl::StrCat("the KV chunk is damaged: ", std::string(what)));
}

/// A symbol whose value its table lacks: what must be added to the symbol.
struct Escape {
  uint32_t component, token;
  int32_t difference;
};

class StreamDecoder {
 public:
  StreamDecoder(const PreparedModel& model, const StreamPart& part, const ChunkAngles& angles,
                std::span<const std::span<uint8_t>> destinations)
      : model_(model),
        part_(part),
        angles_(angles),
        destinations_(destinations),
        stride_(PaddedTokens(part.n_tokens)),
        rans_(model.isa),
        values_((kMaxBlockChannels + 1) * kTileTokens) {}

  absl::Status Decode(std::span<const uint8_t> bytes) {
    ByteReader in(bytes);
    RETURN_IF_ERROR(ReadExact(in));
    escapes_ = ByteReader(in.Take(uint64_t{in.Read<uint32_t>()} * sizeof(int16_t)));
    if (!model_.profile) RETURN_IF_ERROR(ReadBuiltin(in));
    if (!in.ok()) return Damaged("its side information is too short");
    RETURN_IF_ERROR(rans_.Start(in.rest(), LossySets(model_, part_)));
    for (size_t i = 0; i < part_.planes.size(); ++i) {
      if (model_.profile) {
        for (const auto& block : model_.levels[LossyIndex(part_.level)].planes[part_.planes[i]]) {
          RETURN_IF_ERROR(DecodeBlock(part_.planes[i], block));
        }
      } else {
        RETURN_IF_ERROR(DecodeBuiltin(part_.planes[i], builtin_[i]));
      }
    }
    RETURN_IF_ERROR(rans_.Finish());
    if (!escapes_.done()) return Damaged("escaped values are left over");
    PutExact();
    return absl::OkStatus();
  }

 private:
  struct Builtin {
    float step = 0;
    std::span<const uint8_t> tables;
    std::vector<int16_t> offsets;
  };

  absl::Status ReadExact(ByteReader& in) {
    exact_tokens_ = in.ReadMany<uint16_t>(in.Read<uint16_t>());
    for (size_t i = 0; i < exact_tokens_.size(); ++i) {
      if (exact_tokens_[i] >= part_.n_tokens ||
          (i > 0 && exact_tokens_[i] <= exact_tokens_[i - 1])) {
        return Damaged("its exact tokens are out of order");
      }
    }
    if (exact_tokens_.empty()) return absl::OkStatus();
    for (const ExactGroup& group : ExactGroups(model_, part_)) {
      auto& rows = exact_rows_.emplace_back(exact_tokens_.size() * group.row_bytes);
      RETURN_IF_ERROR(DecodeLossless(in.Take(in.Read<uint32_t>()), group.shape, model_.isa, rows));
    }
    return absl::OkStatus();
  }

  absl::Status ReadBuiltin(ByteReader& in) {
    for (const size_t p : part_.planes) {
      Builtin& builtin = builtin_.emplace_back();
      builtin.step = in.Read<float>();
      builtin.tables = in.Take(model_.planes[p].n_channels);
      builtin.offsets = in.ReadMany<int16_t>(model_.planes[p].n_channels);
      if (std::any_of(builtin.tables.begin(), builtin.tables.end(),
                      [](uint8_t t) { return t >= kBuiltinTables; })) {
        return Damaged("it names a symbol table that does not exist");
      }
    }
    return absl::OkStatus();
  }

  /// Decodes a run of symbols and notes those that stand for escaped values.
  absl::Status DecodeRun(const PreparedTable& table, uint32_t component, uint8_t* symbols) {
    rans_.Decode(table.decode, symbols, part_.n_tokens);
    const uint8_t* const end = symbols + part_.n_tokens;
    for (const uint8_t* at = symbols;
         (at = static_cast<const uint8_t*>(std::memchr(at, table.escape, end - at))); ++at) {
      const int32_t value = escapes_.Read<int16_t>();
      if (!escapes_.ok()) return Damaged("an escaped value is missing");
      found_.push_back(
          {component, static_cast<uint32_t>(at - symbols), value - table.lowest - table.escape});
      if (at + 1 == end) break;
    }
    return absl::OkStatus();
  }

  absl::Status DecodeBlock(size_t p, const PreparedBlock& block) {
    found_.clear();
    const size_t coded = block.tables.size();
    symbols_.resize(4 * block.inverse.n_quads * stride_);
    // The last quad's rows that no component fills are multiplied like the others.
    std::fill(symbols_.begin() + static_cast<ptrdiff_t>(coded * stride_), symbols_.end(), 0);
    for (size_t j = 0; j < coded; ++j) {
      RETURN_IF_ERROR(DecodeRun(model_.tables[block.tables[j]], static_cast<uint32_t>(j),
                                symbols_.data() + j * stride_));
    }
    if (block.prediction != Prediction::kNone) UndoPrediction(block);
    SortEscapes();
    const PlaneInfo& plane = model_.planes[p];
    size_t next_escape = 0;
    for (uint32_t first = 0; first < part_.n_tokens; first += kTileTokens) {
      const int32_t* corrections = Corrections(block, first, next_escape);
      model_.kernels->inverse(block.inverse, symbols_.data() + first, stride_, corrections,
                              values_.data());
      if (plane.rotated) {
        model_.kernels->rotate(RotationOf(model_, plane, block.n_heads, angles_, first),
                               values_.data());
      }
      Store(p, block.first_channel, block.n_channels, first);
    }
    return absl::OkStatus();
  }

  void Store(size_t p, uint32_t first_channel, uint32_t n_channels, uint32_t first) {
    TilePlace place = PlaceOf(model_.planes[p], part_.n_tokens);
    place.n_tokens = std::min<uint32_t>(kTileTokens, part_.n_tokens - first);
    model_.kernels->store(values_.data(), n_channels, place,
                          destinations_[p].data() + first_channel * place.channel_stride +
                              first * place.token_stride);
  }

  void SortEscapes() {
    std::stable_sort(found_.begin(), found_.end(),
                     [](const Escape& a, const Escape& b) { return a.token < b.token; });
  }

  /// What the escaped values of a tile add to its sums; null when it has none.
  const int32_t* Corrections(const PreparedBlock& block, uint32_t first, size_t& next) {
    if (next == found_.size() || found_[next].token >= first + kTileTokens) return nullptr;
    corrections_.assign(block.n_channels * kTileTokens, 0);
    for (; next < found_.size() && found_[next].token < first + kTileTokens; ++next) {
      const Escape escape = found_[next];  // a copy, which no store below can change
      const size_t n = block.n_channels, stride = block.inverse.basis_stride;
      const int8_t* const column = block.inverse.basis + escape.component;
      int32_t* const sums = corrections_.data() + escape.token - first;
      for (size_t c = 0; c < n; ++c)
        sums[c * kTileTokens] += column[c * stride] * escape.difference;
    }
    return corrections_.data();
  }

  /// From differences to values, which then stand as value + 128, with escapes where that is not
  /// a byte. Sums wrap around in 16 bits.
  void UndoPrediction(const PreparedBlock& block) {
    std::vector<Escape> escapes;
    escapes.swap(found_);
    size_t next = 0;
    std::vector<int16_t> values(part_.n_tokens);
    for (uint32_t j = 0; j < block.tables.size(); ++j) {
      uint8_t* symbols = symbols_.data() + j * stride_;
      const int32_t lowest = model_.tables[block.tables[j]].lowest;
      for (uint32_t t = 0; t < part_.n_tokens; ++t) {
        int32_t value = symbols[t] + lowest;
        if (next < escapes.size() && escapes[next].component == j && escapes[next].token == t) {
          value += escapes[next++].difference;
        }
        const uint32_t from = PredictedFrom(block.prediction, t);
        values[t] = static_cast<int16_t>(value + (from == t ? 0 : values[from]));
        symbols[t] = static_cast<uint8_t>(std::clamp(values[t] + 128, 0, 255));
        const int32_t rest = values[t] + 128 - symbols[t];
        if (rest != 0) found_.push_back({j, t, rest});
      }
    }
  }

  /// Channels as they are, of one plane: value = (symbol + lowest + offset) × step.
  absl::Status DecodeBuiltin(size_t p, const Builtin& builtin) {
    const PlaneInfo& plane = model_.planes[p];
    const float step = builtin.step;  // a copy, which no store to a float can change
    for (const auto& [first_channel, n] : BlockLayout(plane.n_heads, plane.head_dim)) {
      found_.clear();
      symbols_.resize(n * stride_);
      for (uint32_t c = 0; c < n; ++c) {
        RETURN_IF_ERROR(DecodeRun(BuiltinTables()[builtin.tables[first_channel + c]], c,
                                  symbols_.data() + c * stride_));
      }
      SortEscapes();
      size_t next = 0;
      for (uint32_t first = 0; first < part_.n_tokens; first += kTileTokens) {
        for (uint32_t c = 0; c < n; ++c) {
          const int32_t base = BuiltinTables()[builtin.tables[first_channel + c]].lowest +
                               builtin.offsets[first_channel + c];
          uint8_t symbols[kTileTokens];  // apart from memory that `values` might overlap
          std::memcpy(symbols, symbols_.data() + c * stride_ + first, kTileTokens);
          float* const values = values_.data() + c * kTileTokens;
          for (size_t t = 0; t < kTileTokens; ++t) {
            values[t] = static_cast<float>(symbols[t] + base) * step;
          }
        }
        for (; next < found_.size() && found_[next].token < first + kTileTokens; ++next) {
          const Escape& e = found_[next];
          const uint32_t c = first_channel + e.component;
          const int32_t value = symbols_[e.component * stride_ + e.token] + e.difference +
                                BuiltinTables()[builtin.tables[c]].lowest + builtin.offsets[c];
          values_[e.component * kTileTokens + e.token - first] = static_cast<float>(value) * step;
        }
        if (plane.rotated) {
          model_.kernels->rotate(RotationOf(model_, plane, n / plane.head_dim, angles_, first),
                                 values_.data());
        }
        Store(p, first_channel, n, first);
      }
    }
    return absl::OkStatus();
  }

  void PutExact() {
    if (exact_tokens_.empty()) return;
    size_t i = 0;
    for (const ExactGroup& group : ExactGroups(model_, part_)) {
      const uint8_t* row = exact_rows_[i++].data();
      for (const size_t p : group.planes) {
        for (const uint16_t token : exact_tokens_) {
          const PlaneInfo& plane = model_.planes[p];
          const TilePlace place = PlaceOf(plane, part_.n_tokens);
          uint8_t* const to = destinations_[p].data() + token * place.token_stride;
          if (plane.element_bytes == 0) {
            std::memcpy(to, row, plane.row_bytes);
          } else {
            for (size_t c = 0; c < plane.n_channels; ++c) {
              std::memcpy(to + c * place.channel_stride, row + c * plane.element_bytes,
                          plane.element_bytes);
            }
          }
          row += plane.row_bytes;
        }
      }
    }
  }

  const PreparedModel& model_;
  const StreamPart& part_;
  const ChunkAngles& angles_;
  std::span<const std::span<uint8_t>> destinations_;
  const size_t stride_;
  RansDecoder rans_;
  ByteReader escapes_{{}};
  std::vector<uint16_t> exact_tokens_;
  std::vector<std::vector<uint8_t>> exact_rows_;
  std::vector<Builtin> builtin_;
  std::vector<Escape> found_;
  AlignedVector<uint8_t> symbols_;
  AlignedVector<float> values_;
  AlignedVector<int32_t> corrections_;
};

}  // namespace

TilePlace PlaceOf(const PlaneInfo& plane, uint32_t n_tokens) {
  TilePlace place{.type = plane.type, .n_tokens = kTileTokens};
  if (plane.element_bytes != 0) {
    place.channel_stride = size_t{plane.element_bytes} * n_tokens;
    place.token_stride = plane.element_bytes;
  } else {
    place.channel_stride = plane.row_bytes / std::max(1u, plane.n_channels);
    place.token_stride = plane.row_bytes;
  }
  return place;
}

size_t LossySets(const PreparedModel& model, const StreamPart& part) {
  constexpr size_t kTwoSetsFrom = 1 << 17;
  size_t elements = 0;
  for (const size_t p : part.planes) elements += size_t{model.planes[p].n_channels} * part.n_tokens;
  return elements >= kTwoSetsFrom ? 2 : 1;
}

std::vector<ExactGroup> ExactGroups(const PreparedModel& model, const StreamPart& part) {
  std::vector<ExactGroup> groups;
  for (const size_t p : part.planes) {
    const PlaneInfo& plane = model.planes[p];
    if (groups.empty() || groups.back().shape != plane.shape) {
      groups.push_back({.shape = plane.shape});
    }
    groups.back().planes.push_back(p);
    groups.back().row_bytes += plane.row_bytes;
  }
  return groups;
}

TileRotation RotationOf(const PreparedModel& model, const PlaneInfo& plane, uint32_t n_heads,
                        const ChunkAngles& angles, size_t first) {
  return {.interleaved = model.geometry.rope.style == Rope::Style::kInterleaved,
          .head_dim = plane.head_dim,
          .n_heads = n_heads,
          .n_rot = model.geometry.rope.n_rot,
          .cosines = angles.cosines.data() + first * angles.pairs,
          .sines = angles.sines.data() + first * angles.pairs,
          .stride = kTileTokens};
}

absl::Status DecodeLossyStream(const PreparedModel& model, const StreamPart& part,
                               const ChunkAngles& angles, std::span<const uint8_t> bytes,
                               std::span<const std::span<uint8_t>> destinations) {
  return StreamDecoder(model, part, angles, destinations).Decode(bytes);
}

}  // namespace tandem::kvstore::codec
