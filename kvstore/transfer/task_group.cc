#include "kvstore/transfer/task_group.h"

#include <spdlog/spdlog.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/post.hpp>
#include <chrono>
#include <exception>

namespace tandem::kvstore {
namespace {

void LogException(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& e) {
    spdlog::error("data plane task failed what=\"{}\"", e.what());
  } catch (...) {
    spdlog::error("data plane task failed");
  }
}

}  // namespace

bool TaskGroup::Enter() {
  std::lock_guard lock(mutex_);
  if (closed_) return false;
  ++running_;
  return true;
}

void TaskGroup::Leave() {
  std::lock_guard lock(mutex_);
  if (--running_ == 0) empty_.notify_all();
}

void TaskGroup::Post(std::function<void()> task) {
  if (!Enter()) return;
  boost::asio::post(io_, [self = shared_from_this(), task = std::move(task)]() mutable {
    task();
    // What the task holds must be gone before the group counts as empty.
    task = nullptr;
    self->Leave();
  });
}

bool TaskGroup::Spawn(boost::asio::awaitable<void> task) {
  if (!Enter()) return false;
  boost::asio::co_spawn(io_, std::move(task),
                        [self = shared_from_this()](const std::exception_ptr& error) {
                          if (error) LogException(error);
                          self->Leave();
                        });
  return true;
}

void TaskGroup::Drain() {
  if (io_.get_executor().running_in_this_thread()) return;
  std::unique_lock lock(mutex_);
  while (running_ != 0 && !io_.stopped()) {
    // A stopped io_context does not notify.
    empty_.wait_for(lock, std::chrono::milliseconds(50));
  }
  closed_ = true;
}

}  // namespace tandem::kvstore
