// A worker's codec with the threads that run it: for what is handed over, loaded and kept. Owned by
// Worker.
#pragma once

#include <array>
#include <boost/asio/thread_pool.hpp>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>

#include "absl/status/statusor.h"
#include "kvstore/codec/codec.h"
#include "kvstore/transfer/transfer.h"
#include "workers/engine/engine.h"

namespace tandem::workers {

/// Thread-safe.
class KvCoder final : public kvstore::ChunkCoder {
 public:
  /// `engine`'s owner thread calls this. `profile` may be null. `floor`: the coarsest level to use;
  /// nullopt: q1 where the profile has measured its loss on this model, else lossless.
  /// FAILED_PRECONDITION when the profile is another model's, or the floor a level that this model
  /// does not have.
  static absl::StatusOr<std::unique_ptr<KvCoder>> Create(
      const Engine& engine, std::shared_ptr<const kvstore::codec::Profile> profile,
      std::optional<kvstore::codec::Level> floor, uint32_t threads);
  ~KvCoder() override { Stop(); }

  const kvstore::codec::Codec& codec() const { return codec_; }
  /// The coarsest level used for any request.
  kvstore::codec::Level floor() const { return floor_; }
  /// Runs a job on one of the threads.
  void Run(std::function<void()> job);
  /// Waits for the jobs that were given and takes no more.
  void Stop() { threads_.join(); }

  uint32_t encodings() const override { return encodings_; }
  uint64_t profile_id() const override;
  double SizeRatio(kvstore::codec::Level level) const override;
  void Encode(std::shared_ptr<const kvstore::KvChunk> chunk, kvstore::codec::Level level,
              std::function<void(absl::StatusOr<std::vector<uint8_t>>)> done) override;
  void Decode(std::vector<uint8_t> bytes, uint32_t first_position, uint32_t n_tokens,
              std::vector<std::span<uint8_t>> planes,
              std::function<void(absl::Status)> done) override;

  /// Encodes in this thread, and takes note of the size.
  absl::StatusOr<std::vector<uint8_t>> EncodeNow(const kvstore::KvChunk& chunk,
                                                 kvstore::codec::Level level);

 private:
  KvCoder(kvstore::codec::Codec codec, uint32_t threads)
      : codec_(std::move(codec)), threads_(threads) {}

  const kvstore::codec::Codec codec_;
  kvstore::codec::Level floor_ = kvstore::codec::Level::kLossless;
  uint32_t encodings_ = 1;
  mutable std::mutex mutex_;
  std::array<double, kvstore::codec::kAllLevels.size()> ratios_{};  // guarded by mutex_
  boost::asio::thread_pool threads_;
};

}  // namespace tandem::workers
