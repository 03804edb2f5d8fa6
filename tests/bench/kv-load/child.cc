#include "tests/bench/kv-load/child.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

namespace tandem::bench {
namespace {

[[noreturn]] void Die(const char* what) {
  std::fprintf(stderr, "bench_kv-load: a process of it %s\n", what);
  std::exit(1);
}

}  // namespace

Child::Child(const std::vector<std::string>& command) {
  int in[2], out[2];
  if (pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0) Die("has no pipes");
  std::vector<char*> arguments;
  for (const std::string& word : command) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  pid_ = fork();
  if (pid_ == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    dup2(in[0], STDIN_FILENO);
    dup2(out[1], STDOUT_FILENO);
    execvp(arguments[0], arguments.data());
    _exit(127);
  }
  close(in[0]);
  close(out[1]);
  to_ = in[1];
  from_ = fdopen(out[0], "r");
}

Child::~Child() {
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
  close(to_);
  fclose(from_);
}

void Child::Send(const nlohmann::json& line) {
  const std::string text = line.dump() + "\n";
  if (write(to_, text.data(), text.size()) != static_cast<ssize_t>(text.size())) Die("has ended");
}

nlohmann::json Child::Receive() {
  char* text = nullptr;
  size_t size = 0;
  if (getline(&text, &size, from_) < 0) Die("has ended");
  auto parsed = nlohmann::json::parse(text);
  free(text);
  return parsed;
}

}  // namespace tandem::bench
