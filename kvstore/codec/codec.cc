#include "kvstore/codec/codec.h"

#include <xxhash.h>

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "kvstore/codec/byte_io.h"
#include "kvstore/codec/lossy.h"
#include "kvstore/codec/prepared.h"

namespace tandem::kvstore::codec {
namespace {

constexpr uint32_t kMagic = 0x43564b54;  // "TKVC"
constexpr uint16_t kVersion = 1;
constexpr size_t kChecksumAt = 8, kHeaderBytes = 48;
/// Positions within a chunk have 16 bits.
constexpr uint32_t kMaxChunkTokens = 65535;
/// A chunk's layers are split into streams of about so many elements: small enough for several
/// cores to share a chunk, large enough that a stream's own 200 bytes do not count. Twice as many
/// at levels of less than a bit an element, where they would.
constexpr uint64_t kStreamElements = 1 << 18;
/// Without a profile the first tokens are taken for attention sinks.
constexpr uint32_t kDefaultSinkTokens = 4;

absl::Status Damaged(std::string_view what) {
  return absl::DataLossError(absl::StrCat("the KV chunk is damaged: ", std::string(what)));
}

uint64_t RawBytes(const KvLayout& layout, uint32_t n_tokens) {
  return layout.BytesPerToken() * n_tokens;
}

/// K and V of the stream's layers.
std::vector<size_t> StreamPlanes(const PreparedModel& model, const ChunkHeader& header,
                                 size_t stream) {
  std::vector<size_t> planes;
  if (model.layout.opaque) return {0};
  const size_t first = stream * header.layers_per_stream;
  const size_t end = std::min<size_t>(model.n_layers, first + header.layers_per_stream);
  for (size_t layer = first; layer < end; ++layer) {
    for (size_t p = layer; p < model.layout.planes.size(); p += model.n_layers) planes.push_back(p);
  }
  return planes;
}

uint32_t LayersPerStream(const PreparedModel& model, uint32_t n_tokens, Level level) {
  if (model.layout.opaque) return 1;
  uint64_t elements = 0;
  for (const PlaneInfo& plane : model.planes)
    elements += plane.n_channels ? plane.n_channels : plane.row_bytes;
  const uint64_t per_layer = std::max<uint64_t>(1, elements * n_tokens / model.n_layers);
  const uint64_t wanted = level >= Level::kQ3 ? 2 * kStreamElements : kStreamElements;
  return static_cast<uint32_t>(
      std::clamp<uint64_t>((wanted + per_layer - 1) / per_layer, 1, model.n_layers));
}

void EncodeLosslessStream(const PreparedModel& model, std::span<const size_t> planes,
                          std::span<const std::span<const uint8_t>> sources,
                          std::vector<uint8_t>& out) {
  for (const size_t p : planes) {
    std::vector<uint8_t> coded;
    EncodeLossless(sources[p], model.layout.opaque ? ByteShape{} : model.planes[p].shape, model.isa,
                   coded);
    ByteWriter writer(out);
    writer.Write(static_cast<uint64_t>(coded.size()));
    writer.WriteMany(std::span<const uint8_t>(coded));
  }
}

absl::Status DecodeLosslessStream(const PreparedModel& model, std::span<const size_t> planes,
                                  std::span<const uint8_t> bytes,
                                  std::span<const std::span<uint8_t>> destinations) {
  ByteReader in(bytes);
  for (const size_t p : planes) {
    const auto coded = in.Take(in.Read<uint64_t>());
    RETURN_IF_ERROR(DecodeLossless(coded, model.layout.opaque ? ByteShape{} : model.planes[p].shape,
                                   model.isa, destinations[p]));
  }
  return in.done() ? absl::OkStatus() : Damaged("a stream has the wrong length");
}

/// Which tokens a lossy level keeps exact from the start.
std::vector<bool> KeepExact(const PreparedModel& model, const KvChunk& chunk,
                            const EncodeOptions& options) {
  const uint32_t sinks = model.profile ? model.profile->sink_tokens : kDefaultSinkTokens;
  std::vector<bool> keep(chunk.n_tokens);
  for (uint32_t t = 0; t < chunk.n_tokens; ++t) {
    keep[t] = uint64_t{chunk.first_position} + t < sinks ||
              chunk.n_tokens - t <= options.exact_tail_tokens;
  }
  return keep;
}

std::vector<uint8_t> Assemble(const ChunkHeader& header,
                              std::span<const std::vector<uint8_t>> streams) {
  std::vector<uint8_t> out;
  size_t size = kHeaderBytes + streams.size() * sizeof(uint64_t);
  for (const auto& stream : streams) size += stream.size();
  out.reserve(size);
  ByteWriter writer(out);
  writer.Write(kMagic);
  writer.Write(kVersion);
  writer.Write(static_cast<uint16_t>(header.level));
  writer.Write(uint64_t{0});  // the checksum
  writer.Write(header.profile_id);
  writer.Write(header.raw_bytes);
  writer.Write(header.first_position);
  writer.Write(header.n_tokens);
  writer.Write(header.n_streams);
  writer.Write(header.layers_per_stream);
  for (const auto& stream : streams) writer.Write(static_cast<uint64_t>(stream.size()));
  for (const auto& stream : streams) out.insert(out.end(), stream.begin(), stream.end());
  const uint64_t checksum = XXH3_64bits(out.data(), out.size());
  std::memcpy(out.data() + kChecksumAt, &checksum, sizeof checksum);
  return out;
}

/// XXH3 over the whole chunk with zeros where the checksum stands.
uint64_t Checksum(std::span<const uint8_t> bytes) {
  XXH3_state_t* const state = XXH3_createState();
  constexpr uint64_t kZero = 0;
  XXH3_64bits_reset(state);
  XXH3_64bits_update(state, bytes.data(), kChecksumAt);
  XXH3_64bits_update(state, &kZero, sizeof kZero);
  XXH3_64bits_update(state, bytes.data() + kChecksumAt + 8, bytes.size() - kChecksumAt - 8);
  const uint64_t checksum = XXH3_64bits_digest(state);
  XXH3_freeState(state);
  return checksum;
}

}  // namespace

void Serially(size_t n, const std::function<void(size_t)>& body) {
  for (size_t i = 0; i < n; ++i) body(i);
}

absl::StatusOr<Codec> Codec::Create(KvLayout layout, KvGeometry geometry,
                                    const std::string& fingerprint,
                                    std::shared_ptr<const Profile> profile, Isa isa) {
  ASSIGN_OR_RETURN(auto model, Prepare(std::move(layout), std::move(geometry), fingerprint,
                                       std::move(profile), isa));
  return Codec(std::move(model));
}

const KvLayout& Codec::layout() const { return model_->layout; }
const Profile* Codec::profile() const { return model_->profile.get(); }

absl::Status Codec::CheckLevel(Level level) const {
  if (level == Level::kLossless) return absl::OkStatus();
  const std::string name(LevelName(level));
  if (!model_->no_lossy.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("this model's KV cannot be coded at level ", name, ": ", model_->no_lossy));
  }
  if (!model_->profile) {
    if (level == Level::kQ1) return absl::OkStatus();
    return absl::FailedPreconditionError(
        absl::StrCat("level ", name,
                     " needs a profile that has measured its loss on this model (see 'tandem kv "
                     "profile'); without one q1 is the coarsest"));
  }
  if (!model_->profile->levels[LossyIndex(level)]) {
    return absl::FailedPreconditionError(absl::StrCat("the KV profile has no level ", name));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<uint8_t>> Codec::Encode(const KvChunk& chunk,
                                                   const EncodeOptions& options,
                                                   const ParallelFor& parallel) const {
  RETURN_IF_ERROR(CheckLevel(options.level));
  const KvLayout& layout = model_->layout;
  if (!layout.opaque && (chunk.n_tokens == 0 || chunk.n_tokens > kMaxChunkTokens ||
                         chunk.bytes.size() != RawBytes(layout, chunk.n_tokens))) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a KV chunk of ", chunk.n_tokens, " tokens (1 to ", kMaxChunkTokens, " are possible) has ",
        chunk.bytes.size(), " bytes instead of ", RawBytes(layout, chunk.n_tokens)));
  }
  ChunkHeader header{.level = options.level,
                     .first_position = chunk.first_position,
                     .n_tokens = chunk.n_tokens,
                     .layers_per_stream = LayersPerStream(*model_, chunk.n_tokens, options.level),
                     .raw_bytes = chunk.bytes.size()};
  if (options.level != Level::kLossless && model_->profile) header.profile_id = model_->profile->id;
  header.n_streams = (model_->n_layers + header.layers_per_stream - 1) / header.layers_per_stream;
  const auto sources = PlanesOf(layout, chunk);
  const bool lossy = options.level != Level::kLossless;
  const ChunkAngles angles =
      lossy ? model_->rotations.At(chunk.first_position, chunk.n_tokens) : ChunkAngles{};
  std::vector<std::vector<uint8_t>> streams(header.n_streams);
  parallel(header.n_streams, [&](size_t i) {
    const StreamPart part{StreamPlanes(*model_, header, i), chunk.first_position, chunk.n_tokens,
                          options.level};
    if (lossy) {
      EncodeLossyStream(*model_, part, angles, sources, KeepExact(*model_, chunk, options),
                        streams[i]);
    } else {
      EncodeLosslessStream(*model_, part.planes, sources, streams[i]);
    }
  });
  return Assemble(header, streams);
}

absl::StatusOr<ChunkHeader> Codec::ReadHeader(std::span<const uint8_t> bytes) const {
  ByteReader in(bytes);
  if (in.Read<uint32_t>() != kMagic) return Damaged("it does not begin like one");
  if (const auto version = in.Read<uint16_t>(); version != kVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat("the KV chunk has version ", version, "; this program reads ", kVersion));
  }
  ChunkHeader header;
  const uint16_t level = in.Read<uint16_t>();
  const uint64_t checksum = in.Read<uint64_t>();
  header.profile_id = in.Read<uint64_t>();
  header.raw_bytes = in.Read<uint64_t>();
  header.first_position = in.Read<uint32_t>();
  header.n_tokens = in.Read<uint32_t>();
  header.n_streams = in.Read<uint32_t>();
  header.layers_per_stream = in.Read<uint32_t>();
  if (!in.ok()) return Damaged("it is shorter than its header");
  if (Checksum(bytes) != checksum) return Damaged("its checksum is wrong");
  if (level > static_cast<uint16_t>(Level::kQ4)) return Damaged("there is no such level");
  header.level = static_cast<Level>(level);
  RETURN_IF_ERROR(CheckLevel(header.level));
  const KvLayout& layout = model_->layout;
  if (!layout.opaque && (header.n_tokens == 0 || header.n_tokens > kMaxChunkTokens ||
                         header.raw_bytes != RawBytes(layout, header.n_tokens))) {
    return absl::InvalidArgumentError("the KV chunk does not have this model's size");
  }
  if (header.layers_per_stream == 0 || header.layers_per_stream > model_->n_layers ||
      header.n_streams !=
          (model_->n_layers + header.layers_per_stream - 1) / header.layers_per_stream) {
    return absl::InvalidArgumentError("the KV chunk does not have this model's layers");
  }
  const uint64_t profile =
      header.level != Level::kLossless && model_->profile ? model_->profile->id : 0;
  if (header.profile_id != profile) {
    return absl::FailedPreconditionError("the KV chunk was encoded with another KV profile");
  }
  return header;
}

absl::Status Codec::Decode(std::span<const uint8_t> bytes,
                           std::span<const std::span<uint8_t>> destination,
                           const ParallelFor& parallel) const {
  ASSIGN_OR_RETURN(const ChunkHeader header, ReadHeader(bytes));
  const size_t n_planes = model_->layout.opaque ? 1 : model_->layout.planes.size();
  if (destination.size() != n_planes) {
    return absl::InvalidArgumentError("the destination does not have a span for each plane");
  }
  for (size_t p = 0; p < n_planes; ++p) {
    const uint64_t size = model_->layout.opaque
                              ? header.raw_bytes
                              : model_->layout.planes[p].row_bytes * header.n_tokens;
    if (destination[p].size() != size) {
      return absl::InvalidArgumentError("the destination does not have the chunk's size");
    }
  }
  ByteReader in(bytes.subspan(kHeaderBytes));
  std::vector<std::span<const uint8_t>> streams(header.n_streams);
  const auto sizes = in.ReadMany<uint64_t>(header.n_streams);
  if (!in.ok()) return Damaged("its streams are missing");
  for (size_t i = 0; i < streams.size(); ++i) streams[i] = in.Take(sizes[i]);
  if (!in.done()) return Damaged("its streams do not fill it");
  const bool lossy = header.level != Level::kLossless;
  const ChunkAngles angles =
      lossy ? model_->rotations.At(header.first_position, header.n_tokens) : ChunkAngles{};
  std::vector<absl::Status> results(header.n_streams);
  parallel(header.n_streams, [&](size_t i) {
    const StreamPart part{StreamPlanes(*model_, header, i), header.first_position, header.n_tokens,
                          header.level};
    results[i] = lossy ? DecodeLossyStream(*model_, part, angles, streams[i], destination)
                       : DecodeLosslessStream(*model_, part.planes, streams[i], destination);
  });
  for (const absl::Status& result : results) RETURN_IF_ERROR(result);
  return absl::OkStatus();
}

absl::StatusOr<KvChunk> Codec::Decode(std::span<const uint8_t> bytes,
                                      const ParallelFor& parallel) const {
  ASSIGN_OR_RETURN(const ChunkHeader header, ReadHeader(bytes));
  // A header claims what it likes; but no byte costs less than log2(4096 / 4095) bits.
  if (header.raw_bytes >> 15 > bytes.size()) {
    return Damaged("it claims an impossible size");
  }
  KvChunk chunk{.first_position = header.first_position, .n_tokens = header.n_tokens};
  chunk.bytes.resize(header.raw_bytes);
  RETURN_IF_ERROR(Decode(bytes, PlanesOf(model_->layout, chunk), parallel));
  return chunk;
}

}  // namespace tandem::kvstore::codec
