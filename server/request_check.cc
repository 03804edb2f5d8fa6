#include "server/request_check.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>
#include <grpcpp/impl/codegen/proto_utils.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "absl/strings/str_join.h"
#include "base/status.h"
#include "server/text_stream.h"

namespace tandem::server {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;

constexpr size_t kMaxIdBytes = 128;
constexpr int64_t kMaxPriority = 100;
constexpr int kMaxStops = 16;
constexpr size_t kMaxStopBytes = 256;
constexpr int kMaxMessageDepth = 10;
// What a request may have besides its prompt.
constexpr uint64_t kMessageSlackBytes = 1 << 20;

/// A client's text as it may stand in an error message: short and printable.
std::string Quote(std::string_view text) {
  std::string shown(text.substr(0, 48));
  for (char& c : shown) {
    if (static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) >= 0x7F) c = '?';
  }
  return absl::StrCat("'", shown, shown.size() < text.size() ? "…'" : "'");
}

/// The first string field below `descriptor` that is not UTF-8, with the offset; empty if all are.
std::string FindBadString(const Descriptor& descriptor, std::string_view bytes, int depth) {
  CodedInputStream in(reinterpret_cast<const uint8_t*>(bytes.data()),
                      static_cast<int>(bytes.size()));
  while (const uint32_t tag = in.ReadTag()) {
    if (WireFormatLite::GetTagWireType(tag) != WireFormatLite::WIRETYPE_LENGTH_DELIMITED) {
      if (!WireFormatLite::SkipField(&in, tag)) return "";
      continue;
    }
    uint32_t length;
    if (!in.ReadVarint32(&length)) return "";
    const auto start = static_cast<size_t>(in.CurrentPosition());
    if (length > bytes.size() - start || !in.Skip(static_cast<int>(length))) return "";
    const FieldDescriptor* field =
        descriptor.FindFieldByNumber(WireFormatLite::GetTagFieldNumber(tag));
    if (field == nullptr) continue;
    const std::string_view value = bytes.substr(start, length);
    if (field->type() == FieldDescriptor::TYPE_STRING) {
      const size_t bad = FindInvalidUtf8(value);
      if (bad != std::string_view::npos) {
        return absl::StrCat(field->name(), ": invalid UTF-8 at byte ", bad, " of ", length);
      }
    } else if (field->type() == FieldDescriptor::TYPE_MESSAGE && depth < kMaxMessageDepth) {
      std::string found = FindBadString(*field->message_type(), value, depth + 1);
      if (!found.empty()) return found;
    }
  }
  return "";
}

absl::Status CheckRange(std::string_view field, double value, double low, bool low_allowed,
                        double high) {
  // Written so that NaN fails.
  if ((low_allowed ? value >= low : value > low) && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("sampling.", View(field), ": ", value,
                                                 " is out of range; allowed is ",
                                                 low_allowed ? "[" : "(", low, ", ", high, "]"));
}

absl::Status CheckSampling(const v1::SamplingParams& s, const workers::Model& model) {
  if (s.has_temperature()) {
    RETURN_IF_ERROR(CheckRange("temperature", s.temperature(), 0, true, 100));
  }
  RETURN_IF_ERROR(CheckRange("top_k", s.top_k(), 0, true, model.vocabulary_size()));
  if (s.has_top_p()) RETURN_IF_ERROR(CheckRange("top_p", s.top_p(), 0, false, 1));
  RETURN_IF_ERROR(CheckRange("min_p", s.min_p(), 0, true, 1));
  if (s.has_repetition_penalty()) {
    RETURN_IF_ERROR(CheckRange("repetition_penalty", s.repetition_penalty(), 0, false, 10));
  }
  RETURN_IF_ERROR(CheckRange("frequency_penalty", s.frequency_penalty(), -2, true, 2));
  RETURN_IF_ERROR(CheckRange("presence_penalty", s.presence_penalty(), -2, true, 2));
  if (s.has_penalty_last_n()) {
    RETURN_IF_ERROR(CheckRange("penalty_last_n", s.penalty_last_n(), -1, true, 1 << 20));
  }
  if (s.stop_token_ids_size() > kMaxStops) {
    return absl::InvalidArgumentError(absl::StrCat(
        "sampling.stop_token_ids: ", s.stop_token_ids_size(), " ids; at most ", kMaxStops));
  }
  return CheckTokenIds(s.stop_token_ids(), "sampling.stop_token_ids", model);
}

bool IsIdCharacter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
         c == '_' || c == ':' || c == '-';
}

absl::StatusOr<std::string> CheckRequestId(const std::string& id) {
  if (id.empty()) {
    std::random_device random;
    return absl::StrCat("req-", absl::Hex(random(), absl::kZeroPad8),
                        absl::Hex(random(), absl::kZeroPad8));
  }
  if (id.size() > kMaxIdBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("request_id: ", id.size(), " characters; at most ", kMaxIdBytes));
  }
  if (!std::all_of(id.begin(), id.end(), IsIdCharacter)) {
    return absl::InvalidArgumentError(
        absl::StrCat("request_id: ", Quote(id), " has a character other than [A-Za-z0-9._:-]"));
  }
  return id;
}

absl::Status CheckTenant(const std::string& tenant, const RequestLimits& limits) {
  if (std::find(limits.tenants.begin(), limits.tenants.end(), tenant) != limits.tenants.end()) {
    return absl::OkStatus();
  }
  return absl::PermissionDeniedError(absl::StrCat(
      "tenant: ", Quote(tenant), " is not one of the tenants that this router is configured for"));
}

absl::Status CheckStops(const google::protobuf::RepeatedPtrField<std::string>& stops) {
  if (stops.size() > kMaxStops) {
    return absl::InvalidArgumentError(
        absl::StrCat("stop: ", stops.size(), " strings; at most ", kMaxStops));
  }
  for (const std::string& stop : stops) {
    if (stop.empty() || stop.size() > kMaxStopBytes) {
      return absl::InvalidArgumentError(absl::StrCat("stop: a string of ", stop.size(),
                                                     " bytes; allowed are 1 to ", kMaxStopBytes));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> PromptTokens(const v1::GenerateRequest& request,
                                                  const RequestLimits& limits,
                                                  const workers::Model& model) {
  std::vector<int32_t> tokens;
  std::string_view field = "prompt";
  if (request.has_prompt_tokens()) {
    field = "prompt_tokens";
    const auto& ids = request.prompt_tokens().ids();
    RETURN_IF_ERROR(CheckTokenIds(ids, "prompt_tokens.ids", model));
    tokens.assign(ids.begin(), ids.end());
  } else if (!request.prompt().empty()) {
    if (request.prompt().size() > limits.max_prompt_bytes) {
      return absl::InvalidArgumentError(absl::StrCat("prompt: ", request.prompt().size(),
                                                     " bytes; max_prompt_bytes is ",
                                                     limits.max_prompt_bytes));
    }
    tokens = model.Tokenize(request.prompt(), true);
  }
  if (tokens.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(View(field), ": empty; a request needs at least one token"));
  }
  if (tokens.size() > limits.context_tokens) {
    return absl::InvalidArgumentError(absl::StrCat(View(field), ": ", tokens.size(),
                                                   " tokens; the context has room for ",
                                                   limits.context_tokens));
  }
  return tokens;
}

}  // namespace

absl::Status CheckModelName(const std::string& name, const workers::Model& model) {
  if (name.empty() || name == model.name()) return absl::OkStatus();
  return absl::NotFoundError(absl::StrCat("model: ", Quote(name), " is not served here; ",
                                          "available is '", model.name(), "'"));
}

absl::Status CheckTokenIds(const google::protobuf::RepeatedField<int32_t>& ids,
                           std::string_view field, const workers::Model& model) {
  const auto size = static_cast<int64_t>(model.vocabulary_size());
  for (int i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= size) {
      return absl::InvalidArgumentError(absl::StrCat(View(field), "[", i, "]: ", ids[i],
                                                     " is not a token of '", model.name(),
                                                     "'; allowed is 0 to ", size - 1));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<v1::GenerateRequest> ParseGenerateRequest(const grpc::ByteBuffer& bytes,
                                                         const RequestLimits& limits) {
  const uint64_t limit = limits.max_prompt_bytes + kMessageSlackBytes;
  if (bytes.Length() > limit) {
    return absl::InvalidArgumentError(absl::StrCat("prompt: a request of ", bytes.Length(),
                                                   " bytes; max_prompt_bytes is ",
                                                   limits.max_prompt_bytes));
  }
  grpc::Slice slice;
  if (grpc::Status status = bytes.DumpToSingleSlice(&slice); !status.ok()) {
    return absl::InvalidArgumentError("the request cannot be read");
  }
  v1::GenerateRequest request;
  if (request.ParseFromArray(slice.begin(), static_cast<int>(slice.size()))) return request;
  const std::string bad =
      FindBadString(*v1::GenerateRequest::descriptor(),
                    {reinterpret_cast<const char*>(slice.begin()), slice.size()}, 0);
  return absl::InvalidArgumentError(
      bad.empty() ? "the request is not a tandem.v1.GenerateRequest message" : bad);
}

absl::StatusOr<CheckedRequest> CheckGenerateRequest(const v1::GenerateRequest& request,
                                                    const RequestLimits& limits,
                                                    const workers::Model& model) {
  CheckedRequest checked;
  checked.tenant = request.tenant().empty() ? "default" : request.tenant();
  RETURN_IF_ERROR(CheckTenant(checked.tenant, limits));
  RETURN_IF_ERROR(CheckModelName(request.model(), model));
  ASSIGN_OR_RETURN(checked.request_id, CheckRequestId(request.request_id()));
  checked.attempt = request.attempt();
  if (std::abs(int64_t{request.priority()}) > kMaxPriority) {
    return absl::InvalidArgumentError(absl::StrCat("priority: ", request.priority(),
                                                   " is out of range; allowed is -", kMaxPriority,
                                                   " to ", kMaxPriority));
  }
  checked.priority = request.priority();
  if (!(request.timeout_s() >= 0) || std::isinf(request.timeout_s())) {
    return absl::InvalidArgumentError(absl::StrCat("timeout_s: ", request.timeout_s(),
                                                   " is out of range; allowed is 0 and more"));
  }
  if (request.timeout_s() > 0) checked.timeout = absl::Seconds(request.timeout_s());
  RETURN_IF_ERROR(CheckSampling(request.sampling(), model));
  RETURN_IF_ERROR(CheckStops(request.stop()));
  checked.sampling = request.sampling();
  if (!checked.sampling.has_seed()) {
    std::random_device random;
    checked.sampling.set_seed((uint64_t{random()} << 32) | random());
  }
  checked.stops.assign(request.stop().begin(), request.stop().end());
  if (!request.kv_floor().empty()) {
    const auto floor = kvstore::codec::ParseLevel(request.kv_floor());
    if (!floor.ok()) return Annotate(floor.status(), "kv_floor");
    checked.kv_floor = *floor;
  }
  checked.bypass_cache = request.bypass_cache();
  return checked;
}

absl::Status TokenizePrompt(const v1::GenerateRequest& request, const RequestLimits& limits,
                            const workers::Model& model, CheckedRequest& checked) {
  ASSIGN_OR_RETURN(checked.tokens, PromptTokens(request, limits, model));
  // The last token needs no place in the context: nothing comes after it.
  const uint32_t room = limits.context_tokens - static_cast<uint32_t>(checked.tokens.size()) + 1;
  checked.max_tokens = request.max_tokens() == 0 ? room : std::min(request.max_tokens(), room);
  return absl::OkStatus();
}

}  // namespace tandem::server
