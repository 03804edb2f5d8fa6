#include "workers/store_service.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/ascii.h"
#include "base/log.h"
#include "base/status.h"

namespace tandem::workers {
namespace {

using kvstore::ChunkId;
using kvstore::Origin;
using kvstore::TierEntry;

/// Entries of a message: about 100 kB.
constexpr size_t kEntriesPerMessage = 1000;

struct Listed {
  TierEntry entry;
  Origin origin;
};

absl::StatusOr<std::vector<ChunkId>> ParseIds(
    const google::protobuf::RepeatedPtrField<std::string>& fields) {
  std::vector<ChunkId> ids;
  ids.reserve(static_cast<size_t>(fields.size()));
  for (int i = 0; i < fields.size(); ++i) {
    ChunkId& id = ids.emplace_back();
    if (fields[i].size() != id.bytes.size()) {
      return absl::InvalidArgumentError(absl::StrCat("ids[", i, "]: ", fields[i].size(),
                                                     " bytes; a chunk id has ", id.bytes.size()));
    }
    std::memcpy(id.bytes.data(), fields[i].data(), id.bytes.size());
  }
  return ids;
}

/// Which chunks a list is to have.
struct Filter {
  /// Hexadecimal digits, as numbers, with which ids must begin.
  std::vector<uint8_t> digits;
  /// Empty: all.
  absl::flat_hash_set<ChunkId> ids;

  bool Wants(const ChunkId& id) const {
    for (size_t i = 0; i < digits.size(); ++i) {
      const uint8_t byte = id.bytes[i / 2];
      if ((i % 2 == 0 ? byte >> 4 : byte & 15) != digits[i]) return false;
    }
    return ids.empty() || ids.contains(id);
  }
};

absl::StatusOr<Filter> ParseFilter(const v1::ListChunksRequest& request) {
  Filter filter;
  const std::string& prefix = request.id_prefix();
  for (const char c : prefix) {
    const int digit = absl::ascii_isdigit(static_cast<unsigned char>(c))
                          ? c - '0'
                          : absl::ascii_tolower(static_cast<unsigned char>(c)) - 'a' + 10;
    if (!absl::ascii_isxdigit(static_cast<unsigned char>(c)) ||
        prefix.size() > 2 * ChunkId().bytes.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("id_prefix is '", prefix,
                       "'; it must have at most 64 characters, all of them "
                       "hexadecimal digits"));
    }
    filter.digits.push_back(static_cast<uint8_t>(digit));
  }
  ASSIGN_OR_RETURN(const std::vector<ChunkId> ids, ParseIds(request.ids()));
  filter.ids.insert(ids.begin(), ids.end());
  return filter;
}

void Fill(const Listed& listed, v1::ChunkEntry& out) {
  const auto& [key, first_position, n_tokens, bytes, pinned] = listed.entry;
  out.set_id(key.id.bytes.data(), key.id.bytes.size());
  out.set_level(std::string(kvstore::codec::LevelName(key.level)));
  out.set_tier(std::string(kvstore::OriginName(listed.origin)));
  out.set_first_position(first_position);
  out.set_n_tokens(n_tokens);
  out.set_bytes(bytes);
  out.set_pinned(pinned);
}

/// Writes the entries piece by piece, and frees itself.
class ListCall final : public grpc::ServerWriteReactor<v1::ListChunksResponse> {
 public:
  explicit ListCall(std::vector<Listed> entries) : entries_(std::move(entries)) { WriteNext(); }

 private:
  void WriteNext() {
    response_.clear_chunks();
    const size_t end = std::min(entries_.size(), next_ + kEntriesPerMessage);
    for (; next_ < end; ++next_) Fill(entries_[next_], *response_.add_chunks());
    if (response_.chunks().empty()) {
      Finish(grpc::Status::OK);
    } else {
      StartWrite(&response_);
    }
  }
  void OnWriteDone(bool ok) override {
    if (ok) return WriteNext();
    Finish(grpc::Status::CANCELLED);  // nobody hears it
  }
  void OnDone() override { delete this; }

  const std::vector<Listed> entries_;
  size_t next_ = 0;
  v1::ListChunksResponse response_;
};

/// A stream that says only what is wrong.
class RefusedListCall final : public grpc::ServerWriteReactor<v1::ListChunksResponse> {
 public:
  explicit RefusedListCall(const absl::Status& status) { Finish(ToGrpc(status)); }

 private:
  void OnDone() override { delete this; }
};

grpc::ServerUnaryReactor* Done(grpc::CallbackServerContext* context, const absl::Status& status) {
  auto* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpc(status));
  return reactor;
}

void Fill(const kvstore::StoreStats& stats, Origin origin, v1::GetStoreStatsResponse& response) {
  const auto at = static_cast<size_t>(origin);
  if (!stats.tiers[at]) return;
  const kvstore::TierStats& tier = *stats.tiers[at];
  v1::TierState& state = *response.add_tiers();
  state.set_tier(std::string(kvstore::OriginName(origin)));
  state.set_bytes(tier.bytes);
  state.set_limit_bytes(tier.limit_bytes);
  state.set_chunks(tier.chunks);
  state.set_hits(stats.hits[at]);
  state.set_evictions(tier.evictions);
  state.set_evicted_bytes(tier.evicted_bytes);
  state.set_damaged(tier.damaged);
  state.set_failures(tier.failures);
  state.set_pending_bytes(stats.pending_bytes[at]);
  state.set_dropped_writes(stats.dropped_writes[at]);
  state.set_healthy(tier.healthy);
}

absl::StatusOr<uint64_t> Remove(kvstore::Store& store, const v1::RemoveChunksRequest& request) {
  if (request.all() != request.ids().empty()) {
    return absl::InvalidArgumentError("ids: name chunks, or set `all` and name none");
  }
  std::vector<ChunkId> ids;
  if (request.all()) {
    store.ForEach([&ids](const TierEntry& entry, Origin) {
      ids.push_back(entry.key.id);
      return true;
    });
  } else {
    ASSIGN_OR_RETURN(ids, ParseIds(request.ids()));
  }
  return static_cast<uint64_t>(std::count_if(
      ids.begin(), ids.end(), [&store](const ChunkId& id) { return store.Remove(id); }));
}

}  // namespace

grpc::ServerWriteReactor<v1::ListChunksResponse>* StoreServiceImpl::ListChunks(
    grpc::CallbackServerContext*, const v1::ListChunksRequest* request) {
  const absl::StatusOr<Filter> filter = ParseFilter(*request);
  if (!filter.ok()) return new RefusedListCall(filter.status());
  const uint64_t limit = request->limit() == 0 ? UINT64_MAX : request->limit();
  std::vector<Listed> entries;
  store_->ForEach([&](const TierEntry& entry, Origin origin) {
    if (filter->Wants(entry.key.id)) entries.push_back({entry, origin});
    return entries.size() < limit;
  });
  return new ListCall(std::move(entries));
}

grpc::ServerUnaryReactor* StoreServiceImpl::GetStoreStats(grpc::CallbackServerContext* context,
                                                          const v1::GetStoreStatsRequest*,
                                                          v1::GetStoreStatsResponse* response) {
  const kvstore::StoreStats stats = store_->stats();
  for (const Origin origin : {Origin::kMemory, Origin::kDisk, Origin::kRedis}) {
    Fill(stats, origin, *response);
  }
  response->set_misses(stats.misses);
  response->set_pins(stats.pins);
  return Done(context, absl::OkStatus());
}

grpc::ServerUnaryReactor* StoreServiceImpl::RemoveChunks(grpc::CallbackServerContext* context,
                                                         const v1::RemoveChunksRequest* request,
                                                         v1::RemoveChunksResponse* response) {
  const absl::StatusOr<uint64_t> removed = Remove(*store_, *request);
  if (!removed.ok()) return Done(context, removed.status());
  spdlog::info("chunks removed by an operator ids={} all={}", *removed, request->all());
  response->set_removed(*removed);
  return Done(context, absl::OkStatus());
}

grpc::ServerUnaryReactor* StoreServiceImpl::PinChunks(grpc::CallbackServerContext* context,
                                                      const v1::PinChunksRequest* request,
                                                      v1::PinChunksResponse* response) {
  const auto ids = ParseIds(request->ids());
  if (!ids.ok()) return Done(context, ids.status());
  const auto changed = std::count_if(ids->begin(), ids->end(), [&](const ChunkId& id) {
    return store_->SetPinned(id, request->pinned());
  });
  response->set_changed(static_cast<uint64_t>(changed));
  return Done(context, absl::OkStatus());
}

}  // namespace tandem::workers
