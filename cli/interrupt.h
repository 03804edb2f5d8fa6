// Ctrl-C as a call: the first SIGINT or SIGTERM runs a callback, so that a call can be cancelled
// cleanly; the second ends the process. Used by the sub-commands while they talk to a router.
#pragma once

#include <functional>
#include <mutex>
#include <thread>

#include "absl/time/time.h"

namespace tandem::cli {

/// Keeps SIGINT and SIGTERM from this thread and from all that it starts, so that only an
/// Interrupt takes them. Call first thing in main.
void HoldSignals();

/// One at a time in a process, after HoldSignals.
class Interrupt {
 public:
  /// `callback` runs on a thread of its own, once, upon the first signal.
  explicit Interrupt(std::function<void()> callback);
  ~Interrupt();
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;

  /// True once a signal has come.
  bool interrupted() const;

 private:
  void Run(const std::function<void()>& callback);

  mutable std::mutex mutex_;
  bool interrupted_ = false;  // guarded by mutex_
  std::thread thread_;
};

}  // namespace tandem::cli
