#include "workers/worker_speed.h"

namespace tandem::workers {
namespace {

v1::LatencyModel ToProto(const scheduler::LatencyModel& model) {
  v1::LatencyModel report;
  report.set_prefill_base_s(model.prefill.base_s);
  report.set_prefill_per_token_s(model.prefill.per_token_s);
  report.set_prefill_per_position_s(model.prefill.per_position_s);
  report.set_decode_base_s(model.decode.base_s);
  report.set_decode_per_sequence_s(model.decode.per_sequence_s);
  report.set_decode_per_context_token_s(model.decode.per_context_token_s);
  report.set_saturation_tokens(model.saturation_tokens);
  report.set_prefill_samples(model.prefill_samples);
  report.set_decode_samples(model.decode_samples);
  if (model.decode_samples > 0) {
    report.mutable_decode_factors()->Add(model.decode.factor.begin() + 1,
                                         model.decode.factor.end());
  }
  return report;
}

}  // namespace

void WorkerSpeed::PrefillStep(std::span<const Engine::StepItem> items, double seconds) {
  uint64_t n_tokens = 0;
  double position_sum = 0;
  for (const Engine::StepItem& item : items) {
    n_tokens += item.tokens.size();
    position_sum += scheduler::PrefillCost::PositionSum(item.tokens.size(),
                                                        static_cast<uint64_t>(item.first_position));
  }
  std::lock_guard lock(mutex_);
  for (auto* learner : {&recent_, &usual_}) {
    learner->ObservePrefill(n_tokens, position_sum, seconds);
  }
}

void WorkerSpeed::DecodeStep(uint32_t sequences, uint64_t context_tokens, double seconds) {
  std::lock_guard lock(mutex_);
  for (auto* learner : {&recent_, &usual_}) {
    learner->ObserveDecode(sequences, context_tokens, seconds);
  }
}

scheduler::LatencyLearner::Learned WorkerSpeed::Learned(EngineOptions::Use use) const {
  std::lock_guard lock(mutex_);
  return use == EngineOptions::Use::kPrefill ? usual_.LearnedPrefill() : usual_.LearnedDecode();
}

void WorkerSpeed::Restore(EngineOptions::Use use,
                          const scheduler::LatencyLearner::Learned& learned) {
  std::lock_guard lock(mutex_);
  for (auto* learner : {&recent_, &usual_}) {
    if (use == EngineOptions::Use::kPrefill) {
      learner->RestorePrefill(learned);
    } else {
      learner->RestoreDecode(learned);
    }
  }
}

scheduler::LatencyModel WorkerSpeed::model() const {
  std::lock_guard lock(mutex_);
  return recent_.model();
}

v1::LatencyModel WorkerSpeed::Report() const { return ToProto(model()); }

v1::LatencyModel WorkerSpeed::ReportUsual() const {
  std::lock_guard lock(mutex_);
  return ToProto(usual_.model());
}

}  // namespace tandem::workers
