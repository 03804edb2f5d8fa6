// The pulling end: fetches sequences' KV into sinks, over connections that it keeps for reuse.
#include <spdlog/spdlog.h>

#include <atomic>
#include <boost/asio/steady_timer.hpp>
#include <numeric>
#include <set>
#include <vector>

#include "base/status.h"
#include "kvstore/transfer/chunk_session.h"
#include "kvstore/transfer/frame_socket.h"
#include "kvstore/transfer/handoff_encoding.h"
#include "kvstore/transfer/peer_pool.h"
#include "kvstore/transfer/task_group.h"
#include "kvstore/transfer/transfer.h"
#include "kvstore/transfer/wire.h"

namespace tandem::kvstore {
namespace {

namespace asio = boost::asio;
using Result = HandoffClient::Result;

constexpr size_t kMaxRequestIdBytes = 1024;

/// One call of Pull, until its callback has run. Io thread only.
struct PullJob : PeerUse {
  RequestContextPtr context;
  std::string handoff_id;
  KvSink* sink = nullptr;
  HandoffClient::PullCallback done;
};
using JobPtr = std::shared_ptr<PullJob>;

/// What a client is besides its handle; its coroutines keep it alive. Members that say nothing
/// are the io thread's.
class Client : public std::enable_shared_from_this<Client> {
 public:
  Client(asio::io_context& io, HandoffClient::Options options)
      : io_(io),
        options_(std::move(options)),
        tasks_(std::make_shared<TaskGroup>(io)),
        peers_(std::make_shared<PeerPool>(
            io, PeerPool::Options{
                    .identity = options_.identity,
                    .connect_timeout = options_.connect_timeout,
                    .silence_timeout = options_.silence_timeout,
                    .max_idle_connections_per_peer = options_.max_idle_connections_per_peer})) {}

  // Any thread.
  void Pull(JobPtr job);
  size_t idle_connections() const { return peers_->idle_connections(); }
  void Stop();

 private:
  static asio::awaitable<void> Run(std::shared_ptr<Client> self, JobPtr job);
  /// On a connection kept from an earlier pull, or, when there is none or it proves stale, on a
  /// new one.
  asio::awaitable<absl::StatusOr<Result>> Fetch(JobPtr job);
  asio::awaitable<absl::StatusOr<Result>> Transfer(PullJob& job);
  asio::awaitable<absl::Status> ReceiveChunk(PullJob& job, const Frame& frame,
                                             wire::ChunkSequence& positions, HandoffStats* stats);
  /// Reads a body, and takes note of how fast it came.
  asio::awaitable<absl::Status> ReadBody(PullJob& job, std::vector<std::span<uint8_t>> spans);
  asio::awaitable<absl::Status> ReceiveEncoded(PullJob& job, const Frame& frame,
                                               const v1::ChunkHeader& chunk);
  void WatchJob(const JobPtr& job, asio::steady_timer& deadline);
  void Shutdown();

  asio::io_context& io_;
  const HandoffClient::Options options_;
  const std::shared_ptr<TaskGroup> tasks_;
  const std::shared_ptr<PeerPool> peers_;
  std::atomic<bool> stopped_ = false;
  std::set<JobPtr> jobs_;
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
  absl::Status status = result.status();
  if (status.ok()) self->peers_->Park(*job);
  std::exchange(job->done, nullptr)(std::move(result));
  if (!status.ok()) co_await self->peers_->Abandon(*job, std::move(status));
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
  if (peers_->TakeIdle(*job)) {
    const SocketPtr kept = job->peer;
    const uint64_t before = kept->bytes_read();
    absl::StatusOr<Result> result = co_await Transfer(*job);
    const bool stale = !result.ok() && kept->lost() && kept->bytes_read() == before;
    if (!stale || !job->stopped.ok()) co_return result;
  }
  CO_RETURN_IF_ERROR(co_await peers_->Connect(*job));
  co_return co_await Transfer(*job);
}

asio::awaitable<absl::StatusOr<Result>> Client::Transfer(PullJob& job) {
  FrameSocket& peer = *job.peer;
  const absl::Time began = absl::Now();
  v1::Pull pull;
  pull.set_handoff_id(job.handoff_id);
  pull.set_request_id(job.context->request_id().substr(0, kMaxRequestIdBytes));
  pull.set_attempt(job.context->attempt());
  if (options_.coder != nullptr) {
    pull.set_encodings(options_.coder->encodings());
    pull.set_profile_id(options_.coder->profile_id());
  }
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
      co_return absl::DataLossError(wire::UnexpectedFrame(frame.header.type, "during a pull"));
    }
    CO_RETURN_IF_ERROR(co_await ReceiveChunk(job, frame, positions, &result.stats));
    ++result.stats.chunks;
    result.stats.bytes += frame.header.body_bytes;
  }
  result.stats.duration = absl::Now() - began;
  if (options_.links != nullptr) {
    options_.links->OfferRtt(job.address, peer.send_state().rtt_s, absl::Now());
  }
  CO_RETURN_IF_ERROR(
      co_await peer.WriteFrame(v1::FRAME_TYPE_DONE, v1::Done(), options_.silence_timeout));
  co_return result;
}

asio::awaitable<absl::Status> Client::ReceiveChunk(PullJob& job, const Frame& frame,
                                                   wire::ChunkSequence& positions,
                                                   HandoffStats* stats) {
  v1::ChunkHeader chunk;
  CO_RETURN_IF_ERROR(wire::DecodeMeta(frame.meta, chunk));
  CO_RETURN_IF_ERROR(positions.Add(chunk.first_position(), chunk.n_tokens()));
  ++stats->encodings[std::min<size_t>(chunk.encoding(), kEncodings - 1)];
  if (chunk.encoding() != 0) co_return co_await ReceiveEncoded(job, frame, chunk);
  auto spans = job.sink->Prepare(chunk.first_position(), chunk.n_tokens(), frame.header.body_bytes);
  if (!spans.ok()) co_return absl::DataLossError(spans.status().message());
  const uint64_t room =
      std::accumulate(spans->begin(), spans->end(), uint64_t{0},
                      [](uint64_t sum, const auto& span) { return sum + span.size(); });
  if (room != frame.header.body_bytes) {
    co_return absl::InternalError(
        absl::StrCat("the sink gives ", room, " bytes for a chunk of ", frame.header.body_bytes));
  }
  CO_RETURN_IF_ERROR(co_await ReadBody(job, *std::move(spans)));
  job.sink->Commit();
  co_return absl::OkStatus();
}

asio::awaitable<absl::Status> Client::ReadBody(PullJob& job,
                                               std::vector<std::span<uint8_t>> spans) {
  job.peer->StartTiming();
  CO_RETURN_IF_ERROR(co_await job.peer->ReadBody(std::move(spans), options_.silence_timeout));
  const Timed tail = job.peer->StopTiming();
  if (options_.links != nullptr && LinkTable::PastStart(tail, job.peer->send_state().rtt_s)) {
    options_.links->AddPart(job.address, tail, absl::Now());
  }
  co_return absl::OkStatus();
}

void Client::Stop() {
  if (stopped_.exchange(true)) return;
  tasks_->Post([self = shared_from_this()] { self->Shutdown(); });
  tasks_->Drain();
}

void Client::Shutdown() {
  for (const JobPtr& job : jobs_) job->Stop(absl::UnavailableError("the worker is stopping"));
  peers_->Shutdown();
}

asio::awaitable<absl::Status> Client::ReceiveEncoded(PullJob& job, const Frame& frame,
                                                     const v1::ChunkHeader& chunk) {
  if (options_.coder == nullptr || chunk.encoding() >= kEncodings ||
      ((options_.coder->encodings() >> chunk.encoding()) & 1) == 0 ||
      frame.header.body_bytes > kMaxChunkBytes) {
    co_return absl::DataLossError(absl::StrCat("a chunk of ", frame.header.body_bytes,
                                               " bytes in encoding ", chunk.encoding(),
                                               ", which this side did not ask for"));
  }
  std::vector<uint8_t> bytes(frame.header.body_bytes);
  std::vector<std::span<uint8_t>> body(1, std::span<uint8_t>(bytes));
  CO_RETURN_IF_ERROR(co_await ReadBody(job, std::move(body)));
  auto planes = job.sink->Prepare(chunk.first_position(), chunk.n_tokens(),
                                  options_.raw_bytes_per_token * chunk.n_tokens());
  if (!planes.ok()) co_return absl::DataLossError(planes.status().message());
  CO_RETURN_IF_ERROR(co_await Decoded(*options_.coder, std::move(bytes), chunk.first_position(),
                                      chunk.n_tokens(), *std::move(planes)));
  job.sink->Commit();
  co_return absl::OkStatus();
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
