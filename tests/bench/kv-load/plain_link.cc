#include "tests/bench/kv-load/plain_link.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <mutex>

#include "base/status.h"

namespace tandem::bench {
namespace {

bool SendAll(int socket, const void* bytes, size_t n) {
  const auto* at = static_cast<const uint8_t*>(bytes);
  while (n > 0) {
    const ssize_t sent = send(socket, at, n, MSG_NOSIGNAL);
    if (sent <= 0) return false;
    at += sent;
    n -= static_cast<size_t>(sent);
  }
  return true;
}

bool ReceiveAll(int socket, void* bytes, size_t n) {
  return recv(socket, bytes, n, MSG_WAITALL) == static_cast<ssize_t>(n);
}

void DoNotWait(int socket) {
  const int on = 1;
  setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

/// Between two threads.
template <typename T>
class Queue {
 public:
  void Push(T value) {
    std::lock_guard lock(mutex_);
    values_.push_back(std::move(value));
    filled_.notify_one();
  }
  T Pop() {
    std::unique_lock lock(mutex_);
    filled_.wait(lock, [this] { return !values_.empty(); });
    T value = std::move(values_.front());
    values_.pop_front();
    return value;
  }

 private:
  std::mutex mutex_;
  std::condition_variable filled_;
  std::deque<T> values_;
};

}  // namespace

PlainServer::PlainServer(Chunks chunks) : chunks_(std::move(chunks)) {
  listener_ = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{.sin_family = AF_INET};
  socklen_t size = sizeof address;
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  if (bind(listener_, generic, size) != 0 || listen(listener_, 4) != 0 ||
      getsockname(listener_, generic, &size) != 0) {
    perror("bench_kv-load: listening");
    std::exit(1);
  }
  port_ = ntohs(address.sin_port);
  std::thread([this] {
    for (;;) {
      const int connection = accept(listener_, nullptr, nullptr);
      if (connection < 0) continue;
      DoNotWait(connection);
      Serve(connection);
      close(connection);
    }
  }).detach();
}

void PlainServer::Serve(int connection) const {
  Format format;
  while (ReceiveAll(connection, &format, 1) && chunks_.contains(format)) {
    for (const auto& chunk : chunks_.at(format)) {
      const auto size = static_cast<uint32_t>(chunk.size());
      if (!SendAll(connection, &size, sizeof size)) return;
      if (!SendAll(connection, chunk.data(), chunk.size())) return;
    }
  }
}

absl::StatusOr<std::unique_ptr<PlainClient>> PlainClient::Connect(const std::string& host,
                                                                  uint16_t port,
                                                                  const PlainCodec* codec,
                                                                  workers::Engine* engine) {
  const int connection = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{.sin_family = AF_INET, .sin_port = htons(port)};
  inet_pton(AF_INET, host.c_str(), &address.sin_addr);
  if (connect(connection, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    return absl::UnavailableError("cannot connect to the plain server");
  }
  DoNotWait(connection);
  return std::unique_ptr<PlainClient>(new PlainClient(connection, codec, engine));
}

PlainClient::~PlainClient() { close(connection_); }

absl::StatusOr<std::vector<uint8_t>> PlainClient::ReceiveOne() {
  uint32_t size = 0;
  if (!ReceiveAll(connection_, &size, sizeof size)) return absl::UnavailableError("lost");
  std::vector<uint8_t> bytes(size);
  if (!ReceiveAll(connection_, bytes.data(), size)) return absl::UnavailableError("lost");
  return bytes;
}

absl::StatusOr<std::unique_ptr<workers::Engine::IncomingKv>> PlainClient::DecodeOne(
    Format format, uint32_t index, std::span<const uint8_t> bytes) {
  const uint32_t first = index * kChunkTokens;
  auto sink = engine_->NewSink(kChunkTokens, first);
  ASSIGN_OR_RETURN(
      const auto planes,
      sink->Prepare(first, kChunkTokens, engine_->layout().BytesPerToken() * kChunkTokens));
  RETURN_IF_ERROR(codec_->Decode(format, bytes, planes));
  sink->Commit();
  return sink;
}

absl::Status PlainClient::Load(Format format, uint32_t n_chunks) {
  if (!SendAll(connection_, &format, 1)) return absl::UnavailableError("lost");
  Queue<absl::StatusOr<std::vector<uint8_t>>> received;
  Queue<absl::StatusOr<std::unique_ptr<workers::Engine::IncomingKv>>> decoded;
  std::jthread receiver([&] {
    for (uint32_t i = 0; i < n_chunks; ++i) received.Push(ReceiveOne());
  });
  std::jthread decoder([&] {
    for (uint32_t i = 0; i < n_chunks; ++i) {
      const auto bytes = received.Pop();
      if (bytes.ok()) {
        decoded.Push(DecodeOne(format, i, *bytes));
      } else {
        decoded.Push(bytes.status());
      }
    }
  });
  for (uint32_t i = 0; i < n_chunks; ++i) {
    ASSIGN_OR_RETURN(const auto sink, decoded.Pop());
    RETURN_IF_ERROR(engine_->Append(0, *sink));
  }
  return absl::OkStatus();
}

}  // namespace tandem::bench
