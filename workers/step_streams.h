// The worker's ends of its routers' Steps calls: the tokens of all sequences that are decoded for
// one router leave in one message a step. Used by the worker's gRPC service.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "base/event_stream.h"
#include "tandem/v1/worker.pb.h"

namespace tandem::workers {

/// One router's Steps call. Thread-safe.
class StepStream final : public EventStream<v1::StepTokens> {
 public:
  /// A token for the next Flush. False: the router has ended the call or is gone, so tokens get
  /// lost.
  bool Add(uint64_t sequence, int32_t token);
  /// Sends what was added since the last time, if anything.
  void Flush();

 private:
  bool Merge(v1::StepTokens& last, v1::StepTokens& next) override {
    last.MergeFrom(next);
    return true;
  }
  void OnCancelled() override { End(grpc::Status::CANCELLED); }

  std::mutex mutex_;
  v1::StepTokens pending_;  // guarded by mutex_
};

/// Those that are open, by the names that the routers gave them. Thread-safe.
class StepStreams {
 public:
  /// A router's call begins; the reactor is gRPC's.
  grpc::ServerWriteReactor<v1::StepTokens>* Open(const std::string& name);
  /// Null when there is none, or its router has ended it.
  std::shared_ptr<StepStream> Find(const std::string& name);
  /// Ends all of them, and every later one at once: the server stops.
  void Stop();

 private:
  std::mutex mutex_;
  // Guarded by mutex_.
  absl::flat_hash_map<std::string, std::weak_ptr<StepStream>> streams_;
  bool stopped_ = false;
};

}  // namespace tandem::workers
