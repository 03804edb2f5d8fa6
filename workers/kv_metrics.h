// What a node that keeps or loads chunks tells Prometheus. Used by workers and stores; scraped
// through server/metrics_server.h. Families: docs/metrics.md.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "kvstore/loading/context_loader.h"
#include "kvstore/store.h"
#include "kvstore/transfer/transfer.h"

namespace prometheus {
class Registry;
}

namespace tandem::workers {

/// Thread-safe; every call is cheap.
class KvMetrics final : public kvstore::LoadObserver {
 public:
  /// `node`: the worker's or store's name, unique among those that share the registry.
  KvMetrics(std::shared_ptr<prometheus::Registry> registry, std::string model_name,
            std::string node);
  ~KvMetrics() override;

  void ChunkLoaded(kvstore::Origin origin, kvstore::Level level, uint64_t bytes) override;
  void TextChosen() override;
  void ChunkRefused(kvstore::Origin origin, const absl::Status& why) override;
  void PeerFailed(const absl::Status& why) override;
  void LinkMeasured(const std::string& address, double bytes_per_s) override;

  /// A new chunk was encoded and put into the store.
  void ChunkKept(kvstore::Level level, uint64_t bytes, double encode_seconds);
  /// A new chunk was not kept: too much waited to be encoded.
  void KeepDropped();
  /// A handoff's chunks left: how many in each encoding.
  void HandoffChunks(const std::array<uint32_t, kvstore::kEncodings>& encodings);
  /// Where a prompt's tokens came from: "engine", "memory", "disk", "redis", "peer", "computed".
  void PromptTokens(const char* origin, uint64_t n);
  /// Seconds of computing that a prompt's cached prefix spared, less what loading it took.
  void TimeSaved(double seconds);
  /// The store's own figures, again and again.
  void SetStore(const kvstore::StoreStats& stats);

 private:
  struct Families;
  const std::unique_ptr<Families> families_;
};

}  // namespace tandem::workers
