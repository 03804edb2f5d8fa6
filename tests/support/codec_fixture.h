// A small model's KV for tests of the codec: made-up keys and values with correlated channels, and
// a profile that fits them roughly. Everything is a pure function of the seed.
#pragma once

#include <memory>
#include <string>

#include "kvstore/codec/codec.h"

namespace tandem::kvstore::codec {

inline constexpr char kFingerprint[] = "0123456789abcdef0123456789abcdef";

struct TestModel {
  KvGeometry geometry;
  KvLayout layout;
};

/// `n_layers` layers of `n_heads` heads of `head_dim` channels.
TestModel MakeModel(uint32_t n_layers, uint32_t n_heads, uint32_t head_dim,
                    const std::string& type = "f16", Rope::Style style = Rope::Style::kInterleaved,
                    bool channel_major_v = false);

void PutElement(const std::string& type, float value, uint8_t* at);
float GetElement(const std::string& type, const uint8_t* at);

/// Where element (plane, token, channel) lies in a chunk's bytes.
size_t ElementAt(const TestModel& model, uint32_t n_tokens, size_t plane, uint32_t token,
                 uint32_t channel);

/// Rows of a few strong hidden causes plus noise, keys rotated.
KvChunk MakeChunk(const TestModel& model, uint32_t first_position, uint32_t n_tokens,
                  uint32_t seed);

/// Tables of three widths (16, 32 and more symbols), a random well-conditioned basis; level l has
/// the step 0.4 × 2^l and codes all but the last l eighths of the components. Returned as parsed
/// from its file.
std::shared_ptr<const Profile> MakeProfile(const TestModel& model, uint32_t seed,
                                           Prediction prediction = Prediction::kNone);

}  // namespace tandem::kvstore::codec
