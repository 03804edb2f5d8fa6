#include "tests/e2e/harness.h"

#include <fcntl.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <boost/asio.hpp>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "base/clock.h"
#include "base/grpc_server.h"

namespace tandem::e2e {
namespace {

constexpr std::chrono::milliseconds kPollInterval{5};

size_t CountEntries(const std::string& folder) {
  std::error_code error;
  size_t n = 0;
  for (auto it = std::filesystem::directory_iterator(folder, error);
       !error && it != std::filesystem::directory_iterator(); it.increment(error)) {
    ++n;
  }
  return n;
}

}  // namespace

bool WaitFor(const std::function<bool()>& condition, double limit_s) {
  const Stopwatch waited;
  while (!condition()) {
    if (waited.seconds() > limit_s) return false;
    std::this_thread::sleep_for(kPollInterval);
  }
  return true;
}

std::string BinaryPath(const std::string& name) { return std::string(TANDEM_BIN_DIR) + "/" + name; }
std::string DemoModel() { return std::string(TANDEM_SOURCE_DIR) + "/models/demo-q8_0.gguf"; }

std::string TemporaryPath(const std::string& suffix) {
  static std::atomic<int> counter{0};
  return testing::TempDir() + "tandem-" + std::to_string(getpid()) + "-" +
         std::to_string(counter++) + suffix;
}

Process::Process(const std::vector<std::string>& command, std::string log_path)
    : log_path_(std::move(log_path)) {
  std::vector<char*> argv;
  for (const std::string& word : command) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  const int log = open(log_path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  pid_ = fork();
  if (pid_ == 0) {
    dup2(log, STDOUT_FILENO);
    dup2(log, STDERR_FILENO);
    execvp(argv[0], argv.data());
    _exit(127);
  }
  close(log);
}

Process::~Process() {
  if (!exit_code_) {
    Signal(SIGKILL);
    Wait();
  }
  if (testing::Test::HasFailure()) {
    std::cerr << "---- log of process " << pid_ << ":\n" << Log() << "----\n";
  }
  std::filesystem::remove(log_path_);
}

void Process::Signal(int signal) const {
  kill(pid_, signal);
  // It may run on for some milliseconds.
  siginfo_t ignored;
  if (signal == SIGSTOP) waitid(P_PID, pid_, &ignored, WSTOPPED | WEXITED | WNOWAIT);
}

bool Process::Running() { return !Wait(0).has_value(); }

std::optional<int> Process::Wait(double limit_s) {
  WaitFor(
      [this] {
        int status = 0;
        if (!exit_code_ && waitpid(pid_, &status, WNOHANG) == pid_) {
          exit_code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        }
        return exit_code_.has_value();
      },
      limit_s);
  return exit_code_;
}

std::string Process::Log() const {
  std::ifstream in(log_path_);
  return {std::istreambuf_iterator<char>(in), {}};
}

size_t Process::OpenFiles() const { return CountEntries("/proc/" + std::to_string(pid_) + "/fd"); }
size_t Process::Threads() const { return CountEntries("/proc/" + std::to_string(pid_) + "/task"); }

DaemonProcess::DaemonProcess(std::vector<std::string> flags, DaemonHost host)
    : host_(std::move(host)) {
  const std::string port_file = TemporaryPath(".ports");
  std::vector<std::string> command = host_.wrapper;
  command.insert(command.end(), {BinaryPath("tandemd"), "--port-file", port_file,
                                 "--metrics-listen", host_.address + ":0", "--log-level", "debug"});
  // Tests start hundreds of daemons: each learns its speed from its requests, unless told
  // otherwise.
  command.insert(command.end(), {"--profile-at-start", "0s"});
  if (!host_.here()) command.push_back("--insecure");
  command.insert(command.end(), flags.begin(), flags.end());
  process_ = std::make_unique<Process>(command, TemporaryPath(".log"));
  const bool started =
      WaitFor([&] { return std::filesystem::exists(port_file) || !process_->Running(); });
  if (!started || !std::filesystem::exists(port_file)) {
    ADD_FAILURE() << "tandemd did not start: " << process_->Log();
    return;
  }
  const auto ports = nlohmann::json::parse(std::ifstream(port_file));
  router_port_ = ports.value("router", 0);
  metrics_port_ = ports.value("metrics", 0);
  if (ports.contains("store")) store_data_port_ = ports["store"].value("data", 0);
  std::filesystem::remove(port_file);
}

std::string DaemonProcess::Metrics() const { return Scrape(metrics_port_, host_.address); }

Client::Client(const std::string& address)
    : channel_(MakeChannel(address)),
      inference_(v1::InferenceService::NewStub(channel_)),
      cluster_(v1::ClusterService::NewStub(channel_)) {
  // A call on a channel that is not connected yet fails at the first hiccup of a busy machine.
  channel_->WaitForConnected(std::chrono::system_clock::now() + std::chrono::seconds(10));
}

Generated Client::Generate(
    const v1::GenerateRequest& request,
    const std::function<void(grpc::ClientContext&, const v1::GenerateResponse&)>& on_message,
    double deadline_s) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() +
                       std::chrono::microseconds(static_cast<int64_t>(deadline_s * 1e6)));
  Generated result;
  auto reader = inference_->Generate(&context, request);
  v1::GenerateResponse message;
  while (reader->Read(&message)) {
    result.tokens.insert(result.tokens.end(), message.token_ids().begin(),
                         message.token_ids().end());
    result.text += message.text();
    if (!message.request_id().empty()) result.request_id = message.request_id();
    if (message.finish_reason() != v1::FINISH_REASON_UNSPECIFIED) {
      ++result.terminal_messages;
      result.finish = message.finish_reason();
      result.usage = message.usage();
      result.timings = message.timings();
      result.prompt_cache = message.prompt_cache();
    }
    if (on_message) on_message(context, message);
  }
  result.status = reader->Finish();
  for (const auto& [key, value] : context.GetServerTrailingMetadata()) {
    result.trailers.emplace(std::string(key.data(), key.size()),
                            std::string(value.data(), value.size()));
  }
  return result;
}

v1::ListWorkersResponse Client::Workers() {
  grpc::ClientContext context;
  v1::ListWorkersResponse response;
  cluster_->ListWorkers(&context, {}, &response);
  return response;
}

bool Client::WaitWorkers(int n) {
  return WaitFor([&] {
    const v1::ListWorkersResponse response = Workers();
    return n ==
           std::count_if(response.workers().begin(), response.workers().end(),
                         [](const auto& each) { return each.info().phase() != v1::PHASE_STORE; });
  });
}

bool Client::WaitIdle() {
  return WaitFor([&] {
    const v1::ListWorkersResponse response = Workers();
    for (const v1::WorkerState& worker : response.workers()) {
      const v1::WorkerLoad& load = worker.load();
      if (load.running() + load.waiting() + load.kv_used_tokens() + load.handoff_held_bytes() +
              worker.assigned() >
          0) {
        return false;
      }
    }
    return response.workers_size() > 0 && response.requests_in_flight() == 0;
  });
}

Cluster::Cluster(Options options) : options_(std::move(options)) {
  if (options_.model.empty()) options_.model = DemoModel();
  std::vector<std::string> flags = {"--role",   "router",
                                    "--model",  options_.model,
                                    "--listen", options_.router_host.address + ":0"};
  flags.insert(flags.end(), options_.router_flags.begin(), options_.router_flags.end());
  router_ = std::make_unique<DaemonProcess>(flags, options_.router_host);
  client_ = std::make_unique<Client>(router_->RouterAddress());
  RestartPrefill();
  RestartDecode();
}

std::vector<std::string> Cluster::WorkerFlags(const std::string& phase,
                                              const DaemonHost& host) const {
  std::vector<std::string> flags = {"--role",
                                    "worker",
                                    "--phase",
                                    phase,
                                    "--model",
                                    options_.model,
                                    "--routers",
                                    router_->RouterAddress(),
                                    "--threads",
                                    "1",
                                    "--report-interval",
                                    "20ms",
                                    "--worker-listen",
                                    host.address + ":0",
                                    "--data-listen",
                                    host.address + ":0"};
  // Every request takes both workers, unless a test says otherwise.
  if (phase == "decode") flags.push_back("--no-prefill-on-decode");
  const auto& own = phase == "prefill" ? options_.prefill_flags : options_.decode_flags;
  flags.insert(flags.end(), options_.worker_flags.begin(), options_.worker_flags.end());
  flags.insert(flags.end(), own.begin(), own.end());
  return flags;
}

void Cluster::RestartPrefill() {
  if (prefill_) {
    prefill_.reset();
    // The router may not have noticed yet: it must not take the old one for the new one.
    EXPECT_TRUE(client_->WaitWorkers(1));
  }
  prefill_ = std::make_unique<DaemonProcess>(WorkerFlags("prefill", options_.prefill_host),
                                             options_.prefill_host);
  EXPECT_TRUE(client_->WaitWorkers(decode_ ? 2 : 1));
}

void Cluster::RestartDecode() {
  if (decode_) {
    decode_.reset();
    EXPECT_TRUE(client_->WaitWorkers(1));
  }
  decode_ = std::make_unique<DaemonProcess>(WorkerFlags("decode", options_.decode_host),
                                            options_.decode_host);
  EXPECT_TRUE(client_->WaitWorkers(2));
}

RawReply RawCall(Client& client, const std::string& method, const std::string& bytes) {
  grpc::GenericStub stub(client.channel());
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  const grpc::Slice slice(bytes);
  const grpc::ByteBuffer message(&slice, 1);
  auto call = stub.PrepareUnaryCall(&context, method, message, &queue);
  RawReply reply;
  grpc::ByteBuffer received;
  call->StartCall();
  call->Finish(&received, &reply.status, &reply);
  void* tag = nullptr;
  bool ok = false;
  queue.Next(&tag, &ok);
  queue.Shutdown();
  grpc::Slice flat;
  if (received.Valid() && received.DumpToSingleSlice(&flat).ok()) {
    reply.bytes.assign(reinterpret_cast<const char*>(flat.begin()), flat.size());
  }
  return reply;
}

v1::GenerateRequest Greedy(const std::string& prompt, uint32_t max_tokens) {
  v1::GenerateRequest request;
  request.set_prompt(prompt);
  request.set_max_tokens(max_tokens);
  request.mutable_sampling()->set_temperature(0);
  return request;
}

std::string Scrape(int port, const std::string& host) {
  boost::asio::ip::tcp::iostream stream(host, std::to_string(port));
  stream << "GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n" << std::flush;
  const std::string all{std::istreambuf_iterator<char>(stream), {}};
  const size_t body = all.find("\r\n\r\n");
  return body == std::string::npos ? "" : all.substr(body + 4);
}

std::optional<double> MetricSum(const std::string& exposition, const std::string& family,
                                const std::string& label) {
  std::optional<double> sum;
  std::istringstream lines(exposition);
  for (std::string line; std::getline(lines, line);) {
    const size_t name_end = line.find_first_of("{ ");
    if (line.substr(0, name_end) != family || line.find(label) == std::string::npos) continue;
    sum = sum.value_or(0) + std::stod(line.substr(line.rfind(' ')));
  }
  return sum;
}

}  // namespace tandem::e2e
