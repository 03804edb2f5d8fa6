#include "tests/unit/redis/redis_server.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <sstream>

#include "absl/strings/str_cat.h"

namespace tandem::kvstore {
namespace {

/// The server, which Debian's package redis-server merely links to and starts as a service. It is
/// one program with redis-check-rdb, and goes by the name under which it is called.
constexpr const char* kServer = "/usr/bin/redis-check-rdb";

int Listen(int& port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
  bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address));
  listen(fd, 16);
  socklen_t size = sizeof(address);
  getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
  port = ntohs(address.sin_port);
  return fd;
}

int FreePort() {
  int port = 0;
  close(Listen(port));
  return port;
}

std::string NewFolder() {
  std::string pattern = testing::TempDir() + "tandem-redis-XXXXXX";
  return mkdtemp(pattern.data());
}

pid_t Spawn(const std::string& program, const std::vector<std::string>& command,
            const std::string& log) {
  std::vector<char*> argv;
  for (const std::string& word : command) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid != 0) return pid;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(1);
  const int fd = open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
  dup2(fd, STDOUT_FILENO);
  dup2(fd, STDERR_FILENO);
  execv(program.c_str(), argv.data());
  _exit(127);
}

redis::Deadline Soon() { return redis::Now() + std::chrono::seconds(10); }

std::string Text(const redisReply& reply) {
  if (reply.type == REDIS_REPLY_INTEGER) return std::to_string(reply.integer);
  if (reply.type != REDIS_REPLY_ARRAY) return std::string(redis::TextOf(reply));
  std::string lines;
  for (size_t i = 0; i < reply.elements; ++i) lines += Text(*reply.element[i]) + "\n";
  return lines;
}

}  // namespace

bool Eventually(const std::function<bool()>& condition) {
  const redis::Deadline limit = redis::Now() + std::chrono::seconds(30);
  while (!condition()) {
    if (redis::Now() > limit) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

bool RedisServer::Installed() { return access(kServer, X_OK) == 0; }

RedisServer::RedisServer(std::vector<std::string> flags)
    : flags_(std::move(flags)), folder_(NewFolder()) {
  // Somebody else may take a free port before the server does.
  for (int attempt = 0; attempt < 5; ++attempt) {
    port_ = FreePort();
    if (Start()) return;
  }
  ADD_FAILURE() << "redis-server does not start";
}

RedisServer::~RedisServer() {
  Kill();
  std::filesystem::remove_all(folder_);
}

bool RedisServer::Start() {
  std::vector<std::string> command = {
      "redis-server", "--port", std::to_string(port_), "--bind", "127.0.0.1",
      "--save",       "",       "--appendonly",        "no",     "--dir",
      folder_};
  command.insert(command.end(), flags_.begin(), flags_.end());
  pid_ = Spawn(kServer, command, folder_ + "/log");
  bool ended = false;
  const bool answers = Eventually([&] {
    ended = waitpid(pid_, nullptr, WNOHANG) == pid_;
    return ended ||
           redis::Connection::Open({"127.0.0.1", static_cast<uint16_t>(port_)}, {}, Soon()).ok();
  });
  if (ended) pid_ = -1;
  return answers && !ended;
}

void RedisServer::Kill() {
  if (pid_ < 0) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

void RedisServer::Restart() {
  Kill();
  EXPECT_TRUE(Start());
}

void RedisServer::Freeze() {
  kill(pid_, SIGSTOP);
  siginfo_t ignored;
  waitid(P_PID, pid_, &ignored, WSTOPPED | WEXITED | WNOWAIT);
}
void RedisServer::Thaw() { kill(pid_, SIGCONT); }

std::string RedisServer::Run(const redis::Command& command) const {
  auto connection =
      redis::Connection::Open({"127.0.0.1", static_cast<uint16_t>(port_)}, {}, Soon());
  EXPECT_TRUE(connection.ok()) << connection.status();
  if (!connection.ok()) return "";
  const auto replies = (*connection)->Exchange({&command, 1}, Soon());
  EXPECT_TRUE(replies.ok()) << replies.status();
  return replies.ok() ? Text(*replies->front()) : "";
}

RedisCluster::RedisCluster() {
  std::vector<std::string> create = {"redis-cli", "--cluster", "create"};
  for (int i = 0; i < 3; ++i) {
    nodes_.push_back(std::make_unique<RedisServer>(std::vector<std::string>{
        "--cluster-enabled", "yes", "--cluster-port", std::to_string(FreePort()),
        "--cluster-node-timeout", "2000", "--cluster-require-full-coverage", "no"}));
    create.push_back(nodes_.back()->Address());
  }
  create.insert(create.end(), {"--cluster-replicas", "0", "--cluster-yes"});
  int status = 0;
  waitpid(Spawn("/usr/bin/redis-cli", create, "/dev/null"), &status, 0);
  EXPECT_EQ(status, 0);
  for (const auto& node : nodes_) {
    EXPECT_TRUE(Eventually([&] {
      const std::string info = node->Run({"CLUSTER", "INFO"});
      return info.find("cluster_state:ok") != std::string::npos &&
             info.find("cluster_slots_ok:16384") != std::string::npos;
    }));
  }
}

size_t RedisCluster::OwnerOf(uint16_t slot) const {
  for (size_t i = 0; i < nodes_.size(); ++i) {
    // "ID ADDRESS myself,master - 0 0 EPOCH connected FIRST-LAST SLOT [moving slots]"
    const std::string nodes = nodes_[i]->Run({"CLUSTER", "NODES"});
    std::istringstream ranges(nodes.substr(nodes.find(" connected", nodes.find("myself"))));
    std::string line, range;
    std::getline(ranges, line);
    std::istringstream words(line);
    for (words >> range; words >> range && range[0] != '[';) {
      const size_t dash = range.find('-');
      const int first = std::stoi(range);
      const int last = dash == std::string::npos ? first : std::stoi(range.substr(dash + 1));
      if (first <= slot && slot <= last) return i;
    }
  }
  ADD_FAILURE() << "nobody owns slot " << slot;
  return 0;
}

FakeServer::FakeServer(std::function<void(std::string_view, const Send&)> serve)
    : serve_(std::move(serve)), listener_(Listen(port_)) {
  EXPECT_EQ(pipe2(wake_, O_CLOEXEC), 0);
  thread_ = std::thread([this] { Loop(); });
}

FakeServer::~FakeServer() {
  close(wake_[1]);
  thread_.join();
  close(wake_[0]);
  close(listener_);
}

void FakeServer::Loop() {
  std::vector<pollfd> polled = {{.fd = wake_[0], .events = POLLIN},
                                {.fd = listener_, .events = POLLIN}};
  std::vector<char> buffer(1 << 16);
  while (poll(polled.data(), polled.size(), -1) > 0 && polled[0].revents == 0) {
    for (size_t i = 2; i < polled.size(); ++i) {
      if (polled[i].revents == 0) continue;
      const int fd = polled[i].fd;
      const ssize_t n = recv(fd, buffer.data(), buffer.size(), 0);
      const Send send_all = [fd, this](std::string_view bytes) {
        // Nobody may wait for this thread for longer than for the test.
        pollfd ready[2] = {{.fd = wake_[0], .events = POLLIN}, {.fd = fd, .events = POLLOUT}};
        poll(ready, 2, -1);
        return ready[0].revents == 0 &&
               send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT) > 0;
      };
      if (n > 0) serve_({buffer.data(), static_cast<size_t>(n)}, send_all);
      if (n <= 0) {
        close(fd);
        polled[i].fd = -1;
      }
    }
    if (polled[1].revents != 0) {
      polled.push_back({.fd = accept(listener_, nullptr, nullptr), .events = POLLIN});
    }
  }
  for (size_t i = 2; i < polled.size(); ++i) {
    if (polled[i].fd >= 0) close(polled[i].fd);
  }
}

ChunkKey KeyOf(int number, Level level) {
  return {ChunkIds("namespace", "tenant", std::vector<int32_t>{number}, 1)[0], level};
}

StoredChunkPtr ChunkOf(int number, size_t payload_bytes) {
  std::vector<uint8_t> payload(payload_bytes);
  for (size_t i = 0; i < payload_bytes; ++i) payload[i] = static_cast<uint8_t>(i * 7 + number);
  return StoredChunk::Seal(KeyOf(number), 256 * number, 256, payload);
}

std::string NameOf(int number) { return RedisTierOptions().key_prefix + KeyOf(number).Bytes(); }

std::unique_ptr<Tier> MakeTier(RedisTierOptions options) {
  auto tier = NewRedisTier(std::move(options));
  EXPECT_TRUE(tier.ok()) << tier.status();
  return *std::move(tier);
}

}  // namespace tandem::kvstore
