// Real Redis servers for tests: one, or a cluster of three, on free ports of the loopback. And a
// server that says whatever a test wants it to say.
#pragma once

#include <gtest/gtest.h>
#include <sys/types.h>

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "kvstore/chunk.h"
#include "kvstore/tiers/redis_connection.h"
#include "kvstore/tiers/redis_tier.h"

namespace tandem::kvstore {

/// Looks at `condition` until it is true; false when that takes more than half a minute.
bool Eventually(const std::function<bool()>& condition);

/// A redis-server process. Ends with its object, and with the test.
class RedisServer {
 public:
  /// False where Debian's redis-tools are not installed.
  static bool Installed();

  /// Starts it, `flags` besides what a test always wants. Fails the test when it does not answer.
  explicit RedisServer(std::vector<std::string> flags = {});
  ~RedisServer();
  RedisServer(const RedisServer&) = delete;
  RedisServer& operator=(const RedisServer&) = delete;

  int port() const { return port_; }
  std::string Address() const { return "127.0.0.1:" + std::to_string(port_); }
  /// SIGKILL, and what was in memory is gone.
  void Kill();
  /// Starts it anew on its port.
  void Restart();
  /// SIGSTOP: connections are taken, nothing is answered.
  void Freeze();
  void Thaw();
  /// Runs a command and gives its reply as text (integers in digits, arrays one element a line).
  std::string Run(const redis::Command& command) const;

 private:
  bool Start();

  const std::vector<std::string> flags_;
  std::string folder_;
  int port_ = 0;
  pid_t pid_ = -1;
};

/// Three masters.
class RedisCluster {
 public:
  RedisCluster();
  RedisServer& node(size_t i) { return *nodes_[i]; }
  /// The node that owns the slot.
  size_t OwnerOf(uint16_t slot) const;
  std::string NodeId(size_t i) const { return nodes_[i]->Run({"CLUSTER", "MYID"}); }

 private:
  std::vector<std::unique_ptr<RedisServer>> nodes_;
};

/// Takes connections and answers each piece of bytes that it receives as a test wants it.
class FakeServer {
 public:
  using Send = std::function<bool(std::string_view)>;
  /// `serve` gets what has come and a function that sends (false when the peer is gone).
  explicit FakeServer(std::function<void(std::string_view received, const Send& send)> serve);
  ~FakeServer();
  std::string Address() const { return "127.0.0.1:" + std::to_string(port_); }

 private:
  void Loop();
  const std::function<void(std::string_view, const Send&)> serve_;
  int port_ = 0;
  const int listener_;
  int wake_[2] = {-1, -1};
  std::thread thread_;
};

/// A key of its own for each number.
ChunkKey KeyOf(int number, Level level = Level::kLossless);
/// A chunk under that key.
StoredChunkPtr ChunkOf(int number, size_t payload_bytes = 1000);
/// Its name in Redis.
std::string NameOf(int number);
/// A tier on these nodes; the test fails when it is not made.
std::unique_ptr<Tier> MakeTier(RedisTierOptions options);

}  // namespace tandem::kvstore
