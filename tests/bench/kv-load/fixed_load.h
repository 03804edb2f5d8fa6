// A load without an adapter: Tandem's chunks, all of them, at the one level that the other side
// has, with nothing computed before all are there.
#pragma once

#include <boost/asio/thread_pool.hpp>
#include <memory>
#include <string>
#include <vector>

#include "kvstore/loading/context_loader.h"
#include "tests/bench/kv-load/context.h"

namespace tandem::bench {

class FixedLoad {
 public:
  /// All outlive it.
  FixedLoad(boost::asio::io_context& io, const kvstore::codec::Codec* codec,
            workers::Engine* engine);
  ~FixedLoad();

  /// Loads the chunks from `address` into the engine's sequence 0, which must be empty.
  /// UNAVAILABLE when one is not there.
  absl::Status Load(const std::string& address, const std::vector<kvstore::ChunkId>& ids);
  /// Loads them `n` times at once, into no engine. Returns the seconds that each load took.
  absl::StatusOr<std::vector<double>> LoadTogether(const std::string& address,
                                                   const std::vector<kvstore::ChunkId>& ids,
                                                   size_t n);

 private:
  struct Progress;
  std::shared_ptr<kvstore::ContextLoad> Start(const std::string& address,
                                              const std::vector<kvstore::ChunkId>& ids,
                                              std::shared_ptr<Progress> progress);
  workers::Engine* const engine_;
  struct Silent;
  const std::unique_ptr<Silent> observer_;
  boost::asio::thread_pool codec_thread_;
  std::unique_ptr<kvstore::ContextLoader> loader_;
};

}  // namespace tandem::bench
