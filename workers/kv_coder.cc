#include "workers/kv_coder.h"

#include <algorithm>
#include <boost/asio/post.hpp>

#include "base/status.h"
#include "workers/engine/geometry.h"

namespace tandem::workers {

using kvstore::KvChunk;
using kvstore::codec::Codec;
using kvstore::codec::Level;

namespace {

/// Encoded by raw bytes before anything was encoded here: what the demo model shows, on the high
/// side.
constexpr std::array kInitialRatios = {0.87, 0.25, 0.15, 0.1, 0.05};

absl::StatusOr<Level> EffectiveFloor(std::optional<Level> floor, const Codec& codec) {
  if (!floor) {
    const bool measured = codec.profile() != nullptr && codec.CheckLevel(Level::kQ1).ok();
    return measured ? Level::kQ1 : Level::kLossless;
  }
  const absl::Status possible = codec.CheckLevel(*floor);
  if (possible.ok()) return *floor;
  return absl::FailedPreconditionError(absl::StrCat(
      "kv_floor is ", View(kvstore::codec::LevelName(*floor)), ": ", possible.message()));
}

}  // namespace

absl::StatusOr<std::unique_ptr<KvCoder>> KvCoder::Create(
    const Engine& engine, std::shared_ptr<const kvstore::codec::Profile> profile,
    std::optional<Level> floor, uint32_t threads) {
  ASSIGN_OR_RETURN(const kvstore::KvGeometry geometry, GeometryOf(engine));
  ASSIGN_OR_RETURN(Codec codec, Codec::Create(engine.layout(), geometry,
                                              engine.model().fingerprint(), std::move(profile)));
  std::unique_ptr<KvCoder> coder(new KvCoder(std::move(codec), std::max(1u, threads)));
  ASSIGN_OR_RETURN(coder->floor_, EffectiveFloor(floor, coder->codec_));
  coder->ratios_ = kInitialRatios;
  for (const Level level : kvstore::codec::kAllLevels) {
    if (level <= coder->floor_ && !engine.layout().opaque && coder->codec_.CheckLevel(level).ok()) {
      coder->encodings_ |= 1u << kvstore::EncodingOf(level);
    }
  }
  return coder;
}

void KvCoder::Run(std::function<void()> job) { boost::asio::post(threads_, std::move(job)); }

uint64_t KvCoder::profile_id() const {
  return codec_.profile() == nullptr ? 0 : codec_.profile()->id;
}

double KvCoder::SizeRatio(Level level) const {
  std::lock_guard lock(mutex_);
  return ratios_[static_cast<size_t>(level)];
}

absl::StatusOr<std::vector<uint8_t>> KvCoder::EncodeNow(const KvChunk& chunk, Level level) {
  auto bytes = codec_.Encode(chunk, {.level = level});
  if (!bytes.ok() || chunk.bytes.empty()) return bytes;
  std::lock_guard lock(mutex_);
  double& ratio = ratios_[static_cast<size_t>(level)];
  const double now = static_cast<double>(bytes->size()) / static_cast<double>(chunk.bytes.size());
  ratio = 0.8 * ratio + 0.2 * now;
  return bytes;
}

void KvCoder::Encode(std::shared_ptr<const KvChunk> chunk, Level level,
                     std::function<void(absl::StatusOr<std::vector<uint8_t>>)> done) {
  Run([this, chunk = std::move(chunk), level, done = std::move(done)] {
    done(EncodeNow(*chunk, level));
  });
}

void KvCoder::Decode(std::vector<uint8_t> bytes, uint32_t first_position, uint32_t n_tokens,
                     std::vector<std::span<uint8_t>> planes,
                     std::function<void(absl::Status)> done) {
  Run([this, bytes = std::move(bytes), first_position, n_tokens, planes = std::move(planes),
       done = std::move(done)] {
    const auto header = codec_.ReadHeader(bytes);
    if (!header.ok()) return done(header.status());
    if (header->first_position != first_position || header->n_tokens != n_tokens) {
      return done(absl::DataLossError(
          absl::StrCat("an encoded chunk of positions ", header->first_position, " + ",
                       header->n_tokens, " in a frame of ", first_position, " + ", n_tokens)));
    }
    done(codec_.Decode(bytes, planes));
  });
}

}  // namespace tandem::workers
