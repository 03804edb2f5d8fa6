// Fuzz target: any bytes as a configuration file. Run by libFuzzer, and by config_fuzz_test.cc.
#include <cstdint>
#include <cstdlib>
#include <map>
#include <string>
#include <string_view>

#include "server/config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using tandem::server::ApplyYaml;
  using tandem::server::Config;
  Config config;
  std::map<std::string, std::string> origins;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const absl::Status status = ApplyYaml(text, "fuzz.yaml", config, origins);
  if (!status.ok()) {
    const bool explained = absl::IsInvalidArgument(status) && !status.message().empty() &&
                           status.message().size() < 4096;
    if (!explained) std::abort();
    return 0;
  }
  (void)Validate(config);
  // What was accepted is written in a form that is accepted too, and means the same.
  Config again;
  const std::string written = ToYaml(config, origins);
  if (!ApplyYaml(written, "again.yaml", again, origins).ok()) std::abort();
  if (ToYaml(again, {}) != ToYaml(config, {})) std::abort();
  return 0;
}
