// Keeps a worker registered with every router of its list: one stream each, over which it tells
// who it is and then, again and again, its load and what has changed in its store. Owned by Worker.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "kvstore/chunk_journal.h"
#include "tandem/v1/cluster.grpc.pb.h"

namespace tandem::workers {

/// Thread-safe. A broken stream is made anew with growing pauses, for as long as the object lives.
class ClusterClient {
 public:
  /// `load` is called on this object's threads. `journal`: what the node's store holds; null where
  /// there is none. `assign_phase`: called on this object's threads when a router asks for it, with
  /// whether it is the planner that wants it; null where there are no phases. `set_peers`: called
  /// likewise with all other workers that some router knows, when they change; null for nobody.
  ClusterClient(const std::vector<std::string>& routers, v1::WorkerInfo info,
                std::function<v1::WorkerLoad()> load, absl::Duration interval,
                std::shared_ptr<const kvstore::ChunkJournal> journal = nullptr,
                std::function<void(v1::Phase, bool by_planner)> assign_phase = nullptr,
                std::function<void(const v1::Peers&)> set_peers = nullptr);
  ~ClusterClient();

  /// Sends a report at once instead of at the next interval.
  void ReportNow();

 private:
  using Stream = grpc::ClientReaderWriter<v1::WorkerReport, v1::RegisterResponse>;
  struct Router;
  void Run(Router& router);
  // Registers and reports until the stream breaks.
  void Register(Router& router);
  // Reports until the stream breaks (true) or this object stops (false).
  bool Report(Router& router, Stream& stream);
  // The load, and which routers this object is registered with.
  v1::WorkerReport LoadReport();
  // What has changed since the cursor. False: the stream is broken.
  bool ReportChunks(Router& router, Stream& stream, kvstore::ChunkJournal::Cursor& cursor);
  // Takes what the router asks for, until the stream breaks.
  void Listen(Router& router, Stream& stream);
  // Takes note of whom a router knows.
  void TakePeers(Router& router, const v1::Peers& peers);
  // Takes note of a stream that has ended.
  void Lost(Router& router, const grpc::Status& status);

  const v1::WorkerInfo info_;
  const std::function<v1::WorkerLoad()> load_;
  const absl::Duration interval_;
  const std::shared_ptr<const kvstore::ChunkJournal> journal_;
  const std::function<void(v1::Phase, bool by_planner)> assign_phase_;
  const std::function<void(const v1::Peers&)> set_peers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;        // guarded by mutex_
  uint64_t reports_wanted_ = 0;  // guarded by mutex_
  std::vector<std::unique_ptr<Router>> routers_;
};

}  // namespace tandem::workers
