// `tandem kv ls|rm|pin`: what the cluster's stores hold, and what they shall hold no longer, or
// keep.
#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>

#include "absl/strings/escaping.h"
#include "absl/strings/str_format.h"
#include "base/status.h"
#include "cli/kv.h"
#include "cli/kv_nodes.h"

namespace tandem::cli {
namespace {

using kvstore::ChunkId;

constexpr size_t kShortId = 16;
constexpr char kHeading[] = "%-*s  %-8s  %-6s  %8s  %6s  %10s  %-6s  %s\n";

void AddOptions(Command& command, std::vector<Option> options) {
  command.options.insert(command.options.end(), options.begin(), options.end());
}

int RefuseOperands(const std::vector<std::string>& operands, const Terminal& terminal) {
  return ReportUsage(
      absl::InvalidArgumentError(absl::StrCat("unexpected argument '", operands[0], "'")),
      terminal);
}

/// Shows entries as they come: a store may hold more than fits memory.
class Lister {
 public:
  Lister(bool json, bool whole_ids, uint64_t limit, std::ostream& out)
      : json_(json), id_digits_(whole_ids ? 64 : kShortId), limit_(limit), out_(out) {}

  /// False: that is enough.
  bool Show(const KvNode& node, const v1::ChunkEntry& entry) {
    if (json_) {
      WriteJson(node, entry);
    } else {
      WriteRow(node, entry);
    }
    ++n_shown_;
    n_bytes_ += entry.bytes();
    return limit_ == 0 || n_shown_ < limit_;
  }

  void End() {
    if (!json_) {
      out_ << absl::StrFormat("%d %s, %d bytes\n", n_shown_, n_shown_ == 1 ? "entry" : "entries",
                              n_bytes_);
    }
    out_ << std::flush;
  }

 private:
  void WriteRow(const KvNode& node, const v1::ChunkEntry& entry) {
    if (n_shown_ == 0) {
      out_ << absl::StrFormat(kHeading, id_digits_, "ID", "LEVEL", "TIER", "POSITION", "TOKENS",
                              "BYTES", "PINNED", "NODE");
    }
    out_ << absl::StrFormat(kHeading, id_digits_,
                            absl::BytesToHexString(entry.id()).substr(0, id_digits_), entry.level(),
                            entry.tier(), absl::StrCat(entry.first_position()),
                            absl::StrCat(entry.n_tokens()), absl::StrCat(entry.bytes()),
                            entry.pinned() ? "yes" : "-", node.name);
  }

  void WriteJson(const KvNode& node, const v1::ChunkEntry& entry) {
    const nlohmann::ordered_json line = {{"id", absl::BytesToHexString(entry.id())},
                                         {"level", entry.level()},
                                         {"tier", entry.tier()},
                                         {"first_position", entry.first_position()},
                                         {"n_tokens", entry.n_tokens()},
                                         {"bytes", entry.bytes()},
                                         {"pinned", entry.pinned()},
                                         {"node", node.name}};
    out_ << line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << "\n";
  }

  const bool json_;
  const int id_digits_;
  const uint64_t limit_;
  std::ostream& out_;
  uint64_t n_shown_ = 0, n_bytes_ = 0;
};

/// What rm and pin have in common: which chunks, named how.
struct Choice {
  KvTarget target;
  KvPrompt prompt;
  bool all = false;
  std::vector<std::string> words;

  /// INVALID_ARGUMENT unless chunks are named in exactly one way. `ways`: for the message.
  absl::Status Check(const char* ways) const {
    const int n = (words.empty() ? 0 : 1) + (prompt.given() ? 1 : 0) + (all ? 1 : 0);
    if (n == 1) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat("which chunks? Give either ", ways));
  }

  /// The ids. Nullopt: told why not.
  std::optional<std::vector<ChunkId>> Ids(KvNodes& nodes, const Terminal& terminal) const {
    if (!prompt.given()) return nodes.Resolve(words);
    const absl::StatusOr<std::string> text = prompt.Read();
    if (!text.ok()) return nodes.Fail(text.status());
    const auto named = nodes.Name(*text, prompt.tenant);
    if (!named) return std::nullopt;
    std::vector<ChunkId> ids;
    for (const PromptChunks& each : *named) ids.insert(ids.end(), each.ids.begin(), each.ids.end());
    if (ids.empty()) {
      terminal.out << absl::StrFormat(
          "the prompt has %d tokens, less than a chunk of %d: nothing of it is kept\n",
          named->front().n_tokens, named->front().chunk_tokens);
    }
    return ids;
  }
};

/// Sends `call`, which gives how many ids it concerned, to every node, and says what each of them
/// did: "NODE: N removed". Returns how many in all; nullopt: nobody answered.
using ChangeCall = std::function<grpc::Status(v1::StoreService::Stub& stub,
                                              grpc::ClientContext& context, uint64_t& n)>;
std::optional<uint64_t> Change(KvNodes& nodes, const Terminal& terminal, const char* done,
                               const ChangeCall& call) {
  uint64_t total = 0;
  const bool answered = nodes.AskAll(
      [&](const KvNode& node, v1::StoreService::Stub& stub, grpc::ClientContext& context) {
        uint64_t n = 0;
        grpc::Status status = call(stub, context, n);
        if (status.ok() && n > 0) terminal.out << node.name << ": " << n << " " << done << "\n";
        total += n;
        return status;
      });
  terminal.out << std::flush;
  return answered ? std::optional(total) : std::nullopt;
}

void FailForNothing(KvNodes& nodes, const char* done) {
  nodes.Fail(absl::NotFoundError(absl::StrCat("nothing was ", done,
                                              ": no node that answered holds any of these chunks; ",
                                              "'tandem kv ls' lists what is held")));
}

template <typename Request>
void SetIds(const std::vector<ChunkId>& ids, Request& request) {
  for (const ChunkId& id : ids) request.add_ids(id.bytes.data(), id.bytes.size());
}

}  // namespace

int RunKvLs(std::span<char* const> args, const Terminal& terminal) {
  KvTarget target{.router = DefaultRouter(terminal)};
  bool json = false, whole_ids = false;
  uint64_t limit = 0;
  v1::ListChunksRequest request;
  Command command{"kv ls", "", "Lists the chunks that workers and stores hold, in no order.",
                  target.Options()};
  AddOptions(command,
             {{"id", "PREFIX", "Only ids that begin with these hexadecimal digits.",
               ReadText([&](std::string v) { request.set_id_prefix(std::move(v)); })},
              {"limit", "N", "At most so many; 0: all. Default 0.",
               ReadUint64([&](uint64_t v) { limit = v; })},
              {"long", "", "Show ids whole.", ReadSwitch([&] { whole_ids = true; })},
              {"json", "", "Write JSON, one line a chunk.", ReadSwitch([&] { json = true; })}});
  std::vector<std::string> operands;
  if (const auto exit_code = ReadCommandLine(command, args, terminal, operands)) return *exit_code;
  if (!operands.empty()) return RefuseOperands(operands, terminal);
  request.set_limit(limit);
  return RunWithNodes(target, terminal, [&](KvNodes& nodes) {
    Lister lister(json, whole_ids, limit, terminal.out);
    const bool answered = nodes.List(request, [&](const KvNode& node, const v1::ChunkEntry& entry) {
      return lister.Show(node, entry);
    });
    if (answered) lister.End();
  });
}

int RunKvRm(std::span<char* const> args, const Terminal& terminal) {
  Choice choice{.target = {.router = DefaultRouter(terminal)}};
  Command command{"kv rm", "[ID]...",
                  "Drops chunks from the memories and disks of workers and stores. An ID is a\n"
                  "chunk id or its first eight digits or more.",
                  choice.target.Options()};
  AddOptions(command, choice.prompt.Options());
  AddOptions(command, {{"all", "", "Every chunk.", ReadSwitch([&choice] { choice.all = true; })}});
  if (const auto exit_code = ReadCommandLine(command, args, terminal, choice.words)) {
    return *exit_code;
  }
  if (const auto status = choice.Check("IDs, a prompt, or --all"); !status.ok()) {
    return ReportUsage(status, terminal);
  }
  return RunWithNodes(choice.target, terminal, [&](KvNodes& nodes) {
    v1::RemoveChunksRequest request;
    request.set_all(choice.all);
    if (!choice.all) {
      const auto ids = choice.Ids(nodes, terminal);
      if (!ids || ids->empty()) return;
      SetIds(*ids, request);
    }
    const auto n =
        Change(nodes, terminal, "removed",
               [&request](v1::StoreService::Stub& stub, grpc::ClientContext& context, uint64_t& n) {
                 v1::RemoveChunksResponse response;
                 grpc::Status status = stub.RemoveChunks(&context, request, &response);
                 n = response.removed();
                 return status;
               });
    if (n != 0) return;
    if (choice.all) {
      terminal.out << "nothing was held\n" << std::flush;
    } else {
      FailForNothing(nodes, "removed");
    }
  });
}

int RunKvPin(std::span<char* const> args, const Terminal& terminal) {
  Choice choice{.target = {.router = DefaultRouter(terminal)}};
  bool off = false;
  Command command{"kv pin", "[ID]...",
                  "Keeps chunks from eviction, wherever they are held. An ID is a chunk id or its\n"
                  "first eight digits or more.",
                  choice.target.Options()};
  AddOptions(command, choice.prompt.Options());
  AddOptions(command,
             {{"off", "", "Let them be evicted again.", ReadSwitch([&off] { off = true; })}});
  if (const auto exit_code = ReadCommandLine(command, args, terminal, choice.words)) {
    return *exit_code;
  }
  if (const auto status = choice.Check("IDs or a prompt"); !status.ok()) {
    return ReportUsage(status, terminal);
  }
  return RunWithNodes(choice.target, terminal, [&](KvNodes& nodes) {
    const auto ids = choice.Ids(nodes, terminal);
    if (!ids || ids->empty()) return;
    v1::PinChunksRequest request;
    request.set_pinned(!off);
    SetIds(*ids, request);
    const char* const done = off ? "unpinned" : "pinned";
    const auto n =
        Change(nodes, terminal, done,
               [&request](v1::StoreService::Stub& stub, grpc::ClientContext& context, uint64_t& n) {
                 v1::PinChunksResponse response;
                 grpc::Status status = stub.PinChunks(&context, request, &response);
                 n = response.changed();
                 return status;
               });
    if (n == 0) FailForNothing(nodes, done);
  });
}

}  // namespace tandem::cli
