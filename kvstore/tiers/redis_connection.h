// One connection to one Redis server: commands out, replies in, every step within a deadline.
//
// hiredis parses the replies. Its own sockets are not used: their time limits hold for each read
// and write, so that a server that dribbles could take for ever, and they raise SIGPIPE.
#pragma once

#include <hiredis/hiredis.h>

#include <chrono>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvstore/transfer/address.h"

namespace tandem::kvstore::redis {

using Deadline = std::chrono::steady_clock::time_point;
inline Deadline Now() { return std::chrono::steady_clock::now(); }
/// When the first of `parts` attempts has to end so that each gets as much time.
inline Deadline FirstOf(size_t parts, Deadline deadline) {
  const Deadline now = Now();
  return now + (deadline - now) / static_cast<int64_t>(parts);
}

/// A command's words; they may be any bytes.
using Command = std::vector<std::string_view>;

struct FreeReply {
  void operator()(redisReply* reply) const { freeReplyObject(reply); }
};
using Reply = std::unique_ptr<redisReply, FreeReply>;

/// The text of a string, status or error reply; empty for others.
std::string_view TextOf(const redisReply& reply);

/// The same for messages: cut when it is long, and without bytes that no log should hold.
std::string Quote(const redisReply& reply);

/// No password: no login. No user name: Redis's user "default".
struct Login {
  std::string username, password;
};

/// "host:port", IPv6 in brackets.
std::string ToString(const Address& address);

/// Not thread-safe.
class Connection {
 public:
  /// Looks the host up, connects and logs in. UNAVAILABLE when that fails or takes too long; the
  /// message names the server.
  static absl::StatusOr<std::unique_ptr<Connection>> Open(const Address& address,
                                                          const Login& login, Deadline deadline);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  /// Sends the commands in one go and waits for as many replies; an error reply is a reply.
  /// UNAVAILABLE: the connection is lost and of no more use.
  absl::StatusOr<std::vector<Reply>> Exchange(std::span<const Command> commands, Deadline deadline);

 private:
  struct FreeReader {
    void operator()(redisReader* reader) const { redisReaderFree(reader); }
  };

  Connection(std::string name, int fd);
  absl::Status LogIn(const Login& login, Deadline deadline);
  absl::Status SendSome(std::string_view& rest);
  absl::Status ReceiveSome();
  absl::Status TakeReplies(size_t expected, std::vector<Reply>& replies);
  absl::Status Lost(std::string_view why) const;

  const std::string name_;
  const int fd_;
  const std::unique_ptr<redisReader, FreeReader> reader_;
  /// What replies' arrays may still have in the running exchange.
  int64_t elements_left_ = 0;
  std::vector<char> buffer_;
};

}  // namespace tandem::kvstore::redis
