// A network of hosts for tests: links with a rate and a delay, cut and joined at will. Around
// netlab.sh, which says how it is made.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tests/e2e/harness.h"

namespace tandem::e2e {

/// Hosts 1 to n, all up while the object is. The test itself is on the network as well, by a link
/// that no rate limits: it reaches every host's Address, and daemons in a host reach one another.
/// What cuts off a host cuts it off from the test too; what cuts a pair does not. Daemons have to
/// be gone before their network is: declare it first. Labs of tests that died are removed. Any
/// failure fails the test. Not thread-safe.
///
///   if (const std::string why = Netlab::WhyNot(); !why.empty()) GTEST_SKIP() << why;
///   Netlab lab(3);
///   Cluster cluster({.router_host = lab.Host(1), …});
///   lab.Rate(2, "100mbit");
class Netlab {
 public:
  /// Empty where networks can be made: root, the programs, a kernel that lets us. Else why not, in
  /// words for a skipped test.
  static std::string WhyNot();

  explicit Netlab(int hosts);
  ~Netlab();
  Netlab(const Netlab&) = delete;
  Netlab& operator=(const Netlab&) = delete;

  std::string Address(int host) const;
  /// `command` as it is to be run to run in the host.
  std::vector<std::string> Wrap(int host, std::vector<std::string> command) const;
  /// For a daemon that is to run there.
  DaemonHost Host(int host) const;

  /// "100mbit", "1gbit": of the host's link each way; of what one host sends to another.
  void Rate(int host, const std::string& rate);
  void Rate(int from, int to, const std::string& rate);
  /// Bytes of frames, headers and all, that one host has sent to another.
  uint64_t Sent(int from, int to) const;
  /// Frames vanish, as with a cable that is pulled further away.
  void Cut(int host);
  void Cut(int a, int b);
  void Heal();
  /// Of the host's link, each way; 0: none.
  void Delay(int host, double ms);

 private:
  /// The script's output. Fails the test when it fails.
  std::string Run(std::vector<std::string> arguments) const;

  std::string lab_;
};

}  // namespace tandem::e2e
