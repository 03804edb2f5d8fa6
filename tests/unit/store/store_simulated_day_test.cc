// A day of traffic in seconds: that nothing grows, leaks or gets lost, and what the caches are
// worth.
#include <cmath>
#include <future>
#include <list>
#include <set>
#include <unordered_map>

#include "kvstore/store.h"
#include "kvstore/tiers/memory_tier.h"
#include "tests/unit/store/store_fixture.h"

namespace tandem::kvstore {
namespace {

constexpr uint64_t kMemoryLimit = 3 << 20, kDiskLimit = 24 << 20;
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr int kHours = 4;  // ten times as slow
#else
constexpr int kHours = 24;
#endif
constexpr int kRequests = kHours * 60 * 60;  // one a second

size_t BytesOf(uint64_t seed) { return 300 + Scramble(seed) % 400; }

// A memory of the same size that evicts what was least recently used.
class LeastRecentlyUsed {
 public:
  bool Access(uint64_t seed) {
    const auto found = where_.find(seed);
    const bool hit = found != where_.end();
    if (hit) {
      order_.splice(order_.begin(), order_, found->second);
    } else {
      order_.push_front(seed);
      where_[seed] = order_.begin();
      bytes_ += BytesOf(seed) + kMemoryEntryOverhead;
    }
    while (bytes_ > kMemoryLimit) {
      bytes_ -= BytesOf(order_.back()) + kMemoryEntryOverhead;
      where_.erase(order_.back());
      order_.pop_back();
    }
    return hit;
  }

 private:
  std::list<uint64_t> order_;
  std::unordered_map<uint64_t, std::list<uint64_t>::iterator> where_;
  uint64_t bytes_ = 0;
};

// Requests as a service sees them; a request is the chunks of its context, by seed. Three kinds:
// chats that grow on shared prompts, short questions on the same prompts, documents read once.
class Traffic {
 public:
  std::vector<uint64_t> Next() {
    const uint64_t kind = random_() % 100;
    if (kind < 10) return Document();
    if (kind < 40) return Question();
    return ChatTurn();
  }

 private:
  static constexpr uint64_t kPrompts = 200, kChats = 150;
  struct Chat {
    std::vector<uint64_t> context;
    uint64_t turns_left = 0;
  };

  // Zipf's law with exponent 1, nearly: the logarithm of the rank is uniform.
  std::vector<uint64_t> Prompt() {
    const double share = std::uniform_real_distribution<double>(0, 1)(random_);
    const auto rank = static_cast<uint64_t>(std::pow(kPrompts, share)) - 1;
    std::vector<uint64_t> chunks(3 + rank % 8);
    for (size_t i = 0; i < chunks.size(); ++i) chunks[i] = rank * 100 + i;
    return chunks;
  }
  void Append(std::vector<uint64_t>& context, uint64_t n) {
    while (n-- > 0) context.push_back(next_++);
  }
  std::vector<uint64_t> Document() {
    std::vector<uint64_t> context;
    Append(context, 8 + random_() % 16);
    return context;
  }
  std::vector<uint64_t> Question() {
    std::vector<uint64_t> context = Prompt();
    Append(context, 1);
    return context;
  }
  std::vector<uint64_t> ChatTurn() {
    Chat& chat = chats_[random_() % kChats];
    if (chat.turns_left == 0) chat = {Prompt(), 1 + random_() % 15};
    --chat.turns_left;
    Append(chat.context, 1);
    return chat.context;
  }

  std::mt19937_64 random_{11};
  std::array<Chat, kChats> chats_;
  uint64_t next_ = 1'000'000;
};

class SimulatedDayTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto store =
        Store::Open({.memory_bytes = kMemoryLimit,
                     .disk = DiskTierOptions{
                         .path = dir_ / "kv", .limit_bytes = kDiskLimit, .now = clock_.now()}});
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
  }

  // What a worker does: pins the first chunk of the context for as long as the request takes,
  // leases what another node was promised, loads what is held, computes the rest.
  void Serve(const std::vector<uint64_t>& context) {
    std::vector<ChunkId> ids;
    for (const uint64_t seed : context) ids.push_back(MakeId(seed));
    const std::vector<Store::Holding> held = store_->Find(ids);
    const bool pinned = store_->SetPinned(ids[0], true);
    const std::vector<ChunkId> leased = store_->Lease(ids);
    size_t i = 0;
    for (; i < context.size() && held[i].levels != 0 && Load(context[i]); ++i) {
    }
    loaded_ += i;
    for (; i < context.size(); ++i) Compute(context[i], static_cast<uint32_t>(i));
    for (size_t at = 0; at < context.size(); ++at) {
      in_memory_ += held[at].levels != 0 && held[at].origins[0] == Origin::kMemory;
      in_lru_ += lru_.Access(context[at]);
    }
    asked_ += context.size();
    if (pinned) store_->SetPinned(ids[0], false);
    store_->Unlease(leased);
  }

  bool Load(uint64_t seed) {
    std::promise<absl::StatusOr<Store::Fetched>> promise;
    store_->Fetch(MakeKey(seed), [&](absl::StatusOr<Store::Fetched> result) {
      promise.set_value(std::move(result));
    });
    const absl::StatusOr<Store::Fetched> fetched = promise.get_future().get();
    if (!fetched.ok()) return false;
    EXPECT_EQ(fetched->chunk->bytes().size(), BytesOf(seed));
    alive_.insert(fetched->chunk);
    return true;
  }

  void Compute(uint64_t seed, uint32_t index) {
    const StoredChunkPtr chunk =
        MakeChunk(seed, {.bytes = BytesOf(seed), .first_position = index * 256});
    alive_.insert(chunk);
    store_->Put(chunk);
  }

  void CheckBounds() {
    store_->Flush();
    const StoreStats stats = store_->stats();
    const TierStats &memory = *stats.tiers[0], &disk = *stats.tiers[1];
    ASSERT_LE(memory.bytes, kMemoryLimit);
    ASSERT_LE(disk.bytes, kDiskLimit);
    ASSERT_EQ(stats.pending_bytes[1], 0u);
    ASSERT_EQ(stats.pins, 0u);
    ASSERT_EQ(stats.leases, 0u);
    ASSERT_TRUE(disk.healthy);
    ASSERT_EQ(memory.damaged + disk.damaged, 0u);
    std::erase_if(alive_, [](const auto& chunk) { return chunk.expired(); });
    ASSERT_EQ(alive_.size(), memory.chunks) << "chunks live that no tier holds";
    ASSERT_LE(FolderBytes(dir_.path()), kDiskLimit + (16 << 20));
  }

  void CheckListing() {
    std::set<ChunkId> listed;
    uint64_t memory_bytes = 0, in_memory = 0, pinned = 0;
    store_->ForEach([&](const TierEntry& entry, Origin origin) {
      listed.insert(entry.key.id);
      pinned += entry.pinned;
      if (origin == Origin::kMemory) {
        ++in_memory;
        memory_bytes += entry.bytes + kMemoryEntryOverhead;
      }
      return true;
    });
    const StoreStats stats = store_->stats();
    EXPECT_EQ(pinned, 0u);
    EXPECT_EQ(in_memory, stats.tiers[0]->chunks);
    EXPECT_EQ(memory_bytes, stats.tiers[0]->bytes);
    EXPECT_EQ(listed.size(), store_->journal()->size());
  }

  TempDir dir_;
  TestClock clock_;
  std::unique_ptr<Store> store_;
  LeastRecentlyUsed lru_;
  // All chunks that ever were and are still held by somebody.
  std::set<std::weak_ptr<const StoredChunk>, std::owner_less<>> alive_;
  uint64_t asked_ = 0, loaded_ = 0, in_memory_ = 0, in_lru_ = 0;
};

TEST_F(SimulatedDayTest, StaysWithinItsBoundsAndBeatsLru) {
  Traffic traffic;
  for (int request = 0; request < kRequests; ++request) {
    Serve(traffic.Next());
    clock_.Advance(absl::Seconds(1));
    if (request % 3600 == 0) CheckBounds();
    if (HasFatalFailure()) return;
  }
  CheckBounds();
  CheckListing();
  const StoreStats stats = store_->stats();
  const auto percent = [this](uint64_t n) {
    return 100 * static_cast<double>(n) / static_cast<double>(asked_);
  };
  std::printf(
      "%llu chunks asked for; loaded %.1f %%, from memory %.1f %% (LRU of that size: %.1f %%); "
      "%llu writes to disk dropped; folder %.1f MB for %.1f MB\n",
      static_cast<unsigned long long>(asked_), percent(loaded_), percent(in_memory_),
      percent(in_lru_), static_cast<unsigned long long>(stats.dropped_writes[1]),
      1e-6 * static_cast<double>(FolderBytes(dir_.path())),
      1e-6 * static_cast<double>(stats.tiers[1]->bytes));
  EXPECT_GT(in_memory_, in_lru_);
  EXPECT_GT(percent(loaded_), 60);
  // It is full, so the bounds were tested.
  EXPECT_GT(stats.tiers[0]->evictions, uint64_t{5000} * kHours);
  EXPECT_GT(stats.tiers[1]->evictions, uint64_t{500} * kHours);
  EXPECT_GT(stats.tiers[0]->bytes, kMemoryLimit * 95 / 100);
  EXPECT_GT(stats.tiers[1]->bytes, kDiskLimit * 95 / 100);
}

}  // namespace
}  // namespace tandem::kvstore
