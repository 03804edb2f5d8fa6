// The router's ends of the Steps calls: one for each worker brings the tokens of all sequences that
// the worker decodes for this router.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "server/worker_stream.h"
#include "tandem/v1/worker.grpc.pb.h"

namespace tandem::server {

/// Who waits for a sequence's tokens. Called on gRPC's threads with no lock held.
class StepListener {
 public:
  virtual ~StepListener() = default;
  virtual void OnStepToken(uint64_t sequence, int32_t token) = 0;
  /// The call has ended: tokens that have not come are lost.
  virtual void OnStepsBroken(uint64_t sequence) = 0;
};

/// Thread-safe.
class StepStreams {
 public:
  /// What a decode worker is told.
  struct Place {
    std::string step_stream;
    uint64_t sequence = 0;
  };

  /// A sequence goes to the worker: makes the call first if there is none. The listener hears of it
  /// until Remove, and it may be that it still does while Remove returns.
  Place Add(const std::string& worker_id, const std::shared_ptr<v1::WorkerService::Stub>& stub,
            std::weak_ptr<StepListener> listener);
  void Remove(uint64_t sequence);
  /// The worker is lost, or has left.
  void Lose(const std::string& worker_id);
  /// Ends all calls and waits until they have. Nothing may be added any more.
  void Stop();

 private:
  using Stream = WorkerStream<v1::StepTokens>;
  struct Call {
    std::string name;
    std::shared_ptr<Stream> stream;
  };
  struct Listener {
    std::string step_stream;
    std::weak_ptr<StepListener> listener;
  };
  void OnStep(const v1::StepTokens& step);
  void OnDone(const std::string& worker_id, const std::string& name);

  std::mutex mutex_;
  std::condition_variable none_left_;
  // Guarded by mutex_, as all below.
  absl::flat_hash_map<std::string, Call> calls_;  // by worker
  absl::flat_hash_map<uint64_t, Listener> listeners_;
  uint64_t last_sequence_ = 0;
  size_t n_open_ = 0;
};

}  // namespace tandem::server
