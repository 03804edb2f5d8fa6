#include "tests/bench/kv-load/bench_pair.h"

#include <filesystem>

#include "absl/strings/str_cat.h"

namespace tandem::bench {

BenchPair::BenchPair(const Context& context, const std::string& text, uint32_t threads,
                     const std::string& log) {
  const auto command = [&](const char* role) -> std::vector<std::string> {
    return {std::filesystem::read_symlink("/proc/self/exe"),
            absl::StrCat("--internal_role=", role),
            "--internal_context=" + context.name,
            "--text=" + text,
            absl::StrCat("--threads=", threads),
            "--log=" + log};
  };
  holder_ = std::make_unique<Child>(lab_.Wrap(kHolder, command("holder")));
  const nlohmann::json held = holder_->Receive();
  bytes_ = held["bytes"].get<std::map<std::string, double>>();
  std::vector<std::string> loader = command("loader");
  loader.push_back("--internal_host=" + lab_.Address(kHolder));
  loader.push_back("--internal_ports=" + held["ports"].dump());
  loader_ = std::make_unique<Child>(lab_.Wrap(kLoader, loader));
  loader_->Receive();
}

void BenchPair::SetRate(double mbit_per_s) {
  lab_.Rate(kHolder, kLoader, absl::StrCat(mbit_per_s, "mbit"));
}

nlohmann::json BenchPair::Run(const nlohmann::json& command) {
  Settle();
  return loader_->Ask(command);
}

}  // namespace tandem::bench
