// Keeps what a worker has learned of its speed for its next start: one small JSON file for each
// model, machine and setting, in a folder that the processes of a machine may share. Used by
// Worker.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "scheduler/core/latency_model.h"
#include "workers/engine/engine.h"

namespace tandem::workers {

/// Where such files are when nobody says: $XDG_CACHE_HOME/tandem, or ~/.cache/tandem; empty when
/// the environment names neither. Thread-safe as getenv is.
std::string DefaultSpeedCachePath();

/// What steps of an engine cost depends on, in words: the model's fingerprint, Tandem's and
/// libllama's version, the device, and the engine's options, threads included. `device` as
/// DeviceDescription gives it.
std::string SpeedKey(const Model& model, const EngineOptions& options, const std::string& device);

/// Thread-safe; several processes may use one folder, the last that writes counts.
class SpeedCache {
 public:
  /// `folder`: made when something is saved; empty: nothing is kept.
  explicit SpeedCache(std::string folder) : folder_(std::move(folder)) {}

  /// What was kept for `key`.
  ///   NOT_FOUND  nothing was
  ///   DATA_LOSS  the file is damaged, or of another format; it names the file
  absl::StatusOr<scheduler::LatencyLearner::Learned> Load(const std::string& key) const;
  /// Writes it in one piece: a reader sees the old file or the new one. INVALID_ARGUMENT,
  /// naming the file, when it cannot be written; UNAVAILABLE when there is no folder.
  absl::Status Save(const std::string& key,
                    const scheduler::LatencyLearner::Learned& learned) const;
  /// The file of a key.
  std::string PathOf(const std::string& key) const;

 private:
  const std::string folder_;
};

}  // namespace tandem::workers
