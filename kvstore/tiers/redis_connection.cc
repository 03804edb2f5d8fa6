#include "kvstore/tiers/redis_connection.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <future>
#include <new>
#include <system_error>
#include <thread>

#include "absl/strings/escaping.h"
#include "base/status.h"

namespace tandem::kvstore::redis {
namespace {

constexpr size_t kReceiveBytes = 256 << 10;
constexpr size_t kMaxQuotedBytes = 200;
/// Enough for CLUSTER SLOTS with every slot apart.
constexpr int64_t kMaxElements = 16384 * 32;

struct FreeAddresses {
  void operator()(addrinfo* list) const { freeaddrinfo(list); }
};
using Addresses = std::unique_ptr<addrinfo, FreeAddresses>;

/// Whether the socket call that failed is to be made again later.
bool WouldBlock() { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

absl::Status Error(std::string_view name, std::string_view why) {
  return absl::UnavailableError(absl::StrCat("redis ", View(name), ": ", View(why)));
}

absl::StatusOr<Addresses> LookUp(const Address& address, int flags) {
  addrinfo hints = {};
  hints.ai_flags = AI_NUMERICSERV | flags;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* list = nullptr;
  const int error =
      getaddrinfo(address.host.c_str(), std::to_string(address.port).c_str(), &hints, &list);
  if (error != 0) return Error(ToString(address), gai_strerror(error));
  return Addresses(list);
}

/// The system's resolver takes no time limit, so names are looked up on a thread that is left
/// behind when it is late.
absl::StatusOr<Addresses> LookUpBefore(const Address& address, Deadline deadline) {
  if (auto numeric = LookUp(address, AI_NUMERICHOST); numeric.ok()) return numeric;
  std::packaged_task<absl::StatusOr<Addresses>()> task([address] { return LookUp(address, 0); });
  auto found = task.get_future();
  try {
    std::thread(std::move(task)).detach();
  } catch (const std::system_error& error) {
    return Error(ToString(address), error.what());
  }
  if (found.wait_until(deadline) == std::future_status::ready) return found.get();
  return Error(ToString(address), "its name was not looked up in time");
}

/// Waits for any of `events`. False at the deadline, and whenever it has passed: a server that
/// always has one more byte does not get more time.
bool Await(int fd, short events, Deadline deadline) {
  for (;;) {
    const auto left = std::chrono::nanoseconds(deadline - Now()).count();
    if (left <= 0) return false;
    pollfd poll = {.fd = fd, .events = events};
    const timespec limit = {.tv_sec = left / 1'000'000'000, .tv_nsec = left % 1'000'000'000};
    const int ready = ppoll(&poll, 1, &limit, nullptr);
    if (ready > 0) return true;
    if (ready < 0 && errno != EINTR) return true;  // the next call on the socket says why
  }
}

/// A connected socket, or -1 with errno.
int Connect(const addrinfo& to, Deadline deadline) {
  const int fd = socket(to.ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return -1;
  int error = connect(fd, to.ai_addr, to.ai_addrlen) == 0 ? 0 : errno;
  if (error == EINPROGRESS) {
    socklen_t size = sizeof(error);
    if (!Await(fd, POLLOUT, deadline)) {
      error = ETIMEDOUT;
    } else if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0) {
      error = errno;
    }
  }
  if (error != 0) {
    close(fd);
    errno = error;
    return -1;
  }
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  return fd;
}

/// hiredis makes room for as many elements as a server announces: eight bytes sent, gigabytes
/// taken. Arrays are counted before that.
redisReader* NewReader(int64_t& elements_left) {
  redisReader* const reader = redisReaderCreate();
  if (reader == nullptr) throw std::bad_alloc();
  static const redisReplyObjectFunctions unlimited = *reader->fn;
  static redisReplyObjectFunctions limited = [] {
    redisReplyObjectFunctions functions = unlimited;
    functions.createArray = [](const redisReadTask* task, int elements) -> void* {
      auto& left = *static_cast<int64_t*>(task->privdata);
      left -= elements;
      return left < 0 ? nullptr : unlimited.createArray(task, elements);
    };
    return functions;
  }();
  reader->fn = &limited;
  reader->privdata = &elements_left;
  return reader;
}

void AppendCommand(const Command& command, std::string& out) {
  absl::StrAppend(&out, "*", command.size(), "\r\n");
  for (const std::string_view word : command) {
    absl::StrAppend(&out, "$", word.size(), "\r\n", View(word), "\r\n");
  }
}

std::string Encode(std::span<const Command> commands) {
  size_t bytes = 0;
  for (const Command& command : commands) {
    for (const std::string_view word : command) bytes += word.size() + 32;
  }
  std::string out;
  out.reserve(bytes);
  for (const Command& command : commands) AppendCommand(command, out);
  return out;
}

}  // namespace

std::string_view TextOf(const redisReply& reply) {
  const bool text = reply.type == REDIS_REPLY_STRING || reply.type == REDIS_REPLY_STATUS ||
                    reply.type == REDIS_REPLY_ERROR;
  return text ? std::string_view(reply.str, reply.len) : std::string_view();
}

std::string Quote(const redisReply& reply) {
  return absl::CHexEscape(View(TextOf(reply).substr(0, kMaxQuotedBytes)));
}

std::string ToString(const Address& address) {
  const bool brackets = address.host.find(':') != std::string::npos;
  return absl::StrCat(brackets ? "[" : "", address.host, brackets ? "]:" : ":", address.port);
}

absl::StatusOr<std::unique_ptr<Connection>> Connection::Open(const Address& address,
                                                             const Login& login,
                                                             Deadline deadline) {
  const std::string name = ToString(address);
  ASSIGN_OR_RETURN(const Addresses list, LookUpBefore(address, deadline));
  size_t left = 0;
  for (const addrinfo* to = list.get(); to != nullptr; to = to->ai_next) ++left;
  int fd = -1;
  for (const addrinfo* to = list.get(); to != nullptr && fd < 0; to = to->ai_next) {
    fd = Connect(*to, FirstOf(left--, deadline));
  }
  if (fd < 0) return Error(name, std::strerror(errno));
  std::unique_ptr<Connection> connection(new Connection(name, fd));
  if (!login.password.empty()) RETURN_IF_ERROR(connection->LogIn(login, deadline));
  return connection;
}

Connection::Connection(std::string name, int fd)
    : name_(std::move(name)), fd_(fd), reader_(NewReader(elements_left_)), buffer_(kReceiveBytes) {}

Connection::~Connection() { close(fd_); }

absl::Status Connection::LogIn(const Login& login, Deadline deadline) {
  Command command = {"AUTH"};
  if (!login.username.empty()) command.push_back(login.username);
  command.push_back(login.password);
  ASSIGN_OR_RETURN(const std::vector<Reply> replies, Exchange({&command, 1}, deadline));
  if (replies[0]->type != REDIS_REPLY_ERROR) return absl::OkStatus();
  return Lost(absl::StrCat("login refused: ", Quote(*replies[0])));
}

absl::StatusOr<std::vector<Reply>> Connection::Exchange(std::span<const Command> commands,
                                                        Deadline deadline) {
  const std::string out = Encode(commands);
  std::string_view rest = out;
  elements_left_ = kMaxElements;
  std::vector<Reply> replies;
  replies.reserve(commands.size());
  while (replies.size() < commands.size()) {
    // Both at once: a server that waits for its replies to be read would read no further commands.
    if (!rest.empty()) RETURN_IF_ERROR(SendSome(rest));
    if (!Await(fd_, rest.empty() ? POLLIN : POLLIN | POLLOUT, deadline)) {
      return Lost("no answer in time");
    }
    RETURN_IF_ERROR(ReceiveSome());
    RETURN_IF_ERROR(TakeReplies(commands.size(), replies));
  }
  return replies;
}

absl::Status Connection::SendSome(std::string_view& rest) {
  const ssize_t n = send(fd_, rest.data(), rest.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  if (n < 0) return WouldBlock() ? absl::OkStatus() : Lost(std::strerror(errno));
  rest.remove_prefix(n);
  return absl::OkStatus();
}

absl::Status Connection::ReceiveSome() {
  const ssize_t n = recv(fd_, buffer_.data(), buffer_.size(), MSG_DONTWAIT);
  if (n < 0) return WouldBlock() ? absl::OkStatus() : Lost(std::strerror(errno));
  if (n == 0) return Lost("connection closed");
  if (redisReaderFeed(reader_.get(), buffer_.data(), n) != REDIS_OK) return Lost(reader_->errstr);
  return absl::OkStatus();
}

absl::Status Connection::TakeReplies(size_t expected, std::vector<Reply>& replies) {
  while (replies.size() < expected) {
    void* reply = nullptr;
    if (redisReaderGetReply(reader_.get(), &reply) != REDIS_OK) return Lost(reader_->errstr);
    if (reply == nullptr) return absl::OkStatus();
    replies.emplace_back(static_cast<redisReply*>(reply));
  }
  if (reader_->pos != reader_->len) return Lost("more replies than commands");
  return absl::OkStatus();
}

absl::Status Connection::Lost(std::string_view why) const { return Error(name_, why); }

}  // namespace tandem::kvstore::redis
