#include "workers/engine/llama_blob.h"

#include <bit>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace tandem::workers {
namespace {

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

constexpr uint32_t kMagic = 0xaf143cd8;
constexpr uint32_t kMaxStreams = 256;
constexpr uint32_t kMaxLayers = 4096;
constexpr size_t kCellBytes = 12;
constexpr size_t kPlaneHeaderBytes = 12;  // i32 + u64 as well as i32 + u32 + u32

/// Reads little-endian numbers and never past the end: a read that would sets `failed` and
/// returns 0, and so do all later ones.
class Reader {
 public:
  explicit Reader(std::span<const uint8_t> bytes) : bytes_(bytes) {}

  template <typename T>
  T Read() {
    T value{};
    if (!Need(sizeof(T))) return value;
    std::memcpy(&value, bytes_.data() + offset_, sizeof(T));
    offset_ += sizeof(T);
    return value;
  }
  void Skip(uint64_t n) {
    if (Need(n)) offset_ += n;
  }
  size_t offset() const { return offset_; }
  size_t remaining() const { return bytes_.size() - offset_; }
  bool failed() const { return failed_; }

 private:
  bool Need(uint64_t n) {
    failed_ = failed_ || n > remaining();
    return !failed_;
  }
  std::span<const uint8_t> bytes_;
  size_t offset_ = 0;
  bool failed_ = false;
};

absl::Status Malformed(std::string_view what, const Reader& reader) {
  return absl::InvalidArgumentError(
      absl::StrCat("not a plain KV blob: ", View(what), " at byte ", reader.offset()));
}

absl::Status ReadCells(Reader& reader, uint32_t n_cells, std::vector<int32_t>& positions) {
  if (n_cells > reader.remaining() / kCellBytes) return Malformed("too many cells", reader);
  positions.reserve(n_cells);
  for (uint32_t i = 0; i < n_cells; ++i) {
    const auto position = reader.Read<int32_t>();
    if (position < 0) return Malformed("a negative position", reader);
    if (reader.Read<uint32_t>() != 1) return Malformed("a cell of several sequences", reader);
    reader.Read<int32_t>();  // the sequence it was read from: of no meaning to the reader
    positions.push_back(position);
  }
  return absl::OkStatus();
}

absl::Status ReadPlane(Reader& reader, bool transposed, Blob& blob) {
  BlobPlane plane;
  plane.ggml_type = reader.Read<int32_t>();
  if (transposed) {
    plane.element_bytes = reader.Read<uint32_t>();
    plane.row_bytes = uint64_t{plane.element_bytes} * reader.Read<uint32_t>();
  } else {
    plane.row_bytes = reader.Read<uint64_t>();
  }
  const uint64_t n_cells = blob.positions.size();
  if (reader.failed() || plane.row_bytes == 0 || plane.row_bytes > reader.remaining() / n_cells) {
    return Malformed("a plane of impossible size", reader);
  }
  blob.plane_offsets.push_back(reader.offset());
  blob.format.planes.push_back(plane);
  reader.Skip(plane.row_bytes * n_cells);
  return absl::OkStatus();
}

absl::Status ReadPlanes(Reader& reader, size_t bytes_after, Blob& blob) {
  const auto transposed = reader.Read<uint32_t>();
  const auto n_layers = reader.Read<uint32_t>();
  if (reader.failed() || transposed > 1) return Malformed("no transposition flag", reader);
  if (n_layers == 0 || n_layers > kMaxLayers) return Malformed("an impossible layer count", reader);
  blob.format.transposed_v = transposed == 1;
  blob.format.n_layers = n_layers;
  for (uint32_t i = 0; i < n_layers; ++i) RETURN_IF_ERROR(ReadPlane(reader, false, blob));
  if (reader.remaining() == bytes_after) return absl::OkStatus();  // K only
  for (uint32_t i = 0; i < n_layers; ++i) {
    RETURN_IF_ERROR(ReadPlane(reader, blob.format.transposed_v, blob));
  }
  return absl::OkStatus();
}

template <typename T>
uint8_t* Put(uint8_t* out, T value) {
  std::memcpy(out, &value, sizeof(T));
  return out + sizeof(T);
}

}  // namespace

absl::StatusOr<Blob> ParseBlob(std::span<const uint8_t> bytes) {
  Reader reader(bytes);
  if (reader.Read<uint32_t>() != kMagic) return Malformed("wrong magic number", reader);
  reader.Read<int32_t>();
  Blob blob;
  blob.n_streams = reader.Read<uint32_t>();
  if (blob.n_streams == 0 || blob.n_streams > kMaxStreams) {
    return Malformed("an impossible stream count", reader);
  }
  for (uint32_t stream = 0; stream < blob.n_streams; ++stream) {
    const auto n_cells = reader.Read<uint32_t>();
    if (n_cells == 0) continue;
    if (!blob.positions.empty()) return Malformed("a second stream with cells", reader);
    RETURN_IF_ERROR(ReadCells(reader, n_cells, blob.positions));
    const size_t later_counts = sizeof(uint32_t) * (blob.n_streams - stream - 1);
    RETURN_IF_ERROR(ReadPlanes(reader, later_counts, blob));
  }
  if (reader.failed()) return Malformed("it is cut off", reader);
  if (blob.positions.empty()) return Malformed("it holds no cells", reader);
  if (reader.remaining() != 0) return Malformed("bytes are left over", reader);
  return blob;
}

absl::StatusOr<std::vector<uint32_t>> CellOrder(std::span<const int32_t> positions, int32_t first) {
  constexpr uint32_t kNone = UINT32_MAX;
  bool in_order = true;
  std::vector<uint32_t> order(positions.size(), kNone);
  for (uint32_t cell = 0; cell < positions.size(); ++cell) {
    const int64_t index = int64_t{positions[cell]} - first;
    if (index < 0 || index >= static_cast<int64_t>(order.size()) || order[index] != kNone) {
      return absl::InvalidArgumentError(absl::StrCat(
          "KV cells do not hold each of the positions ", first, " to ",
          first + static_cast<int64_t>(order.size()) - 1, " once: found ", positions[cell]));
    }
    order[index] = cell;
    in_order = in_order && index == cell;
  }
  if (in_order) order.clear();
  return order;
}

void AppendPlanes(std::span<const uint8_t> bytes, const Blob& blob, std::span<const uint32_t> order,
                  std::vector<uint8_t>& out) {
  AppendPlanes(bytes, blob, order, 0, static_cast<uint32_t>(blob.positions.size()), out);
}

void AppendPlanes(std::span<const uint8_t> bytes, const Blob& blob, std::span<const uint32_t> order,
                  uint32_t first, uint32_t n, std::vector<uint8_t>& out) {
  const size_t n_cells = blob.positions.size();
  if (!order.empty()) order = order.subspan(first, n);
  for (size_t i = 0; i < blob.plane_offsets.size(); ++i) {
    const BlobPlane& plane = blob.format.planes[i];
    const size_t unit = plane.element_bytes != 0 ? plane.element_bytes : plane.row_bytes;
    for (size_t channel = 0; channel < plane.row_bytes / unit; ++channel) {
      const uint8_t* values = bytes.data() + blob.plane_offsets[i] + channel * n_cells * unit;
      if (order.empty()) out.insert(out.end(), values + first * unit, values + (first + n) * unit);
      for (const uint32_t cell : order) {
        out.insert(out.end(), values + cell * unit, values + (cell + 1) * unit);
      }
    }
  }
}

BlobPlan::BlobPlan(const BlobFormat& format, uint32_t n_tokens, uint32_t n_streams,
                   uint32_t first_position)
    : format_(format), n_tokens_(n_tokens), n_streams_(n_streams), first_position_(first_position) {
  // magic, sequence, n_streams, n_cells; the cells; transposed_v, n_layers
  size_t offset = 4 * sizeof(uint32_t) + n_tokens * kCellBytes + 2 * sizeof(uint32_t);
  plane_offsets_.reserve(format.planes.size());
  for (const BlobPlane& plane : format.planes) {
    offset += kPlaneHeaderBytes;
    plane_offsets_.push_back(offset);
    offset += plane.row_bytes * n_tokens;
  }
  size_ = offset + sizeof(uint32_t) * (n_streams - 1);
}

void BlobPlan::WriteHeaders(uint8_t* out) const {
  uint8_t* at = Put(Put(Put(Put(out, kMagic), int32_t{0}), n_streams_), n_tokens_);
  for (uint32_t i = 0; i < n_tokens_; ++i) {
    at = Put(Put(Put(at, static_cast<int32_t>(first_position_ + i)), uint32_t{1}), int32_t{0});
  }
  Put(Put(at, uint32_t{format_.transposed_v}), format_.n_layers);
  for (size_t i = 0; i < plane_offsets_.size(); ++i) {
    const BlobPlane& plane = format_.planes[i];
    at = Put(out + plane_offsets_[i] - kPlaneHeaderBytes, plane.ggml_type);
    if (plane.element_bytes == 0) {
      Put(at, plane.row_bytes);
    } else {
      Put(Put(at, plane.element_bytes),
          static_cast<uint32_t>(plane.row_bytes / plane.element_bytes));
    }
  }
  std::memset(out + size_ - sizeof(uint32_t) * (n_streams_ - 1), 0,
              sizeof(uint32_t) * (n_streams_ - 1));
}

}  // namespace tandem::workers
