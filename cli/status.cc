// `tandem status`: a table of the workers and stores that a router knows.
#include "base/status.h"

#include <algorithm>
#include <condition_variable>
#include <map>
#include <mutex>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "cli/client.h"
#include "cli/interrupt.h"
#include "cli/phase.h"
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
  bool speed = false;
  bool links = false;
};

Command MakeCommand(Settings& settings) {
  Settings* const s = &settings;
  return {
      "status",
      "",
      "Shows the workers and stores that a router knows, and what they are doing.",
      {RouterOption(s->router),
       {"json", "", "Write JSON, one line an answer.", ReadSwitch([s] { s->json = true; })},
       {"speed", "", "Show what the workers have learned of their own speed as well.",
        ReadSwitch([s] { s->speed = true; })},
       {"links", "", "Show what was measured between the nodes as well.",
        ReadSwitch([s] { s->links = true; })},
       {"watch", "", "Repeat every second until Ctrl-C.", ReadSwitch([s] { s->watch = true; })}}};
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
          absl::StrCat(load.parked()),
          absl::StrFormat("%d/%d", load.kv_used_tokens(),
                          capacity == 0 ? info.kv_capacity_tokens() : capacity),
          absl::StrFormat("%.1f", load.tokens_per_s()),
          absl::StrCat(worker.chunks()),
          absl::StrFormat("%.1f s ago", worker.report_age_s()),
          info.grpc_address(),
          info.model_name()};
}

/// Steps are shown as what they take, which is easier to judge than coefficients.
std::string SpeedTable(const v1::ListWorkersResponse& response) {
  std::vector<Row> rows = {{"NAME", "PREFILL TOKENS/S", "MS A STEP", "SATURATED BY", "SAMPLES",
                            "DECODE MS A STEP", "A SEQUENCE", "1000 TOKENS", "SAMPLES"}};
  for (const v1::WorkerState& worker : response.workers()) {
    if (worker.info().phase() == v1::PHASE_STORE) continue;
    const v1::LatencyModel& model = worker.load().latency();
    const double token_s = model.prefill_per_token_s();
    rows.push_back({worker.info().name(), token_s > 0 ? absl::StrFormat("%.0f", 1 / token_s) : "-",
                    absl::StrFormat("%.2f", model.prefill_base_s() * 1e3),
                    absl::StrFormat("%d tokens", model.saturation_tokens()),
                    absl::StrCat(model.prefill_samples()),
                    absl::StrFormat("%.2f", model.decode_base_s() * 1e3),
                    absl::StrFormat("+%.2f", model.decode_per_sequence_s() * 1e3),
                    absl::StrFormat("+%.2f", model.decode_per_context_token_s() * 1e6),
                    absl::StrCat(model.decode_samples())});
  }
  std::sort(rows.begin() + 1, rows.end());
  return absl::StrCat("\n", Table(rows));
}

/// What is odd about a link, in words.
std::string LinkState(const v1::LinkEstimate& link) {
  std::vector<std::string> odd;
  if (link.degraded()) {
    odd.push_back(absl::StrCat("degraded (usually ",
                               Bytes(static_cast<uint64_t>(link.usual_bytes_per_s())), "/s)"));
  }
  if (link.asymmetric()) odd.push_back("asymmetric");
  if (link.relayed()) odd.push_back("relayed");
  return odd.empty() ? "ok" : absl::StrJoin(odd, ", ");
}

std::string LinkTable(const v1::ListWorkersResponse& response) {
  std::map<std::string, std::string> names;
  for (const v1::WorkerState& worker : response.workers()) {
    names[worker.info().data_address()] = worker.info().name();
  }
  std::vector<Row> rows = {
      {"FROM", "TO", "BANDWIDTH", "RTT", "CONFIDENCE", "MEASURED", "SAMPLES", "STATE"}};
  for (const v1::WorkerState& worker : response.workers()) {
    for (const v1::LinkEstimate& link : worker.load().links()) {
      const auto from = names.find(link.data_address());
      rows.push_back({from == names.end() ? link.data_address() : from->second,
                      worker.info().name(), Bytes(static_cast<uint64_t>(link.bytes_per_s())) + "/s",
                      absl::StrFormat("%.2f ms", link.rtt_s() * 1e3),
                      absl::StrFormat("%.0f %%", link.confidence() * 100),
                      absl::StrFormat("%.1f s ago", link.age_s()), absl::StrCat(link.samples()),
                      LinkState(link)});
    }
  }
  if (rows.size() == 1) return "\nno link has been measured\n";
  std::sort(rows.begin() + 1, rows.end());
  return absl::StrCat("\n", Table(rows));
}

void Write(const v1::ListWorkersResponse& response, const Settings& settings,
           const Terminal& terminal) {
  if (settings.json) {
    WriteJson(response, /*with_defaults=*/true, terminal.out);
    return;
  }
  if (settings.watch && terminal.out_is_terminal) terminal.out << "\033[H\033[2J";
  std::vector<Row> rows = {{"NAME", "PHASE", "STATE", "RUNNING", "WAITING", "PARKED", "KV TOKENS",
                            "TOKENS/S", "CHUNKS", "REPORT", "ADDRESS", "MODEL"}};
  for (const v1::WorkerState& worker : response.workers()) rows.push_back(WorkerRow(worker));
  std::sort(rows.begin() + 1, rows.end());
  terminal.out << (response.workers().empty() ? "no worker has registered\n" : Table(rows))
               << absl::StrFormat("router %s: %d of %d requests in flight\n", settings.router,
                                  response.requests_in_flight(), response.max_requests())
               << (settings.speed ? SpeedTable(response) : "")
               << (settings.links ? LinkTable(response) : "") << std::flush;
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
