// A worker whose engine hangs while its process lives: it takes requests and reports, and makes no
// step. For tests that need more than SIGSTOP, which stops a process whole.
#pragma once

#include <sys/types.h>

#include <vector>

namespace tandem::e2e {

/// Stops the threads that run a worker's loops, and no other, for as long as the object is. Must go
/// on the thread that made it, before the process ends.
class EngineStall {
 public:
  /// Returns when they stand still. Which step they are in is chance: once in a while they have a
  /// lock then that the reports want, and the whole worker falls silent.
  explicit EngineStall(pid_t worker);
  ~EngineStall();
  EngineStall(const EngineStall&) = delete;
  EngineStall& operator=(const EngineStall&) = delete;

  /// False when the machine does not permit it (ptrace).
  bool made() const { return !threads_.empty(); }

 private:
  std::vector<pid_t> threads_;
};

}  // namespace tandem::e2e
