// The sub-commands of `tandem kv`, and what those share that run a model themselves, without any
// router. Those that look into a cluster's stores: kv_nodes.h.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/client.h"
#include "cli/options.h"
#include "kvstore/codec/profile.h"
#include "workers/calibration/replay.h"
#include "workers/engine/engine.h"

namespace tandem::cli {

/// The flags by which a sub-command is told which model to run on which text, and how.
struct KvInput {
  std::string model_path, text_path;
  int gpu_layers = -1;
  /// Cache types, flash attention, threads.
  workers::EngineOptions engine;

  KvInput();
  /// --model, --text, --k-type, --v-type, --no-flash-attention, --threads, --gpu-layers. This
  /// object must outlive them.
  std::vector<Option> Options();
};

/// INVALID_ARGUMENT naming the flag that is missing, or the file and the reason; errors of
/// Model::Load.
absl::StatusOr<std::shared_ptr<const workers::Model>> LoadModel(const KvInput& input);
/// The whole text. INVALID_ARGUMENT as above.
absl::StatusOr<std::string> LoadText(const KvInput& input);

/// --context, --continuation, --windows, --chunk. `replay` must outlive them.
std::vector<Option> ReplayFlags(workers::ReplayOptions& replay);

/// Where a model's profile lies if nobody says otherwise: beside it, ".kvprofile" for ".gguf".
std::string DefaultProfilePath(const std::string& model_path);
/// NOT_FOUND when there is no such file; errors of ParseProfile with the path.
absl::StatusOr<std::shared_ptr<const kvstore::codec::Profile>> LoadProfile(const std::string& path);

/// Runs a sub-command that takes flags only: reads the command line, then calls `work`, which
/// should look at `stop` often. Returns what to exit with; writes "tandem: CODE: message" for a
/// failure (kFailed, kUsage for INVALID_ARGUMENT), and `when_interrupted`, unless empty, for
/// Ctrl-C.
int RunFlagsOnly(const Command& command, std::span<char* const> args, const Terminal& terminal,
                 const std::function<absl::Status(const std::atomic<bool>& stop)>& work,
                 std::string_view when_interrupted = "");

/// The sub-commands of `tandem kv`; as those in client.h.
int RunKvDump(std::span<char* const> args, const Terminal& terminal);
int RunKvEval(std::span<char* const> args, const Terminal& terminal);
int RunKvProfile(std::span<char* const> args, const Terminal& terminal);
int RunKvLs(std::span<char* const> args, const Terminal& terminal);
int RunKvStat(std::span<char* const> args, const Terminal& terminal);
int RunKvRm(std::span<char* const> args, const Terminal& terminal);
int RunKvPin(std::span<char* const> args, const Terminal& terminal);

}  // namespace tandem::cli
