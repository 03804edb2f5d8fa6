#include "kvstore/loading/context_loader.h"

#include <spdlog/spdlog.h>

#include "base/status.h"
#include "kvstore/loading/loader.h"

namespace tandem::kvstore {
namespace {

namespace asio = boost::asio;

/// Bytes that may wait to be copied to other nodes.
constexpr uint64_t kMaxGiveBytes = uint64_t{128} << 20;

class ContextLoaderImpl final : public ContextLoader {
 public:
  explicit ContextLoaderImpl(std::shared_ptr<Loader> loader) : loader_(std::move(loader)) {}
  ~ContextLoaderImpl() override { loader_->Stop(); }

  std::shared_ptr<ContextLoad> Start(LoadRequest request) override {
    auto load = std::make_shared<Load>(loader_, std::move(request));
    load->Begin();
    return load;
  }
  void Give(const std::string& address, StoredChunkPtr chunk) override {
    loader_->Give(address, std::move(chunk));
  }
  void Stop() override { loader_->Stop(); }

 private:
  const std::shared_ptr<Loader> loader_;
};

}  // namespace

std::unique_ptr<ContextLoader> ContextLoader::Create(asio::io_context& io, Store* store,
                                                     const codec::Codec* codec, Options options) {
  return std::make_unique<ContextLoaderImpl>(
      std::make_shared<Loader>(io, store, codec, std::move(options)));
}

Loader::Loader(asio::io_context& io, Store* store, const codec::Codec* codec,
               ContextLoader::Options options)
    : io_(io),
      store_(store),
      codec_(codec),
      options_(std::move(options)),
      speeds_(options_.initial_bytes_per_s),
      tasks_(std::make_shared<TaskGroup>(io)),
      peers_(std::make_shared<PeerPool>(
          io,
          PeerPool::Options{.chunks_only = true, .connect_timeout = options_.connect_timeout})) {}

void Loader::List(ChunkSession& session) {
  sessions_.insert(&session);
  if (stopped_) session.Stop(absl::UnavailableError("the worker is stopping"));
}

void Loader::Give(const std::string& address, StoredChunkPtr chunk) {
  const uint64_t bytes = chunk->bytes().size();
  if (stopped_ || giving_bytes_ + bytes > kMaxGiveBytes) return;
  giving_bytes_ += bytes;
  tasks_->Post([self = shared_from_this(), address, chunk = std::move(chunk)] {
    const auto [queue, first] = self->to_give_.try_emplace(address);
    queue->second.push_back(chunk);
    if (first) self->tasks_->Spawn(GiveAll(self, address));
  });
}

asio::awaitable<void> Loader::GiveAll(std::shared_ptr<Loader> self, std::string address) {
  ChunkSession session(self->peers_, address);
  self->List(session);
  absl::Status status;
  while (!self->to_give_[address].empty()) {
    const StoredChunkPtr chunk = self->to_give_[address].front();
    self->to_give_[address].pop_front();
    // After a failure the rest of what waits is dropped: a peer that is away must not pile it up.
    if (status.ok()) status = co_await session.Give(*chunk);
    self->giving_bytes_ -= chunk->bytes().size();
  }
  self->to_give_.erase(address);
  self->Unlist(session);
  if (!status.ok()) {
    spdlog::warn("chunks not copied store={} error=\"{}\"", address, status.ToString());
    self->observer().PeerFailed(status);
  }
  co_await session.End(status);
}

void Loader::Stop() {
  if (stopped_.exchange(true)) return;
  tasks_->Post([self = shared_from_this()] {
    for (ChunkSession* session : self->sessions_) {
      session->Stop(absl::UnavailableError("the worker is stopping"));
    }
    self->peers_->Shutdown();
  });
  tasks_->Drain();
  std::unique_lock lock(mutex_);
  no_answers_due_.wait(lock, [this] { return answers_due_ == 0; });
}

void Loader::StoreAsked() {
  std::lock_guard lock(mutex_);
  ++answers_due_;
}

void Loader::StoreAnswered() {
  std::lock_guard lock(mutex_);
  if (--answers_due_ == 0) no_answers_due_.notify_all();
}

}  // namespace tandem::kvstore
