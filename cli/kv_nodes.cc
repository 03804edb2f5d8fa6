#include "cli/kv_nodes.h"

#include <algorithm>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "cli/interrupt.h"
#include "tandem/v1/cluster.grpc.pb.h"
#include "tandem/v1/inference.grpc.pb.h"

namespace tandem::cli {
namespace {

using kvstore::ChunkId;

/// How long a node or router may take to answer; listing a large store takes seconds.
constexpr absl::Duration kTimeout = absl::Seconds(60);
constexpr size_t kIdBytes = 32, kFewestDigits = 8;
/// Candidates that are shown for digits that fit several ids.
constexpr size_t kMostShown = 4;

bool IsHex(const std::string& text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return absl::ascii_isxdigit(static_cast<unsigned char>(c)); });
}

absl::Status NotAnId(const std::string& word) {
  return absl::InvalidArgumentError(
      absl::StrCat("'", word, "' is no chunk id: give its first ", kFewestDigits,
                   " hexadecimal digits or more, as 'tandem kv ls --long' shows them"));
}

/// Which of `found`, the ids that begin with the word, is meant.
absl::StatusOr<ChunkId> Only(const std::string& word, const std::set<ChunkId>& found) {
  if (found.size() == 1) return *found.begin();
  if (found.empty()) {
    return absl::NotFoundError(absl::StrCat("no node that answered holds a chunk whose id begins ",
                                            "with ", word, "; 'tandem kv ls' lists what is held"));
  }
  std::vector<std::string> shown;
  for (const ChunkId& id : found) {
    if (shown.size() < kMostShown) shown.push_back(id.Hex());
  }
  return absl::InvalidArgumentError(absl::StrCat(
      word, " fits ", found.size(), " chunks, give more digits: ", absl::StrJoin(shown, ", "),
      found.size() > kMostShown ? ", …" : ""));
}

}  // namespace

std::vector<Option> KvTarget::Options() {
  return {
      RouterOption(router),
      {"node", "HOST:PORT",
       "Ask only this worker or store, at its gRPC address. Default: all that the router knows.",
       ReadText([this](std::string v) { node = std::move(v); })}};
}

std::vector<Option> KvPrompt::Options() {
  return {{"prompt", "TEXT", "The chunks of this prompt.",
           ReadText([this](std::string v) { text = std::move(v); })},
          {"prompt-file", "FILE", "The chunks of the prompt in this file.",
           ReadText([this](std::string v) { file = std::move(v); })},
          {"tenant", "NAME", "Whose prompt it is. Default 'default'.",
           ReadText([this](std::string v) { tenant = std::move(v); })}};
}

absl::StatusOr<std::string> KvPrompt::Read() const {
  if (text && file) return absl::InvalidArgumentError("give --prompt or --prompt-file, not both");
  if (text) return *text;
  std::ifstream in(file.value_or(""), std::ios::binary);
  std::ostringstream content;
  if (in.good() && in.peek() != std::ifstream::traits_type::eof()) content << in.rdbuf();
  if (!in.is_open() || in.bad() || content.bad()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--prompt-file is '", file.value_or(""), "': cannot be read"));
  }
  return content.str();
}

void KvNodes::Stop() {
  std::lock_guard lock(mutex_);
  stopped_ = true;
  if (call_ != nullptr) call_->TryCancel();
}

bool KvNodes::stopped() const {
  std::lock_guard lock(mutex_);
  return stopped_;
}

bool KvNodes::SetCall(grpc::ClientContext* call) {
  std::lock_guard lock(mutex_);
  call_ = call;
  return !stopped_;
}

std::nullopt_t KvNodes::Fail(const absl::Status& status) {
  terminal_.err << "tandem: " << absl::StatusCodeToString(status.code()) << ": " << status.message()
                << "\n";
  exit_code_ = absl::IsInvalidArgument(status) ? kUsage : kFailed;
  return std::nullopt;
}

bool KvNodes::AskRouter(
    const std::function<grpc::Status(const std::shared_ptr<grpc::Channel>& channel,
                                     grpc::ClientContext& context)>& ask) {
  if (router_ == nullptr) router_ = Connect(target_.router);
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + kTimeout));
  if (!SetCall(&context)) return false;
  const grpc::Status status = ask(router_, context);
  if (!SetCall(nullptr)) return false;
  if (status.ok()) return true;
  exit_code_ = ReportError(status, target_.router, *router_, context, terminal_);
  return false;
}

bool KvNodes::FindWorkers() {
  if (workers_) return true;
  v1::ListWorkersResponse response;
  const auto ask = [&](const std::shared_ptr<grpc::Channel>& channel,
                       grpc::ClientContext& context) {
    return v1::ClusterService::NewStub(channel)->ListWorkers(&context, {}, &response);
  };
  if (!AskRouter(ask)) return false;
  workers_ = std::move(response);
  return true;
}

bool KvNodes::FindPeers() {
  if (peers_) return true;
  std::vector<KvNode> nodes;
  if (!target_.node.empty()) {
    nodes.push_back({.name = target_.node, .address = target_.node});
  } else {
    if (!FindWorkers()) return false;
    for (const v1::WorkerState& worker : workers_->workers()) {
      nodes.push_back({.name = worker.info().name(), .address = worker.info().grpc_address()});
    }
  }
  peers_.emplace();
  for (KvNode& node : nodes) {
    auto stub = v1::StoreService::NewStub(Connect(node.address));
    peers_->push_back({std::move(node), std::move(stub)});
  }
  return true;
}

bool KvNodes::AskAll(const Ask& ask) {
  if (!FindPeers()) return false;
  bool answered = false, failed = false;
  std::vector<Peer> well;
  for (Peer& peer : *peers_) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + kTimeout));
    if (!SetCall(&context)) return false;
    const grpc::Status status = ask(peer.node, *peer.stub, context);
    if (!SetCall(nullptr)) return false;
    if (status.ok()) {
      answered = true;
      well.push_back(std::move(peer));
    } else if (status.error_code() != grpc::StatusCode::UNIMPLEMENTED || !target_.node.empty()) {
      failed = true;
      Fail(Annotate(FromGrpc(status),
                    peer.node.name == peer.node.address
                        ? peer.node.name
                        : absl::StrCat(peer.node.name, " (", peer.node.address, ")")));
    }
  }
  peers_ = std::move(well);  // who failed once is not asked, or told of, again
  if (!answered && !failed && exit_code_ == kOk) {
    Fail(absl::NotFoundError(absl::StrCat("the router ", target_.router,
                                          " knows no node that keeps chunks; 'tandem status' "
                                          "lists the workers and stores that it knows")));
  }
  return answered;
}

bool KvNodes::List(const v1::ListChunksRequest& request, const Visit& visit) {
  bool go_on = true;
  return AskAll([&](const KvNode& node, v1::StoreService::Stub& stub,
                    grpc::ClientContext& context) {
    if (!go_on) return grpc::Status::OK;
    const auto reader = stub.ListChunks(&context, request);
    v1::ListChunksResponse response;
    while (reader->Read(&response)) {
      for (const v1::ChunkEntry& entry : response.chunks()) {
        if (entry.id().size() != kIdBytes) {
          context.TryCancel();
          reader->Finish();
          return grpc::Status(grpc::StatusCode::INTERNAL, "it sent an id that has not 32 bytes");
        }
        go_on = go_on && visit(node, entry);
      }
      if (!go_on) {
        context.TryCancel();
        reader->Finish();
        return grpc::Status::OK;
      }
    }
    return reader->Finish();
  });
}

std::optional<std::vector<ChunkId>> KvNodes::Resolve(const std::vector<std::string>& words) {
  std::vector<ChunkId> ids;
  for (const std::string& word : words) {
    if (!IsHex(word) || word.size() < kFewestDigits || word.size() > 2 * kIdBytes) {
      return Fail(NotAnId(word));
    }
    if (const auto id = ChunkId::FromHex(word); id.ok()) {
      ids.push_back(*id);
      continue;
    }
    v1::ListChunksRequest request;
    request.set_id_prefix(word);
    std::set<ChunkId> found;
    const bool answered = List(request, [&](const KvNode&, const v1::ChunkEntry& entry) {
      ChunkId id;
      std::copy(entry.id().begin(), entry.id().end(), id.bytes.begin());
      found.insert(id);
      return true;
    });
    if (!answered) return std::nullopt;
    const absl::StatusOr<ChunkId> id = Only(word, found);
    if (!id.ok()) return Fail(id.status());
    ids.push_back(*id);
  }
  return ids;
}

std::optional<std::vector<PromptChunks>> KvNodes::Name(const std::string& prompt,
                                                       const std::string& tenant) {
  if (!FindWorkers()) return std::nullopt;
  std::set<std::pair<std::string, uint32_t>> kinds;
  for (const v1::WorkerState& worker : workers_->workers()) {
    const v1::WorkerInfo& info = worker.info();
    if (info.phase() == v1::PHASE_PREFILL && !info.kv_namespace().empty() &&
        info.chunk_tokens() > 0) {
      kinds.insert({info.kv_namespace(), info.chunk_tokens()});
    }
  }
  if (kinds.empty()) {
    return Fail(absl::UnavailableError(absl::StrCat(
        "the router ", target_.router, " knows no prefill worker that keeps chunks, and without ",
        "one a prompt's chunks cannot be named; 'tandem status' lists the workers")));
  }
  v1::TokenizeRequest request;
  request.set_text(prompt);
  v1::TokenizeResponse tokens;
  const auto ask = [&](const std::shared_ptr<grpc::Channel>& channel,
                       grpc::ClientContext& context) {
    return v1::InferenceService::NewStub(channel)->Tokenize(&context, request, &tokens);
  };
  if (!AskRouter(ask)) return std::nullopt;
  std::vector<PromptChunks> named;
  for (const auto& [kv_namespace, chunk_tokens] : kinds) {
    const std::span<const int32_t> all(tokens.token_ids().data(),
                                       static_cast<size_t>(tokens.token_ids_size()));
    named.push_back({.chunk_tokens = chunk_tokens,
                     .n_tokens = static_cast<uint32_t>(all.size()),
                     .ids = kvstore::ChunkIds(kv_namespace, tenant, all, chunk_tokens)});
  }
  return named;
}

int RunWithNodes(const KvTarget& target, const Terminal& terminal,
                 const std::function<void(KvNodes& nodes)>& work) {
  KvNodes nodes(target, terminal);
  const Interrupt interrupt([&nodes] { nodes.Stop(); });
  work(nodes);
  return nodes.exit_code();
}

}  // namespace tandem::cli
