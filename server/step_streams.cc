#include "server/step_streams.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "base/random_bytes.h"

namespace tandem::server {
namespace {

constexpr size_t kNameBytes = 16;

}  // namespace

StepStreams::Place StepStreams::Add(const std::string& worker_id,
                                    const std::shared_ptr<v1::WorkerService::Stub>& stub,
                                    std::weak_ptr<StepListener> listener) {
  std::lock_guard lock(mutex_);
  Call& call = calls_[worker_id];
  if (call.stream == nullptr) {
    call.name = RandomBytes(kNameBytes);
    call.stream = std::make_shared<Stream>(
        [this](const v1::StepTokens& step) { OnStep(step); },
        [this, worker_id, name = call.name](const grpc::Status&) { OnDone(worker_id, name); });
    ++n_open_;
    v1::StepsRequest request;
    request.set_step_stream(call.name);
    stub->async()->Steps(&call.stream->context(), &request, call.stream.get());
    call.stream->Start(stub);
  }
  listeners_[++last_sequence_] = {.step_stream = call.name, .listener = std::move(listener)};
  return {.step_stream = call.name, .sequence = last_sequence_};
}

void StepStreams::Remove(uint64_t sequence) {
  std::lock_guard lock(mutex_);
  listeners_.erase(sequence);
}

void StepStreams::Lose(const std::string& worker_id) {
  std::lock_guard lock(mutex_);
  const auto found = calls_.find(worker_id);
  if (found == calls_.end()) return;
  found->second.stream->Cancel();
  calls_.erase(found);
}

void StepStreams::Stop() {
  std::unique_lock lock(mutex_);
  for (const auto& [worker_id, call] : calls_) call.stream->Cancel();
  none_left_.wait(lock, [this] { return n_open_ == 0; });
}

void StepStreams::OnStep(const v1::StepTokens& step) {
  const int n = std::min(step.sequences_size(), step.tokens_size());
  for (int i = 0; i < n; ++i) {
    std::shared_ptr<StepListener> listener;
    {
      std::lock_guard lock(mutex_);
      const auto found = listeners_.find(step.sequences(i));
      if (found != listeners_.end()) listener = found->second.listener.lock();
    }
    if (listener != nullptr) listener->OnStepToken(step.sequences(i), step.tokens(i));
  }
}

void StepStreams::OnDone(const std::string& worker_id, const std::string& name) {
  std::vector<std::pair<uint64_t, std::shared_ptr<StepListener>>> told;
  {
    std::lock_guard lock(mutex_);
    const auto found = calls_.find(worker_id);
    if (found != calls_.end() && found->second.name == name) calls_.erase(found);
    for (const auto& [sequence, each] : listeners_) {
      if (each.step_stream == name) told.emplace_back(sequence, each.listener.lock());
    }
  }
  for (const auto& [sequence, listener] : told) {
    if (listener != nullptr) listener->OnStepsBroken(sequence);
  }
  told.clear();  // may be the last references, and the router waits for those
  std::lock_guard lock(mutex_);
  if (--n_open_ == 0) none_left_.notify_all();
}

}  // namespace tandem::server
