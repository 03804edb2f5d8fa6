// Values to bytes, the way of lossy_decode.cc backwards. Everything is known before the first
// symbol is coded, because rANS codes the last symbol first.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

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
                std::span<const std::span<const uint8_t>> sources,
                const std::vector<bool>& keep_exact)
      : model_(model),
        part_(part),
        angles_(angles),
        sources_(sources),
        exact_(keep_exact.begin(), keep_exact.end()),
        stride_(PaddedTokens(part.n_tokens)),
        values_((kMaxBlockChannels + 1) * kTileTokens) {}

  void Encode(std::vector<uint8_t>& out) {
    size_t n_channels = 0;
    for (const size_t p : part_.planes) n_channels += model_.planes[p].n_channels;
    symbols_.reserve(n_channels * part_.n_tokens);
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
    rans.Start(LossySets(model_, part_));
    for (size_t run = tables_.size(); run-- > 0;) {
      rans.Encode(tables_[run]->encode, symbols_.data() + run * part_.n_tokens, part_.n_tokens);
    }
    const auto coded = rans.Finish();
    out.insert(out.end(), coded.begin(), coded.end());
  }

 private:
  void Load(size_t p, uint32_t first_channel, uint32_t n_channels, uint32_t first) {
    LoadTile(model_, model_.planes[p], sources_[p], angles_, part_.n_tokens, first_channel,
             n_channels, first, values_.data());
  }

  /// Tokens of the tile that the block's fixed point cannot hold, or that are not finite, are kept
  /// exact; here, like all exact tokens, they count as average.
  void SetAside(const PreparedBlock& block, uint32_t first) {
    const size_t n_tokens = std::min<size_t>(kTileTokens, part_.n_tokens - first);
    int32_t outside[kTileTokens] = {};
    for (size_t c = 0; c < block.n_channels; ++c) {
      const float mean = block.forward_mean[c], to_fixed = block.to_fixed[c];
      const float* row = values_.data() + c * kTileTokens;
      for (size_t t = 0; t < n_tokens; ++t) {
        outside[t] |= !(std::fabs((row[t] - mean) * to_fixed) <= kLimit);
      }
    }
    for (size_t t = 0; t < n_tokens; ++t) {
      if (outside[t]) exact_[first + t] = 1;
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
      Load(p, block.first_channel, block.n_channels, first);
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
    // In 16 bits, of which a vector has more; values below the lowest wrap around to large ones.
    const uint16_t lowest = static_cast<uint16_t>(table.lowest), escape = table.escape;
    for (size_t t = 0; t < n; ++t) {
      const uint16_t symbol = static_cast<uint16_t>(static_cast<uint16_t>(integers[t]) - lowest);
      symbols[t] = static_cast<uint8_t>(std::min(symbol, escape));
    }
    tables_.push_back(&table);
    const uint8_t* const end = symbols + n;
    for (const uint8_t* at = symbols;
         (at = static_cast<const uint8_t*>(std::memchr(at, table.escape, end - at))); ++at) {
      escapes_.push_back(integers[at - symbols]);
    }
  }

  /// A plane without a profile: channels as they are, around their means, one step.
  void EncodeBuiltin(size_t p) {
    const PlaneInfo& plane = model_.planes[p];
    const size_t n_channels = plane.n_channels;
    AlignedVector<float> all(n_channels * stride_);
    for (const auto& [first_channel, n] : BlockLayout(plane.n_heads, plane.head_dim)) {
      for (uint32_t first = 0; first < part_.n_tokens; first += kTileTokens) {
        Load(p, first_channel, n, first);
        for (uint32_t c = 0; c < n; ++c) {
          std::memcpy(all.data() + (first_channel + c) * stride_ + first,
                      values_.data() + c * kTileTokens, kTileTokens * sizeof(float));
        }
      }
    }
    SetAsideBuiltin(all, n_channels);
    std::vector<Spread> spreads;
    double variance = 0;
    for (size_t c = 0; c < n_channels; ++c) {
      spreads.push_back(SpreadOf(all.data() + c * stride_));
      variance += spreads.back().variance / static_cast<double>(n_channels);
    }
    const bool key = p < model_.geometry.layers.size();
    const float step = std::max(
        static_cast<float>(std::sqrt(variance)) * (key ? kBuiltinKeyStep : kBuiltinValueStep),
        1e-30f);
    PutBuiltin(all, spreads, step);
  }

  /// Tokens that are not finite are kept exact; exact ones become zeros here.
  void SetAsideBuiltin(AlignedVector<float>& all, size_t n_channels) {
    const size_t n = part_.n_tokens;
    uint8_t* const exact = exact_.data();
    for (size_t c = 0; c < n_channels; ++c) {
      const float* const row = all.data() + c * stride_;
      for (size_t t = 0; t < n; ++t) {
        exact[t] |= !(std::fabs(row[t]) <= std::numeric_limits<float>::max());
      }
    }
    n_inexact_ = static_cast<size_t>(std::count(exact_.begin(), exact_.end(), 0));
    if (n_inexact_ == n) return;
    for (size_t c = 0; c < n_channels; ++c) {
      float* const row = all.data() + c * stride_;
      for (size_t t = 0; t < n; ++t) row[t] = exact[t] ? 0.0f : row[t];
    }
  }

  struct Spread {
    double mean = 0, variance = 0;
  };

  /// Of a channel, in which exact tokens are zeros.
  Spread SpreadOf(const float* row) const {
    if (n_inexact_ == 0) return {};
    // In four parts: sums have an order, and so a vector can make them.
    double sums[4] = {}, squares[4] = {};
    for (size_t t = 0; t < stride_; t += 4) {
      for (size_t i = 0; i < 4; ++i) {
        const double x = row[t + i];
        sums[i] += x;
        squares[i] += x * x;
      }
    }
    const double n = static_cast<double>(n_inexact_);
    const double mean = (sums[0] + sums[1] + sums[2] + sums[3]) / n;
    const double square = (squares[0] + squares[1] + squares[2] + squares[3]) / n;
    return {mean, std::max(0.0, square - mean * mean)};
  }

  void PutBuiltin(AlignedVector<float>& all, const std::vector<Spread>& spreads, float step) {
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
    integers_.resize(stride_);
    for (size_t c = 0; c < spreads.size(); ++c) {
      Quantise(all.data() + c * stride_, 1 / step, offsets[c]);
      PutRun(BuiltinTables()[tables[c]], integers_.data());
    }
  }

  /// A channel to integers_; tokens that have no integer are kept exact. Overwrites the row.
  void Quantise(float* row, float per_step, float offset) {
    // Adding and taking off 1.5 × 2^23 rounds to an integer.
    constexpr float kRound = 12582912.0f;
    const size_t n = part_.n_tokens;
    int16_t* const integers = integers_.data();
    uint8_t* const exact = exact_.data();
    // One step a loop: g++ makes branches of several, and no vectors.
    for (size_t t = 0; t < n; ++t) row[t] = std::min(row[t] * per_step - offset, kLimit);
    for (size_t t = 0; t < n; ++t) row[t] = std::max(row[t], -kLimit);
    for (size_t t = 0; t < n; ++t) {
      integers[t] = static_cast<int16_t>(static_cast<int32_t>((row[t] + kRound) - kRound));
    }
    for (size_t t = 0; t < n; ++t) exact[t] |= std::abs(integers[t]) >= static_cast<int>(kLimit);
    for (size_t t = 0; t < n; ++t) integers[t] = exact[t] ? int16_t{0} : integers[t];
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
  std::vector<uint8_t> exact_;  // by token, 0 or 1
  size_t n_inexact_ = 0;
  const size_t stride_;
  std::vector<const PreparedTable*> tables_;  // of each run
  std::vector<uint8_t> symbols_;              // n_tokens a run
  std::vector<int16_t> escapes_;
  std::vector<uint8_t> builtin_;
  AlignedVector<int16_t> integers_;
  AlignedVector<float> values_;
};

}  // namespace

void LoadTile(const PreparedModel& model, const PlaneInfo& plane, std::span<const uint8_t> source,
              const ChunkAngles& angles, uint32_t n_tokens, uint32_t first_channel,
              uint32_t n_channels, uint32_t first, float* values) {
  TilePlace place = PlaceOf(plane, n_tokens);
  place.n_tokens = std::min<uint32_t>(kTileTokens, n_tokens - first);
  model.kernels->load(
      values, n_channels, place,
      source.data() + first_channel * place.channel_stride + first * place.token_stride);
  if (!plane.rotated) return;
  model.kernels->unrotate(RotationOf(model, plane, n_channels / plane.head_dim, angles, first),
                          values);
}

void EncodeLossyStream(const PreparedModel& model, const StreamPart& part,
                       const ChunkAngles& angles, std::span<const std::span<const uint8_t>> sources,
                       const std::vector<bool>& keep_exact, std::vector<uint8_t>& out) {
  StreamEncoder(model, part, angles, sources, keep_exact).Encode(out);
}

}  // namespace tandem::kvstore::codec
