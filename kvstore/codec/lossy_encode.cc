// Values to bytes, the way of lossy_decode.cc backwards. Everything is known before the first
// symbol is coded, because rANS codes the last symbol first.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kvstore/codec/builtin_tables.h"
#include "kvstore/codec/byte_io.h"
#include "kvstore/codec/lossy.h"
#include "kvstore/codec/rans.h"

namespace tandem::kvstore::codec {
namespace {

constexpr float kLimit = 32767.0f;

class StreamEncoder {
 public:
  StreamEncoder(const PreparedModel& model, const StreamPart& part, const ChunkAngles& angles,
                std::span<const std::span<const uint8_t>> sources, std::vector<bool> keep_exact)
      : model_(model),
        part_(part),
        angles_(angles),
        sources_(sources),
        exact_(std::move(keep_exact)),
        stride_(PaddedTokens(part.n_tokens)),
        values_((kMaxBlockChannels + 1) * kTileTokens) {}

  void Encode(std::vector<uint8_t>& out) {
    for (const size_t p : part_.planes) {
      if (model_.profile) {
        for (const auto& block : model_.levels[LossyIndex(part_.level)].planes[p]) {
          EncodeBlock(p, block);
        }
      } else {
        EncodeBuiltin(p);
      }
    }
    ByteWriter writer(out);
    WriteExact(out);
    writer.Write(static_cast<uint32_t>(escapes_.size()));
    writer.WriteMany(std::span<const int16_t>(escapes_));
    out.insert(out.end(), builtin_.begin(), builtin_.end());
    RansEncoder rans(model_.isa);
    rans.Start(kLossySets);
    for (size_t run = tables_.size(); run-- > 0;) {
      rans.Encode(tables_[run]->encode, symbols_.data() + run * part_.n_tokens, part_.n_tokens);
    }
    const auto coded = rans.Finish();
    out.insert(out.end(), coded.begin(), coded.end());
  }

 private:
  /// Reads a tile of keys or values, unrotated.
  void Load(size_t p, uint32_t first_channel, uint32_t n_channels, uint32_t n_heads,
            uint32_t first) {
    const PlaneInfo& plane = model_.planes[p];
    TilePlace place = PlaceOf(plane, part_.n_tokens);
    place.n_tokens = std::min<uint32_t>(kTileTokens, part_.n_tokens - first);
    model_.kernels->load(
        values_.data(), n_channels, place,
        sources_[p].data() + first_channel * place.channel_stride + first * place.token_stride);
    if (plane.rotated) {
      model_.kernels->unrotate(RotationOf(model_, plane, n_heads, angles_, first), values_.data());
    }
  }

  /// Tokens of the tile that the block's fixed point cannot hold, or that are not finite, are kept
  /// exact; here, like all exact tokens, they count as average.
  void SetAside(const PreparedBlock& block, uint32_t first) {
    int32_t outside[kTileTokens] = {};
    for (size_t c = 0; c < block.n_channels; ++c) {
      const float mean = block.forward_mean[c], to_fixed = block.to_fixed[c];
      const float* row = values_.data() + c * kTileTokens;
      for (size_t t = 0; t < kTileTokens; ++t) {
        outside[t] |= !(std::fabs((row[t] - mean) * to_fixed) <= kLimit);
      }
    }
    for (uint32_t t = 0; t < kTileTokens && first + t < part_.n_tokens; ++t) {
      if (outside[t]) exact_[first + t] = true;
      if (!exact_[first + t]) continue;
      for (size_t c = 0; c < block.n_channels; ++c) {
        values_[c * kTileTokens + t] = block.forward_mean[c];
      }
    }
  }

  void EncodeBlock(size_t p, const PreparedBlock& block) {
    const size_t coded = block.tables.size();
    integers_.resize(coded * stride_);
    int16_t tile[kMaxBlockChannels * kTileTokens];
    for (uint32_t first = 0; first < part_.n_tokens; first += kTileTokens) {
      Load(p, block.first_channel, block.n_channels, block.n_heads, first);
      std::fill_n(values_.data() + block.n_channels * kTileTokens, kTileTokens, 0.0f);
      SetAside(block, first);
      model_.kernels->forward(block.forward, values_.data(), tile);
      for (size_t j = 0; j < coded; ++j) {
        std::memcpy(integers_.data() + j * stride_ + first, tile + j * kTileTokens,
                    kTileTokens * sizeof(int16_t));
      }
    }
    for (size_t j = 0; j < coded; ++j) {
      int16_t* const row = integers_.data() + j * stride_;
      if (block.prediction != Prediction::kNone) Predict(block.prediction, row);
      PutRun(model_.tables[block.tables[j]], row);
    }
  }

  void Predict(Prediction prediction, int16_t* row) const {
    for (uint32_t t = part_.n_tokens; t-- > 0;) {
      const uint32_t from = PredictedFrom(prediction, t);
      if (from != t) row[t] = static_cast<int16_t>(row[t] - row[from]);
    }
  }

  /// Notes a run of integers for coding, as symbols of `table`.
  void PutRun(const PreparedTable& table, const int16_t* integers) {
    const size_t n = part_.n_tokens, begin = symbols_.size();
    symbols_.resize(begin + n);
    uint8_t* const symbols = symbols_.data() + begin;
    const int32_t lowest = table.lowest;
    const uint32_t escape = table.escape;
    bool escaped = false;
    for (size_t t = 0; t < n; ++t) {
      const uint32_t symbol = static_cast<uint32_t>(integers[t] - lowest);
      escaped |= symbol >= escape;
      symbols[t] = static_cast<uint8_t>(std::min(symbol, escape));
    }
    tables_.push_back(&table);
    if (!escaped) return;
    for (size_t t = 0; t < n; ++t) {
      if (symbols[t] == escape) escapes_.push_back(integers[t]);
    }
  }

  /// A plane without a profile: channels as they are, around their means, one step.
  void EncodeBuiltin(size_t p) {
    const PlaneInfo& plane = model_.planes[p];
    const size_t n_channels = plane.n_channels;
    AlignedVector<float> all(n_channels * stride_);
    for (const auto& [first_channel, n] : BlockLayout(plane.n_heads, plane.head_dim)) {
      for (uint32_t first = 0; first < part_.n_tokens; first += kTileTokens) {
        Load(p, first_channel, n, n / plane.head_dim, first);
        for (uint32_t c = 0; c < n; ++c) {
          std::memcpy(all.data() + (first_channel + c) * stride_ + first,
                      values_.data() + c * kTileTokens, kTileTokens * sizeof(float));
        }
      }
    }
    for (size_t c = 0; c < n_channels; ++c) {
      for (uint32_t t = 0; t < part_.n_tokens; ++t) {
        if (!std::isfinite(all[c * stride_ + t])) exact_[t] = true;
      }
    }
    const std::vector<Spread> spreads = SpreadsOf(all, n_channels);
    double variance = 0;
    for (const Spread& spread : spreads)
      variance += spread.variance / static_cast<double>(n_channels);
    const bool key = p < model_.geometry.layers.size();
    const float step = std::max(
        static_cast<float>(std::sqrt(variance)) * (key ? kBuiltinKeyStep : kBuiltinValueStep),
        1e-30f);
    PutBuiltin(all, spreads, step);
  }

  struct Spread {
    double mean = 0, variance = 0;
  };

  std::vector<Spread> SpreadsOf(const AlignedVector<float>& all, size_t n_channels) const {
    std::vector<Spread> spreads(n_channels);
    for (size_t c = 0; c < n_channels; ++c) {
      double n = 0, sum = 0, squares = 0;
      for (uint32_t t = 0; t < part_.n_tokens; ++t) {
        if (exact_[t]) continue;
        n += 1;
        sum += all[c * stride_ + t];
      }
      if (n == 0) continue;
      spreads[c].mean = sum / n;
      for (uint32_t t = 0; t < part_.n_tokens; ++t) {
        const double d = all[c * stride_ + t] - spreads[c].mean;
        if (!exact_[t]) squares += d * d;
      }
      spreads[c].variance = squares / n;
    }
    return spreads;
  }

  void PutBuiltin(const AlignedVector<float>& all, const std::vector<Spread>& spreads, float step) {
    ByteWriter writer(builtin_);
    writer.Write(step);
    std::vector<uint8_t> tables;
    std::vector<int16_t> offsets;
    for (const Spread& spread : spreads) {
      const double sigma = std::max(std::sqrt(spread.variance) / step, 0.25);
      const double index = std::round(3 * (std::log2(sigma) + 2));
      tables.push_back(static_cast<uint8_t>(std::clamp(index, 0.0, double{kBuiltinTables - 1})));
      offsets.push_back(static_cast<int16_t>(
          std::clamp(std::round(spread.mean / step), -double{kLimit}, double{kLimit})));
    }
    writer.WriteMany(std::span<const uint8_t>(tables));
    writer.WriteMany(std::span<const int16_t>(offsets));
    std::vector<int16_t> integers(part_.n_tokens);
    for (size_t c = 0; c < spreads.size(); ++c) {
      for (uint32_t t = 0; t < part_.n_tokens; ++t) {
        const float value = all[c * stride_ + t] / step - static_cast<float>(offsets[c]);
        if (!(std::fabs(value) <= kLimit)) exact_[t] = true;
        integers[t] = exact_[t] ? 0 : static_cast<int16_t>(std::lrint(value));
      }
      PutRun(BuiltinTables()[tables[c]], integers.data());
    }
  }

  void WriteExact(std::vector<uint8_t>& out) {
    std::vector<uint16_t> tokens;
    for (uint32_t t = 0; t < part_.n_tokens; ++t) {
      if (exact_[t]) tokens.push_back(static_cast<uint16_t>(t));
    }
    ByteWriter writer(out);
    writer.Write(static_cast<uint16_t>(tokens.size()));
    writer.WriteMany(std::span<const uint16_t>(tokens));
    if (tokens.empty()) return;
    for (const ExactGroup& group : ExactGroups(model_, part_)) {
      std::vector<uint8_t> rows, coded;
      for (const size_t p : group.planes) {
        for (const uint16_t token : tokens) AppendRow(p, token, rows);
      }
      EncodeLossless(rows, group.shape, model_.isa, coded);
      writer.Write(static_cast<uint32_t>(coded.size()));
      out.insert(out.end(), coded.begin(), coded.end());
    }
  }

  void AppendRow(size_t p, uint16_t token, std::vector<uint8_t>& rows) const {
    const PlaneInfo& plane = model_.planes[p];
    const TilePlace place = PlaceOf(plane, part_.n_tokens);
    const uint8_t* const from = sources_[p].data() + token * place.token_stride;
    if (plane.element_bytes == 0) {
      rows.insert(rows.end(), from, from + plane.row_bytes);
      return;
    }
    for (size_t c = 0; c < plane.n_channels; ++c) {
      const uint8_t* const element = from + c * place.channel_stride;
      rows.insert(rows.end(), element, element + plane.element_bytes);
    }
  }

  const PreparedModel& model_;
  const StreamPart& part_;
  const ChunkAngles& angles_;
  std::span<const std::span<const uint8_t>> sources_;
  std::vector<bool> exact_;
  const size_t stride_;
  std::vector<const PreparedTable*> tables_;  // of each run
  std::vector<uint8_t> symbols_;              // n_tokens a run
  std::vector<int16_t> escapes_;
  std::vector<uint8_t> builtin_;
  AlignedVector<int16_t> integers_;
  AlignedVector<float> values_;
};

}  // namespace

void EncodeLossyStream(const PreparedModel& model, const StreamPart& part,
                       const ChunkAngles& angles, std::span<const std::span<const uint8_t>> sources,
                       std::vector<bool> keep_exact, std::vector<uint8_t>& out) {
  StreamEncoder(model, part, angles, sources, std::move(keep_exact)).Encode(out);
}

}  // namespace tandem::kvstore::codec
