// How a handoff's chunks are encoded: what both ends can do, what the link allows, and waiting for
// the coder's threads. Used by both ends.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kvstore/transfer/frame_socket.h"
#include "kvstore/transfer/publication.h"
#include "kvstore/transfer/transfer.h"

namespace tandem::kvstore {

/// Encodings, as bits, that the puller decodes, this side encodes, and `floor` permits; 0 always.
uint32_t CommonEncodings(const v1::Pull& pull, const ChunkCoder* coder, codec::Level floor);

/// The finest encoding with which all that is left arrives within a chunk's computing time after
/// the last token is computed, so that the handoff hides behind the prefill; the smallest when none
/// does. As it lies in the cache (0) comes first: it costs no encoding. Logs its choice.
size_t ChooseEncoding(OfferedKv& offer, const ReadyChunk& chunk, uint32_t encodings,
                      const SendState& link, const ChunkCoder* coder);

/// The coder's work, awaited on the io thread.
boost::asio::awaitable<absl::StatusOr<std::vector<uint8_t>>> Encoded(
    ChunkCoder& coder, std::shared_ptr<const KvChunk> chunk, size_t encoding);
boost::asio::awaitable<absl::Status> Decoded(ChunkCoder& coder, std::vector<uint8_t> bytes,
                                             uint32_t first_position, uint32_t n_tokens,
                                             std::vector<std::span<uint8_t>> planes);

}  // namespace tandem::kvstore
