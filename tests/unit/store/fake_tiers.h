// Tiers for tests of the store: a disk whose writes the test holds up or lets fail, and a shared
// one.
#pragma once

#include <condition_variable>
#include <map>
#include <mutex>
#include <set>

#include "kvstore/tiers/disk_tier.h"
#include "tests/unit/store/store_fixture.h"

namespace tandem::kvstore {

/// What a test and a fake tier, which the store owns, have in common. Thread-safe.
struct FakeTierState {
  std::mutex mutex;
  std::condition_variable changed;
  // Guarded by mutex.
  std::map<ChunkKey, StoredChunkPtr> chunks;
  std::set<ChunkKey> pinned;
  bool held_up = false, fails = false;
  uint64_t puts = 0, waiting = 0, touches = 0;

  void HoldUp(bool hold) {
    const std::lock_guard lock(mutex);
    held_up = hold;
    changed.notify_all();
  }
  void Fail(bool fail) {
    const std::lock_guard lock(mutex);
    fails = fail;
  }
  bool Has(uint64_t seed) {
    const std::lock_guard lock(mutex);
    return chunks.contains(MakeKey(seed));
  }
  uint64_t Puts() {
    const std::lock_guard lock(mutex);
    return puts;
  }
  // Until a Put is being held up.
  bool AwaitPut() {
    std::unique_lock lock(mutex);
    return changed.wait_for(lock, std::chrono::seconds(10), [this] { return waiting > 0; });
  }
};

/// Serves as either.
class FakeTier final : public DiskTier {
 public:
  explicit FakeTier(std::shared_ptr<FakeTierState> state) : state_(std::move(state)) {}

  std::string_view name() const override { return "fake"; }
  absl::StatusOr<StoredChunkPtr> Get(const ChunkKey& key) override {
    const std::lock_guard lock(state_->mutex);
    const auto found = state_->chunks.find(key);
    if (found == state_->chunks.end()) return absl::NotFoundError("not here");
    if (found->second->Verify().ok()) return found->second;
    state_->chunks.erase(found);
    return absl::DataLossError("damaged");
  }
  std::vector<bool> Contains(std::span<const ChunkKey> keys) override {
    const std::lock_guard lock(state_->mutex);
    std::vector<bool> here;
    for (const ChunkKey& key : keys) here.push_back(state_->chunks.contains(key));
    return here;
  }
  absl::Status Put(StoredChunkPtr chunk) override {
    std::unique_lock lock(state_->mutex);
    ++state_->waiting;
    state_->changed.notify_all();
    state_->changed.wait(lock, [this] { return !state_->held_up; });
    --state_->waiting;
    ++state_->puts;
    if (state_->fails) return absl::UnavailableError("fails");
    state_->chunks[chunk->key()] = chunk;
    return absl::OkStatus();
  }
  void Erase(const ChunkKey& key) override {
    const std::lock_guard lock(state_->mutex);
    state_->chunks.erase(key);
    state_->pinned.erase(key);
  }
  bool SetPinned(const ChunkKey& key, bool pinned) override {
    const std::lock_guard lock(state_->mutex);
    if (!state_->chunks.contains(key)) return false;
    pinned ? (void)state_->pinned.insert(key) : (void)state_->pinned.erase(key);
    return true;
  }
  void Touch(const ChunkKey&) override {
    const std::lock_guard lock(state_->mutex);
    ++state_->touches;
  }
  void ForEach(const std::function<bool(const TierEntry&)>&) override {}
  TierStats stats() const override {
    const std::lock_guard lock(state_->mutex);
    return {.chunks = state_->chunks.size()};
  }

 private:
  const std::shared_ptr<FakeTierState> state_;
};

}  // namespace tandem::kvstore
