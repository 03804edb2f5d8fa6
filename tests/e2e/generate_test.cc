// What a client gets from Generate, through three processes and through one.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/e2e/harness.h"

namespace tandem::e2e {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

class GenerateTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { cluster_ = new Cluster(); }
  static void TearDownTestSuite() {
    delete cluster_;
    cluster_ = nullptr;
  }
  static Client& client() { return cluster_->client(); }
  static Cluster* cluster_;
};
Cluster* GenerateTest::cluster_ = nullptr;

TEST_F(GenerateTest, StreamsTextAndEndsWithUsageAndTimings) {
  int messages = 0;
  const Generated got =
      client().Generate(Greedy("Once upon a time there was a king who", 24),
                        [&](grpc::ClientContext&, const v1::GenerateResponse&) { ++messages; });
  ASSERT_TRUE(got.status.ok()) << got.status.error_message();
  EXPECT_GT(messages, 1) << "the text must come piece by piece";
  EXPECT_EQ(got.terminal_messages, 1);
  EXPECT_EQ(got.tokens.size(), 24u);
  EXPECT_EQ(got.finish, v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(got.usage.generated_tokens(), 24u);
  EXPECT_GT(got.usage.prompt_tokens(), 5u);
  EXPECT_EQ(got.usage.cached_tokens(), 0u);
  EXPECT_FALSE(got.text.empty());
  EXPECT_THAT(got.request_id, StartsWith("req-"));
  EXPECT_GT(got.timings.ttft_s(), 0);
  EXPECT_GT(got.timings.tpot_s(), 0);
  EXPECT_GE(got.timings.total_s(), got.timings.ttft_s());
  EXPECT_GT(got.timings.prefill_s(), 0);
  EXPECT_GT(got.timings.handoff_s(), 0);
  EXPECT_GT(got.timings.decode_s(), 0);
  // The demo model's KV: 8 layers × (K, V) × 2 heads × 64 values × 2 bytes.
  EXPECT_EQ(got.timings.handoff_bytes(), got.usage.prompt_tokens() * 4096u);
}

TEST_F(GenerateTest, OneTokenNeedsNoDecodeWorker) {
  const Generated got = client().Generate(Greedy("The king said", 1));
  ASSERT_TRUE(got.status.ok()) << got.status.error_message();
  EXPECT_EQ(got.tokens.size(), 1u);
  EXPECT_EQ(got.finish, v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(got.timings.handoff_bytes(), 0u);
}

TEST_F(GenerateTest, KeepsTheClientsRequestId) {
  v1::GenerateRequest request = Greedy("The king said", 2);
  request.set_request_id("order-66");
  EXPECT_EQ(client().Generate(request).request_id, "order-66");
  EXPECT_THAT(cluster_->decode().process().Log(), HasSubstr("request_id=order-66"));
}

TEST_F(GenerateTest, TheSameSeedGivesTheSameText) {
  v1::GenerateRequest request = Greedy("Far away in the forest", 40);
  request.mutable_sampling()->set_temperature(0.9);
  request.mutable_sampling()->set_top_k(40);
  request.mutable_sampling()->set_seed(11);
  const Generated first = client().Generate(request);
  EXPECT_EQ(client().Generate(request).tokens, first.tokens);
  request.mutable_sampling()->set_seed(12);
  EXPECT_NE(client().Generate(request).tokens, first.tokens);
}

TEST_F(GenerateTest, PromptTokensAreTakenAsTheyAre) {
  v1::TokenizeRequest tokenize;
  tokenize.set_text("The king said");
  grpc::ClientContext context;
  v1::TokenizeResponse tokens;
  ASSERT_TRUE(client().inference().Tokenize(&context, tokenize, &tokens).ok());
  v1::GenerateRequest request = Greedy("", 8);
  *request.mutable_prompt_tokens()->mutable_ids() = tokens.token_ids();
  EXPECT_EQ(client().Generate(request).tokens,
            client().Generate(Greedy("The king said", 8)).tokens);
}

TEST_F(GenerateTest, StopStringEndsTheTextBeforeIt) {
  const Generated whole = client().Generate(Greedy("Once upon a time", 40));
  ASSERT_GT(whole.text.size(), 20u);
  const std::string stop = whole.text.substr(10, 5);
  v1::GenerateRequest request = Greedy("Once upon a time", 40);
  request.add_stop(stop);
  const Generated got = client().Generate(request);
  EXPECT_EQ(got.text, whole.text.substr(0, whole.text.find(stop)));
  EXPECT_EQ(got.finish, v1::FINISH_REASON_STOP);
  EXPECT_TRUE(client().WaitIdle()) << "the decode worker goes on generating";
}

TEST_F(GenerateTest, StopTokenEndsTheGeneration) {
  const Generated whole = client().Generate(Greedy("Once upon a time", 20));
  ASSERT_EQ(whole.tokens.size(), 20u);
  for (const size_t at : {size_t{0}, size_t{7}}) {
    v1::GenerateRequest request = Greedy("Once upon a time", 20);
    request.mutable_sampling()->add_stop_token_ids(whole.tokens[at]);
    const Generated got = client().Generate(request);
    const auto first = std::find(whole.tokens.begin(), whole.tokens.end(), whole.tokens[at]);
    EXPECT_EQ(got.tokens, std::vector<int32_t>(whole.tokens.begin(), first));
    EXPECT_EQ(got.finish, v1::FINISH_REASON_STOP);
  }
  EXPECT_TRUE(client().WaitIdle());
}

TEST_F(GenerateTest, FillsTheContextToTheLastToken) {
  v1::GenerateRequest request = Greedy("", 0);
  for (int i = 0; i < 2040; ++i) request.mutable_prompt_tokens()->add_ids(300 + i % 3000);
  request.mutable_sampling()->set_ignore_eos(true);
  const Generated got = client().Generate(request);
  ASSERT_TRUE(got.status.ok()) << got.status.error_message();
  EXPECT_EQ(got.usage.generated_tokens(), 2048u - 2040u + 1u);
  EXPECT_EQ(got.finish, v1::FINISH_REASON_LENGTH);
}

TEST_F(GenerateTest, TokenizeAndDetokenizeAreInverse) {
  const std::string text = "Grüße, 世界! 🌍\n\nThe end.";
  grpc::ClientContext first, second;
  v1::TokenizeRequest tokenize;
  tokenize.set_text(text);
  v1::TokenizeResponse tokens;
  ASSERT_TRUE(client().inference().Tokenize(&first, tokenize, &tokens).ok());
  v1::DetokenizeRequest detokenize;
  *detokenize.mutable_token_ids() = tokens.token_ids();
  v1::DetokenizeResponse back;
  ASSERT_TRUE(client().inference().Detokenize(&second, detokenize, &back).ok());
  EXPECT_EQ(back.text(), text);
}

TEST_F(GenerateTest, ListsTheModel) {
  grpc::ClientContext context;
  v1::ListModelsResponse models;
  ASSERT_TRUE(client().inference().ListModels(&context, {}, &models).ok());
  ASSERT_EQ(models.models_size(), 1);
  EXPECT_EQ(models.models(0).name(), "demo-q8_0");
  EXPECT_EQ(models.models(0).context_tokens(), 2048u);
  EXPECT_EQ(models.models(0).vocabulary_size(), 4096u);
  EXPECT_EQ(models.models(0).fingerprint().size(), 64u);
}

TEST(AllInOneTest, OneProcessServesAndGivesTheSameText) {
  DaemonProcess all({"--model", DemoModel(), "--listen", "127.0.0.1:0", "--threads", "1"});
  Client client(all.RouterAddress());
  const Generated alone = client.Generate(Greedy("The old woman opened the door and", 32));
  ASSERT_TRUE(alone.status.ok()) << alone.status.error_message();
  Cluster three;
  EXPECT_EQ(three.client().Generate(Greedy("The old woman opened the door and", 32)).tokens,
            alone.tokens);
}

TEST(CommandLineTest, GeneratePrintsTheTextAndStatusTheWorkers) {
  DaemonProcess all({"--model", DemoModel(), "--listen", "127.0.0.1:0", "--threads", "1"});
  Client client(all.RouterAddress());
  const Generated expected = client.Generate(Greedy("The king said", 12));
  Process generate({BinaryPath("tandem"), "generate", "--router", all.RouterAddress(),
                    "--temperature", "0", "--max-tokens", "12", "The king said"},
                   testing::TempDir() + "tandem-generate.log");
  EXPECT_EQ(generate.Wait(), 0);
  EXPECT_THAT(generate.Log(), HasSubstr(expected.text));
  Process status({BinaryPath("tandem"), "status", "--router", all.RouterAddress()},
                 testing::TempDir() + "tandem-status.log");
  EXPECT_EQ(status.Wait(), 0);
  EXPECT_THAT(status.Log(), HasSubstr("prefill"));
  EXPECT_THAT(status.Log(), HasSubstr("decode"));
}

TEST(CommandLineTest, SaysWhatToDoWhenThereIsNoRouter) {
  Process generate({BinaryPath("tandem"), "generate", "--router", "127.0.0.1:1", "hello"},
                   testing::TempDir() + "tandem-norouter.log");
  EXPECT_EQ(generate.Wait(), 1);
  EXPECT_THAT(generate.Log(), HasSubstr("UNAVAILABLE"));
  EXPECT_THAT(generate.Log(), HasSubstr("127.0.0.1:1"));
}

}  // namespace
}  // namespace tandem::e2e
