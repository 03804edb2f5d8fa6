// Tokens of several sequences in one stream, a message a step.
#include <gtest/gtest.h>

#include <map>
#include <thread>

#include "tests/integration/engine/engine_fixture.h"
#include "tests/integration/worker/worker_fixture.h"

namespace tandem::workers {
namespace {

/// A router's Steps call: what has come of each sequence.
class Steps {
 public:
  Steps(TestWorker& worker, const std::string& name) {
    v1::StepsRequest request;
    request.set_step_stream(name);
    stream_ = worker.stub().Steps(&context_, request);
    reader_ = std::thread([this] {
      for (v1::StepTokens step; stream_->Read(&step);) {
        std::lock_guard lock(mutex_);
        EXPECT_EQ(step.sequences_size(), step.tokens_size());
        for (int i = 0; i < step.tokens_size(); ++i) {
          tokens_[step.sequences(i)].push_back(step.tokens(i));
        }
        if (step.tokens_size() > 1) ++shared_;
      }
      status_ = stream_->Finish();
    });
  }
  ~Steps() {
    context_.TryCancel();
    if (reader_.joinable()) reader_.join();
  }

  std::vector<int32_t> Tokens(uint64_t sequence) {
    std::lock_guard lock(mutex_);
    return tokens_[sequence];
  }
  /// Messages with tokens of more than one sequence.
  int shared() {
    std::lock_guard lock(mutex_);
    return shared_;
  }
  void Cancel() { context_.TryCancel(); }
  /// Blocks until the call has ended.
  grpc::Status Wait() {
    reader_.join();
    return status_;
  }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<v1::StepTokens>> stream_;
  std::mutex mutex_;
  // Guarded by mutex_.
  std::map<uint64_t, std::vector<int32_t>> tokens_;
  int shared_ = 0;
  grpc::Status status_;  // the reader's, until it has ended
  std::thread reader_;
};

TestRequest Request(uint32_t seed, const std::string& steps, uint32_t max_tokens = 64) {
  return {.prompt = Prompt(60, seed),
          .max_tokens = max_tokens,
          .step_stream = steps,
          .step_sequence = seed};
}

/// The worker knows the call once tokens come by it.
void WaitUntilOpen(TestWorker& worker, const std::string& name) {
  EXPECT_TRUE(Eventually([&] { return Serve(Request(999, name, 2), worker, worker).step_tokens; }));
}

TEST(StepStreamTest, BringsEverySequenceTheTokensThatItsOwnCallWould) {
  TestWorker mixed(v1::PHASE_MIXED);
  const std::string name(16, 'a');
  Steps steps(mixed, name);
  WaitUntilOpen(mixed, name);
  constexpr uint32_t kSequences = 4;
  std::vector<std::thread> clients;
  std::vector<Outcome> outcomes(kSequences);
  for (uint32_t i = 0; i < kSequences; ++i) {
    clients.emplace_back([&, i] { outcomes[i] = Serve(Request(i, name), mixed, mixed); });
  }
  for (std::thread& client : clients) client.join();
  for (uint32_t i = 0; i < kSequences; ++i) {
    EXPECT_TRUE(outcomes[i].status.ok()) << outcomes[i].status;
    EXPECT_EQ(outcomes[i].finish, v1::FINISH_REASON_LENGTH);
    ASSERT_EQ(outcomes[i].tokens.size(), 1u);
    EXPECT_EQ(outcomes[i].step_tokens, 63u);
    ASSERT_TRUE(Eventually([&] { return steps.Tokens(i).size() == 63; })) << i;
    std::vector<int32_t> all = outcomes[i].tokens;
    const auto rest = steps.Tokens(i);
    all.insert(all.end(), rest.begin(), rest.end());
    EXPECT_EQ(all, Serve(Request(i, ""), mixed, mixed).tokens) << i;
  }
  EXPECT_GT(steps.shared(), 0);
}

TEST(StepStreamTest, ASequenceWhoseStreamIsGoneEnds) {
  TestWorker mixed(v1::PHASE_MIXED);
  const std::string name(16, 'b');
  Steps steps(mixed, name);
  WaitUntilOpen(mixed, name);
  Outcome outcome;
  std::thread client([&] { outcome = Serve(Request(1, name, 1900), mixed, mixed); });
  EXPECT_TRUE(Eventually([&] { return steps.Tokens(1).size() > 3; }));
  steps.Cancel();
  client.join();
  EXPECT_EQ(outcome.status.code(), absl::StatusCode::kUnavailable) << outcome.status;
  EXPECT_TRUE(Eventually([&] { return mixed.worker().unfinished() == 0; }));
  EXPECT_TRUE(Eventually([&] { return mixed.load().running() == 0; }));
  // Others go on without it.
  EXPECT_EQ(Serve(Request(2, name), mixed, mixed).tokens.size(), 64u);
}

TEST(StepStreamTest, EndsWithItsWorker) {
  TestWorker mixed(v1::PHASE_MIXED);
  const std::string name(16, 'c');
  Steps steps(mixed, name);
  WaitUntilOpen(mixed, name);
  mixed.worker().Stop();
  const grpc::Status status = steps.Wait();
  EXPECT_TRUE(status.ok()) << status.error_message();  // not cut off after the grace
}

}  // namespace
}  // namespace tandem::workers
