#include "scheduler/chunk_directory.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string_view>
#include <tuple>

namespace tandem::scheduler {
namespace {

static_assert(std::endian::native == std::endian::little, "entries are read as they come");

constexpr size_t kEntryBytes = sizeof(uint64_t) + 1;
constexpr uint8_t kAllLevels = (1u << ChunkHolders::kLevelBits) - 1;
/// A map whose table has more than so many places for a chunk is made anew when it was swept.
constexpr size_t kSparse = 8;

uint64_t IdHashAt(std::string_view entries, size_t at) {
  uint64_t id_hash = 0;
  std::memcpy(&id_hash, entries.data() + at, sizeof id_hash);
  return id_hash;
}

uint8_t LevelsAt(std::string_view entries, size_t at) {
  return static_cast<uint8_t>(entries[at + sizeof(uint64_t)]);
}

/// The levels that are `floor` or finer.
uint8_t LevelsFrom(kvstore::Level floor) { return (2u << static_cast<uint8_t>(floor)) - 1; }

bool WellFormed(std::string_view entries) {
  if (entries.size() % kEntryBytes != 0) return false;
  for (size_t at = 0; at < entries.size(); at += kEntryBytes) {
    if ((LevelsAt(entries, at) & ~kAllLevels) != 0) return false;
  }
  return true;
}

/// Watches, chunk by chunk, who could serve the prefix in how few pieces. A span goes on for as
/// long as anybody has held all of it; that is the longest from where it begins, and taking the
/// longest each time makes the fewest.
class Cover {
 public:
  struct Tally {
    uint32_t leading = 0, held = 0;
    uint32_t run_begin = 0,
             run_end = 0;  // the chunks in a row that it holds, up to the present one
  };
  struct Span {
    uint16_t node = 0;
    uint32_t begin = 0, end = 0;
  };

  Cover(size_t n_nodes, uint32_t turn) : tallies_(n_nodes), turn_(turn) {}

  /// A node holds the present chunk; once for each.
  void Holds(uint16_t node) {
    Tally& tally = tallies_[node];
    if (tally.run_end != n_chunks_) tally.run_begin = n_chunks_;
    tally.run_end = n_chunks_ + 1;
    if (tally.run_begin == 0) tally.leading = tally.run_end;
    ++tally.held;
    Prefer(node, anybody_);
    if (!spans_.empty() && tally.run_begin <= spans_.back().begin) Prefer(node, goes_on_);
  }

  /// On to the next chunk. False: nobody holds the present one, so the prefix ends before it.
  bool Next() {
    if (anybody_ == kNobody) return false;
    const bool ends = goes_on_ == kNobody;
    if (ends) spans_.push_back({.begin = n_chunks_});
    spans_.back().node = static_cast<uint16_t>(ends ? anybody_ : goes_on_);
    spans_.back().end = ++n_chunks_;
    anybody_ = goes_on_ = kNobody;
    return true;
  }

  uint32_t n_chunks() const { return n_chunks_; }
  const std::vector<Span>& spans() const { return spans_; }
  const std::vector<Tally>& tallies() const { return tallies_; }

 private:
  static constexpr uint32_t kNobody = UINT32_MAX;

  /// Equals draw lots, so that no node serves what many have.
  void Prefer(uint16_t node, uint32_t& best) const {
    if (best == kNobody || Lot(node) < Lot(best)) best = node;
  }
  /// MurmurHash3's last step: fair between any two nodes, whatever their numbers.
  uint32_t Lot(uint32_t node) const {
    uint32_t lot = node + turn_ * 0x9E3779B9u;
    lot = (lot ^ lot >> 16) * 0x85EBCA6Bu;
    lot = (lot ^ lot >> 13) * 0xC2B2AE35u;
    return lot ^ lot >> 16;
  }

  std::vector<Tally> tallies_;  // by node number
  const uint32_t turn_;
  uint32_t n_chunks_ = 0;
  std::vector<Span> spans_;
  // Who holds the present chunk, and who the present span with it.
  uint32_t anybody_ = kNobody, goes_on_ = kNobody;
};

}  // namespace

struct ChunkDirectory::Node {
  Node(std::string id, uint16_t n) : worker_id(std::move(id)), number(n) {}
  const std::string worker_id;
  const uint16_t number;
  std::atomic<uint64_t> n_chunks{0};
  std::mutex mutex;
  uint64_t next_sequence = 0;  // guarded by mutex
  bool in_step = false;        // guarded by mutex: since a snapshot nothing was missed
  bool forgotten = false;      // guarded by mutex
};

ChunkDirectory::ChunkDirectory() = default;
ChunkDirectory::~ChunkDirectory() = default;

std::shared_ptr<ChunkDirectory::Node> ChunkDirectory::NodeOf(const std::string& worker_id,
                                                             bool may_add) {
  {
    std::shared_lock lock(nodes_mutex_);
    const auto found = node_of_id_.find(worker_id);
    if (found != node_of_id_.end()) return found->second;
    if (!may_add) return nullptr;
  }
  std::lock_guard lock(nodes_mutex_);
  std::shared_ptr<Node>& node = node_of_id_[worker_id];
  if (node != nullptr) return node;
  if (!free_numbers_.empty()) {
    node = std::make_shared<Node>(worker_id, free_numbers_.back());
    free_numbers_.pop_back();
    node_of_number_[node->number] = node;
  } else if (node_of_number_.size() < kMaxNodes) {
    node = std::make_shared<Node>(worker_id, static_cast<uint16_t>(node_of_number_.size()));
    node_of_number_.push_back(node);
  } else {
    node_of_id_.erase(worker_id);
    return nullptr;
  }
  return node;
}

bool ChunkDirectory::Apply(const std::string& worker_id, const v1::ChunkEvents& events) {
  const std::string& entries = events.entries();
  const std::shared_ptr<Node> node = NodeOf(worker_id, events.snapshot());
  if (node == nullptr) return events.snapshot();  // then there is no room for the node
  std::lock_guard lock(node->mutex);
  if (node->forgotten) return false;
  if (!WellFormed(entries) ||
      (!events.snapshot() && events.first_sequence() != node->next_sequence)) {
    node->in_step = false;
  } else if (events.snapshot()) {
    Sweep(*node);
    node->in_step = true;
    node->next_sequence = events.first_sequence();
  }
  if (!node->in_step) return false;
  for (size_t at = 0; at < entries.size(); at += kEntryBytes) {
    Set(*node, IdHashAt(entries, at), LevelsAt(entries, at));
  }
  node->next_sequence += entries.size() / kEntryBytes;
  return true;
}

void ChunkDirectory::Set(Node& node, uint64_t id_hash, uint8_t levels) {
  Shard& shard = ShardOf(id_hash);
  std::lock_guard lock(shard.mutex);
  if (levels != 0) {
    const auto [chunk, is_new] = shard.chunks.try_emplace(id_hash);
    if (is_new) ++size_;
    if (chunk->second.Set(node.number, levels)) ++node.n_chunks;
    return;
  }
  const auto chunk = shard.chunks.find(id_hash);
  if (chunk == shard.chunks.end() || !chunk->second.Set(node.number, 0)) return;
  --node.n_chunks;
  if (chunk->second.empty()) {
    shard.chunks.erase(chunk);
    --size_;
  }
}

void ChunkDirectory::Sweep(Node& node) {
  if (node.n_chunks == 0) return;
  for (Shard& shard : shards_) {
    std::lock_guard lock(shard.mutex);
    const size_t before = shard.chunks.size();
    for (auto chunk = shard.chunks.begin(); chunk != shard.chunks.end();) {
      chunk->second.Set(node.number, 0);
      const auto swept = chunk++;
      if (swept->second.empty()) shard.chunks.erase(swept);
    }
    size_ -= before - shard.chunks.size();
    if (shard.chunks.size() * kSparse < shard.chunks.bucket_count()) shard.chunks.rehash(0);
  }
  node.n_chunks = 0;
}

void ChunkDirectory::Forget(const std::string& worker_id) {
  std::shared_ptr<Node> node;
  {
    std::lock_guard lock(nodes_mutex_);
    const auto found = node_of_id_.find(worker_id);
    if (found == node_of_id_.end()) return;
    node = found->second;
    node_of_id_.erase(found);
    node_of_number_[node->number] = nullptr;
  }
  {
    std::lock_guard lock(node->mutex);
    node->forgotten = true;
    Sweep(*node);
  }
  // Only now may the number stand for another node: no chunk has it any more.
  std::lock_guard lock(nodes_mutex_);
  free_numbers_.push_back(node->number);
}

CachedPrefix ChunkDirectory::Find(std::span<const kvstore::ChunkId> ids,
                                  kvstore::Level floor) const {
  const uint8_t wanted = LevelsFrom(floor);
  CachedPrefix prefix;
  std::shared_lock nodes_lock(nodes_mutex_);
  Cover cover(node_of_number_.size(), turn_.fetch_add(1, std::memory_order_relaxed));
  for (const kvstore::ChunkId& id : ids) {
    const Shard& shard = ShardOf(id.Hash());
    std::lock_guard lock(shard.mutex);
    const auto chunk = shard.chunks.find(id.Hash());
    if (chunk == shard.chunks.end()) break;
    chunk->second.ForEach([&](uint16_t node, uint8_t levels) {
      if ((levels & wanted) != 0 && node_of_number_[node] != nullptr) cover.Holds(node);
    });
    if (!cover.Next()) break;
  }
  prefix.n_chunks = cover.n_chunks();
  for (const Cover::Span& span : cover.spans()) {
    prefix.spans.push_back({.worker_id = node_of_number_[span.node]->worker_id,
                            .first_chunk = span.begin,
                            .n_chunks = span.end - span.begin});
  }
  for (size_t i = 0; i < cover.tallies().size(); ++i) {
    const Cover::Tally& tally = cover.tallies()[i];
    if (tally.held == 0) continue;
    prefix.nodes.push_back(
        {.worker_id = node_of_number_[i]->worker_id, .leading = tally.leading, .held = tally.held});
  }
  nodes_lock.unlock();
  std::stable_sort(prefix.nodes.begin(), prefix.nodes.end(), [](const auto& a, const auto& b) {
    return std::tie(a.leading, a.held) > std::tie(b.leading, b.held);
  });
  return prefix;
}

std::vector<LeadingChunks> ChunkDirectory::Leading(std::span<const kvstore::ChunkId> ids,
                                                   kvstore::Level floor) const {
  const uint8_t wanted = LevelsFrom(floor);
  std::vector<LeadingChunks> nodes;
  std::shared_lock nodes_lock(nodes_mutex_);
  std::vector<uint32_t> leading(node_of_number_.size());
  // A popular prefix has about the same holders in all its chunks: equal lists are gone through
  // once.
  std::vector<uint32_t> last_list;
  uint32_t n = 0, gone_through = 0;
  const auto lead_on = [&] {
    if (gone_through == n) return;
    for (const LeadingChunks& node : nodes) {
      if (leading[node.node] == gone_through) leading[node.node] = n;
    }
  };
  for (; n < ids.size(); ++n) {
    const Shard& shard = ShardOf(ids[n].Hash());
    std::lock_guard lock(shard.mutex);
    const auto chunk = shard.chunks.find(ids[n].Hash());
    if (chunk == shard.chunks.end()) break;
    const std::span<const uint32_t> list = chunk->second.Many();
    if (!list.empty() && std::ranges::equal(list, last_list)) continue;
    last_list.assign(list.begin(), list.end());
    lead_on();
    gone_through = n + 1;
    bool anybody = false;
    chunk->second.ForEach([&](uint16_t node, uint8_t levels) {
      if ((levels & wanted) == 0 || leading[node] != n) return;
      leading[node] = n + 1;
      anybody = true;
      if (n == 0 && node_of_number_[node] != nullptr) nodes.push_back({.node = node});
    });
    if (!anybody) break;
  }
  lead_on();
  for (LeadingChunks& node : nodes) node.n_chunks = leading[node.node];
  return nodes;
}

std::optional<uint16_t> ChunkDirectory::NumberOf(const std::string& worker_id) const {
  std::shared_lock lock(nodes_mutex_);
  const auto found = node_of_id_.find(worker_id);
  if (found == node_of_id_.end()) return std::nullopt;
  return found->second->number;
}

uint64_t ChunkDirectory::ChunksOf(const std::string& worker_id) const {
  std::shared_lock lock(nodes_mutex_);
  const auto found = node_of_id_.find(worker_id);
  return found == node_of_id_.end() ? 0 : found->second->n_chunks.load();
}

size_t ChunkDirectory::MemoryBytes() const {
  size_t bytes = sizeof(*this);
  for (const Shard& shard : shards_) {
    std::lock_guard lock(shard.mutex);
    // A table has a byte besides each place.
    bytes += shard.chunks.bucket_count() * (sizeof(decltype(shard.chunks)::value_type) + 1);
    for (const auto& [id_hash, holders] : shard.chunks) bytes += holders.HeapBytes();
  }
  return bytes;
}

}  // namespace tandem::scheduler
