// From the bytes of a Generate call to a request in native types that is known to be sound. Every
// error names the field, the value and the limit. Called by the router for each call.
#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvstore/codec/level.h"
#include "tandem/v1/inference.pb.h"
#include "workers/engine/model.h"

namespace tandem::server {

struct RequestLimits {
  std::vector<std::string> tenants;
  uint64_t max_prompt_bytes = 4 << 20;
  /// Tokens of prompt and output that fit the workers' sequences.
  uint32_t context_tokens = 0;
};

struct CheckedRequest {
  std::string request_id, tenant;
  uint32_t attempt = 0;
  int32_t priority = 0;
  /// Infinite when the request sets none.
  absl::Duration timeout = absl::InfiniteDuration();
  std::vector<int32_t> tokens;
  /// With `seed` set.
  v1::SamplingParams sampling;
  /// At least 1, and clipped so that prompt and output fit the context.
  uint32_t max_tokens = 0;
  std::vector<std::string> stops;
  /// The coarsest level that cached KV may have.
  kvstore::codec::Level kv_floor = kvstore::codec::Level::kQ4;
  bool bypass_cache = false;
};

/// Decodes a serialized GenerateRequest. INVALID_ARGUMENT, naming the field, when a string is not
/// UTF-8 (a protobuf parser only says that the message is bad), or when the message is larger
/// than any prompt may be. Thread-safe.
absl::StatusOr<v1::GenerateRequest> ParseGenerateRequest(const grpc::ByteBuffer& bytes,
                                                         const RequestLimits& limits);

/// Checks every field but the prompt; `tokens` and `max_tokens` are left for TokenizePrompt.
/// INVALID_ARGUMENT, PERMISSION_DENIED for an unknown tenant, NOT_FOUND for an unknown model.
/// Thread-safe, and quick.
absl::StatusOr<CheckedRequest> CheckGenerateRequest(const v1::GenerateRequest& request,
                                                    const RequestLimits& limits,
                                                    const workers::Model& model);

/// Checks the prompt and fills in `tokens` and `max_tokens`. INVALID_ARGUMENT. Thread-safe; takes
/// as long as the prompt is.
absl::Status TokenizePrompt(const v1::GenerateRequest& request, const RequestLimits& limits,
                            const workers::Model& model, CheckedRequest& checked);

/// NOT_FOUND unless `name` is empty or the model's.
absl::Status CheckModelName(const std::string& name, const workers::Model& model);
/// INVALID_ARGUMENT naming `field` for an id outside the vocabulary.
absl::Status CheckTokenIds(const google::protobuf::RepeatedField<int32_t>& ids,
                           std::string_view field, const workers::Model& model);

}  // namespace tandem::server
