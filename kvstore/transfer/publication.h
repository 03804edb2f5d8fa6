// A sequence's KV on offer: what the engine's thread appends, kept until its puller has it. The
// states are in transfer.h. Used by HandoffServer alone.
#pragma once

#include <atomic>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <variant>
#include <vector>

#include "kvstore/transfer/task_group.h"
#include "kvstore/transfer/transfer.h"
#include "kvstore/transfer/wire.h"

namespace tandem::kvstore {

/// A chunk that only needs to be sent: its frame's head is encoded, checksum included.
class ReadyChunk {
 public:
  /// `held_bytes` counts the body for as long as it is in memory.
  ReadyChunk(std::vector<uint8_t> head, std::shared_ptr<const KvChunk> chunk,
             std::shared_ptr<std::atomic<uint64_t>> held_bytes);
  ~ReadyChunk();
  ReadyChunk(const ReadyChunk&) = delete;
  ReadyChunk& operator=(const ReadyChunk&) = delete;

  wire::Bytes head() const { return head_; }
  wire::Bytes body() const { return chunk_->bytes; }
  const std::shared_ptr<const KvChunk>& chunk() const { return chunk_; }

 private:
  const std::vector<uint8_t> head_;
  const std::shared_ptr<const KvChunk> chunk_;
  const std::shared_ptr<std::atomic<uint64_t>> held_bytes_;
};

/// Thread-safe but for the members that say otherwise.
class OfferedKv final : public Publication, public std::enable_shared_from_this<OfferedKv> {
 public:
  struct Hooks {
    std::shared_ptr<TaskGroup> tasks;
    std::shared_ptr<std::atomic<uint64_t>> held_bytes;
    /// Takes the publication off the server's list; any thread, must not call back.
    std::function<void()> forget;
    /// Runs on the io thread.
    HandoffServer::ReleaseCallback on_released;
  };
  OfferedKv(boost::asio::io_context& io, absl::Duration lease, RequestContextPtr context,
            HandoffPlan plan, Hooks hooks);

  /// What the engine gets: aborts when it is dropped before Finish.
  std::shared_ptr<Publication> MakeHandle();
  /// Releases when the request is cancelled. Call once, when others may see the object.
  void ObeyCancellation();

  void Append(std::shared_ptr<const KvChunk> chunk) override;
  void Finish(HandoffEnd end) override;
  void Abort(absl::Status reason) override;
  /// Enters the state `released`; does nothing when already there.
  void Release(absl::Status outcome);

  // The rest is for the session that sends it: io thread only.

  /// False when another session is at it.
  bool BeginPull();
  struct MustWait {};
  using ChunkPtr = std::shared_ptr<const ReadyChunk>;
  /// What to do after `n_sent` chunks: send the next one, send the end, wait, or, when released,
  /// stop with the outcome.
  using Step = std::variant<MustWait, ChunkPtr, HandoffEnd, absl::Status>;
  Step Next(size_t n_sent);
  /// Waits until something may have changed (true), or until `limit` has passed (false).
  boost::asio::awaitable<bool> Changed(absl::Duration limit);
  void CountSent(uint64_t bytes, size_t encoding);
  const HandoffPlan& plan() const { return plan_; }
  const RequestContext& context() const { return *context_; }
  /// Tokens appended so far.
  uint32_t computed_tokens();

 private:
  enum class State { kOpen, kFinished, kReleased };

  void ReleaseLocked(absl::Status outcome, std::vector<ChunkPtr>* dropped);
  // Io thread.
  void OnChanged();
  void OnReleased();

  const absl::Duration lease_;
  const RequestContextPtr context_;
  const HandoffPlan plan_;
  const std::shared_ptr<TaskGroup> tasks_;
  const std::shared_ptr<std::atomic<uint64_t>> held_bytes_;

  std::mutex mutex_;
  State state_ = State::kOpen;  // guarded by mutex_, as is all down to outcome_
  std::function<void()> forget_;
  wire::ChunkSequence positions_;
  std::vector<ChunkPtr> chunks_;
  HandoffEnd end_;
  absl::Status outcome_;

  // Io thread.
  HandoffServer::ReleaseCallback on_released_;
  /// Runs the lease while nobody pulls, and wakes the sender while somebody does; gone once
  /// released, as the object may outlive the io_context.
  std::optional<boost::asio::steady_timer> timer_;
  bool lease_runs_ = false;
  bool pulled_ = false;
  absl::Time pull_began_;
  HandoffStats stats_;
};

}  // namespace tandem::kvstore
