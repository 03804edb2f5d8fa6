// What the handoff's tests share: an io thread, both ends, KV with recognisable bytes, and waiting
// for a condition.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <chrono>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "kvstore/transfer/transfer.h"
#include "tests/support/io_thread.h"

namespace tandem::kvstore {

inline constexpr uint64_t kBytesPerToken = 64;

using testing_support::IoThread;

/// True as soon as `condition` holds; false after ten seconds without.
template <typename F>
bool Eventually(F&& condition) {
  const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > limit) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

/// A context for a request with, in its KV, bytes that depend on sequence and position.
inline RequestContextPtr MakeContext(absl::Time deadline = absl::InfiniteFuture()) {
  return std::make_shared<RequestContext>("request", "tenant", 1, deadline);
}

inline std::string MakeId(uint32_t n) {
  std::string id = std::to_string(n);
  id.resize(16, '-');
  return id;
}

inline uint8_t KvByte(uint32_t sequence, uint64_t offset) {
  return static_cast<uint8_t>((offset * 2654435761u + sequence * 40503u) >> 7);
}

inline KvChunk MakeChunk(uint32_t first_position, uint32_t n_tokens, uint32_t sequence = 0) {
  KvChunk chunk{.first_position = first_position, .n_tokens = n_tokens};
  chunk.bytes.resize(n_tokens * kBytesPerToken);
  const uint64_t begin = first_position * kBytesPerToken;
  for (size_t i = 0; i < chunk.bytes.size(); ++i) chunk.bytes[i] = KvByte(sequence, begin + i);
  return chunk;
}

/// Collects a sequence in spans of `span_bytes`, and notes what was committed. Its counters may be
/// read by any thread.
class CollectingSink final : public KvSink {
 public:
  explicit CollectingSink(size_t span_bytes = SIZE_MAX) : span_bytes_(span_bytes) {}

  absl::StatusOr<std::vector<std::span<uint8_t>>> Prepare(uint32_t first_position,
                                                          uint32_t n_tokens,
                                                          uint64_t body_bytes) override {
    if (body_bytes != n_tokens * kBytesPerToken) {
      return absl::InvalidArgumentError("wrong size for its tokens");
    }
    prepared_ = {first_position, n_tokens};
    bytes_.resize(committed_ * kBytesPerToken + body_bytes);
    std::vector<std::span<uint8_t>> spans;
    std::span<uint8_t> rest = std::span(bytes_).last(body_bytes);
    while (!rest.empty()) {
      spans.push_back(rest.first(std::min(span_bytes_, rest.size())));
      rest = rest.subspan(spans.back().size());
    }
    return spans;
  }
  void Commit() override {
    EXPECT_EQ(prepared_.first, committed_);
    committed_ += prepared_.second;
    ++chunks_;
  }

  uint32_t committed_tokens() const { return committed_; }
  uint32_t committed_chunks() const { return chunks_; }
  /// Whether what was committed is that sequence's KV. Not while a pull runs.
  bool Holds(uint32_t sequence) const {
    for (uint64_t i = 0; i < committed_ * kBytesPerToken; ++i) {
      if (bytes_[i] != KvByte(sequence, i)) return false;
    }
    return true;
  }

 private:
  const size_t span_bytes_;
  std::pair<uint32_t, uint32_t> prepared_;
  std::vector<uint8_t> bytes_;
  std::atomic<uint32_t> committed_ = 0;
  std::atomic<uint32_t> chunks_ = 0;
};

using PullResult = absl::StatusOr<HandoffClient::Result>;
using Outcome = std::pair<absl::Status, HandoffStats>;

/// A publication with what becomes of it.
struct Offered {
  std::shared_ptr<Publication> publication;
  std::future<Outcome> released;
};

class HandoffFixture : public testing::Test {
 protected:
  ~HandoffFixture() override {
    if (client_) client_->Stop();
    if (server_) server_->Stop();
  }

  void StartServer(HandoffServer::Options options = {}) {
    if (options.listen.empty()) options.listen = "127.0.0.1:0";
    if (options.identity.empty()) options.identity = identity_;
    auto server = HandoffServer::Start(server_thread_.io(), std::move(options));
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  void StartClient(HandoffClient::Options options = {}) {
    if (options.identity.empty()) options.identity = identity_;
    client_ = HandoffClient::Create(client_thread_.io(), std::move(options));
  }
  std::string address() const { return "127.0.0.1:" + std::to_string(server_->port()); }

  Offered Publish(uint32_t n, RequestContextPtr context = MakeContext()) {
    auto promise = std::make_shared<std::promise<Outcome>>();
    Offered offered{.released = promise->get_future()};
    auto publication = server_->Publish(MakeId(n), std::move(context), {},
                                        [promise](absl::Status s, HandoffStats t) {
                                          promise->set_value({std::move(s), t});
                                        });
    EXPECT_TRUE(publication.ok()) << publication.status();
    if (publication.ok()) offered.publication = *std::move(publication);
    return offered;
  }

  std::future<PullResult> Pull(std::string address, uint32_t n, KvSink& sink,
                               RequestContextPtr context = MakeContext()) {
    auto promise = std::make_shared<std::promise<PullResult>>();
    client_->Pull(std::move(context), std::move(address), MakeId(n), &sink,
                  [promise](PullResult result) { promise->set_value(std::move(result)); });
    return promise->get_future();
  }
  std::future<PullResult> Pull(uint32_t n, KvSink& sink,
                               RequestContextPtr context = MakeContext()) {
    return Pull(address(), n, sink, std::move(context));
  }

  /// Nothing is on offer, held or connected, but for `idle` connections kept for reuse.
  bool ServerIsEmpty(size_t idle = 0) {
    return Eventually([&] {
      return server_->publications() == 0 && server_->held_bytes() == 0 &&
             server_->connections() <= idle;
    });
  }

  const Identity identity_ = {{"model", "tale-7m"}, {"type_k", "f16"}};
  IoThread server_thread_, client_thread_;
  std::unique_ptr<HandoffServer> server_;
  std::unique_ptr<HandoffClient> client_;
};

inline auto HasStatus(absl::StatusCode code, std::string message) {
  return testing::AllOf(
      testing::Property("code", &absl::Status::code, code),
      testing::ResultOf([](const absl::Status& s) { return std::string(s.message()); },
                        testing::HasSubstr(message)));
}

}  // namespace tandem::kvstore
