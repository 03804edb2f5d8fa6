#include "kvstore/tiers/redis_tier.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>

#include "base/status.h"
#include "kvstore/tiers/redis_cluster.h"
#include "kvstore/transfer/address.h"

namespace tandem::kvstore {
namespace {

using redis::Deadline;
using redis::KeyedCommand;
using redis::Reply;

/// Redis closes the connection on a longer value (proto-max-bulk-len).
constexpr size_t kMaxValueBytes = size_t{512} << 20;

/// One operation at a time. Waiting for one's turn is bounded too, which std::mutex cannot do.
class Turns {
 public:
  /// False when it is not this one's turn before the deadline.
  bool Take(Deadline deadline) {
    std::unique_lock lock(mutex_);
    if (!free_.wait_until(lock, deadline, [&] { return !taken_; })) return false;
    taken_ = true;
    return true;
  }
  void GiveBack() {
    {
      const std::lock_guard lock(mutex_);
      taken_ = false;
    }
    free_.notify_one();
  }

 private:
  std::mutex mutex_;
  std::condition_variable free_;
  bool taken_ = false;  // guarded by mutex_
};

class RedisTier final : public Tier {
 public:
  RedisTier(RedisTierOptions options, std::vector<Address> seeds)
      : options_(std::move(options)),
        cluster_({.seeds = std::move(seeds),
                  .login = {options_.username, options_.password},
                  .max_failures = options_.max_failures,
                  .retry_after = options_.retry_after,
                  .now = options_.now}) {}

  std::string_view name() const override { return "redis"; }
  absl::StatusOr<StoredChunkPtr> Get(const ChunkKey& key) override;
  std::vector<bool> Contains(std::span<const ChunkKey> keys) override;
  absl::Status Put(StoredChunkPtr chunk) override;
  void Erase(const ChunkKey& key) override;
  bool SetPinned(const ChunkKey&, bool) override { return false; }
  void ForEach(const std::function<bool(const TierEntry&)>&) override {}
  TierStats stats() const override;

 private:
  std::string Name(const ChunkKey& key) const { return options_.key_prefix + key.Bytes(); }
  Deadline NewDeadline() const {
    return redis::Now() + absl::ToChronoNanoseconds(options_.timeout);
  }
  std::vector<absl::StatusOr<Reply>> Run(std::span<const KeyedCommand> commands, Deadline deadline);
  absl::StatusOr<Reply> RunOne(const KeyedCommand& command, Deadline deadline);
  absl::StatusOr<StoredChunkPtr> OpenValue(const ChunkKey& key, std::string_view value,
                                           Deadline deadline);

  const RedisTierOptions options_;
  Turns turns_;
  redis::Cluster cluster_;  // by whoever has the turn
  std::atomic<uint64_t> damaged_ = 0, failures_ = 0;
  std::atomic<bool> healthy_ = true;
};

std::vector<absl::StatusOr<Reply>> RedisTier::Run(std::span<const KeyedCommand> commands,
                                                  Deadline deadline) {
  std::vector<absl::StatusOr<Reply>> results;
  if (turns_.Take(deadline)) {
    results = cluster_.Run(commands, deadline);
    healthy_ = cluster_.healthy();
    turns_.GiveBack();
  } else {
    for (size_t i = 0; i < commands.size(); ++i) {
      results.emplace_back(absl::UnavailableError("redis: busy with other operations"));
    }
  }
  const bool all_ok =
      std::all_of(results.begin(), results.end(), [](const auto& result) { return result.ok(); });
  if (!all_ok) ++failures_;
  return results;
}

absl::StatusOr<Reply> RedisTier::RunOne(const KeyedCommand& command, Deadline deadline) {
  return std::move(Run({&command, 1}, deadline).front());
}

absl::StatusOr<StoredChunkPtr> RedisTier::Get(const ChunkKey& key) {
  const Deadline deadline = NewDeadline();
  const std::string name = Name(key);
  ASSIGN_OR_RETURN(const Reply reply, RunOne({name, {"GET", name}}, deadline));
  if (reply->type == REDIS_REPLY_NIL) return absl::NotFoundError("redis: no such chunk");
  return OpenValue(key, redis::TextOf(*reply), deadline);
}

absl::StatusOr<StoredChunkPtr> RedisTier::OpenValue(const ChunkKey& key, std::string_view value,
                                                    Deadline deadline) {
  auto chunk = StoredChunk::Open({value.begin(), value.end()}, key);
  if (chunk.ok()) return chunk;
  // Another version of Tandem may share this Redis, and wants its chunk kept.
  if (absl::IsFailedPrecondition(chunk.status())) {
    return absl::NotFoundError(chunk.status().message());
  }
  ++damaged_;
  const std::string name = Name(key);
  RunOne({name, {"UNLINK", name}}, deadline).IgnoreError();
  return chunk.status();
}

std::vector<bool> RedisTier::Contains(std::span<const ChunkKey> keys) {
  std::vector<std::string> names;
  for (const ChunkKey& key : keys) names.push_back(Name(key));
  std::vector<KeyedCommand> commands;
  for (const std::string& name : names) commands.push_back({name, {"EXISTS", name}});
  std::vector<bool> found(keys.size());
  if (keys.empty()) return found;
  const auto results = Run(commands, NewDeadline());
  for (size_t i = 0; i < results.size(); ++i) {
    found[i] = results[i].ok() && (*results[i])->type == REDIS_REPLY_INTEGER &&
               (*results[i])->integer == 1;
  }
  return found;
}

absl::Status RedisTier::Put(StoredChunkPtr chunk) {
  const auto bytes = chunk->bytes();
  if (bytes.size() > kMaxValueBytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("redis: a value of ", bytes.size(), " bytes is longer than Redis takes"));
  }
  const std::string name = Name(chunk->key());
  const std::string ttl = absl::StrCat(absl::ToInt64Milliseconds(options_.ttl));
  const std::string_view value(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  KeyedCommand set = {name, {"SET", name, value}};
  if (options_.ttl > absl::ZeroDuration()) {
    set.command.push_back("PX");
    set.command.push_back(ttl);
  }
  return RunOne(set, NewDeadline()).status();
}

void RedisTier::Erase(const ChunkKey& key) {
  const std::string name = Name(key);
  RunOne({name, {"UNLINK", name}}, NewDeadline()).IgnoreError();
}

TierStats RedisTier::stats() const {
  return {.damaged = damaged_, .failures = failures_, .healthy = healthy_};
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tier>> NewRedisTier(RedisTierOptions options) {
  std::vector<Address> seeds;
  for (const std::string& node : options.nodes) {
    ASSIGN_OR_RETURN(seeds.emplace_back(), ParseAddress(node));
  }
  if (seeds.empty()) return absl::InvalidArgumentError("a Redis tier needs the address of a node");
  if (options.timeout <= absl::ZeroDuration() || options.timeout > absl::Hours(1)) {
    return absl::InvalidArgumentError("a Redis tier's time limit is above 0 and at most an hour");
  }
  if (options.ttl < absl::ZeroDuration() ||
      (options.ttl > absl::ZeroDuration() && options.ttl < absl::Milliseconds(1)) ||
      options.ttl > absl::Hours(24 * 365 * 100)) {
    return absl::InvalidArgumentError(
        "a Redis tier's ttl is 0, for ever, or from a millisecond to a hundred years");
  }
  if (!options.now) options.now = absl::Now;
  return std::make_unique<RedisTier>(std::move(options), std::move(seeds));
}

}  // namespace tandem::kvstore
