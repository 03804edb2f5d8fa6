// Loads over real sockets: a node that holds chunks, a loader that brings them into sinks.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/use_future.hpp>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <thread>

#include "kvstore/loading/context_loader.h"
#include "kvstore/transfer/chunk_session.h"
#include "kvstore/transfer/transfer.h"
#include "tests/support/codec_fixture.h"
#include "tests/support/io_thread.h"

namespace tandem::kvstore {
namespace {

using codec::Codec;
using Next = ContextLoad::Next;

constexpr uint32_t kChunk = 64;
constexpr double kNeverText = 1e9, kQuickText = 1e-9;

/// Keeps what is written, plane after plane, as KvChunk does.
class Sink final : public KvSink {
 public:
  explicit Sink(const KvLayout& layout) : layout_(layout) {}
  absl::StatusOr<std::vector<std::span<uint8_t>>> Prepare(uint32_t first, uint32_t n,
                                                          uint64_t bytes) override {
    chunk = {.first_position = first, .n_tokens = n};
    chunk.bytes.resize(bytes);
    return PlanesOf(layout_, chunk);
  }
  void Commit() override { committed = true; }

  KvChunk chunk;
  bool committed = false;

 private:
  const KvLayout& layout_;
};

class Observer final : public LoadObserver {
 public:
  void ChunkLoaded(Origin origin, Level, uint64_t) override { ++loaded[static_cast<int>(origin)]; }
  void TextChosen() override { ++texts; }
  void ChunkRefused(Origin, const absl::Status&) override { ++refused; }
  void PeerFailed(const absl::Status&) override { ++failures; }
  void LinkMeasured(const std::string&, double) override {}

  std::array<std::atomic<int>, 4> loaded{};
  std::atomic<int> texts = 0, refused = 0, failures = 0;
};

class LoaderTest : public testing::Test {
 protected:
  LoaderTest() {
    for (uint32_t i = 0; i < 6; ++i) {
      chunks_.push_back(MakeChunk(model_, i * kChunk, kChunk, i));
      ids_.push_back({});
      ids_.back().bytes.fill(static_cast<uint8_t>(i + 1));
    }
    ours_ = *Store::Open({});
    StartServer(1 << 30, absl::Seconds(30));
    MakeLoader(ours_.get());
  }
  ~LoaderTest() override {
    loader_.reset();
    server_.reset();
    pool_.join();
  }

  void StartServer(uint64_t memory_bytes, absl::Duration lease) {
    server_.reset();
    theirs_ = *Store::Open({.memory_bytes = memory_bytes});
    server_ = *HandoffServer::Start(
        io_.io(), {.listen = "127.0.0.1:0", .chunks = theirs_.get(), .lease = lease});
  }
  void MakeLoader(Store* store) {
    loader_.reset();
    loader_ = ContextLoader::Create(
        io_.io(), store, &codec_,
        {.new_sink = [this](uint32_t, uint32_t) { return std::make_unique<Sink>(model_.layout); },
         .run = [this](std::function<void()> job) { boost::asio::post(pool_, std::move(job)); },
         .observer = &observer_});
  }
  StoredChunkPtr Encoded(size_t i, Level level) {
    return StoredChunk::Seal({ids_[i], level}, i * kChunk, kChunk,
                             *codec_.Encode(chunks_[i], {.level = level}));
  }
  std::string Address() const { return "127.0.0.1:" + std::to_string(server_->port()); }

  std::shared_ptr<ContextLoad> Start(bool peer = true, Level floor = Level::kQ1) {
    LoadRequest request{
        .context = std::make_shared<RequestContext>("load", "default", 0, absl::InfiniteFuture()),
        .ids = ids_,
        .chunk_tokens = kChunk,
        .floor = floor,
        .ready_by = absl::Now() + absl::Seconds(100),
        .on_progress = [this] {
          std::lock_guard lock(mutex_);
          ++progress_;
          wake_.notify_all();
        }};
    if (peer) request.holders.push_back({.address = Address(), .first_chunk = 0, .n_chunks = 6});
    return loader_->Start(std::move(request));
  }
  /// What becomes of chunk `i`, waited for.
  Next Outcome(ContextLoad& load, size_t i, double text_s = kNeverText) {
    const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (std::chrono::steady_clock::now() < limit) {
      const Next next = load.Decide(i, text_s);
      if (next != Next::kWait) return next;
      std::unique_lock lock(mutex_);
      wake_.wait_for(lock, std::chrono::milliseconds(20));
    }
    return Next::kWait;
  }
  static bool Eventually(const std::function<bool()>& condition) {
    const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (!condition() && std::chrono::steady_clock::now() < limit) std::this_thread::yield();
    return condition();
  }
  void ExpectExact(ContextLoad& load, size_t i) {
    ASSERT_EQ(Outcome(load, i), Next::kReady) << i;
    const ContextLoad::Loaded loaded = load.Take(i);
    const Sink& sink = dynamic_cast<const Sink&>(*loaded.kv);
    EXPECT_TRUE(sink.committed);
    EXPECT_EQ(sink.chunk.bytes, chunks_[i].bytes) << i;
    EXPECT_EQ(loaded.level, Level::kLossless);
  }

  const codec::TestModel model_ = codec::MakeModel(2, 2, 32);
  const Codec codec_ = *Codec::Create(model_.layout, model_.geometry, codec::kFingerprint,
                                      codec::MakeProfile(model_, 1));
  std::vector<KvChunk> chunks_;
  std::vector<ChunkId> ids_;
  Observer observer_;
  std::mutex mutex_;
  std::condition_variable wake_;
  int progress_ = 0;
  testing_support::IoThread io_;
  boost::asio::thread_pool pool_{2};
  std::unique_ptr<Store> theirs_, ours_;
  std::unique_ptr<HandoffServer> server_;
  std::unique_ptr<ContextLoader> loader_;
};

TEST_F(LoaderTest, BringsWhatOthersHoldAndKeepsIt) {
  for (size_t i = 0; i < ids_.size(); ++i) theirs_->Put(Encoded(i, Level::kLossless));
  const auto load = Start();
  for (size_t i = 0; i < ids_.size(); ++i) ExpectExact(*load, i);
  EXPECT_EQ(observer_.loaded[static_cast<int>(Origin::kPeer)], 6);
  EXPECT_TRUE(Eventually([this] {
    const auto held = ours_->Find(ids_);
    return std::all_of(held.begin(), held.end(), [](const auto& each) { return each.levels == 1; });
  }));
  // The next one finds everything at home.
  const auto again = Start();
  for (size_t i = 0; i < ids_.size(); ++i) ExpectExact(*again, i);
  EXPECT_EQ(observer_.loaded[static_cast<int>(Origin::kMemory)], 6);
}

TEST_F(LoaderTest, HolesAreComputed) {
  for (const size_t i : {0u, 1u, 4u}) theirs_->Put(Encoded(i, Level::kLossless));
  const auto load = Start();
  ExpectExact(*load, 0);
  ExpectExact(*load, 1);
  EXPECT_EQ(Outcome(*load, 2), Next::kCompute);
  EXPECT_TRUE(load->TakeIfAbsent(3));
  ExpectExact(*load, 4);
  EXPECT_EQ(Outcome(*load, 5), Next::kCompute);
  EXPECT_TRUE(Eventually([this] { return ours_->stats().misses == 1; }));
}

TEST_F(LoaderTest, NoLevelBelowTheFloorIsTaken) {
  for (size_t i = 0; i < ids_.size(); ++i) theirs_->Put(Encoded(i, Level::kQ2));
  const auto strict = Start(true, Level::kQ1);
  EXPECT_EQ(Outcome(*strict, 0), Next::kCompute);
  const auto lenient = Start(true, Level::kQ2);
  EXPECT_EQ(Outcome(*lenient, 0), Next::kReady);
  EXPECT_EQ(lenient->Take(0).level, Level::kQ2);
}

TEST_F(LoaderTest, DamagedAndForeignChunksAreRefused) {
  theirs_->Put(Encoded(0, Level::kLossless));
  // Sealed soundly, but the KV of another chunk; and no KV at all.
  theirs_->Put(StoredChunk::Seal({ids_[1], Level::kLossless}, kChunk, kChunk,
                                 *codec_.Encode(chunks_[2], {})));
  theirs_->Put(StoredChunk::Seal({ids_[2], Level::kLossless}, 2 * kChunk, kChunk,
                                 std::vector<uint8_t>(100, 7)));
  const auto load = Start();
  ExpectExact(*load, 0);
  EXPECT_EQ(Outcome(*load, 1), Next::kCompute);
  EXPECT_EQ(Outcome(*load, 2), Next::kCompute);
  EXPECT_EQ(observer_.refused, 2);
}

TEST_F(LoaderTest, APeerThatIsNotThereCostsNothing) {
  const std::string address = Address();
  server_.reset();
  LoadRequest request{
      .context = std::make_shared<RequestContext>("load", "default", 0, absl::InfiniteFuture()),
      .ids = ids_,
      .chunk_tokens = kChunk,
      .holders = {{.address = address, .first_chunk = 0, .n_chunks = 6}},
      .ready_by = absl::InfiniteFuture(),
      .on_progress = [] {}};
  const auto load = loader_->Start(std::move(request));
  EXPECT_EQ(Outcome(*load, 0), Next::kCompute);
  EXPECT_TRUE(Eventually([this] { return observer_.failures == 1; }));
}

TEST_F(LoaderTest, AnEngineThatIsQuickerDoesNotWait) {
  const auto load = Start();
  EXPECT_EQ(Outcome(*load, 0, kQuickText), Next::kCompute);
}

TEST_F(LoaderTest, StopDropsWhatComes) {
  MakeLoader(nullptr);  // what came before Stop would be in the store, and be had from there
  for (size_t i = 0; i < ids_.size(); ++i) theirs_->Put(Encoded(i, Level::kLossless));
  const auto load = Start();
  load->Stop();
  EXPECT_EQ(load->Decide(0, kNeverText), Next::kCompute);
  loader_->Stop();
  EXPECT_EQ(Outcome(*Start(), 0), Next::kCompute) << "after the loader's end all is computed";
}

/// What a peer does by itself, chunk by chunk.
class PeerTest : public LoaderTest {
 protected:
  ~PeerTest() override {
    Run([this]() -> boost::asio::awaitable<void> {
      peers_->Shutdown();
      co_return;
    });
  }
  void Run(const std::function<boost::asio::awaitable<void>()>& job) {
    boost::asio::co_spawn(io_.io(), job, boost::asio::use_future).get();
  }
  void Fill(uint64_t memory_bytes, absl::Duration lease) {
    StartServer(memory_bytes, lease);
    for (size_t i = 0; i < ids_.size(); ++i) theirs_->Put(Encoded(i, Level::kLossless));
  }

  const std::shared_ptr<PeerPool> peers_ =
      std::make_shared<PeerPool>(io_.io(), PeerPool::Options{.chunks_only = true});
};

TEST_F(PeerTest, WhatItWasPromisedStaysUntilItHasIt) {
  const auto room = 14 * Encoded(0, Level::kLossless)->bytes().size();
  Fill(room, absl::Seconds(30));
  size_t received = 0;
  Run([&]() -> boost::asio::awaitable<void> {
    ChunkSession session(peers_, Address());
    EXPECT_TRUE((co_await session.Find(ids_)).ok());
    EXPECT_EQ(theirs_->stats().leases, ids_.size());
    // Meanwhile others want all of the memory.
    for (uint8_t seed = 100; seed < 140; ++seed) {
      ChunkKey key;
      key.id.bytes.fill(seed);
      theirs_->Put(StoredChunk::Seal(key, 0, kChunk, Encoded(0, Level::kLossless)->payload()));
    }
    EXPECT_GT(theirs_->stats().tiers[0]->evictions, 20u);
    for (const ChunkId& id : ids_) {
      EXPECT_TRUE((co_await session.Ask({id})).ok());
      received += (co_await session.Receive({id})).ok() ? 1 : 0;
    }
    co_await session.End(absl::OkStatus());
    EXPECT_EQ(theirs_->stats().leases, 0u);
  });
  EXPECT_EQ(received, ids_.size());
}

TEST_F(PeerTest, APromiseEndsWithItsConnection) {
  Fill(1 << 30, absl::Seconds(30));
  Run([&]() -> boost::asio::awaitable<void> {
    ChunkSession session(peers_, Address());
    EXPECT_TRUE((co_await session.Find(ids_)).ok());
    EXPECT_EQ(theirs_->stats().leases, ids_.size());
    co_await session.End(absl::CancelledError("enough"));
  });
  EXPECT_TRUE(Eventually([this] { return theirs_->stats().leases == 0; }));
}

TEST_F(PeerTest, APromiseEndsWhenItIsSilent) {
  Fill(1 << 30, absl::Milliseconds(50));
  Run([&]() -> boost::asio::awaitable<void> {
    ChunkSession session(peers_, Address());
    EXPECT_TRUE((co_await session.Find(ids_)).ok());
  });
  // The connection is still there.
  EXPECT_TRUE(Eventually([this] { return theirs_->stats().leases == 0; }));
}

TEST_F(LoaderTest, GivesChunksToAnotherNode) {
  loader_->Give(Address(), Encoded(3, Level::kLossless));
  EXPECT_TRUE(Eventually([this] { return theirs_->Find({&ids_[3], 1})[0].levels == 1; }));
}

}  // namespace
}  // namespace tandem::kvstore
