// Fuzz entry for what comes from the data plane's socket: a stream of frames, read the way that
// FrameSocket reads it, and what each of them may do to a pull. Called by libFuzzer and, over
// seeds and fixed mutations, by wire_fuzz_test.cc.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "kvstore/transfer/wire.h"

namespace tandem::kvstore {
namespace {

void Require(bool condition) {
  if (!condition) std::abort();
}

/// Random bytes hardly ever have the right checksum; half of the inputs are given it, so that
/// what lies behind the check is reached as well.
void MendChecksum(std::vector<uint8_t>& stream, size_t at, const wire::FrameHeader& header) {
  wire::Checksum checksum;
  const wire::Bytes frame = wire::Bytes(stream).subspan(at);
  checksum.Update(frame.first(wire::kChecksumOffset));
  checksum.Update(frame.subspan(wire::kHeaderBytes, header.meta_bytes + header.body_bytes));
  const uint64_t digest = checksum.Digest();
  std::memcpy(stream.data() + at + wire::kChecksumOffset, &digest, sizeof(digest));
}

/// A message that was accepted says the same after another trip.
template <typename Message>
bool Parse(wire::Bytes meta, Message& message) {
  if (!wire::DecodeMeta(meta, message).ok()) return false;
  Message again;
  Require(again.ParseFromString(message.SerializeAsString()));
  Require(again.SerializeAsString() == message.SerializeAsString());
  return true;
}

void CheckAbort(const v1::Abort& abort) {
  const absl::Status reason = wire::FromAbort(abort);
  Require(!reason.ok());
  const v1::Abort again = wire::ToAbort(reason);
  Require(wire::EncodeFrame(v1::FRAME_TYPE_ABORT, again).ok());
  Require(wire::FromAbort(again).code() == reason.code());
}

/// A pull's rules about positions, next to a count kept by other means.
struct PullModel {
  wire::ChunkSequence positions;
  uint64_t next = 0;

  void OnChunk(const v1::ChunkHeader& chunk) {
    const bool continues = chunk.first_position() == next && chunk.n_tokens() > 0 &&
                           next + chunk.n_tokens() <= UINT32_MAX;
    Require(positions.Add(chunk.first_position(), chunk.n_tokens()).ok() == continues);
    if (continues) next += chunk.n_tokens();
  }
  void OnEnd(const v1::End& end) {
    Require(positions.End(end.n_tokens()).ok() == (end.n_tokens() == next));
  }
};

void OnFrame(v1::FrameType type, wire::Bytes meta, PullModel& pull) {
  v1::Hello hello;
  v1::Pull request;
  v1::ChunkHeader chunk;
  v1::End end;
  v1::Abort abort;
  v1::Probe probe;
  v1::Probed probed;
  if (type == v1::FRAME_TYPE_HELLO && Parse(meta, hello)) {
    const Identity identity = wire::FromHello(hello);
    Require(wire::FromHello(wire::ToHello(identity)) == identity);
  } else if (type == v1::FRAME_TYPE_PULL) {
    Parse(meta, request);
  } else if (type == v1::FRAME_TYPE_CHUNK && Parse(meta, chunk)) {
    pull.OnChunk(chunk);
  } else if (type == v1::FRAME_TYPE_END && Parse(meta, end)) {
    pull.OnEnd(end);
  } else if (type == v1::FRAME_TYPE_ABORT && Parse(meta, abort)) {
    CheckAbort(abort);
  } else if (type == v1::FRAME_TYPE_PROBE) {
    Parse(meta, probe);
  } else if (type == v1::FRAME_TYPE_PROBED) {
    Parse(meta, probed);
  }
}

}  // namespace
}  // namespace tandem::kvstore

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tandem::kvstore;  // NOLINT: the entry has to be outside of the namespace
  if (size == 0) return 0;
  const bool mend = data[0] % 2 == 0;
  std::vector<uint8_t> stream(data + 1, data + size);
  PullModel pull;
  for (size_t at = 0; stream.size() - at >= wire::kHeaderBytes;) {
    const wire::Bytes rest = wire::Bytes(stream).subspan(at);
    const auto header = wire::DecodeHeader(rest.first<wire::kHeaderBytes>());
    if (!header.ok()) return 0;
    Require(header->meta_bytes <= wire::kMaxMetaBytes);
    Require(header->body_bytes <= wire::kMaxBodyBytes);
    const bool has_body = header->type == tandem::v1::FRAME_TYPE_CHUNK ||
                          header->type == tandem::v1::FRAME_TYPE_STORE ||
                          header->type == tandem::v1::FRAME_TYPE_FILL;
    Require(header->body_bytes == 0 || has_body);
    const uint64_t frame_bytes = wire::kHeaderBytes + header->meta_bytes + header->body_bytes;
    if (frame_bytes > rest.size()) return 0;
    if (mend) MendChecksum(stream, at, *header);
    wire::Checksum checksum;
    checksum.Update(rest.first(wire::kChecksumOffset));
    checksum.Update(rest.subspan(wire::kHeaderBytes, frame_bytes - wire::kHeaderBytes));
    if (checksum.Digest() != wire::DecodeHeader(rest.first<wire::kHeaderBytes>())->checksum) {
      Require(!mend);
      return 0;
    }
    OnFrame(header->type, rest.subspan(wire::kHeaderBytes, header->meta_bytes), pull);
    at += frame_bytes;
  }
  return 0;
}
