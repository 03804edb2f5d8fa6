#include "kvstore/transfer/chunk_session.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/status.h"
#include "kvstore/transfer/await_callback.h"
#include "kvstore/transfer/wire.h"

namespace tandem::kvstore {
namespace {

namespace asio = boost::asio;

/// A peer that computes nothing answers at once, or is slow because its disk is.
constexpr absl::Duration kSilence = absl::Seconds(10);

std::string IdBytes(const ChunkId& id) { return {id.bytes.begin(), id.bytes.end()}; }

absl::StatusOr<ChunkId> ParseId(const std::string& bytes) {
  ChunkId id;
  if (bytes.size() != id.bytes.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("a chunk id of ", bytes.size(), " bytes; it must have ", id.bytes.size()));
  }
  std::memcpy(id.bytes.data(), bytes.data(), bytes.size());
  return id;
}

absl::StatusOr<ChunkKey> ParseKey(const std::string& id_bytes, uint32_t level) {
  ASSIGN_OR_RETURN(const ChunkId id, ParseId(id_bytes));
  if (level >= codec::kAllLevels.size()) {
    return absl::InvalidArgumentError(absl::StrCat("there is no level ", level));
  }
  return ChunkKey{.id = id, .level = static_cast<Level>(level)};
}

asio::awaitable<absl::Status> AnswerFind(FrameSocket& peer, const Frame& frame, Store& store,
                                         ChunkLease& lease, absl::Duration limit) {
  v1::Find request;
  CO_RETURN_IF_ERROR(wire::DecodeMeta(frame.meta, request));
  std::vector<ChunkId> ids;
  for (const std::string& bytes : request.ids()) {
    CO_ASSIGN_OR_RETURN(const ChunkId id, ParseId(bytes));
    ids.push_back(id);
  }
  if (ids.empty()) lease.End();
  // Before anybody looks: what is found must not be gone when it is asked for.
  lease.Add(ids);
  v1::Found found;
  for (const Store::Holding& holding : store.Find(ids)) {
    v1::FoundChunk& chunk = *found.add_chunks();
    size_t n = holding.bytes.size();
    while (n > 0 && holding.bytes[n - 1] == 0) --n;
    for (size_t level = 0; level < n; ++level) chunk.add_level_bytes(holding.bytes[level]);
  }
  co_return co_await peer.WriteFrame(v1::FRAME_TYPE_FOUND, found, limit);
}

asio::awaitable<absl::Status> AnswerFetch(FrameSocket& peer, const Frame& frame, Store& store,
                                          absl::Duration limit) {
  v1::Fetch request;
  CO_RETURN_IF_ERROR(wire::DecodeMeta(frame.meta, request));
  CO_ASSIGN_OR_RETURN(const ChunkKey key, ParseKey(request.id(), request.level()));
  const auto fetched = co_await AwaitCallback<absl::StatusOr<Store::Fetched>>(
      [&](auto done) { store.Fetch(key, std::move(done)); });
  if (!fetched.ok()) {
    co_return co_await peer.WriteFrame(v1::FRAME_TYPE_MISSING, v1::Missing(), limit);
  }
  const StoredChunk& chunk = *fetched->chunk;
  v1::ChunkHeader header;
  header.set_first_position(chunk.first_position());
  header.set_n_tokens(chunk.n_tokens());
  header.set_encoding(static_cast<uint32_t>(key.level) + 1);
  CO_ASSIGN_OR_RETURN(const std::vector<uint8_t> head,
                      wire::EncodeFrame(v1::FRAME_TYPE_CHUNK, header, chunk.bytes()));
  co_return co_await peer.Write(head, chunk.bytes(), limit);
}

asio::awaitable<absl::StatusOr<std::vector<uint8_t>>> ReadEnvelope(FrameSocket& peer,
                                                                   const Frame& frame,
                                                                   absl::Duration limit) {
  if (frame.header.body_bytes > kMaxChunkBytes) {
    co_return absl::ResourceExhaustedError(absl::StrCat("a chunk of ", frame.header.body_bytes,
                                                        " bytes; the limit is ", kMaxChunkBytes));
  }
  std::vector<uint8_t> bytes(frame.header.body_bytes);
  std::vector<std::span<uint8_t>> spans(1, std::span<uint8_t>(bytes));
  CO_RETURN_IF_ERROR(co_await peer.ReadBody(std::move(spans), limit));
  co_return bytes;
}

asio::awaitable<absl::Status> AnswerStore(FrameSocket& peer, const Frame& frame, Store& store,
                                          absl::Duration limit) {
  v1::Store request;
  CO_RETURN_IF_ERROR(wire::DecodeMeta(frame.meta, request));
  CO_ASSIGN_OR_RETURN(const ChunkKey key, ParseKey(request.id(), request.level()));
  CO_ASSIGN_OR_RETURN(std::vector<uint8_t> bytes, co_await ReadEnvelope(peer, frame, limit));
  CO_ASSIGN_OR_RETURN(StoredChunkPtr chunk, StoredChunk::Open(std::move(bytes), key));
  store.Put(std::move(chunk));
  co_return co_await peer.WriteFrame(v1::FRAME_TYPE_STORED, v1::Stored(), limit);
}

absl::Status Unexpected(const Frame& frame, const char* request) {
  return absl::FailedPreconditionError(
      wire::UnexpectedFrame(frame.header.type, absl::StrCat("in answer to ", request)));
}

}  // namespace

ChunkSession::ChunkSession(std::shared_ptr<PeerPool> peers, std::string address)
    : peers_(std::move(peers)) {
  use_.address = std::move(address);
}

asio::awaitable<absl::StatusOr<v1::Found>> ChunkSession::AskFind(const v1::Find& request) {
  CO_RETURN_IF_ERROR(co_await use_.peer->WriteFrame(v1::FRAME_TYPE_FIND, request, kSilence));
  CO_ASSIGN_OR_RETURN(const Frame frame, co_await use_.peer->ReadFrame(kSilence));
  if (frame.header.type != v1::FRAME_TYPE_FOUND) co_return Unexpected(frame, "FIND");
  v1::Found found;
  CO_RETURN_IF_ERROR(wire::DecodeMeta(frame.meta, found));
  if (found.chunks_size() != request.ids_size()) {
    co_return absl::FailedPreconditionError(
        absl::StrCat("FOUND names ", found.chunks_size(), " chunks of ", request.ids_size()));
  }
  co_return found;
}

asio::awaitable<absl::StatusOr<std::vector<LevelBytes>>> ChunkSession::Find(
    std::span<const ChunkId> ids) {
  v1::Find request;
  for (const ChunkId& id : ids) request.add_ids(IdBytes(id));
  const bool kept = use_.peer != nullptr || peers_->TakeIdle(use_);
  if (!kept) CO_RETURN_IF_ERROR(co_await peers_->Connect(use_));
  absl::StatusOr<v1::Found> found = co_await AskFind(request);
  // A connection kept from earlier may have ended meanwhile.
  if (!found.ok() && kept && use_.peer->lost() && use_.stopped.ok()) {
    CO_RETURN_IF_ERROR(co_await peers_->Connect(use_));
    found = co_await AskFind(request);
  }
  CO_RETURN_IF_ERROR(found.status());
  found_ = true;
  answered_at_ = bytes_read();
  std::vector<LevelBytes> held;
  for (const v1::FoundChunk& chunk : found->chunks()) {
    LevelBytes& bytes = held.emplace_back();
    for (int i = 0; i < chunk.level_bytes_size() && i < static_cast<int>(bytes.size()); ++i) {
      bytes[i] = std::min(chunk.level_bytes(i), kMaxChunkBytes);
    }
  }
  co_return held;
}

asio::awaitable<absl::Status> ChunkSession::Ask(const ChunkKey& key) {
  v1::Fetch request;
  request.set_id(IdBytes(key.id));
  request.set_level(static_cast<uint32_t>(key.level));
  co_return co_await use_.peer->WriteFrame(v1::FRAME_TYPE_FETCH, request, kSilence);
}

asio::awaitable<absl::StatusOr<StoredChunkPtr>> ChunkSession::Receive(const ChunkKey& key) {
  in_step_ = false;
  CO_ASSIGN_OR_RETURN(const Frame frame, co_await use_.peer->ReadFrame(kSilence));
  if (frame.header.type == v1::FRAME_TYPE_MISSING) {
    in_step_ = true;
    answered_at_ = bytes_read();
    co_return absl::NotFoundError("the peer has the chunk no more");
  }
  if (frame.header.type != v1::FRAME_TYPE_CHUNK) co_return Unexpected(frame, "FETCH");
  absl::StatusOr<std::vector<uint8_t>> bytes = co_await ReadEnvelope(*use_.peer, frame, kSilence);
  answered_at_ = bytes_read();
  CO_RETURN_IF_ERROR(bytes.status());
  in_step_ = true;
  co_return StoredChunk::Open(*std::move(bytes), key);
}

asio::awaitable<absl::Status> ChunkSession::Give(const StoredChunk& chunk) {
  if (use_.peer == nullptr && !peers_->TakeIdle(use_)) {
    CO_RETURN_IF_ERROR(co_await peers_->Connect(use_));
  }
  v1::Store request;
  request.set_id(IdBytes(chunk.key().id));
  request.set_level(static_cast<uint32_t>(chunk.key().level));
  CO_ASSIGN_OR_RETURN(const std::vector<uint8_t> head,
                      wire::EncodeFrame(v1::FRAME_TYPE_STORE, request, chunk.bytes()));
  CO_RETURN_IF_ERROR(co_await use_.peer->Write(head, chunk.bytes(), kSilence));
  CO_ASSIGN_OR_RETURN(const Frame frame, co_await use_.peer->ReadFrame(kSilence));
  co_return frame.header.type == v1::FRAME_TYPE_STORED ? absl::OkStatus()
                                                       : Unexpected(frame, "STORE");
}

asio::awaitable<void> ChunkSession::End(absl::Status status) {
  if (use_.peer == nullptr) co_return;
  // It need not hold anything for us any longer.
  if (status.ok() && found_ && !use_.peer->lost()) {
    const v1::Find nothing;
    status = (co_await AskFind(nothing)).status();
  }
  if (status.ok() && !use_.peer->lost()) {
    peers_->Park(use_);
  } else {
    // Not as a temporary of a conditional operator: g++ 12 destroys such a one twice when it is
    // part of what is awaited.
    if (status.ok()) status = absl::CancelledError("done");
    co_await peers_->Abandon(use_, std::move(status));
  }
}

asio::awaitable<absl::Status> AnswerChunkRequest(FrameSocket& peer, const Frame& frame,
                                                 Store* store, ChunkLease& lease,
                                                 absl::Duration limit) {
  const v1::FrameType type = frame.header.type;
  if (type != v1::FRAME_TYPE_FIND && type != v1::FRAME_TYPE_FETCH && type != v1::FRAME_TYPE_STORE) {
    co_return absl::InvalidArgumentError(wire::UnexpectedFrame(type, "between requests"));
  }
  if (store == nullptr) co_return absl::FailedPreconditionError("this node keeps no chunks");
  lease.Pause();
  absl::Status status;
  if (type == v1::FRAME_TYPE_FIND) {
    status = co_await AnswerFind(peer, frame, *store, lease, limit);
  } else if (type == v1::FRAME_TYPE_FETCH) {
    status = co_await AnswerFetch(peer, frame, *store, limit);
  } else {
    status = co_await AnswerStore(peer, frame, *store, limit);
  }
  lease.Resume();
  co_return status;
}

}  // namespace tandem::kvstore
