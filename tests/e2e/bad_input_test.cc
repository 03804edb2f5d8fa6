// Bad input gets a precise status that names the field, the value and the limit, and the daemon
// serves the next request.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/e2e/harness.h"

namespace tandem::e2e {
namespace {

using testing::HasSubstr;

class BadInputTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    daemon_ = new DaemonProcess({"--model", DemoModel(), "--listen", "127.0.0.1:0", "--threads",
                                 "1", "--tenants", "default,alice"});
    client_ = new Client(daemon_->RouterAddress());
  }
  static void TearDownTestSuite() {
    delete client_;
    delete daemon_;
  }

  /// Every refusal is followed by a request that must be served.
  void TearDown() override {
    const Generated next = client_->Generate(Greedy("The king said", 2));
    EXPECT_TRUE(next.status.ok()) << next.status.error_message();
  }

  static void ExpectRefused(const v1::GenerateRequest& request, grpc::StatusCode code,
                            const std::vector<std::string>& words) {
    const Generated got = client_->Generate(request);
    EXPECT_EQ(got.status.error_code(), code) << got.status.error_message();
    for (const std::string& word : words) EXPECT_THAT(got.status.error_message(), HasSubstr(word));
    EXPECT_TRUE(got.tokens.empty());
  }

  static DaemonProcess* daemon_;
  static Client* client_;
};
DaemonProcess* BadInputTest::daemon_ = nullptr;
Client* BadInputTest::client_ = nullptr;

TEST_F(BadInputTest, EmptyPrompt) {
  ExpectRefused(Greedy("", 4), grpc::INVALID_ARGUMENT, {"prompt", "empty"});
  v1::GenerateRequest none;
  ExpectRefused(none, grpc::INVALID_ARGUMENT, {"prompt", "empty"});
  none.mutable_prompt_tokens();
  ExpectRefused(none, grpc::INVALID_ARGUMENT, {"prompt_tokens", "empty"});
}

TEST_F(BadInputTest, PromptOverTheContext) {
  v1::GenerateRequest request;
  for (int i = 0; i < 2049; ++i) request.mutable_prompt_tokens()->add_ids(300);
  ExpectRefused(request, grpc::INVALID_ARGUMENT, {"prompt_tokens", "2049", "2048"});
  std::string text;
  for (int i = 0; i < 3000; ++i) text += "word ";
  ExpectRefused(Greedy(text, 4), grpc::INVALID_ARGUMENT, {"prompt", "tokens", "2048"});
}

TEST_F(BadInputTest, UnknownModelAndTenant) {
  v1::GenerateRequest request = Greedy("hello", 4);
  request.set_model("gpt-9");
  ExpectRefused(request, grpc::NOT_FOUND, {"model", "gpt-9", "demo-q8_0"});
  request = Greedy("hello", 4);
  request.set_tenant("mallory");
  ExpectRefused(request, grpc::PERMISSION_DENIED, {"tenant", "mallory"});
  request.set_tenant("alice");
  EXPECT_TRUE(client_->Generate(request).status.ok());
}

TEST_F(BadInputTest, SamplingOutOfRange) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  v1::GenerateRequest request = Greedy("hello", 4);
  v1::SamplingParams* sampling = request.mutable_sampling();
  sampling->set_temperature(nan);
  ExpectRefused(request, grpc::INVALID_ARGUMENT, {"temperature", "nan", "100"});
  sampling->set_temperature(-1);
  ExpectRefused(request, grpc::INVALID_ARGUMENT, {"temperature", "-1", "100"});
  sampling->set_temperature(INFINITY);
  ExpectRefused(request, grpc::INVALID_ARGUMENT, {"temperature", "inf", "100"});
  sampling->set_temperature(1);
  sampling->set_top_k(-1);
  ExpectRefused(request, grpc::INVALID_ARGUMENT, {"top_k", "-1", "4096"});
  sampling->set_top_k(0);
  sampling->set_top_p(0);
  ExpectRefused(request, grpc::INVALID_ARGUMENT, {"top_p", "0", "1"});
  sampling->set_top_p(nan);
  ExpectRefused(request, grpc::INVALID_ARGUMENT, {"top_p", "nan"});
  sampling->set_top_p(1);
  sampling->set_min_p(1.5);
  ExpectRefused(request, grpc::INVALID_ARGUMENT, {"min_p", "1.5", "1"});
  sampling->set_min_p(0);
  sampling->set_repetition_penalty(0);
  ExpectRefused(request, grpc::INVALID_ARGUMENT, {"repetition_penalty", "0", "10"});
  sampling->set_repetition_penalty(1);
  sampling->set_frequency_penalty(3);
  ExpectRefused(request, grpc::INVALID_ARGUMENT, {"frequency_penalty", "3", "2"});
  sampling->set_frequency_penalty(0);
  sampling->set_penalty_last_n(-2);
  ExpectRefused(request, grpc::INVALID_ARGUMENT, {"penalty_last_n", "-2", "-1"});
  sampling->set_penalty_last_n(64);
  sampling->add_stop_token_ids(5000);
  ExpectRefused(request, grpc::INVALID_ARGUMENT, {"stop_token_ids", "5000", "4095"});
}

TEST_F(BadInputTest, TokensOutsideTheVocabulary) {
  for (const int32_t bad : {-1, 4096, std::numeric_limits<int32_t>::min()}) {
    v1::GenerateRequest request;
    request.mutable_prompt_tokens()->add_ids(1);
    request.mutable_prompt_tokens()->add_ids(bad);
    ExpectRefused(request, grpc::INVALID_ARGUMENT,
                  {"prompt_tokens.ids[1]", std::to_string(bad), "4095"});
  }
}

TEST_F(BadInputTest, IdsStopsAndTimeouts) {
  v1::GenerateRequest request = Greedy("hello", 4);
  request.set_request_id("no spaces\nplease");
  ExpectRefused(request, grpc::INVALID_ARGUMENT, {"request_id", "no spaces?please"});
  request.set_request_id(std::string(129, 'x'));
  ExpectRefused(request, grpc::INVALID_ARGUMENT, {"request_id", "129", "128"});
  request = Greedy("hello", 4);
  request.add_stop("");
  ExpectRefused(request, grpc::INVALID_ARGUMENT, {"stop", "0 bytes", "256"});
  request = Greedy("hello", 4);
  for (int i = 0; i < 17; ++i) request.add_stop("x");
  ExpectRefused(request, grpc::INVALID_ARGUMENT, {"stop", "17", "16"});
  request = Greedy("hello", 4);
  request.set_timeout_s(-1);
  ExpectRefused(request, grpc::INVALID_ARGUMENT, {"timeout_s", "-1"});
  request.set_timeout_s(std::numeric_limits<double>::quiet_NaN());
  ExpectRefused(request, grpc::INVALID_ARGUMENT, {"timeout_s", "nan"});
}

TEST_F(BadInputTest, HugePrompt) {
  ExpectRefused(Greedy(std::string(100 << 20, 'a'), 4), grpc::INVALID_ARGUMENT,
                {"prompt", "10485", "max_prompt_bytes", "4194304"});
  ExpectRefused(Greedy(std::string((4 << 20) + 1, 'a'), 4), grpc::INVALID_ARGUMENT,
                {"prompt", "4194305", "max_prompt_bytes", "4194304"});
}

constexpr char kGenerate[] = "/tandem.v1.InferenceService/Generate";

TEST_F(BadInputTest, InvalidUtf8) {
  std::string bytes = Greedy("hello world", 4).SerializeAsString();
  bytes[bytes.find("world")] = '\xC0';
  const grpc::Status status = RawCall(*client_, kGenerate, bytes).status;
  EXPECT_EQ(status.error_code(), grpc::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("prompt: invalid UTF-8 at byte 6"));
}

TEST_F(BadInputTest, BytesThatAreNoMessage) {
  for (const std::string& bytes : {std::string("\xff\xff\xff\xff"), std::string(1000, '\x0a')}) {
    const grpc::Status status = RawCall(*client_, kGenerate, bytes).status;
    EXPECT_EQ(status.error_code(), grpc::INVALID_ARGUMENT);
    EXPECT_THAT(status.error_message(), HasSubstr("GenerateRequest"));
  }
}

}  // namespace
}  // namespace tandem::e2e
