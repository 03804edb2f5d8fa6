#include "cli/interrupt.h"

#include <pthread.h>
#include <signal.h>

#include <utility>

namespace tandem::cli {
namespace {

/// Tells the waiting thread to end; SIGURG's default is to be ignored, so a stray one is harmless.
constexpr int kEnd = SIGURG;

sigset_t Signals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, kEnd);
  return set;
}

}  // namespace

void HoldSignals() {
  const sigset_t set = Signals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

Interrupt::Interrupt(std::function<void()> callback)
    : thread_([this, callback = std::move(callback)] { Run(callback); }) {}

Interrupt::~Interrupt() {
  pthread_kill(thread_.native_handle(), kEnd);
  thread_.join();
}

void Interrupt::Run(const std::function<void()>& callback) {
  const sigset_t all = Signals();
  int signal = 0;
  if (sigwait(&all, &signal) != 0 || signal == kEnd) return;
  {
    std::lock_guard lock(mutex_);
    interrupted_ = true;
  }
  callback();
  // From here on the default action applies: the next signal ends the process.
  sigset_t deadly = Signals();
  sigdelset(&deadly, kEnd);
  pthread_sigmask(SIG_UNBLOCK, &deadly, nullptr);
  sigset_t end;
  sigemptyset(&end);
  sigaddset(&end, kEnd);
  sigwait(&end, &signal);
}

bool Interrupt::interrupted() const {
  std::lock_guard lock(mutex_);
  return interrupted_;
}

}  // namespace tandem::cli
