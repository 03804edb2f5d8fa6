// `tandem kv stat`: how full and how useful the cluster's stores are; and, of one prompt, what of
// it is cached where.
#include <algorithm>
#include <array>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/status.h"
#include "cli/kv.h"
#include "cli/kv_nodes.h"
#include "cli/table.h"

namespace tandem::cli {
namespace {

using kvstore::ChunkId;
using kvstore::Level;
using kvstore::codec::kAllLevels;
using kvstore::codec::LevelName;
using Json = nlohmann::ordered_json;

constexpr size_t kShortId = 16;

std::string Dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

/// "12.5 %", or "-" of nothing.
std::string Share(uint64_t part, uint64_t all) {
  return all == 0 ? "-"
                  : absl::StrFormat("%.1f %%",
                                    100.0 * static_cast<double>(part) / static_cast<double>(all));
}

// ------------------------------------------------------------------ the stores

struct NodeStats {
  KvNode node;
  v1::GetStoreStatsResponse stats;
};

uint64_t Fetches(const v1::GetStoreStatsResponse& stats) {
  uint64_t n = stats.misses();
  for (const v1::TierState& tier : stats.tiers()) n += tier.hits();
  return n;
}

void Add(const v1::TierState& tier, v1::TierState& sum) {
  sum.set_bytes(sum.bytes() + tier.bytes());
  sum.set_limit_bytes(sum.limit_bytes() + tier.limit_bytes());
  sum.set_chunks(sum.chunks() + tier.chunks());
  sum.set_hits(sum.hits() + tier.hits());
  sum.set_evictions(sum.evictions() + tier.evictions());
  sum.set_damaged(sum.damaged() + tier.damaged());
  sum.set_failures(sum.failures() + tier.failures());
  sum.set_dropped_writes(sum.dropped_writes() + tier.dropped_writes());
  sum.set_healthy(sum.healthy() && tier.healthy());
}

/// `fetches`: of the node, which the share of hits refers to.
Row TierRow(const std::string& node, const v1::TierState& tier, uint64_t fetches) {
  const std::string limit = tier.limit_bytes() == 0 ? "-" : Bytes(tier.limit_bytes());
  return {node,
          tier.tier(),
          Bytes(tier.bytes()),
          limit,
          absl::StrCat(tier.chunks()),
          absl::StrCat(tier.hits()),
          Share(tier.hits(), fetches),
          absl::StrCat(tier.evictions()),
          absl::StrCat(tier.dropped_writes()),
          absl::StrCat(tier.damaged()),
          absl::StrCat(tier.failures()),
          tier.healthy() ? "well" : "failing"};
}

/// All nodes' tiers of one name as one, in the order in which names come first.
std::vector<v1::TierState> Totals(const std::vector<NodeStats>& nodes) {
  std::vector<v1::TierState> totals;
  for (const NodeStats& each : nodes) {
    for (const v1::TierState& tier : each.stats.tiers()) {
      const auto found = std::find_if(totals.begin(), totals.end(), [&](const auto& total) {
        return total.tier() == tier.tier();
      });
      if (found == totals.end()) {
        totals.push_back(tier);
      } else {
        Add(tier, *found);
      }
    }
  }
  return totals;
}

void WriteTable(const std::vector<NodeStats>& nodes, std::ostream& out) {
  std::vector<Row> rows = {{"NODE", "TIER", "USED", "LIMIT", "ENTRIES", "HITS", "SHARE", "EVICTED",
                            "DROPPED", "DAMAGED", "FAILURES", "STATE"}};
  uint64_t fetches = 0, misses = 0, pins = 0;
  for (const NodeStats& each : nodes) {
    const uint64_t own = Fetches(each.stats);
    for (const v1::TierState& tier : each.stats.tiers()) {
      rows.push_back(TierRow(each.node.name, tier, own));
    }
    fetches += own;
    misses += each.stats.misses();
    pins += each.stats.pins();
  }
  if (nodes.size() > 1) {
    for (const v1::TierState& tier : Totals(nodes)) rows.push_back(TierRow("all", tier, fetches));
  }
  out << Table(rows)
      << (fetches == 0
              ? "no chunk has been asked for"
              : absl::StrFormat("%d of %d chunks that were asked for were found (%s)",
                                fetches - misses, fetches, Share(fetches - misses, fetches)))
      << "; " << pins << " pinned\n"
      << std::flush;
}

void WriteJson(const std::vector<NodeStats>& nodes, std::ostream& out) {
  Json json = {{"nodes", Json::array()}};
  for (const NodeStats& each : nodes) {
    Json tiers = Json::array();
    for (const v1::TierState& tier : each.stats.tiers()) {
      tiers.push_back({{"tier", tier.tier()},
                       {"bytes", tier.bytes()},
                       {"limit_bytes", tier.limit_bytes()},
                       {"chunks", tier.chunks()},
                       {"hits", tier.hits()},
                       {"evictions", tier.evictions()},
                       {"evicted_bytes", tier.evicted_bytes()},
                       {"damaged", tier.damaged()},
                       {"failures", tier.failures()},
                       {"pending_bytes", tier.pending_bytes()},
                       {"dropped_writes", tier.dropped_writes()},
                       {"healthy", tier.healthy()}});
    }
    json["nodes"].push_back({{"node", each.node.name},
                             {"address", each.node.address},
                             {"tiers", std::move(tiers)},
                             {"misses", each.stats.misses()},
                             {"pins", each.stats.pins()}});
  }
  out << Dump(json) << std::flush;
}

void ShowStores(KvNodes& nodes, bool json, std::ostream& out) {
  std::vector<NodeStats> all;
  const bool answered = nodes.AskAll(
      [&](const KvNode& node, v1::StoreService::Stub& stub, grpc::ClientContext& context) {
        NodeStats each{.node = node};
        grpc::Status status = stub.GetStoreStats(&context, {}, &each.stats);
        if (status.ok()) all.push_back(std::move(each));
        return status;
      });
  if (!answered) return;
  if (json) {
    WriteJson(all, out);
  } else {
    WriteTable(all, out);
  }
}

// ------------------------------------------------------------------ one prompt

struct Copy {
  std::string node, level, tier;
};
using Copies = absl::flat_hash_map<ChunkId, std::vector<Copy>>;

/// Leading chunks that somebody holds at `floor` or finer.
size_t CachedChunks(const PromptChunks& prompt, const Copies& copies, Level floor) {
  size_t n = 0;
  for (const ChunkId& id : prompt.ids) {
    const auto held = copies.find(id);
    const bool good = held != copies.end() &&
                      std::any_of(held->second.begin(), held->second.end(), [&](const Copy& copy) {
                        const auto level = kvstore::codec::ParseLevel(copy.level);
                        return level.ok() && *level <= floor;
                      });
    if (!good) break;
    ++n;
  }
  return n;
}

uint64_t CachedTokens(const PromptChunks& prompt, const Copies& copies, Level floor) {
  return CachedChunks(prompt, copies, floor) * prompt.chunk_tokens;
}

/// "prefill-1 lossless/q1 (memory), store-1 q2 (disk)". REQUIRES: copies of one node's tier beside
/// each other.
std::string Words(const std::vector<Copy>& copies) {
  std::string words;
  for (size_t i = 0; i < copies.size(); ++i) {
    const Copy& copy = copies[i];
    const auto goes_with = [&copy](const Copy& other) {
      return copy.node == other.node && copy.tier == other.tier;
    };
    if (i > 0 && goes_with(copies[i - 1])) {
      absl::StrAppend(&words, "/", copy.level);
    } else {
      absl::StrAppend(&words, i > 0 ? ", " : "", copy.node, " ", copy.level);
    }
    if (i + 1 == copies.size() || !goes_with(copies[i + 1])) {
      absl::StrAppend(&words, " (", copy.tier, ")");
    }
  }
  return words;
}

void WritePrompt(const PromptChunks& prompt, const Copies& copies, std::ostream& out) {
  std::vector<Row> rows = {{"TOKENS", "ID", "HELD BY"}};
  for (size_t i = 0; i < prompt.ids.size(); ++i) {
    const uint64_t first = i * prompt.chunk_tokens;
    const auto held = copies.find(prompt.ids[i]);
    rows.push_back({absl::StrCat(first, "-", first + prompt.chunk_tokens - 1),
                    prompt.ids[i].Hex().substr(0, kShortId),
                    held == copies.end() ? "-" : Words(held->second)});
  }
  const uint64_t tokens = CachedTokens(prompt, copies, kAllLevels.back());
  out << (prompt.ids.empty() ? "" : Table(rows))
      << absl::StrFormat("%d of %d tokens of the prompt are cached (%s), in chunks of %d\n", tokens,
                         prompt.n_tokens, Share(tokens, prompt.n_tokens), prompt.chunk_tokens);
  if (tokens == 0) return;
  std::vector<std::string> by_floor;
  for (const Level level : kAllLevels) {
    by_floor.push_back(
        absl::StrCat(View(LevelName(level)), " ", CachedTokens(prompt, copies, level)));
  }
  out << "by the coarsest level that is allowed: " << absl::StrJoin(by_floor, ", ") << "\n";
}

Json ToJson(const PromptChunks& prompt, const Copies& copies) {
  Json json = {{"n_tokens", prompt.n_tokens}, {"chunk_tokens", prompt.chunk_tokens}};
  for (const Level level : kAllLevels) {
    json["cached_tokens_by_floor"][std::string(LevelName(level))] =
        CachedTokens(prompt, copies, level);
  }
  json["chunks"] = Json::array();
  for (size_t i = 0; i < prompt.ids.size(); ++i) {
    Json held = Json::array();
    if (const auto found = copies.find(prompt.ids[i]); found != copies.end()) {
      for (const Copy& copy : found->second) {
        held.push_back({{"node", copy.node}, {"level", copy.level}, {"tier", copy.tier}});
      }
    }
    json["chunks"].push_back({{"id", prompt.ids[i].Hex()},
                              {"first_position", i * prompt.chunk_tokens},
                              {"held", std::move(held)}});
  }
  return json;
}

/// Who holds any of the chunks. False: nobody answered.
bool FindCopies(KvNodes& nodes, const std::vector<PromptChunks>& prompts, Copies& copies) {
  v1::ListChunksRequest request;
  for (const PromptChunks& prompt : prompts) {
    for (const ChunkId& id : prompt.ids) request.add_ids(id.bytes.data(), id.bytes.size());
  }
  if (request.ids().empty()) return true;  // a request without ids is for all chunks
  const bool answered = nodes.List(request, [&](const KvNode& node, const v1::ChunkEntry& entry) {
    ChunkId id;
    std::copy(entry.id().begin(), entry.id().end(), id.bytes.begin());
    copies[id].push_back({.node = node.name, .level = entry.level(), .tier = entry.tier()});
    return true;
  });
  for (auto& [id, held] : copies) {
    std::sort(held.begin(), held.end(), [](const Copy& a, const Copy& b) {
      return std::tie(a.node, a.tier, a.level) < std::tie(b.node, b.tier, b.level);
    });
  }
  return answered;
}

void ShowPrompt(KvNodes& nodes, const KvPrompt& prompt, bool json, std::ostream& out) {
  const absl::StatusOr<std::string> text = prompt.Read();
  if (!text.ok()) {
    nodes.Fail(text.status());
    return;
  }
  const auto named = nodes.Name(*text, prompt.tenant);
  Copies copies;
  if (!named || !FindCopies(nodes, *named, copies)) return;
  for (const PromptChunks& each : *named) {
    if (json) {
      out << Dump(ToJson(each, copies));
    } else {
      WritePrompt(each, copies, out);
    }
  }
  out << std::flush;
}

}  // namespace

int RunKvStat(std::span<char* const> args, const Terminal& terminal) {
  KvTarget target{.router = DefaultRouter(terminal)};
  KvPrompt prompt;
  bool json = false;
  Command command{"kv stat", "",
                  "Shows how full and how useful the stores of workers and store nodes are; with\n"
                  "a prompt, how much of it is cached, where and at which levels.",
                  target.Options()};
  for (Option& option : prompt.Options()) command.options.push_back(std::move(option));
  command.options.push_back({"json", "", "Write JSON.", ReadSwitch([&json] { json = true; })});
  std::vector<std::string> operands;
  if (const auto exit_code = ReadCommandLine(command, args, terminal, operands)) return *exit_code;
  if (!operands.empty()) {
    return ReportUsage(absl::InvalidArgumentError(absl::StrCat("unexpected argument '", operands[0],
                                                               "'; a prompt goes into --prompt")),
                       terminal);
  }
  return RunWithNodes(target, terminal, [&](KvNodes& nodes) {
    if (prompt.given()) {
      ShowPrompt(nodes, prompt, json, terminal.out);
    } else {
      ShowStores(nodes, json, terminal.out);
    }
  });
}

}  // namespace tandem::cli
