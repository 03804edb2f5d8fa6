// The pulling end: fetches sequences' KV into sinks, over connections that it keeps for reuse.
#include <spdlog/spdlog.h>

#include <atomic>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <map>
#include <numeric>
#include <set>
#include <vector>

#include "base/status.h"
#include "kvstore/transfer/address.h"
#include "kvstore/transfer/frame_socket.h"
#include "kvstore/transfer/task_group.h"
#include "kvstore/transfer/transfer.h"
#include "kvstore/transfer/wire.h"

namespace tandem::kvstore {
namespace {

namespace asio = boost::asio;
using Tcp = asio::ip::tcp;
using SocketPtr = std::shared_ptr<FrameSocket>;
using Result = HandoffClient::Result;

constexpr size_t kMaxRequestIdBytes = 1024;

/// One call of Pull, until its callback has run. Io thread only.
struct PullJob {
  RequestContextPtr context;
  std::string address;
  std::string handoff_id;
  KvSink* sink = nullptr;
  HandoffClient::PullCallback done;

  /// Why it must end; OK while it runs.
  absl::Status stopped;
  SocketPtr peer;
  std::shared_ptr<asio::steady_timer> resolving;

  void Stop(absl::Status reason) {
    if (!stopped.ok() || reason.ok()) return;
    stopped = std::move(reason);
    if (peer) peer->Interrupt(stopped);
    if (resolving) resolving->cancel();
  }
};
using JobPtr = std::shared_ptr<PullJob>;

/// What a client is besides its handle; its coroutines keep it alive. Members that say nothing
/// are the io thread's.
class Client : public std::enable_shared_from_this<Client> {
 public:
  Client(asio::io_context& io, HandoffClient::Options options)
      : io_(io),
        options_(std::move(options)),
        hello_(wire::EncodeFrame(v1::FRAME_TYPE_HELLO, wire::ToHello(options_.identity))),
        tasks_(std::make_shared<TaskGroup>(io)) {}

  // Any thread.
  void Pull(JobPtr job);
  size_t idle_connections() const { return n_idle_; }
  void Stop();

 private:
  static asio::awaitable<void> Run(std::shared_ptr<Client> self, JobPtr job);
  /// On a connection kept from an earlier pull, or, when there is none or it proves stale, on a
  /// new one.
  asio::awaitable<absl::StatusOr<Result>> Fetch(JobPtr job);
  asio::awaitable<absl::Status> Connect(JobPtr job);
  asio::awaitable<absl::Status> Handshake(FrameSocket& peer);
  asio::awaitable<absl::StatusOr<Result>> Transfer(PullJob& job);
  asio::awaitable<absl::Status> ReceiveChunk(PullJob& job, const Frame& frame,
                                             wire::ChunkSequence& positions);
  asio::awaitable<absl::StatusOr<std::vector<Tcp::endpoint>>> Resolve(JobPtr job);
  void WatchJob(const JobPtr& job, asio::steady_timer& deadline);

  void Use(const JobPtr& job, SocketPtr peer);
  void Park(const std::string& address, SocketPtr peer);
  SocketPtr TakeIdle(const std::string& address);
  void Forget(const std::string& address, const SocketPtr& peer);
  void Shutdown();

  asio::io_context& io_;
  const HandoffClient::Options options_;
  const absl::StatusOr<std::vector<uint8_t>> hello_;
  const std::shared_ptr<TaskGroup> tasks_;
  std::atomic<bool> stopped_ = false;
  std::set<JobPtr> jobs_;
  /// Connections in use, those saying goodbye included.
  std::set<SocketPtr> busy_;
  std::map<std::string, std::vector<SocketPtr>> idle_;
  std::atomic<size_t> n_idle_ = 0;
};

void Client::Pull(JobPtr job) {
  if (tasks_->Spawn(Run(shared_from_this(), job))) return;
  // Too late, but the callback's promise holds.
  asio::post(io_, [job] { job->done(absl::UnavailableError("the worker is stopping")); });
}

asio::awaitable<void> Client::Run(std::shared_ptr<Client> self, JobPtr job) {
  asio::steady_timer deadline(self->io_);
  self->jobs_.insert(job);
  self->WatchJob(job, deadline);
  absl::StatusOr<Result> result = absl::UnknownError("");
  try {
    result = co_await self->Fetch(job);
  } catch (const std::bad_alloc&) {
    result = absl::ResourceExhaustedError("no memory for the KV");
  } catch (const std::exception& error) {
    result = absl::InternalError(error.what());
  }
  deadline.cancel();
  self->jobs_.erase(job);
  const SocketPtr peer = std::exchange(job->peer, nullptr);
  absl::Status status = result.status();
  if (status.ok()) self->Park(job->address, peer);
  std::exchange(job->done, nullptr)(std::move(result));
  if (peer != nullptr && !status.ok()) co_await peer->Abort(std::move(status));
  self->busy_.erase(peer);
}

void Client::WatchJob(const JobPtr& job, asio::steady_timer& deadline) {
  if (stopped_) job->Stop(absl::UnavailableError("the worker is stopping"));
  // Weak: the request outlives its pull.
  const std::weak_ptr<PullJob> weak = job;
  job->context->OnCancel([weak, tasks = tasks_] {
    auto job = weak.lock();
    if (job == nullptr) return;
    tasks->Post([job] { job->Stop(job->context->Check()); });
  });
  if (job->context->deadline() == absl::InfiniteFuture()) return;
  deadline.expires_after(absl::ToChronoNanoseconds(job->context->deadline() - absl::Now()));
  deadline.async_wait([weak](const boost::system::error_code& error) {
    auto job = weak.lock();
    if (error || job == nullptr) return;
    job->Stop(absl::DeadlineExceededError("the request's deadline has passed"));
  });
}

asio::awaitable<absl::StatusOr<Result>> Client::Fetch(JobPtr job) {
  if (SocketPtr kept = TakeIdle(job->address); kept != nullptr) {
    const uint64_t before = kept->bytes_read();
    Use(job, kept);
    absl::StatusOr<Result> result = co_await Transfer(*job);
    const bool stale = !result.ok() && kept->lost() && kept->bytes_read() == before;
    if (!stale || !job->stopped.ok()) co_return result;
    kept->Close();
    busy_.erase(kept);
    job->peer = nullptr;
  }
  CO_RETURN_IF_ERROR(co_await Connect(job));
  co_return co_await Transfer(*job);
}

void Client::Use(const JobPtr& job, SocketPtr peer) {
  busy_.insert(peer);
  job->peer = std::move(peer);
  if (!job->stopped.ok()) job->peer->Interrupt(job->stopped);
}

asio::awaitable<absl::Status> Client::Connect(JobPtr job) {
  CO_ASSIGN_OR_RETURN(const std::vector<Tcp::endpoint> endpoints, co_await Resolve(job));
  Use(job, std::make_shared<FrameSocket>(io_));
  CO_RETURN_IF_ERROR(
      co_await job->peer->Connect(endpoints, options_.connect_timeout, options_.silence_timeout));
  co_return co_await Handshake(*job->peer);
}

// getaddrinfo may take much longer than we wait for it, and nothing stops it. So its outcome goes
// to memory of its own, and waiting for it is waiting for a timer that it cancels.
asio::awaitable<absl::StatusOr<std::vector<Tcp::endpoint>>> Client::Resolve(JobPtr job) {
  if (!job->stopped.ok()) co_return job->stopped;
  CO_ASSIGN_OR_RETURN(const Address address, ParseAddress(job->address));
  boost::system::error_code not_numeric;
  const auto numeric = asio::ip::make_address(address.host, not_numeric);
  if (!not_numeric) {
    co_return std::vector<Tcp::endpoint>(1, Tcp::endpoint(numeric, address.port));
  }
  struct Lookup {
    explicit Lookup(asio::io_context& io) : resolver(io) {}
    Tcp::resolver resolver;
    std::vector<Tcp::endpoint> endpoints;
    std::string error = "no answer in time";
  };
  auto lookup = std::make_shared<Lookup>(io_);
  job->resolving = std::make_shared<asio::steady_timer>(io_);
  job->resolving->expires_after(absl::ToChronoNanoseconds(options_.connect_timeout));
  lookup->resolver.async_resolve(
      address.host, std::to_string(address.port),
      [lookup, timer = job->resolving](const boost::system::error_code& error,
                                       const Tcp::resolver::results_type& found) {
        lookup->error = error ? error.message() : "";
        for (const auto& entry : found) lookup->endpoints.push_back(entry.endpoint());
        timer->cancel();
      });
  co_await job->resolving->async_wait(asio::as_tuple(asio::use_awaitable));
  job->resolving = nullptr;
  if (!job->stopped.ok()) co_return job->stopped;
  if (!lookup->endpoints.empty()) co_return lookup->endpoints;
  co_return absl::UnavailableError(
      absl::StrCat("cannot resolve ", job->address, ": ", lookup->error));
}

asio::awaitable<absl::Status> Client::Handshake(FrameSocket& peer) {
  CO_RETURN_IF_ERROR(hello_.status());
  CO_RETURN_IF_ERROR(co_await peer.Write(*hello_, {}, options_.connect_timeout));
  const absl::StatusOr<Frame> frame = co_await peer.ReadFrame(options_.connect_timeout);
  if (!frame.ok()) co_return Annotate(frame.status(), peer.peer());
  if (frame->header.type != v1::FRAME_TYPE_HELLO) {
    co_return absl::FailedPreconditionError(
        absl::StrCat(peer.peer(), " answers HELLO with ", v1::FrameType_Name(frame->header.type)));
  }
  v1::Hello hello;
  CO_RETURN_IF_ERROR(wire::DecodeMeta(frame->meta, hello));
  co_return CompareIdentity(options_.identity, wire::FromHello(hello));
}

asio::awaitable<absl::StatusOr<Result>> Client::Transfer(PullJob& job) {
  FrameSocket& peer = *job.peer;
  const absl::Time began = absl::Now();
  v1::Pull pull;
  pull.set_handoff_id(job.handoff_id);
  pull.set_request_id(job.context->request_id().substr(0, kMaxRequestIdBytes));
  pull.set_attempt(job.context->attempt());
  CO_RETURN_IF_ERROR(co_await peer.WriteFrame(v1::FRAME_TYPE_PULL, pull, options_.silence_timeout));
  Result result;
  wire::ChunkSequence positions;
  for (;;) {
    CO_ASSIGN_OR_RETURN(const Frame frame, co_await peer.ReadFrame(options_.silence_timeout));
    if (frame.header.type == v1::FRAME_TYPE_WAIT) continue;
    if (frame.header.type == v1::FRAME_TYPE_END) {
      v1::End end;
      CO_RETURN_IF_ERROR(wire::DecodeMeta(frame.meta, end));
      CO_RETURN_IF_ERROR(positions.End(end.n_tokens()));
      result.end = {.n_tokens = end.n_tokens(), .first_token = end.first_token()};
      break;
    }
    if (frame.header.type != v1::FRAME_TYPE_CHUNK) {
      co_return absl::DataLossError(absl::StrCat(
          "unexpected frame ", v1::FrameType_Name(frame.header.type), " during a pull"));
    }
    CO_RETURN_IF_ERROR(co_await ReceiveChunk(job, frame, positions));
    ++result.stats.chunks;
    result.stats.bytes += frame.header.body_bytes;
  }
  result.stats.duration = absl::Now() - began;
  CO_RETURN_IF_ERROR(
      co_await peer.WriteFrame(v1::FRAME_TYPE_DONE, v1::Done(), options_.silence_timeout));
  co_return result;
}

asio::awaitable<absl::Status> Client::ReceiveChunk(PullJob& job, const Frame& frame,
                                                   wire::ChunkSequence& positions) {
  v1::ChunkHeader chunk;
  CO_RETURN_IF_ERROR(wire::DecodeMeta(frame.meta, chunk));
  CO_RETURN_IF_ERROR(positions.Add(chunk.first_position(), chunk.n_tokens()));
  auto spans = job.sink->Prepare(chunk.first_position(), chunk.n_tokens(), frame.header.body_bytes);
  if (!spans.ok()) co_return absl::DataLossError(spans.status().message());
  const uint64_t room =
      std::accumulate(spans->begin(), spans->end(), uint64_t{0},
                      [](uint64_t sum, const auto& span) { return sum + span.size(); });
  if (room != frame.header.body_bytes) {
    co_return absl::InternalError(
        absl::StrCat("the sink gives ", room, " bytes for a chunk of ", frame.header.body_bytes));
  }
  CO_RETURN_IF_ERROR(co_await job.peer->ReadBody(*std::move(spans), options_.silence_timeout));
  job.sink->Commit();
  co_return absl::OkStatus();
}

void Client::Park(const std::string& address, SocketPtr peer) {
  busy_.erase(peer);
  std::vector<SocketPtr>& idle = idle_[address];
  if (stopped_ || idle.size() >= options_.max_idle_connections_per_peer) {
    peer->Close();
    if (idle.empty()) idle_.erase(address);
    return;
  }
  idle.push_back(peer);
  ++n_idle_;
  // An idle server says nothing: when it does, or closes, the connection is of no use.
  peer->WatchIdle([weak_self = weak_from_this(), weak_peer = std::weak_ptr(peer), address] {
    auto self = weak_self.lock();
    auto peer = weak_peer.lock();
    if (self != nullptr && peer != nullptr) self->Forget(address, peer);
  });
}

SocketPtr Client::TakeIdle(const std::string& address) {
  auto found = idle_.find(address);
  if (found == idle_.end()) return nullptr;
  SocketPtr peer = std::move(found->second.back());
  found->second.pop_back();
  --n_idle_;
  if (found->second.empty()) idle_.erase(found);
  peer->StopWatching();
  return peer;
}

void Client::Forget(const std::string& address, const SocketPtr& peer) {
  auto found = idle_.find(address);
  if (found == idle_.end() || std::erase(found->second, peer) == 0) return;
  --n_idle_;
  if (found->second.empty()) idle_.erase(found);
  peer->Close();
}

void Client::Stop() {
  if (stopped_.exchange(true)) return;
  tasks_->Post([self = shared_from_this()] { self->Shutdown(); });
  tasks_->Drain();
}

void Client::Shutdown() {
  for (const JobPtr& job : jobs_) job->Stop(absl::UnavailableError("the worker is stopping"));
  for (const SocketPtr& peer : busy_) peer->Close();
  for (const auto& [unused, peers] : idle_) {
    for (const SocketPtr& peer : peers) peer->Close();
  }
  idle_.clear();
  n_idle_ = 0;
}

class HandoffClientImpl final : public HandoffClient {
 public:
  explicit HandoffClientImpl(std::shared_ptr<Client> client) : client_(std::move(client)) {}
  ~HandoffClientImpl() override { client_->Stop(); }

  void Pull(RequestContextPtr context, std::string address, std::string handoff_id, KvSink* sink,
            PullCallback done) override {
    auto job = std::make_shared<PullJob>();
    job->context = std::move(context);
    job->address = std::move(address);
    job->handoff_id = std::move(handoff_id);
    job->sink = sink;
    job->done = std::move(done);
    client_->Pull(std::move(job));
  }
  size_t idle_connections() const override { return client_->idle_connections(); }
  void Stop() override { client_->Stop(); }

 private:
  const std::shared_ptr<Client> client_;
};

}  // namespace

std::unique_ptr<HandoffClient> HandoffClient::Create(asio::io_context& io, Options options) {
  return std::make_unique<HandoffClientImpl>(std::make_shared<Client>(io, std::move(options)));
}

}  // namespace tandem::kvstore
