// The two processes and the link between them.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "tests/bench/kv-load/child.h"
#include "tests/bench/kv-load/context.h"
#include "tests/e2e/netlab.h"

namespace tandem::bench {

class BenchPair {
 public:
  /// Starts both, by this very program: see RunHolder and RunLoader.
  BenchPair(const Context& context, const std::string& text, uint32_t threads,
            const std::string& log);

  /// Of what the holder sends.
  void SetRate(double mbit_per_s);
  /// Waits until the link is quiet, and runs one command of RunLoader.
  nlohmann::json Run(const nlohmann::json& command);
  /// The same in two parts, so that things can happen meanwhile.
  void Settle() { loader_->Ask({{"way", "settle"}}); }
  Child& loader() { return *loader_; }
  /// Nothing passes until Heal.
  void Cut() { lab_.Cut(kHolder, kLoader); }
  void Heal() { lab_.Heal(); }

  /// Of the whole context, by way.
  const std::map<std::string, double>& bytes() const { return bytes_; }

 private:
  static constexpr int kHolder = 1, kLoader = 2;
  e2e::Netlab lab_{2};
  std::unique_ptr<Child> holder_, loader_;
  std::map<std::string, double> bytes_;
};

}  // namespace tandem::bench
