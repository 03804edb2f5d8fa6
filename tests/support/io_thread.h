// An io_context with a thread of its own: one end of the data plane in tests and benchmarks.
#pragma once

#include <pthread.h>
#include <sched.h>

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <optional>
#include <thread>

namespace tandem::testing_support {

class IoThread {
 public:
  /// Pinned to `core`, where there are that many.
  explicit IoThread(std::optional<unsigned> core = {})
      : guard_(io_.get_executor()), thread_([this] { io_.run(); }) {
    if (!core || *core >= std::thread::hardware_concurrency()) return;
    cpu_set_t cores;
    CPU_ZERO(&cores);
    CPU_SET(*core, &cores);
    pthread_setaffinity_np(thread_.native_handle(), sizeof(cores), &cores);
  }
  ~IoThread() {
    guard_.reset();
    thread_.join();
  }
  boost::asio::io_context& io() { return io_; }

 private:
  boost::asio::io_context io_{1};
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> guard_;
  std::thread thread_;
};

}  // namespace tandem::testing_support
