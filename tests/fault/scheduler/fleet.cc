#include "tests/fault/scheduler/fleet.h"

#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "tests/fault/engine_stall.h"

namespace tandem::e2e {
namespace {

void Pass(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }

}  // namespace

const char* FaultName(Fault fault) {
  switch (fault) {
    case Fault::kKilled:
      return "killed";
    case Fault::kStopped:
      return "stopped";
    case Fault::kStalled:
      return "stalled";
    case Fault::kCutOff:
      return "cut off";
    case Fault::kPairCut:
      return "pair cut";
  }
  return "";
}

Fleet::Fleet(std::vector<std::string> router_flags, std::vector<std::string> worker_flags)
    : worker_flags_(std::move(worker_flags)) {
  const std::vector<std::string> phases = {"prefill", "prefill", "decode", "decode"};
  if (Netlab::WhyNot().empty())
    lab_ = std::make_unique<Netlab>(1 + static_cast<int>(phases.size()));
  const DaemonHost router_host = lab_ ? lab_->Host(kRouterHost) : DaemonHost{};
  std::vector<std::string> flags = {"--role",    "router",   "--model",
                                    DemoModel(), "--listen", router_host.address + ":0"};
  flags.insert(flags.end(), router_flags.begin(), router_flags.end());
  router_ = std::make_unique<DaemonProcess>(flags, router_host);
  client_ = std::make_unique<Client>(RouterAddress());
  for (size_t i = 0; i < phases.size(); ++i) {
    const int number = kRouterHost + 1 + static_cast<int>(i);
    workers_.push_back({.phase = phases[i],
                        .host = lab_ ? lab_->Host(number) : DaemonHost{},
                        .host_number = number,
                        .daemon = nullptr});
    Start(workers_.back());
  }
}

void Fleet::Start(Worker& worker) {
  std::vector<std::string> flags = {"--role",
                                    "worker",
                                    "--phase",
                                    worker.phase,
                                    "--model",
                                    DemoModel(),
                                    "--routers",
                                    RouterAddress(),
                                    "--threads",
                                    "1",
                                    "--report-interval",
                                    "50ms",
                                    "--worker-listen",
                                    worker.host.address + ":0",
                                    "--data-listen",
                                    worker.host.address + ":0"};
  flags.insert(flags.end(), worker_flags_.begin(), worker_flags_.end());
  worker.daemon.reset();  // kills the old one, if it still runs
  worker.daemon = std::make_unique<DaemonProcess>(flags, worker.host);
}

std::vector<Fault> Fleet::Possible() const {
  std::vector<Fault> possible = {Fault::kKilled, Fault::kStopped};
  if (EngineStall(workers_[0].daemon->process().pid()).made()) possible.push_back(Fault::kStalled);
  if (lab_ != nullptr) possible.insert(possible.end(), {Fault::kCutOff, Fault::kPairCut});
  return possible;
}

void Fleet::Strike(Fault fault, std::mt19937& random, double duration_s) {
  Worker& victim = workers_[random() % workers_.size()];
  switch (fault) {
    case Fault::kKilled:
      victim.daemon->process().Signal(SIGKILL);
      Start(victim);
      return;
    case Fault::kStopped:
      victim.daemon->process().Signal(SIGSTOP);
      Pass(duration_s);
      victim.daemon->process().Signal(SIGCONT);
      return;
    case Fault::kStalled: {
      const EngineStall stall(victim.daemon->process().pid());
      Pass(duration_s);
      return;
    }
    case Fault::kCutOff:
      lab_->Cut(victim.host_number);
      break;
    case Fault::kPairCut:
      lab_->Cut(workers_[random() % 2].host_number, workers_[2 + random() % 2].host_number);
      break;
  }
  Pass(duration_s);
  lab_->Heal();
}

std::vector<size_t> Fleet::OpenFiles() const {
  size_t most = 0;
  for (const Worker& worker : workers_) {
    most = std::max(most, worker.daemon->process().OpenFiles());
  }
  return {router_->process().OpenFiles(), most};
}

bool Fleet::WaitEmpty() {
  return std::all_of(workers_.begin(), workers_.end(), [](const Worker& worker) {
    return WaitFor([&] {
      const std::string metrics = worker.daemon->Metrics();
      for (const char* family :
           {"tandem_worker_kv_used_tokens", "tandem_pd_handoff_held_bytes",
            "tandem_worker_requests_running", "tandem_worker_requests_waiting"}) {
        if (MetricSum(metrics, family).value_or(0) != 0) return false;
      }
      return !metrics.empty();
    });
  });
}

}  // namespace tandem::e2e
