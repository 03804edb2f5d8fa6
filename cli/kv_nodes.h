// The nodes of a cluster that keep chunks, as `tandem kv ls|stat|rm|pin` talks to them: found
// through a router, asked one after another, with errors in words.
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/client.h"
#include "cli/options.h"
#include "kvstore/chunk.h"
#include "tandem/v1/cluster.pb.h"
#include "tandem/v1/store.grpc.pb.h"

namespace tandem::cli {

/// The flags that say whom to ask.
struct KvTarget {
  std::string router;
  /// Empty: all that the router knows.
  std::string node;

  /// --router and --node. This object must outlive them.
  std::vector<Option> Options();
};

/// The flags that name chunks by the prompt whose KV they are.
struct KvPrompt {
  std::optional<std::string> text, file;
  std::string tenant = "default";

  /// --prompt, --prompt-file and --tenant. This object must outlive them.
  std::vector<Option> Options();
  bool given() const { return text.has_value() || file.has_value(); }
  /// INVALID_ARGUMENT when both are given, or the file cannot be read.
  absl::StatusOr<std::string> Read() const;
};

/// A prompt's chunks, as one kind of engine has them.
struct PromptChunks {
  uint32_t chunk_tokens = 0;
  uint32_t n_tokens = 0;
  std::vector<kvstore::ChunkId> ids;
};

struct KvNode {
  /// For people; the address when only that is known.
  std::string name;
  std::string address;
};

/// One run of a sub-command. Errors are written as they occur, once for each node, and the others
/// are still asked; exit_code() knows. For one thread, but for Stop.
class KvNodes {
 public:
  KvNodes(const KvTarget& target, const Terminal& terminal)
      : target_(target), terminal_(terminal) {}

  /// Cancels what is going on, and all that would follow. From another thread.
  void Stop();

  /// Calls `ask` for every node in turn; it makes at most one call and returns how that ended.
  /// False: nobody answered.
  using Ask = std::function<grpc::Status(const KvNode& node, v1::StoreService::Stub& stub,
                                         grpc::ClientContext& context)>;
  bool AskAll(const Ask& ask);

  /// The entries of every node that fit the request, as they come; stops when `visit` returns
  /// false. False: nobody answered.
  using Visit = std::function<bool(const KvNode& node, const v1::ChunkEntry& entry)>;
  bool List(const v1::ListChunksRequest& request, const Visit& visit);

  /// Whole ids from words that are ids, or the first eight digits or more of one that some node
  /// holds. Nullopt: told what is wrong with them.
  std::optional<std::vector<kvstore::ChunkId>> Resolve(const std::vector<std::string>& words);
  /// What the cluster calls the prompt's chunks; several where its prefill workers' KV differs.
  /// Nullopt: told why not.
  std::optional<std::vector<PromptChunks>> Name(const std::string& prompt,
                                                const std::string& tenant);

  /// Writes "tandem: CODE: message". Returns nullopt, for brevity.
  std::nullopt_t Fail(const absl::Status& status);
  /// kOk, or what the worst error so far wants.
  int exit_code() const { return stopped() ? kInterrupted : exit_code_; }

 private:
  struct Peer {
    KvNode node;
    std::unique_ptr<v1::StoreService::Stub> stub;
  };
  bool stopped() const;
  // The call that Stop cancels. False: stopped.
  bool SetCall(grpc::ClientContext* call);
  bool AskRouter(const std::function<grpc::Status(const std::shared_ptr<grpc::Channel>& channel,
                                                  grpc::ClientContext& context)>& ask);
  bool FindWorkers();
  bool FindPeers();

  const KvTarget& target_;
  const Terminal& terminal_;
  std::shared_ptr<grpc::Channel> router_;
  std::optional<v1::ListWorkersResponse> workers_;
  // Those that have not failed.
  std::optional<std::vector<Peer>> peers_;
  int exit_code_ = kOk;
  mutable std::mutex mutex_;
  bool stopped_ = false;                 // guarded by mutex_
  grpc::ClientContext* call_ = nullptr;  // guarded by mutex_
};

/// Runs `work`, which Ctrl-C stops. Returns what to exit with.
int RunWithNodes(const KvTarget& target, const Terminal& terminal,
                 const std::function<void(KvNodes& nodes)>& work);

}  // namespace tandem::cli
