#include "workers/parking_lot.h"

#include <algorithm>
#include <cstring>

#include "base/log.h"
#include "base/random_bytes.h"
#include "base/status.h"

namespace tandem::workers {

using kvstore::ChunkId;
using kvstore::ChunkKey;
using kvstore::KvChunk;
using kvstore::Level;
using kvstore::StoredChunk;
using kvstore::StoredChunkPtr;

namespace {

/// Ends the ids of parked chunks, so that a run after a crash finds what nobody will ask for again.
/// The id of other chunks is a hash: it ends so once in 2⁶⁴.
constexpr std::string_view kMark = "TDMPARKD";

ChunkId NewId() {
  ChunkId id;
  std::memcpy(id.bytes.data(), RandomBytes(id.bytes.size()).data(), id.bytes.size());
  std::memcpy(&id.bytes[id.bytes.size() - kMark.size()], kMark.data(), kMark.size());
  return id;
}

bool IsMarked(const ChunkId& id) {
  return std::memcmp(&id.bytes[id.bytes.size() - kMark.size()], kMark.data(), kMark.size()) == 0;
}

}  // namespace

struct ParkingLot::Piece {
  ChunkKey key;
  StoredChunkPtr in_memory;  // null: in the store
  uint64_t bytes = 0;
  bool raw = false;  // as it lies in the cache, because it cannot be encoded
};

class ParkedKv {
 public:
  ParkedKv(ParkingLot* lot, size_t n) : lot_(lot), pieces_(n), encoding_(n) {}
  ~ParkedKv() {
    for (const ParkingLot::Piece& piece : pieces_) {
      if (piece.in_memory != nullptr) {
        lot_->memory_bytes_ -= piece.bytes;
      } else if (piece.bytes > 0) {
        lot_->store_bytes_ -= piece.bytes;
        lot_->store_->SetPinned(piece.key.id, false);
        lot_->store_->Remove(piece.key.id);
      }
    }
    lot_->store_full_ = false;
  }
  ParkedKv(const ParkedKv&) = delete;
  ParkedKv& operator=(const ParkedKv&) = delete;

 private:
  friend class ParkingLot;
  ParkingLot* const lot_;
  std::mutex mutex_;
  // Guarded by mutex_ until encoding_ is 0; then unchanged.
  std::vector<ParkingLot::Piece> pieces_;
  size_t encoding_;
  std::function<void()> when_encoded_;
};

struct ParkingLot::FetchState {
  ParkedKvPtr parked;
  kvstore::KvSink* sink = nullptr;
  std::function<void(absl::Status)> done;
  size_t next = 0;
};

ParkingLot::ParkingLot(kvstore::Store* store, KvCoder* coder, Options options)
    : store_(store), coder_(coder), options_(options) {
  if (store_ == nullptr) return;
  std::vector<ChunkId> left;
  store_->ForEach([&](const kvstore::TierEntry& entry, kvstore::Origin) {
    if (IsMarked(entry.key.id)) left.push_back(entry.key.id);
    return true;
  });
  for (const ChunkId& id : left) {
    store_->SetPinned(id, false);
    store_->Remove(id);
  }
  if (!left.empty()) spdlog::info("parked KV of an earlier run dropped chunks={}", left.size());
}

bool ParkingLot::HasRoom(uint64_t raw_bytes) const {
  const uint64_t coming = encoding_bytes_ + raw_bytes;
  if (memory_bytes_ + coming <= options_.memory_bytes) return true;
  return store_ != nullptr && !store_full_;
}

ParkedKvPtr ParkingLot::Park(std::vector<KvChunk> chunks) {
  auto parked = std::make_shared<ParkedKv>(this, chunks.size());
  for (const KvChunk& chunk : chunks) encoding_bytes_ += chunk.bytes.size();
  for (size_t i = 0; i < chunks.size(); ++i) {
    coder_->Run([this, parked, i, chunk = std::make_shared<const KvChunk>(std::move(chunks[i]))] {
      Encode(*parked, i, *chunk);
    });
  }
  return parked;
}

void ParkingLot::Encode(ParkedKv& parked, size_t index, const KvChunk& chunk) {
  Piece piece{.key = {.id = NewId(), .level = Level::kLossless}};
  const auto encoded = options_.raw_bytes_per_token > 0
                           ? coder_->EncodeNow(chunk, Level::kLossless)
                           : absl::UnimplementedError("the layout is opaque");
  piece.raw = !encoded.ok();
  const std::span<const uint8_t> payload = piece.raw ? chunk.bytes : *encoded;
  Keep(piece, StoredChunk::Seal(piece.key, chunk.first_position, chunk.n_tokens, payload));
  encoding_bytes_ -= chunk.bytes.size();
  std::function<void()> when_encoded;
  {
    std::lock_guard lock(parked.mutex_);
    parked.pieces_[index] = std::move(piece);
    if (--parked.encoding_ == 0) when_encoded = std::move(parked.when_encoded_);
  }
  if (when_encoded) when_encoded();
}

void ParkingLot::Keep(Piece& piece, StoredChunkPtr sealed) {
  piece.bytes = sealed->bytes().size();
  if (memory_bytes_ + piece.bytes > options_.memory_bytes && store_ != nullptr) {
    store_->Put(sealed);
    if (store_->SetPinned(piece.key.id, true)) {
      store_bytes_ += piece.bytes;
      return;
    }
    store_full_ = true;
  }
  memory_bytes_ += piece.bytes;
  piece.in_memory = std::move(sealed);
}

void ParkingLot::Fetch(ParkedKvPtr parked, kvstore::KvSink* sink,
                       std::function<void(absl::Status)> done) {
  auto state = std::make_shared<FetchState>(
      FetchState{.parked = parked, .sink = sink, .done = std::move(done)});
  auto begin = [this, state] { coder_->Run([this, state] { FetchNext(state); }); };
  {
    std::lock_guard lock(parked->mutex_);
    if (parked->encoding_ > 0) {
      parked->when_encoded_ = std::move(begin);
      return;
    }
  }
  begin();
}

void ParkingLot::FetchNext(std::shared_ptr<FetchState> state) {
  const std::vector<Piece>& pieces = state->parked->pieces_;
  for (; state->next < pieces.size(); ++state->next) {
    const Piece& piece = pieces[state->next];
    if (piece.in_memory == nullptr) {
      store_->Fetch(piece.key, [this, state](absl::StatusOr<kvstore::Store::Fetched> fetched) {
        // Not on the store's own thread, which others wait for.
        coder_->Run([this, state, fetched = std::move(fetched)] {
          absl::Status status = fetched.status();
          const bool raw = state->parked->pieces_[state->next].raw;
          if (status.ok()) status = Decode(*state, *fetched->chunk, raw);
          if (!status.ok()) return state->done(Annotate(status, "parked KV"));
          ++state->next;
          FetchNext(state);
        });
      });
      return;
    }
    absl::Status status = piece.in_memory->Verify();
    if (status.ok()) status = Decode(*state, *piece.in_memory, piece.raw);
    if (!status.ok()) return state->done(Annotate(status, "parked KV"));
  }
  state->done(absl::OkStatus());
}

absl::Status ParkingLot::Decode(const FetchState& state, const StoredChunk& chunk, bool raw) {
  const uint64_t bytes =
      raw ? chunk.payload().size() : options_.raw_bytes_per_token * chunk.n_tokens();
  ASSIGN_OR_RETURN(const std::vector<std::span<uint8_t>> spans,
                   state.sink->Prepare(chunk.first_position(), chunk.n_tokens(), bytes));
  if (raw) {
    const uint8_t* from = chunk.payload().data();
    for (const std::span<uint8_t> span : spans) {
      std::memcpy(span.data(), from, span.size());
      from += span.size();
    }
  } else {
    RETURN_IF_ERROR(coder_->codec().Decode(chunk.payload(), spans));
  }
  state.sink->Commit();
  return absl::OkStatus();
}

}  // namespace tandem::workers
