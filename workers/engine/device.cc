#include "workers/engine/device.h"

#include <fstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "workers/engine/libllama.h"

namespace tandem::workers {
namespace {

/// "model name" on x86; machines whose /proc/cpuinfo has none are told apart by their features.
std::string Processor() {
  std::ifstream in("/proc/cpuinfo");
  std::string features;
  for (std::string line; std::getline(in, line);) {
    const size_t colon = line.find(": ");
    if (colon == std::string::npos) continue;
    if (absl::StartsWith(line, "model name")) return line.substr(colon + 2);
    if (features.empty() && absl::StartsWith(line, "Features")) features = line.substr(colon + 2);
  }
  return features.empty() ? "unknown processor" : features;
}

}  // namespace

std::string DeviceDescription(bool with_gpus) {
  std::string text = Processor();
  if (!with_gpus) return text;
  InitLibllama();
  for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
    ggml_backend_dev_t device = ggml_backend_dev_get(i);
    if (ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU) continue;
    absl::StrAppend(&text, " + ", ggml_backend_dev_description(device));
  }
  return text;
}

}  // namespace tandem::workers
