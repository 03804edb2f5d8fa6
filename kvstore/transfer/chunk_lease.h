// What one peer was told that it can fetch stays until it has it: a lease on chunks of the store,
// for as long as the peer goes on asking. Used by the data plane's server.
#pragma once

#include <algorithm>
#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <iterator>
#include <memory>
#include <set>
#include <vector>

#include "absl/time/time.h"
#include "kvstore/store.h"

namespace tandem::kvstore {

/// Io thread only. Each request of the peer is a heartbeat; without one for `limit` the chunks may
/// be evicted again.
class ChunkLease : public std::enable_shared_from_this<ChunkLease> {
 public:
  /// `store` may be null.
  ChunkLease(const boost::asio::any_io_executor& executor, Store* store, absl::Duration limit)
      : store_(store), limit_(limit), timer_(executor) {}
  ~ChunkLease() { End(); }
  ChunkLease(const ChunkLease&) = delete;
  ChunkLease& operator=(const ChunkLease&) = delete;

  void Add(const std::vector<ChunkId>& ids) {
    std::vector<ChunkId> more;
    std::copy_if(ids.begin(), ids.end(), std::back_inserter(more),
                 [this](const ChunkId& id) { return !ids_.contains(id); });
    more = store_->Lease(more);
    ids_.insert(more.begin(), more.end());
  }
  void End() {
    if (!ids_.empty()) store_->Unlease(std::vector<ChunkId>(ids_.begin(), ids_.end()));
    ids_.clear();
  }
  /// A request has come: while it is answered time does not count.
  void Pause() { timer_.cancel(); }
  /// It was answered.
  void Resume() {
    if (ids_.empty() || limit_ == absl::InfiniteDuration()) return;
    timer_.expires_after(absl::ToChronoNanoseconds(limit_));
    timer_.async_wait([weak = weak_from_this()](const boost::system::error_code& error) {
      if (error) return;
      if (const auto self = weak.lock()) self->End();
    });
  }

 private:
  Store* const store_;
  const absl::Duration limit_;
  boost::asio::steady_timer timer_;
  std::set<ChunkId> ids_;
};

}  // namespace tandem::kvstore
