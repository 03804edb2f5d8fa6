#include "tests/bench/goodput/systems.h"

#include <unistd.h>

#include <boost/asio.hpp>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "tests/e2e/harness.h"

namespace tandem::bench {
namespace {

using Flags = std::vector<std::string>;

[[noreturn]] void Die(const std::string& why) {
  std::fprintf(stderr, "%s\n", why.c_str());
  std::exit(1);
}

/// A port that was free a moment ago.
int FreePort() {
  boost::asio::io_context io;
  boost::asio::ip::tcp::acceptor acceptor(io, {boost::asio::ip::address_v4::loopback(), 0});
  return acceptor.local_endpoint().port();
}

uint64_t ResidentBytesOf(pid_t pid) {
  std::ifstream statm(absl::StrCat("/proc/", pid, "/statm"));
  uint64_t size = 0, resident = 0;
  statm >> size >> resident;
  return resident * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

void Append(Flags& flags, const Flags& more) {
  flags.insert(flags.end(), more.begin(), more.end());
}

std::string LlamaBinary() {
  const char* given = std::getenv("TANDEM_LLAMA_SERVER");
  std::string binary = given != nullptr ? given : TANDEM_PEER_SERVER;
  if (!std::filesystem::exists(binary)) {
    Die(absl::StrCat("there is no llama-server at '", binary, "'; `./dev peer` builds it"));
  }
  return binary;
}

/// `cores`: as taskset wants them; `threads`: their number.
std::unique_ptr<e2e::Process> StartLlama(const SystemOptions& options, const std::string& cores,
                                         int threads, int port) {
  const std::string n = absl::StrCat(threads);
  Flags command = {"taskset", "-c", cores, LlamaBinary(), "-m", options.model, "--host",
                   "127.0.0.1", "--port", absl::StrCat(port), "-t", n, "-tb", n, "-np",
                   absl::StrCat(options.sequences), "-c",
                   absl::StrCat(options.context_tokens * options.sequences), "--cont-batching",
                   "-fa", "on", "-ub", "512", "-b", "512", "--no-kv-unified",
                   // Nothing is kept from one request for the next: no two begin alike.
                   "--no-cache-prompt", "--cache-ram", "0", "--ctx-checkpoints", "0", "--fit",
                   "off", "--no-webui", "--log-disable"};
  Append(command, options.llama_flags);
  return std::make_unique<e2e::Process>(command, e2e::TemporaryPath(".llama.log"));
}

bool Healthy(int port) {
  boost::asio::ip::tcp::iostream stream("127.0.0.1", absl::StrCat(port));
  stream << "GET /health HTTP/1.0\r\n\r\n" << std::flush;
  std::string line;
  std::getline(stream, line);
  return line.find(" 200 ") != std::string::npos;
}

class LlamaSystem : public System {
 public:
  /// `servers`: 1, with both cores, or 2, with one each.
  LlamaSystem(const SystemOptions& options, int servers) {
    std::vector<int> ports;
    for (int i = 0; i < servers; ++i) {
      ports.push_back(FreePort());
      processes_.push_back(StartLlama(options, servers == 1 ? "0,1" : absl::StrCat(i),
                                      servers == 1 ? 2 : 1, ports.back()));
      Await(ports.back(), "llama-server");
    }
    int port = ports[0];
    if (servers > 1) {
      port = FreePort();
      WriteBalancer(port, ports);
      processes_.push_back(std::make_unique<e2e::Process>(Flags{"haproxy", "-db", "-f", balancer_},
                                                          e2e::TemporaryPath(".haproxy.log")));
      Await(port, "haproxy (Debian's package)");
    }
    client_ = MakeLlamaClient(port);
  }
  ~LlamaSystem() override {
    std::error_code ignored;
    std::filesystem::remove(balancer_, ignored);
  }

  LoadClient& client() override { return *client_; }
  uint64_t ResidentBytes() const override {
    uint64_t bytes = 0;
    for (const auto& process : processes_) bytes += ResidentBytesOf(process->pid());
    return bytes;
  }

 private:
  /// The process started last answers on the port.
  void Await(int port, const std::string& name) {
    e2e::Process& process = *processes_.back();
    if (e2e::WaitFor([&] { return Healthy(port) || !process.Running(); }) && process.Running()) {
      return;
    }
    const std::string log = process.Log();
    processes_.clear();
    Die(absl::StrCat(name, " did not start: ", log));
  }

  void WriteBalancer(int port, const std::vector<int>& servers) {
    std::ofstream out(balancer_);
    out << "global\n  maxconn 4096\n  nbthread 1\n"
           "defaults\n  mode http\n  option http-no-delay\n  timeout connect 5s\n"
           "  timeout client 1h\n  timeout server 1h\n"
           "frontend in\n  bind 127.0.0.1:"
        << port << "\n  default_backend servers\nbackend servers\n  balance leastconn\n";
    for (size_t i = 0; i < servers.size(); ++i) {
      out << "  server s" << i << " 127.0.0.1:" << servers[i] << "\n";
    }
  }

  const std::string balancer_ = e2e::TemporaryPath(".haproxy.cfg");
  std::vector<std::unique_ptr<e2e::Process>> processes_;
  std::unique_ptr<LoadClient> client_;
};

std::string Seconds(double s) { return absl::StrCat(s * 1e3, "ms"); }

class TandemSystem : public System {
 public:
  /// The phase of the worker on each core.
  TandemSystem(const SystemOptions& options, const std::vector<std::string>& phases) {
    Flags flags = {"--role",      "router",      "--model", options.model,    "--listen",
                   "127.0.0.1:0", "--log-level", "warn",    "--max-requests", "100000"};
    if (options.ttft_slo_s > 0) Append(flags, {"--ttft-objective", Seconds(options.ttft_slo_s)});
    if (options.tpot_slo_s > 0) Append(flags, {"--tpot-objective", Seconds(options.tpot_slo_s)});
    Append(flags, options.router_flags);
    daemons_.push_back(std::make_unique<e2e::DaemonProcess>(flags));
    e2e::Client client(daemons_[0]->RouterAddress());
    for (size_t core = 0; core < phases.size(); ++core) {
      Flags worker = {"--role", "worker", "--phase", phases[core], "--model", options.model,
                      "--name", absl::StrCat(phases[core], core), "--routers",
                      daemons_[0]->RouterAddress(), "--threads", "1", "--cpus", absl::StrCat(core),
                      "--context-tokens", absl::StrCat(options.context_tokens),
                      "--decode-sequences", absl::StrCat(2 * options.sequences), "--log-level",
                      "warn", "--report-interval", "50ms", "--max-queued", "100000",
                      // No two prompts begin alike: nothing is worth keeping.
                      "--kv-memory-bytes", "0", "--retained-prompts", "0"};
      if (options.tpot_slo_s > 0) Append(worker, {"--tpot-objective", Seconds(options.tpot_slo_s)});
      Append(worker, options.worker_flags);
      daemons_.push_back(std::make_unique<e2e::DaemonProcess>(worker));
    }
    if (!client.WaitWorkers(static_cast<int>(phases.size()))) {
      const std::string log = daemons_.back()->process().Log();
      daemons_.clear();
      Die(absl::StrCat("the workers did not register: ", log));
    }
    client_ = MakeTandemClient(daemons_[0]->RouterAddress());
  }

  LoadClient& client() override { return *client_; }
  std::string RouterAddress() const override { return daemons_[0]->RouterAddress(); }
  uint64_t ResidentBytes() const override {
    uint64_t bytes = 0;
    for (const auto& daemon : daemons_) bytes += ResidentBytesOf(daemon->process().pid());
    return bytes;
  }

 private:
  std::vector<std::unique_ptr<e2e::DaemonProcess>> daemons_;
  std::unique_ptr<LoadClient> client_;
};

}  // namespace

std::vector<std::string> SystemNames() { return {"llama-2x1", "llama-1x2", "split", "mixed"}; }

bool IsPeer(const std::string& name) { return name.starts_with("llama"); }

std::unique_ptr<System> StartSystem(const std::string& name, const SystemOptions& options) {
  if (name == "llama-2x1") return std::make_unique<LlamaSystem>(options, 2);
  if (name == "llama-1x2") return std::make_unique<LlamaSystem>(options, 1);
  if (name == "split") {
    return std::make_unique<TandemSystem>(options, std::vector<std::string>{"prefill", "decode"});
  }
  if (name == "mixed") {
    return std::make_unique<TandemSystem>(options, std::vector<std::string>{"mixed", "mixed"});
  }
  if (name == "planned") {
    return std::make_unique<TandemSystem>(options, std::vector<std::string>{"auto", "auto"});
  }
  Die(absl::StrCat("there is no system '", name, "'"));
}

}  // namespace tandem::bench
