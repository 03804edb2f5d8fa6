#include "tests/bench/kv-load/fixed_load.h"

#include <boost/asio/post.hpp>
#include <condition_variable>
#include <mutex>

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

absl::Status FixedLoad::Load(const std::string& address, const std::vector<kvstore::ChunkId>& ids) {
  struct Progress {
    std::mutex mutex;
    std::condition_variable wake;
    bool made = false;
  };
  // The load may outlive this call.
  const auto progress = std::make_shared<Progress>();
  const auto load = loader_->Start(
      {.context = std::make_shared<RequestContext>("fixed", kTenant, 0, absl::InfiniteFuture()),
       .ids = ids,
       .chunk_tokens = kChunkTokens,
       .floor = kvstore::Level::kQ1,
       .holders = {{address, 0, static_cast<uint32_t>(ids.size())}},
       .ready_by = absl::Now(),
       .on_progress = [progress] {
         std::lock_guard lock(progress->mutex);
         progress->made = true;
         progress->wake.notify_one();
       }});
  for (size_t i = 0; i < ids.size();) {
    const Next next = load->Decide(i, kNever);
    if (next == Next::kCompute) return absl::UnavailableError("a chunk is not there");
    if (next == Next::kReady) {
      const auto loaded = load->Take(i++);
      RETURN_IF_ERROR(
          engine_->Append(0, dynamic_cast<const workers::Engine::IncomingKv&>(*loaded.kv)));
      continue;
    }
    std::unique_lock lock(progress->mutex);
    progress->wake.wait(lock, [&] { return progress->made; });
    progress->made = false;
  }
  return absl::OkStatus();
}

}  // namespace tandem::bench
