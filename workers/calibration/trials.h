// What profiles cost the model and how far they compress, tried with the real codec on the real
// engine, window by window. For the profile builder.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kvstore/codec/codec.h"
#include "workers/calibration/journal.h"
#include "workers/calibration/replay.h"

namespace tandem::workers {

/// Told before each piece of work how much of the stage's is done; false stops.
using WorkMeter = std::function<bool(std::string_view stage, uint64_t units)>;

struct TrialResult {
  double bits_per_element = 0;
  Summary summary;
};

/// Elements of a token over all planes. REQUIRES: planes of f16, bf16 or f32.
uint64_t ElementsPerToken(const kvstore::KvLayout& layout);

/// Not thread-safe. Each window's results go to the journal, under the stage's name, and are not
/// tried again. Everything returns CANCELLED when the meter stops it, else errors of Replayer and
/// Codec.
class Trials {
 public:
  /// All must outlive this object.
  Trials(Replayer& replayer, const kvstore::KvGeometry& geometry, Journal& journal,
         const WorkMeter& meter)
      : replayer_(replayer), geometry_(geometry), journal_(journal), meter_(meter) {}

  /// Every level of every profile, in this order.
  absl::StatusOr<std::vector<TrialResult>> Run(
      std::string_view stage, std::span<const uint32_t> windows,
      std::span<const std::shared_ptr<const kvstore::codec::Profile>> profiles);

  /// KL divergence, nats a token, when only the planes of one group are coded: [level][group].
  absl::StatusOr<std::vector<std::vector<double>>> RunAlone(
      std::string_view stage, std::span<const uint32_t> windows,
      std::shared_ptr<const kvstore::codec::Profile> profile,
      std::span<const std::vector<size_t>> groups);

 private:
  struct Outcome {
    double encoded_bits = 0, elements = 0;
    WindowScore score;
  };
  absl::Status Meter(std::string_view stage, uint64_t units) const;
  absl::StatusOr<kvstore::codec::Codec> NewCodec(
      std::shared_ptr<const kvstore::codec::Profile> profile) const;
  absl::StatusOr<std::vector<Outcome>> TryWindow(std::string_view stage, uint32_t window,
                                                 std::span<const kvstore::codec::Codec> codecs);
  absl::StatusOr<Outcome> TryLevel(const kvstore::codec::Codec& codec, kvstore::codec::Level level);
  absl::StatusOr<std::vector<double>> TryGroups(std::string_view stage, uint32_t window,
                                                const kvstore::codec::Codec& codec,
                                                std::span<const std::vector<size_t>> groups);

  Replayer& replayer_;
  const kvstore::KvGeometry& geometry_;
  Journal& journal_;
  const WorkMeter& meter_;
};

}  // namespace tandem::workers
