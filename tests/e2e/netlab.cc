#include "tests/e2e/netlab.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>

namespace tandem::e2e {
namespace {

std::string Script() { return std::string(TANDEM_SOURCE_DIR) + "/tests/e2e/netlab.sh"; }

}  // namespace

std::string Netlab::WhyNot() {
  static const std::string why = [] {
    Process check({Script(), "check"}, TemporaryPath(".netlab"));
    return check.Wait() == 0 ? "" : "NOT TESTED, no network to test on: " + check.Log();
  }();
  return why;
}

Netlab::Netlab(int hosts) { lab_ = Run({"up", std::to_string(hosts), std::to_string(getpid())}); }

Netlab::~Netlab() { Run({"down"}); }

std::string Netlab::Address(int host) const {
  return "198.18." + lab_ + "." + std::to_string(host);
}

std::vector<std::string> Netlab::Wrap(int host, std::vector<std::string> command) const {
  std::vector<std::string> wrapped = Host(host).wrapper;
  wrapped.insert(wrapped.end(), command.begin(), command.end());
  return wrapped;
}

DaemonHost Netlab::Host(int host) const {
  return {.wrapper = {"ip", "netns", "exec", "tnl" + lab_ + "h" + std::to_string(host)},
          .address = Address(host)};
}

void Netlab::Rate(int host, const std::string& rate) { Run({"rate", std::to_string(host), rate}); }
void Netlab::Rate(int from, int to, const std::string& rate) {
  Run({"rate", std::to_string(from) + ":" + std::to_string(to), rate});
}
uint64_t Netlab::Sent(int from, int to) const {
  const std::string bytes = Run({"sent", std::to_string(from) + ":" + std::to_string(to)});
  EXPECT_NE(bytes, "");
  return std::strtoull(bytes.c_str(), nullptr, 10);
}
void Netlab::Cut(int host) { Run({"cut", std::to_string(host)}); }
void Netlab::Cut(int a, int b) { Run({"cut", std::to_string(a) + ":" + std::to_string(b)}); }
void Netlab::Heal() { Run({"heal"}); }
void Netlab::Delay(int host, double ms) {
  Run({"delay", std::to_string(host), std::to_string(ms)});
}

std::string Netlab::Run(std::vector<std::string> arguments) const {
  std::vector<std::string> command = {"env", "LAB=" + lab_,
                                      "NETLAB_DELAY=" + BinaryPath("netlab_delay"), Script()};
  command.insert(command.end(), arguments.begin(), arguments.end());
  Process script(command, TemporaryPath(".netlab"));
  const auto exit_code = script.Wait();
  std::string output = script.Log();
  EXPECT_EQ(exit_code, 0) << "netlab.sh " << arguments[0] << ": " << output;
  while (!output.empty() && output.back() == '\n') output.pop_back();
  return output;
}

}  // namespace tandem::e2e
