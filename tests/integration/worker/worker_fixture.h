// Whole workers in this process, called over gRPC as a router calls them.
#pragma once

#include <grpcpp/grpcpp.h>
#include <prometheus/registry.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tandem/v1/worker.grpc.pb.h"
#include "workers/worker.h"

namespace tandem::workers {

/// Looks at `condition` until it is true; false after a minute.
bool Eventually(const std::function<bool()>& condition);

/// A worker without routers, and the stub to call it.
class TestWorker {
 public:
  explicit TestWorker(v1::Phase phase, const std::function<void(WorkerOptions&)>& change = nullptr);

  Worker& worker() { return *worker_; }
  v1::WorkerService::Stub& stub() { return *stub_; }
  v1::WorkerLoad load() const { return worker_->Load(); }
  /// Sum of the family's samples.
  double Metric(const std::string& family) const;

 private:
  const std::shared_ptr<prometheus::Registry> registry_ = std::make_shared<prometheus::Registry>();
  std::unique_ptr<Worker> worker_;
  std::unique_ptr<v1::WorkerService::Stub> stub_;
};

/// What a router does for one request: prefill, decode, and decode again wherever it moves.
struct TestRequest {
  std::vector<int32_t> prompt;
  uint32_t max_tokens = 32;
  /// As a router that can go on elsewhere.
  bool can_move = true;
  /// Set from elsewhere: the client has had enough. It is looked at all the time.
  const std::atomic<bool>* cancel = nullptr;
  /// The Steps call, which the caller has made, that tokens after the first shall come by.
  std::string step_stream = {};
  uint64_t step_sequence = 0;
};
struct Outcome {
  absl::Status status;
  /// All of them, the first included.
  std::vector<int32_t> tokens;
  uint32_t moves = 0;
  v1::FinishReason finish = v1::FINISH_REASON_UNSPECIFIED;
  /// Of the tokens, those that went by the step stream, and are not in `tokens`.
  uint32_t step_tokens = 0;
};
/// `next`: where it goes on when it has to move. `on_token` is called with the number of tokens so
/// far.
Outcome Serve(const TestRequest& request, TestWorker& prefill, TestWorker& decode,
              TestWorker* next = nullptr, const std::function<void(size_t)>& on_token = nullptr);

}  // namespace tandem::workers
