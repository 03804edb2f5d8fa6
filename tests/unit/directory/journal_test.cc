// The journal: what a reader puts together from batches is what was recorded, however far behind
// it falls and whatever sizes its batches have.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <map>
#include <random>
#include <thread>

#include "kvstore/chunk_journal.h"

namespace tandem::kvstore {
namespace {

using Cursor = ChunkJournal::Cursor;
using Batch = ChunkJournal::Batch;
using Entry = ChunkJournal::Entry;
using testing::ElementsAre;
using testing::IsEmpty;
using testing::Pair;

ChunkId Id(uint64_t n) {
  ChunkId id;
  std::memcpy(id.bytes.data(), &n, sizeof n);
  return id;
}

/// What a router does with the batches of one node.
class Reader {
 public:
  explicit Reader(const ChunkJournal& journal) : journal_(journal) {}

  /// One batch. False: there was nothing to read.
  bool Read(size_t max_entries) {
    const Batch batch = journal_.Read(cursor_, max_entries);
    EXPECT_LE(batch.entries.size(), max_entries);
    if (batch.snapshot) {
      ++snapshots;
      held.clear();
    } else {
      EXPECT_EQ(batch.first_sequence, next_) << "a gap";
    }
    next_ = batch.first_sequence + batch.entries.size();
    for (const Entry& entry : batch.entries) {
      if (entry.levels == 0) {
        held.erase(entry.id_hash);
      } else {
        held[entry.id_hash] = entry.levels;
      }
    }
    return batch.snapshot || !batch.entries.empty();
  }
  void ReadAll(size_t max_entries = 1000) {
    while (Read(max_entries)) {
    }
  }

  std::map<uint64_t, int> held;
  int snapshots = 0;

 private:
  const ChunkJournal& journal_;
  Cursor cursor_;
  uint64_t next_ = 0;
};

TEST(ChunkJournal, ASnapshotOfNothingComesOnce) {
  const ChunkJournal journal;
  Cursor cursor;
  Batch batch = journal.Read(cursor, 10);
  EXPECT_TRUE(batch.snapshot);
  EXPECT_THAT(batch.entries, IsEmpty());
  batch = journal.Read(cursor, 10);
  EXPECT_FALSE(batch.snapshot);
  EXPECT_THAT(batch.entries, IsEmpty());
}

TEST(ChunkJournal, ASnapshotThenChangeByChange) {
  ChunkJournal journal;
  journal.Record(Id(1), 0b00001);
  journal.Record(Id(2), 0b00010);
  journal.Record(Id(2), 0);
  Reader reader(journal);
  reader.ReadAll();
  EXPECT_THAT(reader.held, ElementsAre(Pair(1, 1)));
  journal.Record(Id(3), 0b10000);
  journal.Record(Id(1), 0b00011);
  journal.Record(Id(3), 0);
  reader.ReadAll();
  EXPECT_THAT(reader.held, ElementsAre(Pair(1, 3)));
  EXPECT_EQ(reader.snapshots, 1);
  EXPECT_EQ(journal.size(), 1u);
}

TEST(ChunkJournal, WhatIsKnownIsNotToldAgain) {
  ChunkJournal journal;
  Cursor cursor;
  journal.Read(cursor, 10);
  journal.Record(Id(1), 0);
  journal.Record(Id(1), 2);
  journal.Record(Id(1), 2);
  EXPECT_THAT(journal.Read(cursor, 10).entries, ElementsAre(Entry{1, 2}));
}

TEST(ChunkJournal, ASnapshotComesInPiecesAndChangesMeanwhileAfterIt) {
  ChunkJournal journal;
  for (uint64_t i = 0; i < 10; ++i) journal.Record(Id(i), 1);
  Cursor cursor;
  const Batch first = journal.Read(cursor, 4);
  EXPECT_TRUE(first.snapshot);
  EXPECT_EQ(first.entries.size(), 4u);
  journal.Record(Id(3), 0);
  journal.Record(Id(99), 4);
  const Batch second = journal.Read(cursor, 4);
  EXPECT_FALSE(second.snapshot);
  EXPECT_EQ(second.first_sequence, first.first_sequence + 4);
  // The rest of the snapshot and the first change fill one batch.
  const Batch third = journal.Read(cursor, 3);
  EXPECT_EQ(third.entries.size(), 3u);
  EXPECT_EQ(third.entries.back(), (Entry{3, 0}));
  EXPECT_THAT(journal.Read(cursor, 4).entries, ElementsAre(Entry{99, 4}));
  EXPECT_THAT(journal.Read(cursor, 4).entries, IsEmpty());
}

TEST(ChunkJournal, WhoFallsBehindGetsASnapshot) {
  ChunkJournal journal(/*max_changes=*/4);
  Reader reader(journal);
  reader.ReadAll();
  for (uint64_t i = 0; i < 4; ++i) journal.Record(Id(i), 1);
  reader.ReadAll();
  EXPECT_EQ(reader.snapshots, 1);
  for (uint64_t i = 0; i < 5; ++i) journal.Record(Id(i), 2);
  reader.ReadAll();
  EXPECT_EQ(reader.snapshots, 2);
  EXPECT_EQ(reader.held.size(), 5u);
}

TEST(ChunkJournal, WhoFallsBehindInsideASnapshotGetsAnother) {
  ChunkJournal journal(/*max_changes=*/4);
  for (uint64_t i = 0; i < 20; ++i) journal.Record(Id(i), 1);
  Reader reader(journal);
  reader.Read(5);
  for (uint64_t i = 0; i < 20; i += 2) journal.Record(Id(i), 0);
  reader.ReadAll(5);
  EXPECT_EQ(reader.snapshots, 2);
  EXPECT_EQ(reader.held.size(), 10u);
}

TEST(ChunkJournal, ReadersWhoseBatchesDifferAgree) {
  ChunkJournal journal(/*max_changes=*/100);
  std::vector<Reader> readers(4, Reader(journal));
  std::map<uint64_t, int> truth;
  std::mt19937 random(7);
  for (int round = 0; round < 2000; ++round) {
    const uint64_t id = random() % 300;
    const uint8_t levels = random() % 3 == 0 ? 0 : 1 + random() % 31;
    journal.Record(Id(id), levels);
    if (levels == 0) {
      truth.erase(id);
    } else {
      truth[id] = levels;
    }
    Reader& reader = readers[random() % readers.size()];
    if (random() % 8 == 0) reader.Read(1 + random() % 50);
  }
  EXPECT_EQ(journal.size(), truth.size());
  for (Reader& reader : readers) {
    reader.ReadAll();
    EXPECT_EQ(reader.held, truth);
  }
}

TEST(ChunkJournal, IsReadWhileItIsWritten) {
  ChunkJournal journal(/*max_changes=*/64);
  std::atomic<bool> done = false;
  std::thread writer([&] {
    for (uint64_t i = 0; i < 20000; ++i) journal.Record(Id(i % 500), i % 7 == 0 ? 0 : 1 + i % 3);
    done = true;
  });
  std::vector<std::thread> threads;
  std::vector<Reader> readers(2, Reader(journal));
  for (Reader& reader : readers) {
    threads.emplace_back([&] {
      while (!done) reader.Read(10);
      reader.ReadAll();
    });
  }
  writer.join();
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(readers[0].held.size(), journal.size());
  EXPECT_EQ(readers[0].held, readers[1].held);
}

}  // namespace
}  // namespace tandem::kvstore
