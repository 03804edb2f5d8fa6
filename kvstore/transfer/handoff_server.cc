// The serving end: accepts pullers and sends each the KV that it asks for, chunk by chunk.
#include <spdlog/spdlog.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <set>
#include <unordered_map>

#include "base/status.h"
#include "kvstore/transfer/address.h"
#include "kvstore/transfer/chunk_session.h"
#include "kvstore/transfer/frame_socket.h"
#include "kvstore/transfer/handoff_encoding.h"
#include "kvstore/transfer/handoff_id.h"
#include "kvstore/transfer/link_prober.h"
#include "kvstore/transfer/publication.h"
#include "kvstore/transfer/task_group.h"
#include "kvstore/transfer/transfer.h"
#include "kvstore/transfer/wire.h"

namespace tandem::kvstore {
namespace {

namespace asio = boost::asio;
using Tcp = asio::ip::tcp;

/// A waiting puller hears from us at least every second; twice that often leaves it no doubt.
constexpr absl::Duration kWaitInterval = absl::Milliseconds(500);

/// What a server is besides its handle; its coroutines keep it alive. Members that say nothing
/// are the io thread's.
class Server : public std::enable_shared_from_this<Server> {
 public:
  Server(asio::io_context& io, HandoffServer::Options options, std::vector<uint8_t> hello,
         Tcp::acceptor acceptor)
      : io_(io),
        options_(std::move(options)),
        hello_(std::move(hello)),
        port_(acceptor.local_endpoint().port()),
        acceptor_(std::move(acceptor)),
        tasks_(std::make_shared<TaskGroup>(io)),
        probe_budget_(options_.probe_share, absl::Now()) {}

  // Any thread.
  void Start() { tasks_->Spawn(Accept(shared_from_this())); }
  void Stop();
  absl::StatusOr<std::shared_ptr<Publication>> Publish(std::string handoff_id,
                                                       RequestContextPtr context, HandoffPlan plan,
                                                       HandoffServer::ReleaseCallback on_released);
  uint16_t port() const { return port_; }
  size_t publications() const;
  uint64_t held_bytes() const { return *held_bytes_; }
  size_t connections() const { return n_connections_; }

 private:
  using SocketPtr = std::shared_ptr<FrameSocket>;
  using OfferPtr = std::shared_ptr<OfferedKv>;

  static asio::awaitable<void> Accept(std::shared_ptr<Server> self);
  void Welcome(Tcp::socket socket);
  static asio::awaitable<void> Session(std::shared_ptr<Server> self, SocketPtr peer);
  /// One connection from its handshake on. `pulled` is what it is sending, for the caller to
  /// release if this fails.
  asio::awaitable<absl::Status> Serve(FrameSocket& peer, OfferPtr* pulled);
  asio::awaitable<absl::Status> Handshake(FrameSocket& peer, bool* chunks_only);
  asio::awaitable<absl::Status> ServePull(FrameSocket& peer, const Frame& request,
                                          OfferPtr* pulled);
  /// Sends all of it and waits for the other side's word; returns only with an error.
  asio::awaitable<absl::Status> Send(FrameSocket& peer, OfferedKv& offer, const v1::Pull& pull,
                                     bool* end_sent);
  /// Sends one chunk in the encoding that HandoffPace chooses.
  asio::awaitable<absl::Status> SendChunk(FrameSocket& peer, OfferedKv& offer,
                                          const ReadyChunk& chunk, uint32_t encodings);
  absl::StatusOr<OfferPtr> Find(const std::string& handoff_id);
  void Shutdown();

  asio::io_context& io_;
  const HandoffServer::Options options_;
  const std::vector<uint8_t> hello_;
  const uint16_t port_;
  Tcp::acceptor acceptor_;
  const std::shared_ptr<TaskGroup> tasks_;
  const std::shared_ptr<std::atomic<uint64_t>> held_bytes_ =
      std::make_shared<std::atomic<uint64_t>>(0);
  ProbeBudget probe_budget_;
  std::set<SocketPtr> connections_;
  std::atomic<size_t> n_connections_ = 0;

  mutable std::mutex mutex_;
  std::unordered_map<std::string, OfferPtr> offers_;  // guarded by mutex_
  bool stopped_ = false;                              // guarded by mutex_
};

absl::StatusOr<std::shared_ptr<Publication>> Server::Publish(
    std::string handoff_id, RequestContextPtr context, HandoffPlan plan,
    HandoffServer::ReleaseCallback on_released) {
  if (handoff_id.size() != kHandoffIdBytes) {
    return absl::InvalidArgumentError(absl::StrCat("handoff id of ", handoff_id.size(),
                                                   " bytes; it must have ", kHandoffIdBytes));
  }
  auto offer =
      std::make_shared<OfferedKv>(io_, options_.lease, std::move(context), plan,
                                  OfferedKv::Hooks{.tasks = tasks_,
                                                   .held_bytes = held_bytes_,
                                                   .forget =
                                                       [weak = weak_from_this(), handoff_id] {
                                                         auto self = weak.lock();
                                                         if (self == nullptr) return;
                                                         std::lock_guard lock(self->mutex_);
                                                         self->offers_.erase(handoff_id);
                                                       },
                                                   .on_released = std::move(on_released)});
  {
    std::lock_guard lock(mutex_);
    if (stopped_) return absl::UnavailableError("the worker is stopping");
    if (!offers_.try_emplace(std::move(handoff_id), offer).second) {
      return absl::AlreadyExistsError("KV with this handoff id is on offer already");
    }
  }
  auto handle = offer->MakeHandle();
  offer->ObeyCancellation();
  return handle;
}

absl::StatusOr<Server::OfferPtr> Server::Find(const std::string& handoff_id) {
  std::lock_guard lock(mutex_);
  if (stopped_) return absl::UnavailableError("the worker is stopping");
  auto found = offers_.find(handoff_id);
  if (found != offers_.end()) return found->second;
  return absl::NotFoundError("the worker does not offer KV under this handoff id (any more)");
}

size_t Server::publications() const {
  std::lock_guard lock(mutex_);
  return offers_.size();
}

asio::awaitable<void> Server::Accept(std::shared_ptr<Server> self) {
  asio::steady_timer pause(self->io_);
  while (self->acceptor_.is_open()) {
    auto [error, socket] =
        co_await self->acceptor_.async_accept(asio::as_tuple(asio::use_awaitable));
    if (!error) {
      self->Welcome(std::move(socket));
    } else if (self->acceptor_.is_open()) {
      // Typically the process is out of file descriptors: retrying at once would spin.
      spdlog::warn("data plane cannot accept error=\"{}\"", error.message());
      pause.expires_after(std::chrono::milliseconds(100));
      co_await pause.async_wait(asio::as_tuple(asio::use_awaitable));
    }
  }
}

void Server::Welcome(Tcp::socket socket) {
  if (connections_.size() >= options_.max_connections) {
    const auto refusal = wire::EncodeFrame(
        v1::FRAME_TYPE_ABORT, wire::ToAbort(absl::ResourceExhaustedError(
                                  absl::StrCat("the worker's data plane has its limit of ",
                                               options_.max_connections, " connections"))));
    boost::system::error_code ignored;
    // A new socket's buffer takes this much at once; whoever floods us is not waited for.
    socket.non_blocking(true, ignored);
    if (refusal.ok()) socket.write_some(asio::buffer(*refusal), ignored);
    spdlog::warn("data plane connection refused limit={}", options_.max_connections);
    return;
  }
  auto peer = std::make_shared<FrameSocket>(std::move(socket), options_.lease);
  connections_.insert(peer);
  n_connections_ = connections_.size();
  tasks_->Spawn(Session(shared_from_this(), std::move(peer)));
}

asio::awaitable<void> Server::Session(std::shared_ptr<Server> self, SocketPtr peer) {
  OfferPtr pulled;
  absl::Status status;
  try {
    status = co_await self->Serve(*peer, &pulled);
  } catch (const std::exception& error) {
    status = absl::InternalError(error.what());
  }
  if (pulled) pulled->Release(status);
  // A peer that leaves is no news.
  if (!peer->lost() || !absl::IsUnavailable(status)) {
    spdlog::warn("data plane connection ended peer={} status=\"{}\"", peer->peer(),
                 status.ToString());
  }
  co_await peer->Abort(std::move(status));
  self->connections_.erase(peer);
  self->n_connections_ = self->connections_.size();
}

asio::awaitable<absl::Status> Server::Serve(FrameSocket& peer, OfferPtr* pulled) {
  bool chunks_only = false;
  CO_RETURN_IF_ERROR(co_await Handshake(peer, &chunks_only));
  const auto lease =
      std::make_shared<ChunkLease>(io_.get_executor(), options_.chunks, options_.lease);
  for (;;) {
    CO_ASSIGN_OR_RETURN(const Frame frame, co_await peer.ReadFrame(options_.idle_timeout));
    if (frame.header.type == v1::FRAME_TYPE_PROBE) {
      CO_RETURN_IF_ERROR(
          co_await AnswerProbe(peer, frame, probe_budget_, options_.links, options_.lease));
      continue;
    }
    if (frame.header.type != v1::FRAME_TYPE_PULL) {
      CO_RETURN_IF_ERROR(
          co_await AnswerChunkRequest(peer, frame, options_.chunks, *lease, options_.lease));
      continue;
    }
    if (chunks_only) {
      co_return absl::FailedPreconditionError("a peer that asks for chunks only cannot pull");
    }
    CO_RETURN_IF_ERROR(co_await ServePull(peer, frame, pulled));
  }
}

asio::awaitable<absl::Status> Server::Handshake(FrameSocket& peer, bool* chunks_only) {
  CO_ASSIGN_OR_RETURN(const Frame frame, co_await peer.ReadFrame(options_.handshake_timeout));
  if (frame.header.type != v1::FRAME_TYPE_HELLO) {
    co_return absl::InvalidArgumentError("the first frame must be a HELLO");
  }
  v1::Hello hello;
  CO_RETURN_IF_ERROR(wire::DecodeMeta(frame.meta, hello));
  *chunks_only = hello.chunks_only();
  if (!*chunks_only) {
    CO_RETURN_IF_ERROR(CompareIdentity(options_.identity, wire::FromHello(hello)));
  }
  co_return co_await peer.Write(hello_, {}, options_.handshake_timeout);
}

/// The puller's answer to what it is sent: OK for DONE, else why the pull has failed.
asio::awaitable<absl::Status> ReadVerdict(FrameSocket& peer, const bool* end_sent) {
  CO_ASSIGN_OR_RETURN(const Frame frame, co_await peer.ReadFrame(absl::InfiniteDuration()));
  if (frame.header.type == v1::FRAME_TYPE_DONE && *end_sent) co_return absl::OkStatus();
  co_return absl::InvalidArgumentError(wire::UnexpectedFrame(frame.header.type, "during a pull"));
}

asio::awaitable<absl::Status> Server::ServePull(FrameSocket& peer, const Frame& request,
                                                OfferPtr* pulled) {
  v1::Pull pull;
  CO_RETURN_IF_ERROR(wire::DecodeMeta(request.meta, pull));
  CO_ASSIGN_OR_RETURN(const OfferPtr offer, Find(pull.handoff_id()));
  if (!offer->BeginPull()) {
    co_return absl::AlreadyExistsError("this KV is being pulled already");
  }
  *pulled = offer;
  bool end_sent = false;
  using asio::experimental::awaitable_operators::operator||;
  const auto first = co_await (ReadVerdict(peer, &end_sent) || Send(peer, *offer, pull, &end_sent));
  const absl::Status status = std::visit([](const absl::Status& s) { return s; }, first);
  if (status.ok()) {
    offer->Release(status);
    pulled->reset();
  }
  co_return status;
}

asio::awaitable<absl::Status> Server::SendChunk(FrameSocket& peer, OfferedKv& offer,
                                                const ReadyChunk& chunk, uint32_t encodings) {
  const size_t encoding =
      ChooseEncoding(offer, chunk, encodings, peer.send_state(), options_.coder);
  if (encoding == 0) {
    CO_RETURN_IF_ERROR(co_await peer.Write(chunk.head(), chunk.body(), options_.lease));
    offer.CountSent(chunk.body().size(), encoding);
    co_return absl::OkStatus();
  }
  CO_ASSIGN_OR_RETURN(const std::vector<uint8_t> body,
                      co_await Encoded(*options_.coder, chunk.chunk(), encoding));
  v1::ChunkHeader header;
  header.set_first_position(chunk.chunk()->first_position);
  header.set_n_tokens(chunk.chunk()->n_tokens);
  header.set_encoding(static_cast<uint32_t>(encoding));
  CO_ASSIGN_OR_RETURN(const std::vector<uint8_t> head,
                      wire::EncodeFrame(v1::FRAME_TYPE_CHUNK, header, body));
  CO_RETURN_IF_ERROR(co_await peer.Write(head, body, options_.lease));
  offer.CountSent(body.size(), encoding);
  co_return absl::OkStatus();
}

asio::awaitable<absl::Status> Server::Send(FrameSocket& peer, OfferedKv& offer,
                                           const v1::Pull& pull, bool* end_sent) {
  const uint32_t encodings = CommonEncodings(pull, options_.coder, offer.plan().floor);
  for (size_t n_sent = 0;;) {
    const OfferedKv::Step step = offer.Next(n_sent);
    if (const auto* chunk = std::get_if<OfferedKv::ChunkPtr>(&step)) {
      const OfferedKv::ChunkPtr kept = *chunk;
      CO_RETURN_IF_ERROR(co_await SendChunk(peer, offer, *kept, encodings));
      ++n_sent;
    } else if (const auto* end = std::get_if<HandoffEnd>(&step)) {
      v1::End meta;
      meta.set_n_tokens(end->n_tokens);
      meta.set_first_token(end->first_token);
      *end_sent = true;
      CO_RETURN_IF_ERROR(co_await peer.WriteFrame(v1::FRAME_TYPE_END, meta, options_.lease));
      break;
    } else if (const auto* released = std::get_if<absl::Status>(&step)) {
      co_return *released;
    } else {
      if (co_await offer.Changed(kWaitInterval)) continue;
      CO_RETURN_IF_ERROR(co_await peer.WriteFrame(v1::FRAME_TYPE_WAIT, v1::Wait(), options_.lease));
    }
  }
  while (co_await offer.Changed(options_.lease)) {
    const OfferedKv::Step step = offer.Next(SIZE_MAX);
    if (const auto* released = std::get_if<absl::Status>(&step)) co_return *released;
  }
  co_return absl::DeadlineExceededError(
      absl::StrCat("the puller did not confirm within ", absl::FormatDuration(options_.lease)));
}

void Server::Stop() {
  std::vector<OfferPtr> offers;
  {
    std::lock_guard lock(mutex_);
    if (stopped_) return;
    stopped_ = true;
    for (const auto& [unused, offer] : offers_) offers.push_back(offer);
  }
  for (const OfferPtr& offer : offers) {
    offer->Release(absl::UnavailableError("the worker is stopping"));
  }
  offers.clear();
  tasks_->Post([self = shared_from_this()] { self->Shutdown(); });
  tasks_->Drain();
}

void Server::Shutdown() {
  boost::system::error_code ignored;
  acceptor_.close(ignored);
  for (const SocketPtr& peer : connections_) peer->Close();
}

class HandoffServerImpl final : public HandoffServer {
 public:
  explicit HandoffServerImpl(std::shared_ptr<Server> server) : server_(std::move(server)) {}
  ~HandoffServerImpl() override { server_->Stop(); }

  absl::StatusOr<std::shared_ptr<Publication>> Publish(std::string handoff_id,
                                                       RequestContextPtr context, HandoffPlan plan,
                                                       ReleaseCallback on_released) override {
    return server_->Publish(std::move(handoff_id), std::move(context), plan,
                            std::move(on_released));
  }
  uint16_t port() const override { return server_->port(); }
  size_t publications() const override { return server_->publications(); }
  uint64_t held_bytes() const override { return server_->held_bytes(); }
  size_t connections() const override { return server_->connections(); }
  void Stop() override { server_->Stop(); }

 private:
  const std::shared_ptr<Server> server_;
};

absl::StatusOr<Tcp::acceptor> Listen(asio::io_context& io, const std::string& listen) {
  ASSIGN_OR_RETURN(const Address address, ParseAddress(listen));
  boost::system::error_code error;
  const auto found = Tcp::resolver(io).resolve(address.host, std::to_string(address.port),
                                               Tcp::resolver::passive, error);
  if (error || found.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot listen on ", listen, ": ", error.message()));
  }
  const Tcp::endpoint endpoint = *found.begin();
  Tcp::acceptor acceptor(io);
  acceptor.open(endpoint.protocol(), error);
  if (!error) acceptor.set_option(Tcp::acceptor::reuse_address(true), error);
  if (!error) acceptor.bind(endpoint, error);
  if (!error) acceptor.listen(Tcp::acceptor::max_listen_connections, error);
  if (error) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", listen, ": ", error.message()));
  }
  return acceptor;
}

}  // namespace

absl::StatusOr<std::unique_ptr<HandoffServer>> HandoffServer::Start(asio::io_context& io,
                                                                    Options options) {
  v1::Hello greeting = wire::ToHello(options.identity);
  greeting.set_answers_probes(true);
  ASSIGN_OR_RETURN(std::vector<uint8_t> hello, wire::EncodeFrame(v1::FRAME_TYPE_HELLO, greeting));
  ASSIGN_OR_RETURN(Tcp::acceptor acceptor, Listen(io, options.listen));
  auto server =
      std::make_shared<Server>(io, std::move(options), std::move(hello), std::move(acceptor));
  server->Start();
  return std::make_unique<HandoffServerImpl>(std::move(server));
}

}  // namespace tandem::kvstore
