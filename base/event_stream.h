// The server's end of a server-streaming gRPC call whose messages come from other threads: the
// worker's Prefill and Decode calls and the router's Generate are such streams.
#pragma once

#include <grpcpp/grpcpp.h>

#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <type_traits>

namespace tandem {

/// A reactor that may be written from any thread and outlives its call for as long as somebody
/// holds it. States:
///
///   open ── Send ──> open;   open ── End ──> ending ── all written ──> finished (Finish called)
///   any of them ── client gone ──> the same state, writes are dropped, OnCancelled was called
///
/// Every stream must be ended with End exactly once, also after cancellation; only then does gRPC
/// let go of the call. `Wire` is grpc::ByteBuffer for raw methods.
template <typename Event, typename Wire = Event>
class EventStream : public grpc::ServerWriteReactor<Wire>,
                    public std::enable_shared_from_this<EventStream<Event, Wire>> {
 public:
  /// Makes the object own itself until gRPC is done with the call. Call once, right after
  /// construction in a shared_ptr, before returning it to gRPC.
  void Open() { self_ = this->shared_from_this(); }

  /// Queues one message. Dropped when the stream has been ended or the client is gone. While a
  /// write is in progress messages may be merged (see Merge), so a slow client costs no memory.
  void Send(Event event) {
    {
      std::lock_guard lock(mutex_);
      if (end_ || gone_) return;
      if (writing_) {
        if (queue_.empty() || !Merge(queue_.back(), event)) queue_.push_back(std::move(event));
        return;
      }
      writing_ = true;
      Load(event);
    }
    this->StartWrite(&wire_);
  }

  /// Ends the stream after everything queued has been written. Later calls do nothing.
  void End(grpc::Status status) {
    {
      std::lock_guard lock(mutex_);
      if (end_) return;
      end_ = std::move(status);
      if (writing_) return;
      writing_ = true;
    }
    this->Finish(*end_);
  }

  /// End with a last message, in one write where possible.
  void EndWith(Event event, grpc::Status status) {
    {
      std::lock_guard lock(mutex_);
      if (end_) return;
      end_ = std::move(status);
      if (writing_) {
        if (gone_) return;
        if (queue_.empty() || !Merge(queue_.back(), event)) queue_.push_back(std::move(event));
        return;
      }
      writing_ = true;
      Load(event);
    }
    this->StartWriteAndFinish(&wire_, grpc::WriteOptions(), *end_);
  }

  /// The client has cancelled or is lost: what is sent is dropped.
  bool gone() const {
    std::lock_guard lock(mutex_);
    return gone_;
  }

 protected:
  /// Adds `next` to `last`, which is queued and not yet sent. False: they must stay apart.
  virtual bool Merge(Event& /*last*/, Event& /*next*/) { return false; }
  /// The client cancelled, its deadline passed, or its connection is lost. Runs once, on a gRPC
  /// thread.
  virtual void OnCancelled() = 0;

 private:
  void Load(Event& event) {
    if constexpr (std::is_same_v<Event, Wire>) {
      wire_ = std::move(event);
    } else {
      wire_.Clear();  // Serialize wants an empty one
      bool own_buffer = false;
      grpc::SerializationTraits<Event>::Serialize(event, &wire_, &own_buffer);
    }
  }

  void OnWriteDone(bool ok) override {
    bool finish = false, last = false;
    {
      std::lock_guard lock(mutex_);
      if (!ok || gone_) queue_.clear();
      if (!queue_.empty()) {
        Load(queue_.front());
        queue_.pop_front();
        last = end_.has_value() && queue_.empty();
      } else if (end_) {
        finish = true;
      } else {
        writing_ = false;
        return;
      }
    }
    if (finish) {
      this->Finish(*end_);
    } else if (last) {
      this->StartWriteAndFinish(&wire_, grpc::WriteOptions(), *end_);
    } else {
      this->StartWrite(&wire_);
    }
  }

  void OnCancel() override {
    {
      std::lock_guard lock(mutex_);
      gone_ = true;
      queue_.clear();
    }
    OnCancelled();
  }

  void OnDone() override {
    auto self = std::move(self_);  // may be the last reference: destroys on return
  }

  mutable std::mutex mutex_;
  std::deque<Event> queue_;
  Wire wire_;
  std::optional<grpc::Status> end_;
  bool writing_ = false;  // a write or the Finish is in progress: gRPC allows one at a time
  bool gone_ = false;
  std::shared_ptr<EventStream> self_;
};

}  // namespace tandem
