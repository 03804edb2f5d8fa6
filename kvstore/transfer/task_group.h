// Everything that one end of the data plane has running on its io_context: counted, so that
// stopping can wait for the last of it. Used by HandoffServer and HandoffClient.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>

namespace tandem::kvstore {

/// Thread-safe. REQUIRES: the io_context is run by one thread.
class TaskGroup : public std::enable_shared_from_this<TaskGroup> {
 public:
  explicit TaskGroup(boost::asio::io_context& io) : io_(io) {}

  /// Runs `task` on the io thread, later. Does nothing once Drain has returned.
  void Post(std::function<void()> task);
  /// Runs the coroutine on the io thread. An exception that leaves it is logged. False, and the
  /// coroutine is dropped, once Drain has returned.
  bool Spawn(boost::asio::awaitable<void> task);
  /// Waits until nothing of the group is left and lets nothing in any more, so that the
  /// io_context may go. Does not wait when called on the io thread, where that cannot end, nor
  /// for an io_context that was stopped.
  void Drain();

 private:
  bool Enter();
  void Leave();

  boost::asio::io_context& io_;
  std::mutex mutex_;
  std::condition_variable empty_;
  size_t running_ = 0;   // guarded by mutex_
  bool closed_ = false;  // guarded by mutex_
};

}  // namespace tandem::kvstore
