// Makes a model's KV profile from text: statistics, transforms, steps by measured loss, symbol
// tables, and what each level costs. For `tandem kv profile`.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "kvstore/codec/profile.h"
#include "workers/calibration/ablation.h"
#include "workers/calibration/replay.h"

namespace tandem::workers {

struct ProfileProgress {
  /// What is being done, in words for a person.
  std::string_view stage;
  /// Pieces of work of about the same size, of all stages together.
  uint64_t done = 0, total = 0;
};

struct ProfileOptions {
  ReplayOptions replay;
  /// Loss of each lossy level: KL divergence of the next-token distribution from the unchanged one,
  /// nats, the mean over tokens. A level costs about as much, or it is left out. Ascending.
  std::array<double, kvstore::codec::kLossyLevels> kl_targets = {0.0003, 0.0010, 0.0035, 0.010};
  /// Where intermediate results are kept, so that a second call with the same model, text and
  /// options goes on where the first was stopped; deleted at the end. Empty: nowhere.
  std::string partial_path;
  Ablation ablation;
  /// Called often; false stops. May be null.
  std::function<bool(const ProfileProgress&)> progress;
};

/// Runs for minutes. `settings`: as Replayer::Create. INVALID_ARGUMENT for impossible options and
/// for a text that is too short, with the numbers; FAILED_PRECONDITION for a model or cache type
/// that has no lossy levels; CANCELLED when it was stopped; errors of Replayer, Codec and
/// MeasureSensitivity. Deterministic for one machine and thread count.
absl::StatusOr<kvstore::codec::Profile> BuildProfile(std::shared_ptr<const Model> model,
                                                     std::string_view text,
                                                     const ProfileOptions& options,
                                                     const EngineOptions& settings);

}  // namespace tandem::workers
