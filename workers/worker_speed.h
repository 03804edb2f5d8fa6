// What a worker has learned of its own speed, from every step that it makes: for its own plans and
// for the routers. Fed by both loops; owned by Worker.
#pragma once

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <span>

#include "scheduler/core/latency_model.h"
#include "tandem/v1/cluster.pb.h"
#include "workers/engine/engine.h"

namespace tandem::workers {

/// Thread-safe.
class WorkerSpeed {
 public:
  /// `step_tokens`: the engine's largest step.
  explicit WorkerSpeed(uint32_t step_tokens)
      : recent_(LearnerOptions(step_tokens, scheduler::CostFit::kMemoryS)),
        usual_(LearnerOptions(step_tokens, kUsualMemoryS)) {}

  /// A step over prompts took so long.
  void PrefillStep(std::span<const Engine::StepItem> items, double seconds);
  /// A step gave `sequences` with so many tokens of context in all a token each.
  void DecodeStep(uint32_t sequences, uint64_t context_tokens, double seconds);

  /// What was learned of one loop's steps (the engine's use tells which), to be kept for the next
  /// start; and to go on from there. See LatencyLearner.
  scheduler::LatencyLearner::Learned Learned(EngineOptions::Use use) const;
  void Restore(EngineOptions::Use use, const scheduler::LatencyLearner::Learned& learned);

  /// Of the last seconds: for what is decided now, here and by the routers.
  scheduler::LatencyModel model() const;
  v1::LatencyModel Report() const;
  /// Of the last minute: for plans, which hold for longer than a bad moment.
  v1::LatencyModel ReportUsual() const;

 private:
  /// libllama takes kernels for few rows below that.
  static constexpr uint32_t kShortestSaturation = 64;
  static constexpr double kUsualMemoryS = 60;

  static scheduler::LatencyLearner::Options LearnerOptions(uint32_t step_tokens, double memory_s) {
    return {.prior = {.saturation_tokens = step_tokens},
            .min_saturation_tokens = std::min(step_tokens, kShortestSaturation),
            .max_saturation_tokens = step_tokens,
            .memory_s = memory_s};
  }

  mutable std::mutex mutex_;
  scheduler::LatencyLearner recent_, usual_;  // guarded by mutex_
};

}  // namespace tandem::workers
