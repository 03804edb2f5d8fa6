// Content-addressed chunks over the data plane: the client's conversation with one peer, and the
// server's answers. Frames: proto/tandem/v1/transfer.proto.
#pragma once

#include <array>
#include <boost/asio/awaitable.hpp>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kvstore/chunk.h"
#include "kvstore/store.h"
#include "kvstore/transfer/chunk_lease.h"
#include "kvstore/transfer/frame_socket.h"
#include "kvstore/transfer/peer_pool.h"

namespace tandem::kvstore {

/// Envelope bytes by level; 0: not held.
using LevelBytes = std::array<uint64_t, 5>;

/// A larger chunk is refused.
inline constexpr uint64_t kMaxChunkBytes = uint64_t{1} << 28;
/// Ids in one FIND.
inline constexpr size_t kMaxFindIds = 1024;

/// One conversation, on the io thread. Errors end it; they are those of FrameSocket and:
///   FAILED_PRECONDITION  the peer keeps no chunks, or speaks another version
class ChunkSession {
 public:
  ChunkSession(std::shared_ptr<PeerPool> peers, std::string address);

  /// Connects, when need be, and asks what the peer holds of `ids` (at most kMaxFindIds).
  boost::asio::awaitable<absl::StatusOr<std::vector<LevelBytes>>> Find(
      std::span<const ChunkId> ids);
  /// Asks for a chunk. Several may be asked for before the first is received.
  boost::asio::awaitable<absl::Status> Ask(const ChunkKey& key);
  /// Receives the chunk asked for earliest. NOT_FOUND when the peer has it no more, DATA_LOSS when
  /// what comes is damaged; after both the conversation goes on, if it is still in_step.
  boost::asio::awaitable<absl::StatusOr<StoredChunkPtr>> Receive(const ChunkKey& key);
  /// False after a frame was damaged: nobody knows where the next one begins.
  bool in_step() const { return in_step_; }
  /// Gives the peer a chunk to keep. Connects when need be.
  boost::asio::awaitable<absl::Status> Give(const StoredChunk& chunk);
  /// Keeps the connection for later (OK), or drops it and tells the peer why.
  boost::asio::awaitable<void> End(absl::Status status);

  /// Ends what is in progress, and all that follows, with `reason`.
  void Stop(absl::Status reason) { use_.Stop(std::move(reason)); }
  /// Bytes received by this connection, and since the last answer was complete.
  uint64_t bytes_read() const { return use_.peer == nullptr ? 0 : use_.peer->bytes_read(); }
  uint64_t bytes_of_answer() const { return bytes_read() - answered_at_; }
  /// The shortest seen on this connection; 0 when there is none.
  double rtt_s() const { return use_.peer == nullptr ? 0 : use_.peer->send_state().rtt_s; }

 private:
  boost::asio::awaitable<absl::StatusOr<v1::Found>> AskFind(const v1::Find& request);

  const std::shared_ptr<PeerPool> peers_;
  PeerUse use_;
  uint64_t answered_at_ = 0;
  bool in_step_ = true, found_ = false;
};

/// Answers one FIND, FETCH or STORE that `frame` begins. What a FIND finds is added to `lease`,
/// which one without ids ends. INVALID_ARGUMENT for another type, FAILED_PRECONDITION when `store`
/// is null.
boost::asio::awaitable<absl::Status> AnswerChunkRequest(FrameSocket& peer, const Frame& frame,
                                                        Store* store, ChunkLease& lease,
                                                        absl::Duration limit);

}  // namespace tandem::kvstore
