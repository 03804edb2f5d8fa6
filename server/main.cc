// tandemd: reads its configuration, runs until SIGTERM or SIGINT, drains, exits 0. A second signal
// ends the process at once.
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <semaphore>
#include <thread>

#include "base/log.h"
#include "base/status.h"
#include "base/version.h"
#include "server/config.h"
#include "server/daemon.h"

namespace {

sigset_t TerminationSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  return signals;
}

int WaitForSignal() {
  const sigset_t signals = TerminationSignals();
  int received = 0;
  sigwait(&signals, &received);
  return received;
}

std::atomic<bool> g_ready{false};
std::binary_semaphore g_stop{0};

/// The one thread that receives SIGTERM and SIGINT; all others block them.
void HandleSignals() {
  const int first = WaitForSignal();
  // Nothing can be lost before the daemon runs, and loading a model can take minutes.
  if (!g_ready) _exit(128 + first);
  spdlog::info("signal={} received; a second one ends the process at once", strsignal(first));
  g_stop.release();
  _exit(128 + WaitForSignal());
}

int Fail(const absl::Status& status) {
  fprintf(stderr, "tandemd: %s\n", std::string(status.message()).c_str());
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  auto parsed = tandem::server::ParseConfig({argv, static_cast<size_t>(argc)},
                                            [](const char* name) { return getenv(name); });
  if (!parsed.ok()) return Fail(parsed.status());
  if (parsed->exit) {
    fputs(parsed->exit->text.c_str(), parsed->exit->code == 0 ? stdout : stderr);
    return parsed->exit->code;
  }
  const tandem::server::Config& config = parsed->config;
  if (absl::Status status = tandem::InitLog(config.log_level, config.log_format); !status.ok()) {
    return Fail(status);
  }
  const sigset_t signals = TerminationSignals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);  // before any thread starts: all inherit it
  signal(SIGPIPE, SIG_IGN);
  std::thread(HandleSignals).detach();

  spdlog::info("tandemd {} commit={} llama={} role={}", tandem::kVersion, tandem::kCommit,
               tandem::kLlamaVersion, tandem::server::RoleName(config.role));
  for (const std::string& warning : parsed->warnings) spdlog::warn("{}", warning);
  auto daemon = tandem::server::Daemon::Start(config);
  if (!daemon.ok()) return Fail(daemon.status());
  g_ready = true;
  spdlog::info("ready");

  g_stop.acquire();
  (*daemon)->Drain();
  daemon->reset();
  spdlog::info("bye");
  return 0;
}
