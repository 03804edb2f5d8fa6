#include "tests/fault/engine_stall.h"

#include <sys/ptrace.h>
#include <sys/wait.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace tandem::e2e {

EngineStall::EngineStall(pid_t worker) {
  const std::string tasks = "/proc/" + std::to_string(worker) + "/task";
  for (const auto& task : std::filesystem::directory_iterator(tasks)) {
    std::string name;
    std::getline(std::ifstream(task.path() / "comm"), name);
    if (name != "tandem-prefill" && name != "tandem-decode") continue;
    const pid_t thread = std::stoi(task.path().filename());
    if (ptrace(PTRACE_SEIZE, thread, nullptr, nullptr) != 0) continue;
    ptrace(PTRACE_INTERRUPT, thread, nullptr, nullptr);
    waitpid(thread, nullptr, __WALL);
    threads_.push_back(thread);
  }
}

EngineStall::~EngineStall() {
  for (const pid_t thread : threads_) ptrace(PTRACE_DETACH, thread, nullptr, nullptr);
}

}  // namespace tandem::e2e
