// Sequences whose KV is put aside and comes back.
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <thread>

#include "tests/integration/engine/engine_fixture.h"
#include "tests/integration/worker/worker_fixture.h"
#include "workers/engine/incoming_kv.h"

namespace tandem::workers {
namespace {

TEST(ParkingTest, ThreeTimesMoreSequencesThanFitAllEnd) {
  TestWorker prefill(v1::PHASE_PREFILL), ample(v1::PHASE_DECODE, [](WorkerOptions&options) {
    options.decode_engine.max_sequences = 8;
  });
  // Three are let in, by what they are expected to need at first; two of the full length fit.
  TestWorker tight(v1::PHASE_DECODE, [](WorkerOptions& options) {
    options.decode_engine.max_sequences = 8;
    options.decode_kv_tokens = 900;
  });
  constexpr uint32_t kTokens = 400;
  std::vector<std::thread> clients;
  for (uint32_t i = 0; i < 8; ++i) {
    clients.emplace_back([&, i] {
      const TestRequest request = {.prompt = Prompt(30, i), .max_tokens = kTokens};
      const Outcome outcome = Serve(request, prefill, tight);
      EXPECT_TRUE(outcome.status.ok()) << outcome.status;
      EXPECT_EQ(outcome.tokens.size(), kTokens);
      const Outcome expected = Serve(request, prefill, ample);
      EXPECT_TRUE(outcome.tokens == expected.tokens) << "request " << i;
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_GT(tight.Metric("tandem_worker_parked_total"), 0);
  EXPECT_TRUE(Eventually([&] {
    return tight.load().parked() == 0 && tight.Metric("tandem_worker_parked_bytes") == 0 &&
           tight.worker().unfinished() == 0;
  }));
}

TEST(ParkingTest, ParkedSequencesMoveToo) {
  TestWorker prefill(v1::PHASE_PREFILL), next(v1::PHASE_DECODE, [](WorkerOptions&options) {
    options.decode_engine.max_sequences = 6;
  });
  TestWorker tight(v1::PHASE_DECODE, [](WorkerOptions& options) {
    options.decode_engine.max_sequences = 6;
    options.decode_kv_tokens = 900;
  });
  std::vector<std::thread> clients;
  for (uint32_t i = 0; i < 6; ++i) {
    clients.emplace_back([&, i] {
      const TestRequest request = {.prompt = Prompt(30, i), .max_tokens = 400};
      const Outcome outcome = Serve(request, prefill, tight, &next);
      EXPECT_TRUE(outcome.status.ok()) << outcome.status;
      EXPECT_TRUE(outcome.tokens == Serve(request, prefill, next).tokens) << "request " << i;
    });
  }
  EXPECT_TRUE(Eventually([&] { return tight.load().parked() > 0; }));
  EXPECT_TRUE(tight.worker().AssignPhase(v1::PHASE_PREFILL).ok());
  for (std::thread& client : clients) client.join();
  EXPECT_TRUE(Eventually([&] { return tight.load().phase() == v1::PHASE_PREFILL; }));
}

TEST(ParkingTest, WhatWaitsTooLongIsPulledBeforeItsKvExpires) {
  constexpr absl::Duration kLease = absl::Milliseconds(600);
  TestWorker prefill(v1::PHASE_PREFILL,
                     [&](WorkerOptions& options) { options.handoff_lease = kLease; });
  TestWorker decode(v1::PHASE_DECODE, [&](WorkerOptions& options) {
    options.handoff_lease = kLease;
    options.decode_engine.max_sequences = 1;
  });
  std::vector<std::thread> clients;
  for (uint32_t i = 0; i < 3; ++i) {
    clients.emplace_back([&, i] {
      const Outcome outcome = Serve({.prompt = Prompt(50, i), .max_tokens = 1200}, prefill, decode);
      EXPECT_TRUE(outcome.status.ok()) << outcome.status;
      EXPECT_EQ(outcome.tokens.size(), 1200u);
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_GE(decode.Metric("tandem_worker_parked_total"), 1);
}

TEST(ParkingTest, ACancelledSequenceLeavesNothingBehind) {
  TestWorker prefill(v1::PHASE_PREFILL),
      tight(v1::PHASE_DECODE, [](WorkerOptions&options) { options.decode_kv_tokens = 2048; });
  std::vector<std::thread> clients;
  std::atomic<bool> cancel = false;
  for (uint32_t i = 0; i < 4; ++i) {
    clients.emplace_back([&, i] {
      const TestRequest request = {.prompt = Prompt(400, i), .max_tokens = 1500, .cancel = &cancel};
      EXPECT_FALSE(Serve(request, prefill, tight).status.ok());
    });
  }
  EXPECT_TRUE(Eventually([&] { return tight.load().parked() > 0; }));
  cancel = true;
  for (std::thread& client : clients) client.join();
  EXPECT_TRUE(Eventually([&] {
    return tight.worker().unfinished() == 0 && tight.load().parked() == 0 &&
           tight.Metric("tandem_worker_parked_bytes") == 0 && tight.load().kv_used_tokens() == 0;
  }));
}

/// KV out of an engine, parked, fetched, and the same bytes.
void ExpectSameBits(kvstore::Store* store, uint64_t memory_bytes, bool opaque) {
  EngineOptions options = Options(EngineOptions::Use::kDecode);
  options.force_opaque = opaque;
  auto decode = MakeEngine(options);
  options.use = EngineOptions::Use::kPrefill;
  auto prefill = MakeEngine(options);
  ASSERT_OK(Feed(*prefill, 0, Prompt(700)));
  ASSERT_OK(Handoff(*prefill, 0, *decode, 0, 700));
  auto coder = KvCoder::Create(*decode, nullptr, std::nullopt, 2);
  ASSERT_TRUE(coder.ok()) << coder.status();
  ParkingLot lot(
      store, coder->get(),
      {.memory_bytes = memory_bytes, .raw_bytes_per_token = decode->layout().BytesPerToken()});
  const auto chunks = decode->ExtractAll(0, 256);
  ASSERT_TRUE(chunks.ok()) << chunks.status();
  EXPECT_TRUE(lot.HasRoom(100));
  ParkedKvPtr parked = lot.Park(*chunks);
  auto sink = decode->NewSink(700);
  absl::Status fetched = absl::UnknownError("");
  std::mutex mutex;
  std::condition_variable wake;
  bool done = false;
  lot.Fetch(parked, sink.get(), [&](absl::Status status) {
    std::lock_guard lock(mutex);
    fetched = std::move(status);
    done = true;
    wake.notify_all();
  });
  {
    std::unique_lock lock(mutex);
    ASSERT_TRUE(wake.wait_for(lock, std::chrono::seconds(60), [&] { return done; }));
  }
  ASSERT_TRUE(fetched.ok()) << fetched;
  EXPECT_GT(lot.bytes(), 0u);
  const auto back = decode->ChunksOf(*sink, 256);
  ASSERT_TRUE(back.ok()) << back.status();
  ASSERT_EQ(back->size(), chunks->size());
  for (size_t i = 0; i < back->size(); ++i) {
    EXPECT_TRUE((*back)[i].bytes == (*chunks)[i].bytes) << "chunk " << i;
  }
  parked.reset();
  (*coder)->Stop();
  EXPECT_EQ(lot.bytes(), 0u);
}

TEST(ParkingLotTest, KeepsEveryBit) {
  ExpectSameBits(nullptr, 64 << 20, false);
  ExpectSameBits(nullptr, 64 << 20, true);
}

TEST(ParkingLotTest, GoesToTheStoreWhenMemoryIsFullAndLeavesNothingThere) {
  auto store = kvstore::Store::Open({.memory_bytes = 64 << 20});
  ASSERT_TRUE(store.ok()) << store.status();
  ExpectSameBits(store->get(), 1 << 20, false);
  EXPECT_EQ((*store)->stats().pins, 0u);
  EXPECT_EQ((*store)->stats().tiers[0]->chunks, 0u);
}

TEST(ParkingLotTest, SaysWhenItIsFull) {
  auto decode = MakeEngine(Options(EngineOptions::Use::kDecode));
  auto coder = KvCoder::Create(*decode, nullptr, std::nullopt, 1);
  ASSERT_TRUE(coder.ok()) << coder.status();
  ParkingLot lot(nullptr, coder->get(),
                 {.memory_bytes = 1000, .raw_bytes_per_token = decode->layout().BytesPerToken()});
  EXPECT_TRUE(lot.HasRoom(1000));
  EXPECT_FALSE(lot.HasRoom(1001));
}

}  // namespace
}  // namespace tandem::workers
