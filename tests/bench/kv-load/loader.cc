#include "tests/bench/kv-load/loader.h"

#include <prometheus/registry.h>

#include <algorithm>
#include <fstream>
#include <future>
#include <iostream>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/status.h"
#include "kvstore/store.h"
#include "kvstore/transfer/transfer.h"
#include "tests/bench/kv-load/fixed_load.h"
#include "tests/bench/kv-load/plain_link.h"
#include "tests/support/io_thread.h"
#include "workers/engine/geometry.h"
#include "workers/prefill_loop.h"

namespace tandem::bench {
namespace {

using nlohmann::json;

/// Nothing comes over the link for so long: it is quiet. A sender whose link was cut tries again
/// after longer than that, but then whoever cut it waits.
constexpr double kQuietS = 0.12;

std::string ReceivedBytes() {
  std::ifstream in("/sys/class/net/eth0/statistics/rx_bytes");
  std::string bytes;
  in >> bytes;
  return bytes;
}

/// One request to the prefill loop.
class Events final : public workers::PrefillEvents {
 public:
  void Started(double) override {}
  void FirstToken(const workers::FirstTokenResult& first) override {
    first_ = first;
    first_at_ = Now();
  }
  void Ended(absl::Status status, uint64_t) override { ended_.set_value(std::move(status)); }

  absl::Status Wait() { return ended_.get_future().get(); }
  double first_at() const { return first_at_; }
  const workers::FirstTokenResult& first() const { return first_; }

 private:
  std::promise<absl::Status> ended_;
  double first_at_ = 0;
  workers::FirstTokenResult first_;
};

/// What an engine computes just before it is timed: there are two, and the one that ran last would
/// be quicker, as its memory is in the caches.
std::vector<int32_t> WarmUp(const LoadedContext& loaded) {
  constexpr size_t kTokens = 64;
  return {loaded.tokens.begin(), loaded.tokens.begin() + std::min(kTokens, loaded.tokens.size())};
}

/// A prefill worker without its gRPC side.
class Worker {
 public:
  static absl::StatusOr<std::unique_ptr<Worker>> Start(const LoadedContext& loaded,
                                                       boost::asio::io_context& io,
                                                       uint32_t threads) {
    std::unique_ptr<Worker> worker(new Worker(loaded));
    ASSIGN_OR_RETURN(std::unique_ptr<workers::Engine> engine, MakeEngine(loaded, threads));
    ASSIGN_OR_RETURN(worker->store_, kvstore::Store::Open({}));
    ASSIGN_OR_RETURN(worker->server_,
                     kvstore::HandoffServer::Start(io, {.listen = "127.0.0.1:0",
                                                        .identity = engine->identity(),
                                                        .chunks = worker->store_.get()}));
    // Explicit, as the synthetic model has no profile: its loss means nothing.
    ASSIGN_OR_RETURN(worker->coder_,
                     workers::KvCoder::Create(*engine, loaded.profile, kvstore::Level::kQ1, 1));
    worker->cache_ = std::make_unique<workers::PrefixCache>(
        *engine, io, worker->store_.get(), worker->coder_.get(), &worker->kv_metrics_,
        workers::PrefixCache::Options{.chunk_tokens = kChunkTokens});
    worker->ids_ = worker->cache_->Ids(kTenant, loaded.tokens);
    worker->ids_.resize(loaded.context.n_chunks());
    worker->loop_ = std::make_unique<workers::PrefillLoop>(
        std::move(engine), worker->server_.get(), worker->cache_.get(), &worker->gate_,
        &worker->speed_, &worker->metrics_, &worker->kv_metrics_,
        workers::PrefillLoop::Options{.chunk_tokens = kChunkTokens, .max_sequences = 1});
    return worker;
  }
  ~Worker() {
    if (loop_ != nullptr) loop_->Stop();
    if (cache_ != nullptr) cache_->Stop();
    if (coder_ != nullptr) coder_->Stop();
    if (server_ != nullptr) server_->Stop();
  }

  absl::StatusOr<json> Run(workers::CacheWishes wishes, absl::Duration objective) {
    RETURN_IF_ERROR(Answer(WarmUp(loaded_), {.bypass = true}).status());
    const double began = Now();
    wishes.first_token_due = absl::Now() + objective;
    ASSIGN_OR_RETURN(const auto events, Answer(loaded_.tokens, std::move(wishes)));
    const workers::PromptOrigins& origins = events->first().origins;
    return json({{"began", began},
                 {"ttft_s", events->first_at() - began},
                 {"loaded_tokens", origins.reused()},
                 {"level", kvstore::codec::LevelName(origins.level)}});
  }
  /// True when there was anything.
  bool Forget() {
    bool any = false;
    for (const auto& id : ids_) any |= store_->Remove(id);
    return any;
  }
  const std::vector<kvstore::ChunkId>& ids() const { return ids_; }

 private:
  explicit Worker(const LoadedContext& loaded) : loaded_(loaded) {}

  absl::StatusOr<std::shared_ptr<Events>> Answer(std::vector<int32_t> tokens,
                                                 workers::CacheWishes wishes) {
    auto events = std::make_shared<Events>();
    RETURN_IF_ERROR(
        loop_->Submit({.context = std::make_shared<RequestContext>(
                           absl::StrCat("load-", ++n_), kTenant, 0, absl::InfiniteFuture()),
                       .tokens = std::move(tokens),
                       .sampling = {.temperature = 0},
                       .max_tokens = 1,
                       .cache = std::move(wishes),
                       .events = events}));
    RETURN_IF_ERROR(events->Wait());
    return events;
  }

  const LoadedContext& loaded_;
  const std::shared_ptr<prometheus::Registry> registry_ = std::make_shared<prometheus::Registry>();
  workers::WorkerMetrics metrics_{
      registry_,
      {.model_name = "m", .worker_name = "w", .phase = "prefill", .context_tokens = 8192}};
  workers::KvMetrics kv_metrics_{registry_, "m", "w"};
  workers::TurnGate gate_{absl::ZeroDuration()};
  workers::WorkerSpeed speed_{workers::EngineOptions().step_tokens};
  std::unique_ptr<kvstore::Store> store_;
  std::unique_ptr<kvstore::HandoffServer> server_;
  std::unique_ptr<workers::KvCoder> coder_;
  std::unique_ptr<workers::PrefixCache> cache_;
  std::unique_ptr<workers::PrefillLoop> loop_;
  std::vector<kvstore::ChunkId> ids_;
  uint64_t n_ = 0;
};

void AwaitQuiet(Worker& worker) {
  std::string before = ReceivedBytes();
  for (Stopwatch quiet; quiet.seconds() < kQuietS;) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    std::string now = ReceivedBytes();
    if (!worker.Forget() && now == before) continue;
    before = std::move(now);
    quiet = Stopwatch();
  }
}

/// What loads into an engine of its own, outside of any worker.
struct Bare {
  const LoadedContext& loaded;
  const json ports;
  const std::string host;
  workers::Engine* engine;
  PlainClient* plain;
  FixedLoad* fixed;
  const std::vector<kvstore::ChunkId>& ids;

  absl::StatusOr<json> Run(const std::string& way) {
    engine->Free(0);
    RETURN_IF_ERROR(Compute(*engine, WarmUp(loaded)));
    engine->Free(0);
    const double began = Now();
    if (ports.contains(way)) {
      RETURN_IF_ERROR(fixed->Load(absl::StrCat(host, ":", ports[way].get<int>()), ids));
    } else {
      const Format format = way == "raw"    ? Format::kRaw
                            : way == "int8" ? Format::kInt8
                                            : Format::kZstd;
      RETURN_IF_ERROR(plain->Load(format, loaded.context.n_chunks()));
    }
    RETURN_IF_ERROR(Compute(*engine, std::span(loaded.tokens).subspan(engine->Length(0))));
    return json({{"began", began}, {"ttft_s", Now() - began}});
  }
};

/// Seconds to put a chunk into an engine from its encoded bytes.
absl::StatusOr<double> DecodeSeconds(workers::Engine& from, workers::Engine& to,
                                     const kvstore::codec::Codec& codec, kvstore::Level level) {
  ASSIGN_OR_RETURN(const kvstore::KvChunk chunk, from.Extract(0, 0, kChunkTokens));
  ASSIGN_OR_RETURN(const auto payload, codec.Encode(chunk, {.level = level}));
  to.Free(0);
  const Stopwatch watch;
  const auto sink = to.NewSink(kChunkTokens, 0);
  ASSIGN_OR_RETURN(const auto planes, sink->Prepare(0, kChunkTokens, chunk.bytes.size()));
  RETURN_IF_ERROR(codec.Decode(payload, planes));
  sink->Commit();
  RETURN_IF_ERROR(to.Append(0, *sink));
  return watch.seconds();
}

/// What computing and decoding take, for the oracle: the medians of some rounds.
absl::StatusOr<json> MeasureCosts(const LoadedContext& loaded, workers::Engine& engine,
                                  const kvstore::codec::Codec& codec, uint32_t threads) {
  constexpr int kRounds = 5;
  ASSIGN_OR_RETURN(const auto other, MakeEngine(loaded, threads));
  const std::span<const int32_t> tokens(loaded.tokens);
  std::vector<std::vector<double>> parts(loaded.context.n_chunks() + 1);
  std::map<std::string, std::vector<double>> decode_s;
  for (int round = 0; round < kRounds; ++round) {
    engine.Free(0);
    for (size_t i = 0; i < parts.size(); ++i) {
      const Stopwatch watch;
      const size_t n = i + 1 < parts.size() ? kChunkTokens : std::dynamic_extent;
      RETURN_IF_ERROR(Compute(engine, tokens.subspan(i * kChunkTokens, n)));
      parts[i].push_back(watch.seconds());
    }
    for (const kvstore::Level level : {kvstore::Level::kLossless, kvstore::Level::kQ1}) {
      ASSIGN_OR_RETURN(const double seconds, DecodeSeconds(engine, *other, codec, level));
      decode_s[std::string(kvstore::codec::LevelName(level))].push_back(seconds);
    }
  }
  const auto median = [](std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
  };
  json costs = {{"rest_s", median(parts.back())}};
  parts.pop_back();
  for (const auto& part : parts) costs["text_s"].push_back(median(part));
  for (const auto& [level, seconds] : decode_s) costs["decode_s"][level] = median(seconds);
  return costs;
}

}  // namespace

absl::Status RunLoader(const LoadedContext& loaded, const std::string& holder_host,
                       const json& ports, uint32_t threads) {
  testing_support::IoThread io;
  ASSIGN_OR_RETURN(const auto worker, Worker::Start(loaded, io.io(), threads));
  ASSIGN_OR_RETURN(const auto engine, MakeEngine(loaded, threads));
  ASSIGN_OR_RETURN(const kvstore::codec::Codec codec, MakeCodec(loaded, *engine));
  ASSIGN_OR_RETURN(const kvstore::KvGeometry geometry, workers::GeometryOf(*engine));
  const PlainCodec plain_codec(engine->layout(), geometry);
  ASSIGN_OR_RETURN(const auto plain,
                   PlainClient::Connect(holder_host, ports["plain"], &plain_codec, engine.get()));
  FixedLoad fixed(io.io(), &codec, engine.get());
  Bare bare{loaded, ports, holder_host, engine.get(), plain.get(), &fixed, worker->ids()};
  std::cout << json({{"ready", true}}) << std::endl;
  for (std::string line; std::getline(std::cin, line);) {
    const json command = json::parse(line);
    const std::string way = command["way"];
    absl::StatusOr<json> answer = json::object();
    if (way == "settle") {
      AwaitQuiet(*worker);
    } else if (way == "costs") {
      answer = MeasureCosts(loaded, *engine, codec, threads);
    } else if (way == "recompute") {
      answer = worker->Run({.bypass = true}, absl::ZeroDuration());
    } else if (way == "adapter") {
      const std::string address = absl::StrCat(holder_host, ":", ports["all"].get<int>());
      answer = worker->Run({.holders = {{address, 0, loaded.context.n_chunks()}}},
                           absl::Seconds(command.value("objective_s", 0.0)));
    } else if (way == "together") {
      const std::string address = absl::StrCat(holder_host, ":", ports["lossless"].get<int>());
      ASSIGN_OR_RETURN((*answer)["seconds"],
                       fixed.LoadTogether(address, worker->ids(), command["n"].get<size_t>()));
    } else {
      answer = bare.Run(way);
    }
    RETURN_IF_ERROR(answer.status());
    std::cout << *answer << std::endl;
  }
  return absl::OkStatus();
}

}  // namespace tandem::bench
