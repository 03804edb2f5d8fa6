// What the end-to-end tests of bad input do not reach: defaults, clipping, and bytes that were
// made to confuse the search for a bad string. The model is real, vocabulary only.
#include "server/request_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "base/status.h"

namespace tandem::server {
namespace {

using testing::HasSubstr;

const workers::Model& DemoModel() {
  static const auto model = *workers::Model::Load(
      {.path = TANDEM_SOURCE_DIR "/models/demo-q8_0.gguf", .vocabulary_only = true});
  return *model;
}

const RequestLimits kLimits{
    .tenants = {"default"}, .max_prompt_bytes = 4096, .context_tokens = 100};

v1::GenerateRequest WithTokens(int n) {
  v1::GenerateRequest request;
  for (int i = 0; i < n; ++i) request.mutable_prompt_tokens()->add_ids(300);
  return request;
}

grpc::ByteBuffer Bytes(const std::string& bytes) {
  const grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

/// As the router does it: the fields, then the prompt.
absl::StatusOr<CheckedRequest> Check(const v1::GenerateRequest& request) {
  ASSIGN_OR_RETURN(CheckedRequest checked, CheckGenerateRequest(request, kLimits, DemoModel()));
  RETURN_IF_ERROR(TokenizePrompt(request, kLimits, DemoModel(), checked));
  return checked;
}

TEST(RequestCheckTest, FillsInWhatIsMissing) {
  v1::GenerateRequest request;
  request.set_prompt("The king said");
  auto checked = Check(request);
  ASSERT_TRUE(checked.ok()) << checked.status();
  EXPECT_EQ(checked->tenant, "default");
  EXPECT_THAT(checked->request_id, testing::StartsWith("req-"));
  EXPECT_EQ(checked->tokens.front(), 1) << "BOS";
  EXPECT_EQ(checked->timeout, absl::InfiniteDuration());
  EXPECT_TRUE(checked->sampling.has_seed());
  auto again = Check(request);
  EXPECT_NE(again->request_id, checked->request_id);
  EXPECT_NE(again->sampling.seed(), checked->sampling.seed());
}

TEST(RequestCheckTest, ClipsMaxTokensToTheContext) {
  for (const auto& [n, wanted, expected] :
       {std::tuple(10, 5u, 5u), {10, 0u, 91u}, {10, 1000u, 91u}, {100, 0u, 1u}, {99, 7u, 2u}}) {
    v1::GenerateRequest request = WithTokens(n);
    request.set_max_tokens(wanted);
    auto checked = Check(request);
    ASSERT_TRUE(checked.ok()) << checked.status();
    EXPECT_EQ(checked->max_tokens, expected);
  }
}

TEST(RequestCheckTest, NamesTheStringThatIsNotUtf8) {
  for (const auto& [field, number] :
       {std::pair("prompt", 6), {"tenant", 2}, {"model", 3}, {"stop", 10}}) {
    std::string bytes = {static_cast<char>(number << 3 | 2), 3, 'o', 'k', '\xFF'};
    const auto parsed = ParseGenerateRequest(Bytes(bytes), kLimits);
    EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(parsed.status().message()),
                HasSubstr(std::string(field) + ": invalid UTF-8 at byte 2"));
  }
}

TEST(RequestCheckTest, AnyBytesParseOrGiveAnError) {
  std::mt19937 random(1);
  v1::GenerateRequest sample = WithTokens(3);
  sample.set_tenant("default");
  sample.add_stop("\n");
  sample.mutable_sampling()->set_temperature(0.5);
  const std::string seed = sample.SerializeAsString();
  for (int round = 0; round < 20000; ++round) {
    std::string bytes = seed.substr(0, random() % (seed.size() + 1));
    for (size_t flips = random() % 4; flips > 0 && !bytes.empty(); --flips) {
      bytes[random() % bytes.size()] = static_cast<char>(random());
    }
    auto parsed = ParseGenerateRequest(Bytes(bytes), kLimits);
    if (parsed.ok()) {
      (void)Check(*parsed);
    } else {
      EXPECT_FALSE(parsed.status().message().empty());
    }
  }
}

}  // namespace
}  // namespace tandem::server
