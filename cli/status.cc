// `tandem status`: a table of the workers and stores that a router knows.
#include "base/status.h"

#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>

#include "absl/strings/str_format.h"
#include "cli/client.h"
#include "cli/interrupt.h"
#include "cli/table.h"
#include "tandem/v1/cluster.grpc.pb.h"

namespace tandem::cli {
namespace {

/// How long the router may take to answer.
constexpr absl::Duration kTimeout = absl::Seconds(10);
/// Between two tables of --watch.
constexpr std::chrono::seconds kInterval{1};

struct Settings {
  std::string router;
  bool json = false;
  bool watch = false;
};

Command MakeCommand(Settings& settings) {
  Settings* const s = &settings;
  return {
      "status",
      "",
      "Shows the workers and stores that a router knows, and what they are doing.",
      {RouterOption(s->router),
       {"json", "", "Write JSON, one line an answer.", ReadSwitch([s] { s->json = true; })},
       {"watch", "", "Repeat every second until Ctrl-C.", ReadSwitch([s] { s->watch = true; })}}};
}

std::string PhaseName(v1::Phase phase) {
  switch (phase) {
    case v1::PHASE_PREFILL:
      return "prefill";
    case v1::PHASE_DECODE:
      return "decode";
    case v1::PHASE_STORE:
      return "store";
    case v1::PHASE_MIXED:
      return "mixed";
    default:
      return "?";
  }
}

Row WorkerRow(const v1::WorkerState& worker) {
  const v1::WorkerInfo& info = worker.info();
  const v1::WorkerLoad& load = worker.load();
  // A worker that has not reported yet is what it said it was.
  std::string phase =
      PhaseName(load.phase() == v1::PHASE_UNSPECIFIED ? info.phase() : load.phase());
  if (load.changing_to() != v1::PHASE_UNSPECIFIED) {
    absl::StrAppend(&phase, " → ", PhaseName(load.changing_to()));
  }
  const uint64_t capacity =
      load.prefill().kv_capacity_tokens() + load.decode().kv_capacity_tokens();
  return {info.name(),
          phase,
          load.draining() ? "draining" : "ready",
          absl::StrCat(load.running()),
          absl::StrCat(load.waiting()),
          absl::StrFormat("%d/%d", load.kv_used_tokens(),
                          capacity == 0 ? info.kv_capacity_tokens() : capacity),
          absl::StrFormat("%.1f", load.tokens_per_s()),
          absl::StrCat(worker.chunks()),
          absl::StrFormat("%.1f s ago", worker.report_age_s()),
          info.grpc_address(),
          info.model_name()};
}

void Write(const v1::ListWorkersResponse& response, const Settings& settings,
           const Terminal& terminal) {
  if (settings.json) {
    google::protobuf::util::JsonPrintOptions options;
    options.preserve_proto_field_names = true;
    options.always_print_primitive_fields = true;
    std::string line;
    // Cannot fail: the protocol has no Any.
    (void)google::protobuf::util::MessageToJsonString(response, &line, options);
    terminal.out << line << "\n" << std::flush;
    return;
  }
  if (settings.watch && terminal.out_is_terminal) terminal.out << "\033[H\033[2J";
  std::vector<Row> rows = {{"NAME", "PHASE", "STATE", "RUNNING", "WAITING", "KV TOKENS", "TOKENS/S",
                            "CHUNKS", "REPORT", "ADDRESS", "MODEL"}};
  for (const v1::WorkerState& worker : response.workers()) rows.push_back(WorkerRow(worker));
  std::sort(rows.begin() + 1, rows.end());
  terminal.out << (response.workers().empty() ? "no worker has registered\n" : Table(rows))
               << absl::StrFormat("router %s: %d of %d requests in flight\n", settings.router,
                                  response.requests_in_flight(), response.max_requests())
               << std::flush;
}

/// Asks for the workers, once or again and again, until Stop is called from another thread.
class Watcher {
 public:
  Watcher(const Settings& settings, const Terminal& terminal)
      : settings_(settings),
        terminal_(terminal),
        channel_(Connect(settings.router)),
        stub_(v1::ClusterService::NewStub(channel_)) {}

  int Run() {
    while (true) {
      if (const int code = Show(); code != kOk || !settings_.watch) return code;
      std::unique_lock lock(mutex_);
      if (wake_.wait_for(lock, kInterval, [this] { return stopped_; })) return kInterrupted;
    }
  }

  void Stop() {
    std::lock_guard lock(mutex_);
    stopped_ = true;
    if (call_ != nullptr) call_->TryCancel();
    wake_.notify_all();
  }

 private:
  int Show() {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + kTimeout));
    SetCall(&context);
    v1::ListWorkersResponse response;
    const grpc::Status status = stub_->ListWorkers(&context, {}, &response);
    if (SetCall(nullptr)) return kInterrupted;
    if (!status.ok()) return ReportError(status, settings_.router, *channel_, context, terminal_);
    Write(response, settings_, terminal_);
    return kOk;
  }

  /// The call that Stop cancels; null for none. True when Stop has been called.
  bool SetCall(grpc::ClientContext* call) {
    std::lock_guard lock(mutex_);
    call_ = call;
    if (stopped_ && call != nullptr) call->TryCancel();
    return stopped_;
  }

  const Settings& settings_;
  const Terminal& terminal_;
  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<v1::ClusterService::Stub> stub_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopped_ = false;                 // guarded by mutex_
  grpc::ClientContext* call_ = nullptr;  // guarded by mutex_
};

}  // namespace

int RunStatus(std::span<char* const> args, const Terminal& terminal) {
  Settings settings;
  settings.router = DefaultRouter(terminal);
  const Command command = MakeCommand(settings);
  std::vector<std::string> operands;
  if (const auto exit_code = ReadCommandLine(command, args, terminal, operands)) return *exit_code;
  if (!operands.empty()) {
    return ReportUsage(
        absl::InvalidArgumentError(absl::StrCat("unexpected argument '", operands[0], "'")),
        terminal);
  }
  Watcher watcher(settings, terminal);
  Interrupt interrupt([&watcher] { watcher.Stop(); });
  return watcher.Run();
}

}  // namespace tandem::cli
