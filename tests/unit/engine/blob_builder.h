// Builds blobs in libllama's format from the format's description alone, for tests of the parser
// and of the sinks: an independent writer.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

namespace tandem::workers {

struct BlobRecipe {
  std::vector<int32_t> positions;
  uint32_t n_streams = 1, stream = 0;
  uint32_t n_layers = 2;
  uint32_t k_row = 6, v_row = 4;
  /// 0: V by token.
  uint32_t v_element = 0;
  bool has_v = true;
};

class ByteWriter {
 public:
  template <typename T>
  ByteWriter& Put(T value) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(&value);
    bytes_.insert(bytes_.end(), bytes, bytes + sizeof(T));
    return *this;
  }
  std::vector<uint8_t> Take() { return std::move(bytes_); }

 private:
  std::vector<uint8_t> bytes_;
};

/// The byte of plane `plane` at `position`, `offset` within the token's row.
inline uint8_t ValueAt(uint32_t plane, int32_t position, uint32_t offset) {
  return static_cast<uint8_t>(plane * 101 + static_cast<uint32_t>(position) * 7 + offset * 3 + 1);
}

inline void PutPlane(ByteWriter& out, const BlobRecipe& recipe, uint32_t plane, uint32_t row,
                     uint32_t element) {
  out.Put<int32_t>(1);
  if (element == 0) {
    out.Put<uint64_t>(row);
    element = row;
  } else {
    out.Put<uint32_t>(element).Put<uint32_t>(row / element);
  }
  for (uint32_t channel = 0; channel < row / element; ++channel) {
    for (int32_t position : recipe.positions) {
      for (uint32_t i = 0; i < element; ++i) {
        out.Put(ValueAt(plane, position, channel * element + i));
      }
    }
  }
}

inline std::vector<uint8_t> BuildBlob(const BlobRecipe& recipe) {
  ByteWriter out;
  out.Put<uint32_t>(0xaf143cd8).Put<int32_t>(0).Put<uint32_t>(recipe.n_streams);
  for (uint32_t stream = 0; stream < recipe.n_streams; ++stream) {
    if (stream != recipe.stream) {
      out.Put<uint32_t>(0);
      continue;
    }
    out.Put<uint32_t>(static_cast<uint32_t>(recipe.positions.size()));
    for (int32_t position : recipe.positions) {
      out.Put(position).Put<uint32_t>(1).Put<int32_t>(0);
    }
    out.Put<uint32_t>(recipe.v_element != 0).Put(recipe.n_layers);
    for (uint32_t l = 0; l < recipe.n_layers; ++l) PutPlane(out, recipe, l, recipe.k_row, 0);
    for (uint32_t l = 0; l < recipe.n_layers && recipe.has_v; ++l) {
      PutPlane(out, recipe, recipe.n_layers + l, recipe.v_row, recipe.v_element);
    }
  }
  return out.Take();
}

/// The planes of [first, first + n) as they are in a chunk.
inline std::vector<uint8_t> ChunkOf(const BlobRecipe& recipe, int32_t first, uint32_t n) {
  std::vector<uint8_t> bytes;
  const uint32_t planes = recipe.n_layers * (recipe.has_v ? 2 : 1);
  for (uint32_t plane = 0; plane < planes; ++plane) {
    const bool is_k = plane < recipe.n_layers;
    const uint32_t row = is_k ? recipe.k_row : recipe.v_row;
    const uint32_t element = is_k || recipe.v_element == 0 ? row : recipe.v_element;
    for (uint32_t channel = 0; channel < row / element; ++channel) {
      for (uint32_t i = 0; i < n; ++i) {
        for (uint32_t b = 0; b < element; ++b) {
          bytes.push_back(ValueAt(plane, first + static_cast<int32_t>(i), channel * element + b));
        }
      }
    }
  }
  return bytes;
}

}  // namespace tandem::workers
