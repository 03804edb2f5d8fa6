// The context loader's own parts: what its loads share, and one load. Private to this folder.
#pragma once

#include <array>
#include <atomic>
#include <boost/asio/awaitable.hpp>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "kvstore/loading/context_loader.h"
#include "kvstore/loading/speeds.h"
#include "kvstore/transfer/chunk_session.h"
#include "kvstore/transfer/task_group.h"

namespace tandem::kvstore {

/// What the loads of one worker share. Loads and coroutines keep it alive. Thread-safe but for the
/// members that say otherwise.
class Loader : public std::enable_shared_from_this<Loader> {
 public:
  Loader(boost::asio::io_context& io, Store* store, const codec::Codec* codec,
         ContextLoader::Options options);

  void Give(const std::string& address, StoredChunkPtr chunk);
  void Stop();

  boost::asio::io_context& io() { return io_; }
  Store* store() const { return store_; }
  const codec::Codec& codec() const { return *codec_; }
  const ContextLoader::Options& options() const { return options_; }
  LoadObserver& observer() const { return *options_.observer; }
  Speeds& speeds() { return speeds_; }
  const std::shared_ptr<PeerPool>& peers() const { return peers_; }
  TaskGroup& tasks() { return *tasks_; }
  bool stopped() const { return stopped_; }
  /// While the store owes a callback, Stop waits.
  void StoreAsked();
  void StoreAnswered();
  /// Io thread: Stop interrupts the session while it is listed.
  void List(ChunkSession& session);
  void Unlist(ChunkSession& session) { sessions_.erase(&session); }

 private:
  static boost::asio::awaitable<void> GiveAll(std::shared_ptr<Loader> self, std::string address);

  boost::asio::io_context& io_;
  Store* const store_;
  const codec::Codec* const codec_;
  const ContextLoader::Options options_;
  Speeds speeds_;
  const std::shared_ptr<TaskGroup> tasks_;
  const std::shared_ptr<PeerPool> peers_;
  std::atomic<bool> stopped_ = false;
  std::atomic<uint64_t> giving_bytes_ = 0;
  std::mutex mutex_;
  std::condition_variable no_answers_due_;
  size_t answers_due_ = 0;  // guarded by mutex_
  // Io thread.
  std::set<ChunkSession*> sessions_;
  std::map<std::string, std::deque<StoredChunkPtr>> to_give_;
};

/// See ContextLoad.
class Load final : public ContextLoad, public std::enable_shared_from_this<Load> {
 public:
  Load(std::shared_ptr<Loader> loader, LoadRequest request);

  void Begin();
  Next Decide(size_t index, const TextCost& text) override;
  bool TakeIfAbsent(size_t index) override;
  size_t size() const override { return request_.ids.size(); }
  Loaded Take(size_t index) override;
  void Stop() override;

 private:
  enum class State { kSought, kHeld, kComing, kDecoding, kReady, kAbsent, kTaken };
  struct Chunk {
    State state = State::kSought;
    /// Over all that are asked across a link.
    LevelBytes held{};
    /// Bit i: holder i has it.
    uint32_t holders = 0;
    /// While coming: from whom, at which level, how much.
    size_t asked = 0;
    Level level = Level::kLossless;
    uint64_t asked_bytes = 0;
    Loaded loaded;
  };
  /// In place of a holder's number: the Redis tier.
  static constexpr size_t kShared = 32;

  bool Usable(Level level) const;
  double LeftSeconds() const;

  // This node's own store.
  void LoadLocal();
  // Other nodes.
  static boost::asio::awaitable<void> LoadFromPeer(std::shared_ptr<Load> self, size_t holder);
  boost::asio::awaitable<absl::Status> Converse(ChunkSession& session, size_t holder,
                                                RateEstimator& rate);
  boost::asio::awaitable<absl::Status> FindAll(ChunkSession& session, size_t holder);
  boost::asio::awaitable<absl::Status> ReceiveOne(ChunkSession& session, size_t index, Level level);
  boost::asio::awaitable<void> CountBytes(ChunkSession& session, size_t holder,
                                          RateEstimator& rate);
  void Found(size_t holder, size_t first, const std::vector<LevelBytes>& held);
  /// The last chunk that this holder has and nobody has asked for, at the level that the adapter
  /// chooses for it; it counts as asked for from now on.
  std::optional<std::pair<size_t, Level>> NextToAsk(size_t holder, double bytes_per_s);
  Level ChooseFor(const Chunk& chunk, const LoadState& state) const;
  void HolderGone(size_t holder);
  // Redis.
  void SeekShared();
  void FetchShared(std::vector<std::pair<size_t, ChunkKey>> found);

  /// Decodes on another thread, after which the chunk is ready or absent; unless it is no longer
  /// wanted.
  void Decode(size_t index, StoredChunkPtr chunk, Origin origin);
  absl::StatusOr<Loaded> DecodeNow(size_t index, const StoredChunk& chunk, Origin origin);
  void Absent(size_t index);
  /// This holder has said what it has, or never will.
  void SearchedBy(size_t holder);
  void CloseSearch();
  LoadState StateLocked(double bytes_per_s) const;
  void SetRate(size_t holder, double bytes_per_s, double received);

  const std::shared_ptr<Loader> loader_;
  const LoadRequest request_;
  const uint64_t raw_chunk_bytes_;
  const Stopwatch since_begin_;

  mutable std::mutex mutex_;
  // Guarded by mutex_.
  std::vector<Chunk> chunks_;
  bool stopped_ = false;
  std::set<size_t> searching_;
  // As Decide was asked last.
  std::optional<TextCost> text_;
  size_t engine_at_ = 0;
  struct Flow {
    double bytes_per_s = 0;
    /// Of what is coming.
    double received = 0;
  };
  std::map<size_t, Flow> flows_;
};

}  // namespace tandem::kvstore
