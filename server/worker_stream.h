// The router's end of a server-streaming call to a worker.
#pragma once

#include <grpcpp/grpcpp.h>
#include <grpcpp/support/client_callback.h>

#include <functional>
#include <memory>

namespace tandem::server {

/// Runs `on_event` for each message and `on_done` once, last, on gRPC's threads, one at a time.
/// Keeps itself alive until then.
template <typename Event>
class WorkerStream final : public grpc::ClientReadReactor<Event>,
                           public std::enable_shared_from_this<WorkerStream<Event>> {
 public:
  WorkerStream(std::function<void(Event&)> on_event,
               std::function<void(const grpc::Status&)> on_done)
      : on_event_(std::move(on_event)), on_done_(std::move(on_done)) {}

  /// For the deadline, before the call is made.
  grpc::ClientContext& context() { return context_; }

  /// Call once, after the stub's method was called with this reactor; `owner` is kept until the
  /// call has ended (the stub).
  void Start(std::shared_ptr<void> owner) {
    owner_ = std::move(owner);
    self_ = this->shared_from_this();
    this->StartRead(&event_);
    this->StartCall();
  }

  /// Ends the call; on_done follows. Thread-safe.
  void Cancel() { context_.TryCancel(); }

 private:
  void OnReadDone(bool ok) override {
    if (!ok) return;
    on_event_(event_);
    event_.Clear();
    this->StartRead(&event_);
  }
  void OnDone(const grpc::Status& status) override {
    const auto self = std::move(self_);
    on_done_(status);
    // The callbacks own the call that owns this object.
    on_event_ = nullptr;
    on_done_ = nullptr;
    owner_ = nullptr;
  }

  grpc::ClientContext context_;
  Event event_;
  std::function<void(Event&)> on_event_;
  std::function<void(const grpc::Status&)> on_done_;
  std::shared_ptr<WorkerStream> self_;
  std::shared_ptr<void> owner_;
};

}  // namespace tandem::server
