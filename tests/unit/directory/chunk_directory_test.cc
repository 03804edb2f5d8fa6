// The router's directory: what it finds is what the nodes told, in whatever order and pieces.
#include "scheduler/chunk_directory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <map>
#include <random>
#include <set>
#include <thread>

#include "kvstore/chunk_journal.h"

namespace tandem::scheduler {
namespace {

using kvstore::ChunkId;
using kvstore::ChunkJournal;
using kvstore::Level;
using testing::AnyOf;
using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;
using Span = CachedPrefix::Span;
using Node = CachedPrefix::Node;

ChunkId Id(uint64_t n) {
  ChunkId id;
  std::memcpy(id.bytes.data(), &n, sizeof n);
  return id;
}

/// The ids first … last.
std::vector<ChunkId> Ids(uint64_t first, uint64_t last) {
  std::vector<ChunkId> ids;
  for (uint64_t n = first; n <= last; ++n) ids.push_back(Id(n));
  return ids;
}

void Append(v1::ChunkEvents& events, uint64_t n, uint8_t levels) {
  char bytes[9];
  std::memcpy(bytes, &n, sizeof n);
  bytes[8] = static_cast<char>(levels);
  events.mutable_entries()->append(bytes, sizeof bytes);
}

using Chunks = std::vector<std::pair<uint64_t, int>>;

v1::ChunkEvents Events(uint64_t first_sequence, const Chunks& chunks) {
  v1::ChunkEvents events;
  events.set_first_sequence(first_sequence);
  for (const auto& [n, levels] : chunks) Append(events, n, static_cast<uint8_t>(levels));
  return events;
}

v1::ChunkEvents Snapshot(uint64_t first_sequence, const Chunks& chunks) {
  v1::ChunkEvents events = Events(first_sequence, chunks);
  events.set_snapshot(true);
  return events;
}

/// These chunks, losslessly.
Chunks Exact(uint64_t first, uint64_t last) {
  Chunks chunks;
  for (uint64_t n = first; n <= last; ++n) chunks.emplace_back(n, 1);
  return chunks;
}

class ChunkDirectoryTest : public testing::Test {
 protected:
  uint32_t Found(uint64_t first, uint64_t last, Level floor = Level::kQ4) const {
    return directory_.Find(Ids(first, last), floor).n_chunks;
  }
  ChunkDirectory directory_;
};

TEST_F(ChunkDirectoryTest, KnowsNothingAtFirst) {
  const CachedPrefix prefix = directory_.Find(Ids(1, 8), Level::kQ4);
  EXPECT_EQ(prefix.n_chunks, 0u);
  EXPECT_THAT(prefix.spans, IsEmpty());
  EXPECT_THAT(prefix.nodes, IsEmpty());
  EXPECT_EQ(directory_.Find({}, Level::kQ4).n_chunks, 0u);
  EXPECT_EQ(directory_.size(), 0u);
  EXPECT_EQ(directory_.ChunksOf("a"), 0u);
  directory_.Forget("a");
}

TEST_F(ChunkDirectoryTest, FollowsASnapshotAndItsChanges) {
  ASSERT_TRUE(directory_.Apply("a", Snapshot(1, Exact(1, 3))));
  EXPECT_EQ(Found(1, 8), 3u);
  EXPECT_EQ(directory_.size(), 3u);
  EXPECT_EQ(directory_.ChunksOf("a"), 3u);
  ASSERT_TRUE(directory_.Apply("a", Events(4, {{4, 1}, {5, 1}, {2, 0}})));
  EXPECT_EQ(Found(1, 8), 1u);
  EXPECT_EQ(directory_.size(), 4u);
  ASSERT_TRUE(directory_.Apply("a", Events(7, {{2, 1}, {9, 0}})));
  EXPECT_EQ(Found(1, 8), 5u);
  EXPECT_EQ(directory_.ChunksOf("a"), 5u);
}

TEST_F(ChunkDirectoryTest, AnEmptySnapshotTakesEverythingAway) {
  ASSERT_TRUE(directory_.Apply("a", Snapshot(1, Exact(1, 3))));
  ASSERT_TRUE(directory_.Apply("a", Snapshot(4, {})));
  EXPECT_EQ(directory_.size(), 0u);
  EXPECT_TRUE(directory_.Apply("a", Events(4, Exact(1, 1))));
  EXPECT_EQ(Found(1, 1), 1u);
}

TEST_F(ChunkDirectoryTest, ASnapshotMayComeInPieces) {
  ASSERT_TRUE(directory_.Apply("a", Snapshot(1, Exact(1, 3))));
  ASSERT_TRUE(directory_.Apply("a", Snapshot(50, Exact(11, 13))));
  ASSERT_TRUE(directory_.Apply("a", Events(53, Exact(14, 15))));
  EXPECT_EQ(Found(11, 20), 5u);
  EXPECT_EQ(Found(1, 3), 0u);
  EXPECT_EQ(directory_.size(), 5u);
}

TEST_F(ChunkDirectoryTest, AGapWantsASnapshotWhichHeals) {
  EXPECT_FALSE(directory_.Apply("a", Events(1, Exact(1, 1)))) << "a stream begins with a snapshot";
  ASSERT_TRUE(directory_.Apply("a", Snapshot(1, Exact(1, 3))));
  EXPECT_FALSE(directory_.Apply("a", Events(5, Exact(5, 5))));
  EXPECT_FALSE(directory_.Apply("a", Events(4, Exact(4, 4)))) << "what was missed may come late";
  EXPECT_EQ(Found(1, 8), 3u);
  ASSERT_TRUE(directory_.Apply("a", Snapshot(100, Exact(1, 5))));
  EXPECT_TRUE(directory_.Apply("a", Events(105, Exact(6, 6))));
  EXPECT_EQ(Found(1, 8), 6u);
}

TEST_F(ChunkDirectoryTest, MalformedEntriesWantASnapshot) {
  ASSERT_TRUE(directory_.Apply("a", Snapshot(1, Exact(1, 3))));
  v1::ChunkEvents cut = Events(4, Exact(4, 5));
  cut.mutable_entries()->pop_back();
  EXPECT_FALSE(directory_.Apply("a", cut));
  EXPECT_EQ(Found(1, 8), 3u) << "not even the first entry counts";
  EXPECT_FALSE(directory_.Apply("a", Events(4, Exact(4, 4))));
  ASSERT_TRUE(directory_.Apply("a", Snapshot(1, Exact(1, 3))));
  EXPECT_FALSE(directory_.Apply("a", Events(4, {{4, 32}}))) << "there are five levels";
  cut.set_snapshot(true);
  EXPECT_FALSE(directory_.Apply("b", cut));
  EXPECT_EQ(Found(1, 8), 3u);
  EXPECT_TRUE(directory_.Apply("b", Snapshot(1, Exact(4, 8))));
  EXPECT_EQ(Found(1, 8), 8u);
}

TEST_F(ChunkDirectoryTest, TheFloorLeavesCoarserLevelsOut) {
  ASSERT_TRUE(directory_.Apply("a", Snapshot(1, {{1, 0b00001}, {2, 0b00100}, {3, 0b10000}})));
  EXPECT_EQ(Found(1, 3, Level::kLossless), 1u);
  EXPECT_EQ(Found(1, 3, Level::kQ1), 1u);
  EXPECT_EQ(Found(1, 3, Level::kQ2), 2u);
  EXPECT_EQ(Found(1, 3, Level::kQ3), 2u);
  EXPECT_EQ(Found(1, 3, Level::kQ4), 3u);
  ASSERT_TRUE(directory_.Apply("a", Events(4, {{1, 0b10000}, {3, 0b10001}})));
  EXPECT_EQ(Found(1, 3, Level::kQ3), 0u) << "the level that counted is gone";
  EXPECT_EQ(Found(3, 3, Level::kLossless), 1u);
}

TEST_F(ChunkDirectoryTest, OneNodeServesItAllWhereItCan) {
  ASSERT_TRUE(directory_.Apply("a", Snapshot(1, Exact(1, 3))));
  ASSERT_TRUE(directory_.Apply("b", Snapshot(1, Exact(1, 8))));
  ASSERT_TRUE(directory_.Apply("c", Snapshot(1, Exact(3, 8))));
  for (int i = 0; i < 5; ++i) {
    const CachedPrefix prefix = directory_.Find(Ids(1, 10), Level::kQ4);
    EXPECT_EQ(prefix.n_chunks, 8u);
    EXPECT_THAT(prefix.spans, ElementsAre(Span{"b", 0, 8}));
    EXPECT_THAT(prefix.nodes, ElementsAre(Node{"b", 8, 8}, Node{"a", 3, 3}, Node{"c", 0, 6}));
  }
}

TEST_F(ChunkDirectoryTest, SpansOfSeveralNodesCoverThePrefix) {
  ASSERT_TRUE(directory_.Apply("a", Snapshot(1, Exact(1, 3))));
  ASSERT_TRUE(directory_.Apply("b", Snapshot(1, Exact(2, 5))));
  ASSERT_TRUE(directory_.Apply("c", Snapshot(1, {{4, 1}, {6, 1}, {7, 1}, {9, 1}})));
  const CachedPrefix prefix = directory_.Find(Ids(1, 9), Level::kQ4);
  EXPECT_EQ(prefix.n_chunks, 7u) << "nobody has the eighth";
  EXPECT_THAT(prefix.spans, ElementsAre(Span{"a", 0, 3}, Span{"b", 3, 2}, Span{"c", 5, 2}));
  EXPECT_THAT(prefix.nodes, ElementsAre(Node{"a", 3, 3}, Node{"b", 0, 4}, Node{"c", 0, 3}));
}

TEST_F(ChunkDirectoryTest, EqualsShareTheWork) {
  for (int i = 0; i < 20; ++i) {
    // Five of twenty hold it.
    const Chunks chunks = i % 4 == 0 ? Exact(1, 8) : Exact(11, 18);
    ASSERT_TRUE(directory_.Apply("node-" + std::to_string(i), Snapshot(1, chunks)));
  }
  std::map<std::string, int> chosen;
  for (int i = 0; i < 1000; ++i) {
    const CachedPrefix prefix = directory_.Find(Ids(1, 8), Level::kQ4);
    ASSERT_THAT(prefix.spans, SizeIs(1));
    ++chosen[prefix.spans[0].worker_id];
    EXPECT_THAT(prefix.nodes, SizeIs(5));
  }
  EXPECT_THAT(chosen, SizeIs(5));
  for (const auto& [node, times] : chosen) {
    EXPECT_GT(times, 150) << node;
    EXPECT_LT(times, 250) << node;
  }
}

TEST_F(ChunkDirectoryTest, ForgetsANodeAndNoOther) {
  ASSERT_TRUE(directory_.Apply("a", Snapshot(1, Exact(1, 100))));
  ASSERT_TRUE(directory_.Apply("b", Snapshot(1, Exact(1, 50))));
  directory_.Forget("a");
  EXPECT_EQ(directory_.size(), 50u);
  EXPECT_EQ(directory_.ChunksOf("a"), 0u);
  EXPECT_THAT(directory_.Find(Ids(1, 100), Level::kQ4).nodes, ElementsAre(Node{"b", 50, 50}));
  EXPECT_FALSE(directory_.Apply("a", Events(101, Exact(101, 101)))) << "its stream begins anew";
  // Whoever comes next may get its number, and nothing else of it.
  ASSERT_TRUE(directory_.Apply("c", Snapshot(1, Exact(60, 61))));
  EXPECT_THAT(directory_.Find(Ids(60, 70), Level::kQ4).spans, ElementsAre(Span{"c", 0, 2}));
  directory_.Forget("b");
  directory_.Forget("c");
  EXPECT_EQ(directory_.size(), 0u);
}

TEST_F(ChunkDirectoryTest, GivesMemoryBack) {
  const size_t empty = directory_.MemoryBytes();
  ASSERT_TRUE(directory_.Apply("a", Snapshot(1, Exact(1, 200000))));
  const size_t full = directory_.MemoryBytes();
  EXPECT_LT((full - empty) / 200000, 40u);
  directory_.Forget("a");
  EXPECT_LT(directory_.MemoryBytes() - empty, (full - empty) / 10);
}

TEST_F(ChunkDirectoryTest, AgreesWithPlainSets) {
  std::mt19937 random(11);
  constexpr int kNodes = 6;
  constexpr uint64_t kIds = 24;
  std::vector<std::map<uint64_t, int>> truth(kNodes);
  std::vector<uint64_t> next(kNodes, 0);
  for (int step = 0; step < 3000; ++step) {
    const int node = static_cast<int>(random() % kNodes);
    const std::string name = "node-" + std::to_string(node);
    if (next[node] == 0 || random() % 50 == 0) {
      if (random() % 2 == 0) directory_.Forget(name);
      truth[node].clear();
      next[node] = 1 + random() % 1000;
      ASSERT_TRUE(directory_.Apply(name, Snapshot(next[node], {})));
    }
    Chunks changes;
    for (int i = 0; i < 4; ++i) {
      changes.emplace_back(random() % kIds, random() % 4 == 0 ? 0 : 1 << random() % 5);
      truth[node].erase(changes.back().first);
      if (changes.back().second != 0) truth[node].insert(changes.back());
    }
    ASSERT_TRUE(directory_.Apply(name, Events(next[node], changes)));
    next[node] += changes.size();

    const auto floor = static_cast<Level>(random() % 5);
    const auto holds = [&](int n, uint64_t id) {
      const auto found = truth[n].find(id);
      return found != truth[n].end() && (found->second & ((2 << static_cast<int>(floor)) - 1)) != 0;
    };
    const CachedPrefix prefix = directory_.Find(Ids(0, kIds - 1), floor);
    uint32_t n_chunks = 0;
    const auto anybody = [&](uint64_t id) {
      for (int n = 0; n < kNodes; ++n) {
        if (holds(n, id)) return true;
      }
      return false;
    };
    while (n_chunks < kIds && anybody(n_chunks)) ++n_chunks;
    ASSERT_EQ(prefix.n_chunks, n_chunks);
    uint32_t covered = 0;
    for (const Span& span : prefix.spans) {
      ASSERT_EQ(span.first_chunk, covered);
      const int n = span.worker_id.back() - '0';
      for (uint32_t i = 0; i < span.n_chunks; ++i) ASSERT_TRUE(holds(n, covered++));
      // None could have gone on for longer, so there are as few spans as can be.
      for (int other = 0; other < kNodes && covered < n_chunks; ++other) {
        uint32_t run = 0;
        while (holds(other, span.first_chunk + run)) ++run;
        ASSERT_LE(run, span.n_chunks);
      }
    }
    ASSERT_EQ(covered, n_chunks);
    for (const Node& each : prefix.nodes) {
      const int n = each.worker_id.back() - '0';
      uint32_t leading = 0, held = 0;
      while (leading < n_chunks && holds(n, leading)) ++leading;
      for (uint64_t id = 0; id < n_chunks; ++id) held += holds(n, id) ? 1 : 0;
      ASSERT_EQ(each, (Node{each.worker_id, leading, held}));
    }
  }
  std::set<uint64_t> distinct;
  for (const auto& chunks : truth) {
    for (const auto& [id, levels] : chunks) distinct.insert(id);
  }
  EXPECT_EQ(directory_.size(), distinct.size());
}

TEST(LeadingChunksTest, AgreesWithPlainSets) {
  std::mt19937 random(12);
  constexpr uint64_t kIds = 12;
  for (int round = 0; round < 500; ++round) {
    // Popular prefixes, so that chunks have the same holders, but for what a few nodes have lost.
    ChunkDirectory directory;
    const auto n_nodes = 1 + random() % 9;
    std::map<uint16_t, uint32_t> truth;
    for (uint32_t node = 0; node < n_nodes; ++node) {
      Chunks held;
      uint32_t leading = 0;
      const uint64_t n_held = random() % 3 == 0 ? random() % (kIds + 1) : kIds;
      for (uint64_t id = 0; id < n_held; ++id) {
        const int levels = random() % 40 == 0 ? 0 : random() % 40 == 0 ? 1 << 4 : 1;
        if (levels != 0) held.emplace_back(id, levels);
        if (levels == 1 && leading == id) ++leading;
      }
      const std::string name = "node-" + std::to_string(node);
      ASSERT_TRUE(directory.Apply(name, Snapshot(1, held)));
      if (leading > 0) truth[directory.NumberOf(name).value()] = leading;
    }
    std::map<uint16_t, uint32_t> found;
    for (const LeadingChunks& each : directory.Leading(Ids(0, kIds - 1), Level::kLossless)) {
      found[each.node] = each.n_chunks;
    }
    ASSERT_EQ(found, truth) << round;
  }
}

TEST_F(ChunkDirectoryTest, FollowsAJournal) {
  ChunkJournal journal(/*max_changes=*/50);
  ChunkJournal::Cursor cursor;
  const auto follow = [&] {
    while (true) {
      const ChunkJournal::Batch batch = journal.Read(cursor, 7);
      if (batch.entries.empty() && !batch.snapshot) return;
      v1::ChunkEvents events = Events(batch.first_sequence, {});
      events.set_snapshot(batch.snapshot);
      for (const auto& entry : batch.entries) Append(events, entry.id_hash, entry.levels);
      ASSERT_TRUE(directory_.Apply("a", events));
    }
  };
  for (uint64_t n = 0; n < 1000; ++n) {
    journal.Record(Id(n % 300), n % 11 == 0 ? 0 : 1);
    if (n % 70 == 0) follow();
  }
  follow();
  EXPECT_EQ(directory_.size(), journal.size());
}

TEST_F(ChunkDirectoryTest, IsReadWhileNodesComeTellAndGo) {
  constexpr uint64_t kChunks = 400;
  ASSERT_TRUE(directory_.Apply("stays", Snapshot(1, Exact(1, kChunks / 2))));
  std::atomic<bool> done = false;
  std::vector<std::thread> threads;
  for (const std::string node : {"a", "b"}) {
    threads.emplace_back([this, node] {
      for (int round = 0; round < 30; ++round) {
        EXPECT_TRUE(directory_.Apply(node, Snapshot(1, Exact(1, kChunks))));
        Chunks gone;
        for (uint64_t n = 1; n <= kChunks; n += 2) gone.emplace_back(n, 0);
        EXPECT_TRUE(directory_.Apply(node, Events(kChunks + 1, gone)));
        if (round % 3 == 0) directory_.Forget(node);
      }
      directory_.Forget(node);
    });
  }
  for (int i = 0; i < 2; ++i) {
    threads.emplace_back([&] {
      const auto ids = Ids(1, kChunks);
      while (!done) {
        const CachedPrefix prefix = directory_.Find(ids, Level::kLossless);
        EXPECT_GE(prefix.n_chunks, kChunks / 2);
        for (const Span& span : prefix.spans) {
          EXPECT_THAT(span.worker_id, AnyOf("a", "b", "stays"));
        }
        EXPECT_LE(directory_.ChunksOf("a"), kChunks);
      }
    });
  }
  threads[0].join();
  threads[1].join();
  done = true;
  threads[2].join();
  threads[3].join();
  EXPECT_EQ(directory_.size(), kChunks / 2);
  EXPECT_THAT(directory_.Find(Ids(1, kChunks), Level::kQ4).nodes,
              ElementsAre(Node{"stays", kChunks / 2, kChunks / 2}));
}

TEST_F(ChunkDirectoryTest, OneNodeMayTellFromTwoStreamsAtOnce) {
  // A node that connects again while its old stream still delivers: one of the two is out of step.
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i) {
    threads.emplace_back([this] {
      for (int round = 0; round < 200; ++round) {
        directory_.Apply("a", Snapshot(1, Exact(1, 20)));
        directory_.Apply("a", Events(21, Exact(21, 30)));
        if (round % 20 == 0) directory_.Forget("a");
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(directory_.ChunksOf("a"), directory_.size());
  directory_.Forget("a");
  EXPECT_EQ(directory_.size(), 0u);
}

}  // namespace
}  // namespace tandem::scheduler
