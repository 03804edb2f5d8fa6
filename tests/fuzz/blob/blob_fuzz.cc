// Fuzz entry for the parser of libllama's blobs: whatever it accepts must be consistent and be
// rebuilt by the builder to the same bytes. Linked with libFuzzer's main where that is wanted, and
// driven by blob_fuzz_test.cc in the ordinary build.
#include <cstdlib>
#include <cstring>
#include <vector>

#include "workers/engine/llama_blob.h"

namespace {

using tandem::workers::AppendPlanes;
using tandem::workers::Blob;
using tandem::workers::BlobPlan;
using tandem::workers::CellOrder;
using tandem::workers::ParseBlob;

void Require(bool condition) {
  if (!condition) std::abort();
}

/// The planes' bytes in [data, data + size), none overlapping the one before.
void CheckPlanes(const Blob& blob, size_t size) {
  size_t end = 0;
  for (size_t i = 0; i < blob.plane_offsets.size(); ++i) {
    Require(blob.plane_offsets[i] >= end);
    end = blob.plane_offsets[i] + blob.format.planes[i].row_bytes * blob.positions.size();
    Require(end <= size);
  }
}

/// Positions 0 … n - 1 in order: what the builder makes.
void CheckRebuilt(const uint8_t* data, size_t size, const Blob& blob) {
  const BlobPlan plan(blob.format, static_cast<uint32_t>(blob.positions.size()), blob.n_streams);
  Require(plan.size() == size);
  std::vector<uint8_t> rebuilt(size);
  plan.WriteHeaders(rebuilt.data());
  for (size_t i = 0; i < blob.plane_offsets.size(); ++i) {
    std::memcpy(rebuilt.data() + plan.plane_offset(i), data + blob.plane_offsets[i],
                blob.format.planes[i].row_bytes * blob.positions.size());
  }
  const auto again = ParseBlob(rebuilt);
  Require(again.ok() && again->format == blob.format && again->positions == blob.positions);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto blob = ParseBlob({data, size});
  if (!blob.ok()) return 0;
  CheckPlanes(*blob, size);
  const auto order = CellOrder(blob->positions, blob->positions.front());
  std::vector<uint8_t> planes;
  AppendPlanes({data, size}, *blob, {}, planes);
  Require(planes.size() < size);
  if (!order.ok()) return 0;
  std::vector<uint8_t> ordered;
  AppendPlanes({data, size}, *blob, *order, ordered);
  Require(ordered.size() == planes.size());
  if (order->empty() && blob->positions.front() == 0) CheckRebuilt(data, size, *blob);
  return 0;
}
