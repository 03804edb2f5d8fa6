// Keeps a worker registered with every router of its list: one stream each, over which it tells
// who it is and then, again and again, its load. Owned by Worker.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "tandem/v1/cluster.grpc.pb.h"

namespace tandem::workers {

/// Thread-safe. A broken stream is made anew with growing pauses, for as long as the object lives.
class ClusterClient {
 public:
  /// `load` is called on this object's threads.
  ClusterClient(const std::vector<std::string>& routers, v1::WorkerInfo info,
                std::function<v1::WorkerLoad()> load, absl::Duration interval);
  ~ClusterClient();

  /// Sends a report at once instead of at the next interval.
  void ReportNow();

 private:
  struct Router;
  void Run(Router& router);
  // Registers and reports until the stream breaks.
  void Report(Router& router);
  // False: stopping.
  bool Pause(std::unique_lock<std::mutex>& lock, absl::Duration duration, uint64_t* reports_seen);

  const v1::WorkerInfo info_;
  const std::function<v1::WorkerLoad()> load_;
  const absl::Duration interval_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;        // guarded by mutex_
  uint64_t reports_wanted_ = 0;  // guarded by mutex_
  std::vector<std::unique_ptr<Router>> routers_;
};

}  // namespace tandem::workers
