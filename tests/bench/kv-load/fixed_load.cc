#include "tests/bench/kv-load/fixed_load.h"

#include <boost/asio/post.hpp>
#include <condition_variable>
#include <mutex>

#include "base/clock.h"
#include "base/status.h"

namespace tandem::bench {
namespace {

using Next = kvstore::ContextLoad::Next;

/// Seconds to compute a chunk, as the loader is told: so many that it never suggests to.
constexpr double kNever = 1e9;

}  // namespace

struct FixedLoad::Silent final : kvstore::LoadObserver {
  void ChunkLoaded(kvstore::Origin, kvstore::Level, uint64_t) override {}
  void TextChosen() override {}
  void ChunkRefused(kvstore::Origin, const absl::Status&) override {}
  void PeerFailed(const absl::Status&) override {}
  void LinkMeasured(const std::string&, double) override {}
};

FixedLoad::FixedLoad(boost::asio::io_context& io, const kvstore::codec::Codec* codec,
                     workers::Engine* engine)
    : engine_(engine), observer_(std::make_unique<Silent>()), codec_thread_(1) {
  loader_ = kvstore::ContextLoader::Create(
      io, nullptr, codec,
      {.new_sink = [engine](uint32_t first, uint32_t n) { return engine->NewSink(n, first); },
       .run =
           [this](std::function<void()> job) { boost::asio::post(codec_thread_, std::move(job)); },
       .observer = observer_.get()});
}

FixedLoad::~FixedLoad() {
  loader_->Stop();
  codec_thread_.join();
}

/// Loads may outlive the call that waits for them.
struct FixedLoad::Progress {
  void Made() {
    std::lock_guard lock(mutex);
    made = true;
    wake.notify_one();
  }
  void Await() {
    std::unique_lock lock(mutex);
    wake.wait(lock, [&] { return made; });
    made = false;
  }

  std::mutex mutex;
  std::condition_variable wake;
  bool made = false;
};

std::shared_ptr<kvstore::ContextLoad> FixedLoad::Start(const std::string& address,
                                                       const std::vector<kvstore::ChunkId>& ids,
                                                       std::shared_ptr<Progress> progress) {
  return loader_->Start(
      {.context = std::make_shared<RequestContext>("fixed", kTenant, 0, absl::InfiniteFuture()),
       .ids = ids,
       .chunk_tokens = kChunkTokens,
       .floor = kvstore::Level::kQ1,
       .holders = {{address, 0, static_cast<uint32_t>(ids.size())}},
       .ready_by = absl::Now(),
       .on_progress = [progress = std::move(progress)] { progress->Made(); }});
}

absl::Status FixedLoad::Load(const std::string& address, const std::vector<kvstore::ChunkId>& ids) {
  const auto progress = std::make_shared<Progress>();
  const auto load = Start(address, ids, progress);
  for (size_t i = 0; i < ids.size();) {
    const Next next = load->Decide(i, kNever);
    if (next == Next::kCompute) return absl::UnavailableError("a chunk is not there");
    if (next == Next::kReady) {
      const auto loaded = load->Take(i++);
      RETURN_IF_ERROR(
          engine_->Append(0, dynamic_cast<const workers::Engine::IncomingKv&>(*loaded.kv)));
      continue;
    }
    progress->Await();
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<double>> FixedLoad::LoadTogether(
    const std::string& address, const std::vector<kvstore::ChunkId>& ids, size_t n) {
  const auto progress = std::make_shared<Progress>();
  const Stopwatch since_begin;
  std::vector<std::shared_ptr<kvstore::ContextLoad>> loads;
  for (size_t i = 0; i < n; ++i) loads.push_back(Start(address, ids, progress));
  std::vector<size_t> taken(n);
  std::vector<double> seconds(n);
  for (size_t running = n; running > 0; progress->Await()) {
    for (size_t i = 0; i < n; ++i) {
      while (taken[i] < ids.size()) {
        const Next next = loads[i]->Decide(taken[i], kNever);
        if (next == Next::kCompute) return absl::UnavailableError("a chunk is not there");
        if (next == Next::kWait) break;
        loads[i]->Take(taken[i]++);
        if (taken[i] < ids.size()) continue;
        seconds[i] = since_begin.seconds();
        --running;
      }
    }
    if (running == 0) break;
  }
  return seconds;
}

}  // namespace tandem::bench
