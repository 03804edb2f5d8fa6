// Real processes for end-to-end tests: daemons on free ports, clients, and what /proc knows of
// them. Every wait is for a condition, with a limit after which the test fails.
#pragma once

#include <grpcpp/grpcpp.h>
#include <sys/types.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tandem/v1/cluster.grpc.pb.h"
#include "tandem/v1/inference.grpc.pb.h"

namespace tandem::e2e {

/// Generous: it only bounds how long a failing test takes.
inline constexpr double kWaitLimitS = 60;

/// Looks at `condition` until it is true; false when that takes more than `limit_s`.
bool WaitFor(const std::function<bool()>& condition, double limit_s = kWaitLimitS);

/// The models and binaries under test.
std::string BinaryPath(const std::string& name);
std::string DemoModel();

/// A file that nothing else uses, in the test's folder for such.
std::string TemporaryPath(const std::string& suffix);

/// A child process, its output in a file. Killed with its object.
class Process {
 public:
  /// The command's program is looked for in PATH.
  Process(const std::vector<std::string>& command, std::string log_path);
  ~Process();
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  pid_t pid() const { return pid_; }
  /// After SIGSTOP it has stopped, or ended, when this returns.
  void Signal(int signal) const;
  bool Running();
  /// The exit code, or 128 + signal; nullopt when it does not end within the limit.
  std::optional<int> Wait(double limit_s = kWaitLimitS);
  std::string Log() const;
  size_t OpenFiles() const;
  size_t Threads() const;

 private:
  const std::string log_path_;
  pid_t pid_ = -1;
  std::optional<int> exit_code_;
};

/// Where a daemon runs: here, or (netlab.h) on a network of its own.
struct DaemonHost {
  /// Comes before the daemon's own command.
  std::vector<std::string> wrapper;
  /// Where it listens and others reach it.
  std::string address = "127.0.0.1";

  bool here() const { return wrapper.empty(); }
};

/// A tandemd process that has opened its ports.
class DaemonProcess {
 public:
  /// Starts `tandemd` with these flags besides --port-file, and waits for its ports. Fails the
  /// test when it ends instead. Its metrics are on the host's address; other listeners are where
  /// the flags say.
  explicit DaemonProcess(std::vector<std::string> flags, DaemonHost host = {});

  Process& process() { return *process_; }
  int router_port() const { return router_port_; }
  int metrics_port() const { return metrics_port_; }
  /// Of a store node's data plane.
  int store_data_port() const { return store_data_port_; }
  std::string RouterAddress() const { return host_.address + ":" + std::to_string(router_port_); }
  /// Its metrics, as Scrape gives them.
  std::string Metrics() const;

 private:
  const DaemonHost host_;
  std::unique_ptr<Process> process_;
  int router_port_ = 0, metrics_port_ = 0, store_data_port_ = 0;
};

/// How one Generate call ended, and what it gave.
struct Generated {
  grpc::Status status;
  std::vector<int32_t> tokens;
  std::string text;
  v1::FinishReason finish = v1::FINISH_REASON_UNSPECIFIED;
  v1::Usage usage;
  v1::Timings timings;
  v1::PromptCache prompt_cache;
  std::string request_id;
  int terminal_messages = 0;
  std::multimap<std::string, std::string> trailers;
};

/// A client of one router.
class Client {
 public:
  explicit Client(const std::string& address);
  /// Runs one call to its end. `on_message` may cancel through the context.
  Generated Generate(const v1::GenerateRequest& request,
                     const std::function<void(grpc::ClientContext&, const v1::GenerateResponse&)>&
                         on_message = nullptr,
                     double deadline_s = kWaitLimitS);
  v1::ListWorkersResponse Workers();
  /// Workers of both phases are there (`n` in all).
  bool WaitWorkers(int n);
  /// No worker holds KV, runs or waits for anything.
  bool WaitIdle();
  v1::InferenceService::Stub& inference() { return *inference_; }
  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }

 private:
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::InferenceService::Stub> inference_;
  std::unique_ptr<v1::ClusterService::Stub> cluster_;
};

/// A router, a prefill worker and a decode worker that only decodes: three processes.
class Cluster {
 public:
  struct Options {
    std::string model;  // empty: the demo model
    std::vector<std::string> worker_flags, prefill_flags, decode_flags, router_flags;
    DaemonHost router_host, prefill_host, decode_host;
  };
  Cluster() : Cluster(Options{}) {}
  explicit Cluster(Options options);

  DaemonProcess& router() { return *router_; }
  DaemonProcess& prefill() { return *prefill_; }
  DaemonProcess& decode() { return *decode_; }
  Client& client() { return *client_; }
  /// Starts the worker anew after its end.
  void RestartPrefill();
  void RestartDecode();

 private:
  std::vector<std::string> WorkerFlags(const std::string& phase, const DaemonHost& host) const;
  Options options_;
  std::unique_ptr<DaemonProcess> router_, prefill_, decode_;
  std::unique_ptr<Client> client_;
};

/// Sends `bytes` as the one message of a call of `method`, whatever they are.
struct RawReply {
  grpc::Status status;
  std::string bytes;  // of the first message that came back
};
RawReply RawCall(Client& client, const std::string& method, const std::string& bytes);

/// A greedy request for `prompt`.
v1::GenerateRequest Greedy(const std::string& prompt, uint32_t max_tokens);

/// The body of http://host:port/metrics; empty when it cannot be had.
std::string Scrape(int port, const std::string& host = "127.0.0.1");
/// The sum of a family's samples whose line contains `label`; nullopt when there are none.
std::optional<double> MetricSum(const std::string& exposition, const std::string& family,
                                const std::string& label = "");

}  // namespace tandem::e2e
